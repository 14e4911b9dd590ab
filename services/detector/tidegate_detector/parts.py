"""What the detector works with, and what it tells its host."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tidegate.chain import Chain
from tidegate.errors import LogUnavailable
from tidegate.events import FindingRaised, QuarantineImposed
from tidegate.ids import uuid7
from tidegate.log.port import EventLog
from tidegate.settings import Settings
from tidegate_detector.metrics import Metrics

RETRY_S = 1.0

_log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What went through since the start. `judged` are records new to the detector, `remembered` those read again."""

    judged: int = 0
    remembered: int = 0
    unreadable: int = 0
    findings: int = 0
    quarantines: int = 0


@dataclass
class Parts:
    """One detector's."""

    settings: Settings
    log: EventLog
    clock: Callable[[], int]
    metrics: Metrics
    awaited: set[str] = field(default_factory=lambda: {"log"})
    counts: Counts = field(default_factory=Counts)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    chain: Chain = field(init=False)

    def __post_init__(self) -> None:
        self.begin_chain()

    def begin_chain(self) -> None:
        """After an append whose outcome is unknown: no gap may look like a loss."""
        self.chain = Chain(f"detector.{self.settings.edge.id or self.settings.region}.{uuid7()}")

    async def published(self, findings: Iterable[FindingRaised], quarantines: Iterable[QuarantineImposed]) -> None:
        for finding in findings:
            self.counts.findings += 1
            self.metrics.findings.labels(finding.rule, finding.severity).inc()
            _log.warning("%s finding %s: %s", finding.severity, finding.id, finding.message)
        for quarantine in quarantines:
            self.counts.quarantines += 1
            self.metrics.quarantines.labels(quarantine.scope).inc()
            _log.warning("quarantine %s of %s %s", quarantine.quarantine_id, quarantine.scope, quarantine.value)
        await self.tell()

    async def tell(self) -> None:
        """Wake whoever waits for counts."""
        async with self.changed:
            self.changed.notify_all()

    async def pause(self, fault: LogUnavailable) -> None:
        """Before the log is opened again; ends early when stopping."""
        _log.warning("log: %s", fault.sentence)
        self.metrics.faults.inc()
        self.awaited.add("log")
        try:
            async with asyncio.timeout(RETRY_S):
                await self.stopping.wait()
        except TimeoutError:
            return
