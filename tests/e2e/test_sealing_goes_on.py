"""Whatever somebody appends to the log past the edges, what honest writers append is sealed."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.parts.audit_events import calls, delivered
from tests.parts.sealed import quick_settings, sealing_on, until

from tidegate.audit.links import link_of
from tidegate.audit.roots import Root
from tidegate.audit.runs import leaves_of
from tidegate.events import RootSealed
from tidegate.ids import now_us
from tidegate.limits import EVENT_BYTES_MAX, RECORD_ID_CHARS_MAX, WRITER_CHARS_MAX
from tidegate.log.port import Record
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_audit_consumer.reading import Unreadable, read
from tidegate_audit_consumer.roots_file import read_roots, roots_path


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db")
    await log.prepare()
    yield log
    await log.close()


def record(writer: str, seq: int = 1, prev: str = "", event_id: str = "x", **others: Any) -> Record:
    """Unreadable, but for what a chain needs to know."""
    opening = {"writer": writer, "seq": seq, "prev": prev, "id": event_id, "time_us": now_us()} | others
    return Record("calls", b"k", msgspec.json.encode(opening))


def repeatables(writer: str, number: int) -> list[Record]:
    """A chain of records that a root must list one by one, with the longest ids that a chain takes."""
    records: list[Record] = []
    prev = ""
    for seq in range(1, number + 1):
        records.append(record(writer, seq, prev, f"{seq:\x01>{RECORD_ID_CHARS_MAX}}"))
        prev = hashlib.sha256(records[-1].value or b"").hexdigest()
    return records


ODD = {
    "a huge writer": record("w" * 900_000),
    "a writer that is a little too long": record("w" * (WRITER_CHARS_MAX + 1)),
    "a huge id": record("w.1", event_id="i" * 900_000),
    "a huge hash of the record before": record("w.2", prev="0" * 900_000),
    "a number that JSON of ours cannot hold": record("w.3", 1)._replace(
        value=b'{"id":"x","writer":"w.3","seq":1' + b"0" * 40 + b"}"
    ),
    "a time that JSON of ours cannot hold": record("w.4")._replace(
        value=b'{"id":"x","writer":"w.4","seq":1,"time_us":-1' + b"0" * 40 + b"}"
    ),
    "no JSON": Record("calls", b"k", b"\xff"),
    "no value": Record("calls", b"k", None),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_no_chain_can_hold_is_of_no_chain_and_unreadable(odd: Record) -> None:
    assert odd.value is None or link_of(odd.value) is None
    assert isinstance(read(delivered([odd])[0]), Unreadable)


def test_an_event_with_a_writer_beyond_bounds_is_a_dead_letter() -> None:
    event = calls(1, writer="w" * WRITER_CHARS_MAX)[0]
    assert not isinstance(read(delivered([event])[0]), Unreadable)
    (found,) = delivered(calls(1, writer="w" * (WRITER_CHARS_MAX + 1))[:1])
    unreadable = read(found)
    assert isinstance(unreadable, Unreadable)
    assert unreadable.reason == "out-of-range"


def test_a_run_of_long_repeatable_ids_becomes_several_small_leaves() -> None:
    links = [link for one in repeatables("w", 1_200) if (link := link_of(one.value or b"")) is not None]
    gathered = leaves_of(links)
    assert gathered.breaches == []
    assert [seq for leaf in gathered.leaves for seq in range(leaf.first, leaf.last + 1)] == list(range(1, 1_201))
    assert max(len(msgspec.json.encode(leaf)) for leaf in gathered.leaves) < 250_000
    assert [one.id for leaf in gathered.leaves for one in leaf.repeatable] == [link.id for link in links]


def roots_of(settings: Settings) -> list[RootSealed]:
    path = roots_path(settings)
    return list(read_roots(path)) if path.exists() else []


async def test_records_that_no_root_can_hold_are_counted_and_what_follows_is_sealed_once(
    log: SqliteLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = quick_settings(tmp_path)
    await log.append([*calls(1, writer="a.1"), *ODD.values(), *repeatables("long.1", 1_200)])
    await log.append(calls(2, writer="zz-honest.1"))
    async with sealing_on(settings, log) as sealer:
        await until(lambda: any(leaf.writer == "zz-honest.1" for root in roots_of(settings) for leaf in root.leaves))
        before = sealer.sealed
        await until(lambda: sealer.sealed >= before + 2)
    roots = roots_of(settings)
    (told,) = [line for line in caplog.messages if "no records of a chain" in line]
    assert told.startswith(f"{len(ODD)} records")
    assert "calls/0/2" in told
    sealed = [(leaf.writer, seq) for root in roots for leaf in root.leaves for seq in range(leaf.first, leaf.last + 1)]
    mine = [one for one in sealed if not one[0].startswith("sealer.")]
    assert len(mine) == len(set(mine)) == 2 + 1_200 + 4, "each once"
    assert len([root for root in roots if any(leaf.writer == "long.1" for leaf in root.leaves)]) > 1
    assert max(len(msgspec.json.encode(root)) for root in roots) < EVENT_BYTES_MAX
    end = msgspec.json.decode(roots[-1].root, type=Root).positions["calls/0"]
    assert end == 2 + len(ODD) + 1_200 + 4
