"""Quarantines: what matches, and the laws of the fold."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chain import Chain
from tidegate.events import (
    OfferDefined,
    QuarantineImposed,
    QuarantineLifted,
    ServerRegistered,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.policy.control import Quarantines
from tidegate_policy.state import ControlPlane

Scope = Literal["session", "subject", "agent", "server", "tool"]
CALL = ("s1", "u1", "cursor", "fs", "read")


def imposed(name: str, scope: Scope, value: str, *, at: int = 0, expires_us: int = 0) -> QuarantineImposed:
    return QuarantineImposed(
        id=f"i-{name}",
        time_us=at,
        tenant="acme",
        region="eu",
        quarantine_id=name,
        scope=scope,
        value=value,
        reason="because",
        actor="detector",
        expires_us=expires_us,
    )


def lifted(name: str) -> QuarantineLifted:
    return QuarantineLifted(id=f"l-{name}", time_us=1, tenant="acme", region="eu", quarantine_id=name, actor="someone")


def match(folded: Quarantines, now_us: int = 100) -> str | None:
    found = folded.match(*CALL, now_us)
    return found.quarantine_id if found else None


@pytest.mark.parametrize(
    ("scope", "value", "stops"),
    [
        ("session", "s1", True),
        ("session", "s2", False),
        ("subject", "u1", True),
        ("subject", "s1", False),
        ("agent", "cursor", True),
        ("server", "fs", True),
        ("server", "web", False),
        ("tool", "fs/read", True),
        ("tool", "fs/write", False),
        ("tool", "read", False),
    ],
)
def test_a_quarantine_stops_what_its_scope_names(scope: Scope, value: str, stops: bool) -> None:
    folded = Quarantines()
    folded.apply(imposed("q", scope, value))
    assert match(folded) == ("q" if stops else None)


def test_the_narrowest_scope_speaks_and_within_it_the_earliest() -> None:
    folded = Quarantines()
    for event in (
        imposed("server", "server", "fs", at=1),
        imposed("late", "subject", "u1", at=9),
        imposed("early", "subject", "u1", at=2),
    ):
        folded.apply(event)
    assert match(folded) == "early"


def test_an_expired_quarantine_stops_nothing_and_lets_a_wider_one_speak() -> None:
    folded = Quarantines()
    folded.apply(imposed("short", "session", "s1", expires_us=50))
    folded.apply(imposed("wide", "server", "fs"))
    assert match(folded, 49) == "short"
    assert match(folded, 50) == "wide"
    assert [event.quarantine_id for event in folded.expired(50)] == ["short"]
    assert folded.forget_expired(50) == 1
    assert [event.quarantine_id for event in folded.current(0)] == ["wide"]


def test_lifting_ends_it_even_when_seen_first() -> None:
    folded = Quarantines()
    folded.apply(imposed("a", "session", "s1"))
    folded.apply(lifted("a"))
    folded.apply(lifted("b"))
    folded.apply(imposed("b", "session", "s1"))
    assert match(folded) is None


def test_the_epoch_grows_with_each_change_and_only_then() -> None:
    folded = Quarantines()
    epochs = [folded.epoch]
    for event in (imposed("a", "session", "s1"), imposed("a", "session", "s1"), lifted("a"), lifted("a")):
        folded.apply(event)
        epochs.append(folded.epoch)
    assert epochs == [0, 1, 1, 2, 2]


NAMES = st.sampled_from(["a", "b", "c", "d"])
EVENTS = st.lists(
    st.one_of(
        st.builds(
            imposed,
            NAMES,
            st.sampled_from(["session", "subject", "agent", "server", "tool"]),
            st.sampled_from(["s1", "u1", "cursor", "fs", "fs/read", "other"]),
            at=st.integers(0, 9),
            expires_us=st.sampled_from([0, 50, 150]),
        ),
        st.builds(lifted, NAMES),
    ),
    max_size=12,
)


def view(folded: Quarantines) -> tuple[object, ...]:
    return (folded.current(0), [match(folded, now_us) for now_us in (0, 100, 200)])


def fold(*logs: list[QuarantineImposed | QuarantineLifted]) -> Quarantines:
    folded = Quarantines()
    for log in logs:
        for event in log:
            folded.apply(event)
    return folded


@given(EVENTS)
def test_folding_twice_is_folding_once(log: list[QuarantineImposed | QuarantineLifted]) -> None:
    once = fold(log)
    epoch = once.epoch
    twice = fold(log, log)
    assert view(twice) == view(once)
    assert twice.epoch == epoch


@given(EVENTS, st.integers(0, 12))
def test_folding_half_then_half_is_folding_the_whole(log: list[QuarantineImposed | QuarantineLifted], cut: int) -> None:
    assert view(fold(log[:cut], log[cut:])) == view(fold(log))


@given(EVENTS)
def test_the_answer_is_that_of_reading_the_whole_history(log: list[QuarantineImposed | QuarantineLifted]) -> None:
    gone = {event.quarantine_id for event in log if isinstance(event, QuarantineLifted)}
    first: dict[str, QuarantineImposed] = {}
    for event in log:
        if isinstance(event, QuarantineImposed):
            first.setdefault(event.quarantine_id, event)
    fields = {"session": "s1", "subject": "u1", "agent": "cursor", "server": "fs", "tool": "fs/read"}
    stopping = [
        event
        for name, event in first.items()
        if name not in gone and fields[event.scope] == event.value and event.expires_us in (0, 150)
    ]
    assert (match(fold(log), 100) is not None) == bool(stopping)


@pytest.mark.parametrize(
    ("scope", "value", "known"),
    [
        ("server", "fs", True),
        ("server", "files", False),
        ("tool", "fs/read", True),
        ("tool", "fs/gone", False),
        ("tool", "fs/greet", True),
        ("tool", "fs/file:///srv/a", True),
        ("tool", "fs/file:///srv/b", None),
        ("tool", "files/read", False),
        ("agent", "fs", None),
        ("subject", "fs", None),
        ("session", "fs", None),
    ],
)
def test_what_a_quarantine_names_is_known_where_the_catalogue_has_it(
    scope: str, value: str, known: bool | None
) -> None:
    state, chain = ControlPlane("acme"), Chain("edge-1")
    base: dict[str, Any] = {"id": "i", "time_us": 1, "tenant": "acme", "region": "eu", "server": "fs"}
    for event in (
        ServerRegistered(**base, transport="http"),
        ToolDefined(**base, tool="read", digest="d"),
        ToolDefined(**base, tool="gone", digest="d"),
        ToolWithdrawn(**base, tool="gone", previous="d"),
        OfferDefined(**base, kind="prompt", target="greet", digest="d"),
        OfferDefined(**base, kind="resource", target="file:///srv/a", digest="d"),
    ):
        state.apply(chain.seal(event).value or b"")
    assert state.knows(scope, value) is known
