"""Long work on the event loop: one turn at a time, in the order in which it came, and by a thread where that may be."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tidegate.turns import Turns, at_once
from tidegate_edge.taking_turns import TURN_S, Aside


@pytest_asyncio.fixture
async def aside() -> AsyncIterator[Aside]:
    made = Aside()
    yield made
    made.close()


def turns(count: int, noted: list[str], name: str = "") -> Turns[int]:
    """Each as long as a turn may be."""
    for _ in range(count):
        end_s = time.perf_counter() + TURN_S
        while time.perf_counter() < end_s:
            pass
        noted.append(name)
        yield None
    return count


async def ticks(noted: list[str]) -> None:
    while True:
        noted.append("tick")
        await asyncio.sleep(0)


async def test_others_have_their_turn_after_each_turn_however_much_work_there_is(aside: Aside) -> None:
    noted: list[str] = []
    other = asyncio.create_task(ticks(noted))
    done = await asyncio.gather(*[aside.in_turns(turns(5, noted, name)) for name in "abc"])
    other.cancel()
    assert done == [5, 5, 5]
    assert all("tick" in pair for pair in itertools.pairwise(noted))
    assert [one for one in noted if one != "tick"][:6] == list("abcabc")


async def test_what_is_short_is_done_without_waiting(aside: Aside) -> None:
    def short() -> Turns[str]:
        yield None
        return "done"

    noted: list[str] = []
    other = asyncio.create_task(ticks(noted))
    assert await aside.in_turns(short()) == at_once(short()) == "done"
    assert noted == []
    other.cancel()


async def test_a_job_is_done_by_the_thread_and_its_result_comes_back(aside: Aside) -> None:
    def work() -> Turns[list[str]]:
        first = yield lambda: threading.current_thread().name
        yield None
        second = yield lambda: threading.current_thread().name
        return [first, second]

    names = await aside.in_turns(work())
    assert names == ["aside_0", "aside_0"]
    assert at_once(work()) == [threading.current_thread().name] * 2


async def test_a_fault_in_the_work_or_its_job_is_its_caller_s(aside: Aside) -> None:
    def failing() -> Turns[None]:
        yield None
        raise ValueError("in the work")

    def failing_aside() -> Turns[None]:
        yield lambda: 1 // 0

    with pytest.raises(ValueError, match="in the work"):
        await aside.in_turns(failing())
    with pytest.raises(ZeroDivisionError):
        await aside.in_turns(failing_aside())
    assert (aside.begun, aside.ended) == (2, 2)
    assert await aside.in_turns(turns(1, [])) == 1


async def test_cancelled_work_goes_no_further_and_leaves_the_turn_to_others(aside: Aside) -> None:
    noted: list[str] = []
    cancelled = asyncio.create_task(aside.in_turns(turns(1_000, noted, "cancelled")))
    waiting = asyncio.create_task(aside.in_turns(turns(3, noted, "goes on")))
    while "goes on" not in noted:
        await asyncio.sleep(0)
    cancelled.cancel()
    assert await waiting == 3
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert noted.count("cancelled") < 10
