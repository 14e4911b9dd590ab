"""Long-lived streams of a real edge: GET with what servers say and ask, resumption, and subscriptions/listen."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import BLOCKED, BUNDLE, MODERN, SECRET, Client, RunningEdge, Speaker, running_edge, until
from tests.parts.radio import Radio, radio

from tidegate.events import CallRequested, QuarantineImposed, SessionOpened
from tidegate.ids import now_us, uuid7
from tidegate.limits import NOTIFICATION_BYTES_MAX, QUESTION_BYTES_MAX
from tidegate.policy.bundle import bundle_of
from tidegate.policy.replaying import Replayer, past_of
from tidegate.policy.verdict import Verdict
from tidegate_edge import outlet, streams
from tidegate_edge.announcements import Announcement, ChangeKind

pytestmark = pytest.mark.asyncio(loop_scope="module")
TAG = "io.modelcontextprotocol/subscriptionId"
LIMITS = {"streams_per_subject_max": 6, "drain_timeout_s": 5.0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def old() -> AsyncIterator[Radio]:
    async with radio("sessions") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def new() -> AsyncIterator[Radio]:
    async with radio("modern") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(old: Radio, new: Radio, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    servers = {"old": {"url": old.url}, "new": {"url": new.url}}
    async with running_edge(tmp_path_factory.mktemp("streams"), servers, limits=LIMITS) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def speaker(edge: RunningEdge) -> AsyncIterator[Speaker]:
    """A legacy client in a session of its own."""
    speaking = edge.place.speaker()
    await speaking.initialize(capabilities={"elicitation": {}, "roots": {}})
    yield speaking
    await until(lambda: not edge.server.server_state.connections)
    await until(lambda: len(edge.edge.streams) == 0)


def get(speaker: Speaker, **headers: str) -> bytes:
    given = {"Accept": "text/event-stream", "MCP-Protocol-Version": "2025-11-25", "Mcp-Session-Id": speaker.session}
    return speaker.request(b"", verb="GET", headers={**given, "Content-Type": "", "Content-Length": "", **headers})


@contextlib.asynccontextmanager
async def streaming(speaker: Speaker, request: bytes) -> AsyncIterator[Client]:
    client = await speaker.connect()
    client.write(request)
    head = await client.stream()
    assert head.status == 200, head.body
    assert head.headers["content-type"] == "text/event-stream"
    try:
        yield client
    finally:
        client.close()


async def next_json(client: Client, timeout_s: float = 10.0) -> Any:
    event = await client.event(timeout_s)
    assert event is not None
    return event.json


async def silent(client: Client, for_s: float = 0.15) -> None:
    with pytest.raises(TimeoutError):
        await client.event(for_s)


def quarantine(server: str) -> QuarantineImposed:
    return QuarantineImposed(
        id=uuid7(),
        time_us=now_us(),
        tenant="acme",
        region="local",
        quarantine_id="q-1",
        scope="server",
        value=server,
        reason="a test",
        actor="tests",
    )


def tell(edge: RunningEdge, server: str, kind: ChangeKind, uri: str = "", tenant: str = "acme") -> None:
    edge.edge.announcements.tell(Announcement(tenant, server, kind, uri))


# GET: who gets a stream


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Accept": "application/json"}, 406),
        ({"Accept": ""}, 406),
        ({"Mcp-Session-Id": ""}, 400),
        ({"Mcp-Session-Id": "garbage"}, 404),
        ({"MCP-Protocol-Version": MODERN}, 405),
        ({"MCP-Protocol-Version": "1999-01-01"}, 400),
        ({"Last-Event-ID": "garbage"}, 400),
        ({"Last-Event-ID": "e1_" + "A" * 22 + ".1-0"}, 400),
        ({"Authorization": "Bearer nonsense"}, 401),
    ],
)
async def test_a_get_that_is_no_session_s_is_refused(speaker: Speaker, headers: dict[str, str], status: int) -> None:
    assert (await speaker.ask(get(speaker, **headers))).status == status


async def test_a_session_s_stream_is_nobody_else_s(edge: RunningEdge, speaker: Speaker) -> None:
    other = edge.place.speaker(user="bob@example.com")
    other.session = speaker.session
    assert (await other.ask(get(other))).status == 404


async def test_streams_are_bounded_for_each_subject(edge: RunningEdge) -> None:
    carol = edge.place.speaker(user="carol@example.com")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(LIMITS["streams_per_subject_max"]):  # type: ignore[call-overload]
            await carol.initialize()
            await stack.enter_async_context(streaming(carol, get(carol)))
        assert (await carol.ask(get(carol))).status == 429
        dave = edge.place.speaker(user="dave@example.com")
        await dave.initialize()
        async with streaming(dave, get(dave)):
            assert len(edge.edge.streams) == LIMITS["streams_per_subject_max"] + 1
    await until(lambda: len(edge.edge.streams) == 0)


async def test_a_second_stream_of_a_session_takes_the_place_of_the_first(edge: RunningEdge, speaker: Speaker) -> None:
    async with streaming(speaker, get(speaker)) as first, streaming(speaker, get(speaker)) as second:
        assert await first.events() == []
        tell(edge, "old", "tools")
        assert (await next_json(second))["method"] == "notifications/tools/list_changed"


async def test_a_deleted_session_s_stream_ends(speaker: Speaker) -> None:
    async with streaming(speaker, get(speaker)) as client:
        gone = speaker.request(b"", verb="DELETE", headers={"Mcp-Session-Id": speaker.session})
        assert (await speaker.ask(gone)).status == 200
        assert await client.events() == []


async def test_a_stream_ends_with_the_token_it_was_opened_under(edge: RunningEdge) -> None:
    speaker = Speaker(edge.settings.listen, edge.place.token(ttl_s=3))
    await speaker.initialize()
    async with streaming(speaker, get(speaker)) as client:
        told = await client.events(15)  # ends; an edge that has just started may still tell of lists
        assert all(one.json["method"].endswith("list_changed") for one in told)


# GET: what is heard


async def test_changes_of_lists_are_told_once_each_where_the_client_can_see_the_server(
    edge: RunningEdge, speaker: Speaker
) -> None:
    stranger = edge.place.speaker(user="eve@example.com", groups=("other",))
    await stranger.initialize()
    async with streaming(speaker, get(speaker)) as client, streaming(stranger, get(stranger)) as blind:
        for server in ("old", "new", "old", "elsewhere"):
            tell(edge, server, "tools")
        tell(edge, "elsewhere", "prompts")
        tell(edge, "old", "resources", tenant="another")
        assert await next_json(client) == {"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {}}
        await silent(client)
        await silent(blind)


async def test_what_a_server_says_in_the_session_s_own_session_is_heard(
    edge: RunningEdge, speaker: Speaker, old: Radio
) -> None:
    async with streaming(speaker, get(speaker)) as client:
        session = await old.session_of(lambda: speaker.ask(speaker.legacy("tools/call", {"name": "old__echo"})))
        await until(lambda: session in old.listening)
        old.say(session, "notifications/message", {"level": "info", "data": f"key {SECRET}"})
        heard = await next_json(client)
        assert heard["method"] == "notifications/message"
        assert SECRET not in json.dumps(heard)
        old.say(session, "notifications/message", {"level": "info", "data": BLOCKED})
        old.say(session, "notifications/message", {"level": "info", "data": "a" * NOTIFICATION_BYTES_MAX})
        old.say(session, "notifications/message", {"level": "info", "data": "last"})
        assert (await next_json(client))["params"]["data"] == "last"
        assert edge.edge.counters.refused_requests["notification-too-large"] == 1


async def test_log_messages_below_the_session_s_level_are_not_passed_on(speaker: Speaker, old: Radio) -> None:
    async with streaming(speaker, get(speaker)) as client:
        session = await old.session_of(lambda: speaker.ask(speaker.legacy("tools/call", {"name": "old__echo"})))
        await until(lambda: session in old.listening)
        assert (await speaker.ask(speaker.legacy("logging/setLevel", {"level": "error"}))).result == {}
        old.say(session, "notifications/message", {"level": "warning", "data": "quiet"})
        old.say(session, "notifications/message", {"level": "error", "data": "loud"})
        assert (await next_json(client))["params"]["data"] == "loud"


async def test_a_server_s_question_outside_of_a_request_is_put_on_the_stream_and_recorded(
    edge: RunningEdge, speaker: Speaker, old: Radio
) -> None:
    async with streaming(speaker, get(speaker)) as client:
        session = await old.session_of(lambda: speaker.ask(speaker.legacy("tools/call", {"name": "old__echo"})))
        await until(lambda: session in old.listening)
        nonce = "question-of-radio-1"
        old.ask(session, "elicitation/create", {"message": nonce, "requestedSchema": {"type": "object"}}, 77)
        asked = await next_json(client)
        assert (asked["method"], asked["params"]["message"]) == ("elicitation/create", nonce)
        assert asked["id"] != 77
        stolen = edge.place.speaker(user="bob@example.com")
        await stolen.initialize()
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "accept", "content": {}}}
        raw = json.dumps(answer).encode()
        refused = stolen.request(raw, headers={"Mcp-Session-Id": stolen.session})
        assert (await stolen.ask(refused)).status == 400
        mine = speaker.request(raw, headers={"Mcp-Session-Id": speaker.session})
        assert (await speaker.ask(mine)).status == 202
        await until(lambda: any(one.get("id") == 77 for one in old.answers))
        assert next(one for one in old.answers if one.get("id") == 77)["result"]["action"] == "accept"
        events = await edge.place.events("calls")
        recorded = [one for one in events if isinstance(one, CallRequested) and one.method == "elicitation/create"]
        assert [one.server for one in recorded if nonce.encode() in bytes(one.sealed.arguments)] == ["old"]


async def test_a_question_that_is_too_large_is_answered_by_the_gateway(speaker: Speaker, old: Radio) -> None:
    async with streaming(speaker, get(speaker)) as client:
        session = await old.session_of(lambda: speaker.ask(speaker.legacy("tools/call", {"name": "old__echo"})))
        await until(lambda: session in old.listening)
        old.ask(session, "elicitation/create", {"message": "a" * QUESTION_BYTES_MAX}, 78)
        await until(lambda: any(one.get("id") == 78 for one in old.answers))
        told = next(one for one in old.answers if one.get("id") == 78)["error"]["message"]
        assert told == f"a question has {QUESTION_BYTES_MAX} bytes at most"
        await silent(client)


BY_TOOLS = """
@id("echo") permit (principal in Group::"eng", action == Action::"old/echo", resource);
"""
BY_KIND = """
@id("all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("no-forms") @reason("Servers do not ask people by themselves.")
forbid (principal, action in Action::"question", resource) when { context.args.method == "elicitation/create" };
"""
WITH_APPROVAL = """
@id("all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("look") @effect("ask") @approver("leads") forbid (principal, action == Action::"old/questions/ask", resource);
"""
BY_TAINT = """
@id("all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("clean") forbid (principal, action in Action::"question", resource) when { !context.taint.isEmpty() };
@id("narrow") forbid (principal, action == Action::"old/questions/ask", resource) when { context.args has uri };
"""


@pytest.mark.parametrize(
    ("rules", "reason", "deciding"),
    [
        (BY_TOOLS, "tool-not-granted", ()),
        (BY_KIND, "forbidden-by-rule", ("no-forms",)),
        (WITH_APPROVAL, "question-needs-approval", ("look",)),
        (BY_TAINT, "", ("all",)),
    ],
)
async def test_the_rules_decide_on_what_a_server_asks_outside_of_a_request(
    edge: RunningEdge, speaker: Speaker, old: Radio, rules: str, reason: str, deciding: tuple[str, ...]
) -> None:
    number = edge.edge.rulings["acme"].number
    nonce = f"unasked-{reason}"
    params = {"message": nonce, "requestedSchema": {"type": "object"}}
    async with streaming(speaker, get(speaker)) as client:
        session = await old.session_of(lambda: speaker.ask(speaker.legacy("tools/call", {"name": "old__echo"})))
        await until(lambda: session in old.listening)
        files = BUNDLE | {"policies/p.cedar": rules}
        await edge.publish(files, number + 1)
        try:
            asked_id = 900 + number
            old.ask(session, "elicitation/create", params, asked_id)
            if not reason:
                asked = await next_json(client)
                while asked.get("method") != "elicitation/create":
                    asked = await next_json(client)
                answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}}
                mine = speaker.request(json.dumps(answer).encode(), headers={"Mcp-Session-Id": speaker.session})
                assert (await speaker.ask(mine)).status == 202
            await until(lambda: any(one.get("id") == asked_id for one in old.answers))
        finally:
            await edge.publish(BUNDLE, number + 2)
    told = next(one for one in old.answers if one.get("id") == asked_id)
    assert ("error" in told) is bool(reason)
    events = [one for one in await edge.place.events("calls") if isinstance(one, CallRequested)]
    asked_of = [one for one in events if one.method == "elicitation/create" and one.inputs.release == number + 1]
    [recorded] = asked_of
    assert (recorded.server, recorded.target, recorded.labels) == ("old", "", ("question",))
    assert (recorded.decision, recorded.rules) == ("deny" if reason else "allow", deciding)
    assert recorded.reason == (reason or "granted")
    again = Replayer(bundle_of({path: text.encode() for path, text in files.items()})).decide(
        past_of(recorded, recorded.sealed)
    )
    assert isinstance(again, Verdict)
    assert again.rules == recorded.rules


async def test_a_server_in_quarantine_is_not_heard(edge: RunningEdge, speaker: Speaker, old: Radio) -> None:
    async with streaming(speaker, get(speaker)) as client:
        session = await old.session_of(lambda: speaker.ask(speaker.legacy("tools/call", {"name": "old__echo"})))
        await until(lambda: session in old.listening)
        imposed = quarantine("old")
        quarantines = edge.edge.quarantines_of("acme")
        quarantines.apply(imposed)
        try:
            old.say(session, "notifications/message", {"level": "info", "data": "unheard"})
            await silent(client)
        finally:
            quarantines.drop(imposed.quarantine_id)
        old.say(session, "notifications/message", {"level": "info", "data": "heard"})
        assert (await next_json(client))["params"]["data"] == "heard"


async def test_updates_of_a_subscribed_resource_are_heard_and_of_no_other(
    edge: RunningEdge, speaker: Speaker, old: Radio
) -> None:
    async with streaming(speaker, get(speaker)) as client:
        answer = await speaker.ask(speaker.legacy("resources/subscribe", {"uri": "old://one"}))
        assert answer.result == {}, answer.body
        await until(lambda: bool(old.listening) and "old://one" in old.subscribed)
        session = old.sessions[-1]
        await until(lambda: session in old.listening)
        old.say(session, "notifications/resources/updated", {"uri": "old://two"})
        old.say(session, "notifications/resources/updated", {"uri": "old://one"})
        assert (await next_json(client))["params"] == {"uri": "old://one"}
        assert (await speaker.ask(speaker.legacy("resources/unsubscribe", {"uri": "old://one"}))).result == {}
        await until(lambda: session in old.listening)
        old.say(session, "notifications/resources/updated", {"uri": "old://one"})
        await silent(client)


async def test_a_legacy_client_hears_of_a_modern_server_s_resource(speaker: Speaker, new: Radio) -> None:
    async with streaming(speaker, get(speaker)) as client:
        answer = await speaker.ask(speaker.legacy("resources/subscribe", {"uri": "new://one"}))
        assert answer.result == {}, answer.body
        await until(lambda: any("new://one" in one for one in new.filters))
        new.updated("new://one")
        heard = await next_json(client)
        assert (heard["method"], heard["params"]["uri"]) == ("notifications/resources/updated", "new://one")


# resumption


async def test_the_rest_of_an_answer_is_fetched_after_the_stream_broke_off(
    speaker: Speaker, edge: RunningEdge, old: Radio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "OPENS_AFTER_S", 0.1)
    old.hold.clear()
    async with streaming(speaker, speaker.legacy("tools/call", {"name": "old__slow"}, request_id=5)) as client:
        priming = await client.event()
        assert priming is not None
        assert priming.id
    await until(lambda: old.holding > 0)
    async with streaming(speaker, get(speaker, **{"Last-Event-ID": priming.id})) as resumed:
        await silent(resumed)
        old.hold.set()
        answer = await resumed.event()
        assert answer is not None
        assert (answer.json["id"], answer.json["result"]["content"][0]["text"]) == (5, "slow")
        assert await resumed.event() is None
    async with streaming(speaker, get(speaker, **{"Last-Event-ID": priming.id})) as again:
        assert [one.json["id"] for one in await again.events()] == [5]


async def test_another_session_s_events_are_nobody_else_s(
    speaker: Speaker, edge: RunningEdge, old: Radio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "OPENS_AFTER_S", 0.1)
    old.hold.clear()
    async with streaming(speaker, speaker.legacy("tools/call", {"name": "old__slow"}, request_id=6)) as client:
        priming = await client.event()
        assert priming is not None
        for user in ("alice@example.com", "bob@example.com"):
            other = edge.place.speaker(user=user)
            await other.initialize()
            assert (await other.ask(get(other, **{"Last-Event-ID": priming.id}))).status == 400
        old.hold.set()
        assert [one.json["id"] for one in await client.events()] == [6]


async def test_a_slow_reader_of_kept_events_gets_all_of_them_and_little_waits_for_it(
    edge: RunningEdge, speaker: Speaker
) -> None:
    owner, stream = outlet.owner_of("acme", await session_id_of(edge, speaker)), "e1_" + "s" * 22
    for number in range(60):
        await edge.edge.sessions.keep(owner, stream, b'{"n":%d,"pad":"%b"}' % (number, b"x" * 100_000), 60.0)
    await edge.edge.sessions.finish(owner, stream, 60.0)
    client = await speaker.connect(receive_bytes=8_192)
    client.write(get(speaker, **{"Last-Event-ID": outlet.event_id_of(stream, "0-0")}))
    await client.stream()
    most = 0
    for number in range(60):
        (connection,) = edge.server.server_state.connections
        most = max(most, connection.transport.get_write_buffer_size())
        assert (await next_json(client))["n"] == number
    assert await client.event() is None
    assert most < 500_000
    client.close()


async def test_the_rest_of_a_stream_whose_edge_has_died_is_an_error(
    edge: RunningEdge, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WAIT_S", 0.1)
    owner, stream = outlet.owner_of("acme", await session_id_of(edge, speaker)), "dead_" + "s" * 22
    number = await edge.edge.sessions.keep(owner, stream, outlet.PRIMING + b'"call-7"', 60.0)
    for _ in range(2):
        asking = get(speaker, **{"Last-Event-ID": outlet.event_id_of(stream, number)})
        async with streaming(speaker, asking) as client:
            (answer,) = await client.events()
            assert (answer.json["id"], answer.json["error"]["code"]) == ("call-7", -32603)


async def session_id_of(edge: RunningEdge, speaker: Speaker) -> str:
    """Begins a session of the speaker's; its id, as the log has it."""
    before = {one.session_id for one in await edge.place.events("sessions") if isinstance(one, SessionOpened)}
    await speaker.initialize()
    after = {one.session_id for one in await edge.place.events("sessions") if isinstance(one, SessionOpened)}
    (session_id,) = after - before
    return session_id


# subscriptions/listen


def listening(speaker: Speaker, wanted: Any, request_id: Any = "sub-1") -> bytes:
    return speaker.modern("subscriptions/listen", {"notifications": wanted}, request_id=request_id)


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        [],
        "all",
        {"toolsListChanged": "yes"},
        {"promptsListChanged": 1},
        {"resourceSubscriptions": "x://1"},
        {"resourceSubscriptions": [1]},
        {"resourceSubscriptions": [f"x://{n}" for n in range(1_000)]},
    ],
)
async def test_a_filter_that_is_none_is_refused(speaker: Speaker, wanted: Any) -> None:
    answer = await speaker.ask(listening(speaker, wanted))
    assert (answer.status, answer.error["code"], answer.json["id"]) == (400, -32602, "sub-1")


@pytest.mark.parametrize("request_id", ["sub-1", 7])
async def test_the_first_frame_acknowledges_and_only_what_was_asked_for_is_sent(
    edge: RunningEdge, speaker: Speaker, request_id: Any
) -> None:
    wanted = {"toolsListChanged": True, "promptsListChanged": False, "taskIds": ["t"], "resourceSubscriptions": []}
    async with streaming(speaker, listening(speaker, wanted, request_id)) as client:
        acknowledged = await next_json(client)
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert acknowledged["params"] == {"notifications": {"toolsListChanged": True}, "_meta": {TAG: request_id}}
        tell(edge, "old", "prompts")
        tell(edge, "old", "resources")
        tell(edge, "old", "updated", "old://one")
        tell(edge, "old", "tools")
        changed = await next_json(client)
        assert changed["method"] == "notifications/tools/list_changed"
        assert changed["params"] == {"_meta": {TAG: request_id}}
        await silent(client)


async def test_a_server_s_own_word_reaches_the_listeners(edge: RunningEdge, speaker: Speaker, new: Radio) -> None:
    await until(lambda: bool(new.filters))
    async with streaming(speaker, listening(speaker, {"toolsListChanged": True})) as client:
        await next_json(client)
        new.changed("tools")
        assert (await next_json(client))["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize("name", ["old", "new"])
async def test_a_resource_of_either_era_is_subscribed_to_and_the_subscription_recorded(
    edge: RunningEdge, speaker: Speaker, old: Radio, new: Radio, name: str
) -> None:
    server, uri = {"old": old, "new": new}[name], f"{name}://watched"
    wanted = {"resourceSubscriptions": [uri, "nobody://has-this", uri]}
    async with streaming(speaker, listening(speaker, wanted)) as client:
        acknowledged = await next_json(client)
        assert acknowledged["params"]["notifications"] == {"resourceSubscriptions": [uri]}
        await until(lambda: uri in server.subscribed and bool(server.listening or server.filters))
        server.updated(f"{name}://other")
        server.updated(uri)
        heard = await next_json(client)
        assert heard["params"] == {"uri": uri, "_meta": {TAG: "sub-1"}}
    requested, completed = await edge.place.calls(uri)
    assert [(one.method, one.decision) for one in requested] == [("resources/subscribe", "allow")]
    assert [one.outcome for one in completed] == ["ok"]


async def test_a_resource_that_may_not_be_read_is_not_subscribed_to(edge: RunningEdge, old: Radio) -> None:
    stranger = edge.place.speaker(user="eve@example.com", groups=("other",))
    async with streaming(stranger, listening(stranger, {"resourceSubscriptions": ["old://one"]})) as client:
        assert (await next_json(client))["params"]["notifications"] == {}
    events = await edge.place.events("calls")
    denied = [one for one in events if isinstance(one, CallRequested) and one.method == "resources/subscribe"]
    assert denied[-1].decision == "deny"


async def test_what_a_listener_held_upstream_ends_with_it(speaker: Speaker, old: Radio) -> None:
    before = set(old.sessions)
    async with streaming(speaker, listening(speaker, {"resourceSubscriptions": ["old://watched"]})) as client:
        await next_json(client)
        await until(lambda: len(set(old.sessions) - before) == 1)
        await until(lambda: bool((set(old.sessions) - before) & set(old.listening)))
    await until(lambda: not set(old.sessions) - before)
    await until(lambda: not old.listening or set(old.listening) <= before)


async def test_a_drain_ends_listening_with_its_result_and_get_by_closing(tmp_path: Path) -> None:
    async with radio("modern") as server, running_edge(tmp_path, {"up": {"url": server.url}}) as running:
        speaker = running.place.speaker()
        await speaker.initialize()
        async with (
            streaming(speaker, get(speaker)) as standing,
            streaming(speaker, listening(speaker, {"toolsListChanged": True}, 9)) as client,
        ):
            await next_json(client)
            running.server.should_exit = True
            (result,) = await client.events()
            assert (result.json["id"], result.json["result"]["_meta"][TAG]) == (9, 9)
            assert result.json["result"]["resultType"] == "complete"
            assert await standing.events() == []
            assert await client.ended() == b""


# attacks


async def test_a_thousand_streams_opened_and_dropped_leave_nothing(edge: RunningEdge, speaker: Speaker) -> None:
    for _ in range(40):
        clients = [await speaker.connect() for _ in range(25)]
        for index, client in enumerate(clients):
            client.write(get(speaker) if index % 2 else listening(speaker, {"toolsListChanged": True}))
        for client in clients:
            client.close()
    await until(lambda: not edge.server.server_state.connections)
    await until(lambda: len(edge.edge.streams) == 0)
    assert not edge.edge.announcements._hearings
    assert not edge.edge.streams._standing
    async with streaming(speaker, get(speaker)) as client:
        tell(edge, "old", "tools")
        assert await next_json(client)


async def test_requests_behind_a_stream_on_one_connection_wait_and_harm_nothing(
    edge: RunningEdge, speaker: Speaker
) -> None:
    async with streaming(speaker, get(speaker)) as client:
        client.write(speaker.legacy("ping"))
        tell(edge, "old", "tools")
        assert (await next_json(client))["method"] == "notifications/tools/list_changed"
        async with streaming(speaker, get(speaker)):  # ends the first, whose connection then serves the ping
            assert await client.events() == []
            assert (await client.answer()).result == {}


async def test_a_flood_from_a_server_costs_one_stream_and_no_memory(
    edge: RunningEdge, speaker: Speaker, old: Radio
) -> None:
    client = await speaker.connect(receive_bytes=4_096)
    client.write(get(speaker))
    await until(lambda: len(edge.edge.streams) == 1)
    session = await old.session_of(lambda: speaker.ask(speaker.legacy("tools/call", {"name": "old__echo"})))
    await until(lambda: session in old.listening)
    for _ in range(400):
        old.say(session, "notifications/message", {"level": "info", "data": "x" * 50_000})
        await asyncio.sleep(0)
    await until(lambda: len(edge.edge.streams) == 0, 20)
    client.close()
    assert (await speaker.ask(speaker.legacy("ping"))).result == {}
