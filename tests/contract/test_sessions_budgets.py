"""Counters of limits: never more than there is, on every adapter."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from tests.chaos.clocks import Clock, compiled
from tests.parts.session_stores import redis_pair, until
from tests.parts.valkey import Valkey

from tidegate.ids import now_us, uuid7
from tidegate.sessions.budgets import GRACE_S, LEASE_S, Counter, Draw, Kind, Share, counter_name, day_at
from tidegate.sessions.memory_budgets import MemoryBudgets
from tidegate.sessions.port import Budgets, SessionsUnavailable

HOUR_MS = 3_600_000


class Wall:
    """A clock that is ours to set."""

    def __init__(self) -> None:
        self.now_ms = now_us() // 1000

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class Stores:
    """Two edges' stores of one cluster, and a tenant of the test's own."""

    a: Budgets
    b: Budgets
    tenant: str
    wall: Wall | None = None  # where time is ours to set

    def counter(self, kind: Kind, most: int, name: str = "x", **more: int | str) -> Counter:
        return Counter(self.tenant, counter_name(name, kind, {"user": "u-1"}), kind, most, **more)  # type: ignore[arg-type]

    def bucket(self, most: int, refill: int = 1, every_ms: int = HOUR_MS, name: str = "x") -> Counter:
        return self.counter("bucket", most, name, refill=refill, every_ms=every_ms)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    tenant = f"acme-{uuid7()}"
    if request.param == "memory":
        wall = Wall()
        store = MemoryBudgets(wall)
        yield Stores(store, store, tenant, wall)
        return
    async with redis_pair(request.getfixturevalue("valkey_url")) as (a, b):
        yield Stores(a, b, tenant)


async def one(store: Budgets, draw: Draw, holder: str = "a") -> Share:
    (share,) = await store.draw(holder, [draw])
    return share


@pytest.mark.parametrize("kind", ["bucket", "day", "places"])
async def test_two_edges_together_get_all_there_is_and_no_more(stores: Stores, kind: Kind) -> None:
    counter = stores.counter(kind, 100, refill=1, every_ms=HOUR_MS)
    got = {"a": 0, "b": 0}

    async def take(store: Budgets, holder: str) -> None:
        while not (share := await one(store, Draw(counter, 1, 8, got[holder]), holder)).is_short:
            got[holder] += share.granted
            await asyncio.sleep(0)

    await asyncio.gather(*[take(store, who) for store, who in ((stores.a, "a"), (stores.b, "b"))])
    assert sum(got.values()) == 100
    assert min(got.values()) > 0


async def test_a_lease_shrinks_as_the_rest_shrinks(stores: Stores) -> None:
    counter = stores.counter("day", 100)
    sizes: list[int] = []
    while not (share := await one(stores.a, Draw(counter, 1, 1_000))).is_short:
        sizes.append(share.granted)
    assert sizes[:3] == [25, 18, 14]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-7:] == [1] * 7
    assert sum(sizes) == 100


async def test_where_one_counter_lacks_none_gives(stores: Stores) -> None:
    full, empty = stores.counter("day", 10, "full"), stores.counter("day", 1, "empty")
    assert [share.granted for share in await stores.a.draw("a", [Draw(full, 1), Draw(empty, 1)])] == [1, 1]
    shares = await stores.b.draw("b", [Draw(full, 1), Draw(empty, 1)])
    assert [(share.granted, share.is_short) for share in shares] == [(0, False), (0, True)]
    assert (await one(stores.b, Draw(full, 9), "b")).granted == 9, "what was left of the other is still there"


@pytest.mark.parametrize("kind", ["bucket", "day", "places"])
async def test_what_is_given_back_is_there_for_others(stores: Stores, kind: Kind) -> None:
    counter = stores.counter(kind, 8, refill=1, every_ms=HOUR_MS)
    got = await one(stores.a, Draw(counter, 8))
    assert got.granted == 8
    assert (await one(stores.b, Draw(counter, 1), "b")).is_short
    back = 0 if kind == "places" else 5
    day = got.day
    await one(stores.a, Draw(counter, rest=3 if kind == "places" else 0, back=back, day=day))
    assert (await one(stores.b, Draw(counter, 5), "b")).granted == 5
    assert (await one(stores.b, Draw(counter, 1, rest=5), "b")).is_short


async def test_a_bucket_is_refilled_at_its_pace_and_never_above_its_size(stores: Stores) -> None:
    counter = stores.bucket(50, refill=1, every_ms=20)
    assert (await one(stores.a, Draw(counter, 50))).granted == 50
    share = await one(stores.a, Draw(counter, 40))
    assert share.is_short
    assert 700 <= share.retry_ms <= 800 or stores.wall is None
    assert 0 < share.retry_ms <= 800
    if stores.wall is not None:
        stores.wall.now_ms += share.retry_ms - 1
        assert (await one(stores.a, Draw(counter, 40))).is_short
        stores.wall.now_ms += 1

    async def has_come() -> bool:
        return not (await one(stores.a, Draw(counter, 40))).is_short

    await until(has_come)
    if stores.wall is not None:
        stores.wall.now_ms += 10 * HOUR_MS
    else:
        await until(lambda: _is_full(stores))
    assert (await one(stores.a, Draw(counter, 51))).is_short


async def _is_full(stores: Stores) -> bool:
    (standing,), _ = await stores.a.standings(stores.tenant, 10)
    return standing.used == 0


async def test_what_is_on_lease_counts_against_the_size_of_a_bucket(stores: Stores) -> None:
    """Else a lease that is kept while the bucket fills up would come on top."""
    counter = stores.bucket(100, refill=1_000, every_ms=1)
    assert (await one(stores.a, Draw(counter, 1, 20))).granted == 20
    if stores.wall is not None:
        stores.wall.now_ms += 1_000
    assert (await one(stores.b, Draw(counter, 82), "b")).is_short
    assert (await one(stores.b, Draw(counter, 81), "b")).granted == 81


async def test_places_of_an_edge_that_is_heard_of_no_more_are_free_again(stores: Stores) -> None:
    if stores.wall is None:
        pytest.skip("takes as long as a lease lasts; the end-to-end test waits for it")
    counter = stores.counter("places", 5)
    assert (await one(stores.a, Draw(counter, 5))).granted == 5
    stores.wall.now_ms += int(LEASE_S * 1000)
    assert (await one(stores.a, Draw(counter, rest=5))).left == 0, "one that renews keeps them"
    stores.wall.now_ms += int(LEASE_S * 1000)
    assert (await one(stores.b, Draw(counter, 1), "b")).is_short
    stores.wall.now_ms += int(GRACE_S * 1000)
    assert (await one(stores.b, Draw(counter, 5), "b")).granted == 5


async def test_places_cannot_tell_when_one_is_free(stores: Stores) -> None:
    counter = stores.counter("places", 1)
    await one(stores.a, Draw(counter, 1))
    share = await one(stores.b, Draw(counter, 1), "b")
    assert share[:4] == (0, 0, True, 0)


async def test_a_debt_is_counted_and_may_leave_nothing(stores: Stores) -> None:
    counter = stores.counter("day", 1_000)
    assert (await one(stores.a, Draw(counter, 1, 100))).granted == 100
    share = await one(stores.a, Draw(counter, 1, 100, rest=-5_000))
    assert share.is_short
    (standing,), _ = await stores.b.standings(stores.tenant, 10)
    assert (standing.used, standing.held, standing.most) == (5_100, 0, 1_000)


async def test_a_day_s_quota_is_there_again_at_the_next_midnight_of_its_zone(stores: Stores) -> None:
    for zone in ("UTC", "Asia/Kolkata", "America/New_York"):
        counter = stores.counter("day", 3, zone, zone=zone)
        assert (await one(stores.a, Draw(counter, 3))).granted == 3
        share = await one(stores.a, Draw(counter, 1))
        now = stores.wall.now_ms if stores.wall else now_us() // 1000
        assert share.is_short
        assert abs(now + share.retry_ms - day_at(zone, now).end_ms) < 5_000
    if stores.wall is not None:
        stores.wall.now_ms += share.retry_ms
        assert (await one(stores.a, Draw(counter, 3))).granted == 3
        late = await one(stores.a, Draw(counter, rest=0, back=3, day=share.day))
        assert late.left == 0, "what is left of a day is not of the next one"


async def test_things_are_counted_once_whoever_saw_them(stores: Stores) -> None:
    counter = stores.counter("distinct", 10)
    marks = [number.to_bytes(16, "big") for number in range(12)]
    assert (await one(stores.a, Draw(counter, marks=tuple(marks[:6])))).left == 4
    assert (await one(stores.b, Draw(counter, marks=tuple(marks[3:8])), "b")).left == 2
    share = await one(stores.a, Draw(counter, 1, marks=tuple(marks)))
    assert share.is_short
    assert (await one(stores.b, Draw(counter, 1), "b")).is_short


async def test_many_different_things_are_counted_within_two_per_cent(stores: Stores) -> None:
    counter = stores.counter("distinct", 1_000_000)
    for start in range(0, 20_000, 2_000):
        marks = tuple(uuid7(now_us()).encode() for _ in range(start, start + 2_000))
        share = await one(stores.a, Draw(counter, marks=marks))
    assert 19_600 <= 1_000_000 - share.left <= 20_400


async def test_a_changed_limit_counts_what_was_used(stores: Stores) -> None:
    counter = stores.counter("day", 10)
    assert (await one(stores.a, Draw(counter, 10))).granted == 10
    assert (await one(stores.b, Draw(counter._replace(most=12), 2), "b")).granted == 2
    assert (await one(stores.b, Draw(counter._replace(most=5), 1), "b")).is_short


async def test_tenants_with_equal_counters_never_meet(stores: Stores) -> None:
    counter = stores.counter("day", 1)
    other = counter._replace(tenant=f"{stores.tenant}|x*")
    assert (await one(stores.a, Draw(counter, 1))).granted == 1
    assert (await one(stores.a, Draw(other, 1))).granted == 1
    assert [len((await stores.a.standings(tenant, 10))[0]) for tenant in (counter.tenant, other.tenant)] == [1, 1]


async def test_what_is_used_is_shown_by_counter(stores: Stores) -> None:
    bucket, places = stores.bucket(10), stores.counter("places", 4)
    await stores.a.draw("a", [Draw(bucket, 1, 4), Draw(places, 3)])
    await stores.b.draw("b", [Draw(bucket, 2)])
    found, whole = await stores.b.standings(stores.tenant, 10)
    shown = {standing.kind: (standing.name, standing.most, standing.used, standing.held) for standing in found}
    assert whole
    assert shown == {"bucket": (bucket.name, 10, 4, 1), "places": (places.name, 4, 3, 3)}
    assert all(0 < standing.full_ms <= 4 * HOUR_MS for standing in found if standing.kind == "bucket")
    assert len((await stores.b.standings(stores.tenant, 1))[0]) == 1


async def test_a_full_memory_refuses_and_forgets_nothing_that_counts() -> None:
    wall = Wall()
    store = MemoryBudgets(wall, entries_max=2)
    counters = [Counter("acme", f"{number}", "places", 1) for number in range(3)]
    for counter in counters[:2]:
        await one(store, Draw(counter, 1))
    with pytest.raises(SessionsUnavailable):
        await one(store, Draw(counters[2], 1))
    wall.now_ms += int((LEASE_S + GRACE_S) * 1000)
    assert (await one(store, Draw(counters[2], 1))).granted == 1


@pytest.mark.parametrize("hours", [-30, 30])
async def test_a_clock_that_jumps_gives_a_bucketful_at_most(hours: int) -> None:
    wall = Wall()
    store = MemoryBudgets(wall)
    counter = Counter("acme", "x", "bucket", 10, 1, 1_000)
    assert (await one(store, Draw(counter, 10))).granted == 10
    wall.now_ms += hours * HOUR_MS
    assert (await one(store, Draw(counter, 11))).is_short
    await one(store, Draw(counter, 1 if hours < 0 else 10))
    wall.now_ms += 10_000
    assert (await one(store, Draw(counter, 10))).granted == 10, "and it goes on from there"


@pytest.mark.redis
async def test_every_key_expires_and_stands_in_one_slot_of_its_tenant(valkey: Valkey) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    async with redis_pair(valkey.url) as (a, _):
        stores = Stores(a, a, "ac me")
        draws = [Draw(stores.counter(kind, 5, refill=1, every_ms=1_000), 1) for kind in ("bucket", "day", "places")]
        await a.draw("a", [*draws, Draw(stores.counter("distinct", 5), marks=(b"x",))])
        found: Any = await client.keys("*budget*")
        keys = [key.decode() for key in found]
        assert len(keys) == 6
        assert all(key.startswith("ac%20me|1|budget|{ac%20me}|") for key in keys)
        lives = {key: await client.pttl(key) for key in keys}
        assert all(0 < life <= 25 * HOUR_MS for life in lives.values()), lives
    await client.aclose()


@pytest.mark.redis
async def test_a_request_that_is_sent_twice_counts_once(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    async with redis_pair(valkey.url) as (a, _):
        stores = Stores(a, a, "acme")
        counter = stores.counter("day", 10)
        script = a.draw.__self__._script  # type: ignore[attr-defined]
        answers: list[object] = []

        async def twice(*given: object) -> object:
            answers[:] = [await script(*given), await script(*given)]
            return answers[1]

        monkeypatch.setattr(a.draw.__self__, "_script", twice)  # type: ignore[attr-defined]
        share = await one(a, Draw(counter, 4))
        assert share[:4] == (4, 6, False, 0)
        assert answers[0] == answers[1]
        await one(a, Draw(counter, back=3, day=share.day))
        (standing,), _ = await a.standings("acme", 10)
        assert standing.used == 1


@pytest.mark.redis
async def test_counters_are_lost_with_their_server_and_an_absent_one_is_told(valkey: Valkey) -> None:
    async with redis_pair(valkey.url) as (a, _):
        counter = Stores(a, a, "acme").counter("day", 2)
        assert (await one(a, Draw(counter, 2))).granted == 2
        valkey.kill()
        with pytest.raises(SessionsUnavailable):
            await one(a, Draw(counter, 1))
        valkey.start()
        assert (await one(a, Draw(counter, 2))).granted == 2


@pytest.mark.redis
@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
async def test_a_clock_of_redis_that_jumps_gives_a_filling_and_another_day_s_quota_at_most(
    hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compiled(tmp_path)
    if library is None:
        pytest.skip("no C compiler here")
    clock = Clock(library, tmp_path / "clock")
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    server = Valkey(tmp_path)
    server.start()
    for name in clock.environment:
        monkeypatch.delenv(name)
    try:
        async with redis_pair(server.url) as (a, _):
            stores = Stores(a, a, "acme")
            bucket, day, places = stores.bucket(10), stores.counter("day", 10), stores.counter("places", 3)
            assert [
                share.granted for share in await a.draw("a", [Draw(bucket, 10), Draw(day, 10), Draw(places, 3)])
            ] == [
                10,
                10,
                3,
            ]
            date = day_at("UTC", now_us() // 1000).date
            clock.set(hours * 3600)
            same_day = day_at("UTC", now_us() // 1000 + hours * HOUR_MS).date == date
            assert (await one(a, Draw(bucket, 11))).is_short
            (share,) = await a.draw("a", [Draw(day, 10, day=0)])
            assert share.is_short == same_day, "the day is the one that Redis' clock says"
            came = (await one(a, Draw(bucket, 0))).left
            assert came == (0 if hours < 0 else min(10, hours))
            assert not (await one(a, Draw(places, rest=3))).is_short, "who renews keeps its places"
    finally:
        server.stop()
