"""Two edges, each with a store of its own on one Valkey, share the sessions that their callers have at a server."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import pytest_asyncio
from tests.parts.scripted import Scripted, scripted
from tests.parts.upstreams import Talking, opened, outgoing, words
from tests.parts.valkey import running_valkey

from tidegate.sessions.opening import open_sessions
from tidegate.sessions.port import SessionStore
from tidegate.settings import Settings
from tidegate_edge.upstream.http import HttpUpstream
from tidegate_edge.upstream.port import Caller
from tidegate_edge.upstream.reaper import reap

IDLE_S = 2.0


class Cluster:
    def __init__(self, edges: list[HttpUpstream], stores: list[SessionStore], server: Scripted) -> None:
        self.edges, self.stores, self.server = edges, stores, server
        self.tenant = uuid.uuid4().hex

    def caller(self, user: str = "alice", session: str = "") -> Caller:
        return Caller(self.tenant, user, "tests", session, b'{"roots":{}}')

    async def call(self, edge: int, caller: Caller, log_level: str = "") -> str:
        return words(await self.edges[edge].request(outgoing(caller=caller, log_level=log_level), Talking()))


@pytest.fixture
def own_valkey() -> Iterator[str]:
    """What is idle is claimed whosesoever it is: nobody else's sessions may be here."""
    with running_valkey() as url:
        yield url


@pytest_asyncio.fixture
async def cluster(own_valkey: str) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(scripted("sessions", capabilities={"logging": {}}))
        stores, edges = [], []
        for _ in range(2):
            store = open_sessions(msgspec.convert({"sessions": own_valkey}, Settings))
            await store.start()
            stack.push_async_callback(store.stop)
            async with asyncio.timeout(10):
                while store.awaiting:
                    await asyncio.sleep(0.01)
            limits = {"upstream_session_idle_s": IDLE_S}
            stores.append(store)
            edges.append(await stack.enter_async_context(opened(server.url, store=store, limits=limits)))
        yield Cluster(edges, stores, server)


async def test_a_session_is_used_by_both_edges_and_lost_and_opened_once_for_both(cluster: Cluster) -> None:
    server, alice = cluster.server, cluster.caller()
    assert [await cluster.call(edge, alice) for edge in (0, 1, 0, 1)] == ["{}"] * 4
    assert server.minted == 1
    server.sessions.clear()  # the server was restarted
    assert [await cluster.call(edge, alice) for edge in (0, 1, 0, 1)] == ["{}"] * 4
    assert server.minted == 2
    assert {seen.headers["mcp-session-id"] for seen in server.calls()[-3:]} == set(server.sessions)


async def test_a_level_set_at_one_edge_is_known_at_the_other(cluster: Cluster) -> None:
    alice = cluster.caller()
    for edge, level in ((0, "info"), (1, "info"), (1, "error"), (0, "warning"), (1, "debug"), (0, "info")):
        await cluster.call(edge, alice, log_level=level)
    levels = [seen.params["level"] for seen in cluster.server.seen if seen.method == "logging/setLevel"]
    assert levels == ["info", "debug"]
    assert cluster.server.minted == 1


async def test_a_client_s_sessions_are_ended_from_the_other_edge(cluster: Cluster) -> None:
    mine, other = cluster.caller(session="client-1"), cluster.caller(session="client-2")
    for caller in (mine, other):
        await cluster.call(0, caller)
    await cluster.edges[1].end(mine)
    assert len(cluster.server.sessions) == 1
    assert await cluster.call(0, other) == "{}"
    assert cluster.server.minted == 2


async def test_idle_sessions_are_ended_once_by_whichever_edge_and_leave_nothing(cluster: Cluster) -> None:
    for number in range(5):
        await cluster.call(number % 2, cluster.caller(f"user-{number}"))
    assert len(cluster.server.sessions) == 5
    reapers = [
        asyncio.create_task(reap(store, {"up": up}, IDLE_S))
        for store, up in zip(cluster.stores, cluster.edges, strict=True)
    ]
    async with asyncio.timeout(15):
        while cluster.server.sessions:
            await asyncio.sleep(0.05)
    assert cluster.server.count("DELETE") == 5
    for task in reapers:
        task.cancel()
    await asyncio.wait(reapers)
    assert await cluster.call(1, cluster.caller("user-0")) == "{}"
    assert cluster.server.minted == 6
