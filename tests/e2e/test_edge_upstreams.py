"""An edge before servers that misbehave: what the client is told, what is recorded, and what reached the server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import Answer, RunningEdge, Speaker, running_edge, until
from tests.parts.scripted import Scripted, Seen, http, result, scripted, text, tool

from tidegate.events import CallCompleted, CallRequested
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge.upstream.http import HttpUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
Writer = asyncio.StreamWriter
NAMES = ("up", "other", "legacy", "sessions")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ups() -> AsyncIterator[dict[str, Scripted]]:
    async with contextlib.AsyncExitStack() as stack:
        eras = {"up": "modern", "other": "modern", "legacy": "legacy", "sessions": "sessions"}
        yield {name: await stack.enter_async_context(scripted(era)) for name, era in eras.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(ups: dict[str, Scripted], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    servers = {name: {"url": up.url, "timeout_s": 2.0, "headers": {"X-Key": "k1"}} for name, up in ups.items()}
    limits = {"result_bytes_max": 50_000}
    async with running_edge(tmp_path_factory.mktemp("ups"), servers, limits=limits) as running:
        yield running


@pytest.fixture
def up(ups: dict[str, Scripted]) -> Any:
    yield ups["up"]
    ups["up"].behaviours.clear()


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


async def ended(edge: RunningEdge, nonce: str) -> CallCompleted:
    """The one completion of the one call with this nonce."""
    asked, done = await edge.place.calls(nonce)
    assert len(asked) == len(done) == 1
    return done[0]


def sighted(up: Scripted, nonce: str) -> int:
    return sum(nonce.encode() in seen.body for seen in up.calls())


def told_to(answer: Answer) -> tuple[bool, str]:
    return bool(answer.result.get("isError")), answer.text


# answers that are none


async def unauthorized(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http("no", 401, kind="text/plain"))


async def broken(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http("<html>oops</html>", 500, kind="text/html"))


async def not_json(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http(b'{"jsonrpc":"2.0","id":'))


async def web_page(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http("<html>", kind="text/html"))


async def huge(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http(result(seen, text("x" * 60_000))))


async def huge_headers(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http(result(seen, text("x")), headers="X: " + "y" * 100_000 + "\r\n"))


async def not_http(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.0\r\n\r\n")


async def another_id(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http({"jsonrpc": "2.0", "id": seen.message["id"] + 1000, "result": text("not yours")}))


async def error_of_another(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http({"jsonrpc": "2.0", "id": 123456, "error": {"code": 1, "message": "not yours"}}))


async def closed_midway(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http(result(seen, text("half")))[:-10])
    await writer.drain()
    writer.close()


async def closed_at_once(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.close()


async def array(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http(result(seen, [1, 2])))


async def duplicates(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"content":[1]}}' % seen.message["id"]))


async def bad_utf8(server: Scripted, seen: Seen, writer: Writer) -> None:
    body = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"\xff"}]}}' % seen.message["id"]
    writer.write(http(body))


async def lone_surrogate(server: Scripted, seen: Seen, writer: Writer) -> None:
    body = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"\\ud800"}]}}' % seen.message["id"]
    writer.write(http(body))


async def too_deep(server: Scripted, seen: Seen, writer: Writer) -> None:
    deep = b"[" * 500 + b"]" * 500
    writer.write(http(b'{"jsonrpc":"2.0","id":%d,"result":{"content":%b}}' % (seen.message["id"], deep)))


async def empty(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http("", 202))


async def stream_without_answer(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http('data: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n', kind="text/event-stream"))


@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        (unauthorized, "upstream-unauthorized", "credential"),
        (broken, "upstream-failed", "500"),
        (not_json, "upstream-malformed", "not valid JSON"),
        (web_page, "upstream-failed", "text/html"),
        (huge, "upstream-broken", "larger than 50000 bytes"),
        (huge_headers, "upstream-broken", "headers"),
        (not_http, "upstream-broken", "HTTP"),
        (another_id, "upstream-failed", ""),
        (error_of_another, "upstream-failed", ""),
        (closed_midway, "upstream-broken", "lost"),
        (closed_at_once, "upstream-broken", "lost"),
        (array, "upstream-malformed", ""),
        (duplicates, "upstream-malformed", "'content' appears twice"),
        (bad_utf8, "upstream-malformed", "UTF-8"),
        (lone_surrogate, "upstream-malformed", "not valid JSON"),
        (too_deep, "upstream-malformed", "nested"),
        (empty, "upstream-failed", "202"),
        (stream_without_answer, "upstream-failed", ""),
    ],
)
async def test_a_bad_answer_is_told_recorded_and_never_asked_for_again(
    edge: RunningEdge, up: Scripted, speaker: Speaker, behaviour: Any, reason: str, words: str
) -> None:
    nonce = f"bad-{behaviour.__name__}"
    up.behaviours["echo"] = behaviour
    answer = await speaker.call("up__echo", {"nonce": nonce})
    failed, sentence = told_to(answer)
    assert failed
    assert words in sentence
    assert "It may have been carried out" in sentence
    assert answer.result["_meta"]["tidegate/decision"]["reason"] == reason
    done = await ended(edge, nonce)
    assert (done.outcome, done.reason) == ("upstream-failed", reason)
    assert sighted(up, nonce) == 1
    assert (await speaker.call("other__echo", {"fine": True})).text == '{"fine": true}'
    up.behaviours.clear()
    assert (await speaker.call("up__echo", {"fine": 2})).text == '{"fine": 2}'


# answers in unusual forms


async def stream_left_open(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    progress = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}})
    answer = json.dumps(result(seen, text("streamed")))
    events = f": hi\r\n\r\nid: 1\r\ndata: {progress}\r\n\r\nevent: message\ndata: {answer}\n\n"
    for part in (events[:30], events[30:90], events[90:]):
        writer.write(f"{len(part.encode()):x}\r\n{part}\r\n".encode())
        await writer.drain()
    while not seen.is_gone:
        await asyncio.sleep(0.02)


async def in_chunks(server: Scripted, seen: Seen, writer: Writer) -> None:
    body = json.dumps(result(seen, text("chunked"))).encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    for byte in body:
        writer.write(b"1\r\n%c\r\n" % byte)
    writer.write(b"0\r\n\r\n")


async def until_the_end(server: Scripted, seen: Seen, writer: Writer) -> None:
    body = json.dumps(result(seen, text("to the end"))).encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" + body)
    await writer.drain()
    writer.close()


async def http_1_0(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(
        b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + json.dumps(result(seen, text("old"))).encode()
    )
    await writer.drain()
    writer.close()


async def continued(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + http(result(seen, text("after")))
    )


async def spaced(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(
        http(
            b' {"result" :  {"content":[{"type":"text","text":"spaced"}] } , "id":%d,"jsonrpc":"2.0" } '
            % seen.message["id"]
        )
    )


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (stream_left_open, "streamed"),
        (in_chunks, "chunked"),
        (until_the_end, "to the end"),
        (http_1_0, "old"),
        (continued, "after"),
        (spaced, "spaced"),
    ],
)
async def test_every_form_of_an_answer_is_read(
    edge: RunningEdge, up: Scripted, speaker: Speaker, behaviour: Any, words: str
) -> None:
    up.behaviours["echo"] = behaviour
    nonce = f"form-{behaviour.__name__}"
    answer = await speaker.ask(speaker.calling("up__echo", {"nonce": nonce}), timeout_s=1.5)
    assert (answer.text, answer.result["resultType"]) == (words, "complete")
    assert (await ended(edge, nonce)).outcome == "ok"
    up.behaviours.clear()
    assert (await speaker.call("up__echo", {"fine": 3})).text == '{"fine": 3}'


async def test_an_answer_that_nobody_asked_for_reaches_nobody(up: Scripted, speaker: Speaker) -> None:
    async def twice(server: Scripted, seen: Seen, writer: Writer) -> None:
        mine = http(result(seen, text("mine")))
        foreign = [
            http({"jsonrpc": "2.0", "id": seen.message["id"] + n, "result": text("foreign")}) for n in range(1, 4)
        ]
        writer.write(mine + b"".join(foreign))

    up.behaviours["echo"] = twice
    answers = [await speaker.call("up__echo", {"n": n}) for n in range(4)]
    assert [answer.text for answer in answers] == ["mine"] * 4
    up.behaviours.clear()
    many = await asyncio.gather(*[speaker.call("up__echo", {"n": n}) for n in range(20)])
    assert [answer.text for answer in many] == [f'{{"n": {n}}}' for n in range(20)]


async def test_an_idle_connection_that_the_server_closed_is_not_used(
    edge: RunningEdge, up: Scripted, speaker: Speaker
) -> None:
    async def then_close(server: Scripted, seen: Seen, writer: Writer) -> None:
        server.well(seen, writer)
        await writer.drain()
        writer.close()

    up.behaviours["echo"] = then_close
    for number in range(5):
        assert (await speaker.call("up__echo", {"n": number})).text == f'{{"n": {number}}}'


async def test_a_slow_server_costs_its_own_callers_alone(edge: RunningEdge, up: Scripted, speaker: Speaker) -> None:
    async def never(server: Scripted, seen: Seen, writer: Writer) -> None:
        while not seen.is_gone:
            await asyncio.sleep(0.02)

    up.behaviours["echo"] = never
    slow = asyncio.create_task(speaker.call("up__echo", {"nonce": "slow"}))
    await until(lambda: sighted(up, "slow") == 1)
    fast = await asyncio.gather(*[speaker.call("other__echo", {"n": n}) for n in range(20)])
    assert all(answer.text for answer in fast)
    assert not slow.done()
    failed, sentence = told_to(await slow)
    assert failed
    assert "time" in sentence
    assert (await ended(edge, "slow")).outcome == "timeout"
    assert sighted(up, "slow") == 1


async def test_a_server_that_is_not_there_was_not_called(tmp_path: Path) -> None:
    async with scripted() as gone:
        servers = {"up": {"url": gone.url}}
        async with running_edge(tmp_path, servers) as edge:
            speaker = edge.place.speaker()
            assert (await speaker.call("up__echo")).status == 200
            upstream = edge.edge.upstreams["up"]
            assert isinstance(upstream, HttpUpstream)
            for replica in upstream.replicas:
                replica.pool._port = 1
                replica.pool.close()
            failed, sentence = told_to(await speaker.call("up__echo", {"nonce": "absent"}))
            assert failed
            assert "It was not carried out" in sentence
            assert (await ended(edge, "absent")).reason == "upstream-unreachable"


# the eras


async def test_the_client_s_token_never_reaches_a_server(ups: dict[str, Scripted], speaker: Speaker) -> None:
    await speaker.initialize()
    for name in NAMES:
        await speaker.call(f"{name}__echo", {"nonce": "with-a-token"})
        await speaker.ask(speaker.legacy("tools/call", {"name": f"{name}__echo", "arguments": {}}))
    for one in ups.values():
        assert one.seen
        for request in one.seen:
            sent = repr(request.headers).encode() + request.body
            assert speaker.auth.encode() not in sent
            assert speaker.auth.split(".")[1].encode() not in sent
            assert speaker.session.encode() not in sent


@pytest.mark.parametrize("name", NAMES)
async def test_either_client_reaches_a_server_of_either_era(
    ups: dict[str, Scripted], speaker: Speaker, name: str
) -> None:
    modern = await speaker.call(f"{name}__echo", {"from": "modern"})
    assert (modern.text, modern.result["resultType"]) == ('{"from": "modern"}', "complete")
    await speaker.initialize()
    legacy = await speaker.ask(speaker.legacy("tools/call", {"name": f"{name}__echo", "arguments": {"from": "legacy"}}))
    assert legacy.text == '{"from": "legacy"}'
    assert "resultType" not in legacy.result
    seen = ups[name].calls()[-2:]
    for one in seen:
        assert one.params["name"] == "echo"
        assert one.headers["x-key"] == "k1"
        assert "authorization" not in one.headers
        if ups[name].era == "modern":
            assert (one.headers["mcp-protocol-version"], one.headers["mcp-method"]) == ("2026-07-28", "tools/call")
            assert one.headers["mcp-name"] == "echo"
            assert one.params["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
        else:
            assert one.headers["mcp-protocol-version"] == "2025-11-25"
            assert not [key for key in one.params.get("_meta", {}) if key.startswith("io.modelcontextprotocol/")]
            assert ("mcp-session-id" in one.headers) == (ups[name].era == "sessions")


async def test_the_clients_token_never_reaches_a_server(ups: dict[str, Scripted], speaker: Speaker) -> None:
    for name in NAMES:
        await speaker.call(f"{name}__echo")
        for seen in ups[name].seen:
            assert speaker.auth not in str(seen.headers)
            assert speaker.auth.encode() not in seen.body


async def test_each_principal_has_a_session_of_its_own(edge: RunningEdge, ups: dict[str, Scripted]) -> None:
    for user in ("carol@example.com", "dave@example.com"):
        for _ in range(2):
            await edge.place.speaker(user=user).call("sessions__echo", {"user": user})
    used = {
        user: {seen.headers["mcp-session-id"] for seen in ups["sessions"].calls() if user in str(seen.params)}
        for user in ("carol@example.com", "dave@example.com")
    }
    assert all(len(sessions) == 1 for sessions in used.values())
    assert used["carol@example.com"] != used["dave@example.com"]


async def test_an_ended_session_is_opened_again_and_the_call_sent_once_more(
    edge: RunningEdge, ups: dict[str, Scripted], speaker: Speaker
) -> None:
    up = ups["sessions"]
    await speaker.call("sessions__echo")
    up.sessions.clear()
    before = up.count("initialize")
    assert (await speaker.call("sessions__echo", {"nonce": "reopened"})).text == '{"nonce": "reopened"}'
    assert up.count("initialize") == before + 1
    assert sighted(up, "reopened") == 2  # 404 on a session: not executed
    assert (await ended(edge, "reopened")).outcome == "ok"


async def test_a_server_that_never_knows_its_sessions_is_asked_twice_at_most(
    edge: RunningEdge, ups: dict[str, Scripted], speaker: Speaker
) -> None:
    async def unknown(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.write(http("", 404))

    up = ups["sessions"]
    up.behaviours["echo"] = unknown
    try:
        assert told_to(await speaker.call("sessions__echo", {"nonce": "unknown-session"}))[0]
    finally:
        up.behaviours.clear()
    assert sighted(up, "unknown-session") == 2
    assert (await ended(edge, "unknown-session")).outcome == "upstream-failed"


async def minting(server: Scripted, seen: Seen, writer: Writer) -> None:
    server.sessions.append("for-the-probe")
    refused = {"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": -32601, "message": "what?"}}
    writer.write(http(refused, 200, headers="mcp-session-id: for-the-probe\r\n"))


async def test_a_session_that_was_minted_for_the_probe_is_ended(tmp_path: Path) -> None:
    async with scripted("sessions", behaviours={"server/discover": minting}) as up:
        async with running_edge(tmp_path, {"up": {"url": up.url}}) as edge:
            assert (await edge.place.speaker().call("up__echo", {"a": 1})).text == '{"a": 1}'
        deleted = [seen.headers.get("mcp-session-id") for seen in up.seen if seen.verb == "DELETE"]
        assert deleted == ["for-the-probe"]


@pytest.mark.parametrize(
    "answer",
    [{"protocolVersion": "1999-01-01"}, {"protocolVersion": "2025-11-25\r\nevil: 1"}, {"protocolVersion": 7}, [], "x"],
)
async def test_a_malformed_initialize_is_a_fault_of_the_server_and_the_call_was_not_made(
    edge: RunningEdge, ups: dict[str, Scripted], answer: Any
) -> None:
    async def initialize(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.write(http(result(seen, answer)))

    up = ups["legacy"]
    up.behaviours["initialize"] = initialize
    user = f"{abs(hash(str(answer)))}@example.com"
    try:
        failed, sentence = told_to(await edge.place.speaker(user=user).call("legacy__echo", {"nonce": user}))
    finally:
        up.behaviours.clear()
    assert failed
    assert "It was not carried out" in sentence
    assert (await ended(edge, user)).outcome == "upstream-failed"
    assert sighted(up, user) == 0


async def test_a_modern_server_s_question_reaches_a_modern_client(up: Scripted, speaker: Speaker) -> None:
    async def asks(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.write(http(result(seen, {"resultType": "input_required", "inputRequests": {}, "requestState": "s"})))

    up.behaviours["echo"] = asks
    assert (await speaker.call("up__echo")).result["resultType"] == "input_required"


async def test_arguments_that_a_tool_wants_in_headers_are_sent_there(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}, "note": {"type": "string"}},
    }
    async with (
        scripted(tools=[tool("query") | {"inputSchema": schema}]) as up,
        running_edge(tmp_path, {"up": {"url": up.url}}) as edge,
    ):
        speaker = edge.place.speaker()
        await speaker.initialize()
        for region in ("eu-1", "zürich\r\nevil: 1"):
            params = {"name": "up__query", "arguments": {"region": region, "note": "x"}}
            await speaker.ask(speaker.legacy("tools/call", params))
        plain, encoded = up.calls("query")
        assert plain.headers["mcp-param-region"] == "eu-1"
        assert encoded.headers["mcp-param-region"].startswith("=?base64?")
        assert "evil" not in encoded.headers


@pytest.mark.parametrize(
    ("header", "is_sent"), [("eu-1", True), ("=?base64?ZXUtMQ==?=", True), ("us-2", False), (None, False)]
)
async def test_a_modern_client_s_parameter_headers_must_agree_with_its_arguments(
    tmp_path: Path, header: str | None, is_sent: bool
) -> None:
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    async with (
        scripted(tools=[tool("query") | {"inputSchema": schema}]) as up,
        running_edge(tmp_path, {"up": {"url": up.url}}) as edge,
    ):
        speaker = edge.place.speaker()
        params = {"name": "up__query", "arguments": {"region": "eu-1"}}
        given = {} if header is None else {"Mcp-Param-Region": header}
        answer = await speaker.ask(speaker.modern("tools/call", params, headers=given))
        assert len(up.calls("query")) == is_sent
        assert answer.status == (200 if is_sent else 400)
        if not is_sent:
            assert json.loads(answer.body)["error"]["code"] == -32020


async def test_callers_past_the_connections_wait_no_longer_than_a_call(tmp_path: Path) -> None:
    async def never(server: Scripted, seen: Seen, writer: Writer) -> None:
        while not seen.is_gone:
            await asyncio.sleep(0.02)

    async with scripted(behaviours={"echo": never}) as up:
        servers = {"up": {"url": up.url, "timeout_s": 1.0}}
        async with running_edge(tmp_path, servers, limits={"upstream_connections_max": 2}) as edge:
            speaker = edge.place.speaker()
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            answers = await asyncio.gather(*[speaker.call("up__echo", {"n": n}) for n in range(12)])
            assert loop.time() - began_s < 4
            reasons = [answer.result["_meta"]["tidegate/decision"]["reason"] for answer in answers]
            assert set(reasons) <= {"upstream-timeout", "upstream-busy"}
            assert all(answer.result["isError"] for answer in answers)


async def test_a_fault_of_ours_while_forwarding_ends_the_call_in_the_log(
    edge: RunningEdge, ups: dict[str, Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(key: object) -> None:
        raise SessionsUnavailable("the session store is away")

    monkeypatch.setattr(edge.edge.sessions, "get_upstream", away)
    speaker = edge.place.speaker(user="nobody-yet@example.com")
    failed, sentence = told_to(await speaker.call("sessions__echo", {"nonce": "store-away"}))
    assert failed
    assert "It was not carried out" in sentence
    assert (await ended(edge, "store-away")).reason == "sessions-unavailable"
    assert sighted(ups["sessions"], "store-away") == 0


async def test_a_caller_that_leaves_before_the_record_is_durable_gets_nothing_sent(
    edge: RunningEdge, up: Scripted, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = edge.edge.recorder
    reached, record = asyncio.Event(), recorder.record

    async def slowly(event: Any, mode: Any) -> None:
        await record(event, mode)
        if isinstance(event, CallRequested):
            reached.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(recorder, "record", slowly)
    client = await speaker.connect()
    client.write(speaker.calling("up__echo", {"nonce": "left-early"}))
    await asyncio.wait_for(reached.wait(), 5)
    client.close()

    async def recorded() -> bool:
        return [one.outcome for one in (await edge.place.calls("left-early"))[1]] == ["cancelled"]

    await until(recorded)
    assert sighted(up, "left-early") == 0


async def test_a_defect_costs_one_request_and_the_connection_stays_in_step(
    edge: RunningEdge, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = edge.edge.verifier.verify_cached
    faults = iter([True, False])

    def sometimes(token: bytes, at_us: int) -> Any:
        if next(faults, False):
            raise RuntimeError("a defect")
        return verify(token, at_us)

    await speaker.call("up__echo")
    monkeypatch.setattr(edge.edge.verifier, "verify_cached", sometimes)
    client = await speaker.connect()
    client.write(speaker.calling("up__echo", request_id="a") + speaker.calling("up__echo", request_id="b"))
    first = await client.answer()
    assert (first.status, first.headers["connection"]) == (500, "close")
    assert "a defect" not in first.body.decode()
    assert await client.ended() == b""
    assert (await speaker.call("up__echo", {"n": 1})).text == '{"n": 1}'


async def test_the_books_balance_and_the_chains_hold(edge: RunningEdge) -> None:
    events = await edge.place.events("calls")
    permitted = sorted(one.call_id for one in events if isinstance(one, CallRequested) and one.decision == "allow")
    assert permitted == sorted(one.call_id for one in events if isinstance(one, CallCompleted))
    await edge.place.chains_hold()
