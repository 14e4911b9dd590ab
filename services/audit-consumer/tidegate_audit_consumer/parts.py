"""What the spine works with: the ports, the bounds, and the small state around them (claims, counts, what is
awaited).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.analytics.port import Analytics
from tidegate.errors import LogUnavailable, OurFault
from tidegate.log.port import EventLog, Partition, Subscription
from tidegate_audit_consumer.batch import Bounds, ends_of
from tidegate_audit_consumer.hand import Hand
from tidegate_audit_consumer.metrics import Metrics
from tidegate_audit_consumer.progress import Progress
from tidegate_audit_consumer.reading import Unreadable

_log = logging.getLogger(__name__)


@dataclass
class Counts:
    """Since the start."""

    records: int = 0  # stored or buried, and settled
    events: int = 0  # rows of events inserted
    skipped: int = 0  # found stored already
    dead_letters: int = 0
    settled: dict[Partition, int] = field(default_factory=dict)  # next offset to read


@dataclass
class Parts:
    """Of one consumer, while it runs."""

    log: EventLog
    subscription: Subscription
    analytics: Analytics
    progress: Progress
    hand: Hand
    metrics: Metrics
    bounds: Bounds
    clock: Callable[[], int]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    counts: Counts = field(default_factory=Counts)
    awaited: set[str] = field(default_factory=set)
    _failures: int = 0

    async def pause(self, fault: OurFault) -> None:
        """Wait before the next try, longer each time, not beyond a stop."""
        self.awaited.add("log" if isinstance(fault, LogUnavailable) else "analytics")
        self.metrics.retries.labels(fault.code).inc()
        delay = min(self.bounds.backoff_max_s, self.bounds.backoff_min_s * 2 ** min(self._failures, 16))
        if self._failures in (0, 3) or self._failures % 10 == 0:
            _log.warning("ingestion pauses, nothing is dropped; next try in %.1f s: %s", delay, fault.sentence)
        self._failures += 1
        try:
            await asyncio.wait_for(self.stopping.wait(), delay)
        except TimeoutError:
            return

    def resume(self) -> None:
        if self._failures:
            _log.info("ingestion goes on")
        self._failures = 0
        self.awaited.clear()

    def stored(self, written: dict[str, int], *, skipped: int) -> None:
        for table, rows in written.items():
            self.metrics.rows.labels(table).inc(rows)
        self.metrics.skipped.inc(skipped)
        self.counts.skipped += skipped
        self.counts.events += written.get("events_raw", 0)

    def dead_letter(self, one: Unreadable) -> None:
        self.metrics.dead_letters.labels(one.reason).inc()
        self.counts.dead_letters += 1
        _log.warning("dead letter %s/%d/%d: %s", one.record.topic, one.record.partition, one.record.offset, one.reason)

    async def settled(self) -> None:
        """The batch in hand is done with."""
        self.counts.records += len(self.hand.records)
        self.counts.settled |= ends_of(self.hand.records)
        if self.hand.records:
            self.metrics.delay_seconds.set(max(0, self.clock() - self.hand.records[-1].time_us) / 1e6)
        self.metrics.batches.inc()
        async with self.changed:
            self.changed.notify_all()
