"""Leases: one owner at a time, on every adapter."""

import asyncio

import pytest
from tests.parts.session_stores import Edges, until
from tests.parts.valkey import Valkey

from tidegate.sessions.port import SessionsUnavailable


async def test_a_lease_taken_by_one_edge_stands_for_the_other(edges: Edges) -> None:
    name = f"{edges.tenant}|git|u-1"
    assert await edges.a.take(name, "http://a", 60) == "http://a"
    assert await edges.b.take(name, "http://b", 60) == "http://a"
    assert await edges.b.take(f"{edges.tenant}|git|u-2", "http://b", 60) == "http://b"


async def test_of_many_who_take_at_once_one_gets_it_and_all_are_told_which(edges: Edges) -> None:
    takers = [edge.take(f"{edges.tenant}|git", f"e-{n}", 60) for n, edge in enumerate([edges.a, edges.b] * 20)]
    assert len(set(await asyncio.gather(*takers))) == 1


async def test_only_the_holder_renews_and_learns_which_are_lost(edges: Edges) -> None:
    mine = [f"{edges.tenant}|git|{number}" for number in range(1_200)]
    for name in mine[:3] + mine[-3:]:
        await edges.a.take(name, "a", 60)
    await edges.b.take(mine[5], "b", 60)
    assert await edges.a.renew(mine, "a", 60) == frozenset(mine[:3] + mine[-3:])
    assert await edges.b.renew(mine, "b", 60) == {mine[5]}
    assert await edges.a.renew([], "a", 60) == frozenset()


async def test_a_lease_that_is_not_renewed_passes_on(edges: Edges) -> None:
    name, kept = f"{edges.tenant}|git|u-1", f"{edges.tenant}|git|u-2"
    await edges.a.take(name, "a", 0.2)
    await edges.a.take(kept, "a", 0.2)
    assert await edges.a.renew([kept], "a", 60) == {kept}
    if edges.clock is not None:
        edges.clock.now += 1

    async def passed_on() -> bool:
        return await edges.b.take(name, "b", 60) == "b"

    await until(passed_on)
    assert await edges.a.renew([name, kept], "a", 60) == {kept}, "what was lost is not taken back by renewing"
    assert await edges.a.take(name, "a", 60) == "b"


async def test_taking_again_renews(edges: Edges) -> None:
    name, other = f"{edges.tenant}|git|u-1", f"{edges.tenant}|git|u-2"
    for one in (name, other):
        await edges.a.take(one, "a", 0.2)
    assert await edges.a.take(name, "a", 60) == "a"
    if edges.clock is not None:
        edges.clock.now += 1

    async def other_passed_on() -> bool:
        return await edges.b.take(other, "b", 60) == "b"

    await until(other_passed_on)
    assert await edges.b.take(name, "b", 60) == "a"


async def test_only_the_holder_gives_a_lease_up(edges: Edges) -> None:
    name = f"{edges.tenant}|git|u-1"
    await edges.a.take(name, "a", 60)
    await edges.b.give_up(name, "b")
    assert await edges.b.take(name, "b", 60) == "a"
    await edges.a.give_up(name, "a")
    assert await edges.b.take(name, "b", 60) == "b"
    await edges.a.give_up(f"{edges.tenant}|never taken", "a")


@pytest.mark.parametrize("name", ["{}|git", "{}|git|", "{}|git|u-1|x", "{}", "{}|*", "{}|ä", "{}x|git|u-1"])
async def test_names_that_look_alike_are_leases_of_their_own(edges: Edges, name: str) -> None:
    await edges.a.take(f"{edges.tenant}|git|u-1", "a", 60)
    assert await edges.b.take(name.format(edges.tenant), "http://[::1]:8080/ü", 60) == "http://[::1]:8080/ü"


@pytest.mark.redis
async def test_leases_are_lost_with_their_server_and_taken_anew(pair: Edges, valkey: Valkey) -> None:
    assert await pair.a.take("acme|git", "a", 60) == "a"
    valkey.kill()
    with pytest.raises(SessionsUnavailable):
        await pair.a.renew(["acme|git"], "a", 60)
    valkey.start()
    assert await pair.a.renew(["acme|git"], "a", 60) == frozenset(), "the owner learns that it owns nothing any more"
    assert await pair.b.take("acme|git", "b", 60) == "b"
    assert await pair.a.take("acme|git", "a", 60) == "b"
