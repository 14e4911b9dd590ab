"""An approval is used once, whatever ends in between: edges, the session store, the log; and in further rounds."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.approving import BUNDLE, FORM, NONE, House, Person, asked, every, house, nonce, refusal, yes
from tests.parts.edge import RunningEdge, running_edge
from tests.parts.processes import free_port
from tests.parts.scripted import Scripted, Seen, http, result, scripted, text, tool

from tidegate.errors import LogUnavailable
from tidegate.events import AnyEvent, ApprovalConsumed, ApprovalRequested, CallRequested, Mode
from tidegate.log.port import Record
from tidegate.policy.approvals import state_key, state_value
from tidegate.sessions.port import SessionsUnavailable

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with house(tmp_path_factory.mktemp("endings")) as running:
        yield running


class held:
    """One edge stops for ever at the record of a kind of event: before it is durable, or after."""

    def __init__(self, edge: RunningEdge, kind: type, monkeypatch: pytest.MonkeyPatch, *, durable: bool) -> None:
        self.reached = asyncio.Event()
        record = edge.edge.recorder.record

        async def stopping(event: AnyEvent, mode: Mode) -> None:
            if type(event) is kind and getattr(event, "decision", "allow") == "allow":
                if durable:
                    await record(event, mode)
                self.reached.set()
                await asyncio.Event().wait()
            await record(event, mode)

        monkeypatch.setattr(edge.edge.recorder, "record", stopping)


@pytest.mark.parametrize(
    ("kind", "durable"),
    [(ApprovalConsumed, False), (ApprovalConsumed, True), (CallRequested, False), (CallRequested, True)],
)
async def test_an_edge_that_stops_on_the_way_has_used_the_approval_up(
    at: House, kind: type, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, alice = nonce(), at.person()
    approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
    await at.decide(approval_id, grant=True)
    stopped = held(at.edges[0], kind, monkeypatch, durable=durable)
    dying = asyncio.create_task(alice.call("up__pay", {"words": mark}))
    async with asyncio.timeout(10):
        await stopped.reached.wait()
    answers = await asyncio.gather(*[alice.call("up__pay", {"words": mark}, at=1) for _ in range(5)])
    assert {refusal(one)["reason"] for one in answers} <= {"approval-used", "approval-required"}
    assert at.sighted(mark) == 0
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    monkeypatch.undo()
    reasons = [refusal(await alice.call("up__pay", {"words": mark}, at=edge))["reason"] for edge in every(6)]
    assert reasons[-2:] == ["approval-required"] * 2  # asked anew, once each edge has met the lease
    assert at.sighted(mark) == 0


@pytest.mark.parametrize("kind", [ApprovalRequested, ApprovalConsumed])
async def test_what_cannot_be_recorded_lets_nothing_pass(
    at: House, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, alice = nonce(), at.person()
    if kind is ApprovalConsumed:
        approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
        await at.decide(approval_id, grant=True)
    record = at.edges[0].edge.recorder.record

    async def failing(event: Any, mode: Any) -> None:
        if isinstance(event, kind):
            raise LogUnavailable("the disk is full")
        await record(event, mode)

    monkeypatch.setattr(at.edges[0].edge.recorder, "record", failing)
    answer = await alice.call("up__pay", {"words": mark})
    assert (answer.status, answer.error["code"]) == (503, -32603)
    assert at.sighted(mark) == 0


async def test_without_the_session_store_no_approval_is_used(at: House, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, alice = nonce(), at.person()
    approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
    await at.decide(approval_id, grant=True)

    async def away(name: str, value: str, ttl_s: float) -> str:
        raise SessionsUnavailable("away")

    monkeypatch.setattr(at.edges[0].edge.sessions, "take", away)
    assert refusal(await alice.call("up__pay", {"words": mark}))["reason"] == "approvals-unknown"
    monkeypatch.undo()
    assert mark in (await alice.call("up__pay", {"words": mark})).text  # it was not used up
    assert at.sighted(mark) == 1


async def test_no_approval_is_used_before_the_log_was_read(at: House, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, alice = nonce(), at.person()
    approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
    await at.decide(approval_id, grant=True)
    monkeypatch.setattr(at.edges[0].edge.approvals, "is_current", False)
    assert refusal(await alice.call("up__pay", {"words": mark}))["reason"] == "approvals-unknown"
    assert at.sighted(mark) == 0


async def test_who_is_denied_while_the_lease_is_taken_gets_nothing(at: House, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, alice = nonce(), at.person()
    approval_id = refusal(await alice.call("up__pay", {"words": mark}))["approval"]["id"]
    await at.decide(approval_id, grant=True)
    take = at.edges[0].edge.sessions.take

    async def slow(name: str, value: str, ttl_s: float) -> str:
        await at.decide(approval_id, grant=False)
        return await take(name, value, ttl_s)

    monkeypatch.setattr(at.edges[0].edge.sessions, "take", slow)
    assert refusal(await alice.call("up__pay", {"words": mark}))["reason"] == "approval-used"
    monkeypatch.undo()
    assert refusal(await alice.call("up__pay", {"words": mark}))["reason"] == "approval-denied"
    assert at.sighted(mark) == 0


# further rounds


async def _curious(server: Scripted, seen: Seen, writer: Any) -> None:
    """Asks for a name first, and does what it is told once it has one."""
    if seen.params.get("requestState") is None:
        asks = {"name": {"method": "elicitation/create", "params": {"message": "name?", "requestedSchema": {}}}}
        told = {"resultType": "input_required", "inputRequests": asks, "requestState": "kept"}
        writer.write(http(result(seen, told)))
        return
    writer.write(http(result(seen, text("done") | {"resultType": "complete"})))


async def test_the_rounds_of_an_approved_call_go_on_each_once(at: House) -> None:
    mark, alice = nonce(), at.person()
    at.up.behaviours["note"] = _curious
    try:
        question, state = asked(await alice.call("up__note", {"words": mark}))
        assert "wants to call" in question["message"]
        question, second = asked(await alice.call("up__note", {"words": mark}, state=state, responses=yes()))
        assert question["message"] == "name?"
        named = {"name": {"action": "accept", "content": {"name": "n"}}}
        answers = await asyncio.gather(
            *[alice.call("up__note", {"words": mark}, at=edge, state=second, responses=named) for edge in every(10)]
        )
    finally:
        del at.up.behaviours["note"]
    done = [one for one in answers if not one.result.get("isError")]
    assert [one.text for one in done] == ["done"]
    assert {refusal(one)["reason"] for one in answers if one not in done} == {"approval-used"}
    assert at.sighted(mark) == 2  # the question of the server, and what followed from its answer
    events = [one for one in await at.stored("calls") if isinstance(one, CallRequested)]
    approved = [one for one in events if one.reason == "approved" and mark.encode() in bytes(one.sealed.arguments)]
    assert len({one.approval_id for one in approved}) == 1
    assert len({one.root_call_id for one in approved}) == 1
    assert await at.steps(approved[0].approval_id) == ["Requested", "Granted", "Consumed"]


async def test_a_round_that_the_rules_now_forbid_goes_no_further(at: House) -> None:
    mark, alice = nonce(), at.person()
    at.up.behaviours["note"] = _curious
    named = {"name": {"action": "accept", "content": {"name": "n"}}}
    try:
        _, state = asked(await alice.call("up__note", {"words": mark}))
        _, second = asked(await alice.call("up__note", {"words": mark}, state=state, responses=yes()))
        forbids = (
            '@id("stop") forbid (principal, action == Action::"up/note", resource) when { context.args has words };'
        )
        async with at.ruled(forbids):
            told = refusal(await alice.call("up__note", {"words": mark}, state=second, responses=named))
        assert told["reason"] == "forbidden-by-rule"
        another = '@id("two") @effect("ask") forbid (principal, action == Action::"up/note", resource);'
        async with at.ruled(another):
            told = refusal(await alice.call("up__note", {"words": mark}, state=second, responses=named))
        assert told["reason"] == "approval-required"
    finally:
        del at.up.behaviours["note"]
    assert at.sighted(mark) == 1


# restarts of an edge on a log of its own


@pytest_asyncio.fixture(loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    async with scripted(tools=[tool("note"), tool("pay")]) as server:
        yield server


async def test_a_question_survives_its_edge_and_a_used_answer_stays_used(tmp_path: Path, up: Scripted) -> None:
    mark = nonce()
    servers = {"up": {"url": up.url}}
    listen = f"127.0.0.1:{free_port()}"

    def seen() -> int:
        return sum(mark.encode() in one.body for one in up.seen)

    async with running_edge(tmp_path, servers, bundle=BUNDLE, listen=listen) as edge:
        alice = Person([edge])
        _, state = asked(await alice.call("up__note", {"words": mark}))
        told = refusal(await alice.call("up__note", {"words": mark}, can=NONE))
    async with running_edge(tmp_path, servers, bundle=BUNDLE, listen=listen) as edge:
        alice = Person([edge])
        assert refusal(await alice.call("up__note", {"words": mark}, can=NONE))["approval"] == told["approval"]
        standing = edge.edge.approvals.of("acme").get(told["approval"]["id"])
        assert standing is not None
        answer = await alice.call("up__note", {"words": mark}, can=FORM, state=state, responses=yes())
        assert mark in answer.text
        assert seen() == 1
    async with running_edge(tmp_path, servers, bundle=BUNDLE, listen=listen) as edge:
        stale = state_value(standing)  # the state lags behind the history
        await edge.log.append([Record("control-state", state_key("acme", standing.approval_id), stale)])
        alice = Person([edge])
        asked(await alice.call("up__note", {"words": mark}, state=state, responses=yes()))
        assert seen() == 1
        events = [one for one in await edge.place.events("calls") if isinstance(one, CallRequested)]
        assert Counter(one.decision for one in events) == Counter(ask=4, allow=1)
        await edge.place.chains_hold()
