"""Small things done beside a request, in tasks of their own: bounded in number, ended with their upstream."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from tidegate.errors import Fault

ERRANDS_MAX: Final = 2_000

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
        task = asyncio.create_task(self._run(errand), name=f"{self._name}: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        try:
            await errand
        except Fault as fault:
            _log.debug("%s", fault.sentence)

    async def close(self) -> None:
        """Cancel what is still under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
