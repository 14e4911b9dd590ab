"""The local log's retention: what is old goes, a few records at a time; what is needed stays."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tidegate.errors import ConfigFault
from tidegate.ids import now_us
from tidegate.log.port import Delivered, Partition, Record
from tidegate.log.retention import EXPIRING, INGESTING, SEALING, Kept, Retention
from tidegate.log.sqlite import SqliteLog
from tidegate.settings_file import load_settings
from tidegate_audit_consumer.consumer import GROUP
from tidegate_audit_consumer.sealing import READERS

DAY_US = 86_400_000_000
TOMORROW = 2 * DAY_US  # beside now: everything is older than a day then


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db", kept=Kept(DAY_US, 0, (INGESTING, SEALING)))
    await log.prepare()
    yield log
    await log.close()


def of(topic: str, count: int, size: int = 10) -> list[Record]:
    return [Record(topic, b"k", b"%0*d" % (size, number)) for number in range(count)]


async def held(log: SqliteLog, topic: str) -> list[int]:
    subscription = await log.follow([topic])
    found: list[Delivered] = []
    while not subscription.caught_up:
        found += await subscription.poll(10_000, 0.2)
    await subscription.close()
    return [record.offset for record in found]


async def settle(log: SqliteLog, topic: str, **groups: int) -> None:
    for name, offset in groups.items():
        member = await log.follow([topic], group=name.replace("_", "-"))
        await member.settle({Partition(topic, 0): offset})
        await member.close()


async def trim(log: SqliteLog, ahead_us: int = TOMORROW) -> dict[str, int]:
    assert log.retention is not None
    return dict(await log.retention.trim(now_us() + ahead_us))


def test_the_groups_that_are_waited_for_are_those_of_the_audit_consumer() -> None:
    assert (INGESTING, SEALING) == (GROUP, READERS)


async def test_old_records_go_once_they_are_ingested_and_sealed_and_not_before(log: SqliteLog) -> None:
    await log.append(of("calls", 1_000))
    assert await trim(log) == {}, "nobody has read them"
    await settle(log, "calls", audit_consumer=900)
    assert await trim(log) == {}, "no root covers them"
    await settle(log, "calls", audit_roots=700)
    assert await trim(log, ahead_us=0) == {}, "they are young"
    assert await trim(log) == {"calls": 700}
    assert await held(log, "calls") == list(range(700, 1_000))
    assert await trim(log) == {}


async def test_the_newest_record_stays_so_that_offsets_go_on(log: SqliteLog, tmp_path: Path) -> None:
    await log.append(of("dead-letters", 5))
    assert await trim(log) == {"dead-letters": 4}
    await log.close()
    again = SqliteLog(tmp_path / "log.db")
    await again.append(of("dead-letters", 1))
    assert await held(again, "dead-letters") == [4, 5]
    await again.close()


async def test_histories_and_states_are_never_trimmed(log: SqliteLog) -> None:
    kept = ("policy", "control", "catalog", "integrity", "policy-state", "subject-keys")
    for topic in kept:
        await log.append([Record(topic, b"%d" % number, b"v") for number in range(20)])
        await settle(log, topic, audit_consumer=20, audit_roots=20)
    assert await trim(log) == {}
    assert not set(kept) & set(EXPIRING)
    for topic in kept:
        assert len(await held(log, topic)) == 20


async def test_what_a_group_that_is_there_has_not_settled_stays(log: SqliteLog) -> None:
    await log.append(of("sessions", 100))
    await settle(log, "sessions", audit_consumer=100, audit_roots=100)
    slow = await log.follow(["sessions"], group="detector")
    assert await trim(log) == {}
    await slow.settle({Partition("sessions", 0): 40})
    assert await trim(log) == {"sessions": 40}
    await slow.close()
    assert await trim(log) == {"sessions": 59}


async def test_a_file_that_is_too_large_loses_its_oldest_records_and_stops_growing(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    retention = Retention(log._appender, Kept(0, 400_000, (INGESTING,)), log._followed_by)
    for number in range(8):
        await log.append([*of("calls", 50, 1_000), *of("ocsf", 50, 1_000)])
        await settle(log, "calls", audit_consumer=50 * (number + 1))
        await retention.trim(now_us())
    used = log._appender.used_bytes()
    assert used <= 400_000
    assert (await held(log, "calls"))[-1] == (await held(log, "ocsf"))[-1] == 399
    assert min(await held(log, "calls")) > 0
    assert (tmp_path / "log.db").stat().st_size < 1_200_000
    await log.close()


async def test_a_file_that_may_not_shrink_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = SqliteLog(tmp_path / "log.db")
    retention = Retention(log._appender, Kept(0, 100_000, (INGESTING,)), log._followed_by)
    await log.append(of("calls", 300, 1_000))
    for _ in range(3):
        await retention.trim(now_us())
    assert len(await held(log, "calls")) == 300
    assert caplog.text.count("larger than $.retention.bytes_max") == 1
    await log.close()


async def test_appends_and_followers_go_on_while_the_log_is_trimmed(log: SqliteLog) -> None:
    await log.append(of("calls", 5_000))
    await settle(log, "calls", audit_consumer=5_000, audit_roots=5_000)
    follower = await log.follow(["calls"])
    trimming = asyncio.create_task(trim(log))
    for number in range(100):
        await log.append([Record("calls", b"k", b"new %d" % number)])
    assert sum((await trimming).values()) >= 4_999
    found: list[Delivered] = []
    async with asyncio.timeout(20):
        while not found or found[-1].value != b"new 99":
            found += await follower.poll(1_000, 0.5)
    assert [record.value for record in found][-100:] == [b"new %d" % number for number in range(100)]
    await follower.close()


def test_a_retention_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text("retention: {days: -1}\n")
    with pytest.raises(ConfigFault, match="days and bytes_max are 0 or more"):
        load_settings(file)
    file.write_text("retention: {days: 7, bytes_max: 1000000}\naudit: {roots: {every_s: 0}}\n")
    assert Kept.of(load_settings(file)) == Kept(7 * DAY_US, 1_000_000, (INGESTING,))
