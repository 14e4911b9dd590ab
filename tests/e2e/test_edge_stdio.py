"""Upstreams that are processes: shared by all callers, restarted when they die, and never left behind."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import ElicitRequestParams, ElicitResult
from tests.parts.edge import MODERN, ROOT, Answer, RunningEdge, Speaker, edge_process, running_edge, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def raw(directory: Path, **more: Any) -> dict[str, Any]:
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.parts.stdio_servers", "raw", str(directory)]
    return {"command": command, "cwd": str(ROOT), "timeout_s": 2.0, **more}


def pids(directory: Path) -> list[int]:
    """Every process that the server was, and their children, in order."""
    path = directory / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    sdk = {"command": [sys.executable, "-m", "tests.parts.stdio_servers", "sdk"], "cwd": str(ROOT)}
    servers = {"raw": raw(directory, env={"GIVEN": "1"}), "sdk": sdk}
    async with running_edge(tmp_path_factory.mktemp("stdio"), servers) as running:
        yield running
    assert not [pid for pid in pids(directory) if is_alive(pid)]


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


async def works_again(speaker: Speaker) -> None:
    async def answers() -> bool:
        answer = await speaker.call("raw__echo", {"again": 1})
        return answer.status == 200 and not answer.result.get("isError")

    await until(answers)


def reason(answer: Answer) -> str:
    assert answer.result["isError"] is True
    return str(answer.result["_meta"]["tidegate/decision"]["reason"])


async def test_a_server_made_with_the_official_sdk_is_called(speaker: Speaker) -> None:
    answer = await speaker.call("sdk__add", {"a": 2, "b": 40})
    assert answer.text == "42"
    assert answer.result["structuredContent"] == {"result": 42}
    await speaker.initialize()
    legacy = await speaker.ask(speaker.legacy("tools/call", {"name": "sdk__add", "arguments": {"a": 1, "b": 1}}))
    assert legacy.text == "2"
    wrong = await speaker.call("sdk__add", {"a": "x"})
    assert wrong.result["isError"] is True


async def test_callers_share_the_process_without_waiting_for_each_other(speaker: Speaker) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    calls = [speaker.call("raw__slow", {"s": 0.5, "n": n}) for n in range(10)]
    answers = await asyncio.gather(*calls, *[speaker.call("raw__echo", {"n": n}) for n in range(10)])
    assert loop.time() - began_s < 2.5
    assert [json.loads(answer.text)["n"] for answer in answers] == [*range(10), *range(10)]


@pytest.mark.parametrize("tool", ["crash", "silent-death"])
async def test_a_crash_fails_what_was_in_flight_and_the_process_is_started_again(
    edge: RunningEdge, directory: Path, speaker: Speaker, tool: str
) -> None:
    before = pids(directory)
    slow = asyncio.create_task(speaker.call("raw__slow", {"s": 1.5, "nonce": f"slow-{tool}"}))
    await until(lambda: f"slow-{tool}" in (directory / "heard").read_text())
    answer = await speaker.call(f"raw__{tool}", {"nonce": f"dies-{tool}"})
    assert reason(answer) == "upstream-broken"
    assert ("the last words" in answer.text) == (tool == "crash")
    assert "It may have been carried out" in answer.text
    assert reason(await slow) == "upstream-broken"
    await works_again(speaker)
    assert len(pids(directory)) == len(before) + 2
    await until(lambda: not any(is_alive(pid) for pid in before))  # its children with it
    for nonce in (f"slow-{tool}", f"dies-{tool}"):
        _, (ended,) = await edge.place.calls(nonce)
        assert (ended.outcome, ended.reason) == ("upstream-failed", "upstream-broken")
        assert (directory / "heard").read_text().count(nonce) == 1


async def test_junk_on_its_output_is_passed_over(directory: Path, speaker: Speaker) -> None:
    before = pids(directory)
    assert (await speaker.call("raw__junk", {"n": 1})).text == '{"n": 1}'
    assert (await speaker.call("raw__echo", {"n": 2})).text == '{"n": 2}'
    assert pids(directory) == before


async def test_a_line_without_end_ends_the_process(directory: Path, speaker: Speaker) -> None:
    assert reason(await speaker.call("raw__long-line")) == "upstream-broken"
    await works_again(speaker)


async def test_the_servers_own_requests_are_answered(speaker: Speaker) -> None:
    answered = json.loads((await speaker.call("raw__ask-me")).text)
    assert answered[0] == {"id": "mine", "jsonrpc": "2.0", "result": {}}
    assert (answered[1]["id"], answered[1]["error"]["code"]) == (7, -32601)


async def test_a_call_out_of_time_is_cancelled_at_the_server(
    edge: RunningEdge, directory: Path, speaker: Speaker
) -> None:
    assert reason(await speaker.call("raw__never", {"nonce": "timed-out"})) == "upstream-timeout"
    heard = [json.loads(line) for line in (directory / "heard").read_text().splitlines()]
    (call,) = [one for one in heard if "timed-out" in str(one.get("params", {}).get("arguments"))]
    await until(lambda: f'"requestId":{call["id"]}' in (directory / "heard").read_text())
    assert (await edge.place.calls("timed-out"))[1][0].outcome == "timeout"


async def test_a_caller_that_leaves_cancels_at_the_server(edge: RunningEdge, directory: Path, speaker: Speaker) -> None:
    client = await speaker.connect()
    client.write(speaker.calling("raw__never", {"nonce": "left-alone"}))
    await until(lambda: "left-alone" in (directory / "heard").read_text())
    client.close()
    await until(lambda: "the caller went away" in (directory / "heard").read_text())

    async def recorded() -> bool:
        return [one.outcome for one in (await edge.place.calls("left-alone"))[1]] == ["cancelled"]

    await until(recorded)


async def test_the_process_sees_what_it_was_given_of_the_environment_alone(speaker: Speaker, monkeypatch: Any) -> None:
    names = json.loads((await speaker.call("raw__secret-env")).text)
    assert "GIVEN" in names
    assert "PATH" in names
    assert not [name for name in names if name.startswith(("PYTEST", "TIDEGATE"))]


async def test_a_stop_ends_the_process_and_its_children(tmp_path: Path) -> None:
    async with running_edge(tmp_path, {"raw": raw(tmp_path / "r")}) as edge:
        await edge.place.speaker().call("raw__echo")
        assert all(map(is_alive, pids(tmp_path / "r")))
    assert not any(map(is_alive, pids(tmp_path / "r")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_nothing_is_left_behind_however_the_edge_ends(tmp_path: Path, number: signal.Signals) -> None:
    async with edge_process(tmp_path, {"raw": raw(tmp_path / "r")}) as edge:
        await edge.place.speaker().call("raw__echo")
        family = pids(tmp_path / "r")
        assert len(family) == 2
        os.kill(edge.process.pid, number)
        await asyncio.to_thread(edge.process.wait, 15)
        await until(lambda: not any(map(is_alive, family)))


async def test_ten_agents_with_processes_of_their_own_leave_nothing_behind_a_killed_edge(tmp_path: Path) -> None:
    directory = tmp_path / "t"
    directory.mkdir()
    command = [sys.executable, "-m", "tests.parts.stdio_servers", "talker", str(directory)]
    own = {"command": command, "cwd": str(ROOT), "process": "per-principal"}
    limits = {"processes_max": 6, "processes_per_principal_max": 6}
    async with edge_process(tmp_path, {"own": own}, limits=limits) as edge:
        speakers = [edge.place.speaker(agent=f"agent-{n}") for n in range(10)]
        for _ in range(2):
            answers = await asyncio.gather(*[one.call("own__who") for one in speakers])
            good = [one for one in answers if not one.result.get("isError")]
            assert len(good) >= 5  # one process is the gateway's own
            assert {reason(one) for one in answers if one not in good} <= {"upstream-busy"}
            await until(lambda: len([pid for pid in pids(directory) if Path(f"/proc/{pid}").exists()]) <= 6)
        for speaker in speakers:  # one after the other: idle ones make room
            assert json.loads((await speaker.call("own__who")).text)["pid"] in pids(directory)
        os.kill(edge.process.pid, signal.SIGKILL)
        await asyncio.to_thread(edge.process.wait, 15)
        await until(lambda: not [pid for pid in pids(directory) if is_alive(pid)])


def written(kind: str, directory: Path, **more: Any) -> dict[str, Any]:
    """A server that writes its pids there."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.parts.stdio_servers", kind, str(directory)]
    return {"command": command, "cwd": str(ROOT), **more}


@contextlib.asynccontextmanager
async def sdk_client(edge: RunningEdge, mode: str, told: list[str]) -> AsyncIterator[Client]:
    """The official SDK's; what it is asked and told in log lines is added to `told`."""

    async def answer(context: Any, params: ElicitRequestParams) -> ElicitResult:
        told.append(params.message)
        return ElicitResult(action="accept", content={"row": 7})

    async def hear(params: Any) -> None:
        told.append(str(params.data))

    http = create_mcp_http_client({"Authorization": f"Bearer {edge.place.token()}"})
    transport = streamable_http_client(f"{edge.settings.url}/mcp", http_client=http)
    async with http, Client(transport, mode=mode, elicitation_callback=answer, logging_callback=hear) as client:
        yield client


async def test_an_sdk_server_of_both_eras_is_asked_in_that_of_each_client(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    async with running_edge(tmp_path, {"dual": written("dual", directory)}) as edge:
        assert len(pids(directory)) == 1
        told: list[str] = []
        async with sdk_client(edge, "legacy", told) as client:
            result = await client.call_tool("dual__ask", {"name": "Anna"})
            assert result.content[0].text == "Anna sits in row 7"
            result = await client.call_tool("dual__book", {"name": "Bert"})
            assert result.content[0].text == "Bert sits in row 7"
            legacy = (await client.call_tool("dual__who", {})).content[0].text
        assert told == ["looking for Anna", "Which row for Anna?", "Which row for Bert?"]
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
        }
        speaker = edge.place.speaker()
        params = {"name": "dual__book", "arguments": {"name": "Cleo"}, "_meta": meta}
        paused = (await speaker.ask(speaker.modern("tools/call", params))).result
        assert paused["resultType"] == "input_required"
        assert [one["params"]["message"] for one in paused["inputRequests"].values()] == ["Which row for Cleo?"]
        async with sdk_client(edge, "auto", told) as client:
            result = await client.call_tool("dual__book", {"name": "Cleo"})
            assert result.content[0].text == "Cleo sits in row 7"
            modern = (await client.call_tool("dual__who", {})).content[0].text
        assert [int(modern), int(legacy)] == pids(directory)
        assert all(map(is_alive, pids(directory)))
    assert not any(map(is_alive, pids(directory)))


async def test_legacy_clients_of_a_modern_server_and_modern_clients_of_a_legacy_one_are_translated(
    tmp_path: Path,
) -> None:
    servers = {"new": written("modern", tmp_path / "new"), "old": written("talker", tmp_path / "old")}
    async with running_edge(tmp_path, servers) as edge:
        speaker = edge.place.speaker()
        await speaker.initialize()
        for name, starts in (("new", 2), ("old", 1)):
            params = {"name": f"{name}__who", "arguments": {}}
            told = [await speaker.ask(speaker.legacy("tools/call", params)) for _ in range(2)]
            told.append(await speaker.call(f"{name}__who"))
            assert {json.loads(one.text)["pid"] for one in told} == {pids(tmp_path / name)[0]}
            assert len(pids(tmp_path / name)) == starts  # a second one was tried once, and ended
        assert [is_alive(pid) for pid in pids(tmp_path / "new")] == [True, False]


async def test_second_processes_count_among_all_and_end_when_they_are_idle(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    server = written("both", directory, process="per-principal", idle_s=1.0)
    async with running_edge(tmp_path, {"own": server}, limits={"processes_max": 3}) as edge:
        speaker = edge.place.speaker()
        await speaker.initialize()
        params = {"name": "own__who", "arguments": {}}
        legacy = await speaker.ask(speaker.legacy("tools/call", params))
        assert json.loads(legacy.text)["pid"] in pids(directory)
        modern = await speaker.call("own__who")
        assert modern.text != legacy.text
        assert len([pid for pid in pids(directory) if is_alive(pid)]) <= 3
        await until(lambda: len([pid for pid in pids(directory) if is_alive(pid)]) == 1)  # it is listened to
    assert not any(map(is_alive, pids(directory)))


async def test_a_command_that_does_not_exist_costs_nobody_else(tmp_path: Path) -> None:
    servers = {"none": {"command": ["/no/such/command"], "timeout_s": 1.0}, "raw": raw(tmp_path / "r")}
    async with running_edge(tmp_path, servers, waits=("raw",)) as edge:
        assert (await edge.place.speaker().call("raw__echo", {"n": 1})).text == '{"n": 1}'
        assert (await edge.place.speaker().call("none__echo")).error["message"] == "Unknown tool: none__echo"
