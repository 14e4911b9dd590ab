"""The fold of approvals, and what one is bound to: tables first, then laws."""

import itertools
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.events import (
    ApprovalConsumed,
    ApprovalDenied,
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRequested,
)
from tidegate.limits import APPROVAL_TTL_S_MAX
from tidegate.policy.approvals import (
    Approval,
    ApprovalEvent,
    Approvals,
    approval_in,
    binding_of,
    read_state,
    state_key,
    state_value,
)

COMMON: dict[str, Any] = {"id": "e", "tenant": "acme", "region": "local"}


def requested(approval_id: str = "a", at_us: int = 100, **more: Any) -> ApprovalRequested:
    given: dict[str, Any] = {
        "binding": "b",
        "subject_id": "alice",
        "agent": "agent",
        "session_id": "s",
        "method": "tools/call",
        "server": "up",
        "target": "pay",
        "call_id": "c",
        "root_call_id": "c",
        "rules": ("r1",),
        "expires_us": 1_000,
        "edge": "edge-1",
    } | more
    return ApprovalRequested(**COMMON, time_us=at_us, approval_id=approval_id, **given)


def granted(at_us: int = 200, actor: str = "bob", channel: Any = "api", **more: Any) -> ApprovalGranted:
    given: dict[str, Any] = {"approval_id": "a", "expires_us": 1_500} | more
    return ApprovalGranted(**{**COMMON, **given}, time_us=at_us, actor=actor, channel=channel)


def denied(at_us: int = 300, actor: str = "bob", **more: Any) -> ApprovalDenied:
    return ApprovalDenied(**{**COMMON, "approval_id": "a", "channel": "api", **more}, time_us=at_us, actor=actor)


def expired(at_us: int = 1_000) -> ApprovalExpired:
    return ApprovalExpired(**COMMON, time_us=at_us, approval_id="a")


def consumed(at_us: int = 400, call_id: str = "c2", approval_id: str = "a") -> ApprovalConsumed:
    return ApprovalConsumed(**COMMON, time_us=at_us, approval_id=approval_id, call_id=call_id, edge="edge-1")


def folded(*events: ApprovalEvent) -> Approvals:
    approvals = Approvals()
    for event in events:
        approvals.apply(event)
    return approvals


def state(*events: ApprovalEvent) -> str:
    found = folded(*events).get("a")
    assert found is not None
    return found.state


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([requested()], "pending"),
        ([requested(), granted()], "granted"),
        ([requested(), granted(), consumed()], "consumed"),
        ([requested(), denied()], "denied"),
        ([requested(), granted(), denied()], "denied"),
        ([requested(), granted(), consumed(), denied()], "consumed"),
        ([requested(), granted(), expired()], "expired"),
        ([requested(), granted(at_us=1_000)], "pending"),  # too late
        ([requested(), granted(actor="alice", channel="form")], "granted"),
        ([requested(), granted(actor="bob", channel="form")], "pending"),  # a form is the requester's
        ([requested(), granted(actor="alice", channel="api")], "granted"),
        ([requested(approver="other"), granted(actor="alice")], "pending"),
        ([requested(approver="other"), granted(actor="bob", channel="url")], "pending"),
        ([requested(approver="other"), granted(actor="bob")], "granted"),
        ([requested(approver="ops"), granted(actor="alice")], "pending"),
        ([requested(approver="ops"), granted(actor="bob")], "granted"),
        ([requested(), granted(tenant="other")], "pending"),
    ],
)
def test_the_state_that_events_lead_to(events: list[Any], expected: str) -> None:
    assert state(*events) == expected


def test_a_grant_s_time_counts_once_it_is_granted() -> None:
    approvals = folded(requested(), granted())
    assert approvals.find("b", 1_200, "", ["r1"]) is not None
    assert approvals.find("b", 1_500, "", ["r1"]) is None
    long = folded(requested(), granted(expires_us=10**18))
    found = long.get("a")
    assert found is not None
    assert found.expires_us == 200 + APPROVAL_TTL_S_MAX * 1_000_000


@pytest.mark.parametrize(
    ("approver", "rules", "served"),
    [
        ("", ["r1"], True),
        ("", [], True),
        ("", ["r1", "r2"], False),  # another rule asks, too
        ("other", ["r1"], False),  # a second person is wanted now
        ("ops", ["r1"], False),
    ],
)
def test_a_grant_serves_the_rules_and_the_person_that_were_asked(approver: str, rules: list[str], served: bool) -> None:
    assert (folded(requested(), granted()).find("b", 500, approver, rules) is not None) is served


def test_a_denial_is_found_before_a_grant_and_that_before_a_question() -> None:
    approvals = folded(requested("a"), requested("z", 50), requested("y", 60))
    found = approvals.find("b", 500)
    assert found is not None
    assert found.approval_id == "z"  # the earliest
    approvals.apply(granted(approval_id="y"))
    assert (approvals.find("b", 500) or found).approval_id == "y"
    approvals.apply(denied())
    assert (approvals.find("b", 500) or found).approval_id == "a"
    assert approvals.find("another", 500) is None


def test_what_is_dropped_lets_nothing_pass_even_where_older_records_follow() -> None:
    approvals = folded(requested(), granted())
    before = approvals.get("a")
    assert before is not None
    approvals.drop("a")
    approvals.restore(before)
    assert approvals.find("b", 500) is None


def test_memory_is_freed_and_bounded() -> None:
    approvals = Approvals(most=10)
    for number in range(50):
        approvals.apply(requested(f"a{number}", expires_us=10_000 - number))
        approvals.apply(granted(approval_id=f"unheard-of-{number}"))
    assert len(approvals) == 10
    assert approvals.get("a0") is not None  # the last to expire
    assert len(approvals._early) == 10
    assert len(approvals.forget_expired(10_000)) == 10
    assert (len(approvals), approvals._by_binding, approvals._by_subject, approvals._due) == (0, {}, {}, [])
    assert (approvals._pending, approvals._having, approvals._most_had) == ({}, {}, 0)


def asked_by(who: str, number: int, **more: Any) -> ApprovalRequested:
    return requested(f"{who}-{number}", subject_id=who, binding=f"{who}{number}", expires_us=10_000, **more)


def test_whoever_asks_most_loses_their_own_and_never_what_another_person_refused() -> None:
    approvals = Approvals(most=100)
    approvals.apply(asked_by("alice", 0, approver="other"))
    for number in range(5_000):
        approvals.apply(asked_by("mallory", number))
        actor, channel = ("bob", "api") if number == 0 else ("mallory", "form")
        approvals.apply(denied(approval_id=f"mallory-{number}", actor=actor, channel=channel))
    assert len(approvals) == 100
    found = [one.state for name in ("alice0", "mallory0") if (one := approvals.find(name, 500)) is not None]
    assert found == ["pending", "denied"]
    assert (approvals.kept_of("alice"), approvals.kept_of("mallory")) == (1, 99)
    assert len(approvals._due) <= 2 * 100 + 64


def test_what_is_used_up_is_forgotten_first() -> None:
    approvals = Approvals(most=3)
    for number in range(3):
        approvals.apply(asked_by("alice", number))
    approvals.apply(consumed(approval_id="alice-1"))
    approvals.apply(asked_by("alice", 3))
    assert [approvals.get(f"alice-{number}") is not None for number in range(4)] == [True, False, True, True]


def test_counting_what_waits_costs_no_more_with_much_that_is_over() -> None:
    approvals = Approvals()
    for number in range(20_000):
        approvals.apply(asked_by("mallory", number))
        approvals.apply(denied(approval_id=f"mallory-{number}"))
    approvals.apply(asked_by("mallory", 20_000))
    began = time.perf_counter()
    for _ in range(1_000):
        assert (approvals.pending_of("mallory", 500), approvals.pending_of("mallory", 10_000)) == (1, 0)
        assert approvals.kept_of("mallory") == 20_001
    assert time.perf_counter() - began < 1.0


def test_expiring_costs_no_more_with_many_that_stand() -> None:
    approvals = Approvals()
    for number in range(20_000):
        approvals.apply(
            requested(f"a{number}", expires_us=10**9 + number, subject_id=f"s{number}", binding=f"b{number}")
        )
    began = time.perf_counter()
    for _ in range(1_000):
        approvals.forget_expired(1_000)
    assert time.perf_counter() - began < 1.0


def test_a_state_record_says_all_that_the_fold_knows() -> None:
    known = folded(requested(), granted(reason="fine"), consumed()).get("a")
    assert known is not None
    assert read_state(state_value(known)) == known
    assert approval_in(state_key("acme", "a")) == "a"
    for other in (b"acme|a", b"acme|erased|a", b"acme|approval|a|b", b"", b"approval|a"):
        assert approval_in(other) == ""
    for broken in (b"", b"{}", b"null", b"\xff", b"[" * 100_000):
        with pytest.raises(msgspec.DecodeError):
            read_state(broken)


PARTS: dict[str, Any] = {
    "tenant": "acme",
    "subject_id": "alice",
    "agent": "agent",
    "method": "tools/call",
    "server": "up",
    "target": "pay",
    "arguments": b'{"amount": 10, "to": "bob"}',
}


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "acme2"},
        {"subject_id": "bob"},
        {"agent": "agent2"},
        {"method": "prompts/get"},
        {"server": "up2"},
        {"target": "pay2"},
        {"arguments": b'{"amount": 11, "to": "bob"}'},
        {"arguments": b'{"amount": "10", "to": "bob"}'},
        {"arguments": b'{"amount": 10, "to": "bob", "more": null}'},
        {"arguments": b'{"amount": 10, "to": ["bob"]}'},
        {"arguments": b'{"amount": 10.0, "to": "bob"}'},
        {"arguments": b'{"amount": 1e1, "to": "bob"}'},
        {"server": "uppay", "target": ""},
    ],
)
def test_everything_that_makes_a_call_another_makes_its_binding_another(other: dict[str, Any]) -> None:
    assert binding_of(b"k", **PARTS) != binding_of(b"k", **PARTS | other)
    assert binding_of(b"k", **PARTS) != binding_of(b"another", **PARTS)


@pytest.mark.parametrize(
    "same",
    [
        b'{"to": "bob", "amount": 10}',
        b'{"amount":10,"to":"bob"}',
        b' {"amount"\n:10 ,\t"to":"b\\u006fb" } ',
    ],
)
def test_order_white_space_and_spelling_make_no_difference_to_a_binding(same: bytes) -> None:
    assert binding_of(b"k", **PARTS) == binding_of(b"k", **PARTS | {"arguments": same})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"0.1", b"0.1000000000000000000000000000000000000000000001"),
        (b"9007199254740993.0", b"9007199254740992.0"),
        (b"123456789012345678901", b"123456789012345678902"),
        (b"1", b"1.0"),
        (b"100", b"1e2"),
        (b"0", b"-0"),
        (b"1e400", b"1e401"),
        (b"0.1", b'"0.1"'),
    ],
)
def test_every_digit_makes_another_binding_however_little_it_changes(one: bytes, other: bytes) -> None:
    bound = {binding_of(b"k", **PARTS | {"arguments": b'{"a": [' + number + b"]}"}) for number in (one, other)}
    assert len(bound) == 2


def test_what_is_no_json_is_bound_to_nothing() -> None:
    for arguments in (b"", b"{", b'{"a": NaN}', b'{"a": -Infinity}'):
        with pytest.raises(ValueError):
            binding_of(b"k", **PARTS | {"arguments": arguments})


# laws

ACTORS = st.sampled_from(["alice", "bob", "carol"])
TIMES = st.integers(90, 1_100)
LATER = st.one_of(
    st.builds(
        lambda at, actor, channel: granted(at, actor, channel, expires_us=at + 300),
        TIMES,
        ACTORS,
        st.sampled_from(["form", "url", "api"]),
    ),
    st.builds(denied, TIMES, ACTORS),
    st.builds(expired, TIMES),
    st.builds(consumed, TIMES, st.sampled_from(["c2", "c3"])),
)
REQUESTS = st.builds(lambda approver: requested(approver=approver), st.sampled_from(["", "other", "ops"]))


@given(request=REQUESTS, events=st.lists(LATER, max_size=5), data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_order_and_any_repetition_leads_to_the_same(
    request: ApprovalRequested, events: list[ApprovalEvent], data: st.DataObject
) -> None:
    history: list[ApprovalEvent] = [request, *events]
    straight = folded(*history).get("a")
    again = data.draw(st.permutations([*history, *data.draw(st.lists(st.sampled_from(history), max_size=3))]))
    assert folded(*again).get("a") == straight


@given(request=REQUESTS, events=st.lists(LATER, max_size=6), cut=st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_half_from_the_state_and_half_from_the_history_is_the_whole(
    request: ApprovalRequested, events: list[ApprovalEvent], cut: int
) -> None:
    whole = folded(request, *events).get("a")
    half = folded(request, *events[:cut]).get("a")
    assert half is not None
    for order in itertools.permutations((0, 1)):
        approvals = Approvals()
        for turn in order:
            if turn == 0:
                approvals.restore(read_state(state_value(half)))
            else:
                for event in events[cut:]:
                    approvals.apply(event)
        assert approvals.get("a") == whole


@given(request=REQUESTS, events=st.lists(LATER, max_size=6), at=TIMES, approver=st.sampled_from(["", "other", "ops"]))
@settings(max_examples=300, deadline=None)
def test_a_call_passes_only_by_somebody_who_may_grant_it_unused_and_in_time(
    request: ApprovalRequested, events: list[ApprovalEvent], at: int, approver: str
) -> None:
    found: Approval | None = folded(request, *events).find("b", at, approver, ["r1"])
    if found is None or found.state != "granted":
        return
    assert not any(isinstance(one, ApprovalConsumed | ApprovalDenied | ApprovalExpired) for one in events)
    grants = [one for one in events if isinstance(one, ApprovalGranted) and at < one.expires_us]
    if request.approver or approver:
        assert request.approver == approver or not approver
        assert any(one.actor != "alice" and one.channel == "api" for one in grants)
    else:
        assert any(one.channel == "api" or one.actor == "alice" for one in grants)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40), st.sampled_from(["alice", "bob"])), max_size=40),
    st.integers(0, 60),
)
def test_the_newest_come_first_whatever_came_and_went(asked: list[tuple[int, int, str]], now_us: int) -> None:
    fold = Approvals(most=20)
    for number, (at_us, lasts_us, who) in enumerate(asked):
        event = requested(f"a{number}", at_us, subject_id=who, binding=f"b{number % 3}", expires_us=at_us + lasts_us)
        fold.apply(event)
        if number % 7 == 0:
            fold.forget_expired(at_us)
    newest = list(fold.newest(now_us))
    assert newest == sorted(newest, key=lambda one: (one.requested_us, one.approval_id), reverse=True)
    assert fold.current(now_us) == newest[::-1]
    assert {one.approval_id for one in newest} == {
        name for name in (f"a{n}" for n in range(40)) if (one := fold.get(name)) and one.expires_us > now_us
    }
    of_alice = {one.approval_id for one in newest if one.subject_id == "alice"}
    assert {one.approval_id for one in fold.newest_of("alice", now_us)} == of_alice


@given(
    most=st.integers(1, 6),
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "deny", "use", "over"]), st.integers(0, 9), st.integers(1, 40)), max_size=60
    ),
)
@settings(max_examples=200, deadline=None)
def test_counters_say_what_is_kept_whatever_happens(most: int, steps: list[tuple[str, int, int]]) -> None:
    fold, people = Approvals(most=most), ("alice", "bob", "carol")
    for deed, number, lasts_us in steps:
        name = f"a{number}"
        match deed:
            case "ask":
                who = people[number % 3]
                fold.apply(requested(name, subject_id=who, binding=name, expires_us=100 + lasts_us))
            case "deny":
                fold.apply(denied(approval_id=name))
            case "use":
                fold.apply(consumed(approval_id=name))
            case _:
                fold.forget_expired(100 + lasts_us)
        known = [one for one in (fold.get(f"a{n}") for n in range(10)) if one is not None]
        assert len(known) == len(fold) <= most
        for who in people:
            assert fold.kept_of(who) == sum(one.subject_id == who for one in known)
            waiting = sum(one.subject_id == who and one.state == "pending" for one in known)
            assert fold.pending_of(who, 0) == waiting
        assert fold._most_had == max((fold.kept_of(who) for who in people), default=0)
