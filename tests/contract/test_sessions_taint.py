"""What a session has read: known at every edge once it is said, for as long as the session lasts; on every adapter."""

import asyncio

import pytest
from tests.parts.session_stores import Edges, two_edges, until
from tests.parts.valkey import Valkey

from tidegate.ids import now_us
from tidegate.sessions.port import SessionsUnavailable
from tidegate.sessions.redis import RedisSessions

READ = frozenset({"read-private"})
BOTH = READ | {"returns-untrusted"}


async def test_a_taint_is_known_at_the_other_edge_as_soon_as_it_is_said(edges: Edges) -> None:
    for number in range(20):
        session = f"s-{number}"
        assert await edges.b.taint_of(edges.tenant, session) == frozenset()  # which it remembers from now on
        assert edges.b.known_taint(edges.tenant, session) == frozenset()
        assert await edges.a.taint(edges.tenant, session, READ, 60) == READ
        assert edges.b.known_taint(edges.tenant, session) == READ
        assert edges.a.known_taint(edges.tenant, session) == READ


async def test_labels_are_only_ever_added_and_only_new_ones_are_told_as_new(edges: Edges) -> None:
    assert await edges.a.taint(edges.tenant, "s", READ, 60) == READ
    assert await edges.b.taint(edges.tenant, "s", BOTH, 60) == BOTH - READ
    assert await edges.a.taint(edges.tenant, "s", READ, 60) == frozenset()
    for edge in (edges.a, edges.b):
        assert await edge.taint_of(edges.tenant, "s") == BOTH
        assert edge.known_taint(edges.tenant, "s") == BOTH


async def test_of_many_who_taint_at_once_one_is_told_that_a_label_is_new(edges: Edges) -> None:
    told = await asyncio.gather(*[edge.taint(edges.tenant, "s", BOTH, 60) for edge in (edges.a, edges.b) * 20])
    assert sorted(label for labels in told for label in labels) == sorted(BOTH)


async def test_an_edge_that_was_not_asked_before_does_not_take_one_label_for_all(edges: Edges) -> None:
    await edges.a.taint(edges.tenant, "s", READ, 60)
    await edges.a.taint(edges.tenant, "s", BOTH, 60)
    assert edges.b.known_taint(edges.tenant, "s") in (None, BOTH)
    assert await edges.b.taint_of(edges.tenant, "s") == BOTH


async def test_taints_of_other_sessions_and_tenants_are_their_own(edges: Edges) -> None:
    await edges.a.taint(edges.tenant, "s", READ, 60)
    for tenant, session in ((edges.tenant, "s-2"), (f"{edges.tenant}x", "s"), (edges.tenant, ""), (edges.tenant, "*")):
        assert await edges.b.taint_of(tenant, session) == frozenset()
        assert edges.b.known_taint(tenant, session) == frozenset()


async def test_a_taint_ends_with_its_session(edges: Edges) -> None:
    await edges.a.open(edges.record("s"), 60)
    await edges.a.taint(edges.tenant, "s", READ, 60)
    assert await edges.b.end(edges.tenant, "s", 1.0)
    await edges.until_forgotten()
    await edges.a.open(edges.record("s-2"), 0.2)
    await edges.a.taint(edges.tenant, "s-2", READ, 0.2)
    await edges.until_forgotten()


async def test_a_session_that_is_used_keeps_its_taint(edges: Edges) -> None:
    for session in ("used", "left"):
        await edges.a.open(edges.record(session), 60)
        await edges.a.taint(edges.tenant, session, READ, 0.3)
    assert await edges.b.touch(edges.tenant, "used", 60)
    if edges.clock is not None:
        edges.clock.now += 1

    async def left_is_forgotten() -> bool:
        return await _stored(edges, "left") == frozenset()

    await until(left_is_forgotten)
    assert await _stored(edges, "used") == READ


async def test_a_window_that_is_used_keeps_its_taint(edges: Edges) -> None:
    whose = (edges.tenant, "u-1", "claude-code", "")
    session = await edges.a.window(*whose, 1.6, now_us())
    await edges.a.taint(edges.tenant, session, READ, 1.6)
    for _ in range(8):
        if edges.clock is not None:
            edges.clock.now += 0.5
        else:
            await _until_asked_again(edges)
        assert await edges.b.window(*whose, 1.6, now_us()) == session
        assert await _stored(edges, session) == READ
    await edges.until_forgotten()


async def _until_asked_again(edges: Edges) -> None:
    """Until an eighth of the window has passed, and a little of it besides."""
    await until(lambda: edges.b.known_window(edges.tenant, "u-1", "claude-code", "") is None)
    ends = asyncio.get_running_loop().time() + 0.2
    await until(lambda: asyncio.get_running_loop().time() > ends)


async def _stored(edges: Edges, session: str) -> frozenset[str]:
    """As an edge hears it that never heard of it before."""
    if not isinstance(edges.a, RedisSessions):
        return await edges.a.taint_of(edges.tenant, session)
    link = edges.a._link
    keys = await link.redis.keys(f"{edges.tenant}|1|taint|{session}")
    held = await link.redis.hkeys(keys[0]) if keys else []  # type: ignore[misc]
    return frozenset(str(label, "utf-8") for label in held)


@pytest.mark.redis
async def test_an_edge_that_does_not_hear_asks_and_fails_while_redis_is_away(pair: Edges, valkey: Valkey) -> None:
    await pair.a.taint("acme", "s", READ, 60)
    assert await pair.b.taint_of("acme", "s") == READ
    valkey.pause()
    await until(lambda: pair.b.known_taint("acme", "s") is None)
    for asked in (pair.b.taint_of("acme", "s"), pair.a.taint("acme", "s", BOTH, 60)):
        with pytest.raises(SessionsUnavailable):
            await asked
    valkey.resume()
    await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
    assert await pair.b.taint_of("acme", "s") >= READ


@pytest.mark.redis
async def test_what_redis_loses_is_put_back_by_an_edge_that_knows_it(pair: Edges, valkey: Valkey) -> None:
    await pair.a.taint("acme", "s", BOTH, 60)
    valkey.kill()
    await until(lambda: bool(pair.a.awaiting))
    valkey.start()  # empty
    await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
    assert await pair.a.taint_of("acme", "s") == BOTH
    assert await pair.b.taint_of("acme", "s") == BOTH
    assert pair.a.known_taint("acme", "s") == BOTH


@pytest.mark.redis
async def test_an_edge_that_goes_silent_is_waited_for_until_it_trusts_its_memory_no_more(valkey: Valkey) -> None:
    async with two_edges(valkey) as (a, b, way):
        assert await b.taint_of("acme", "s") == frozenset()
        way.hold()
        assert await a.taint("acme", "s", READ, 60) == READ
        assert b.known_taint("acme", "s") is None
        way.heal()
        await until(lambda: not b.awaiting)
        assert await b.taint_of("acme", "s") == READ


@pytest.mark.redis
async def test_an_edge_that_hears_late_is_waited_for(valkey: Valkey) -> None:
    async with two_edges(valkey) as (a, b, way):
        way.slow(0.2)
        for number in range(3):
            session = f"s-{number}"
            assert await b.taint_of("acme", session) == frozenset()
            assert await a.taint("acme", session, READ, 60) == READ
            assert b.known_taint("acme", session) == READ


@pytest.mark.redis
async def test_an_edge_whose_connections_broke_asks_before_it_says_what_it_knew(valkey: Valkey) -> None:
    async with two_edges(valkey) as (a, b, way):
        assert await b.taint_of("acme", "s") == frozenset()
        way.cut()
        await until(lambda: bool(b.awaiting))
        assert await a.taint("acme", "s", READ, 60) == READ
        way.heal()
        await until(lambda: not b.awaiting)
        assert b.known_taint("acme", "s") is None
        assert await b.taint_of("acme", "s") == READ
