"""The front door as transcripts: raw bytes to a real socket of an edge in its own process, raw bytes back."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import Answer, EdgeProcess, Speaker, edge_process, legacy_body, modern_body, until
from tests.parts.scripted import Scripted, Seen, http, result, scripted, text

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMITS = {
    "body_bytes_max": 20_000,
    "header_timeout_s": 1.0,
    "body_timeout_s": 1.0,
    "connections_max": 40,
    "drain_timeout_s": 8.0,
}
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Held:
    """A tool that answers when it is told to."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.release = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.arrived.set()
        waiting = asyncio.create_task(self.release.wait())
        while not self.release.is_set() and not seen.is_gone:
            await asyncio.wait([waiting], timeout=0.02)
        waiting.cancel()
        if seen.is_gone:
            self.gone.set()
            return
        writer.write(http(result(seen, text("held") | {"resultType": "complete"})))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(upstream: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EdgeProcess]:
    root = tmp_path_factory.mktemp("front")
    async with edge_process(root, {"up": {"url": upstream.url}}, limits=LIMITS) as process:
        yield process


@pytest.fixture
def speaker(edge: EdgeProcess) -> Speaker:
    return edge.place.speaker()


@pytest.fixture
def held(upstream: Scripted) -> Any:
    behaviour = Held()
    upstream.behaviours["note"] = behaviour
    yield behaviour
    behaviour.release.set()
    del upstream.behaviours["note"]


async def raw(speaker: Speaker, *pieces: bytes, head_only: bool = False) -> Answer:
    client = await speaker.connect()
    try:
        for piece in pieces:
            client.write(piece)
            await client.writer.drain()
        return await client.answer(head_only=head_only)
    finally:
        client.close()


async def transcript(speaker: Speaker, request: bytes) -> tuple[list[int], bytes]:
    """Every answer that comes until the edge closes: statuses, and what could not be read as an answer."""
    client = await speaker.connect()
    client.write(request)
    statuses: list[int] = []
    try:
        while True:
            statuses.append((await client.answer()).status)
    except asyncio.IncompleteReadError as end:
        return statuses, end.partial
    except ConnectionResetError:
        return statuses, b""
    finally:
        client.close()


# keep-alive and pipelining


async def test_one_connection_serves_many_requests(speaker: Speaker) -> None:
    client = await speaker.connect()
    for number in range(5):
        client.write(speaker.calling("up__echo", {"n": number}, request_id=number))
        answer = await client.answer()
        assert (answer.status, answer.json["id"], answer.text) == (200, number, f'{{"n": {number}}}')
        client.write(HEALTH)
        assert (await client.answer()).json["status"] == "ok"
    client.close()


@pytest.mark.parametrize("order", ["mm", "mmm", "mh", "hm", "hmh", "mhm", "mmhhmm", "hhh"])
async def test_pipelined_requests_are_answered_in_order(speaker: Speaker, order: str) -> None:
    requests = [
        speaker.calling("up__echo", {"n": n}, request_id=n) if kind == "m" else HEALTH for n, kind in enumerate(order)
    ]
    for number, (kind, answer) in enumerate(zip(order, await speaker.say(*requests), strict=True)):
        assert answer.status == 200
        if kind == "m":
            assert answer.json["id"] == number
        else:
            assert answer.json["status"] == "ok"


async def test_a_request_may_be_cut_anywhere(speaker: Speaker) -> None:
    short = Speaker(speaker.listen, speaker.auth)
    request = short.calling("up__echo", {"cut": "héllo"})
    head = request.index(b"\r\n\r\n")
    client = await short.connect()
    client.writer.get_extra_info("socket").setsockopt(6, 1, 1)  # TCP_NODELAY
    for cut in [*range(1, 120, 7), *range(head - 3, len(request))]:
        client.write(request[:cut])
        await client.writer.drain()
        await asyncio.sleep(0)
        client.write(request[cut:])
        answer = await client.answer()
        assert (answer.status, answer.text) == (200, '{"cut": "h\\u00e9llo"}')
    client.close()


async def test_byte_by_byte_it_is_the_same_request(speaker: Speaker) -> None:
    client = await speaker.connect()
    for byte in speaker.request(b"{}"):
        client.write(bytes([byte]))
        await client.writer.drain()
    assert (await client.answer()).status == 400
    client.close()


async def test_a_second_request_waits_for_the_first(speaker: Speaker, held: Held) -> None:
    client = await speaker.connect()
    second = speaker.calling("up__echo", {"n": 2}, request_id=2)
    client.write(speaker.calling("up__note", request_id=1) + second[:-10])
    await asyncio.wait_for(held.arrived.wait(), 5)
    client.write(second[-10:])
    held.release.set()
    assert [(await client.answer()).json["id"] for _ in range(2)] == [1, 2]
    client.close()


@pytest.mark.parametrize(
    "bad",
    [
        b"BROKEN\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET / HTT",
    ],
)
async def test_a_bad_second_request_is_refused_after_the_first_was_answered(
    speaker: Speaker, held: Held, bad: bytes
) -> None:
    client = await speaker.connect()
    client.write(speaker.calling("up__note", request_id="first") + bad)
    await asyncio.wait_for(held.arrived.wait(), 5)
    await asyncio.sleep(
        1.5 if bad.startswith(b"GET") else 0
    )  # past the header timeout: a slow peer must get in nobody's way
    held.release.set()
    answer = await client.answer()
    assert (answer.status, answer.json["id"]) == (200, "first")
    if not bad.startswith(b"GET"):
        assert (await client.answer()).status in (400, 431)
    client.close()


# framing


async def test_a_body_may_come_in_chunks(speaker: Speaker) -> None:
    body = modern_body("tools/call", {"name": "up__echo", "arguments": {"chunked": True}})
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 50]), body[at : at + 50]) for at in range(0, len(body), 50))
    whole = speaker.calling("up__echo", {"chunked": True})
    head = whole[: whole.index(b"\r\n\r\n")].replace(
        f"Content-Length: {len(body)}".encode(), b"Transfer-Encoding: chunked"
    )
    answer = await raw(speaker, head + b"\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert (answer.status, answer.text) == (200, '{"chunked": true}')


async def test_a_client_that_expects_100_is_told_to_continue(speaker: Speaker) -> None:
    whole = speaker.request(
        modern_body("tools/list"),
        headers={"Expect": "100-continue", "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list"},
    )
    at = whole.index(b"\r\n\r\n") + 4
    client = await speaker.connect()
    client.write(whole[:at])
    assert (await client.answer()).status == 100
    client.write(whole[at:])
    assert (await client.answer()).status == 200
    client.close()


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 2",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2, 2",
        "Content-Length: +2",
        "Content-Length: -2",
        "Content-Length: 0x2",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Content-Length: 2\r\n folded: yes",
        "Content-Length: 2\r\nX: a\x00b",
        "Content-Length: 2\nX: bare",
        "Content-Length: 2\r\nX y: z",
        "Content-Length: 2\r\n: nameless",
    ],
)
async def test_ambiguous_framing_is_refused_and_the_connection_ends(speaker: Speaker, lines: str) -> None:
    request = speaker.request(b"", headers={"Content-Length": ""}).replace(b"\r\n\r\n", f"\r\n{lines}\r\n\r\n".encode())
    statuses, _ = await transcript(speaker, request + b"{}" + HEALTH)
    assert statuses in ([400], [413])


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "Authorization",
        "Content-Type",
        "Origin",
        "Mcp-Session-Id",
        "MCP-Protocol-Version",
        "Mcp-Method",
        "Mcp-Name",
    ],
)
async def test_a_header_that_decides_may_not_be_given_twice(speaker: Speaker, name: str) -> None:
    request = speaker.request(b"{}", headers={name: "x"}).replace(
        b"\r\n\r\n", f"\r\n{name.lower()}: x\r\n\r\n".encode(), 1
    )
    statuses, rest = await transcript(speaker, request + HEALTH)
    assert (statuses, rest) == ([400], b"")


@pytest.mark.parametrize("lines", [b"".join(b"X-%d: y\r\n" % n for n in range(150)), b"X: " + b"y" * 40_000 + b"\r\n"])
@pytest.mark.parametrize("path", [b"/mcp", b"/healthz"])
async def test_too_many_or_too_large_headers_are_refused(speaker: Speaker, lines: bytes, path: bytes) -> None:
    statuses, rest = await transcript(
        speaker, b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: 2\r\n\r\n{}" % (path, lines) + HEALTH
    )
    assert (statuses, rest) == ([431], b"")


async def test_a_very_long_url_is_refused(speaker: Speaker) -> None:
    statuses, _ = await transcript(speaker, b"POST /mcp/%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 50_000) + HEALTH)
    assert statuses == [431]


async def test_a_body_that_will_be_too_large_is_refused_before_it_comes(speaker: Speaker) -> None:
    for expect in ("", "100-continue"):
        client = await speaker.connect()
        client.write(speaker.request(b"", headers={"Content-Length": "20001", "Expect": expect}))
        assert (await client.answer(timeout_s=0.9)).status == 413
        assert await client.ended() == b""
        client.close()


async def test_chunks_past_the_limit_are_refused_when_they_pass_it(speaker: Speaker) -> None:
    client = await speaker.connect()
    client.write(speaker.request(b"", headers={"Content-Length": "", "Transfer-Encoding": "chunked"}))
    client.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
    client.write(b"5000\r\n" + b"x" * 0x5000 + b"\r\n")
    assert (await client.answer(timeout_s=0.9)).status == 413
    client.close()


async def test_a_client_still_sending_can_read_why_it_was_refused(speaker: Speaker) -> None:
    client = await speaker.connect()
    client.write(speaker.request(b"", headers={"Content-Length": "3000000"}) + b"x" * 300_000)
    assert (await client.answer()).status == 413
    client.close()


@pytest.mark.parametrize("cut", [10, 60, -1])
async def test_a_request_that_takes_too_long_is_refused(speaker: Speaker, cut: int) -> None:
    client = await speaker.connect()
    client.write(speaker.request(b"{}")[:cut])
    assert (await client.answer(timeout_s=6)).status == 408
    assert await client.ended() == b""
    client.close()


async def test_an_upgrade_is_not_taken_and_its_rest_is_not_another_request(speaker: Speaker) -> None:
    request = speaker.request(HEALTH, headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    statuses, rest = await transcript(speaker, request)
    assert len(statuses) == 1
    assert rest == b""
    client = await speaker.connect()
    at = request.index(b"\r\n\r\n") + 4
    client.write(request[:at])
    await client.writer.drain()
    await asyncio.sleep(0.05)
    client.write(request[at:])
    await client.answer()
    assert await client.ended() == b""
    client.close()


async def test_http_1_0_is_answered_and_closed(speaker: Speaker) -> None:
    request = speaker.modern("tools/list").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert await transcript(speaker, request + HEALTH) == ([200], b"")


async def test_connection_close_is_obeyed(speaker: Speaker) -> None:
    request = speaker.modern("tools/list").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    assert await transcript(speaker, request + HEALTH) == ([200], b"")


# addresses


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/mcp", 200), ("/mcp/", 200), ("/mcp?x=1", 200), ("/mcp/up", 200), ("/mcp/up/", 200), ("/mcp/%75p", 200),
        ("/mcp/other", 404), ("/mcp/../mcp", 404), ("/mcp/up/x", 404), ("/mcp/%2e%2e", 404), ("/mcp%2f", 404),
        ("//mcp", 404), ("/MCP", 404), ("/mcpx", 404), ("/mcp;x", 404), ("/mcp/up%00", 404), ("/mcp/\xff", 404),
    ],
)  # fmt: skip
async def test_only_the_documented_paths_are_served(speaker: Speaker, path: str, status: int) -> None:
    answers = await speaker.say(speaker.modern("tools/list", path=path), HEALTH) if status == 200 else []
    if answers:
        assert [answer.status for answer in answers] == [200, 200]
    else:
        assert (await raw(speaker, speaker.modern("tools/list", path=path))).status in (status, 400)


async def test_the_absolute_form_is_the_same_address(speaker: Speaker) -> None:
    assert (await raw(speaker, speaker.modern("tools/list", path=f"http://{speaker.listen}/mcp"))).status == 200


@pytest.mark.parametrize("verb", ["PUT", "OPTIONS", "PATCH", "HEAD"])
async def test_other_methods_are_refused_and_the_connection_stays_in_step(speaker: Speaker, verb: str) -> None:
    client = await speaker.connect()
    client.write(speaker.request(b"", verb=verb) + HEALTH)
    answer = await client.answer(head_only=verb == "HEAD")
    assert (answer.status, answer.headers["allow"]) == (405, "POST, GET, DELETE")
    assert (await client.answer()).json["status"] == "ok"
    client.close()


@pytest.mark.parametrize("host", ["evil.example", "", "127.0.0.1", "localhost:1", "evil.example:80"])
async def test_a_foreign_host_is_misdirected(speaker: Speaker, host: str) -> None:
    answer = await raw(speaker, speaker.request(b"{}", headers={"Host": host}))
    assert answer.status in ((421,) if host else (421, 400))


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://{listen}", "http://{listen}.evil.example"])
async def test_a_foreign_origin_is_forbidden(speaker: Speaker, origin: str) -> None:
    headers = {"Origin": origin.format(listen=speaker.listen)}
    assert (await raw(speaker, speaker.request(b"{}", headers=headers))).status == 403


async def test_our_own_origin_is_served(speaker: Speaker) -> None:
    headers = {"Origin": f"http://{speaker.listen}", "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list"}
    assert (await raw(speaker, speaker.request(modern_body("tools/list"), headers=headers))).status == 200


# load, disconnects, the end


async def test_connections_past_the_limit_are_told_so(speaker: Speaker) -> None:
    clients = [await speaker.connect() for _ in range(60)]
    try:
        statuses = []
        for client in clients[50:]:
            statuses.append((await client.answer()).status)
        assert statuses == [503] * 10
    finally:
        for client in clients:
            client.close()

    async def served_again() -> bool:
        try:
            return (await raw(speaker, HEALTH)).status == 200
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return False

    await until(served_again)


async def test_a_modern_client_that_leaves_cancels_its_call(edge: EdgeProcess, speaker: Speaker, held: Held) -> None:
    client = await speaker.connect()
    client.write(speaker.calling("up__note", {"nonce": "modern-leaves"}))
    await asyncio.wait_for(held.arrived.wait(), 5)
    client.close()
    await asyncio.wait_for(held.gone.wait(), 5)

    async def recorded() -> bool:
        asked, ended = await edge.place.calls("modern-leaves")
        return len(asked) == 1 and [one.outcome for one in ended] == ["cancelled"]

    await until(recorded)


async def test_requests_queued_by_a_client_that_left_are_recorded_once_each(
    edge: EdgeProcess, speaker: Speaker, held: Held, upstream: Scripted
) -> None:
    client = await speaker.connect()
    client.write(speaker.calling("up__note", {"n": "queued-1"}) + speaker.calling("up__echo", {"n": "queued-2"}))
    await asyncio.wait_for(held.arrived.wait(), 5)
    client.close()
    held.release.set()

    async def recorded() -> bool:
        _, first = await edge.place.calls("queued-1")
        asked, ended = await edge.place.calls("queued-2")
        sent = sum(b"queued-2" in one.body for one in upstream.seen)
        return len(first) == 1 and len(asked) == len(ended) and sent <= len(asked) <= 1

    await until(recorded)


async def test_a_legacy_client_that_leaves_does_not_stop_its_call(
    edge: EdgeProcess, speaker: Speaker, held: Held
) -> None:
    await speaker.initialize()
    client = await speaker.connect()
    client.write(speaker.legacy("tools/call", {"name": "up__note", "arguments": {"nonce": "legacy-leaves"}}))
    await asyncio.wait_for(held.arrived.wait(), 5)
    client.close()
    held.release.set()

    async def recorded() -> bool:
        asked, ended = await edge.place.calls("legacy-leaves")
        return len(asked) == 1 and [one.outcome for one in ended] == ["ok"]

    await until(recorded)


async def test_sigterm_lets_a_running_call_finish_and_takes_no_new_ones(upstream: Scripted, tmp_path: Path) -> None:
    held = Held()
    upstream.behaviours["note"] = held
    try:
        async with edge_process(tmp_path, {"up": {"url": upstream.url}}, limits=LIMITS) as edge:
            speaker = edge.place.speaker()
            idle = await speaker.connect()
            client = await speaker.connect()
            client.write(speaker.calling("up__note", {"nonce": "drained"}))
            await asyncio.wait_for(held.arrived.wait(), 5)
            edge.process.send_signal(signal.SIGTERM)
            assert await idle.ended() == b""

            async def refused() -> bool:
                try:
                    (await speaker.connect()).close()
                except OSError:
                    return True
                return False

            await until(refused)
            held.release.set()
            answer = await client.answer()
            assert (answer.status, answer.text) == (200, "held")
            assert await asyncio.to_thread(edge.process.wait, 10) == 0
            asked, ended = await edge.place.calls("drained")
            assert [one.outcome for one in ended] == ["ok"]
            assert len(asked) == 1
            await edge.place.chains_hold()
    finally:
        del upstream.behaviours["note"]


async def test_a_call_that_outlasts_the_drain_is_cancelled_and_recorded(upstream: Scripted, tmp_path: Path) -> None:
    held = Held()
    upstream.behaviours["note"] = held
    try:
        limits = {**LIMITS, "drain_timeout_s": 1.0}
        async with edge_process(tmp_path, {"up": {"url": upstream.url}}, limits=limits) as edge:
            speaker = edge.place.speaker()
            client = await speaker.connect()
            client.write(speaker.calling("up__note", {"nonce": "outlasts"}))
            await asyncio.wait_for(held.arrived.wait(), 5)
            edge.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(edge.process.wait, 10) == 0
            asked, ended = await edge.place.calls("outlasts")
            assert len(asked) == 1
            assert [one.outcome for one in ended] == ["cancelled"]
    finally:
        held.release.set()
        del upstream.behaviours["note"]


async def test_legacy_bodies_are_served_on_the_same_door(speaker: Speaker) -> None:
    opened = await speaker.initialize("2025-03-26")
    assert opened.result["protocolVersion"] == "2025-03-26"
    members = [legacy_body("ping", request_id=1), legacy_body("notifications/initialized", request_id=None)]
    batch = speaker.request(b"[%b]" % b",".join(members), headers={"Mcp-Session-Id": speaker.session})
    assert (await speaker.ask(batch)).json == [{"jsonrpc": "2.0", "id": 1, "result": {}}]
    note = await speaker.ask(speaker.legacy("notifications/initialized", request_id=None))
    assert (note.status, note.body) == (202, b"")
