"""The hot path's append to Kafka, by librdkafka: a fifth of a Python client's CPU per record.

Used under a `GroupCommit` (mode strict) and by the spool's `Shipper`. Idempotent, acks=all; CloudEvents headers on the
topics that carry events. Counterpart: `kafka.py` reads what this wrote; both put a key on the same partition
(murmur2).
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from tidegate.chain import cloud_event_headers
from tidegate.errors import LogUnavailable
from tidegate.log.kafka_connection import for_librdkafka
from tidegate.log.kafka_diagnosis import told
from tidegate.log.port import STATE_TOPICS, TOPICS, Record
from tidegate.settings import Settings

_WITHOUT_EVENTS = frozenset(("detections", "dead-letters", "ocsf", *STATE_TOPICS))
"""Topics whose values are not stored events: their headers are the record's own."""

_OPENING = (b"writer", b"seq", b"prev", b"type", b"id", b"time_us")
"""The names with which an event opens, as `Chain.seal` writes it."""
_OPENING_BYTES = 512


class KafkaAppender:
    """BlockingAppender on the cluster that `settings.log` names. Use from one thread at a time.

    When `append` raises LogUnavailable, nothing of the batch is sent any more; which of its records the brokers had
    taken before is unknown. They may all be appended again: events carry ids, and readers count an id once.
    """

    def __init__(self, settings: Settings, timeout_s: float = 10.0, *, compression: str = "none") -> None:
        self._settings = settings
        self._bootstrap = settings.kafka_bootstrap
        self._prefix = settings.kafka.prefix
        self._timeout_s = timeout_s
        self._options: dict[str, Any] = {
            **for_librdkafka(settings),
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "delivery.report.only.error": True,
            "on_delivery": self._failed,
            "error_cb": self._noticed,
            "message.timeout.ms": max(1, int(timeout_s * 1000)),
            "linger.ms": 1_000,  # never waited for: `flush` sends at once, and one wake-up a batch costs least
            "compression.type": compression,
            "batch.size": 512 * 1024,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 256 * 1024,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 0,
        }
        self._producer: Producer | None = None
        self._cloud_event_headers = CloudEventHeaders()
        self._topics = {topic: self._prefix + topic for topic in (*TOPICS, *STATE_TOPICS)}
        self._errors: list[str] = []
        self._notice = ""
        self._closed = False

    def append(self, records: Sequence[Record]) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed", code="log-closed")
        deadline = time.monotonic() + self._timeout_s
        try:
            producer = self._producer or self._open()
            for record in records:
                self._produce(producer, record, deadline)
            left = producer.flush(max(0.001, deadline - time.monotonic()))
        except (KafkaException, BufferError) as error:
            self._give_up(str(error))
        except BaseException:
            self._drop()
            raise
        else:
            if left or self._errors:
                self._give_up(
                    "; ".join(self._errors) or f"{left} records were not acknowledged in {self._timeout_s:g} s"
                )

    def close(self) -> None:
        """What was appended was acknowledged before: there is nothing to wait for."""
        self._closed = True
        self._drop()

    def _open(self) -> Producer:
        self._notice = ""
        self._producer = Producer(self._options | for_librdkafka(self._settings))
        return self._producer

    def _produce(self, producer: Producer, record: Record, deadline: float) -> None:
        topic, key, value, headers = record
        name = self._topics[topic]
        given = list(headers) or None
        if not headers and value is not None and topic not in _WITHOUT_EVENTS:
            given = self._cloud_event_headers.of(value)
        while True:
            try:
                producer.produce(name, value, key, headers=given)
                return
            except BufferError:
                if time.monotonic() > deadline:
                    raise
                producer.poll(0.05)

    def _give_up(self, why: str) -> None:
        """A producer with a failed batch is thrown away, with everything that it would still have sent."""
        self._drop()
        notice = f": {told(self._settings, self._notice)}" if self._notice and self._notice not in why else ""
        raise LogUnavailable(
            f"Kafka at {self._bootstrap} did not acknowledge: {why}{notice}; is it up, with enough in-sync replicas?"
        )

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            producer.flush(1)
        self._errors = []

    def _failed(self, error: KafkaError, message: Any) -> None:
        if error is not None and len(self._errors) < 3 and error.str() not in self._errors:
            self._errors.append(error.str())

    def _noticed(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # it follows the error that says why
            self._notice = error.str()


class CloudEventHeaders:
    """`tidegate.chain.cloud_event_headers`, four times as fast: no JSON is decoded where the stored form opens as the
    chain writes it, and what many events share is kept. Bytes that are no event have none: they become a dead letter
    where read.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple[bytes, bytes], list[tuple[str, bytes]]] = {}
        self._second = -1
        self._time = ""

    def of(self, value: bytes) -> list[tuple[str, bytes]]:
        opening = value[:_OPENING_BYTES]
        parts = opening.split(b'"', 21)
        if len(parts) < 22 or b"\\" in opening:
            return self._decoded(value)
        brace, a, _, writer, _, b, _, c, _, _, _, d, _, kind, _, e, _, event_id, _, f, time_us, _ = parts
        if (a, b, c, d, e, f) != _OPENING or brace != b"{":
            return self._decoded(value)
        shared = self._shared.get((writer, kind)) or self._share(writer, kind)
        second, micros = divmod(int(time_us[1:-1]), 1_000_000)
        if second != self._second:
            self._second, self._time = second, datetime.fromtimestamp(second, UTC).isoformat()[:-6]
        stamp = f"{self._time}.{micros:06d}+00:00" if micros else f"{self._time}+00:00"
        return [*shared, ("ce_id", event_id), ("ce_time", stamp.encode())]

    def _share(self, writer: bytes, kind: bytes) -> list[tuple[str, bytes]]:
        if len(self._shared) > 100:  # a writer has some ten types; several epochs' writers are rare
            self._shared.clear()
        shared = [
            ("content-type", b"application/json"),
            ("ce_specversion", b"1.0"),
            ("ce_type", b"tidegate." + kind),
            ("ce_source", b"/tidegate/" + writer),
        ]
        return self._shared.setdefault((writer, kind), shared)

    def _decoded(self, value: bytes) -> list[tuple[str, bytes]]:
        try:
            return cloud_event_headers(value)
        except (msgspec.DecodeError, ValueError, OverflowError):
            return []
