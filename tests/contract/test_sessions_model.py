"""Both adapters answer alike, whatever is asked of them in whatever order (time apart)."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parts.session_stores import Edges, redis_pair, upstream

from tidegate.ids import uuid7
from tidegate.sessions.memory import MemorySessions
from tidegate.sessions.port import SessionStore, UpstreamKey

few = st.sampled_from
Step = Callable[[SessionStore, str, list[str]], Any]


def key(tenant: str, server: str, session: str) -> UpstreamKey:
    return UpstreamKey(tenant, server, "u", "a", session)


def stream_step(kind: str, owner: str, stream: str, nth: int) -> Step:
    """`numbers` holds those given so far: the two adapters number differently."""

    async def step(store: SessionStore, tenant: str, numbers: list[str]) -> object:
        if kind == "keep":
            numbers.append(await store.keep(f"{tenant}|{owner}", stream, b"%d" % nth, 60))
            return None
        if kind == "finish":
            return await store.finish(f"{tenant}|{owner}", stream, 60)
        events = await store.kept_after(f"{tenant}|{owner}", stream, "0-0", 0)
        return events and [event.message for event in events]

    return step


steps = st.one_of(
    st.builds(lambda n, v: lambda s, t, _: s.take(f"{t}|{n}", v, 60), few("xy"), few("ab")),
    st.builds(lambda n, v: lambda s, t, _: s.renew([f"{t}|{one}" for one in n], v, 60), few(["x", "xy"]), few("ab")),
    st.builds(lambda n, v: lambda s, t, _: s.give_up(f"{t}|{n}", v), few("xy"), few("ab")),
    st.builds(
        lambda n, c, i: lambda s, t, _: s.put_upstream(key(t, n, c), upstream(i), 60),
        few(["git", "web"]), few(["", "c-1", "c-2"]), few(["", "up-1", "up-2"]),
    ),
    st.builds(lambda n, c: lambda s, t, _: s.get_upstream(key(t, n, c)), few(["git", "web"]), few(["", "c-1", "c-2"])),
    st.builds(
        lambda n, c, i: lambda s, t, _: s.drop_upstream(key(t, n, c), i),
        few(["git", "web"]), few(["", "c-1", "c-2"]), few(["", "up-1", "up-2"]),
    ),
    st.builds(lambda c: lambda s, t, _: s.sessions_of(t, c), few(["", "c-1", "c-2"])),
    st.builds(
        lambda i, u: lambda s, t, _: s.open(Edges(s, s, t, _never).record(i, u), 60), few(["s-1", "s-2"]), few(["u-1"])
    ),
    st.builds(
        lambda i, on, off, level: lambda s, t, _: s.amend(t, i, log_level=level, subscribe=on, unsubscribe=off),
        few(["s-1", "s-2"]), few(["", "u:1", "u:2"]), few(["", "u:1", "u:2"]), few([None, "", "info"]),
    ),
    st.builds(lambda i: lambda s, t, _: s.get(t, i), few(["s-1", "s-2"])),
    st.builds(lambda i: lambda s, t, _: s.end(t, i, 2), few(["s-1", "s-2"])),
    st.builds(stream_step, few(["keep", "keep", "read", "finish"]), few("ab"), few("xy"), st.integers(0, 9)),
)  # fmt: skip


async def _never() -> None:
    raise AssertionError


async def answers(asked: list[Step], a: SessionStore, b: SessionStore, tenant: str) -> list[str]:
    """In words that do not depend on when and where they were asked."""
    found, numbers = [], list[str]()
    for number, step in enumerate(asked):
        answer = await step((a, b)[number % 2], tenant, numbers)
        if isinstance(answer, list):
            answer = sorted(answer, key=repr) if answer and isinstance(answer[0], tuple) else answer
        words = repr(sorted(answer)) if isinstance(answer, frozenset) else repr(answer)
        found.append(re.sub(r"opened_us=\d+|<msgspec.Raw object at 0x\w+>", "…", words.replace(tenant, "tenant")))
    return found


@pytest.mark.redis
@settings(max_examples=60, deadline=None)
@given(asked=st.lists(steps, min_size=1, max_size=40))
def test_redis_answers_as_memory_does(valkey_url: str, asked: list[Step]) -> None:
    async def both() -> tuple[list[str], list[str]]:
        memory = MemorySessions(per_subject_max=3)
        expected = await answers(asked, memory, memory, f"acme-{uuid7()}")
        async with redis_pair(valkey_url) as (a, b):
            return expected, await answers(asked, a, b, f"acme-{uuid7()}")

    expected, found = asyncio.run(both())
    assert found == expected
