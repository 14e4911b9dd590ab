"""What an edge makes of its spool: losses and open calls are told, a full one is waited for, Kafka not asked twice."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.parts.audit_events import completed, requested

from tidegate.chain import Chain, open_event
from tidegate.errors import LogUnavailable
from tidegate.events import CallAbandoned, SpoolDamaged
from tidegate.log.commit import GroupCommit
from tidegate.log.port import Record
from tidegate.log.segments import HEADER_BYTES
from tidegate.log.spool import Spool
from tidegate_edge.calls import Place
from tidegate_edge.recorder import Recorder, Writer
from tidegate_edge.records import Leftovers

PLACE = Place("acme", "eu", "edge-1")
MIB = 1 << 20


class Kafka:
    """Takes records unless it is away; counts how often it was asked."""

    def __init__(self) -> None:
        self.got: list[Record] = []
        self.asked = 0
        self.away = False

    def append(self, records: Sequence[Record]) -> None:
        self.asked += 1
        if self.away:
            raise LogUnavailable("Kafka is away")
        self.got += records

    def close(self) -> None: ...


def left_behind(directory: Path, *calls: str) -> None:
    spool = Spool(directory, MIB, edge="edge-1")
    chain = Chain(spool.writer)
    for call in calls:
        spool.append([chain.seal(requested(call))])
    spool.close()


def recording(spool: Spool) -> tuple[Recorder, GroupCommit]:
    commit = GroupCommit(spool, records_max=100, name="spool")
    refusal = lambda: None if spool.takes_permits else spool.full()  # noqa: E731
    return Recorder(Writer(lambda: Chain(spool.writer), commit), refusal=refusal), commit


def shipped(spool: Spool) -> list[object]:
    found: list[object] = []
    while (chunk := spool.take(100, MIB, 0)) is not None:
        found += [open_event(record.value or b"") for record in chunk.records]
        spool.shipped(chunk)
    return found


async def test_what_a_start_found_is_told_once_with_the_numbers_that_are_gone(tmp_path: Path) -> None:
    left_behind(tmp_path, "one", "two", "three")
    (path,) = tmp_path.glob("*.segment")
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + (len(content) - HEADER_BYTES) // 2] ^= 4
    path.write_bytes(content)
    spool = Spool(tmp_path, MIB, edge="edge-1")
    recorder, commit = recording(spool)
    await Leftovers(recorder, spool, PLACE).tell()
    assert spool.damages() == []
    events = shipped(spool)
    assert [one.call_id for one in events if isinstance(one, CallAbandoned)] == ["one", "three"]
    (lost,) = [one for one in events if isinstance(one, SpoolDamaged)]
    assert (lost.edge, lost.first_seq, lost.last_seq, lost.records, lost.damage) == ("edge-1", 2, 2, 1, "damaged")
    assert lost.spool == lost.of_writer.split(".")[1]
    await commit.close()
    again = Spool(tmp_path, MIB, edge="edge-1")
    assert again.damages() == []
    again.close()


async def test_an_edge_whose_spool_is_full_starts_and_tells_when_there_is_room(tmp_path: Path) -> None:
    left_behind(tmp_path, *(f"call {number}" for number in range(40)))
    spool = Spool(tmp_path, 20_000, edge="edge-1")
    assert not spool.takes_permits
    recorder, commit = recording(spool)
    with pytest.raises(LogUnavailable) as caught:
        await recorder.record(requested("refused"), "spool")
    assert caught.value.code == "spool-full"
    telling = asyncio.create_task(Leftovers(recorder, spool, PLACE).run())
    await asyncio.sleep(0)
    assert len(shipped(spool)) == 40
    told: list[object] = []
    async with asyncio.timeout(20):
        while len(told) < 40:
            told += await asyncio.to_thread(shipped, spool)
    assert all(isinstance(one, CallAbandoned) for one in told)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    await commit.close()


async def test_near_the_bound_a_call_s_end_is_recorded_where_a_permit_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64_000, edge="edge-1")
    recorder, commit = recording(spool)
    number = 0
    while spool.takes_permits:
        await recorder.record(requested(f"call {number}"), "spool")
        number += 1
    with pytest.raises(LogUnavailable, match="ends of calls under way"):
        await recorder.record(requested("one more"), "spool")
    await recorder.record_completion(completed(requested("call 0")), "spool")
    assert len(shipped(spool)) == number + 1
    await commit.close()


async def test_strict_or_spool_asks_kafka_once_and_then_leaves_it_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, kafka = Spool(tmp_path, MIB, edge="edge-1"), Kafka()
    spooled, strict = (GroupCommit(one, records_max=100, name="test") for one in (spool, kafka))
    recorder = Recorder(
        Writer(lambda: Chain(spool.writer), spooled), Writer(lambda: Chain(f"edge-1.strict.{kafka.asked}"), strict)
    )
    kafka.away = True
    for number in range(5):
        await recorder.record(requested(f"call {number}"), "strict-or-spool")
    assert kafka.asked == 1
    assert len(shipped(spool)) == 5
    with pytest.raises(LogUnavailable):
        await recorder.record(requested("strict"), "strict")
    kafka.away = False
    monkeypatch.setattr("time.monotonic", lambda: 1e12)
    await recorder.record(requested("back"), "strict-or-spool")
    assert len(kafka.got) == 1
    monkeypatch.undo()
    await spooled.close()
    await strict.close()
