"""The detector as its hosts see it: a scope, in a process of its own or inside `up`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from prometheus_client import CollectorRegistry

from tidegate.lifecycle import owned
from tidegate.log.port import EventLog
from tidegate.settings import Settings
from tidegate_detector.metrics import Metrics
from tidegate_detector.parts import Counts, Parts
from tidegate_detector.spine import detect


class Detector:
    """A running detector. Its task is the host's: if it ends with an exception, the host's scope ends with it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def awaited(self) -> frozenset[str]:
        """What readiness still waits for: "log" until everything in it at the start has been judged."""
        return frozenset(self._parts.awaited)

    @property
    def counts(self) -> Counts:
        """What went through since the start."""
        return self._parts.counts

    async def wait_until(self, holds: Callable[[Counts], bool], timeout_s: float = 30.0) -> None:
        """Until the predicate holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._parts.changed:
            await self._parts.changed.wait_for(lambda: holds(self._parts.counts))

    async def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Until nothing is awaited. Raises TimeoutError."""
        await self.wait_until(lambda _: not self._parts.awaited, timeout_s)


@contextlib.asynccontextmanager
async def create_detector(
    settings: Settings, log: EventLog, clock: Callable[[], int], *, registry: CollectorRegistry
) -> AsyncIterator[Detector]:
    """A detector that runs inside the scope; the log must be prepared. `clock` gives microseconds since the epoch.

    Leaving the scope finishes the batch in hand and stores how far judging is, within limits.drain_timeout_s.
    """
    parts = Parts(settings, log, clock, Metrics(registry))
    try:
        async with asyncio.TaskGroup() as group:
            task = owned(group, detect(parts), "detector")
            try:
                yield Detector(parts)
            finally:
                parts.stopping.set()
                await asyncio.wait([task], timeout=settings.limits.drain_timeout_s)
                task.cancel()
    except BaseExceptionGroup as faults:
        raise faults.exceptions[0] if len(faults.exceptions) == 1 else faults from None
