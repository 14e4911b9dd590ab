"""Two edges' session stores, and waiting for facts about them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec
from tests.chaos.links import Link, running_links
from tests.parts.valkey import Valkey

from tidegate.ids import now_us
from tidegate.sessions.port import SessionRecord, SessionStore, UpstreamKey, UpstreamSession
from tidegate.sessions.redis import RedisSessions

PER_SUBJECT_MAX = 3
DEADLINE_S = 10.0


async def until(fact: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Waits for a fact, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            holds = fact()
            if holds is True or (not isinstance(holds, bool) and await holds):
                return
            await asyncio.sleep(0.005)


@dataclass
class Edges:
    """Two edges of one cluster, and a tenant that no other test uses."""

    a: SessionStore
    b: SessionStore
    tenant: str
    until_forgotten: Callable[[], Awaitable[None]]  # until everything of the tenant has expired
    clock: "Time | None" = None  # where time is ours to move

    def record(self, session_id: str = "s-1", subject_id: str = "u-1", tenant: str = "") -> SessionRecord:
        return SessionRecord(
            session_id=session_id,
            tenant=tenant or self.tenant,
            subject_id=subject_id,
            agent="claude-code",
            protocol="2025-11-25",
            client_info=msgspec.Raw(b'{"name":"x"}'),
            opened_us=now_us(),
            edge="edge-a",
        )

    def upstream_key(self, server: str = "git", subject_id: str = "u-1", agent: str = "claude-code") -> UpstreamKey:
        return UpstreamKey(self.tenant, server, subject_id, agent)


def upstream(session_id: str, edge: str = "edge-a") -> UpstreamSession:
    return UpstreamSession(session_id=session_id, protocol="2025-11-25", opened_us=now_us(), edge=edge)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def pass_hours(self) -> None:
        self.now += 100_000.0


@contextlib.asynccontextmanager
async def redis_pair(url: str) -> AsyncIterator[tuple[RedisSessions, RedisSessions]]:
    """Two started stores, hearing each other."""
    a, b = (RedisSessions(url, per_subject_max=PER_SUBJECT_MAX) for _ in range(2))
    await a.start()
    await b.start()
    try:
        await until(lambda: not a.awaiting and not b.awaiting)
        yield a, b
    finally:
        await a.stop()
        await b.stop()


@contextlib.asynccontextmanager
async def two_edges(valkey: Valkey) -> AsyncIterator[tuple[RedisSessions, RedisSessions, Link]]:
    """The second one's way to Redis is in our hands."""
    with running_links() as links:
        host, _, port = valkey.url.removeprefix("redis://").partition("/")[0].rpartition(":")
        way = links.open("b", lambda: (host, int(port)))
        a, b = (
            RedisSessions(url, per_subject_max=PER_SUBJECT_MAX)
            for url in (valkey.url, f"redis://127.0.0.1:{way.port}/0")
        )
        await a.start()
        await b.start()
        try:
            await until(lambda: not a.awaiting and not b.awaiting)
            yield a, b, way
        finally:
            way.heal()
            await a.stop()
            await b.stop()
