"""Clients that misbehave on purpose: each is refused with the right status and code, reaches nothing that is another's,
and costs others nothing; the edge's memory stays flat. The edge is a process of its own.

`test_edge_front.py` has the framing of HTTP, `test_attacks.py` what must not pass; this is the rest.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import LEGACY, MODERN, Answer, Client, EdgeProcess, Speaker, edge_process, modern_body, until
from tests.parts.restless import Restless, restless
from tests.parts.strays import holding

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMS_MAX = 60
SESSIONS_MAX = 700
LIMITS = {
    "body_bytes_max": 256 * 1024,
    "header_timeout_s": 1.5,
    "body_timeout_s": 1.5,
    "list_page_size": 3,
    "streams_per_subject_max": STREAMS_MAX,
    "sessions_per_subject_max": SESSIONS_MAX,
}
ASKED = {"elicitation": {"form": {}}}
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": ASKED,
    "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Restless]]:
    with restless("modern") as new, restless("sessions") as old:
        yield {"new": new, "old": old}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(servers: dict[str, Restless], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EdgeProcess]:
    given = {name: {"url": server.url, "timeout_s": 20} for name, server in servers.items()}
    async with edge_process(tmp_path_factory.mktemp("misbehaving"), given, limits=LIMITS) as process:
        yield process


@pytest.fixture
def alice(edge: EdgeProcess) -> Speaker:
    return edge.place.speaker()


@pytest.fixture
def bob(edge: EdgeProcess) -> Speaker:
    return edge.place.speaker(user="bob@example.com")


async def opened(speaker: Speaker, **capabilities: Any) -> None:
    """A legacy session with these capabilities."""
    params = {"protocolVersion": LEGACY, "capabilities": capabilities, "clientInfo": {"name": "t", "version": "1"}}
    answer = await speaker.ask(speaker.legacy("initialize", params))
    assert answer.status == 200, answer
    speaker.session = answer.headers["mcp-session-id"]


def memory_mib(edge: EdgeProcess) -> float:
    return holding(edge.process.pid).rss_kib / 1024


async def serves(speaker: Speaker, within_s: float = 3.0) -> None:
    """A well behaved caller is answered, and soon."""
    began_s = time.monotonic()
    answer = await speaker.call("new__echo", {"nonce": "well behaved"})
    assert not answer.result.get("isError")
    assert time.monotonic() - began_s < within_s


# ---- messages that are none


def body(**more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}} | more).encode()


def nested(depth: int, brackets: str = "[]") -> bytes:
    inner = b'{"a":' * depth + b"1" + b"}" * depth if brackets == "{}" else b"[" * depth + b"]" * depth
    call = modern_body("tools/call", {"name": "new__echo", "arguments": {"deep": 0}})
    return call.replace(b'"deep": 0', b'"deep": ' + inner)


BAD_MESSAGES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", -32700),
    "half": (b'{"jsonrpc": "2.0", "id": 1', -32700),
    "two": (body() + body(), -32700),
    "a string": (b'"tools/list"', -32600),
    "a number": (b"1", -32600),
    "a batch": (b"[" + body() + b"]", -32600),
    "an empty batch": (b"[]", -32600),
    "UTF-16": (body().decode().encode("utf-16"), -32700),
    "a byte that is no UTF-8": (body().replace(b"tools/list", b"tools/\xfflist"), -32700),
    "a lone surrogate": (body().replace(b"tools/list", b"tools/\\ud800list"), -32700),
    "a key twice": (body().replace(b'"id": 1', b'"id": 1, "id": 2'), -32700),
    "another version": (body(jsonrpc="1.0"), -32600),
    "no version": (body().replace(b'"jsonrpc": "2.0", ', b""), -32600),
    "an id that is a list": (body(id=[1]), -32600),
    "an id that is a fraction": (body(id=1.5), -32600),
    "an id that is true": (body(id=True), -32600),
    "an id of null": (body(id=None), -32600),
    "a method that is a number": (body(method=1), -32600),
    "params that are a list": (body(params=[1]), -32602),
    "NaN": (body().replace(b'"id": 1', b'"id": NaN'), -32700),
    "brackets 200 deep": (nested(200), -32700),
    "braces 200 deep": (nested(200, "{}"), -32700),
    "brackets 50,000 deep": (nested(50_000), -32700),
}


@pytest.mark.parametrize("what", BAD_MESSAGES)
async def test_what_is_no_message_is_refused_with_the_code_that_says_why(alice: Speaker, what: str) -> None:
    raw, code = BAD_MESSAGES[what]
    answer = await alice.ask(alice.request(raw, headers={"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"}))
    assert answer.status == 400, answer.body
    assert answer.error["code"] in (code, -32600 if code == -32700 else code), answer.body
    assert answer.error["message"]


def headers_of(**more: str) -> dict[str, str]:
    return {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"} | {
        name.replace("_", "-"): value for name, value in more.items()
    }


BAD_HEADERS: dict[str, tuple[dict[str, str], int, int | None]] = {
    "no content type": (headers_of(Content_Type=""), 415, None),
    "a form": (headers_of(Content_Type="application/x-www-form-urlencoded"), 415, None),
    "text": (headers_of(Content_Type="text/plain"), 415, None),
    "accepts HTML": (headers_of(Accept="text/html"), 406, None),
    "another revision than the body's": (headers_of(MCP_Protocol_Version="2099-01-01"), 400, -32020),
    "another method": (headers_of(Mcp_Method="tools/call"), 400, -32020),
    "no method": (headers_of(Mcp_Method=""), 400, -32020),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
async def test_headers_that_do_not_say_what_the_body_says_are_refused(alice: Speaker, what: str) -> None:
    headers, status, code = BAD_HEADERS[what]
    answer = await alice.ask(alice.request(body(), headers=headers))
    assert answer.status == status, answer.body
    if code is not None:
        assert answer.error["code"] == code


@pytest.mark.parametrize("version", ["2099-01-01", "yesterday", "2026-07-29", "x" * 500])
async def test_a_revision_that_is_not_spoken_is_refused_with_those_that_are(alice: Speaker, version: str) -> None:
    meta = {**META, "io.modelcontextprotocol/protocolVersion": version}
    headers = headers_of(MCP_Protocol_Version=version)
    answer = await alice.ask(alice.request(body(params={"_meta": meta}), headers=headers))
    assert (answer.status, answer.error["code"]) == (400, -32022), answer.body
    assert MODERN in answer.error["data"]["supported"]
    assert len(answer.body) < 2_000


async def test_a_name_in_the_header_that_is_not_the_body_s_is_refused_and_nothing_is_called(
    alice: Speaker, servers: dict[str, Restless]
) -> None:
    call = modern_body("tools/call", {"name": "new__echo", "arguments": {"nonce": "misnamed"}})
    for name in ("new__note", "", "NEW__ECHO", "new__echo\t,new__note", "=?base64?bmV3X19ub3Rl?="):
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": name}
        answer = await alice.ask(alice.request(call, headers=headers))
        assert (answer.status, answer.error["code"]) == (400, -32020), (name, answer.body)
    assert "misnamed" not in servers["new"].nonces()


async def test_a_body_one_byte_too_large_is_refused_and_one_that_fits_is_served(alice: Speaker) -> None:
    empty = len(modern_body("tools/call", {"name": "new__echo", "arguments": {"text": ""}}))
    for more, status in ((0, 200), (1, 413)):
        text = "x" * (256 * 1024 - empty + more)
        answer = await alice.call("new__echo", {"text": text})
        assert answer.status == status, answer.body[:200]


# ---- what is another's


def confirming(speaker: Speaker, tool: str, nonce: str, **more: Any) -> bytes:
    params = {"name": tool, "arguments": {"nonce": nonce}, "_meta": META, **more}
    return speaker.modern("tools/call", params)


SURE = {"action": "accept", "content": {"sure": True}}


@pytest.mark.parametrize("tool", ["old__confirm", "new__confirm"])
async def test_a_request_state_serves_its_principal_its_call_and_its_arguments_alone(
    alice: Speaker, bob: Speaker, servers: dict[str, Restless], tool: str
) -> None:
    nonce = f"state of {tool}"
    asked = (await alice.ask(confirming(alice, tool, nonce))).result
    assert asked["resultType"] == "input_required", asked
    (key,) = asked["inputRequests"]
    given = {"inputResponses": {key: SURE}, "requestState": asked["requestState"]}
    state = asked["requestState"]
    other = "new__confirm" if tool == "old__confirm" else "old__confirm"
    attempts = [
        (bob, confirming(bob, tool, nonce, **given)),
        (alice, confirming(alice, tool, "other arguments", **given)),
        (alice, confirming(alice, other, nonce, **given)),
        (alice, confirming(alice, tool, nonce, **{**given, "requestState": state[:-4] + "AAAA"})),
        (alice, confirming(alice, tool, nonce, **{**given, "requestState": "made up"})),
        (alice, confirming(alice, tool, nonce, **{**given, "requestState": "x" * 100_000})),
    ]
    before = {name: len(server.seen) for name, server in servers.items()}
    for speaker, request in attempts:
        answer = await speaker.ask(request)
        assert (answer.status, answer.error["code"]) == (400, -32602), answer.body
    assert {name: len(server.seen) for name, server in servers.items()} == before, "nothing was forwarded"
    done = await alice.ask(confirming(alice, tool, nonce, **given))
    assert not done.result.get("isError"), done.body
    assert "kept by the client" in done.text or done.text == "answered"


async def test_a_state_that_has_been_used_up_is_refused_and_the_call_is_not_made_twice(
    alice: Speaker, servers: dict[str, Restless]
) -> None:
    asked = (await alice.ask(confirming(alice, "old__confirm", "used up"))).result
    (key,) = asked["inputRequests"]
    given = {"inputResponses": {key: SURE}, "requestState": asked["requestState"]}
    assert (await alice.ask(confirming(alice, "old__confirm", "used up", **given))).text == "answered"
    again = await alice.ask(confirming(alice, "old__confirm", "used up", **given))
    assert "error" in again.json or again.result.get("isError") or again.result["resultType"] == "input_required"
    assert servers["old"].nonces().count("used up") == 1


async def test_a_cursor_of_another_list_or_door_or_principal_is_refused(alice: Speaker, bob: Speaker) -> None:
    cursor = (await alice.ask(alice.modern("tools/list"))).result["nextCursor"]
    assert (await alice.ask(alice.modern("tools/list", {"cursor": cursor}))).status == 200
    attempts = [
        bob.modern("tools/list", {"cursor": cursor}),
        alice.modern("prompts/list", {"cursor": cursor}),
        alice.modern("tools/list", {"cursor": cursor[:-3] + "AAA"}),
        alice.modern("tools/list", {"cursor": ""}),
        alice.modern("tools/list", {"cursor": "2"}),
        alice.modern("tools/list", {"cursor": "é" * 5_000}),
        alice.modern("tools/list", {"cursor": 1}),
        alice.modern("tools/list", {"cursor": {"page": 2}}),
    ]
    for request in attempts:
        answer = await alice.ask(request)
        assert (answer.status, answer.error["code"]) == (400, -32602), answer.body


async def question_of(client: Client) -> dict[str, Any]:
    await client.stream()
    while (event := await client.event()) is not None:
        if event.data and event.json.get("method") == "elicitation/create":
            return dict(event.json)
    raise AssertionError("no question came")


def answering(speaker: Speaker, request_id: Any, action: str = "accept") -> bytes:
    told = {"jsonrpc": "2.0", "id": request_id, "result": {"action": action, "content": {}}}
    headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session}
    return speaker.request(json.dumps(told).encode(), headers=headers)


async def test_an_answer_counts_from_the_session_that_was_asked_alone(
    edge: EdgeProcess, alice: Speaker, bob: Speaker, servers: dict[str, Restless]
) -> None:
    await opened(alice, elicitation={})
    await opened(bob, elicitation={})
    beside = edge.place.speaker()  # hers, too, but another session
    await opened(beside, elicitation={})
    client = await alice.connect()
    call = {"name": "old__confirm", "arguments": {"nonce": "asked live"}}
    client.write(alice.legacy("tools/call", call))
    question = await question_of(client)
    for speaker in (bob, beside):
        answer = await speaker.ask(answering(speaker, question["id"]))
        assert answer.status == 400, answer.body
    for made_up in ("ask-1", question["id"] + "1", 1, 10**30, "x" * 5_000):
        assert (await alice.ask(answering(alice, made_up))).status == 400
    bob.session = alice.session
    assert (await bob.ask(answering(bob, question["id"]))).status == 404
    assert (await alice.ask(answering(alice, question["id"]))).status == 202
    told = [event.json for event in await client.events() if event.data]
    assert told[-1]["result"]["content"][0]["text"] == "answered"
    assert (await alice.ask(answering(alice, question["id"]))).status == 400, "it was answered already"
    client.close()


async def test_nobody_cancels_what_another_session_asked_for(
    edge: EdgeProcess, alice: Speaker, bob: Speaker, servers: dict[str, Restless]
) -> None:
    server = servers["old"]
    server.released.clear()
    await opened(alice)
    await opened(bob)
    beside = edge.place.speaker()
    await opened(beside)
    call = alice.legacy("tools/call", {"name": "old__hold", "arguments": {"nonce": "not cancelled"}}, request_id="r-1")
    running = asyncio.create_task(alice.ask(call))
    await until(lambda: "not cancelled" in server.nonces())
    for speaker in (bob, beside):
        for request_id in ("r-1", 1, None, {"a": 1}):
            told = {"requestId": request_id, "reason": "because"}
            answer = await speaker.ask(speaker.legacy("notifications/cancelled", told, request_id=None))
            assert answer.status in (202, 400), answer.body
    server.release()
    answer = await running
    assert answer.status == 200
    assert not answer.result.get("isError"), answer.body


async def test_a_session_of_another_is_as_one_that_never_was(alice: Speaker, bob: Speaker) -> None:
    await opened(alice)
    made_up = edge_words(await bob.ask(bob.legacy("tools/list")))
    bob.session = alice.session
    for request in (bob.legacy("tools/list"), bob.legacy("ping"), bob.legacy("tools/call", {"name": "old__echo"})):
        answer = await bob.ask(request)
        assert answer.status == 404
        assert edge_words(answer) != made_up or not made_up
        assert b"alice" not in answer.body
    gone = bob.request(b"", verb="DELETE", headers={"Mcp-Session-Id": alice.session, "MCP-Protocol-Version": LEGACY})
    assert (await bob.ask(gone)).status == 404
    assert (await alice.ask(alice.legacy("ping"))).status == 200


def edge_words(answer: Answer) -> str:
    return str(answer.error["message"])


# ---- too much of something


async def test_members_past_a_batch_s_bound_are_refused_together(alice: Speaker, servers: dict[str, Restless]) -> None:
    await alice.initialize("2025-03-26")
    call = {"name": "new__echo", "arguments": {"nonce": "batched too often"}}
    one = {"jsonrpc": "2.0", "method": "tools/call", "params": call}
    members = json.dumps([{**one, "id": number} for number in range(33)]).encode()
    headers = {"Mcp-Session-Id": alice.session, "MCP-Protocol-Version": "2025-03-26"}
    answer = await alice.ask(alice.request(members, headers=headers))
    assert answer.status == 400
    assert "32" in answer.error["message"]
    assert "batched too often" not in servers["new"].nonces()


async def test_bodies_that_never_come_hold_nobody_up(edge: EdgeProcess, alice: Speaker) -> None:
    slow = [await alice.connect() for _ in range(150)]
    for number, client in enumerate(slow):
        request = alice.calling("new__echo", {"nonce": "slow"})
        client.write(request[: 20 if number % 2 else len(request) - 5])
    await serves(alice)
    answers = await asyncio.gather(*[client.answer(timeout_s=15) for client in slow])
    assert {answer.status for answer in answers} == {408}
    for client in slow:
        client.close()


async def test_thousands_of_idle_sessions_cost_little_and_end_at_a_bound(edge: EdgeProcess) -> None:
    async def hoard(number: int, sessions: int) -> list[int]:
        speaker = edge.place.speaker(user=f"hoarder{number}@example.com")
        client = await speaker.connect()
        statuses = []
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "h", "version": "1"}}
        for _ in range(sessions):
            client.write(speaker.legacy("initialize", params))
            statuses.append((await client.answer()).status)
        client.close()
        return statuses

    await hoard(0, 50)
    before = memory_mib(edge)
    statuses = await asyncio.gather(*[hoard(number, SESSIONS_MAX + 20) for number in range(1, 4)])
    for one in statuses:
        assert one == [200] * SESSIONS_MAX + [429] * 20
    grown = memory_mib(edge) - before
    assert grown < 3 * SESSIONS_MAX * 8 / 1024, f"{grown:.1f} MiB for {3 * SESSIONS_MAX} sessions"
    await serves(edge.place.speaker())


async def test_hundreds_of_streams_end_at_a_bound_and_are_forgotten_with_their_clients(edge: EdgeProcess) -> None:
    async def hold(number: int, streams: int) -> tuple[list[int], list[Client]]:
        statuses, clients = [], []
        for turn in range(streams):
            speaker = edge.place.speaker(user=f"listener{number}@example.com")
            client = await speaker.connect()
            if turn % 2:
                wanted = {"notifications": {"toolsListChanged": True}, "_meta": META}
                client.write(speaker.modern("subscriptions/listen", wanted, request_id=turn))
            else:
                await opened(speaker)
                headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session}
                more = {"Accept": "text/event-stream", "Content-Length": "", "Content-Type": ""}
                client.write(speaker.request(b"", verb="GET", headers={**headers, **more}))
            statuses.append((await client.stream()).status)
            clients.append(client)
        return statuses, clients

    async def round_of(name: int) -> None:
        held = await asyncio.gather(*[hold(name + number, STREAMS_MAX + 10) for number in range(4)])
        for statuses, clients in held:
            assert statuses == [200] * STREAMS_MAX + [429] * 10, statuses
            for client in clients:
                client.writer.transport.abort()

    for turn in range(3):  # buffers and caches find their size
        await round_of(10 * turn)
    before, descriptors = memory_mib(edge), holding(edge.process.pid).descriptors
    for turn in range(3, 6):
        await round_of(10 * turn)
    await until(lambda: holding(edge.process.pid).descriptors <= descriptors, 15)
    sessions = 3 * 4 * (STREAMS_MAX + 10) / 2  # stay, as this configuration has it
    assert memory_mib(edge) - before < sessions * 8 / 1024 + 3
    await serves(edge.place.speaker())


async def test_a_flood_of_notices_and_nonsense_leaves_memory_flat(edge: EdgeProcess, alice: Speaker) -> None:
    await opened(alice)

    async def flood(number: int, count: int) -> None:
        client = await alice.connect()
        for turn in range(count):
            method = f"notifications/{'cancelled' if turn % 2 else f'made-up-{number}-{turn}'}"
            client.write(alice.legacy(method, {"requestId": f"never {turn}", "pad": "x" * 500}, request_id=None))
            client.write(alice.modern(f"no/such/{number}/{turn}", {"pad": "x" * 500}))
            client.write(alice.calling(f"new__none-{number}-{turn}", {"pad": "x" * 500}))
            first, second, third = [await client.answer() for _ in range(3)]
            assert (first.status, second.status, third.status) == (202, 404, 400), (first, second, third)
        client.close()

    await asyncio.gather(*[flood(number, 60) for number in range(8)])
    before = memory_mib(edge)
    await asyncio.gather(*[flood(100 + number, 150) for number in range(8)])
    assert memory_mib(edge) - before < 8
    await serves(alice)


async def test_whoever_asks_for_progress_in_odd_ways_is_served_or_refused_and_nothing_breaks(alice: Speaker) -> None:
    for token in (0, -1, "", "x" * 10_000, 1.5, True, None, [], {"a": 1}, 2**70):
        params = {"name": "new__drip", "arguments": {"times": 1}, "_meta": {**META, "progressToken": token}}
        client = await alice.connect()
        client.write(alice.modern("tools/call", params))
        head = await client.stream()
        assert head.status in (200, 400), (token, head)
        client.close()
    await serves(alice)
