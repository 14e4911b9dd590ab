"""Laws of reading older schema versions."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.parts.audit_events import completed, requested

from tidegate.chain import Chain, open_event, open_head
from tidegate.upcast import Members, UnknownType, lift, open_any

texts = st.text(max_size=20)
raws = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
).map(lambda value: b" " + msgspec.json.encode(value))  # a space in front: whoever re-encodes shows


def closed_v1(members: Members) -> Members:
    """From an invented older version, in which the cause was called `why` and the agent was not recorded."""
    rest = {name: value for name, value in members.items() if name != "why"}
    return rest | {
        "type": msgspec.Raw(b'"session.closed.v1"'),
        "cause": members["why"],
        "agent": msgspec.Raw(b'"unknown"'),
    }


def closed_v00(members: Members) -> Members:
    """From one older still, in which times were milliseconds."""
    time_us = msgspec.json.decode(members["time_ms"], type=int) * 1000
    rest = {name: value for name, value in members.items() if name != "time_ms"}
    return rest | {"type": msgspec.Raw(b'"session.closed.v0"'), "time_us": msgspec.Raw(b"%d" % time_us)}


STEPS = {"session.closed.v0": closed_v1, "session.closed.v00": closed_v00}


def stored(kind: str, why: str, more: dict[str, object]) -> bytes:
    common = {"type": kind, "id": "x", "tenant": "t", "region": "r", "session_id": "s", "subject_id": "u", "why": why}
    return msgspec.json.encode(common | more)


@given(texts, texts, raws)
def test_a_current_event_reads_as_if_there_were_no_older_ones(agent: str, reason: str, arguments: bytes) -> None:
    request = requested(agent=agent, reason=reason)
    for event in (request, completed(request)):
        value = Chain("w").seal(event).value or b""
        assert open_any(value, STEPS) == open_any(value) == open_event(value)


@given(st.sampled_from(["deleted", "expired", "revoked"]), st.integers(0, 2**40))
def test_every_older_version_reads_like_the_one_it_became(why: str, time_ms: int) -> None:
    oldest = open_any(stored("session.closed.v00", why, {"time_ms": time_ms}), STEPS)
    old = open_any(stored("session.closed.v0", why, {"time_us": time_ms * 1000}), STEPS)
    assert oldest == old
    assert old.cause == why  # type: ignore[union-attr]
    assert old.time_us == time_ms * 1000


@given(raws)
def test_what_a_step_does_not_touch_stays_byte_for_byte(extra: bytes) -> None:
    value = stored("session.closed.v0", "deleted", {"time_us": 5})[:-1] + b',"extra":' + extra + b"}"
    lifted = msgspec.json.decode(lift(value, STEPS), type=dict[str, msgspec.Raw])
    assert bytes(lifted["extra"]).strip() == extra.strip()


@given(st.binary(max_size=60) | raws)
def test_bytes_that_are_no_event_are_refused_and_never_crash(value: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        open_any(value, STEPS)


def test_a_type_that_nobody_knows_is_told_from_a_known_one_of_the_wrong_shape() -> None:
    with pytest.raises(UnknownType, match=r"call\.requested\.v9"):
        open_any(b'{"type":"call.requested.v9"}')
    with pytest.raises(msgspec.ValidationError) as wrong:
        open_any(b'{"type":"call.requested.v1"}')
    assert not isinstance(wrong.value, UnknownType)


def test_steps_that_lead_in_a_circle_end_in_an_error() -> None:
    circle = {"a.v1": lambda members: members, "b.v1": lambda members: members}
    with pytest.raises(UnknownType, match="never reach"):
        open_any(b'{"type":"a.v1"}', circle)


RUBBISH = (b'"\xff"', b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize("rubbish", RUBBISH, ids=("not UTF-8", "deep"))
@pytest.mark.parametrize("read", [open_any, open_event, open_head])
def test_all_that_can_be_wrong_with_stored_bytes_is_one_kind_of_error(
    rubbish: bytes, read: Callable[[bytes], object]
) -> None:
    good = Chain("w").seal(requested()).value
    assert good is not None
    member = b'"tenant":' if rubbish == RUBBISH[0] else b'"more":'
    for spoiled in (
        good.replace(b'"tenant":', member + rubbish + b',"before":', 1),
        b'{"type":"unknown.v1",' + member + rubbish + b"}",
        b"{" + member + rubbish + b"}",
        rubbish,
    ):
        with pytest.raises(msgspec.DecodeError):
            read(spoiled)
