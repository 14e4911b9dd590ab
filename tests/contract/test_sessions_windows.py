"""Windows of governance sessions: one id while calls keep coming, on every edge and every adapter; and what an edge
does while Redis cannot be asked: it goes on with those that it knows, and afterwards Redis rules.
"""

import asyncio
import time

import pytest
import redis.asyncio
from tests.parts.session_stores import Edges, two_edges, until
from tests.parts.valkey import Valkey

from tidegate.ids import now_us
from tidegate.sessions.port import SessionStore, SessionsUnavailable

READ = frozenset({"read-private"})


async def window(store: SessionStore, user: str = "u-1", idle_s: float = 60, tenant: str = "acme") -> str:
    return await store.window(tenant, user, "claude-code", "sid", idle_s, now_us())


def known(store: SessionStore, user: str = "u-1", tenant: str = "acme") -> str | None:
    return store.known_window(tenant, user, "claude-code", "sid")


async def calls_for(store: SessionStore, time_s: float, user: str = "u-1", idle_s: float = 60) -> set[str]:
    """Ids that calls which keep coming are told."""
    told, ends = set(), time.monotonic() + time_s

    async def is_over() -> bool:
        told.add(await window(store, user, idle_s))
        return time.monotonic() > ends

    await until(is_over)
    return told


async def test_calls_within_the_idle_time_share_a_window_on_every_edge(edges: Edges) -> None:
    calls = [edge.window(edges.tenant, "u-1", "a", "sid-1", 60, now_us()) for edge in [edges.a, edges.b] * 5]
    assert len(set(await asyncio.gather(*calls))) == 1


async def test_a_window_belongs_to_one_subject_agent_and_token_session(edges: Edges) -> None:
    ids = {
        await edges.a.window(edges.tenant, subject, agent, sid, 60, now_us())
        for subject in ("u-1", "u-2")
        for agent in ("a", "a|", "b")
        for sid in ("", "|", "sid-1")
    }
    assert len(ids) == 18


async def test_the_next_call_of_a_window_asks_nobody(edges: Edges) -> None:
    session_id = await edges.a.window(edges.tenant, "u-1", "a", "", 60, now_us())
    assert edges.a.known_window(edges.tenant, "u-1", "a", "") == session_id
    assert edges.a.known_window(edges.tenant, "u-1", "b", "") is None


async def test_after_the_idle_time_a_new_window_opens(edges: Edges) -> None:
    first = await edges.a.window(edges.tenant, "u-1", "a", "", 0.3, now_us())
    await edges.until_forgotten()
    assert edges.b.known_window(edges.tenant, "u-1", "a", "") is None
    second = await edges.b.window(edges.tenant, "u-1", "a", "", 60, now_us())
    assert second != first
    assert await edges.a.window(edges.tenant, "u-1", "a", "", 60, now_us()) == second


@pytest.mark.redis
class TestWhileRedisCannotBeAsked:
    async def test_an_edge_goes_on_with_a_window_that_it_knows_and_with_no_other(
        self, valkey: Valkey, pair: Edges
    ) -> None:
        first = await window(pair.a)
        assert await window(pair.b) == first
        await window(pair.a, "only-at-a")
        valkey.kill()
        await until(lambda: known(pair.a) is None and known(pair.b) is None)
        for store in (pair.a, pair.b, pair.a, pair.b):
            assert await window(store) == first
        with pytest.raises(SessionsUnavailable, match="did not answer"):
            await window(pair.a, "nobody-knows")
        with pytest.raises(SessionsUnavailable):
            await window(pair.b, "only-at-a")

    async def test_a_redis_that_comes_back_empty_is_told_the_window_by_whoever_knows_it(
        self, valkey: Valkey, pair: Edges
    ) -> None:
        first = await window(pair.a)
        valkey.kill()
        await until(lambda: bool(pair.a.awaiting) and bool(pair.b.awaiting))
        assert await window(pair.a) == first
        valkey.start()
        await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
        assert await window(pair.a) == first
        assert known(pair.a) == first, "asked and answered"
        assert await window(pair.b) == first, "which did not know it"

    async def test_what_has_been_opened_elsewhere_meanwhile_rules_and_the_old_one_never_comes_back(
        self, valkey: Valkey
    ) -> None:
        async with two_edges(valkey) as (a, b, way):
            old = await window(b)
            way.cut()
            await until(lambda: bool(b.awaiting))
            async with redis.asyncio.Redis.from_url(valkey.url) as client:
                await client.flushall()  # as when nobody has used it for its time
            new = await window(a)
            assert new != old
            assert await window(b) == old
            way.heal()
            await until(lambda: not b.awaiting)
            assert await window(b) == new
            way.cut()
            await until(lambda: bool(b.awaiting))
            assert await calls_for(b, 0.3) == {new}

    async def test_the_idle_time_ends_a_window_all_the_same(self, valkey: Valkey, pair: Edges) -> None:
        await window(pair.a, "idle", idle_s=1.5)
        used = await window(pair.a, "used", idle_s=1.5)
        valkey.kill()
        assert await calls_for(pair.a, 2.5, "used", idle_s=1.5) == {used}
        with pytest.raises(SessionsUnavailable):
            await window(pair.a, "idle", idle_s=1.5)

    async def test_a_silent_redis_holds_up_few_calls(self, valkey: Valkey, pair: Edges) -> None:
        first = await window(pair.a)
        valkey.pause()
        try:
            await until(lambda: known(pair.a) is None)
            began = time.monotonic()
            assert {await window(pair.a) for _ in range(200)} == {first}
            assert set(await asyncio.gather(*[window(pair.a) for _ in range(200)])) == {first}
            assert time.monotonic() - began < 30, "not each of them has waited for it"
        finally:
            valkey.resume()
        await until(lambda: not pair.a.awaiting)
        assert await window(pair.a) == first
        assert known(pair.a) == first

    async def test_a_redis_that_takes_nothing_new_ends_no_window(self, valkey: Valkey, pair: Edges) -> None:
        first = await window(pair.a, idle_s=3.0)
        async with redis.asyncio.Redis.from_url(valkey.url) as client:
            await client.config_set("maxmemory", "1")
            await until(lambda: known(pair.a) is None)
            assert await window(pair.a, idle_s=3.0) == first
            with pytest.raises(SessionsUnavailable):
                await window(pair.a, "nobody-knows")
            await client.config_set("maxmemory", "0")
        assert await window(pair.a, "nobody-knows")

    async def test_what_a_window_has_read_is_unknown_meanwhile_and_known_again_afterwards(
        self, valkey: Valkey, pair: Edges
    ) -> None:
        first = await window(pair.a)
        assert await window(pair.b) == first
        await pair.a.taint("acme", first, READ, 60)
        valkey.kill()
        await until(lambda: bool(pair.a.awaiting) and bool(pair.b.awaiting))
        for store in (pair.a, pair.b):
            assert await window(store) == first
            assert store.known_taint("acme", first) is None
            with pytest.raises(SessionsUnavailable):
                await store.taint_of("acme", first)
        valkey.start()  # empty
        await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
        for store in (pair.b, pair.a):
            assert await window(store) == first
            assert await store.taint_of("acme", first) == READ

    async def test_what_a_window_has_read_is_kept_for_as_long_as_the_window_goes_on(
        self, valkey: Valkey, pair: Edges, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tidegate.sessions.redis_taints._COPY_KEPT_S", 0.5)
        first = await window(pair.a, idle_s=1.5)
        await pair.a.taint("acme", first, READ, 1.5)
        valkey.kill()
        assert await calls_for(pair.a, 2.5, idle_s=1.5) == {first}
        valkey.start()
        await until(lambda: not pair.a.awaiting)
        assert await window(pair.a, idle_s=1.5) == first
        assert await pair.a.taint_of("acme", first) == READ
