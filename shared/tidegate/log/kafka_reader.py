"""A subscription on Kafka: a group's share of the partitions, or all of them from the start.

aiokafka runs rebalances in a task of its own, beside `poll`. So a gate stands in front of deliveries: it is shut from
the moment partitions are taken away until `on_assigned` of the next share has ended, and what was fetched under an
older share is dropped (the new share begins at the settled offsets again).
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, UnknownTopicOrPartitionError

from tidegate.errors import LogUnavailable
from tidegate.log.kafka_connection import for_aiokafka
from tidegate.log.kafka_diagnosis import why
from tidegate.log.kafka_stopping import stopped
from tidegate.log.port import Assigned, Delivered, Partition, Revoked
from tidegate.settings import Settings

_CATCHING_UP_S = 0.05  # how often the position is compared with the end until it has been reached
_FETCH_BYTES = 8 * 1024 * 1024
_LEAVING_S = 5.0


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]
    """See Subscription. `open` before anything else."""

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[str],
        *,
        group: str | None,
        on_assigned: Assigned | None,
        on_revoked: Revoked | None,
        timeout_s: float,
    ) -> None:
        self._settings = settings
        self._bootstrap = settings.kafka_bootstrap
        self._prefix = settings.kafka.prefix
        self._topics = [self._prefix + topic for topic in topics]
        self._group = group
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._timeout_s = timeout_s
        self._gate = asyncio.Event()
        self._generation = 0
        self._targets: dict[TopicPartition, int] | None = None  # where each partition ended when it was assigned
        self._caught_up = False
        self._fault: BaseException | None = None
        self._closing = False
        self._closed = False
        self._consumer = AIOKafkaConsumer(
            group_id=None if group is None else self._prefix + group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=250,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            **for_aiokafka(settings),
        )

    @property
    def closed(self) -> bool:
        return self._closed

    async def open(self) -> None:
        """Returns with the first share assigned. Raises LogUnavailable."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._group is not None:
                    self._consumer.subscribe(self._topics, listener=self)
                    await self._consumer.start()
                else:
                    await self._open_alone()
        except (KafkaError, TimeoutError, OSError) as error:
            await self.close()
            told = await why(self._settings, error)
            raise LogUnavailable(f"Kafka at {self._bootstrap} could not be followed: {told}; is it up?") from error
        except BaseException:
            await self.close()
            raise

    async def poll(self, records_max: int, timeout_s: float) -> list[Delivered]:
        deadline = time.monotonic() + timeout_s
        while True:
            self._check()
            left = deadline - time.monotonic()
            was_caught_up = self._caught_up
            found = await self._fetch(records_max, max(left, 0.0))
            if not self._caught_up:
                await self._compare()
            if found or left <= 0 or (self._caught_up and not was_caught_up):
                return found

    async def settle(self, offsets: Mapping[Partition, int]) -> None:
        self._check()
        if not offsets:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._consumer.commit(
                    {
                        TopicPartition(self._prefix + topic, number): offset
                        for (topic, number), offset in offsets.items()
                    }
                )
        except (CommitFailedError, IllegalStateError) as error:
            raise LogUnavailable(
                f"partitions now belong to another member of {self._group} ({error})", code="claim-lost"
            ) from error
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"offsets could not be settled at {self._bootstrap} ({error})") from error

    @property
    def caught_up(self) -> bool:
        return self._caught_up

    async def lag(self) -> int:
        """Offsets between the positions and the ends; on Kafka they count transaction markers as well."""
        self._check()
        try:
            async with asyncio.timeout(self._timeout_s):
                share = self._consumer.assignment()
                ends = await self._consumer.end_offsets(share)
                return sum([max(0, ends[each] - await self._consumer.position(each)) for each in share])
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"the lag at {self._bootstrap} could not be read ({error})") from error

    async def close(self) -> None:
        """Leave: `on_revoked` for the whole share, then the group. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._gate.is_set() and self._group is not None:
            await self.on_partitions_revoked(self._consumer.assignment())
        self._closed = True
        self._gate.set()
        await stopped(self._consumer, _LEAVING_S)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """aiokafka's: before the group rebalances. The old share can still be settled in `on_revoked`."""
        self._gate.clear()
        self._generation += 1
        self._caught_up = False
        self._targets = None
        share = frozenset(map(self._ours, revoked))
        if share and self._on_revoked is not None:
            await self._guarded(self._on_revoked(share))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """aiokafka's: the new share, whole. Deliveries begin when this has ended."""
        self._generation += 1
        share = frozenset(map(self._ours, assigned))
        if share and self._on_assigned is not None:
            await self._guarded(self._on_assigned(share))
        self._gate.set()

    async def _open_alone(self) -> None:
        """aiokafka assigns every partition of the topics by itself where there is no group."""
        self._consumer.subscribe(self._topics)
        try:
            await self._consumer.start()
        except UnknownTopicOrPartitionError as error:
            raise LogUnavailable(
                f"a topic of {', '.join(self._topics)} is missing at {self._bootstrap}; `prepare` the log first",
                code="log-missing",
            ) from error
        await self.on_partitions_assigned(self._consumer.assignment())

    async def _fetch(self, records_max: int, timeout_s: float) -> list[Delivered]:
        """What has come, within the share of this moment. A shut gate, or a share lost meanwhile, gives nothing."""
        wait_s = timeout_s if self._caught_up else min(timeout_s, _CATCHING_UP_S)
        if not await self._open_gate(wait_s):
            return []
        try:
            batches = await self._consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=records_max)
        except KafkaError as error:
            raise LogUnavailable(f"Kafka at {self._bootstrap} could not be read ({error})") from error
        generation = self._generation
        while batches and not self._gate.is_set():
            await self._open_gate(self._timeout_s)
        if generation != self._generation:
            return []
        self._check()
        return [one for partition, batch in batches.items() for one in self._delivered(partition, batch)]

    async def _open_gate(self, timeout_s: float) -> bool:
        if not self._gate.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._gate.wait()
        self._check()
        if not self._gate.is_set():
            self._check_group()
        return self._gate.is_set()

    def _check_group(self) -> None:
        """aiokafka stays out of a group until somebody asks why, and nobody fetches while the gate is shut."""
        try:
            self._consumer._coordinator.check_errors()
        except KafkaError as error:
            raise LogUnavailable(f"the group {self._group} could not be joined again ({error})") from error

    async def _compare(self) -> None:
        """Whether every partition of the share is past where it ended when it was assigned (markers included)."""
        generation = self._generation
        with contextlib.suppress(KafkaError, TimeoutError):  # not known yet; asked again at the next poll
            async with asyncio.timeout(self._timeout_s):
                share = self._consumer.assignment()
                targets = self._targets
                if targets is None:
                    targets = dict(await self._consumer.end_offsets(share)) if share else {}
                reached = [await self._consumer.position(each) >= end for each, end in targets.items() if end > 0]
            if generation == self._generation and self._gate.is_set():
                self._targets = targets
                self._caught_up = all(reached)

    def _check(self) -> None:
        if self._closed:
            raise LogUnavailable("the subscription is closed", code="log-closed")
        if self._fault is not None:
            raise self._fault

    async def _guarded(self, callback: Any) -> None:
        """aiokafka would log and forget a callback's exception: keep it for the next poll."""
        try:
            await callback
        except Exception as error:
            self._fault = error

    def _ours(self, partition: TopicPartition) -> Partition:
        return Partition(partition.topic.removeprefix(self._prefix), partition.partition)

    def _delivered(self, partition: TopicPartition, batch: Sequence[Any]) -> list[Delivered]:
        topic, number = self._ours(partition)
        return [
            Delivered(topic, number, one.offset, one.key or b"", one.value, one.headers, one.timestamp * 1000)
            for one in batch
        ]
