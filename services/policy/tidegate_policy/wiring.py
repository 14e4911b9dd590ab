"""Makes the service from settings: the one place that constructs. Used by `tidegate policy` and by `tidegate up`."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from tidegate.identity import open_verifier
from tidegate.ids import now_us
from tidegate.jwks import IssuerKeys
from tidegate.local_issuer import open_local_issuer, settings_issuer
from tidegate.log.port import EventLog
from tidegate.secrets import ClusterSecrets
from tidegate.sessions.port import Budgets
from tidegate.settings import Settings
from tidegate_policy.access import management_audience
from tidegate_policy.app import policy_routes
from tidegate_policy.metrics import PolicyCollector
from tidegate_policy.service import PolicyService, create_policy


@dataclass
class Opened:
    """A running policy service, to be served: `routes` go into a FastAPI app, edges trust `public_key`."""

    service: PolicyService
    routes: APIRouter
    public_key: str
    awaiting: Callable[[], set[str]]


@contextlib.asynccontextmanager
async def open_policy(
    settings: Settings,
    log: EventLog,
    secrets: ClusterSecrets,
    registry: CollectorRegistry,
    budgets: Budgets | None = None,
) -> AsyncIterator[Opened]:
    """From start to stop. `log` is prepared; with Kafka it was opened with `service.writer_id`. `budgets`: where the
    edges count limits, if that can be seen from here.
    """
    issuer = open_local_issuer(settings) if settings.local_issuer else None
    issuers = (*settings.identity.issuers, *((settings_issuer(settings),) if issuer else ()))
    async with IssuerKeys(issuers, Path(settings.root)) as keys:
        verifier = open_verifier(settings, secrets, keys, issuers, audiences=(management_audience(settings),))
        async with create_policy(settings, log, verifier, secrets=secrets, budgets=budgets) as service:
            registry.register(PolicyCollector(service.state, now_us, service.eraser, service.approver))
            yield Opened(service, policy_routes(service, issuer), service.public_key, service.awaiting)
