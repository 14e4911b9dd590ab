"""What was recorded, read back: a topic to its end, the writers' hash chains, rows of the embedded ClickHouse."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import Consumer, TopicPartition
from tests.parts.asking import exchange

from tidegate.chain import open_head
from tidegate.events import CallRequested

HISTORIES: Final = ("calls", "sessions", "catalog", "policy", "control")  # chained; detections holds OCSF alone


def read_topic(bootstrap: str, topic: str, deadline_s: float = 30.0) -> list[bytes]:
    """Every value that the topic holds now; [] where it does not exist."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False})
    values: list[bytes] = []
    try:
        found = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in found}
        consumer.assign([TopicPartition(topic, number, 0) for number in ends])
        until = time.monotonic() + deadline_s
        while any(position.offset < ends[position.partition] for position in _positions(consumer, topic, ends)):
            assert time.monotonic() < until, f"{topic} could not be read to its end within {deadline_s:.0f} s"
            for message in consumer.consume(5_000, timeout=0.03):  # it waits for so many, or so long
                assert not message.error(), message.error()
                if message.value() is not None:
                    values.append(message.value())
    finally:
        consumer.close()
    return values


def _positions(consumer: Consumer, topic: str, ends: Mapping[int, int]) -> Iterable[TopicPartition]:
    positions: list[TopicPartition] = consumer.position([TopicPartition(topic, number) for number in ends])
    for position in positions:
        position.offset = max(position.offset, 0)
    return positions


class Chains(NamedTuple):
    """What a check of all writers' chains found."""

    writers: int
    records: int


def check_chains(values: Iterable[bytes]) -> Chains:
    """Every writer's records are gap-free from 1 and each names the SHA-256 of the one before. Raises AssertionError.

    A record may have come twice (shipped again after a crash), then byte for byte.
    """
    writers: dict[str, dict[int, bytes]] = {}
    for value in values:
        head = open_head(value)
        assert head.writer, value[:200]
        before = writers.setdefault(head.writer, {}).setdefault(head.seq, value)
        assert before == value, f"{head.writer} wrote two records {head.seq}"
    for writer, records in writers.items():
        prev = ""
        for seq in range(1, len(records) + 1):
            assert seq in records, f"{writer} has no record {seq} of {len(records)} (highest {max(records)})"
            assert open_head(records[seq]).prev == prev, f"{writer}: record {seq} does not name the one before"
            prev = hashlib.sha256(records[seq]).hexdigest()
    return Chains(len(writers), sum(map(len, writers.values())))


def nonce_of(event: CallRequested) -> str:
    """The nonce in the arguments as captured; "" where there is none."""
    arguments = msgspec.json.decode(event.sealed.arguments)
    return str(arguments.get("nonce", "")) if isinstance(arguments, dict) else ""


def clickhouse_rows(data_dir: Path, sql: str) -> list[dict[str, Any]]:
    """Rows over the loopback HTTP interface of whoever owns the embedded engine in this data directory."""
    address = msgspec.json.decode((data_dir / "analytics.json").read_bytes())
    token = (data_dir / address["reader_token_file"]).read_text().strip()
    url = f"http://{address['host']}:{address['port']}/"
    headers = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": token}
    status, answer = exchange("POST", url, headers, f"{sql} FORMAT JSONEachRow".encode())
    assert status == 200, answer.decode(errors="replace")[:2000]
    return [msgspec.json.decode(line) for line in answer.splitlines() if line]
