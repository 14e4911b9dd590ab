"""Empties a spool into Kafka, in order, from a thread of its own; tries forever while Kafka is away. Counterpart:
`spool.py`.
"""

import logging
import random
import threading
from typing import TYPE_CHECKING

from tidegate.errors import LogUnavailable
from tidegate.log.port import BlockingAppender

if TYPE_CHECKING:
    from tidegate.log.spool import Chunk, Spool

_log = logging.getLogger(__name__)

_CHUNK_RECORDS = 5_000
_CHUNK_BYTES = 4 * 1024 * 1024
_IDLE_S = 1.0
_BACKOFF_MAX_S = 5.0


class Shipper:
    """Ships what is in the spool through the appender (a `KafkaAppender`), which it owns and closes.

    At least once: a chunk whose acknowledgement was lost is shipped again. `linger_s` lets a chunk gather after an
    idle time, which saves CPU per record under load and delays a lone record by that much.
    """

    def __init__(
        self, spool: "Spool", appender: BlockingAppender, *, linger_s: float = 0.05, name: str = "shipper"
    ) -> None:
        self.shipped_total = 0
        self.fault: LogUnavailable | None = None  # why the last attempt failed; None while shipping goes well
        self._spool = spool
        self._appender = appender
        self._linger_s = linger_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self, deadline_s: float) -> bool:
        """Blocks until the spool is empty (True) or the deadline has passed."""
        return self._spool.wait_empty(deadline_s)

    def close(self, deadline_s: float = 15.0) -> None:
        """End the thread (an attempt under way is finished or given up first), close the appender. What is left stays
        spooled.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(deadline_s)
        self._appender.close()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                failures = failures + 1 if not self._ship_one() else 0
            except Exception as error:  # the thread's own loop: whatever happens, the spool must go on being emptied
                _log.exception("shipping failed")
                self.fault = LogUnavailable(f"shipping failed: {error}")
                failures += 1
            if failures:
                self._stopping.wait(min(_BACKOFF_MAX_S, 0.1 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0))  # noqa: S311

    def _ship_one(self) -> bool:
        """False where an attempt failed."""
        chunk = self._next_chunk()
        if chunk is None:
            return True
        try:
            if chunk.records:
                self._appender.append(chunk.records)
        except LogUnavailable as fault:
            if self.fault is None:
                _log.warning("records stay in the spool for now: %s", fault.sentence)
            self.fault = fault
            return False
        self._spool.shipped(chunk)
        self.shipped_total += len(chunk.records)
        if self.fault is not None:
            _log.warning("shipping goes on")
            self.fault = None
        return True

    def _next_chunk(self) -> "Chunk | None":
        chunk = self._spool.take(_CHUNK_RECORDS, _CHUNK_BYTES, _IDLE_S)
        if chunk is not None and len(chunk.records) < _CHUNK_RECORDS:
            self._stopping.wait(self._linger_s)
            return self._spool.take(_CHUNK_RECORDS, _CHUNK_BYTES, 0)
        return chunk
