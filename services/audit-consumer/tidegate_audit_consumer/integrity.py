"""Tamper evidence as the audit consumer's hosts see it: sealing and checking, started by `open_integrity`."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from tidegate.analytics.port import Analytics
from tidegate.audit.roots import AuditKey, open_audit_key, trusted_audit_keys
from tidegate.lifecycle import background
from tidegate.log.opening import open_log
from tidegate.log.port import EventLog
from tidegate.settings import Settings
from tidegate_audit_consumer.checking import Checker
from tidegate_audit_consumer.metrics import IntegrityMetrics
from tidegate_audit_consumer.roots_file import RootsFile, roots_path
from tidegate_audit_consumer.sealing import Sealer, sealer_name

_log = logging.getLogger(__name__)


@dataclass
class Integrity:
    """Both run while the scope is open."""

    sealer: Sealer
    checker: Checker
    public_key: str


@contextlib.asynccontextmanager
async def open_integrity(
    settings: Settings,
    log: EventLog,
    analytics: Analytics,
    clock: Callable[[], int],
    *,
    registry: CollectorRegistry,
) -> AsyncIterator[Integrity | None]:
    """None where nothing is sealed: `audit.roots.every_s` is 0, or a cluster has no audit key.

    `log` is prepared; `analytics` migrated by the audit consumer, until which nothing is checked. Raises ConfigFault
    where the key cannot be read or is the one that signs releases.
    """
    key = open_audit_key(settings) if settings.audit.roots.every_s > 0 else None
    if key is None:
        _log.warning("no roots are sealed: set audit.roots.key_file (and every_s) to have tamper evidence")
        yield None
        return
    metrics = IntegrityMetrics(registry)
    trust = trusted_audit_keys((*settings.trust.audit_keys, key.public))
    name = sealer_name(settings)
    checker = Checker(analytics, trust, name, settings.audit.roots.every_s, metrics)
    file = RootsFile(roots_path(settings))
    sealer = Sealer(settings, key, log, lambda: named_writer(settings, log), clock, metrics, file, checker.watch)
    await asyncio.to_thread(_publish_key, settings, key)
    async with background() as tasks:
        tasks.start(sealer.run(), "integrity: seal")
        try:
            yield Integrity(sealer, checker, key.public)
        finally:
            sealer.stopping.set()


@contextlib.asynccontextmanager
async def named_writer(settings: Settings, log: EventLog) -> AsyncIterator[EventLog]:
    """On Kafka a log of its own, whose name fences the sealer before; the local log has one owner anyway."""
    if settings.is_local:
        yield log
        return
    named = open_log(settings, writer_id=f"audit-roots-{settings.tenant}-{sealer_name(settings)}")
    try:
        await named.prepare()
        yield named
    finally:
        await named.close()


def _publish_key(settings: Settings, key: AuditKey) -> None:
    """The public half beside the roots, for whoever copies both away."""
    file = roots_path(settings).with_suffix(".pub")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = file.read_text().split() if file.exists() else []
    if key.public not in known:
        file.write_text("\n".join([*known, key.public]) + "\n")
