"""The audit consumer as its hosts see it: started by `create_audit_consumer`, in a process of its own or inside
`up`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from math import ceil

from prometheus_client import CollectorRegistry

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.clickhouse import open_server
from tidegate.analytics.port import Analytics
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable
from tidegate.lifecycle import owned
from tidegate.log.port import EventLog
from tidegate.privacy.master import open_wrapping
from tidegate.settings import Settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.hand import Hand
from tidegate_audit_consumer.key_feed import KeyFeed
from tidegate_audit_consumer.metrics import Metrics
from tidegate_audit_consumer.migrate import migrate
from tidegate_audit_consumer.parts import Counts, Parts
from tidegate_audit_consumer.progress import Progress
from tidegate_audit_consumer.siem import Siem, open_siem
from tidegate_audit_consumer.spine import consume

GROUP = "audit-consumer"
TOPICS = ("calls", "sessions", "detections", "policy", "control", "catalog", "integrity")
UNKNOWN_GRACE_S = 60  # over the longest call timeout, before a call without completion shows as unknown


class AuditConsumer:
    """A running consumer. Its task is the host's: if it ends with an exception, the host's scope ends with it."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self._settings = settings
        self._parts = parts
        self.is_prepared = False  # the database is of this version

    @property
    def awaited(self) -> frozenset[str]:
        """What readiness still waits for: "analytics", "log"; empty when ingesting."""
        return frozenset(self._parts.awaited)

    @property
    def counts(self) -> Counts:
        """What went through since the start."""
        return self._parts.counts

    @property
    def analytics(self) -> Analytics:
        """The connection it writes with; hosts may read through it."""
        return self._parts.analytics

    async def wait_until_ingested(self, reached: int | Callable[[Counts], bool], timeout_s: float = 10.0) -> None:
        """Until so many records went through since the start, or the predicate holds. Raises TimeoutError."""
        holds = (lambda counts: counts.records >= reached) if isinstance(reached, int) else reached
        async with asyncio.timeout(timeout_s), self._parts.changed:
            await self._parts.changed.wait_for(lambda: holds(self._parts.counts))

    async def run(self) -> None:
        """Migrations, then batches until stopped. Raises ConfigFault when the database is another version's."""
        while not self.is_prepared and not self._parts.stopping.is_set():
            try:
                await prepare_database(self._parts.analytics, self._settings)
                self.is_prepared = True
                self._parts.resume()
            except (AnalyticsUnavailable, AnalyticsRefused) as fault:
                await self._parts.pause(fault)
        await consume(self._parts)

    def stop(self) -> None:
        """Finish the batch in hand, then end."""
        self._parts.stopping.set()


async def prepare_database(analytics: Analytics, settings: Settings) -> None:
    """Migrations and the parameters of the views."""
    await migrate(analytics)
    timeouts = [settings.limits.call_timeout_s, *(server.timeout_s for server in settings.servers.values())]
    await analytics.insert(
        "tidegate.parameters", {"name": ["unknown_after_s"], "value": [float(ceil(max(timeouts)) + UNKNOWN_GRACE_S)]}
    )


@contextlib.asynccontextmanager
async def create_audit_consumer(
    settings: Settings,
    log: EventLog,
    clock: Callable[[], int],
    *,
    registry: CollectorRegistry,
    bounds: Bounds | None = None,
) -> AsyncIterator[AuditConsumer]:
    """A consumer that runs inside the scope; the log must be prepared. With `analytics: chdb` this process owns the
    engine.

    `clock` gives microseconds since the epoch. Leaving the scope finishes the batch in hand within
    limits.drain_timeout_s. Raises AnalyticsOwned when another process owns the engine's directory, LogUnavailable when
    the log cannot be followed, ConfigFault when privacy.key_file cannot be read.
    """
    async with AsyncExitStack() as stack:
        wrapping = open_wrapping(settings, create=settings.seals)
        analytics = await _open_analytics(settings, stack)
        parts = await _assemble(log, analytics, clock, registry, bounds or Bounds(), stack)
        consumer = AuditConsumer(settings, parts)
        feed = KeyFeed(log, analytics, wrapping, parts.bounds, registry, lambda: consumer.is_prepared)
        runners: list[AuditConsumer | KeyFeed | Siem] = [consumer, feed]
        if settings.audit.ocsf_topic:
            siem, subscription = await open_siem(log, parts.bounds, registry)
            stack.push_async_callback(subscription.close)
            runners.append(siem)
        try:
            async with asyncio.TaskGroup() as group:
                names = ("audit-consumer", "subject-keys", "ocsf")
                tasks = [owned(group, one.run(), name) for one, name in zip(runners, names, strict=False)]
                try:
                    yield consumer
                finally:
                    for one in runners:
                        one.stop()
                    await asyncio.wait(tasks, timeout=settings.limits.drain_timeout_s)
                    for task in tasks:
                        task.cancel()
        except BaseExceptionGroup as faults:
            raise faults.exceptions[0] if len(faults.exceptions) == 1 else faults from None


async def _open_analytics(settings: Settings, stack: AsyncExitStack) -> Analytics:
    if settings.analytics == "chdb":
        engine = await stack.enter_async_context(EmbeddedEngine(settings.data_dir))
        return engine.analytics
    analytics = open_server(settings.analytics, settings.analytics_password)
    stack.push_async_callback(analytics.close)
    return analytics


async def _assemble(
    log: EventLog,
    analytics: Analytics,
    clock: Callable[[], int],
    registry: CollectorRegistry,
    bounds: Bounds,
    stack: AsyncExitStack,
) -> Parts:
    progress = Progress(analytics)
    hand = Hand(progress)
    subscription = await log.follow(TOPICS, group=GROUP, on_assigned=hand.assigned, on_revoked=hand.revoked)
    stack.push_async_callback(subscription.close)
    return Parts(
        log=log,
        subscription=subscription,
        analytics=analytics,
        progress=progress,
        hand=hand,
        metrics=Metrics(registry),
        bounds=bounds,
        clock=clock,
        awaited={"analytics"},
    )
