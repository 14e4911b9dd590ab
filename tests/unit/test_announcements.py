"""Announcements: every listener hears each change once, in order, and what waits is bounded."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_edge.announcements import HEARD_MAX, Announcement, Announcements, ChangeKind

KINDS: list[ChangeKind] = ["tools", "prompts", "resources", "updated"]


def one(server: str = "up", kind: ChangeKind = "tools", uri: str = "") -> Announcement:
    return Announcement("acme", server, kind, uri)


async def test_what_is_told_before_listening_begins_or_after_it_ends_is_not_heard() -> None:
    announcements = Announcements()
    announcements.tell(one("before"))
    with announcements.hearing() as hearing:
        announcements.tell(one("during"))
    announcements.tell(one("after"))
    assert await hearing.heard() == [one("during")]


async def test_a_listener_waits_until_something_is_told() -> None:
    announcements = Announcements()
    with announcements.hearing() as hearing:
        for kind in KINDS:
            waiting = asyncio.create_task(hearing.heard())
            await asyncio.sleep(0)
            assert not waiting.done()
            announcements.tell(one(kind=kind))
            assert await asyncio.wait_for(waiting, 5) == [one(kind=kind)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(KINDS), st.sampled_from(["", "x://1"])), min_size=1))
async def test_each_listener_hears_each_change_once_in_the_order_of_telling(
    told: list[tuple[str, ChangeKind, str]],
) -> None:
    announcements = Announcements()
    with announcements.hearing() as left, announcements.hearing() as right:
        for server, kind, uri in told:
            announcements.tell(one(server, kind, uri))
        expected = list(dict.fromkeys(one(*parts) for parts in told))
        assert await left.heard() == expected
        assert await right.heard() == expected


async def test_past_the_bound_updates_are_dropped_and_list_changes_are_not() -> None:
    announcements = Announcements()
    with announcements.hearing() as hearing:
        for number in range(3 * HEARD_MAX):
            announcements.tell(one(kind="updated", uri=f"x://{number}"))
        announcements.tell(one(kind="prompts"))
        heard = await hearing.heard()
    assert len(heard) == HEARD_MAX + 1
    assert heard[-1] == one(kind="prompts")
    assert heard[0].uri == "x://0"


async def test_a_failing_block_listens_no_more() -> None:
    announcements = Announcements()
    with pytest.raises(RuntimeError), announcements.hearing():
        raise RuntimeError
    announcements.tell(one())
    assert not announcements._hearings
