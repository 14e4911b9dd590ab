"""Streams over two edges that share a session store: what one edge began, the other goes on with."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.e2e.test_streams_edge import get, next_json, silent, streaming
from tests.parts.edge import RunningEdge, Speaker, running_edge, until
from tests.parts.processes import free_port
from tests.parts.radio import Radio, radio
from tests.parts.valkey import running_valkey

from tidegate.secrets import create_secrets
from tidegate_edge import outlet

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def old() -> AsyncIterator[Radio]:
    async with radio("sessions") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edges(old: Radio, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[RunningEdge]]:
    root = tmp_path_factory.mktemp("cluster")
    create_secrets(root / "secrets.json")
    with running_valkey() as url:
        shared: dict[str, Any] = {
            "public_url": f"http://127.0.0.1:{free_port()}",
            "secrets_file": str(root / "secrets.json"),
            "sessions": url,
        }
        roots = [root / "a", root / "b"]
        for one in roots:
            one.mkdir()
        servers = {"old": {"url": old.url}}
        async with running_edge(roots[0], servers, **shared) as a, running_edge(roots[1], servers, **shared) as b:
            await until(lambda: not a.edge.sessions.awaiting and not b.edge.sessions.awaiting)
            yield [a, b]


@pytest_asyncio.fixture(loop_scope="module")
async def speakers(edges: list[RunningEdge]) -> list[Speaker]:
    """One legacy client in one session, at each edge."""
    token = edges[0].place.token()
    first, second = (Speaker(edge.settings.listen, token) for edge in edges)
    answer = await first.initialize(capabilities={"elicitation": {}})
    assert answer.status == 200, answer.body
    second.session = first.session
    return [first, second]


async def test_a_stream_at_another_edge_takes_the_place_of_the_first(
    edges: list[RunningEdge], speakers: list[Speaker]
) -> None:
    async with streaming(speakers[0], get(speakers[0])) as first:
        await until(lambda: len(edges[0].edge.streams) == 1)
        async with streaming(speakers[1], get(speakers[1])):
            assert await first.events() == []
            await until(lambda: (len(edges[0].edge.streams), len(edges[1].edge.streams)) == (0, 1))


async def test_the_stream_hears_the_upstream_session_that_another_edge_opened(
    speakers: list[Speaker], old: Radio
) -> None:
    calling = speakers[1].legacy("tools/call", {"name": "old__echo"})
    async with streaming(speakers[0], get(speakers[0])) as client:
        session = await old.session_of(lambda: speakers[1].ask(calling))
        await until(lambda: session in old.listening)
        old.say(session, "notifications/message", {"level": "info", "data": "heard"})
        assert (await next_json(client))["params"]["data"] == "heard"
        level = speakers[1].legacy("logging/setLevel", {"level": "error"})
        assert (await speakers[1].ask(level)).result == {}
        for _ in range(50):  # the other edge hears of it a moment later
            old.say(session, "notifications/message", {"level": "info", "data": "perhaps"})
            old.say(session, "notifications/message", {"level": "error", "data": "loud"})
            if (await next_json(client))["params"]["data"] == "loud":
                return
            await next_json(client)
        pytest.fail("the level that was set at another edge was not heeded")


async def test_a_question_at_one_edge_is_answered_at_the_other(speakers: list[Speaker], old: Radio) -> None:
    calling = speakers[0].legacy("tools/call", {"name": "old__echo"})
    async with streaming(speakers[0], get(speakers[0])) as client:
        session = await old.session_of(lambda: speakers[0].ask(calling))
        await until(lambda: session in old.listening)
        old.ask(session, "elicitation/create", {"message": "?", "requestedSchema": {"type": "object"}}, 11)
        asked = await next_json(client)
        raw = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}}).encode()
        answered = speakers[1].request(raw, headers={"Mcp-Session-Id": speakers[1].session})
        assert (await speakers[1].ask(answered)).status == 202
        await until(lambda: any(one.get("id") == 11 for one in old.answers))


async def test_an_answer_is_fetched_at_another_edge(
    speakers: list[Speaker], old: Radio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "OPENS_AFTER_S", 0.1)
    old.hold.clear()
    calling = speakers[0].legacy("tools/call", {"name": "old__slow"}, request_id=5)
    async with streaming(speakers[0], calling) as client:
        priming = await client.event()
        assert priming is not None
    async with streaming(speakers[1], get(speakers[1], **{"Last-Event-ID": priming.id})) as resumed:
        await silent(resumed)
        old.hold.set()
        assert [one.json["id"] for one in await resumed.events()] == [5]


async def test_a_call_is_cancelled_from_another_edge(
    edges: list[RunningEdge], speakers: list[Speaker], old: Radio
) -> None:
    old.hold.clear()
    client = await speakers[0].connect()
    client.write(speakers[0].legacy("tools/call", {"name": "old__slow"}, request_id=8))
    await until(lambda: old.holding > 0 and len(edges[0].edge.inflight) == 1)
    params = {"requestId": 8, "reason": "changed my mind"}
    cancelled = speakers[1].legacy("notifications/cancelled", params, request_id=None)
    assert (await speakers[1].ask(cancelled)).status == 202
    answer = await client.answer()
    assert (answer.status, answer.body) == (202, b"")
    assert len(edges[0].edge.inflight) == 0
    old.hold.set()
    client.close()


async def test_a_deleted_session_s_stream_ends_at_the_other_edge(speakers: list[Speaker]) -> None:
    async with streaming(speakers[0], get(speakers[0])) as client:
        gone = speakers[1].request(b"", verb="DELETE", headers={"Mcp-Session-Id": speakers[1].session})
        assert (await speakers[1].ask(gone)).status == 200
        assert await client.events() == []
