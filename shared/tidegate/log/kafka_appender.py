"""The hot path's append to Kafka, by librdkafka: a fifth of a Python client's CPU per record.

Used under a `GroupCommit` (mode strict) and by the spool's `Shipper`. Idempotent, acks=all; CloudEvents headers on the
topics that carry events. Counterpart: `kafka.py` reads what this wrote; both put a key on the same partition
(murmur2).
"""

import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from tidegate.errors import LogUnavailable
from tidegate.log.cloud_events import CloudEventHeaders
from tidegate.log.kafka_connection import for_librdkafka
from tidegate.log.kafka_diagnosis import told
from tidegate.log.port import STATE_TOPICS, TOPICS, Record
from tidegate.settings import Settings


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
        given = list(headers) or self._cloud_event_headers.of_record(topic, value) or None
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
