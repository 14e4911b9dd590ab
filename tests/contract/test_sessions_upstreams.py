"""Upstream sessions that nobody uses are claimed by one edge, to be ended; and those of one legacy client are found."""

import asyncio
import itertools
import time

import pytest
import redis.asyncio
from tests.parts.session_stores import Edges, until, upstream
from tests.parts.valkey import Valkey

from tidegate.ids import now_us
from tidegate.sessions.port import CLAIMABLE_S, SessionStore, UpstreamKey, UpstreamSession

TTL_S = 1.0


async def claimed(edges: Edges, idle_s: float, edge: SessionStore | None = None) -> list[tuple[UpstreamKey, str]]:
    """Of this tenant: a server shared with other tests has theirs, too."""
    idle = await (edge or edges.b).claim_idle(idle_s, 100)
    return [(key, session.session_id) for key, session in idle if key.tenant == edges.tenant]


async def pass_time(edges: Edges, seconds: float) -> None:
    if edges.clock is not None:
        edges.clock.now += seconds
    else:
        then = time.monotonic() + seconds
        await until(lambda: time.monotonic() >= then)


@pytest.mark.parametrize("field", ["session", "capabilities"])
async def test_sessions_of_legacy_clients_and_of_other_capabilities_are_apart(edges: Edges, field: str) -> None:
    key = edges.upstream_key()
    other = key._replace(**{field: "x"})
    await edges.a.put_upstream(key, upstream("up-1"), 60)
    assert await edges.b.get_upstream(other) is None
    await edges.a.put_upstream(other, upstream("up-2"), 60)
    found = [await edges.b.get_upstream(one) for one in (key, other, key._replace(session="y"))]
    assert [one and one.session_id for one in found] == ["up-1", "up-2", None]


async def test_what_is_put_is_read_whole(edges: Edges) -> None:
    session = UpstreamSession(
        session_id="a b\nc", protocol="p", opened_us=now_us(), edge="e", replica="http://r:1/mcp", log_level="debug"
    )
    key = edges.upstream_key()._replace(session="s-1", capabilities="c")
    await edges.a.put_upstream(key, session, 60)
    assert await edges.b.get_upstream(key) == session
    assert await edges.b.sessions_of(edges.tenant, "s-1") == [(key, session)]


async def test_what_nobody_uses_is_claimed_once_and_is_gone_everywhere(edges: Edges) -> None:
    keys = [edges.upstream_key(server=f"git-{n}") for n in range(20)]
    for key in keys:
        await edges.a.put_upstream(key, upstream(f"of {key.server}"), TTL_S)
    assert await claimed(edges, TTL_S) == []
    await pass_time(edges, TTL_S)
    claims = await asyncio.gather(*(claimed(edges, TTL_S, edge) for edge in [edges.a, edges.b] * 3))
    assert sorted(itertools.chain.from_iterable(claims)) == sorted((key, f"of {key.server}") for key in keys)
    await until(lambda: all(edge.known_upstream(key) is None for edge in (edges.a, edges.b) for key in keys))
    assert [await edges.a.get_upstream(key) for key in keys] == [None] * 20


async def test_what_is_used_is_not_claimed(edges: Edges) -> None:
    used, other = edges.upstream_key("used"), edges.upstream_key("other")
    for key in (used, other):
        await edges.a.put_upstream(key, upstream(f"of {key.server}"), TTL_S)
    await pass_time(edges, TTL_S * 3 / 4)
    assert await edges.b.get_upstream(used) is not None
    await pass_time(edges, TTL_S / 2)
    assert await claimed(edges, TTL_S) == [(other, "of other")]
    assert await edges.a.get_upstream(used) is not None
    await pass_time(edges, TTL_S)
    assert await claimed(edges, TTL_S) == [(used, "of used")], "it is claimed later"


async def test_what_is_past_its_time_stands_until_it_is_claimed(edges: Edges) -> None:
    key = edges.upstream_key()
    await edges.a.put_upstream(key, upstream("up-1"), 0.1)
    await pass_time(edges, 0.2)
    standing = await edges.b.put_upstream(key, upstream("up-2"), 0.1)
    assert standing.session_id == "up-1", "so none is left open upstream that nobody knows of"


async def test_no_more_are_claimed_than_asked_for_the_longest_idle_first(edges: Edges) -> None:
    for n in range(3):
        await edges.a.put_upstream(edges.upstream_key(server=f"git-{n}"), upstream(f"up-{n}"), 60)
        await pass_time(edges, 0.01)
    await pass_time(edges, 0.05)
    order = []
    while idle := await edges.b.claim_idle(0.03, 1):
        assert len(idle) == 1
        order += [session.session_id for key, session in idle if key.tenant == edges.tenant]
    assert order == ["up-0", "up-1", "up-2"]


async def test_dropped_and_claimed_sessions_leave_their_client_s_list(edges: Edges) -> None:
    keys = [edges.upstream_key(server=f"git-{n}")._replace(session="s-1") for n in range(3)]
    for key in keys:
        await edges.a.put_upstream(key, upstream(f"of {key.server}"), 60)
    await edges.a.put_upstream(edges.upstream_key()._replace(session="s-2"), upstream("another client's"), 60)
    assert sorted(key for key, _ in await edges.b.sessions_of(edges.tenant, "s-1")) == keys
    await edges.b.drop_upstream(keys[0], "of git-0")
    assert sorted(key for key, _ in await edges.a.sessions_of(edges.tenant, "s-1")) == keys[1:]
    await pass_time(edges, 0.05)
    await edges.a.claim_idle(0.03, 1_000)
    assert await edges.a.sessions_of(edges.tenant, "s-1") == []
    assert await edges.a.sessions_of(edges.tenant, "") == []
    await edges.until_forgotten()


async def test_every_edge_is_told_of_a_legacy_client_s_new_upstream_session_and_of_no_other(edges: Edges) -> None:
    at_a: list[UpstreamKey] = []
    at_b: list[UpstreamKey] = []
    edges.a.on_upstream_opened(at_a.append)
    edges.b.on_upstream_opened(at_b.append)
    key = edges.upstream_key()._replace(session="s|1 ü", capabilities="c")
    await edges.a.put_upstream(edges.upstream_key(), upstream("shared"), 60)
    await edges.a.put_upstream(key, upstream("up-1"), 60)
    await edges.b.put_upstream(key, upstream("up-2"), 60)
    await edges.b.put_upstream(key._replace(server="web"), upstream("up-3"), 60)
    await until(lambda: at_a[-1:] == at_b[-1:] == [key._replace(server="web")])
    assert at_a == at_b == [key, key._replace(server="web")]


@pytest.mark.redis
async def test_upstream_sessions_of_an_older_edge_are_used_and_left_to_expire(pair: Edges, valkey: Valkey) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    key = pair.upstream_key()
    await pair.a.put_upstream(key, upstream("up-1"), 60)
    entry = next(one for one in await client.keys("acme|1|upstream|*"))
    old = b'{"session_id":"old","protocol":"2025-06-18","opened_us":1,"edge":"e"}'
    await client.delete("|1|idle")
    await client.set(entry, b"100 %b %b" % (b"old".hex().encode(), old), px=100)
    found = await pair.b.get_upstream(key)
    assert found is not None
    assert found.session_id == "old"
    assert await client.pttl(entry) > CLAIMABLE_S * 1000 - 1000
    assert await pair.a.claim_idle(0, 100) == []
    await pair.a.drop_upstream(key, "old")
    assert await client.keys("*") == []
    await client.aclose()


@pytest.mark.redis
async def test_what_no_edge_claims_ends_by_itself(pair: Edges, valkey: Valkey) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    await pair.a.put_upstream(pair.upstream_key(), upstream("up-1"), 1)
    await pair.a.put_upstream(pair.upstream_key()._replace(session="s"), upstream("up-2"), 3)
    await pair.a.get_upstream(pair.upstream_key())
    left = {key: await client.pttl(key) for key in await client.keys("*")}
    assert len(left) == 4
    assert all(0 < ms <= (CLAIMABLE_S + 3) * 1000 for ms in left.values())
    assert left[b"|1|idle"] > (CLAIMABLE_S + 2) * 1000, "the index lives as long as the longest of it"
    await client.aclose()


@pytest.mark.redis
async def test_an_entry_that_is_gone_leaves_the_index_at_the_next_claim(pair: Edges, valkey: Valkey) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    await pair.a.put_upstream(pair.upstream_key()._replace(session="s"), upstream("up-1"), 60)
    await client.delete(*await client.keys("acme|1|upstream|*"))
    assert await pair.a.claim_idle(0, 100) == []
    assert await client.keys("*") == []
    await client.aclose()
