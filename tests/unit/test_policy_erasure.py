"""The pure parts of erasing: state records, and when a log is given a record so that it compacts."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chain import Chain
from tidegate.events import SubjectErased
from tidegate.log.port import Delivered
from tidegate.privacy.erasure import is_erasure, read_erasure, state_key, state_value
from tidegate.privacy.keys import topic_key
from tidegate.privacy.ring import TOPIC
from tidegate_policy.erasure import ROLL_AFTER_US, Rolling

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
