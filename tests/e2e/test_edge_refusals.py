"""Every request of a known principal that is answered with an error and is no call is an event; a flood of them is a
few. One edge in this process.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.parts.edge import SECRET, RunningEdge, Speaker, legacy_body, modern_body, running_edge
from tests.parts.restless import Restless, restless

from tidegate.events import CallRequested, RequestRefused
from tidegate.limits import Limits

pytestmark = pytest.mark.asyncio(loop_scope="module")
Say = Callable[[Speaker], bytes]
META = "io.modelcontextprotocol/protocolVersion"


@pytest.fixture(scope="module")
def up() -> Any:
    with restless("sessions") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Restless, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    given = {"up": {"url": up.url, "timeout_s": 3}}
    limits = msgspec.to_builtins(Limits(sessions_per_subject_max=1, body_bytes_max=100_000))
    async with running_edge(tmp_path_factory.mktemp("refusals"), given, limits=limits) as running:
        yield running


def posted(body: Any, **headers: str) -> Say:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda speaker: speaker.request(
        raw, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def verb(name: str, path: str = "/mcp", **headers: str) -> Say:
    given = {key.replace("_", "-"): text for key, text in headers.items()}
    return lambda speaker: speaker.request(b"", path, name, given)


def legacy(method: str, params: dict[str, Any] | None = None) -> Say:
    return lambda speaker: speaker.legacy(method, params)


def modern(method: str, params: dict[str, Any] | None = None) -> Say:
    return lambda speaker: speaker.modern(method, params)


def in_session(body: bytes) -> Say:
    return lambda speaker: speaker.request(body, headers={"Mcp-Session-Id": speaker.session})


LISTEN: dict[str, Any] = {"notifications": {"toolsListChanged": "yes"}}
TABLE: dict[str, tuple[Say, int]] = {
    # the shape of the request
    "no JSON": (posted(b"{"), 400),
    "a key twice": (posted(b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}'), 400),
    "not UTF-8": (posted(b'{"jsonrpc":"2.0","id":1,"method":"\xff"}'), 400),
    "neither object nor list": (posted(b"7"), 400),
    "no JSON-RPC": (posted({"id": 1, "method": "ping"}), 400),
    "an id that is none": (posted({"jsonrpc": "2.0", "id": [1], "method": "ping"}), 400),
    "params that are a list": (posted({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}), 400),
    "another content type": (posted(b"{}", Content_Type="text/plain"), 415),
    "an accept that no answer fits": (posted(b"{}", Accept="text/html"), 406),
    "an encoded body": (posted(b"{}", Content_Encoding="gzip"), 415),
    "a body that is too large": (posted(b" " * 200_000), 413),
    "a header twice": (
        lambda speaker: speaker.modern("ping").replace(b"\r\n\r\n", b"\r\nMcp-Method: x\r\n\r\n", 1),
        400,
    ),
    "an empty batch": (posted(b"[]"), 400),
    "a batch on another revision": (posted(b"[{}]", MCP_Protocol_Version="2025-11-25"), 400),
    "an unknown revision": (posted(legacy_body("ping"), MCP_Protocol_Version="1999-01-01"), 400),
    # the session
    "no session": (posted(legacy_body("ping")), 400),
    "a session of nobody": (posted(legacy_body("ping"), Mcp_Session_Id="forged"), 404),
    "an answer that nothing waits for": (in_session(b'{"jsonrpc":"2.0","id":"x","result":{}}'), 400),
    "an answer without a session": (posted(b'{"jsonrpc":"2.0","id":"x","result":{}}'), 400),
    "initialize without an id": (posted(legacy_body("initialize", request_id=None)), 400),
    "one session too many": (posted(legacy_body("initialize", {"protocolVersion": "2025-11-25"})), 429),
    "a DELETE without a session": (verb("DELETE"), 400),
    "a DELETE of nobody's session": (verb("DELETE", Mcp_Session_Id="forged"), 404),
    "a GET without a session": (verb("GET", Accept="text/event-stream"), 400),
    "a GET that takes no stream": (verb("GET", Accept="application/json"), 406),
    "a GET of nobody's session": (verb("GET", Accept="text/event-stream", Mcp_Session_Id="forged"), 404),
    "a GET of the modern era": (verb("GET", MCP_Protocol_Version="2026-07-28"), 405),
    "another verb": (verb("PUT"), 405),
    # legacy methods: answered with 200
    "an unknown method": (legacy("tools/steal"), 200),
    "a list's cursor that is none": (legacy("tools/list", {"cursor": "forged"}), 200),
    "a cursor that is no text": (legacy("tools/list", {"cursor": 7}), 200),
    "a log level that is none": (legacy("logging/setLevel", {"level": "shouting"}), 200),
    "a call without a name": (legacy("tools/call", {"name": 7}), 200),
    "a resource without a URI": (legacy("resources/read"), 200),
    "a completion of nothing": (legacy("completion/complete", {"ref": {"type": "ref/none"}}), 200),
    # modern methods
    "an unknown modern method": (modern("tools/steal"), 404),
    "a modern cursor that is none": (modern("tools/list", {"cursor": "forged"}), 400),
    "a modern call without a name": (modern("tools/call", {"name": 7}), 400),
    "a listener for nothing known": (modern("subscriptions/listen", LISTEN), 400),
    "a state that was never given": (modern("tools/call", {"name": "up__echo", "requestState": "forged"}), 400),
    "a method header of another method": (
        lambda speaker: speaker.request(
            modern_body("tools/list"), headers={"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call"}
        ),
        400,
    ),
}


async def refusals(edge: RunningEdge, agent: str) -> list[RequestRefused]:
    events = await edge.place.events("sessions")
    return [one for one in events if isinstance(one, RequestRefused) and one.agent == agent]


@pytest.mark.parametrize("name", TABLE)
async def test_a_refused_request_of_a_known_principal_is_an_event(edge: RunningEdge, name: str) -> None:
    say, status = TABLE[name]
    agent = name.replace(" ", "-")
    speaker = edge.place.speaker(user=f"{agent}@example.com", agent=agent)
    await speaker.initialize()
    answer = await speaker.ask(say(speaker))
    assert answer.status == status, answer.body
    assert "error" in answer.json
    (event,) = await refusals(edge, agent)
    assert (event.status, event.reason, event.count) == (status, f"status-{status}", 1)
    assert event.message
    assert event.subject_id


async def test_a_token_for_another_endpoint_is_an_event(edge: RunningEdge) -> None:
    speaker = edge.place.speaker(agent="elsewhere", audience=f"{edge.settings.url}/mcp/up")
    assert (await speaker.ask(speaker.modern("tools/list"))).status == 401
    (event,) = await refusals(edge, "elsewhere")
    assert event.status == 401


async def test_a_flood_of_malformed_requests_is_a_few_events_that_count_them_all(edge: RunningEdge) -> None:
    speaker = edge.place.speaker(agent="flood")
    await speaker.ask(speaker.modern("tools/list"))
    client = await speaker.connect()
    for _ in range(30):
        bad = speaker.request(modern_body(f"made/up{_}"), headers={"MCP-Protocol-Version": "2026-07-28"})
        client.write(b"".join([bad] * 10))
        for _ in range(10):
            assert (await client.answer()).status >= 400
    client.close()

    async def counted() -> int:
        return sum(one.count for one in await refusals(edge, "flood"))

    async with asyncio.timeout(20):
        while await counted() < 300:
            await asyncio.sleep(0.1)
    events = await refusals(edge, "flood")
    assert await counted() == 300
    assert len(events) < 100
    assert max(one.count for one in events) > 10
    await edge.place.chains_hold()


async def test_what_is_still_summed_when_an_edge_stops_is_recorded(up: Restless, tmp_path: Path) -> None:
    async with running_edge(tmp_path, {"up": {"url": up.url}}) as short:
        speaker = short.place.speaker(agent="last")
        for _ in range(5):
            await speaker.say(*[speaker.request(b"{")] * 10)
    assert sum(one.count for one in await refusals(short, "last")) == 50


async def test_what_a_refused_request_holds_is_masked_in_its_event(edge: RunningEdge) -> None:
    speaker = edge.place.speaker(agent="careless")
    await speaker.ask(speaker.modern(f"tools/{SECRET}"))
    (event,) = await refusals(edge, "careless")
    assert "[masked:key]" in event.method
    assert SECRET.encode() not in b"".join(await edge.place.stored())


async def test_a_question_that_a_client_cannot_be_asked_is_an_event(edge: RunningEdge, up: Restless) -> None:
    speaker = edge.place.speaker(user="quiet@example.com", agent="quiet")
    await speaker.initialize()
    await speaker.ask(speaker.legacy("tools/call", {"name": "up__confirm", "arguments": {"nonce": "quiet"}}))

    async def found() -> list[CallRequested]:
        events = await edge.place.events("calls")
        return [one for one in events if isinstance(one, CallRequested) and one.reason == "client-lacks-capability"]

    events = await found()
    assert [(one.decision, one.stage, one.agent) for one in events] == [("deny", "admission", "quiet")]
