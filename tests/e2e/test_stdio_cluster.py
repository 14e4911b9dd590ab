"""Two edges on one Valkey and one Kafka share the processes of stdio servers: one owner each, everybody's calls."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import ElicitRequestParams, ElicitResult
from tests.parts.asking import get
from tests.parts.books import nonce_of
from tests.parts.clients.raw import MODERN, Raw, Told, http_client
from tests.parts.cluster import ROOT, Cluster, Service, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle
from tests.parts.stdio_calls import heard, until
from tests.parts.valkey import Valkey, running_valkey_server

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

TYPED = {
    "who": "{ nonce?: String }",
    "hold": "{ until: String, nonce?: String }",
    "ask": "{ words?: String, nonce?: String }",
}


class Place:
    """The cluster, and where its servers write down what they hear: `one` is shared, `own` is per principal, `dual` is
    shared and speaks both eras.
    """

    def __init__(self, cluster: Cluster, directory: Path, valkey: Valkey) -> None:
        self.cluster = cluster
        self.valkey = valkey
        self.one = directory / "one"
        self.own = directory / "own"
        self.dual = directory / "dual"
        self.edges = cluster.edges
        self.bases = [edge.base for edge in cluster.edges]

    def owner_of(self, directory: Path) -> tuple[Service, Service]:
        """The edge whose child the last process is, and the other one."""
        parent = parent_of(alive(directory)[-1])
        first, second = self.edges
        return (first, second) if first.pid == parent else (second, first)


def pids(directory: Path) -> list[int]:
    path = directory / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def alive(directory: Path) -> list[int]:
    return [pid for pid in pids(directory) if Path(f"/proc/{pid}").exists()]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def server(directory: Path, kind: str = "talker", **more: Any) -> dict[str, Any]:
    directory.mkdir()
    command = [sys.executable, "-m", "tests.parts.stdio_servers", kind, str(directory)]
    return {"command": command, "cwd": str(ROOT), **more}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("stdio-cluster")
    servers = {
        "one": server(directory / "one"),
        "own": server(directory / "own", process="per-principal", idle_s=4.0),
        "dual": server(directory / "dual", "both"),
    }
    more = {f"{name}/{tool}": typed for name in servers for tool, typed in TYPED.items()}
    with (
        running_valkey_server() as valkey,
        running_cluster(
            directory / "cluster",
            kafka.bootstrap,
            servers=servers,
            bundle=lab_bundle(tuple(servers), more=more),
            sessions=valkey.url,
            limits={"processes_max": 8},
        ) as cluster,
    ):
        yield Place(cluster, directory, valkey)
    assert [alive(directory / name) for name in servers] == [[], [], []]


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    with telling(running.cluster):
        yield running


def value(told: Told) -> Any:
    assert told.is_ok, told
    return json.loads(told.text)


async def asking(raw: Raw, base: str, tool: str, arguments: Any, **more: Any) -> Told:
    """A call of a modern client that can be asked."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta, **more}
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": tool}
    return await raw._post(base, "tools/call", params, headers)


async def test_calls_through_either_edge_reach_the_one_process_and_are_recorded_where_they_came(place: Place) -> None:
    async with http_client() as client:
        anna = Raw(client, place.cluster.token("anna@example.com"))
        told = [value(await anna.call(place.bases[n % 2], "one__who", nonce=f"anna-{n}")) for n in range(6)]
    assert {one["pid"] for one in told} == set(alive(place.one))
    assert len(pids(place.one)) == 1
    place.cluster.wait_shipped()
    mine = [event for event in place.cluster.requests() if str(nonce_of(event)).startswith("anna-")]
    assert sorted((nonce_of(event), event.edge) for event in mine) == [(f"anna-{n}", f"edge-{n % 2}") for n in range(6)]


async def test_each_principal_meets_its_own_process_at_every_edge(place: Place) -> None:
    users = [f"user-{n}@example.com" for n in range(3)]
    async with http_client() as client:
        found = {}
        for user in users:
            raw = Raw(client, place.cluster.token(user))
            found[user] = {value(await raw.call(base, "own__who"))["pid"] for base in place.bases}
        assert all(len(one) == 1 for one in found.values()), found
        assert len(set.union(*found.values())) == 3
        other_agent = Raw(client, place.cluster.token(users[0], agent="desktop"))
        assert value(await other_agent.call(place.bases[0], "own__who"))["pid"] not in set.union(*found.values())


async def test_ten_agents_at_once_have_bounded_processes_and_idle_ones_end(place: Place) -> None:
    async with http_client() as client:
        agents = [Raw(client, place.cluster.token("crowd@example.com", agent=f"agent-{n}")) for n in range(10)]
        answers = await asyncio.gather(
            *[agent.call(place.bases[n % 2], "own__who") for n, agent in enumerate(agents * 2)]
        )
        reasons = {told.decision.get("reason") for told in answers if not told.is_ok}
        assert reasons <= {"upstream-busy"}
        assert len({value(told)["pid"] for told in answers if told.is_ok}) >= 8
        assert len(alive(place.own)) <= 16  # each edge's limit
    await until(lambda: len(alive(place.own)) <= 1, 30.0)  # the gateway's own, which it listens to


async def test_a_paused_call_is_finished_at_the_other_edge(place: Place) -> None:
    async with http_client() as client:
        vera = Raw(client, place.cluster.token("vera@example.com"))
        for first, second in (place.bases, place.bases[::-1]):
            told = await asking(vera, first, "own__ask", {"words": "Sure?"})
            result = told.message["result"]
            assert result["resultType"] == "input_required", told
            (key,) = result["inputRequests"]
            assert result["inputRequests"][key]["params"]["message"] == "Sure?"
            answers = {key: {"action": "accept", "content": {"by": "vera"}}}
            more = {"inputResponses": answers, "requestState": result["requestState"]}
            done = await asking(vera, second, "own__ask", {"words": "Sure?"}, **more)
            assert value(done) == [answers[key]]


async def test_both_processes_of_a_server_of_both_eras_serve_every_edge_and_are_handed_over(place: Place) -> None:
    questions: list[str] = []

    async def answer(context: Any, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        return ElicitResult(action="accept", content={})

    async def called(base: str, mode: str, tool: str, **arguments: Any) -> Any:
        http = create_mcp_http_client({"Authorization": f"Bearer {place.cluster.token('dora@example.com')}"})
        transport = streamable_http_client(f"{base}/mcp", http_client=http)
        async with http, Client(transport, mode=mode, elicitation_callback=answer) as client:
            result = await client.call_tool(f"dual__{tool}", arguments)
            assert not result.is_error, result
            return json.loads(result.content[0].text)

    async def found(bases: Sequence[str]) -> list[set[int]]:
        return [{(await called(base, mode, "who"))["pid"] for base in bases} for mode in ("auto", "legacy")]

    assert [len(one) for one in await found(place.bases)] == [1, 1]
    assert len(alive(place.dual)) == 2
    for base in place.bases:
        (told,) = await called(base, "legacy", "ask", words=base)
        assert told["action"] == "accept"
    assert questions == place.bases
    owner, other = place.owner_of(place.dual)
    before = alive(place.dual)
    assert owner.stop() == 0
    try:
        modern, legacy = await found([other.base])
        assert modern | legacy == set(alive(place.dual))
        assert legacy.isdisjoint(before)
    finally:
        owner.start()
    assert await found(place.bases) == [modern, legacy]


@contextlib.asynccontextmanager
async def streaming_round_robin(listen: str, bases: Sequence[str]) -> AsyncIterator[list[str]]:
    """Each request to the next edge, and what it answers as it comes; yields the growing list of edges asked."""
    asked: list[str] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        base = bases[len(asked) % len(bases)]
        asked.append(base)
        dropped = ("connection", "content-length")
        kept = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        async with client.request(
            request.method, f"{base}{request.path_qs}", data=await request.read(), headers=kept
        ) as got:
            passed = {name: got.headers[name] for name in ("Content-Type", "Mcp-Session-Id") if name in got.headers}
            answer = web.StreamResponse(status=got.status, headers=passed)
            await answer.prepare(request)
            async for part in got.content.iter_any():
                await answer.write(part)
            return answer

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    host, _, port = listen.rpartition(":")
    async with http_client() as client:
        await runner.setup()
        try:
            await web.TCPSite(runner, host, int(port)).start()
            yield asked
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_an_sdk_client_whose_every_request_meets_another_edge_is_asked_by_its_own_process(
    place: Place, mode: str
) -> None:
    questions: list[str] = []

    async def answer(context: Any, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        return ElicitResult(action="accept", content={"n": len(questions)})

    http = create_mcp_http_client({"Authorization": f"Bearer {place.cluster.token(f'{mode}@example.com')}"})
    url = f"{place.cluster.public_url}/mcp"
    async with (
        streaming_round_robin(urlsplit(url).netloc, place.bases) as asked,
        http,
        Client(streamable_http_client(url, http_client=http), mode=mode, elicitation_callback=answer) as client,
    ):
        for number in range(4):
            result = await client.call_tool("own__ask", {"words": f"{mode} {number}"})
            assert not result.is_error, result
            assert json.loads(result.content[0].text) == [{"action": "accept", "content": {"n": number + 1}}]
    assert questions == [f"{mode} {number}" for number in range(4)]
    assert set(place.bases) <= set(asked)


async def test_the_owner_s_death_costs_what_was_in_flight_and_nothing_else(place: Place) -> None:
    owner, other = place.owner_of(place.one)
    (before,) = alive(place.one)
    async with http_client() as client:
        dora = Raw(client, place.cluster.token("dora@example.com"))
        held = asyncio.create_task(dora.call(other.base, "one__hold", until="never", nonce="dora-held"))
        await until(lambda: "dora-held" in heard(place.one))
        owner.kill()
        try:
            told = await held
            assert told.decision["reason"] == "upstream-broken", told
            assert "may have been carried out" in told.text
            again = await dora.call(other.base, "one__who", nonce="dora-again")
            assert value(again)["pid"] not in (0, before)
            await until(lambda: alive(place.one) == [value(again)["pid"]])
            assert parent_of(alive(place.one)[0]) == other.pid
        finally:
            owner.start()
        assert value(await dora.call(owner.base, "one__who"))["pid"] == alive(place.one)[0]
    assert heard(place.one).count("dora-held") == 1


async def test_an_edge_that_is_asked_to_stop_hands_its_processes_over(place: Place) -> None:
    owner, other = place.owner_of(place.one)
    (before,) = alive(place.one)
    assert owner.stop() == 0
    try:
        assert not Path(f"/proc/{before}").exists()
        async with http_client() as client:
            emil = Raw(client, place.cluster.token("emil@example.com"))
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            assert value(await emil.call(other.base, "one__who"))["pid"] in alive(place.one)
            assert loop.time() - began_s < 4.0
    finally:
        owner.start()
    assert len(alive(place.one)) == 1


async def test_nobody_but_an_edge_may_ask_an_edge(place: Place) -> None:
    unknown = get(f"{place.bases[0]}/internal/v1/nothing")
    assert unknown[0] == 404
    async with http_client() as client:
        for path in ("request", "resume", "anything"):
            url = f"{place.bases[0]}/internal/v1/upstream/{path}"
            headers = {"Authorization": f"Bearer {place.cluster.token()}", "X-Tidegate-Time": "1"}
            async with client.post(url, data=os.urandom(100), headers=headers) as response:
                assert (response.status, await response.read()) == unknown


async def test_processes_end_while_nobody_can_own_them_and_one_begins_again_afterwards(place: Place) -> None:
    async with http_client() as client:
        nora = Raw(client, place.cluster.token("nora@example.com"))
        value(await nora.call(place.bases[0], "one__who"))
        place.valkey.kill()
        try:
            await until(lambda: not alive(place.one), 15.0)
            assert not (await nora.call(place.bases[0], "one__who", nonce="nora-away")).is_ok
        finally:
            place.valkey.start()
        for edge in place.edges:
            await until(edge.is_ready, 30.0)
        await until(lambda: len(alive(place.one)) == 1, 15.0)
        told = [value(await nora.call(base, "one__who")) for base in place.bases]
        assert {one["pid"] for one in told} == set(alive(place.one))
    assert "nora-away" not in heard(place.one)
