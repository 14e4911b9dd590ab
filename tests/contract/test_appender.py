"""What every blocking appender promises (SQLite, the spool, Kafka), what the two Kafka clients owe each other, and what
an outage of Kafka leaves of both.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.parts.kafka import Kafka, running_kafka

from tidegate.chain import Chain, cloud_event_headers
from tidegate.errors import LogUnavailable
from tidegate.events import SessionClosed
from tidegate.ids import now_us, uuid7
from tidegate.limits import EVENT_BYTES_MAX
from tidegate.log.cloud_events import CloudEventHeaders
from tidegate.log.kafka import KafkaAppender, KafkaLog
from tidegate.log.port import BlockingAppender, Delivered, EventLog, Record
from tidegate.log.spool import Shipper, Spool
from tidegate.log.sqlite import SqliteAppender, SqliteLog
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Settings

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
Read = Callable[[], Coroutine[Any, Any, list[Record]]]


def settings_on(kafka: Kafka) -> Settings:
    topics = KafkaSettings(prefix=f"t{uuid4().hex[:8]}.", partitions=3, replication=1, min_insync=1)
    return Settings(log=f"kafka://{kafka.bootstrap}", kafka=topics)


async def delivered(log: EventLog, *topics: str) -> list[Delivered]:
    """Everything that the log holds of these topics now."""
    subscription = await log.follow(topics)
    found: list[Delivered] = []
    async with asyncio.timeout(20):
        while not subscription.caught_up:
            found += await subscription.poll(1000, 0.5)
    await subscription.close()
    return found


class Case:
    """An appender and a way to read what it stored, which may close it."""

    def __init__(self, appender: BlockingAppender, read: Read) -> None:
        self.appender = appender
        self.read = read


@pytest.fixture(params=["sqlite", "spool", pytest.param("kafka", marks=pytest.mark.kafka)])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "sqlite":
        return _sqlite(tmp_path)
    if request.param == "spool":
        return _spool(tmp_path)
    settings = settings_on(request.getfixturevalue("kafka"))
    log = KafkaLog(settings)
    await log.prepare()

    async def read() -> list[Record]:
        found = [Record(each.topic, each.key, each.value) for each in await delivered(log, "control")]
        await log.close()
        return found

    return Case(KafkaAppender(settings), read)


def _sqlite(directory: Path) -> Case:
    appender = SqliteAppender(directory / "log.db")

    async def read() -> list[Record]:
        appender.close()
        log = SqliteLog(directory / "log.db")
        found = [Record(each.topic, each.key, each.value) for each in await delivered(log, "control")]
        await log.close()
        return found

    return Case(appender, read)


def _spool(directory: Path) -> Case:
    spool = Spool(directory, 1 << 24, edge="e")

    async def read() -> list[Record]:
        spool.close()
        again = Spool(directory, 1 << 24, edge="e")
        found: list[Record] = []
        while (chunk := again.take(100, 1 << 20, 0)) is not None:
            found += chunk.records
            again.shipped(chunk)
        again.close()
        return found

    return Case(spool, read)


def controls(*numbers: int) -> list[Record]:
    return [Record("control", b"k%d" % (number % 2), b"%d" % number) for number in numbers]


async def test_batches_are_stored_in_order(case: Case) -> None:
    for start in range(0, 30, 10):
        case.appender.append(controls(*range(start, start + 10)))
    assert await case.read() == controls(*range(30))
    case.appender.close()


async def test_an_empty_batch_is_nothing(case: Case) -> None:
    case.appender.append([])
    case.appender.append(controls(1))
    assert await case.read() == controls(1)
    case.appender.close()


async def test_nothing_binary_and_large_values_survive(case: Case) -> None:
    key = bytes(range(256))
    stored = [Record("control", key, None), Record("control", key, os.urandom(EVENT_BYTES_MAX))]
    case.appender.append(stored)
    assert await case.read() == stored
    case.appender.close()


async def test_a_closed_appender_refuses(case: Case) -> None:
    case.appender.append(controls(1))
    case.appender.close()
    with pytest.raises(LogUnavailable):
        case.appender.append(controls(2))
    assert await case.read() == controls(1)


def test_a_failed_sqlite_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    case = _sqlite(tmp_path)
    case.appender.append(controls(1))
    with pytest.raises(LogUnavailable):
        case.appender.append([*controls(2), Record("control", None, b"3")])  # type: ignore[arg-type]
    case.appender.append(controls(4))
    assert asyncio.run(case.read()) == controls(1, 4)


@pytest.mark.kafka
async def test_both_kafka_clients_put_a_key_on_the_same_partition(kafka: Kafka) -> None:
    settings = settings_on(kafka)
    keys = [os.urandom(size) for size in range(1, 60)] + [b"acme|%d|claude-code" % n for n in range(60)]
    log, appender = KafkaLog(settings), KafkaAppender(settings)
    await log.prepare()
    await log.append([Record("calls", key, b"aiokafka") for key in keys])
    await asyncio.to_thread(appender.append, [Record("calls", key, b"librdkafka") for key in keys])
    appender.close()
    partitions: dict[bytes, set[int]] = {}
    found = await delivered(log, "calls")
    for each in found:
        partitions.setdefault(each.key, set()).add(each.partition)
    assert len(found) == 2 * len(keys)
    assert {len(numbers) for numbers in partitions.values()} == {1}
    assert {number for numbers in partitions.values() for number in numbers} == {0, 1, 2}
    await log.close()


@pytest.mark.kafka
async def test_events_carry_cloud_events_headers_on_kafka(kafka: Kafka) -> None:
    settings = settings_on(kafka)
    log, appender = KafkaLog(settings), KafkaAppender(settings)
    await log.prepare()
    closed = {"time_us": now_us(), "tenant": "t", "region": "r", "session_id": "x", "subject_id": "s", "agent": "a"}
    event, other = (SessionClosed(id=uuid7(), cause="deleted", **closed) for _ in range(2))  # type: ignore[arg-type]
    no_event = Record("sessions", b"k", b"no event")
    chain = Chain("edge.spool.1")
    await asyncio.to_thread(appender.append, [chain.seal(event), no_event])
    await log.append([chain.seal(other)])
    appender.close()
    found = await delivered(log, "sessions")
    for number, one in enumerate((event, other), 1):
        (record,) = [each for each in found if one.id.encode() in (each.value or b"")]
        schema = dict(record.headers)["ce_dataschema"].decode()
        assert dict(record.headers) == {
            "content-type": b"application/json",
            "ce_specversion": b"1.0",
            "ce_type": b"tidegate.session.closed.v1",
            "ce_source": b"/tidegate/edge.spool.1",
            "ce_dataschema": b"https://tidegate.example/schemas/session.closed.v1.json",
            "ce_id": one.id.encode(),
            "ce_time": datetime.fromtimestamp(one.time_us / 1e6, UTC).isoformat().encode(),
            "ce_sequence": b"%d" % number,
        }
        published = json.loads((SCHEMAS / schema.rpartition("/")[2]).read_text())
        assert published["$id"] == schema
        jsonschema.validate(json.loads(record.value or b""), published)
    assert [each.headers for each in found if each.value == no_event.value] == [()]
    await log.close()


@given(
    writer=st.text(max_size=30),
    event_id=st.text(min_size=1, max_size=40),
    time_us=st.integers(0, 4_000_000_000_000_000),
    cut=st.none() | st.integers(0, 80),
)
def test_the_fast_cloud_events_headers_are_those_of_the_chain(
    writer: str, event_id: str, time_us: int, cut: int | None
) -> None:
    event = SessionClosed(
        id=event_id, time_us=time_us, tenant="t", region="r", session_id="x", subject_id="s", agent="a", cause="deleted"
    )
    value = Chain(writer).seal(event).value
    assert value is not None
    if cut is not None:
        value = value[cut:]
    try:
        expected = cloud_event_headers(value)
    except msgspec.DecodeError:
        expected = []
    fast = CloudEventHeaders()
    assert fast.of(value) == fast.of(value) == expected


@pytest.fixture(scope="module")
def mortal_kafka() -> Iterator[Kafka]:
    """A broker that these tests may kill."""
    with running_kafka() as broker:
        yield broker


@pytest.mark.kafka
async def test_an_outage_is_refused_in_time_and_nothing_refused_is_sent_later(mortal_kafka: Kafka) -> None:
    settings = settings_on(mortal_kafka)
    log, appender = KafkaLog(settings), KafkaAppender(settings, timeout_s=2)
    await log.prepare()
    await asyncio.to_thread(appender.append, controls(1))
    mortal_kafka.kill()
    for number in (2, 3):
        began = time.monotonic()
        with pytest.raises(LogUnavailable, match=mortal_kafka.bootstrap):
            await asyncio.to_thread(appender.append, controls(number))
        assert time.monotonic() - began < 6
    mortal_kafka.start()
    await asyncio.to_thread(appender.append, controls(4))
    assert [each.value for each in await delivered(log, "control")] == [b"1", b"4"]
    appender.close()
    await log.close()


class Heard(logging.Handler):
    """Whether a logger has said something, as an event."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self.event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            self.event.set()


@pytest.mark.kafka
async def test_a_subscription_closed_in_an_outage_leaves_nothing_and_cancels_nobody(mortal_kafka: Kafka) -> None:
    log = KafkaLog(settings_on(mortal_kafka))
    await log.prepare()
    before = asyncio.all_tasks()
    subscription = await log.follow(("control",), group="outage")
    await subscription.poll(10, 0.2)
    fetcher, heard = logging.getLogger("aiokafka.consumer.fetcher"), Heard("Failed fetch messages")
    fetcher.addHandler(heard)
    try:
        mortal_kafka.kill()
        async with asyncio.timeout(20):
            await heard.event.wait()  # now the fetch waits to be tried again
        closing = asyncio.create_task(subscription.close())
        await asyncio.wait((closing,))
        assert not closing.cancelled()
        async with asyncio.timeout(20):
            while left := asyncio.all_tasks() - before - {closing}:
                await asyncio.wait(left, timeout=1)
    finally:
        fetcher.removeHandler(heard)
        mortal_kafka.start()
        await log.close()


@pytest.mark.kafka
async def test_a_spool_outlives_a_broker_killed_while_it_ships(mortal_kafka: Kafka, tmp_path: Path) -> None:
    settings = settings_on(mortal_kafka)
    log = KafkaLog(settings)
    await log.prepare()
    spool = Spool(tmp_path, 1 << 26, edge="e")
    shipper = Shipper(spool, KafkaAppender(settings, timeout_s=2), linger_s=0.001)
    shipper.start()
    total = 3000
    for start in range(0, total, 10):
        spool.append(controls(*range(start, start + 10)))
        if start == total // 2:
            mortal_kafka.kill()
    assert not await asyncio.to_thread(shipper.drain, 0)
    mortal_kafka.start()
    assert await asyncio.to_thread(shipper.drain, 60)
    await asyncio.to_thread(shipper.close)
    spool.close()
    found = [int(each.value or b"") for each in await delivered(log, "control")]
    first_seen = list(dict.fromkeys(found))
    assert sorted(first_seen) == list(range(total))
    assert first_seen == sorted(first_seen)
    await log.close()
