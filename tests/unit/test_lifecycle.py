"""Background tasks: whatever ends one, its owner hears of it, unless the owner ended it."""

import asyncio
import gc

import pytest

from tidegate.lifecycle import background, owned


async def for_ever() -> None:
    await asyncio.Event().wait()


async def cancelled_from_within() -> None:
    """As a library ends its caller that awaits what it has cancelled itself."""
    inner = asyncio.create_task(for_ever())
    inner.cancel()
    await inner


async def test_a_task_that_fails_fails_the_block() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ExceptionGroup) as raised:
        async with background() as tasks:
            tasks.start(fail(), "work")
            await for_ever()
    assert [repr(one) for one in raised.value.exceptions] == ["ValueError('broken')"]


async def test_a_task_that_ends_as_cancelled_by_nobody_fails_the_block_and_is_named() -> None:
    async with asyncio.timeout(20):
        with pytest.raises(ExceptionGroup) as raised:
            async with background() as tasks:
                tasks.start(cancelled_from_within(), "work")
                await for_ever()
    (error,) = raised.value.exceptions
    assert "'work' ended as if it had been cancelled" in str(error)


async def test_a_group_that_only_waits_for_its_tasks_fails_as_well() -> None:
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            owned(group, cancelled_from_within(), "work")


@pytest.mark.filterwarnings("error")
async def test_the_blocks_end_cancels_its_tasks_and_is_no_fault_even_of_one_that_never_began() -> None:
    ended = []

    async def work() -> None:
        try:
            await for_ever()
        finally:
            ended.append("begun")

    async with background() as tasks:
        tasks.start(work(), "begun")
        await asyncio.sleep(0)
        tasks.start(work(), "never began")
    assert ended == ["begun"]
    gc.collect()


async def test_one_whom_its_host_cancels_is_no_fault() -> None:
    async with asyncio.TaskGroup() as group:
        task = owned(group, for_ever(), "work")
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
