"""What the store of one process holds is bounded: a full one refuses, and forgets nothing that lives."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.parts.session_stores import Time, upstream

from tidegate.ids import now_us
from tidegate.limits import KEPT_STREAM_BYTES_MAX
from tidegate.sessions.memory import MemorySessions
from tidegate.sessions.port import CLAIMABLE_S, SessionsUnavailable, UpstreamKey

PUTS: dict[str, Callable[[MemorySessions, int], Awaitable[object]]] = {
    "upstream sessions": lambda store, n: store.put_upstream(UpstreamKey("t", "s", str(n), "a"), upstream("x"), 60),
    "windows": lambda store, n: store.window("t", str(n), "a", "", 60, now_us()),
    "leases": lambda store, n: store.take(f"t|{n}", "a", 60),
    "streams": lambda store, n: store.keep("t|s", str(n), b"", 60),
}


@pytest.mark.parametrize("put", PUTS.values(), ids=PUTS)
async def test_a_full_store_refuses_until_something_has_ended(
    put: Callable[[MemorySessions, int], Awaitable[object]],
) -> None:
    clock = Time()
    store = MemorySessions(per_subject_max=1, clock=clock, entries_max=2)
    await put(store, 0)
    await put(store, 1)
    with pytest.raises(SessionsUnavailable, match="redis://"):
        await put(store, 2)
    await put(store, 1)
    clock.now += 60 + CLAIMABLE_S + 1
    await put(store, 2)
    await put(store, 3)


async def test_the_bytes_of_all_streams_have_a_bound_and_come_back_when_streams_end() -> None:
    clock = Time()
    store = MemorySessions(per_subject_max=1, clock=clock)
    event = b"x" * KEPT_STREAM_BYTES_MAX
    kept = 0
    with pytest.raises(SessionsUnavailable, match="redis://"):
        for kept in range(1_000):
            await store.keep("t|s", str(kept), event, 60)
    assert kept * KEPT_STREAM_BYTES_MAX == 256 * 1024 * 1024
    events = await store.kept_after("t|s", "0", "0-0", 0)
    assert events is not None
    assert len(events) == 1
    clock.now += 61
    await store.keep("t|s", "new", event, 60)


async def test_readers_woken_at_once_all_get_the_event_and_a_cancelled_one_harms_none() -> None:
    store = MemorySessions(per_subject_max=1)
    number = await store.keep("t|s", "x", b"", 60)
    waiting = [asyncio.create_task(store.kept_after("t|s", "x", number, 10)) for _ in range(10)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    following = await store.keep("t|s", "x", b"1", 60)
    assert await asyncio.gather(*waiting[1:]) == [[(following, b"1")]] * 9
