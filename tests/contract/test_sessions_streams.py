"""Kept streams: what was sent is found again at any edge, by its owner alone, within bounds; on every adapter."""

import asyncio
import time

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.parts.session_stores import Edges, redis_pair, until
from tests.parts.valkey import Valkey

from tidegate.limits import KEPT_EVENTS_MAX, KEPT_STREAM_BYTES_MAX
from tidegate.sessions.numbers import number_of
from tidegate.sessions.port import SessionStore, SessionsUnavailable

START = "0-0"


async def everything(edge: SessionStore, owner: str, stream: str, number: str) -> list[bytes] | None:
    """All that follows, batch by batch."""
    found: list[bytes] = []
    while True:
        events = await edge.kept_after(owner, stream, number, 0)
        if events is None:
            return found or None
        if not events:
            return found
        found += [event.message for event in events]
        number = events[-1].number


async def test_what_follows_a_number_is_found_at_another_edge_in_order(edges: Edges) -> None:
    owner = f"{edges.tenant}|s-1"
    messages = [b"", b"{}", b"\xff\n\x00"]
    numbers = [await edges.a.keep(owner, "x", message, 60) for message in messages]
    assert [number_of(one) for one in numbers] == sorted({number_of(one) for one in numbers})  # type: ignore[type-var]
    assert await edges.b.kept_after(owner, "x", START, 0) == list(
        zip(numbers, [b"", b"{}", b"\xff\n\x00"], strict=True)
    )
    assert await edges.b.kept_after(owner, "x", numbers[1], 0) == [(numbers[2], b"\xff\n\x00")]
    assert await edges.b.kept_after(owner, "x", numbers[2], 0) == []


async def test_a_stream_is_there_for_its_owner_alone_and_apart_from_its_other_streams(edges: Edges) -> None:
    owner = f"{edges.tenant}|s-1"
    number = await edges.a.keep(owner, "x", b"secret", 60)
    for other, stream in [
        (f"{edges.tenant}|s-2", "x"),
        (f"{edges.tenant}|s-1|x", ""),
        (owner, "y"),
        ("other|s-1", "x"),
    ]:
        for after in (START, number):
            assert await edges.b.kept_after(other, stream, after, 0) is None
    await edges.b.finish(f"{edges.tenant}|s-2", "x", 60)
    assert await edges.a.kept_after(owner, "x", number, 0) == []


@pytest.mark.parametrize("number", ["", "0", "-", "+", "1-1 ", "(1-1", "1-1\n", "٣-٣", "9" * 19 + "-1", "$", "1-*"])
async def test_what_is_no_number_finds_nothing(edges: Edges, number: str) -> None:
    owner = f"{edges.tenant}|s-1"
    await edges.a.keep(owner, "x", b"1", 60)
    assert await edges.a.kept_after(owner, "x", number, 0) is None


async def test_who_waits_is_told_when_another_edge_keeps_the_next(edges: Edges) -> None:
    owner = f"{edges.tenant}|s-1"
    number = await edges.a.keep(owner, "x", b"", 60)
    for round_ in range(5):
        waiting = [asyncio.create_task(edge.kept_after(owner, "x", number, 20)) for edge in (edges.a, edges.b, edges.b)]
        await asyncio.wait(waiting, timeout=0.05)
        began = time.monotonic()
        following = await edges.a.keep(owner, "x", b"%d" % round_, 60)
        assert await asyncio.gather(*waiting) == [[(following, b"%d" % round_)]] * 3
        assert time.monotonic() - began < 2, "woken, not timed out"
        number = following


async def test_who_waits_in_vain_gets_nothing_in_time(edges: Edges) -> None:
    owner = f"{edges.tenant}|s-1"
    number = await edges.a.keep(owner, "x", b"", 60)
    began = time.monotonic()
    assert await edges.b.kept_after(owner, "x", number, 0.2) == []
    assert 0.19 < time.monotonic() - began < 2


async def test_a_finished_stream_gives_what_it_has_and_then_nobody_waits(edges: Edges) -> None:
    owner = f"{edges.tenant}|s-1"
    first = await edges.a.keep(owner, "x", b"1", 60)
    second = await edges.a.keep(owner, "x", b"2", 60)
    waiting = asyncio.create_task(edges.b.kept_after(owner, "x", second, 20))
    await asyncio.wait({waiting}, timeout=0.05)
    await edges.a.finish(owner, "x", 60)
    assert await asyncio.wait_for(waiting, 2) is None
    assert await edges.b.kept_after(owner, "x", first, 20) == [(second, b"2")]
    assert await edges.b.kept_after(owner, "x", second, 20) is None


async def test_a_stream_ends_by_itself(edges: Edges) -> None:
    owner = f"{edges.tenant}|s-1"
    await edges.a.keep(owner, "x", b"1", 60)
    await edges.a.keep(owner, "x", b"2", 0.2)
    await edges.a.keep(owner, "y", b"1", 60)
    await edges.a.finish(owner, "y", 0.2)
    await edges.until_forgotten()
    assert await edges.b.kept_after(owner, "x", START, 0) is None
    assert await edges.b.kept_after(owner, "y", START, 0) is None


async def test_past_the_bound_of_events_the_oldest_are_forgotten_and_asking_for_them_says_so(edges: Edges) -> None:
    owner, more = f"{edges.tenant}|s-1", 5
    numbers = [await edges.a.keep(owner, "x", b"%d" % n, 60) for n in range(KEPT_EVENTS_MAX + more)]
    assert await edges.b.kept_after(owner, "x", START, 0) is None
    assert await edges.b.kept_after(owner, "x", numbers[more - 2], 0) is None
    assert await everything(edges.b, owner, "x", numbers[more - 1]) == [
        b"%d" % n for n in range(more, KEPT_EVENTS_MAX + more)
    ]


async def test_past_the_bound_of_bytes_the_oldest_are_forgotten(edges: Edges) -> None:
    owner, third = f"{edges.tenant}|s-1", b"x" * (KEPT_STREAM_BYTES_MAX // 3)
    numbers = [await edges.a.keep(owner, "x", third, 60) for _ in range(5)]
    assert await edges.b.kept_after(owner, "x", numbers[0], 0) is None
    assert await everything(edges.b, owner, "x", numbers[1]) == [third] * 3
    alone = await edges.a.keep(owner, "x", b"x" * (KEPT_STREAM_BYTES_MAX + 1), 60)
    assert await edges.b.kept_after(owner, "x", numbers[4], 0) is None, "too large to be kept at all"
    last = await edges.a.keep(owner, "x", b"small", 60)
    assert await edges.b.kept_after(owner, "x", alone, 0) == [(last, b"small")]


@given(st.text(max_size=40))
def test_a_number_is_read_in_one_way_only(text: str) -> None:
    number = number_of(text)
    if number is not None:
        assert tuple(int(part) for part in text.split("-")) == number


@pytest.mark.redis
async def test_waiting_readers_hold_no_connection(pair: Edges, valkey: Valkey) -> None:
    number = await pair.a.keep("acme|s-1", "x", b"", 60)
    client = redis.asyncio.Redis.from_url(valkey.url)
    assert await pair.b.kept_after("acme|s-1", "x", number, 0) == [], "the server has the script now"

    async def commands() -> int:
        stats = await client.info("commandstats")
        return int(stats["cmdstat_evalsha"]["calls"])

    asked = await commands() + 300
    waiting = [asyncio.create_task(pair.b.kept_after("acme|s-1", "x", number, 20)) for _ in range(300)]

    async def all_have_asked() -> bool:
        return await commands() >= asked

    await until(all_have_asked)
    assert await pair.b.get("acme", "s-1") is None, "the pool is free"
    assert await asyncio.wait(waiting, timeout=0.3, return_when=asyncio.FIRST_COMPLETED) == (set(), set(waiting))
    assert await commands() == asked, "nobody polls"
    following = await pair.a.keep("acme|s-1", "x", b"1", 60)
    assert await asyncio.gather(*waiting) == [[(following, b"1")]] * 300
    await client.aclose()


@pytest.mark.redis
async def test_who_waits_hears_of_the_next_although_the_subscription_broke_meanwhile(
    pair: Edges, valkey: Valkey
) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    number = await pair.a.keep("acme|s-1", "x", b"", 60)
    waiting = asyncio.create_task(pair.b.kept_after("acme|s-1", "x", number, 20))
    await asyncio.wait({waiting}, timeout=0.05)
    await client.client_kill_filter(_type="pubsub")
    following = await pair.a.keep("acme|s-1", "x", b"1", 60)
    assert await asyncio.wait_for(waiting, 3) == [(following, b"1")]
    await client.aclose()


@pytest.mark.redis
async def test_who_waits_while_the_server_dies_is_told_and_streams_begin_anew(pair: Edges, valkey: Valkey) -> None:
    number = await pair.a.keep("acme|s-1", "x", b"", 60)
    waiting = asyncio.create_task(pair.b.kept_after("acme|s-1", "x", number, 20))
    await asyncio.wait({waiting}, timeout=0.05)
    valkey.kill()
    with pytest.raises(SessionsUnavailable):
        await asyncio.wait_for(waiting, 6)
    valkey.start()
    await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
    assert await pair.b.kept_after("acme|s-1", "x", number, 0) is None
    await pair.a.keep("acme|s-1", "x", b"1", 60)
    assert await everything(pair.b, "acme|s-1", "x", START) == [b"1"]


@pytest.mark.redis
async def test_an_event_sent_again_after_a_broken_connection_is_kept_once(valkey_url: str) -> None:
    client = redis.asyncio.Redis.from_url(valkey_url)
    async with redis_pair(valkey_url) as (a, b):
        for n in range(20):
            assert await a.keep("once|s-1", "x", b"%d" % n, 60)
            await client.client_kill_filter(_type="normal", skipme=True)
        assert await everything(b, "once|s-1", "x", START) == [b"%d" % n for n in range(20)]
    await client.aclose()
