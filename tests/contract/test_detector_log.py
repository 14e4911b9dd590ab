"""The detector on a real log: what it publishes, that a restart continues, and that nothing is raised twice."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.parts.detector_events import reading, request, sealed, sending

from tidegate.chain import open_event
from tidegate.errors import LogUnavailable
from tidegate.events import QuarantineImposed
from tidegate.ids import now_us
from tidegate.log.kafka import KafkaLog
from tidegate.log.port import Delivered, EventLog, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Burst, Kafka, Settings
from tidegate.settings import Detector as DetectorSettings
from tidegate_detector.detector import Detector
from tidegate_detector.spine import GROUP
from tidegate_detector.wiring import open_detector

SETTINGS = Settings(detector=DetectorSettings(burst=Burst(calls_min=10)))


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    made: EventLog
    if request.param == "sqlite":
        made = SqliteLog(tmp_path / "log.db")
    else:
        topics = Kafka(prefix=f"t{uuid4().hex[:8]}.", partitions=3, replication=1, min_insync=1)
        broker = request.getfixturevalue("kafka").bootstrap
        made = KafkaLog(Settings(log=f"kafka://{broker}", kafka=topics))
    await made.prepare()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def running(log: EventLog, settings: Settings = SETTINGS) -> AsyncIterator[Detector]:
    async with open_detector(settings, log, now_us, registry=CollectorRegistry()) as detector:
        await detector.wait_until_ready(30)
        yield detector


async def contents(log: EventLog, topic: str) -> list[Delivered]:
    subscription = await log.follow((topic,))
    taken: list[Delivered] = []
    async with asyncio.timeout(30):
        while True:
            taken += await subscription.poll(1_000, 0.1)
            if subscription.caught_up:
                break
    await subscription.close()
    return taken


async def findings(log: EventLog) -> list[dict[str, Any]]:
    return [msgspec.json.decode(record.value or b"") for record in await contents(log, "detections")]


def leak(number: int = 1) -> tuple[list[Record], list[Record]]:
    """A read and the sending of what was read."""
    at_us = now_us()
    return sealed(reading(at_us, f"read-{number}")), sealed(sending(at_us + 1_000, f"send-{number}"))


async def test_a_leak_becomes_a_finding_and_a_quarantine_in_history_and_state(log: EventLog) -> None:
    read, send = leak()
    async with running(log) as detector:
        await log.append(read + send)
        await detector.wait_until(lambda counts: counts.quarantines == 1)
    (finding,) = await findings(log)
    assert finding["class_uid"] == 2004
    assert [evidence["data"]["call_id"] for evidence in finding["evidences"]] == ["read-1", "send-1"]
    (history,) = await contents(log, "control")
    (state,) = await contents(log, "control-state")
    assert history.value == state.value
    assert history.key == state.key
    imposed = open_event(state.value or b"")
    assert isinstance(imposed, QuarantineImposed)
    assert (imposed.scope, imposed.value, imposed.finding_id) == ("session", "se55ion", finding["metadata"]["uid"])
    assert state.key == f"acme|{imposed.quarantine_id}".encode()


async def test_a_burst_is_one_finding_below_the_quarantines_severity(log: EventLog) -> None:
    at_us = now_us() // 10_000_000 * 10_000_000
    async with running(log) as detector:
        await log.append(sealed(*[request(at_us + n) for n in range(50)]))
        await detector.wait_until(lambda counts: counts.judged == 50)
    (finding,) = await findings(log)
    assert finding["unmapped"]["tidegate"]["rule"] == "burst"
    assert await contents(log, "control-state") == []


async def test_what_was_read_before_a_restart_is_recognised_after_it(log: EventLog) -> None:
    read, send = leak()
    async with running(log) as detector:
        await log.append(read)
        await detector.wait_until(lambda counts: counts.judged == 1)
    async with running(log) as detector:
        await log.append(send)
        await detector.wait_until(lambda counts: counts.findings == 1)
        assert detector.counts.remembered == 1
    assert len(await findings(log)) == 1


async def test_a_restart_raises_nothing_again(log: EventLog) -> None:
    read, send = leak()
    async with running(log) as detector:
        await log.append(read + send)
        await detector.wait_until(lambda counts: counts.findings == 1)
    for _ in range(2):
        async with running(log) as detector:
            await detector.wait_until(lambda counts: counts.remembered == 2)
            assert detector.counts.findings == 0
    assert len(await findings(log)) == len(await contents(log, "control")) == 1


async def test_calls_recorded_while_it_was_down_are_judged_at_the_next_start(log: EventLog) -> None:
    async with running(log):
        pass
    read, send = leak()
    await log.append(send + read)
    async with running(log) as detector:
        await detector.wait_until(lambda counts: counts.findings == 1)


async def test_events_delivered_twice_raise_one_finding(log: EventLog) -> None:
    read, send = leak()
    async with running(log) as detector:
        await log.append(read + send + read + send)
        await detector.wait_until(lambda counts: counts.judged == 4)
    assert len(await findings(log)) == 1


async def test_a_crash_before_the_mark_leads_to_the_same_ids(log: EventLog) -> None:
    read, send = leak()
    crashing = FailingLog(log, lambda records: any(record.topic == "detections" for record in records))
    async with running(crashing) as detector:
        await log.append(read + send)
        await crashing.failed.wait()
        crashing.repaired = True
        await detector.wait_until(lambda counts: counts.findings == 1)
    (finding,) = await findings(log)
    (refused,) = crashing.refused
    assert finding["metadata"]["uid"] == msgspec.json.decode(refused.value or b"")["metadata"]["uid"]


async def test_an_append_that_was_stored_although_it_failed_is_not_repeated(log: EventLog) -> None:
    read, send = leak()
    crashing = FailingLog(log, lambda records: any(record.topic == "detections" for record in records), stores=True)
    async with running(crashing) as detector:
        await log.append(read + send)
        await crashing.failed.wait()
        crashing.repaired = True
        await detector.wait_until(lambda counts: counts.remembered == 2)
    assert len(await findings(log)) == len(await contents(log, "control")) == 1


async def test_a_partition_that_moves_to_another_detector_takes_what_was_read_along(log: EventLog) -> None:
    read, send = leak()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(log))
        await log.append(read)
        await first.wait_until(lambda counts: counts.judged == 1)
        second = await stack.enter_async_context(running(log))  # a second member of the group
        await log.append(send)
        await until(lambda: first.counts.findings + second.counts.findings == 1)
    assert len(await findings(log)) == 1


async def test_records_that_cannot_be_read_are_passed_over(log: EventLog) -> None:
    read, send = leak()
    async with running(log) as detector:
        await log.append([*read, Record("calls", b"k", b"{"), Record("calls", b"k", None), *send])
        await detector.wait_until(lambda counts: counts.findings == 1)
        assert detector.counts.unreadable == 2


async def test_progress_is_settled_in_the_group_a_memorys_length_behind(log: EventLog) -> None:
    async with running(log) as detector:
        await log.append(sealed(request(now_us()), request(now_us())))
        await detector.wait_until(lambda counts: counts.judged == 2)
    (mark,) = await contents(log, "detector-state")
    assert msgspec.json.decode(mark.value or b"")["offset"] == 2
    subscription = await log.follow(("calls",), group=GROUP)
    assert len(await subscription.poll(10, 1.0)) == 2
    await subscription.close()


async def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


class FailingLog:
    """A real log whose chosen appends are refused until repaired; with `stores`, refused after they were stored."""

    def __init__(self, log: EventLog, fails: Callable[[Sequence[Record]], bool], *, stores: bool = False) -> None:
        self._log = log
        self._fails = fails
        self._stores = stores
        self.repaired = False
        self.failed = asyncio.Event()
        self.refused: list[Record] = []

    async def append(self, records: Sequence[Record]) -> None:
        if self.repaired or not self._fails(records):
            return await self._log.append(records)
        if self._stores:
            await self._log.append(records)
        if not self.refused:
            self.refused += [record for record in records if record.topic == "detections"]
        self.failed.set()
        raise LogUnavailable("the disk is full")

    async def prepare(self) -> None:
        await self._log.prepare()

    async def follow(self, topics: Sequence[str], **options: Any) -> Any:
        return await self._log.follow(topics, **options)

    async def close(self) -> None:
        await self._log.close()
