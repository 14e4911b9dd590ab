"""Group commit: one thread makes records durable in batches; callers await their batch.

Whatever gathers while one batch is being written becomes the next one, so that the number of syncs follows the medium and not
the number of callers. Bounded: past `records_max` pending records an append is refused, never forgotten.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence

from tidegate.errors import LogUnavailable
from tidegate.log.port import BlockingAppender, Record

_log = logging.getLogger(__name__)

Batch = list[tuple[Record, "asyncio.Future[None]"]]


class GroupCommit:
    """Appends through a `BlockingAppender` from a thread of its own. Use from one event loop only."""

    def __init__(self, appender: BlockingAppender, *, records_max: int, name: str) -> None:
        self._appender = appender
        self._records_max = records_max
        self._pending: Batch = []
        self._in_flight = 0
        self._scheduled = False
        self._closed = False
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def backlog(self) -> int:
        """Records handed over and not yet durable."""
        return len(self._pending) + self._in_flight

    def submit(self, record: Record) -> "asyncio.Future[None]":
        """Hand a record over; the future ends when it is durable. Raises LogUnavailable when the buffer is full or closed.

        Records are written in the order of submission. The future's exception is LogUnavailable where the write failed.
        """
        if self._closed:
            raise LogUnavailable("the log is closing; the call was not made", code="log-closed")
        if len(self._pending) + self._in_flight >= self._records_max:
            raise LogUnavailable(
                f"{self._records_max} records wait to become durable: the disk or the log is too slow (limits.pending_records_max)",
                code="log-full",
            )
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        future: asyncio.Future[None] = self._loop.create_future()
        self._pending.append((record, future))
        if not self._scheduled and not self._in_flight:
            self._scheduled = True
            self._loop.call_soon(self._hand_over)
        return future

    async def append(self, records: Sequence[Record]) -> None:
        """All of them durable on return, in order."""
        await asyncio.gather(*[self.submit(record) for record in records])

    async def close(self) -> None:
        """Make what is pending durable, then end the thread and close the appender."""
        self._closed = True
        while self.backlog:
            waiting = [future for _, future in self._pending]
            await (asyncio.wait(waiting) if waiting else asyncio.sleep(0.001))
        if self._thread.is_alive():
            self._batches.put(None)
            await asyncio.to_thread(self._thread.join)
        self._appender.close()

    def _hand_over(self) -> None:
        self._scheduled = False
        batch, self._pending = self._pending, []
        self._in_flight = len(batch)
        self._batches.put(batch)

    def _settle(self, batch: Batch, fault: LogUnavailable | None) -> None:
        self._in_flight = 0
        if self._pending:
            self._hand_over()
        for _, future in batch:
            if future.done():  # the waiter was cancelled; the record is durable all the same
                continue
            if fault is None:
                future.set_result(None)
            else:
                future.set_exception(fault)

    def _run(self) -> None:
        assert self._loop is not None
        while (batch := self._batches.get()) is not None:
            fault: LogUnavailable | None = None
            try:
                self._appender.append([record for record, _ in batch])
            except LogUnavailable as error:
                fault = error
            except Exception as error:  # the thread's own loop: a fault here must reach the callers, not end the thread
                _log.exception("append failed")
                fault = LogUnavailable(f"append failed: {error}")
            self._loop.call_soon_threadsafe(self._settle, batch, fault)
