"""The log on a Kafka cluster: topics, control-plane appends and subscriptions, by aiokafka.

The hot path appends through `KafkaAppender` (`kafka_appender.py`, librdkafka) instead. Readers see committed records
only. Counterparts: `kafka_topics.py` (what topics must be like), `kafka_reader.py` (subscriptions), `sqlite.py` (one
process).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced

from tidegate.errors import ConfigFault, LogUnavailable
from tidegate.ids import uuid7
from tidegate.log.cloud_events import CloudEventHeaders
from tidegate.log.commit import check_size
from tidegate.log.kafka_appender import KafkaAppender
from tidegate.log.kafka_connection import for_aiokafka
from tidegate.log.kafka_diagnosis import why
from tidegate.log.kafka_reader import KafkaSubscription
from tidegate.log.kafka_stopping import stopped
from tidegate.log.kafka_topics import TopicFound, TopicSpec, differences, specs
from tidegate.log.port import STATE_TOPICS, TOPICS, Assigned, Record, Revoked, Subscription
from tidegate.settings import Settings

__all__ = ["KafkaAppender", "KafkaLog"]

_log = logging.getLogger(__name__)
_KNOWN = frozenset((*TOPICS, *STATE_TOPICS))
_TOPIC_EXISTS = 36  # Kafka's error code: another process created it in the same moment
_TRANSACTION_MS = 15_000  # what a writer that died mid-append can hold up its readers
_LEAVING_S = 2.0
_RETRY_MS = 20  # Kafka still ends a transaction when the next one begins, and says so: a release waits for that
_T = TypeVar("_T")


class KafkaLog:
    """EventLog on the cluster that `settings.log` names.

    With `writer_id` every append is a transaction under that name, and `prepare` fences whoever had the name before: a
    fenced writer's appends raise LogUnavailable (`writer-fenced`), for good. Without it, batches of several records
    are transactions under a name of their own, single records are appended idempotently.
    """

    def __init__(self, settings: Settings, *, writer_id: str | None = None, timeout_s: float = 15.0) -> None:
        self._settings = settings
        self._prefix = settings.kafka.prefix
        self._timeout_s = timeout_s
        self._writer_id = writer_id
        self._single: AIOKafkaProducer | None = None
        self._transactional: AIOKafkaProducer | None = None
        self._turn = asyncio.Lock()
        self._subscriptions: list[KafkaSubscription] = []
        self._lost: LogUnavailable | None = None  # why a named writer ended
        self._closed = False
        self._cloud_event_headers = CloudEventHeaders()

    async def prepare(self) -> None:
        """Create or check the topics, and fence earlier writers of this name.

        Raises LogUnavailable where the cluster cannot be reached, ConfigFault naming every difference that breaks a
        promise.
        """
        admin = AIOKafkaAdminClient(request_timeout_ms=int(self._timeout_s * 1000), **for_aiokafka(self._settings))
        try:
            await self._within(admin.start(), "reached")
            wanted = specs(self._settings.kafka)
            found = await self._within(_find(admin, [spec.name for spec in wanted]), "asked for its topics")
            missing = [spec for spec in wanted if spec.name not in found]
            if missing:
                await self._within(self._create(admin, missing), "given its topics")
                await self._within(_described(admin, [spec.name for spec in missing]), "given leaders for its topics")
            wrong = [line for spec in wanted if spec.name in found for line in differences(spec, found[spec.name])]
        finally:
            with contextlib.suppress(Exception):
                await admin.close()
        if wrong:
            raise ConfigFault(
                f"the topics at {self._settings.kafka_bootstrap} differ from what Tidegate needs; "
                f"alter them, or set $.kafka: {'; '.join(wrong)}"
            )
        if self._writer_id is not None:
            async with self._turn:
                await self._open_transactional()

    async def append(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.topic not in _KNOWN:
                raise ValueError(f"no topic '{record.topic}'")
            check_size(record)
        if not records:
            return
        async with self._turn:
            if self._closed:
                raise LogUnavailable("the log is closed", code="log-closed")
            if self._writer_id is None and len(records) == 1:
                await self._append_single(records[0])
            else:
                await self._append_together(records)

    async def follow(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        on_assigned: Assigned | None = None,
        on_revoked: Revoked | None = None,
    ) -> Subscription:
        if unknown := [topic for topic in topics if topic not in _KNOWN]:
            raise ValueError(f"no topic '{unknown[0]}'")
        subscription = KafkaSubscription(
            self._settings,
            topics,
            group=group,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            timeout_s=self._timeout_s,
        )
        await subscription.open()
        self._subscriptions = [*(each for each in self._subscriptions if not each.closed), subscription]
        return subscription

    async def close(self) -> None:
        self._closed = True
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        async with self._turn:
            await self._drop(self._single)
            await self._drop(self._transactional)

    async def _append_single(self, record: Record) -> None:
        if self._single is None:
            producer = self._producer(None)
            await self._within(producer.start(), "reached")
            self._single = producer
        try:
            await self._within(self._send(self._single, record), "given a record")
        except LogUnavailable:  # what it still holds must not be sent behind the caller's back
            stale, self._single = self._single, None
            await self._drop(stale)
            raise

    async def _append_together(self, records: Sequence[Record]) -> None:
        producer = await self._open_transactional()
        try:
            await self._within(self._transact(producer, records), "given a batch")
        except LogUnavailable as fault:
            if fault.code == "writer-fenced" or self._writer_id is None or not await self._aborted(producer):
                await self._give_up_writing(producer, fault)
            raise
        except asyncio.CancelledError:
            if not await self._aborted(producer):
                await self._give_up_writing(
                    producer, LogUnavailable("an append was cancelled and could not be aborted")
                )
            raise

    async def _transact(self, producer: AIOKafkaProducer, records: Sequence[Record]) -> None:
        await producer.begin_transaction()
        waiting = [
            await producer.send(
                self._prefix + record.topic, record.value, key=record.key, headers=self._headers(record)
            )
            for record in records
        ]
        await asyncio.gather(*waiting)
        await producer.commit_transaction()

    async def _send(self, producer: AIOKafkaProducer, record: Record) -> None:
        await producer.send_and_wait(
            self._prefix + record.topic, record.value, key=record.key, headers=self._headers(record)
        )

    def _headers(self, record: Record) -> list[tuple[str, bytes]]:
        return list(record.headers) or self._cloud_event_headers.of_record(record.topic, record.value)

    async def _aborted(self, producer: AIOKafkaProducer) -> bool:
        try:
            await self._within(producer.abort_transaction(), "told to abort")
        except Exception:  # not only Kafka's: aiokafka asserts where a commit is under way
            return False
        return True

    async def _give_up_writing(self, producer: AIOKafkaProducer, fault: LogUnavailable) -> None:
        """A named writer must not take its name back by itself: that would fence a newer one. Others begin afresh."""
        self._transactional = None
        await self._drop(producer)
        if self._writer_id is not None:
            self._lost = fault

    async def _open_transactional(self) -> AIOKafkaProducer:
        if self._lost is not None:
            raise LogUnavailable(
                f"this writer has ended: {self._lost.sentence}; open the log again", code=self._lost.code
            )
        if self._transactional is None:
            name = self._writer_id if self._writer_id is not None else f"anonymous-{uuid7()}"
            producer = self._producer(f"{self._prefix}{name}")
            try:
                await self._within(producer.start(), "reached")
            except LogUnavailable:
                await self._drop(producer)
                raise
            self._transactional = producer
        return self._transactional

    def _producer(self, transactional_id: str | None) -> AIOKafkaProducer:
        options: dict[str, Any] = for_aiokafka(self._settings)
        if transactional_id is not None:
            options |= {
                "transactional_id": transactional_id,
                "transaction_timeout_ms": _TRANSACTION_MS,
                "retry_backoff_ms": _RETRY_MS,
            }
        return AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=int(self._timeout_s * 1000),
            **options,
        )

    async def _create(self, admin: AIOKafkaAdminClient, missing: list[TopicSpec]) -> None:
        topics = [NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=spec.config) for spec in missing]
        answer = await admin.create_topics(topics, timeout_ms=int(self._timeout_s * 1000))
        failed = [error for error in answer.topic_errors if error[1] not in (0, _TOPIC_EXISTS)]
        if failed:
            reasons = "; ".join(
                f"{error[0]}: {error[2] if len(error) > 2 and error[2] else error[1]}" for error in failed
            )
            raise LogUnavailable(
                f"topics could not be created at {self._settings.kafka_bootstrap}: {reasons}; "
                "check $.kafka.replication and the permission to create topics, or create them beforehand"
            )

    async def _drop(self, producer: AIOKafkaProducer | None) -> None:
        if producer is not None:
            await stopped(producer, _LEAVING_S)

    async def _within(self, work: Awaitable[_T], what: str) -> _T:
        """The work's result before the deadline; Kafka's errors in our words."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await work
        except (ProducerFenced, InvalidProducerEpoch) as error:
            raise LogUnavailable(
                f"another writer named '{self._writer_id}' took over; this one must stop", code="writer-fenced"
            ) from error
        except (KafkaError, TimeoutError, OSError) as error:
            told = await why(self._settings, error)
            raise LogUnavailable(
                f"Kafka at {self._settings.kafka_bootstrap} could not be {what}: {told}; is it up, and $.log right?"
            ) from error


async def _find(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, TopicFound]:
    existing = set(await admin.list_topics())
    names = [name for name in names if name in existing]
    if not names:
        return {}
    configs: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for resource in answer.resources:
            configs[resource[3]] = {entry[0]: entry[1] for entry in resource[4]}
    return {
        topic["topic"]: TopicFound(
            len(topic["partitions"]),
            min((len(partition["replicas"]) for partition in topic["partitions"]), default=0),
            configs.get(topic["topic"], {}),
        )
        for topic in await _described(admin, names)
    }


async def _described(admin: AIOKafkaAdminClient, names: list[str]) -> list[Any]:
    """The topics, once the broker knows each with a leader: what the controller made arrives there later."""
    while True:
        topics = await admin.describe_topics(names)
        if all(
            topic["error_code"] == 0
            and topic["partitions"]
            and all(partition["leader"] >= 0 for partition in topic["partitions"])
            for topic in topics
        ):
            return list(topics)
        await asyncio.sleep(0.05)
