"""Thousands of sessions over two edges leave nothing behind, in Redis or in the edges."""

import asyncio

import pytest
import redis.asyncio
from tests.parts.session_stores import Edges, until, upstream
from tests.parts.valkey import Valkey

SESSIONS = 2_000
AT_ONCE = 20


async def one_life(edges: Edges, number: int) -> None:
    """Opened at one edge, used at the other, ended at either."""
    here, there = (edges.a, edges.b) if number % 2 else (edges.b, edges.a)
    session_id, owner = f"s-{number}", f"acme|s-{number}"
    assert await here.open(edges.record(session_id, subject_id=f"u-{number}"), 60)
    key = edges.upstream_key(subject_id=f"u-{number}")._replace(session=session_id)
    await here.put_upstream(key, upstream(f"up-{number}"), 60)
    assert await there.amend("acme", session_id, subscribe="u:1") is not None
    first = await here.keep(owner, "get", b"", 60)
    await here.keep(owner, "get", b"{}", 60)
    events = await there.kept_after(owner, "get", first, 0)
    assert events is not None
    assert [event.message for event in events] == [b"{}"]
    await here.finish(owner, "get", 0.5)
    if number % 4:  # the others vanish, and their upstream sessions are claimed
        for one, session in await there.sessions_of("acme", session_id):
            await there.drop_upstream(one, session.session_id)
    assert await there.end("acme", session_id, 10)
    assert here.known("acme", session_id) is None


@pytest.mark.redis
async def test_thousands_of_sessions_leave_no_key_and_no_copy(pair: Edges, valkey: Valkey) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    for start in range(0, SESSIONS, AT_ONCE):
        await asyncio.gather(*(one_life(pair, number) for number in range(start, start + AT_ONCE)))
    claimed: list[str] = []

    async def all_claimed() -> bool:
        for edge in (pair.a, pair.b):
            claimed.extend(session.session_id for _, session in await edge.claim_idle(0, 64))
        return len(claimed) >= SESSIONS // 4

    await until(all_claimed)
    assert len(set(claimed)) == len(claimed) == SESSIONS // 4, "each by one edge alone"

    async def nothing_left() -> bool:
        return not await client.keys("*")

    await until(nothing_left)
    assert len(await client.client_list(_type="pubsub")) == 2, "one subscription for each edge, whatever it hears"
    await client.aclose()
