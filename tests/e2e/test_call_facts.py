"""Rules over time, network, protocol and what a session has read, through the real front of one edge; and what the log
holds of it.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import LEGACY, MODERN, Answer, RunningEdge, Speaker, legacy_body, running_edge
from tests.parts.edge import until as edge_until
from tests.parts.radio import radio
from tests.parts.scripted import Scripted, Seen, Stream, http, progress, question, refusal, result, scripted, text, tool

from tidegate.events import CallCompleted, CallRequested, SessionTainted
from tidegate.policy.bundle import bundle_of
from tidegate.policy.replaying import Replayer, differs, past_of
from tidegate.policy.verdict import Verdict
from tidegate.sessions.port import SessionsUnavailable

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUNDLE = {
    "manifest.json": '{"v": 1, "name": "facts", "timezone": "Pacific/Kiritimati"}',
    "policies/p.cedar": """
@id("eng-all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("no-leak") @reason("This session has read private data, so nothing of it may be sent out.")
forbid (principal, action in Action::"egress", resource) when { context.taint.contains("read-private") };
@id("office") @reason("Only from the office.")
forbid (principal, action == Action::"up/office", resource)
unless { context.network.ip.isInRange(ip("203.0.113.0/24")) || context.network.ip == ip("2001:db8::7") };
@id("not-yet")
forbid (principal, action == Action::"up/later", resource) when { context.now < datetime("2100-01-01") };
@id("no-more")
forbid (principal, action == Action::"up/sooner", resource) when { context.now > datetime("2100-01-01") };
@id("hours") forbid (principal, action == Action::"up/hours", resource)
unless { context.time.hour >= 0 && context.time.hour < 24 && context.time.weekday >= 1 && context.time.weekday <= 7 };
@id("modern-only")
forbid (principal, action == Action::"up/fresh", resource) unless { context.protocol == "2026-07-28" };
@id("never") forbid (principal, action == Action::"up/never", resource);
""",
    "inspection.yaml": """
patterns:
  - {id: word, pattern: 'forbidden-word-[0-9]{4}', severity: high, arguments: block, result: block}
""",
}
NAMES = ("echo", "send", "people", "web", "office", "later", "sooner", "hours", "fresh", "never")
RULES = [
    {"server": "up", "tool": "send", "labels": ["egress"]},
    {"server": "up", "tool": "people", "labels": ["read-private"]},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    untrusted = tool("web", annotations={"openWorldHint": True, "readOnlyHint": True})
    async with scripted() as server:
        server.tools = [untrusted if name == "web" else tool(name) for name in NAMES]
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    root = tmp_path_factory.mktemp("facts")
    more: dict[str, Any] = {"rules": RULES, "trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}
    async with running_edge(root, {"up": {"url": up.url}}, bundle=BUNDLE, **more) as running:
        yield running


class Person(Speaker):
    """Whose window of modern calls is their own."""

    def calling_from(self, forwarded: str, name: str = "up__office", header: str = "X-Forwarded-For") -> bytes:
        request = self.calling(name)
        lines = "".join(f"{header}: {line}\r\n" for line in forwarded.split("\n"))
        return request.replace(b"\r\n", b"\r\n" + lines.encode(), 1)


@pytest.fixture
def person(edge: RunningEdge, request: pytest.FixtureRequest) -> Person:
    return Person(edge.place.listen, edge.place.token(user=f"{hash(request.node.name)}@example.com"))


def reason(answer: Answer) -> str:
    """Why the call was refused; "" where it was not."""
    if not answer.result.get("isError"):
        return ""
    return str(answer.result["_meta"]["tidegate/decision"]["reason"])


async def requests(edge: RunningEdge) -> dict[str, CallRequested]:
    return {event.call_id: event for event in await edge.place.events("calls") if isinstance(event, CallRequested)}


async def asked_last(edge: RunningEdge) -> CallRequested:
    return list((await requests(edge)).values())[-1]


async def tainted(edge: RunningEdge) -> list[SessionTainted]:
    return [event for event in await edge.place.events("sessions") if isinstance(event, SessionTainted)]


# network


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9:4711, 10.1.2.3", "203.0.113.9"),
        ("198.51.100.1\n203.0.113.9\n10.1.2.3", "203.0.113.9"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:0db8:0::7]:443", "2001:db8::7"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
async def test_a_rule_over_the_network_sees_the_caller_behind_trusted_proxies(
    edge: RunningEdge, person: Person, forwarded: str, address: str
) -> None:
    assert reason(await person.ask(person.calling_from(forwarded))) == ""
    assert (await asked_last(edge)).sealed.address == address


@pytest.mark.parametrize(
    ("forwarded", "address", "why"),
    [
        ("203.0.113.9, 198.51.100.1", "198.51.100.1", "forbidden-by-rule"),
        ("203.0.113.9\n198.51.100.1", "198.51.100.1", "forbidden-by-rule"),
        ("203.0.113.9, 198.51.100.1, 10.1.2.3", "198.51.100.1", "forbidden-by-rule"),
        ("203.0.113.9,", "", "evaluation-error"),
        ("203.0.113.9, unknown", "", "evaluation-error"),
        ('203.0.113.9, ip("203.0.113.9")', "", "evaluation-error"),
        ("203.0.113.9, 203.0.113.9/24", "", "evaluation-error"),
        ("203.0.113.9, " + "9" * 5_000, "", "evaluation-error"),
        ("203.0.113.9" + ", 10.1.2.3" * 500, "", "evaluation-error"),
    ],
)
async def test_a_forged_header_lets_nobody_in(
    edge: RunningEdge, person: Person, up: Scripted, forwarded: str, address: str, why: str
) -> None:
    before = len(up.calls("office"))
    assert reason(await person.ask(person.calling_from(forwarded))) == why
    assert (await asked_last(edge)).sealed.address == address
    assert reason(await person.ask(person.calling_from("for=203.0.113.9", header="Forwarded"))) == "evaluation-error"
    assert reason(await person.call("up__office")) == "evaluation-error", "a proxy that does not say whom it serves"
    assert (await asked_last(edge)).sealed.address == ""
    assert len(up.calls("office")) == before


async def test_without_trusted_proxies_no_header_is_believed(up: Scripted, tmp_path: Any) -> None:
    async with running_edge(tmp_path, {"up": {"url": up.url}}, bundle=BUNDLE) as alone:
        one = Person(alone.place.listen, alone.place.token())
        for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
            for words in ("203.0.113.9", "for=203.0.113.9"):
                assert reason(await one.ask(one.calling_from(words, header=header))) == "forbidden-by-rule"
        assert (await asked_last(alone)).sealed.address == "127.0.0.1"


async def test_of_forwarded_alone_where_that_is_the_header_of_the_proxies(up: Scripted, tmp_path: Any) -> None:
    more: dict[str, Any] = {"trusted_proxies": ["127.0.0.0/8"], "forwarded_header": "forwarded"}
    async with running_edge(tmp_path, {"up": {"url": up.url}}, bundle=BUNDLE, **more) as other:
        one = Person(other.place.listen, other.place.token())
        behind = 'for=198.51.100.1, for="203.0.113.9:80";proto=https'
        assert reason(await one.ask(one.calling_from(behind, header="Forwarded"))) == ""
        assert reason(await one.ask(one.calling_from("203.0.113.9"))) == "evaluation-error"


async def test_an_address_that_no_rule_looks_at_is_not_recorded(edge: RunningEdge, person: Person) -> None:
    assert reason(await person.ask(person.calling_from("203.0.113.9", "up__echo"))) == ""
    event = await asked_last(edge)
    assert (event.target, event.sealed.address, event.inputs.taint) == ("echo", "", ())


async def test_the_members_of_a_batch_have_the_address_of_their_connection(edge: RunningEdge, person: Person) -> None:
    await person.initialize("2025-03-26")
    params = {"name": "up__office", "arguments": {}}
    body = b"[%b]" % legacy_body("tools/call", params)
    headers = {"Mcp-Session-Id": person.session, "MCP-Protocol-Version": "2025-03-26"}
    for forwarded, allowed in (("203.0.113.9", True), ("203.0.113.9, 198.51.100.1", False)):
        answer = await person.ask(person.request(body, headers={**headers, "X-Forwarded-For": forwarded}))
        assert answer.json[0]["result"].get("isError", False) is not allowed
    assert (await asked_last(edge)).sealed.address == "198.51.100.1"


# time and protocol


async def test_rules_over_time_decide_by_the_clock_and_the_event_holds_the_moment(
    edge: RunningEdge, person: Person
) -> None:
    assert reason(await person.call("up__later")) == "forbidden-by-rule"
    event = await asked_last(edge)
    assert (event.rules, event.inputs.now_us) == (("not-yet",), event.requested_us)
    assert reason(await person.call("up__sooner")) == ""
    assert reason(await person.call("up__hours")) == ""


async def test_a_rule_over_the_protocol_sees_the_revision_that_is_spoken(edge: RunningEdge, person: Person) -> None:
    assert reason(await person.call("up__fresh")) == ""
    assert (await asked_last(edge)).protocol == MODERN
    await person.initialize()
    told = await person.ask(person.legacy("tools/call", {"name": "up__fresh", "arguments": {}}))
    assert reason(told) == "forbidden-by-rule"
    assert (await asked_last(edge)).protocol == LEGACY


async def test_what_some_circumstances_allow_is_listed_and_told_from_what_none_does(
    edge: RunningEdge, person: Person
) -> None:
    await person.call("up__people")  # nor does it matter what the session has read
    listed = {one["name"] for one in (await person.ask(person.modern("tools/list"))).result["tools"]}
    assert listed == {f"up__{name}" for name in NAMES if name != "never"}
    for name in ("send", "later"):
        assert reason(await person.call(f"up__{name}")) == "forbidden-by-rule"
    assert reason(await person.ask(person.calling_from("198.51.100.1"))) == "forbidden-by-rule"
    assert "Unknown tool" in (await person.call("up__never")).error["message"]


# taint


async def test_who_has_read_private_data_sends_nothing_out(edge: RunningEdge, person: Person, up: Scripted) -> None:
    assert reason(await person.call("up__send")) == ""
    assert (await asked_last(edge)).inputs.taint == ()
    assert reason(await person.call("up__people")) == ""
    reached = len(up.calls("send"))
    for _ in range(2):
        told = await person.call("up__send")
        assert reason(told) == "forbidden-by-rule"
        assert "nothing of it may be sent out" in told.text
    event = await asked_last(edge)
    assert (event.rules, event.inputs.taint, len(up.calls("send"))) == (("no-leak",), ("read-private",), reached)


async def test_a_taint_is_recorded_once_for_each_session_and_label(edge: RunningEdge, person: Person) -> None:
    before = len(await tainted(edge))
    for name in ("people", "people", "web", "people", "web", "send"):
        await person.call(f"up__{name}")
    found = (await tainted(edge))[before:]
    assert [event.labels for event in found] == [("read-private",), ("returns-untrusted",)]
    calls = await requests(edge)
    for event, name in zip(found, ("people", "web"), strict=True):
        call = calls[event.call_id]
        assert (call.target, event.target, event.server) == (name, name, "up")
        assert (event.session_id, event.subject_id, event.agent) == (call.session_id, call.subject_id, call.agent)
    assert (await asked_last(edge)).inputs.taint == ("read-private", "returns-untrusted")


async def test_sessions_do_not_share_their_taint(edge: RunningEdge, person: Person) -> None:
    await person.initialize()
    calling = {name: person.legacy("tools/call", {"name": f"up__{name}", "arguments": {}}) for name in NAMES}
    assert reason(await person.ask(calling["people"])) == ""
    assert reason(await person.ask(calling["send"])) == "forbidden-by-rule"
    assert reason(await person.call("up__send")) == "", "the same person's modern calls are a session of their own"
    second = edge.place.speaker(user="another@example.com")
    await second.initialize()
    assert reason(await second.ask(second.legacy("tools/call", {"name": "up__send", "arguments": {}}))) == ""


async def test_what_never_came_taints_nothing_and_an_error_that_came_does(
    edge: RunningEdge, person: Person, up: Scripted
) -> None:
    async def blocked(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(result(seen, text("it holds forbidden-word-4711"))))

    async def broken(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def failing(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(refusal(seen, -32000, "row 5 says 4,711")))

    try:
        for behaviour, taints in ((blocked, False), (broken, False), (failing, True)):
            up.behaviours["people"] = behaviour
            answer = await person.call("up__people")
            assert "error" in answer.json or answer.result["isError"]
            assert (reason(await person.call("up__send")) == "forbidden-by-rule") is taints
    finally:
        del up.behaviours["people"]


async def test_nothing_that_a_server_says_meanwhile_reaches_the_client_before_its_session_is_tainted(
    edge: RunningEdge, person: Person, up: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, goes_on = asyncio.Event(), asyncio.Event()
    taint = edge.edge.sessions.taint

    async def slow_taint(*given: Any) -> frozenset[str]:
        await goes_on.wait()
        fresh = await taint(*given)
        noted.set()
        return fresh

    async def telling(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        stream = Stream(writer)
        token = seen.params["_meta"]["progressToken"]
        for number in range(3):
            await stream.send(progress(number, token))
        await noted.wait()
        await stream.send(progress(3, token))
        await stream.send(result(seen, text("done")))
        stream.end()

    monkeypatch.setattr(edge.edge.sessions, "taint", slow_taint)
    monkeypatch.setitem(up.behaviours, "people", telling)
    client = await person.connect()
    try:
        params = {"name": "up__people", "arguments": {}, "_meta": {"progressToken": "mine"}}
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
            "progressToken": "mine",
        }
        client.write(person.modern("tools/call", {**params, "_meta": meta}))
        await up.until_seen(lambda one: one.method == "tools/call" and b"progressToken" in one.body)
        with pytest.raises(TimeoutError):
            await client.stream(timeout_s=0.3)
        goes_on.set()
        await client.stream()
        told = [event.json for event in await client.events()]
    finally:
        client.close()
    assert [one["params"]["progress"] for one in told[:-1]] == [0, 1, 2, 3]
    assert told[-1]["result"]["content"][0]["text"] == "done"


async def test_where_the_taint_cannot_be_noted_the_answer_is_kept_back(
    edge: RunningEdge, person: Person, up: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_given: Any) -> frozenset[str]:
        raise SessionsUnavailable("the session store at nowhere did not answer")

    monkeypatch.setattr(edge.edge.sessions, "taint", away)
    told = await person.call("up__people", {"nonce": "kept back"})
    assert (reason(told), told.result["isError"]) == ("facts-unavailable", True)
    assert "The call was carried out" in told.text
    assert "kept back" not in told.text.replace("its answer is kept back", "")
    (_,), (ended,) = await edge.place.calls("kept back")
    assert (ended.outcome, ended.reason) == ("blocked", "facts-unavailable")
    monkeypatch.undo()
    assert reason(await person.call("up__send")) == "", "what it was not told, it has not read"


async def test_a_rule_over_a_taint_that_nobody_can_tell_refuses(
    edge: RunningEdge, person: Person, up: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_given: Any) -> frozenset[str]:
        raise SessionsUnavailable("the session store at nowhere did not answer")

    reached = len(up.calls("send"))
    monkeypatch.setattr(edge.edge.sessions, "known_taint", lambda *_given: None)
    monkeypatch.setattr(edge.edge.sessions, "taint_of", away)
    told = await person.call("up__send")
    assert reason(told) == "facts-unavailable"
    assert "Try again shortly" in told.text
    assert (await asked_last(edge)).stage == "policy"
    assert len(up.calls("send")) == reached
    assert reason(await person.call("up__echo")) == "", "no rule asks for it here"
    assert reason(await person.ask(person.calling_from("203.0.113.9"))) == ""


async def test_what_a_server_says_outside_of_calls_taints_the_session_that_hears_it(
    up: Scripted, tmp_path: Any
) -> None:
    async def blocked(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(
            http(result(seen, text("forbidden-word-4711")), headers=f"mcp-session-id: {server.sessions[-1]}\r\n")
        )

    async with radio("sessions") as news:
        news.behaviours["echo"] = blocked
        servers = {"up": {"url": up.url}, "news": {"url": news.url, "labels": ["read-private"]}}
        async with running_edge(tmp_path, servers, bundle=BUNDLE, rules=RULES) as other:
            one = Person(other.place.listen, other.place.token())
            await one.initialize()
            given = {"Accept": "text/event-stream", "MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": one.session}
            client = await one.connect()
            client.write(one.request(b"", verb="GET", headers={**given, "Content-Type": "", "Content-Length": ""}))
            await client.stream()
            calling = {
                name: one.legacy("tools/call", {"name": name, "arguments": {}}) for name in ("news__echo", "up__send")
            }
            session = await news.session_of(lambda: one.ask(calling["news__echo"]))
            assert reason(await one.ask(calling["up__send"])) == "", "a blocked answer has told it nothing"
            await edge_until(lambda: session in news.listening)
            for words in ("salaries: 4,711", "and more"):
                news.say(session, "notifications/message", {"level": "info", "data": words})
            heard = [(await client.event()) for _ in range(2)]
            assert [event.json["params"]["data"] for event in heard if event] == ["salaries: 4,711", "and more"]
            assert reason(await one.ask(calling["up__send"])) == "forbidden-by-rule"
            (event,) = await tainted(other)
            assert (event.labels, event.server, event.call_id) == (("read-private",), "news", "")

            taints: Any = other.edge.sessions.taint.__self__  # type: ignore[attr-defined]  # it is a bound method
            taints.forget(event.tenant, event.session_id)
            assert reason(await one.ask(calling["up__send"])) == "", "the store has lost the mark"
            news.say(session, "notifications/message", {"level": "info", "data": "salaries again"})
            again = await client.event()
            assert again
            assert again.json["params"]["data"] == "salaries again"
            assert reason(await one.ask(calling["up__send"])) == "forbidden-by-rule", "and has it again"
            client.close()


@pytest.mark.parametrize("reads", [True, False])
async def test_an_answer_stays_here_where_the_session_read_something_while_the_question_was_open(
    up: Scripted, tmp_path: Any, reads: bool
) -> None:
    async def asking(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        stream = Stream(writer)
        await stream.send(question("q", message="what do they earn?", requestedSchema={"type": "object"}))
        told = await server.answer_to("q")
        await stream.send(result(seen, text("error" if "error" in told else "sent " + str(told["result"]))))
        stream.end()

    async with scripted("sessions", tools=[tool("echo")], behaviours={"echo": asking}) as out:
        servers = {"up": {"url": up.url}, "out": {"url": out.url, "labels": ["egress"]}}
        async with running_edge(tmp_path, servers, bundle=BUNDLE, rules=RULES) as other:
            one = Person(other.place.listen, other.place.token())
            await one.initialize(capabilities={"elicitation": {}})
            client = await one.connect()
            client.write(one.legacy("tools/call", {"name": "out__echo", "arguments": {}}))
            await client.stream()
            asked = await client.event()
            while asked is not None and not asked.data:  # what primes the client to come back
                asked = await client.event()
            assert asked is not None
            if reads:
                reading = one.legacy("tools/call", {"name": "up__people", "arguments": {}})
                assert reason(await one.ask(reading)) == ""
            answer = {
                "jsonrpc": "2.0",
                "id": asked.json["id"],
                "result": {"action": "accept", "content": {"sum": 4711}},
            }
            headers = {"Mcp-Session-Id": one.session, "MCP-Protocol-Version": LEGACY}
            assert (await one.ask(one.request(json.dumps(answer).encode(), headers=headers))).status == 202
            told = [event.json for event in await client.events()][-1]
            client.close()
            assert ("4711" in told["result"]["content"][0]["text"]) is not reads
            assert ("4711" in str([seen.body for seen in out.seen])) is not reads
            ended = [event for event in await other.place.events("calls") if isinstance(event, CallCompleted)]
            (question_ended,) = [event for event in ended if event.method == "elicitation/create"]
            expected = ("blocked", "forbidden-by-rule") if reads else ("ok", "granted")
            assert (question_ended.outcome, question_ended.reason) == expected


async def test_every_recorded_decision_is_made_again_from_what_its_event_holds(
    edge: RunningEdge, person: Person
) -> None:
    for name in NAMES:
        await person.ask(person.calling_from("203.0.113.9", f"up__{name}"))
    await person.call("up__send")
    replayer = Replayer(bundle_of({path: content.encode() for path, content in BUNDLE.items()}))
    pasts = [past_of(event, event.sealed) for event in (await requests(edge)).values()]
    again = [(past, replayer.decide(past)) for past in pasts]
    compared = [(past.action, differs(past, now)) for past, now in again if isinstance(now, Verdict)]
    assert [one for one in compared if one[1]] == []
    assert {past.action for past, now in again if isinstance(now, Verdict)} >= {*NAMES}
    blank = {(past.reason, now) for past, now in again if not isinstance(now, Verdict)}
    assert blank <= {("facts-unavailable", "elsewhere"), ("unknown-tool", "elsewhere")}
