"""Runs services in this process: one of them, or all with embedded adapters (`up`). The only place that opens logs and
stores for good.

Everything is opened on one stack and closed in reverse: the server drains first, then the services, the log last.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from tidegate import __version__
from tidegate.errors import ConfigFault
from tidegate.ids import now_us
from tidegate.log.opening import open_log
from tidegate.log.port import EventLog
from tidegate.policy.signing import open_signing_key, trusted_keys
from tidegate.secrets import open_secrets
from tidegate.serving import Awaiting, health_routes, open_server
from tidegate.sessions.opening import open_budgets, open_sessions
from tidegate.sessions.port import Budgets, SessionStore
from tidegate.settings import Settings
from tidegate_cli.options import make_data_dir, write_serving

OnReady = Callable[[Settings], Awaitable[None]]
ALL = ("policy", "edge", "audit-consumer", "detector")

GARBAGE_THRESHOLD = 20_000  # calls make little cyclic garbage; the default of 700 costs a few per cent of CPU

_log = logging.getLogger(__name__)


def run(settings: Settings, services: Sequence[str], *, on_ready: OnReady | None = None) -> int:
    """Serve until SIGINT or SIGTERM; 0 after a clean drain. Raises Fault where something cannot be opened."""
    if settings.is_local and set(services) != set(ALL):
        raise ConfigFault(
            "`log: sqlite` is for one process: use `tidegate up`, "
            f"or set log: kafka://… to run {', '.join(services)} alone"
        )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, services, on_ready))
    return 0


async def _run(settings: Settings, services: Sequence[str], on_ready: OnReady | None) -> None:
    make_data_dir(settings)
    app = FastAPI(title="Tidegate", version=__version__, docs_url="/api/v1/docs", openapi_url="/api/v1/openapi.json")
    async with contextlib.AsyncExitStack() as stack:
        house = House(settings, app, stack)
        if settings.is_local:
            await house.log()  # the lock of the data directory: the address of its owner alone is written
            write_serving(settings)
        for service in ALL:
            if service in services:
                await _OPENERS[service](house)
        app.include_router(health_routes(house.parts, house.registry, house.degraded))
        server = open_server(app, _listen(settings, services), settings.limits, http=house.http)
        if house.watch_connections is not None:
            house.watch_connections(server.server_state.connections)
        if on_ready is not None:
            stack.callback(asyncio.create_task(_when_ready(house, on_ready), name="ready").cancel)
        gc.collect()
        gc.freeze()  # what was made until here stays for good: the collector need not look at it again
        gc.set_threshold(GARBAGE_THRESHOLD)
        await server.serve()
        _log.info("drained; closing")


class House:
    """What the services of this process share: one app, one registry, one stack to close in reverse, one local log."""

    def __init__(self, settings: Settings, app: FastAPI, stack: contextlib.AsyncExitStack) -> None:
        self.settings = settings
        self.app = app
        self.stack = stack
        self.registry = CollectorRegistry()
        self.parts: dict[str, Awaiting] = {}
        self.degraded: dict[str, Awaiting] = {}
        self.http: type | None = None
        self.watch_connections: Callable[[set[Any]], None] | None = None
        self._logs: dict[str | None, EventLog] = {}
        self._sessions: SessionStore | None = None

    async def sessions(self) -> SessionStore:
        """Started; one for all of this process."""
        if self._sessions is None:
            self._sessions = open_sessions(self.settings)
            await self._sessions.start()
            self.stack.push_async_callback(self._sessions.stop)
        return self._sessions

    async def log(self, writer_id: str | None = None, *, prepares: bool = True) -> EventLog:
        """The log, prepared unless told otherwise. In local mode everybody shares the one owner of the file."""
        key = None if self.settings.is_local else writer_id
        if key not in self._logs:
            log = open_log(self.settings, writer_id=key)
            self.stack.push_async_callback(log.close)
            if prepares:
                await log.prepare()
            self._logs[key] = log
        return self._logs[key]


async def _open_policy(house: House) -> None:
    from tidegate_policy.service import writer_id
    from tidegate_policy.wiring import open_policy

    settings = house.settings
    log = await house.log(writer_id(settings))
    budgets: Budgets | None
    if settings.is_local:
        budgets = await house.sessions()
    else:
        budgets = await house.stack.enter_async_context(open_budgets(settings))
    policy = await house.stack.enter_async_context(
        open_policy(settings, log, open_secrets(settings), house.registry, budgets)
    )
    house.app.include_router(policy.routes)
    house.parts["policy"] = policy.awaiting


async def _open_audit_consumer(house: House) -> None:
    from tidegate_audit_consumer.consumer import create_audit_consumer
    from tidegate_audit_consumer.integrity import open_integrity

    log = await house.log()
    consumer = await house.stack.enter_async_context(
        create_audit_consumer(house.settings, log, now_us, registry=house.registry)
    )
    await house.stack.enter_async_context(
        open_integrity(house.settings, log, consumer.analytics, now_us, registry=house.registry)
    )
    house.parts["audit-consumer"] = lambda: consumer.awaited


async def _open_detector(house: House) -> None:
    from tidegate_detector.wiring import open_detector

    detector = await house.stack.enter_async_context(
        open_detector(house.settings, await house.log(), now_us, registry=house.registry)
    )
    house.parts["detector"] = lambda: detector.awaited


async def _open_edge(house: House) -> None:
    from tidegate_edge.wiring import open_edge

    settings = house.settings
    sessions = await house.sessions()
    own = (open_signing_key(settings).public,) if settings.is_local else ()
    trust = trusted_keys((*settings.trust.bundle_keys, *own))
    log = await house.log(prepares=settings.is_local)
    edge = await house.stack.enter_async_context(
        open_edge(
            settings,
            log,
            sessions,
            open_secrets(settings),
            trust,
            house.registry,
            is_prepared=settings.is_local,
        )
    )
    house.app.include_router(edge.router)
    house.parts["edge"] = edge.awaiting
    house.degraded["edge"] = edge.degraded
    house.http = edge.http
    house.watch_connections = edge.watch_connections


_OPENERS: dict[str, Callable[[House], Awaitable[None]]] = {
    "policy": _open_policy,
    "edge": _open_edge,
    "audit-consumer": _open_audit_consumer,
    "detector": _open_detector,
}


def _listen(settings: Settings, services: Sequence[str]) -> str:
    """`up` and the edge take `listen`; every other service its own."""
    if "edge" in services:
        return settings.listen
    own = {
        "policy": settings.services.policy,
        "audit-consumer": settings.services.audit_consumer,
        "detector": settings.services.detector,
    }
    return own[services[0]].listen


async def _when_ready(house: House, on_ready: OnReady) -> None:
    while any(set(waits()) for waits in house.parts.values()):
        await asyncio.sleep(0.05)
    await on_ready(house.settings)
