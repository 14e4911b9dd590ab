"""Group commit: one thread makes records durable in batches; callers await their batch.

Whatever gathers while one batch is being written becomes the next one, so that the number of syncs follows the medium
and not the number of callers. Bounded: past `records_max` pending records an append is refused, never forgotten. When
a batch fails, what gathered behind it fails too: a stored record never follows a lost one of the same writer, so a
hash chain has no hole.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from tidegate.errors import LogUnavailable
from tidegate.limits import EVENT_BYTES_MAX, LETTER_BYTES_MAX
from tidegate.log.pace import Pace
from tidegate.log.port import BlockingAppender, Record

_log = logging.getLogger(__name__)

GATHER_S = 0.001  # under load the next batch waits so long for company: fewer syncs, each of many records
CROWD = 3  # records in the last batch that count as load; a lone caller never waits

Futures = list["asyncio.Future[None]"]
Batch = tuple[list[Record], Futures]


LETTERS = "dead-letters"
_FRAMING_BYTES = 128  # of a Kafka batch that holds one record: 82, and the lengths of key and value
_HEADER_BYTES = 10  # the lengths of a header's name and value


def bytes_of(record: Record) -> int:
    """What the record takes up in a Kafka topic at most, as a batch of its own."""
    headers = sum([len(name.encode(errors="replace")) + len(value) + _HEADER_BYTES for name, value in record.headers])
    return len(record.key) + len(record.value or b"") + headers + _FRAMING_BYTES


def check_size(record: Record) -> None:
    """Raises LogUnavailable (`record-too-large`) for what no adapter takes: refused before it blocks a queue.

    A dead letter may be larger than an event: what somebody else could append must be kept as well.
    """
    if record.topic == LETTERS:
        if (size := bytes_of(record)) > LETTER_BYTES_MAX:
            raise LogUnavailable(
                f"a dead letter of {size} bytes, where a topic takes {LETTER_BYTES_MAX} at most",
                code="record-too-large",
            )
    elif record.value is not None and len(record.value) > EVENT_BYTES_MAX:
        raise LogUnavailable(
            f"a record of {len(record.value)} bytes, where the log takes {EVENT_BYTES_MAX} at most; "
            "limits.capture_bytes_max bounds what is captured of a call",
            code="record-too-large",
        )


class GroupCommit:
    """Appends through a `BlockingAppender` from a thread of its own. Use from one event loop only.

    `on_fault` is called on the loop when a batch has failed, after nothing of it or behind it is pending and before any
    future ends. There a hash chain is set back to `durable` where the appender takes back what it refused (the spool,
    SQLite), and begun anew (`Spool.renew`) where what was stored is unknown.
    """

    def __init__(
        self,
        appender: BlockingAppender,
        *,
        records_max: int,
        name: str,
        on_fault: Callable[[LogUnavailable], None] | None = None,
        inline_below_s: float = 0.0,
    ) -> None:
        """`inline_below_s`: a medium whose syncs take less on average is written to on the loop (see `pace.py`)."""
        self._appender = appender
        self._pace = Pace(inline_below_s)
        self._records_max = records_max
        self._on_fault = on_fault
        self._records: list[Record] = []
        self._futures: Futures = []
        self.batches = 0  # made durable since the start: syncs of a disk, or acknowledgements of Kafka
        self.durable: Record | None = None  # the last record known to be durable
        self._in_flight = 0
        self._scheduled = False
        self._crowded = False
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def backlog(self) -> int:
        """Records handed over and not yet durable."""
        return len(self._records) + self._in_flight

    def submit(self, record: Record) -> "asyncio.Future[None]":
        """Hand a record over; the future ends when it is durable. Raises LogUnavailable when the buffer is full or
        closed.

        Records are written in the order of submission. The future's exception is LogUnavailable where the write
        failed. A record that was refused here (an exception, no future) was never in the log.
        """
        value = record[2]
        if self._closed or len(self._records) + self._in_flight >= self._records_max:
            self._refuse(1)
        if value is not None and len(value) > EVENT_BYTES_MAX:
            check_size(record)
        loop = self._loop or self._start()
        future: asyncio.Future[None] = loop.create_future()
        self._records.append(record)
        self._futures.append(future)
        if not self._scheduled and not self._in_flight:
            self._schedule(loop)
        return future

    async def append(self, records: Sequence[Record]) -> None:
        """All of them durable on return, in order, in one batch: all or none where the appender's batches are."""
        if not records:
            return
        if self._closed or len(self._records) + self._in_flight + len(records) > self._records_max:
            self._refuse(len(records))
        for record in records:
            check_size(record)
        loop = self._loop or self._start()
        future: asyncio.Future[None] = loop.create_future()
        self._records.extend(records)
        self._futures.append(future)
        if not self._scheduled and not self._in_flight:
            self._schedule(loop)
        await future

    async def close(self) -> None:
        """Make what is pending durable, then end the thread and close the appender."""
        self._closed = True
        if self.backlog:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        if self._thread.is_alive():
            self._batches.put(None)
            await asyncio.to_thread(self._thread.join)
        self._appender.close()

    def _refuse(self, number: int) -> None:
        if self._closed:
            raise LogUnavailable("the log is closing; the call was not made", code="log-closed")
        raise LogUnavailable(
            f"{self.backlog} records wait to become durable and {number} more would pass {self._records_max}: "
            "the disk or the log is too slow (limits.pending_records_max)",
            code="log-full",
        )

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self._loop

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = True
        if self._crowded:
            loop.call_later(GATHER_S, self._hand_over)
        else:
            loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._scheduled = False
        batch = self._records, self._futures
        self._records, self._futures = [], []
        self._in_flight = len(batch[0])
        self._crowded = self._in_flight >= CROWD
        began_s = time.monotonic()
        if self._pace.is_inline(began_s):
            fault = self._append(batch[0])
            now_s = time.monotonic()
            self._pace.took(now_s - began_s, now_s)
            self._settle(batch[0][-1], batch[1], fault)
        else:
            self._batches.put(batch)

    def _settle(self, last: Record, futures: Futures, fault: LogUnavailable | None) -> None:
        self._in_flight = 0
        if fault is not None:
            self._fail(futures, fault)
            return
        self.durable = last
        self.batches += 1
        if self._records:
            self._hand_over()
        for future in futures:
            if not future.done():  # else the waiter was cancelled; the record is durable all the same
                future.set_result(None)
        self._tell_idle()

    def _fail(self, futures: Futures, fault: LogUnavailable) -> None:
        futures += self._futures
        self._records, self._futures = [], []
        if self._on_fault is not None:
            self._on_fault(fault)
        for future in futures:
            if not future.done():
                future.set_exception(fault)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle is not None and not self.backlog and not self._idle.done():
            self._idle.set_result(None)

    def _run(self) -> None:
        assert self._loop is not None
        while (batch := self._batches.get()) is not None:
            records, futures = batch
            fault = self._append(records)
            self._loop.call_soon_threadsafe(self._settle, records[-1], futures, fault)

    def _append(self, records: list[Record]) -> LogUnavailable | None:
        """On the thread or on the loop, one batch at a time. A fault is returned: it is for the callers to hear."""
        try:
            self._appender.append(records)
        except LogUnavailable as error:
            return error
        except Exception as error:  # the thread's own loop: nothing may end it
            _log.exception("append failed")
            return LogUnavailable(f"append failed: {error}")
        return None
