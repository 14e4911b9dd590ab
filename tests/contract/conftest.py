"""The session stores that the contract is tested on."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio
from tests.parts.session_stores import PER_SUBJECT_MAX, Edges, Time, redis_pair, until
from tests.parts.valkey import Valkey, running_valkey_server

from tidegate.ids import uuid7
from tidegate.sessions.memory import MemorySessions


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def edges(request: pytest.FixtureRequest) -> AsyncIterator[Edges]:
    tenant = f"acme-{uuid7()}"
    if request.param == "memory":
        clock = Time()
        store = MemorySessions(per_subject_max=PER_SUBJECT_MAX, clock=clock)
        yield Edges(store, store, tenant, clock.pass_hours, clock)
        return
    url = request.getfixturevalue("valkey_url")
    client = redis.asyncio.Redis.from_url(url)

    async def nothing_left() -> bool:
        return not await client.keys(f"{tenant}*")

    async with redis_pair(url) as (a, b):
        yield Edges(a, b, tenant, lambda: until(nothing_left))
    await client.aclose()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A server of the test's own, to be killed, paused and started again."""
    with running_valkey_server() as server:
        yield server


@pytest.fixture
async def pair(valkey: Valkey) -> AsyncIterator[Edges]:
    async with redis_pair(valkey.url) as (a, b):
        yield Edges(a, b, "acme", lambda: until(lambda: True))
