"""Background tasks with an owner: a group that ends its tasks when the block that opened it ends, and fails the block
when one fails.

A TaskGroup passes over a task that ends as cancelled, whoever cancelled it: a library that lets a cancellation of its
own through would end a task for good, and nobody would hear of it. `owned` makes a fault of that.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


def owned(group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task of the group, which fails it when it ends as cancelled and nobody cancelled it."""
    task = group.create_task(_whole(work, name), name=name)
    task.add_done_callback(lambda _: work.close())  # where it was cancelled before it began
    return task


async def _whole(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except asyncio.CancelledError as stray:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError(f"'{name}' ended as if it had been cancelled, and nobody had cancelled it") from stray


class Background:
    """Tasks that run until the block ends."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = owned(self._group, work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        for task in list(self._tasks):
            task.cancel()


@contextlib.asynccontextmanager
async def background() -> AsyncIterator[Background]:
    """A task that raises ends the block with its exception; the block's end cancels the tasks and awaits them."""
    async with asyncio.TaskGroup() as group:
        tasks = Background(group)
        try:
            yield tasks
        finally:
            tasks.cancel()
