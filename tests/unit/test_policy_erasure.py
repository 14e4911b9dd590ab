"""The pure parts of erasing: state records, and when a log is given a record so that it compacts."""

from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chain import Chain
from tidegate.events import SubjectErased
from tidegate.log.port import Delivered
from tidegate.log.sqlite import SqliteLog
from tidegate.privacy.erasure import is_erasure, read_erasure, state_key, state_value
from tidegate.privacy.keys import SubjectKey, Wrapping, topic_key
from tidegate.privacy.ring import TOPIC
from tidegate_policy import erasure
from tidegate_policy.erasure import ROLL_AFTER_US, Eraser, Rolling
from tidegate_policy.journal import Journal
from tidegate_policy.state import ControlPlane

EVENT = SubjectErased(
    id="i", time_us=5, tenant="acme", region="eu", subject_id="s", erasure_id="e", actor="a", reason="r", erased_us=5
)


def record(at_us: int, value: bytes | None, kid: str = "k", subject: str = "s") -> Delivered:
    return Delivered(TOPIC, 0, 0, topic_key("acme", subject, kid), value, (), at_us)


@pytest.mark.parametrize("done", [True, False])
def test_a_state_record_holds_the_event_as_stored_and_whether_it_is_done(done: bool) -> None:
    stored = Chain("w").seal(EVENT).value or b""
    value = state_value(stored, done)
    assert stored in value
    told = read_erasure(value)
    assert (told.done, told.event.erasure_id, told.event.writer, told.event.seq) == (done, "e", "w", 1)


@given(st.binary(max_size=60))
def test_what_is_no_state_record_is_one_kind_of_error(value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_erasure(value)


@pytest.mark.parametrize("value", [b'{"v":1,"done":true,"event":{"type":"no"}}', b'{"v":1,"done":true,"event":null}'])
def test_a_state_record_of_something_else_is_refused(value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_erasure(value)


def test_erasures_and_quarantines_share_a_topic_and_are_told_apart() -> None:
    assert is_erasure(state_key("acme", "s"))
    for key in (b"acme|0190-uuid", b"acme|erased", b"acme", b"", b"acme|other|s"):
        assert not is_erasure(key)


def test_a_log_that_gets_no_record_after_a_destruction_is_given_one_once() -> None:
    rolling = Rolling()
    assert not rolling.is_due(10**15)
    rolling.note(record(1_000, b"value"))
    assert not rolling.is_due(10**15), "nothing was destroyed"
    rolling.note(record(2_000, None))
    assert not rolling.is_due(2_000 + ROLL_AFTER_US - 1)
    assert rolling.is_due(2_000 + ROLL_AFTER_US)
    rolling.note(record(2_001 + ROLL_AFTER_US, None, "now", "compaction"))
    assert not rolling.is_due(10**15)


def test_a_log_that_had_a_record_long_after_a_destruction_needs_none() -> None:
    rolling = Rolling()
    rolling.note(record(2_000, None))
    rolling.note(record(2_000 + ROLL_AFTER_US, b"another key"))
    assert not rolling.is_due(10**15)
    rolling.note(record(10**15, None))
    assert rolling.is_due(10**15 + ROLL_AFTER_US)


async def _eraser(log: SqliteLog) -> Eraser:
    state = ControlPlane("acme")
    state.erased["s"] = 5
    return Eraser(state, cast(Journal, None), log, "eu", lambda: 0)


@pytest.mark.parametrize("told_by", ["the None value", "the state record", "the event"])
async def test_a_destroyed_key_that_comes_back_is_taken_off_whenever_it_says_it_was_made(
    tmp_path: Path, told_by: str
) -> None:
    log = SqliteLog(tmp_path / "log.db")
    eraser, late = await _eraser(log), dict[str, bytes]()
    honest = Wrapping([b"1" * 32]).wrap(SubjectKey.generate("acme", "s", 4))
    forged = msgspec.json.encode(msgspec.json.decode(honest) | {"created_us": 2**53})
    eraser._judge(record(1, forged), late)
    assert not late, "nothing tells it from the key of the person's next call"
    stored = Chain("w").seal(msgspec.structs.replace(EVENT, keys=("k",))).value or b""
    if told_by == "the None value":
        eraser._judge(record(2, None), late)
    elif told_by == "the event":
        eraser.note(Delivered("control", 0, 0, b"acme|s", stored, (), 0))
    else:
        eraser.note(Delivered("control-state", 0, 0, state_key("acme", "s"), state_value(stored, True), (), 0))
    eraser._judge(record(3, forged), late)
    eraser._judge(record(4, forged, "another"), late)
    assert list(late) == ["k"]
    eraser._judge(record(5, honest, "old"), late)
    assert list(late) == ["k", "old"]
    eraser._judge(record(6, None), late)
    assert list(late) == ["old"]
    await log.close()


async def test_the_names_of_destroyed_keys_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "GONE_MAX", 3)
    log = SqliteLog(tmp_path / "log.db")
    eraser = await _eraser(log)
    for number in range(9):
        eraser._judge(record(1, None, str(number)), {})
    assert list(eraser._gone) == ["6", "7", "8"]
    await log.close()
