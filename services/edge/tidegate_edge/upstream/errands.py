"""Small things done beside a request, in tasks of their own: bounded in number, ended with their upstream."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from tidegate.errors import Fault

ERRANDS_MAX: Final = 2_000
CLOSING_S: Final = 0.5

_log = logging.getLogger(__name__)


class Errands:
    """Of one upstream."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, errand: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None] | None:
        """None where too many are under way: this one is not done."""
        if len(self._tasks) >= ERRANDS_MAX:
            errand.close()
            _log.warning("%s: too much to do at once: left out: %s", self._name, what)
            return None
        task = asyncio.create_task(errand, name=f"{self._name}: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Fault):
            _log.debug("%s", error.sentence)
        elif error is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Let what is nearly done end; cancel the rest."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=CLOSING_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
