"""What users of gateways suffer from with leaks: processes, sessions and memory that never come back. Two edges with
short idle times, so that what must end can be waited for. `docs/user-asks.md` names the complaints.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from functools import partial

import pytest
from tests.parts.asking import children_of, exchange, is_alive, until
from tests.parts.clients.raw import LEGACY, Raw, Told, http_client
from tests.parts.cluster import telling
from tests.parts.edge import Client, Speaker
from tests.parts.federation import World, federation
from tests.parts.kafka import Kafka
from tests.parts.strays import holding, zombies_of

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
IDLE_S = 4.0
PROCESS_IDLE_S = 3.0
PROCESSES_MAX = 12
STREAMS_MAX = 20
SESSIONS_MAX = 120
EXPIRY_DEADLINE_S = 60.0
POOLED = 40  # connections to servers are kept for the next burst: as many as callers at once, at most
LIMITS = {
    "session_idle_s": IDLE_S,
    "session_window_s": IDLE_S,
    "upstream_session_idle_s": IDLE_S,
    "stream_kept_s": IDLE_S,
    "processes_max": PROCESSES_MAX,
    "streams_per_subject_max": STREAMS_MAX,
    "sessions_per_subject_max": SESSIONS_MAX,
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("leaks")
    with federation(directory, kafka.bootstrap, own={"idle_s": PROCESS_IDLE_S}, limits=LIMITS) as world:
        yield world


@pytest.fixture
def world(running: World) -> Iterator[World]:
    with telling(running.cluster):
        yield running


def children(world: World) -> list[int]:
    return [pid for edge in world.cluster.edges for pid in children_of(edge.pid) if pid in world.pids()]


def is_at_rest(world: World) -> bool:
    """No process of `own` lives but the one in which each edge hears of changes."""
    return sum(map(is_alive, world.pids())) <= len(world.cluster.edges)


# ---- processes


async def test_ten_agents_in_parallel_start_ten_processes_and_all_of_them_end(world: World) -> None:
    await asyncio.to_thread(until, partial(is_at_rest, world), "what discovery started has ended", 30)
    before = len(world.pids())
    async with http_client() as connections:
        agents = [Raw(connections, world.cluster.token(f"agent{n}@example.com", agent=f"a{n}")) for n in range(10)]
        calls = [agent.call(world.bases[n % 2], "own__who") for n, agent in enumerate(agents * 6)]
        told = await asyncio.gather(*calls)
        assert not [one for one in told if not one.is_ok]
        pids = [json.loads(one.text)["pid"] for one in told]
        for number in range(10):
            assert len(set(pids[number::10])) == 1, "an agent has one process at a time"
        assert len(set(pids)) == 10
        assert len(world.pids()) == before + 10, "no call started a process of its own"
        assert set(pids) <= set(children(world))
        assert len(children(world)) <= 10 + len(world.cluster.edges)
    await asyncio.to_thread(until, partial(is_at_rest, world), "processes nobody uses end", 30)
    for edge in world.cluster.edges:
        assert not zombies_of(edge.pid)


async def test_past_the_cap_a_process_is_refused_by_name_and_nothing_is_started(world: World) -> None:
    await asyncio.to_thread(until, partial(is_at_rest, world), "nothing runs", 30)
    before = len(world.pids())
    async with http_client() as connections:
        callers = [
            Raw(connections, world.cluster.token(f"cap{n}@example.com", agent=f"c{n}"))
            for n in range(PROCESSES_MAX + 3)
        ]
        held = [
            asyncio.create_task(caller.call(world.bases[0], "own__hold", until="the-cap-was-met")) for caller in callers
        ]
        early, _ = await asyncio.wait(held, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert early, "somebody was refused"
            refused: list[Told] = [task.result() for task in early]
            for told in refused:
                assert not told.is_ok
                assert "process" in str(told.message)
                assert str(PROCESSES_MAX) in str(told.message)
            mine = set(children_of(world.cluster.edges[0].pid)) & set(world.pids())
            assert len(mine) <= PROCESSES_MAX
            assert len(world.pids()) - before <= PROCESSES_MAX
        finally:
            (world.processes / "the-cap-was-met").touch()
        told_all = await asyncio.gather(*held)
        assert sum(told.is_ok for told in told_all) >= PROCESSES_MAX - 2
    await asyncio.to_thread(until, partial(is_at_rest, world), "they end", 30)


# ---- sessions


@pytest.mark.parametrize("verb", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH"])
def test_a_refused_request_leaves_nothing_behind(world: World, verb: str) -> None:
    token = world.cluster.token("refused@example.com")
    keys, opened = world.store.names("*session*"), (world.one.opened, world.two.opened)
    for headers in (
        {},
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"Bearer {token}", "Accept": "text/event-stream", "MCP-Protocol-Version": LEGACY},
        {"Authorization": f"Bearer {token}", "Accept": "text/event-stream", "Mcp-Session-Id": "made-up"},
    ):
        for base in world.bases:
            status, _ = exchange(verb, f"{base}/mcp", headers)
            assert 400 <= status < 500, (verb, headers)
    assert world.store.names("*session*") <= keys
    assert (world.one.opened, world.two.opened) == opened


def test_a_refused_initialize_leaves_nothing_behind(world: World) -> None:
    token = world.cluster.token("refused@example.com")
    keys = world.store.names("*session*")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for body in (b"{}", b"[", b'{"jsonrpc":"2.0","method":"initialize","params":{}}', b'{"jsonrpc":"2.0","id":1}'):
        status, _ = exchange("POST", f"{world.bases[0]}/mcp", headers, body)
        assert 400 <= status < 500, body
    assert exchange("POST", f"{world.bases[0]}/mcp", {"Content-Type": "application/json"}, b"{}")[0] == 401
    assert world.store.names("*session*") <= keys


async def test_at_rest_nothing_is_opened_asked_or_said(world: World) -> None:
    await asyncio.to_thread(until, partial(is_at_rest, world), "nothing runs", 30)
    await asyncio.to_thread(until, lambda: len(world.one.sessions) <= 2, "sessions of the tests before end", 60)
    servers = (world.one, world.two, world.new)
    before = [(server.opened, len(server.seen)) for server in servers]
    said = [edge.log.stat().st_size for edge in world.cluster.edges]
    await asyncio.to_thread(world.store.pass_time, 2 * int(IDLE_S))
    for server, (opened, seen) in zip(servers, before, strict=True):
        assert server.opened - opened <= 1, "the session in which changes are heard is kept"
        assert len(server.seen) - seen <= 20
    assert [edge.log.stat().st_size for edge in world.cluster.edges] == said


async def test_sessions_nobody_uses_end_everywhere_and_memory_comes_back(world: World) -> None:
    def is_quiet() -> bool:
        return not world.store.names("acme|1|session*") and is_at_rest(world)

    await asyncio.to_thread(until, is_quiet, "nobody is left of the tests before", EXPIRY_DEADLINE_S)
    await asyncio.to_thread(until, lambda: len(world.one.sessions) <= 2, "the first server is left alone", 60)
    rest, streams = (len(world.one.sessions), len(world.two.sessions)), len(world.one.streams)

    async def crowd(name: str) -> None:
        async with http_client() as connections:
            callers = [Raw(connections, world.cluster.token(f"{name}{n}@example.com")) for n in range(20)]

            async def live(number: int) -> bool:
                caller = callers[number % 20]
                session = await caller.initialize(world.bases[number % 2])
                told = [
                    await caller.call(world.bases[(number + turn) % 2], tool, session)
                    for turn, tool in enumerate(("one__echo", "two__echo"))
                ]
                return all(one.is_ok for one in told)  # and vanish, without a word

            for start in range(0, 200, 40):
                assert all(await asyncio.gather(*map(live, range(start, start + 40))))

    async def gone() -> None:
        await asyncio.to_thread(until, is_quiet, "sessions expire", EXPIRY_DEADLINE_S)
        for server, count in zip((world.one, world.two), rest, strict=True):
            fact = partial(lambda server, count: len(server.sessions) <= count, server, count)
            await asyncio.to_thread(until, fact, "their upstream sessions are ended", EXPIRY_DEADLINE_S)

    await crowd("warm")  # caches, pools and the interpreter find their size
    await gone()
    before = [holding(edge.pid) for edge in world.cluster.edges]
    await crowd("crowd")
    await gone()
    after = [holding(edge.pid) for edge in world.cluster.edges]
    for old, new in zip(before, after, strict=True):
        assert new.rss_kib - old.rss_kib < 8 * 1024, (old, new)
        assert new.descriptors <= old.descriptors + POOLED, (old, new)
        assert new.threads <= old.threads + 1, (old, new)
    assert len(world.one.streams) <= streams


async def test_a_principal_holds_so_many_sessions_and_is_told_when_it_has_them(world: World) -> None:
    speaker = world.speaker(0, "hoarder@example.com")
    client = await speaker.connect()
    try:
        statuses = []
        for _ in range(SESSIONS_MAX + 5):
            params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "h", "version": "1"}}
            client.write(speaker.legacy("initialize", params))
            answer = await client.answer()
            statuses.append(answer.status)
    finally:
        client.close()
    assert statuses[:SESSIONS_MAX] == [200] * SESSIONS_MAX
    assert statuses[SESSIONS_MAX:] == [429] * 5
    assert str(SESSIONS_MAX) in answer.error["message"]
    other = world.speaker(1, "modest@example.com")
    assert (await other.initialize()).status == 200


# ---- streams


async def opened_stream(speaker: Speaker) -> tuple[Client, int]:
    """A GET stream of the speaker's session, and its status."""
    client = await speaker.connect()
    headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session, "Accept": "text/event-stream"}
    client.write(speaker.request(b"", verb="GET", headers={**headers, "Content-Length": "", "Content-Type": ""}))
    answer = await client.stream()
    return client, answer.status


async def test_streams_of_a_principal_are_bounded_and_given_back_when_clients_vanish(world: World) -> None:
    before = holding(world.cluster.edges[0].pid)
    for _ in range(3):  # what is not given back fails the second round
        speakers = [world.speaker(0, "streams@example.com") for _ in range(STREAMS_MAX + 4)]
        for speaker in speakers:
            assert (await speaker.initialize()).status == 200
        opened = [await opened_stream(speaker) for speaker in speakers]
        assert [status for _, status in opened].count(200) == STREAMS_MAX
        assert {status for _, status in opened} == {200, 429}
        for client, _ in opened:
            client.writer.transport.abort()  # no farewell
        fact = partial(has_at_most, world.cluster.edges[0].pid, before.descriptors + 12)
        await asyncio.to_thread(until, fact, "their connections are closed", 30)


async def test_clients_that_vanish_amid_an_answer_leave_nothing(world: World) -> None:
    await asyncio.to_thread(until, lambda: world.cluster.edges[0].metric("tidegate_calls_in_flight") == 0, "at rest")
    before = [holding(edge.pid) for edge in world.cluster.edges]

    async def vanish(number: int) -> None:
        speaker = world.speaker(number % 2, f"vanish{number % 7}@example.com")
        params = {
            "name": ("one__drip", "new__drip")[number // 2 % 2],
            "arguments": {"times": 20, "gap_s": 0.05, "nonce": f"vanish {number}"},
            "_meta": {"progressToken": number},
        }
        client = await speaker.connect()
        if number % 3 == 0:
            await speaker.initialize()
            client.write(speaker.legacy("tools/call", params))
        else:
            meta = {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "progressToken": number,
            }
            client.write(speaker.modern("tools/call", {**params, "_meta": meta}))
        with contextlib.suppress(asyncio.IncompleteReadError):
            await client.stream()
            assert await client.event() is not None
        client.writer.transport.abort()

    for start in range(0, 120, 40):
        await asyncio.gather(*map(vanish, range(start, start + 40)))

    def is_over() -> bool:
        return all(edge.metric("tidegate_calls_in_flight") == 0 for edge in world.cluster.edges)

    await asyncio.to_thread(until, is_over, "nothing is under way any more", 30)
    for edge, old in zip(world.cluster.edges, before, strict=True):
        until(partial(has_at_most, edge.pid, old.descriptors + 40), "descriptors come back", 60)
    nonces = world.one.nonces() + world.new.nonces()
    assert all(nonces.count(f"vanish {number}") == 1 for number in range(120))


@pytest.mark.parametrize("how", ["is ended", "expires"])
async def test_a_question_does_not_outlast_the_session_that_could_answer_it(world: World, how: str) -> None:
    edge = world.cluster.edges[0]
    await asyncio.to_thread(until, lambda: edge.metric("tidegate_calls_in_flight") == 0, "at rest", 30)
    speaker = world.speaker(0, "silent@example.com")
    client = await speaker.connect()
    params = {
        "protocolVersion": LEGACY,
        "capabilities": {"elicitation": {}},
        "clientInfo": {"name": "s", "version": "1"},
    }
    client.write(speaker.legacy("initialize", params))
    speaker.session = (await client.answer()).headers["mcp-session-id"]
    client.write(speaker.legacy("tools/call", {"name": "one__confirm", "arguments": {"nonce": f"silent, {how}"}}))
    await client.stream()
    while (event := await client.event()) is not None and "elicitation" not in event.data:
        pass
    assert event is not None
    client.writer.transport.abort()
    if how == "is ended":
        headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session}
        other = world.speaker(1, "silent@example.com")
        assert (await other.ask(other.request(b"", verb="DELETE", headers=headers))).status == 200
    await asyncio.to_thread(until, lambda: edge.metric("tidegate_calls_in_flight") == 0, "the call has ended", 20)
    await asyncio.to_thread(until, lambda: not world.one.waiting, "the server waits no more", 10)


def has_at_most(pid: int, descriptors: int) -> bool:
    return holding(pid).descriptors <= descriptors
