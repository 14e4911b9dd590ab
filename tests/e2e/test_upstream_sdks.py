"""The adapter before servers on the official SDKs: Python 2.x (both eras), 1.30 with and without stored events, and
1.30 over the older HTTP+SSE.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.fixtures import running_fixture
from tests.parts import sdk130
from tests.parts.processes import free_port, spawn, stop, wait_ready
from tests.parts.upstreams import ALICE, ASKABLE, Talking, opened, outgoing, said, words

from tidegate_edge.messages import CLIENT_CAPABILITIES_META, PROTOCOL_VERSION_META
from tidegate_edge.upstream.port import Answer, Paused, Routing, Wanted

ACCEPTED = Answer(result=b'{"action":"accept","content":{"name":"Ann"}}')
MODERN_META = {PROTOCOL_VERSION_META: "2026-07-28", CLIENT_CAPABILITIES_META: {}}


@pytest.fixture(scope="module", params=["py", "legacy"])
def fixture(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with running_fixture(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield request.param, url


@pytest.fixture(scope="module", params=["streamable-http", "sse"])
def plain(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    port, directory = free_port(), tmp_path_factory.mktemp("plain")
    script = Path(__file__).parents[1] / "parts" / "plain130.py"
    process = spawn([str(sdk130.python()), str(script), str(port), request.param], cwd=directory, log=directory / "log")
    try:
        wait_ready(lambda: _listens(port), process, directory / "log", deadline_s=40)
        yield request.param, f"http://127.0.0.1:{port}/{'sse' if request.param == 'sse' else 'mcp'}"
    finally:
        stop(process, 5)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "arguments": more.pop("arguments", {}), **more}


async def test_the_era_is_found_and_the_offer_is_read(fixture: tuple[str, str]) -> None:
    name, url = fixture
    async with opened(url) as up:
        assert (await up.era(True, 10), await up.era(False, 10)) == (name == "py", False)
        found = await up.definitions(10)
        assert (len(found.tools), len(found.prompts), len(found.resources)) == (28, 5, 3)
        assert found.partial == {}
        assert "tools" in json.loads(found.capabilities)


async def test_progress_and_logs_come_with_a_call(fixture: tuple[str, str]) -> None:
    async with opened(fixture[1]) as up:
        talk = Talking()
        params = tool("test_tool_with_progress", _meta={"progressToken": "mine"})
        assert "done" in words(await up.request(outgoing(params=params, progress_token="mine"), talk))
        assert [heard["progress"] for _, heard in talk.heard] == [0, 50, 100]
        talk.heard.clear()
        await up.request(outgoing(params=tool("test_tool_with_logging"), log_level="debug"), talk)
        assert [method for method, _ in talk.heard] == ["notifications/message"] * 3


async def test_questions_reach_the_client_and_its_answers_the_server(fixture: tuple[str, str]) -> None:
    async with opened(fixture[1]) as up:
        talk = Talking(answers=lambda method, params: Answer(result=b'{"action":"decline"}'))
        params = tool("test_elicitation", arguments={"message": "well?"})
        assert "action=decline" in words(await up.request(outgoing(params=params, caller=ASKABLE), talk))
        assert [params["message"] for _, params in talk.questions] == ["well?"]


async def test_a_paused_call_is_finished_by_another_edge(fixture: tuple[str, str]) -> None:
    params = tool("test_elicitation", arguments={"message": "well?"})
    async with opened(fixture[1]) as one, opened(fixture[1]) as other:
        pause = await one.request(outgoing(params=params, caller=ASKABLE), Talking(pausable=True))
        assert isinstance(pause, Paused)
        assert pause.edge == ""
        answers = {key: Answer(result=b'{"action":"cancel"}') for key in pause.asked}
        assert "action=cancel" in words(await other.resume(pause.ticket, answers, ASKABLE, Talking(), 10))


async def test_a_stream_that_the_server_leaves_is_come_back_to(fixture: tuple[str, str]) -> None:
    async with opened(fixture[1]) as up:
        talk = Talking()
        assert "done" in words(await up.request(outgoing(params=tool("test_reconnection")), talk))
        assert talk.rests


async def test_changes_are_heard_in_the_era_that_is_listened_in(fixture: tuple[str, str]) -> None:
    name, url = fixture
    async with opened(url) as up:
        for modern in {False, name == "py"}:
            talk = Talking()
            wanted = Wanted(tools=True, prompts=True, resources=True)
            task = asyncio.create_task(up.listen(wanted, ASKABLE, modern, talk))
            params = tool("test_trigger_tool_change", **({"_meta": MODERN_META} if modern else {}))
            asking = outgoing(params=params, caller=ASKABLE, modern=modern, routing=Routing(params["name"]))
            async with asyncio.timeout(10):
                while not talk.heard:  # the stream may not be open yet
                    said(await up.request(asking, Talking()))
            assert talk.heard[0][0] == "notifications/tools/list_changed"
            task.cancel()
            await asyncio.wait([task])


async def test_a_server_without_stored_events_is_asked_over_a_stream_that_stays_open(plain: tuple[str, str]) -> None:
    async with opened(plain[1]) as up, opened(plain[1]) as other:
        assert await up.era(True, 10) is False
        talk = Talking()
        params = tool("count", _meta={"progressToken": "mine"})
        assert words(await up.request(outgoing(params=params, progress_token="mine"), talk)) == "counted"
        assert [heard["progress"] for _, heard in talk.heard] == [1, 2, 3]
        talk = Talking(answers=lambda method, params: ACCEPTED)
        asking = outgoing(params=tool("greet"), caller=ASKABLE)
        assert words(await up.request(asking, talk)) == "Hello Ann"
        pause = await up.request(asking, Talking(pausable=True))
        assert isinstance(pause, Paused)
        assert pause.edge
        done = await up.resume(pause.ticket, dict.fromkeys(pause.asked, ACCEPTED), ASKABLE, Talking(pausable=True), 10)
        assert words(done) == "Hello Ann"
        assert len((await other.definitions(10)).tools) == 2
        await up.end(ASKABLE)
        await up.end(ALICE)
