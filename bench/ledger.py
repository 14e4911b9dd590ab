"""Proof that every measured call is in Kafka: reads the calls topic between two measurements and balances it.

Rule: nothing is taken from the gateway's own counters; a call counts when its two events came out of the broker.
"""

import time
from collections import Counter
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

READ_DEADLINE_S: Final = 60.0
_ASK_DEADLINE_S: Final = 10.0
_BATCH: Final = 5_000


class _Head(msgspec.Struct):
    type: str
    call_id: str
    decision: str
    outcome: str = ""


_decode = msgspec.json.Decoder(_Head).decode


class Unbalanced(RuntimeError):
    """The log does not hold exactly two events for every call that was made."""


class Ledger:
    """Reads `topic` from where the last check ended; between checks it holds no connection that could cost anything."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._config = {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-ledger",
            "enable.auto.commit": False,
            "log_level": 0,
        }
        self._next: dict[int, int] = {}

    def balance(self, calls: int) -> int:
        """Read what is new and check it against the number of calls made. Returns events read. Raises Unbalanced."""
        requested: Counter[str] = Counter()
        completed: Counter[str] = Counter()
        amiss: Counter[str] = Counter()
        for value in self._new_values():
            head = _decode(value)
            if head.type == "call.requested.v1":
                requested[head.call_id] += 1
            elif head.type == "call.completed.v1":
                completed[head.call_id] += 1
            if head.decision != "allow" or head.outcome not in ("", "ok"):
                amiss[f"{head.type} {head.decision} {head.outcome}"] += 1
        if requested != completed or len(requested) != calls or requested.total() != calls or amiss:
            raise Unbalanced(
                f"{calls} calls were made; {self._topic} has {requested.total()} requested ({len(requested)} calls), "
                f"{completed.total()} completed ({len(completed)} calls), amiss: {dict(amiss)}"
            )
        return requested.total() + completed.total()

    def _new_values(self) -> list[bytes]:
        consumer = Consumer(self._config)
        try:
            partitions = consumer.list_topics(self._topic, timeout=10).topics[self._topic].partitions
            if not partitions:
                raise Unbalanced(f"Kafka has no topic {self._topic}; the edge writes its calls there")
            places = [TopicPartition(self._topic, number, self._next.setdefault(number, 0)) for number in partitions]
            ends = {place.partition: _end(consumer, place) for place in places}
            consumer.assign(places)
            return self._read_to(consumer, ends)
        except KafkaException as fault:
            raise Unbalanced(f"{self._topic} could not be read: {fault}") from fault
        finally:
            consumer.close()

    def _read_to(self, consumer: Consumer, ends: dict[int, int]) -> list[bytes]:
        values: list[bytes] = []
        until = time.monotonic() + READ_DEADLINE_S
        while any(self._next[number] < end for number, end in ends.items()):
            if time.monotonic() > until:
                raise Unbalanced(f"{self._topic} could not be read to its end within {READ_DEADLINE_S:.0f} s")
            for message in consumer.consume(_BATCH, timeout=0.5):
                if message.error():
                    raise Unbalanced(f"{self._topic}: {message.error().str()}")
                values.append(message.value())
                self._next[message.partition()] = message.offset() + 1
        return values


def _end(consumer: Consumer, place: TopicPartition) -> int:
    """The offset after the last record. A broker that has just made the topic may ask to be asked again."""
    until = time.monotonic() + _ASK_DEADLINE_S
    while True:
        try:
            end: int = consumer.get_watermark_offsets(place, timeout=_ASK_DEADLINE_S)[1]
            return end
        except KafkaException:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
