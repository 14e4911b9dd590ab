"""The service's life: fold the log, publish the configured bundle in local mode, answer, keep `control-state` true.

Start: follow the histories → caught up → ready. Stop: the tasks end; everything that was answered is durable already.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import APIRouter

from tidegate.errors import LogUnavailable
from tidegate.ids import now_us
from tidegate.lifecycle import background
from tidegate.local_issuer import issuer_name
from tidegate.log.port import Delivered, EventLog
from tidegate.policy.bundle import load_bundle
from tidegate.policy.signing import open_signing_key
from tidegate.privacy.master import open_wrapping
from tidegate.secrets import ClusterSecrets
from tidegate.sessions.port import Budgets
from tidegate.settings import Settings
from tidegate_policy.access import Access, Verifier
from tidegate_policy.api import management_router
from tidegate_policy.approvals import Approver
from tidegate_policy.approvals_api import approvals_router
from tidegate_policy.catalogue import Curator
from tidegate_policy.catalogue_api import catalogue_router
from tidegate_policy.circles import Circles
from tidegate_policy.erasure import Eraser
from tidegate_policy.guarding import Guardian
from tidegate_policy.journal import Journal
from tidegate_policy.limits_api import limits_router
from tidegate_policy.opening import Opener
from tidegate_policy.publish import Publisher, Terms
from tidegate_policy.quarantine import Warden
from tidegate_policy.state import HISTORIES, ControlPlane

TOPICS = (*HISTORIES, "control-state")
ACTOR = "policy-service"
_BATCH_MAX = 1_000
_POLL_S = 0.5  # also how late an expired quarantine may leave `control-state`
_RETRY_S = 1.0

_log = logging.getLogger(__name__)


@dataclass
class PolicyService:
    """A running policy service. Mount `router` under /api/v1; edges trust `public_key` (base64)."""

    state: ControlPlane
    publisher: Publisher
    guardian: Guardian
    warden: Warden
    eraser: Eraser
    approver: Approver
    router: APIRouter
    public_key: str
    awaiting: Callable[[], set[str]]


@contextlib.asynccontextmanager
async def create_policy(
    settings: Settings,
    log: EventLog,
    verifier: Verifier,
    clock: Callable[[], int] = now_us,
    secrets: ClusterSecrets | None = None,
    budgets: Budgets | None = None,
) -> AsyncIterator[PolicyService]:
    """From start to stop. `log` is prepared, with Kafka under the writer id of `writer_id`.

    In local mode it enters once the bundle of `settings.policy` rules, and raises BundleFault where that is broken.
    """
    key = open_signing_key(settings)
    state = ControlPlane(settings.tenant)
    journal = Journal(log, state, settings.edge.id or settings.tenant)
    publisher = Publisher(state, journal, log, key, settings.region, clock)
    guardian = Guardian(state, publisher, journal, clock)
    warden = Warden(state, journal, settings.region, clock)
    opener = Opener(state, lambda: open_wrapping(settings))
    eraser = Eraser(state, journal, log, settings.region, clock, secrets, _issuers(settings), opener.note)
    approver = Approver(state, journal, settings.region, clock)
    caught_up = asyncio.Event()

    async def require_ready() -> None:
        if not caught_up.is_set():
            raise LogUnavailable("the service is still reading the log; try again in a moment", code="not-ready")

    def awaiting() -> set[str]:
        waits = set() if caught_up.is_set() else {"log"}
        return waits | ({"writer"} if journal.is_fenced else set())

    access = Access(settings, verifier)
    router = APIRouter()
    router.include_router(management_router(access, state, publisher, warden, eraser, require_ready, clock))
    curator = Curator(state, journal, publisher, settings.region, clock)
    router.include_router(catalogue_router(access, curator, require_ready))
    router.include_router(approvals_router(access, approver, Circles(publisher), opener, require_ready, clock))
    router.include_router(limits_router(access, budgets, settings.tenant, require_ready, clock))
    service = PolicyService(state, publisher, guardian, warden, eraser, approver, router, key.public, awaiting)
    if (
        settings.is_local and settings.policy
    ):  # before any task runs, so that a broken bundle's fault surfaces as itself
        await _fold(log, service, caught_up, until_caught_up=True)
        await _publish_configured(settings, publisher)
    async with background() as tasks:
        tasks.start(_follow(log, service, caught_up), "policy: follow the log")
        tasks.start(guardian.run(caught_up), "policy: watch guarded releases")
        tasks.start(_watch_keys(eraser, caught_up), "policy: watch for keys of erased subjects")
        yield service


def writer_id(settings: Settings) -> str:
    """The name of the one writer that a tenant's control plane may have; the log fences an earlier holder of it."""
    return f"policy-{settings.tenant}"


async def _publish_configured(settings: Settings, publisher: Publisher) -> None:
    bundle = await asyncio.to_thread(load_bundle, settings.path(settings.policy))
    ring = settings.edge.ring
    ruling = publisher.current(ring)
    if ruling is not None and ruling.digest != bundle.digest and publisher.was_released(ring, bundle.digest):
        _log.warning(
            "release %d of ring '%s' rules on: the bundle in %s was released before, and others have followed; "
            "`tidegate bundle publish` lets it rule again",
            ruling.number,
            ring,
            settings.policy,
        )
        return
    done = await publisher.publish(bundle, Terms(ring), ACTOR)
    for problem in done.problems:
        _log.warning("policy: %s", problem)
    _log.info("bundle %.12s rules the ring '%s' as release %d", bundle.digest, done.release.ring, done.release.number)


async def _follow(log: EventLog, service: PolicyService, caught_up: asyncio.Event) -> None:
    """Fold until cancelled. A log that went away is awaited and read from its start: folding twice is folding once."""
    while True:
        try:
            await _fold(log, service, caught_up)
        except LogUnavailable as fault:
            _log.warning("log: %s", fault.sentence)
            await asyncio.sleep(_RETRY_S)


async def _watch_keys(eraser: Eraser, caught_up: asyncio.Event) -> None:
    await caught_up.wait()
    while True:
        try:
            await eraser.watch()
        except LogUnavailable as fault:
            _log.warning("log: %s", fault.sentence)
            await asyncio.sleep(_RETRY_S)


async def _fold(
    log: EventLog, service: PolicyService, caught_up: asyncio.Event, *, until_caught_up: bool = False
) -> None:
    subscription = await log.follow(TOPICS)
    try:
        while True:
            if subscription.caught_up:
                caught_up.set()
                await service.warden.reconcile()
                await service.eraser.reconcile()
                await service.approver.reconcile()
                if until_caught_up:
                    return
            for record in await subscription.poll(_BATCH_MAX, _POLL_S):
                _apply(record, service)
            if not subscription.caught_up:
                service.approver.prune()
    finally:
        await subscription.close()


def _apply(record: Delivered, service: PolicyService) -> None:
    if record.topic in ("control", "control-state"):
        service.warden.note(record)
        service.eraser.note(record)
        service.approver.note(record)
    if record.value is not None:  # on `control-state` it is the imposing event again, perhaps before its history
        service.state.apply(record.value)


def _issuers(settings: Settings) -> set[str]:
    """Whose subjects are the tenant's."""
    named = {one.issuer for one in settings.identity.issuers if (one.tenant or settings.tenant) == settings.tenant}
    return named | ({issuer_name(settings.url)} if settings.local_issuer else set())
