"""Laws of the approver: whatever edges say, people decide, and wherever it dies, `control-state` comes to hold what the
history leaves of each approval within its time; a decision that was answered with success stands, unless an edge had
heard another; and what nobody decided is said to have expired, once.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.chain import Chain, open_event
from tidegate.claims import Principal
from tidegate.errors import LogUnavailable
from tidegate.events import (
    ApprovalConsumed,
    ApprovalDenied,
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRequested,
)
from tidegate.ids import uuid7
from tidegate.log.port import Delivered, Record
from tidegate.policy.approvals import Approval, ApprovalEvent, Approvals, approval_in, read_state
from tidegate_policy.approvals import Approver, Person, Said, state_at
from tidegate_policy.journal import Journal
from tidegate_policy.problems import ApiFault
from tidegate_policy.state import ControlPlane

NAMES = ("a1", "a1", "a1", "a2")  # much of one rather than little of many
LONG_US = 10_000_000
START_US = 1_000_000_000_000


class Shelf:
    """A log in memory. `fails`: what the next append does: nothing special, or it fails before or after storing."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.fails: Literal["", "before", "after"] = ""

    async def append(self, records: Sequence[Record]) -> None:
        fails, self.fails = self.fails, ""
        if fails != "before":
            self.records += records
        if fails:
            raise LogUnavailable("the log is away")

    def history(self) -> list[ApprovalEvent]:
        events = [open_event(one.value) for one in self.records if one.topic == "control" and one.value]
        return [event for event in events if isinstance(event, ApprovalEvent)]

    def state(self) -> dict[str, Approval]:
        """As compaction leaves it."""
        last = {approval_in(one.key): one.value for one in self.records if one.topic == "control-state"}
        return {name: read_state(value) for name, value in last.items() if value is not None}


class World:
    """A service that may die at any time, edges that write when they like, and one clock."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.shelf = Shelf()
        self.edge = Chain("edge.1")
        self.start()

    def start(self) -> None:
        state = ControlPlane("acme")
        journal = Journal(self.shelf, state, "p")  # type: ignore[arg-type]
        self.approver = Approver(state, journal, "local", lambda: self.now_us)
        self.read = 0

    def catch_up(self) -> None:
        for number, one in enumerate(self.shelf.records[self.read :], self.read):
            self.approver.note(Delivered(one.topic, 0, number, one.key, one.value, (), self.now_us))
        self.read = len(self.shelf.records)

    async def settle(self) -> None:
        """All is read and written, and what was written is read."""
        for _ in range(3):
            self.catch_up()
            with contextlib.suppress(LogUnavailable):
                await self.approver.reconcile()

    def say(self, event: ApprovalEvent) -> None:
        self.shelf.records.append(self.edge.seal(event))

    def stamp(self) -> dict[str, Any]:
        self.now_us += 1
        return {"id": uuid7(), "time_us": self.now_us, "tenant": "acme", "region": "local"}


def person(subject_id: str) -> Person:
    principal = Principal(
        tenant="acme",
        issuer="i",
        subject=subject_id,
        subject_id=subject_id,  # type: ignore[arg-type]
        user=subject_id,
        login="",
        agent="cli",
        agent_source="",
        actors=(),
        groups=("leads",),
        scopes=(),
        token_id="",
        sid="",
        issued_us=0,
        expires_us=0,
        key="",
    )
    return Person(principal, is_admin=subject_id == "admin")


def ask(world: World, name: str, approver: str) -> None:
    """Once: an id is made for one question."""
    if any(isinstance(one, ApprovalRequested) and one.approval_id == name for one in world.shelf.history()):
        return
    stamp = world.stamp()
    world.say(
        ApprovalRequested(
            **stamp,
            approval_id=name,
            binding=f"b-{name}",
            subject_id="requester",
            agent="a",
            session_id="s",
            method="tools/call",
            server="s",
            target="t",
            call_id=f"c-{name}",
            root_call_id=f"c-{name}",
            approver=approver,
            expires_us=world.now_us + LONG_US,
            edge="e",
        )
    )


def by_form(world: World, name: str, yes: bool) -> None:
    said: dict[str, Any] = {**world.stamp(), "approval_id": name, "actor": "requester", "channel": "form"}
    world.say(ApprovalGranted(**said, expires_us=world.now_us + LONG_US) if yes else ApprovalDenied(**said))


def use(world: World, name: str) -> None:
    world.say(ApprovalConsumed(**world.stamp(), approval_id=name, call_id=f"used-{name}", edge="e"))


_name = st.sampled_from(NAMES)
_people = st.sampled_from(["admin", "admin", "lead", "requester"])
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), _name, st.sampled_from(["", "other", "leads"])),
        st.tuples(st.just("decide"), _name, st.sampled_from(["grant", "deny"]), _people),
        st.tuples(st.sampled_from(["form", "use", "settle", "read", "prune", "die"]), _name),
        st.tuples(st.just("wait"), st.sampled_from([1, LONG_US // 2, LONG_US])),
        st.tuples(st.just("settle")),
        st.tuples(st.just("fail"), st.sampled_from(["before", "after"])),
    ),
    min_size=4,
    max_size=30,
)


async def step(world: World, kind: str, *words: Any) -> None:
    match kind:
        case "ask":
            ask(world, *words)
            world.catch_up()
        case "form":
            by_form(world, words[0], yes=world.now_us % 2 == 0)
        case "use":
            use(world, words[0])
        case "decide":
            await try_to_decide(world, *words)
        case "wait":
            world.now_us += words[0]
        case "settle":
            await world.settle()
        case "read":
            world.catch_up()
        case "prune":
            world.approver.prune()
        case "die":
            world.start()
            world.catch_up()
        case "fail":
            world.shelf.fails = words[0]


async def try_to_decide(world: World, name: str, said: Said, who: str) -> None:
    """Checks what an answer promises at the moment when it is given."""
    before = world.approver.approvals.get(name)
    written = len(world.shelf.history())
    world.now_us += 1
    refused: ApiFault | None = None
    try:
        decided = await world.approver.decide(name, said, "r", person(who))
    except ApiFault as fault:
        refused = fault
    except LogUnavailable:
        return
    if refused is not None:
        assert refused.status in (403, 404, 409)
        assert len(world.shelf.history()) == written, "a refusal writes nothing"
        return
    assert before is not None
    assert state_at(before, world.now_us) == "pending"
    assert who != "requester" or before.approver == ""
    assert who != "lead" or before.approver == "leads"
    assert decided.state == ("granted" if said == "grant" else "denied")
    assert world.shelf.state()[name] == decided, "it is on the state when the answer is given"


def wanted_state(world: World) -> dict[str, Approval]:
    fold = Approvals()
    for event in world.shelf.history():
        fold.apply(event)
    return {one.approval_id: one for one in fold.current(world.now_us)}


@pytest.fixture(autouse=True, scope="module")
def _prune_always() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidegate_policy.approvals.PRUNE_FROM", 1)
        yield


def run(body: Callable[[], Any]) -> None:
    asyncio.run(body())


@settings(max_examples=300, deadline=None)
@given(_steps)
def test_the_state_comes_to_hold_what_the_history_leaves(steps: list[tuple[Any, ...]]) -> None:
    async def body() -> None:
        world = World()
        for one in steps:
            await step(world, *one)
        world.shelf.fails = ""
        await world.settle()
        world.now_us += 300_000  # the next look for what has expired
        await world.settle()
        assert world.shelf.state() == wanted_state(world)
        records = len(world.shelf.records)
        world.start()
        await world.settle()
        assert world.shelf.state() == wanted_state(world)
        assert len(world.shelf.records) == records, "a start with nothing to finish writes nothing"

    run(body)


@settings(max_examples=300, deadline=None)
@given(_steps)
def test_what_nobody_decided_or_used_is_said_to_have_expired_once(steps: list[tuple[Any, ...]]) -> None:
    async def body() -> None:
        world = World()
        for one in steps:
            await step(world, *one)
        world.shelf.fails = ""
        world.now_us += 3 * LONG_US
        await world.settle()
        world.start()
        await world.settle()
        assert world.shelf.state() == {}
        fold, fresh = Approvals(), Approvals()
        said = Counter(event.approval_id for event in world.shelf.history() if isinstance(event, ApprovalExpired))
        for event in world.shelf.history():
            fold.apply(event)
            if not isinstance(event, ApprovalExpired):
                fresh.apply(event)
        assert fold.lapsed(world.now_us) == []
        assert {one.approval_id for one in fresh.lapsed(world.now_us)} <= set(said)
        assert set(said.values()) <= {1}

    run(body)
