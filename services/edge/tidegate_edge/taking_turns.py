"""Long work on the event loop in turns with everybody else's, and by a thread where that holds no interpreter lock.

Only what is large goes this way (`LARGE_BYTES`): for all else a turn would cost more than the work. Counterpart:
`tidegate/turns.py` says what such work is.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from tidegate.turns import Job, Turns

TURN_S: Final = 0.002  # for so long work goes on at a stretch
T = TypeVar("T")


class Aside:
    """Of however much large work there is, one turn is taken between two looks at everything else. One thread, begun
    when it is needed: what works there has one scratch.
    """

    def __init__(self) -> None:
        self.begun = self.ended = 0  # works, since the edge started
        self._turn = asyncio.Lock()
        self._thread: ThreadPoolExecutor | None = None

    async def in_turns(self, work: Turns[T]) -> T:
        """Its result, in the end. Cancelled: nothing more of it is begun."""
        result: Any = None
        self.begun += 1
        try:
            while True:
                async with self._turn:
                    job, result = _taken(work, result), None
                    if job is None:
                        await asyncio.sleep(0)
                if job is not None:
                    result = await asyncio.get_running_loop().run_in_executor(self._executor(), job)
        except _Done as done:
            value: T = done.value
            return value
        finally:
            self.ended += 1

    def _executor(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "aside")
        return self._thread

    def close(self) -> None:
        """Without waiting for what is under way: nobody waits for that either."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None


class _Done(Exception):
    """The work has ended."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _taken(work: Turns[Any], result: Any) -> Job | None:
    """One turn; then what a thread is to do, or None. Raises _Done."""
    end_s = time.perf_counter() + TURN_S
    try:
        while (job := work.send(result)) is None and time.perf_counter() < end_s:
            result = None
    except StopIteration as ended:
        raise _Done(ended.value) from None
    return job
