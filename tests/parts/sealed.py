"""A log that was sealed and a ClickHouse that holds it, for tests that tamper: each writer has an hour of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from tests.parts.audit_events import requested

from tidegate.audit.roots import AuditKey, open_audit_key, trusted_audit_keys
from tidegate.chain import Chain
from tidegate.events import RootSealed
from tidegate.ids import now_us
from tidegate.lifecycle import background
from tidegate.log.port import EventLog, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Audit, Roots, Settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import AuditConsumer, create_audit_consumer
from tidegate_audit_consumer.integrity import Integrity, named_writer, open_integrity
from tidegate_audit_consumer.journal import Journal
from tidegate_audit_consumer.metrics import IntegrityMetrics
from tidegate_audit_consumer.roots_file import RootsFile, read_roots, roots_path
from tidegate_audit_consumer.sealing import Sealer
from tidegate_cli.held_sources import ClickHouseSource
from tidegate_cli.verifying import Report, Verification

QUICK = Bounds(age_max_s=0.02, idle_s=0.05, backoff_min_s=0.01, backoff_max_s=0.05)
HOUR_US = 3_600_000_000
BEGIN_US = now_us() - 30 * 24 * HOUR_US


def quick_settings(root: Path, every_s: float = 0.1, **others: Any) -> Settings:
    return Settings(root=str(root), data="data", audit=Audit(roots=Roots(every_s=every_s)), **others)


def hour(number: int) -> tuple[int, int]:
    """The first and last microsecond of a test's own time; two days lie between two of them."""
    begin = BEGIN_US - number * 49 * HOUR_US
    return begin, begin + HOUR_US


def chained(writer: str, number: int, count: int = 10, chain: Chain | None = None) -> list[Record]:
    """That many events of one writer, within the hour."""
    chain = chain or Chain(writer)
    begin, _ = hour(number)
    return [chain.seal(requested(at_us=begin + (chain.seq + 1) * 1_000_000)) for _ in range(count)]


class Sealed:
    """A running consumer, and a sealer that runs when asked to."""

    def __init__(self, settings: Settings, log: SqliteLog, consumer: AuditConsumer) -> None:
        self.settings = settings
        self.log = log
        self.consumer = consumer
        self.registry = CollectorRegistry()
        key = open_audit_key(settings)
        assert key is not None
        self.key: AuditKey = key
        self.trust = trusted_audit_keys([key.public])
        self.appended = 0

    async def append(self, records: Sequence[Record]) -> None:
        await self.log.append(records)
        self.appended += len(records)

    async def execute(self, sql: str) -> None:
        await self.consumer.analytics.execute(sql)

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        return (await self.consumer.analytics.query(sql)).rows

    @asynccontextmanager
    async def sealing(self) -> AsyncIterator[Integrity]:
        async with open_integrity(
            self.settings, self.log, self.consumer.analytics, now_us, registry=CollectorRegistry()
        ) as integrity:
            assert integrity is not None
            integrity.checker.patience_s = 0.3
            yield integrity

    async def seal(self, checked: bool = False) -> None:
        """One root over everything that is on the log, and in ClickHouse."""
        async with self.sealing() as integrity:
            await integrity_sealed(integrity, 1)
            if checked:
                await until(lambda: self.last_number() in integrity.checker.checked)
        await self.ingested()

    async def ingested(self) -> None:
        """Everything on the log is in ClickHouse."""
        subscription = await self.log.follow(
            ("calls", "sessions", "detections", "policy", "control", "catalog", "integrity")
        )
        found = 0
        while not subscription.caught_up or found == 0:
            found += len(await subscription.poll(1_000, 0.1))
        await subscription.close()
        await self.consumer.wait_until_ingested(lambda counts: sum(counts.settled.values()) >= found)

    def last_number(self) -> int:
        return max((root.number for root in self.published()), default=0)

    def published(self) -> list[RootSealed]:
        path = roots_path(self.settings)
        return list(read_roots(path)) if path.exists() else []

    async def verify(self, from_us: int, to_us: int, roots: Sequence[RootSealed] = (), trust: Any = None) -> Report:
        verification = Verification(
            ClickHouseSource(self.consumer.analytics),
            trust if trust is not None else self.trust,
            from_us,
            to_us,
            now_us(),
        )
        return await verification.run(await verification.roots(roots))


@asynccontextmanager
async def sealed_house(root: Path, every_s: float = 0.1, **others: Any) -> AsyncIterator[Sealed]:
    settings = quick_settings(root, every_s, **others)
    async with AsyncExitStack() as stack:
        log = SqliteLog(root / "log.db")
        stack.push_async_callback(log.close)
        await log.prepare()
        consumer = await stack.enter_async_context(
            create_audit_consumer(settings, log, now_us, registry=CollectorRegistry(), bounds=QUICK)
        )
        yield Sealed(settings, log, consumer)


@asynccontextmanager
async def sealing_on(settings: Settings, log: EventLog) -> AsyncIterator[Sealer]:
    """A sealer without ClickHouse, which it does not need."""

    async def watch(journal: Journal) -> None:
        await asyncio.Event().wait()

    key = open_audit_key(settings)
    assert key is not None
    metrics, file = IntegrityMetrics(CollectorRegistry()), RootsFile(roots_path(settings))
    sealer = Sealer(settings, key, log, lambda: named_writer(settings, log), now_us, metrics, file, watch)
    async with background() as tasks:
        tasks.start(sealer.run(), "seal")
        yield sealer


async def sealed_times(sealer: Sealer, roots: int) -> None:
    async with asyncio.timeout(20), sealer.changed:
        await sealer.changed.wait_for(lambda: sealer.sealed >= roots)


async def integrity_sealed(integrity: Integrity, roots: int) -> None:
    await sealed_times(integrity.sealer, roots)


async def until(holds: Callable[[], Any], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)
