"""Makes an edge from settings: the one place that constructs. Used by `tidegate edge` and, beside the other services,
by `tidegate up`.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from tidegate.identity import open_verifier
from tidegate.ids import now_us
from tidegate.jwks import IssuerKeys
from tidegate.lifecycle import background
from tidegate.limits import Limits
from tidegate.local_issuer import settings_issuer
from tidegate.log.port import EventLog
from tidegate.policy.signing import Trust
from tidegate.secrets import ClusterSecrets
from tidegate.sessions.port import SessionStore
from tidegate.settings import Settings, host_port
from tidegate_edge.announcements import Announcement
from tidegate_edge.app import well_known_routes
from tidegate_edge.approval_page import approval_routes
from tidegate_edge.catalog import Catalog
from tidegate_edge.counters import EdgeCollector
from tidegate_edge.desk import Desk
from tidegate_edge.discovery import Discovery
from tidegate_edge.edge import Edge
from tidegate_edge.http_front import McpProtocol, protocol_class, sweep_connections
from tidegate_edge.kept_state import place_of
from tidegate_edge.listening import ListChange
from tidegate_edge.outlet import Outlets
from tidegate_edge.peers import PeerDoor
from tidegate_edge.records import Records, open_records
from tidegate_edge.remembering import Remembering
from tidegate_edge.upstream.connection import Pool
from tidegate_edge.upstream.http import HttpUpstream, Plan
from tidegate_edge.upstream.owned import OwnedUpstream
from tidegate_edge.upstream.owners import Owners, Peer
from tidegate_edge.upstream.peer_frames import PeerSeal
from tidegate_edge.upstream.peers import Peers
from tidegate_edge.upstream.port import Upstream
from tidegate_edge.upstream.reaper import reap
from tidegate_edge.upstream.replicas import Replica, Replicas
from tidegate_edge.upstream.stdio import StdioUpstream, plan_of
from tidegate_edge.upstream.stdio_eras import StdioEras, owned_in, second_of
from tidegate_edge.upstream.stdio_kept import Plan as ProcessPlan
from tidegate_edge.upstream.stdio_kept import Room
from tidegate_edge.vault import Vault, open_vault
from tidegate_edge.watch import Watch

PEER_BYTES_BESIDE: Final = 1024 * 1024  # what may go between edges beside a body or a result


@dataclass
class EdgeService:
    """A running edge, to be served: `http` is uvicorn's protocol class, `router` what goes into its FastAPI app."""

    edge: Edge
    http: type[McpProtocol]
    router: APIRouter
    awaiting: Callable[[], set[str]]
    degraded: Callable[[], set[str]]  # what is served without
    watch_connections: Callable[[set[object]], None]  # give it uvicorn's `server_state.connections`


@contextlib.asynccontextmanager
async def open_edge(
    settings: Settings,
    log: EventLog,
    sessions: SessionStore,
    secrets: ClusterSecrets,
    trust: Trust,
    registry: CollectorRegistry,
    *,
    is_prepared: bool = True,
) -> AsyncIterator[EdgeService]:
    """From start to stop. `log` is prepared, `sessions` started; `trust` verifies releases. Where the log
    `is_prepared` not, that is done here, and it may be away if this disk has what an edge begins with. Raises
    LogUnavailable.

    Leave it after the server has drained: it ends upstream processes, then makes every record durable.
    """
    place = place_of(settings)
    remembering = Remembering(settings, secrets.kept_key())
    recalled = None if is_prepared else await remembering.reach(log)
    issuers = (*settings.identity.issuers, *((settings_issuer(settings),) if settings.local_issuer else ()))
    async with contextlib.AsyncExitStack() as stack:
        keys = await stack.enter_async_context(IssuerKeys(issuers, settings.path(".")))
        vault = await stack.enter_async_context(open_vault(settings, log))
        sealing = vault if settings.seals else None
        records = await stack.enter_async_context(open_records(settings, log, place, sealing))
        peering = await stack.enter_async_context(open_peering(settings, sessions, secrets))
        upstreams = {name: open_upstream(settings, name, sessions, place.edge, peering) for name in settings.servers}
        verifier = open_verifier(settings, secrets, keys, issuers)
        edge = Edge(settings, place, secrets, verifier, sessions, records.recorder, upstreams)
        records.recorder.on_lost = edge.counters.lose_async
        stack.push_async_callback(edge.budgets.close)
        stack.callback(edge.aside.close)
        edge.peers, edge.vault = peering.peers, vault
        tenants = {settings.tenant, *(issuer.tenant for issuer in issuers if issuer.tenant)}
        watch = Watch(edge, log, trust, tenants, remembering)
        await watch.releases.restore()
        if recalled is not None:
            await watch.begin_without_log(recalled)

        def tell(server: str, kind: ListChange) -> None:
            for tenant in tenants:  # one catalogue serves them all
                edge.announcements.tell(Announcement(tenant, server, kind))

        append = records.recorder.record_all
        look = edge.holding.look
        discovery = Discovery(settings, place, upstreams, append, watch.definitions, tell, sessions, watch.offers, look)
        stack.push_async_callback(_close_all, upstreams)
        await asyncio.gather(*[upstream.start() for upstream in upstreams.values()])
        tasks = await stack.enter_async_context(background())
        edge.discovery, edge.tasks = discovery, tasks
        _start(edge, watch, log)
        yield _service(edge, watch, records, peering, registry, tuple(issuer.issuer for issuer in issuers))


def _start(edge: Edge, watch: Watch, log: EventLog) -> None:
    """The edge's own work, beside calls; it ends with `edge.tasks`."""
    tasks, discovery, vault = edge.tasks, edge.discovery, edge.vault

    def on_catalog(catalog: Catalog) -> None:
        watch.releases.catalog_changed(catalog, discovery.server_labels)

    async def discover() -> None:
        await watch.begun.wait()
        await discovery.run(on_catalog)

    async def publish_keys(vault: Vault) -> None:
        await watch.caught_up.wait()  # what was erased while this edge was away is destroyed, not published
        await vault.publish(log)

    if vault is not None:
        tasks.start(publish_keys(vault), "publish keys of subjects")
    for upstream in edge.upstreams.values():
        for owned in owned_in(upstream):
            tasks.start(owned.hand_over(edge.draining), f"hand over {owned.name}")
    tasks.start(watch.run(), "watch the log")
    tasks.start(watch.listen(), "know whether the log is heard")
    tasks.start(watch.remembering.run(), "keep what the log tells")
    tasks.start(watch.releases.run(), "let releases rule")
    tasks.start(watch.releases.advance(), "activate what is due")
    tasks.start(watch.releases.observe(), "tell what releases decide")
    tasks.start(discover(), "discover tools")
    tasks.start(edge.holding.run(edge), "tell which tools are held")
    tasks.start(edge.budgets.run(), "tell what limits hold")
    idle_s = edge.limits.upstream_session_idle_s
    tasks.start(reap(edge.sessions, edge.upstreams, idle_s), "end idle upstream sessions")


def _service(
    edge: Edge,
    watch: Watch,
    records: Records,
    peering: "Peering",
    registry: CollectorRegistry,
    issuers: tuple[str, ...],
) -> EdgeService:
    """What is served: the MCP path, and the routes beside it."""
    settings, sessions, discovery = edge.settings, edge.sessions, edge.discovery
    desk = Desk(edge, allowed_hosts(settings), allowed_origins(settings))
    outlets = Outlets(sessions, settings.limits.stream_kept_s, sessions.address)
    edge.tasks.start(desk.refusals.run(), "sum refusals")
    http = protocol_class(
        desk.serve, desk.knows, settings.limits, outlets=outlets, draining=edge.draining, refused=desk.refused
    )
    watched: list[set[object]] = []
    registry.register(EdgeCollector(edge.counters, lambda: _gauges(edge, records, watch, sum(map(len, watched)))))

    def awaiting() -> set[str]:
        waits = {f"tools of {name}" for name in discovery.awaiting} | set(sessions.awaiting)
        if not watch.begun.is_set():
            waits.add("log")
        if settings.tenant not in edge.rulings:
            waits.add("bundle")
        return waits

    def watch_connections(connections: set[object]) -> None:
        watched.append(connections)
        edge.tasks.start(sweep_connections(connections), "sweep connections")

    def degraded() -> set[str]:
        lacks = {"log": watch.is_deaf, "disk": watch.remembering.is_lost}
        return discovery.degraded | {name for name, is_lacking in lacks.items() if is_lacking}

    router = well_known_routes(settings, issuers)
    router.include_router(approval_routes(edge))
    if peering.owners is not None:
        room = settings.limits.body_bytes_max + PEER_BYTES_BESIDE
        door = PeerDoor(peering.seal, sessions.address, edge.upstreams, body_bytes_max=room, draining=edge.draining)
        router.include_router(door.routes())
    return EdgeService(edge, http, router, awaiting, degraded, watch_connections)


@dataclass
class Peering:
    """What the upstreams that are processes share: how many there may be, who owns them, and the way to other edges."""

    room: Room
    owners: Owners | None  # None: this edge is alone, and owns them all
    seal: PeerSeal
    peers: Peers


@contextlib.asynccontextmanager
async def open_peering(settings: Settings, sessions: SessionStore, secrets: ClusterSecrets) -> AsyncIterator[Peering]:
    """Leave it after the upstreams are closed: then what this edge owned is free."""
    limits = settings.limits
    owners = None
    if settings.sessions != "memory":
        owners = Owners(sessions, Peer(sessions.address, peer_address(settings)))
        owners.start()
    seal = PeerSeal(secrets.peer_key())
    peers = Peers(seal, owners, frame_bytes_max=limits.result_bytes_max + PEER_BYTES_BESIDE)
    await peers.start()
    try:
        yield Peering(Room(limits.processes_max, limits.processes_per_principal_max), owners, seal, peers)
    finally:
        await peers.stop()
        if owners is not None:
            await owners.stop()


def peer_address(settings: Settings) -> str:
    """The base URL at which other edges reach this one; of a wildcard address, under the host's own name."""
    if settings.edge.address:
        return settings.edge.address
    host, port = host_port(settings.listen)
    return f"http://{socket.gethostname()}:{port}" if host in ("0.0.0.0", "::") else f"http://{settings.listen}"


def open_upstream(settings: Settings, name: str, sessions: SessionStore, edge_id: str, peering: Peering) -> Upstream:
    """The adapter that the server's configuration asks for."""
    if settings.servers[name].command:
        return open_stdio_upstream(plan_of(settings, name, sessions.address), settings.tenant, peering)
    return open_http_upstream(settings, name, sessions, edge_id)


def open_stdio_upstream(plan: ProcessPlan, tenant: str, peering: Peering) -> Upstream:
    """A server that is run; as two processes where it speaks both eras."""

    def opened(plan: ProcessPlan) -> StdioUpstream | OwnedUpstream:
        local = StdioUpstream(plan, tenant, peering.room)
        return local if peering.owners is None else OwnedUpstream(local, peering.owners, peering.peers)

    return StdioEras(opened(plan), opened(second_of(plan))) if plan.era == "auto" else opened(plan)


def open_http_upstream(settings: Settings, name: str, sessions: SessionStore, edge_id: str) -> HttpUpstream:
    """A server behind a URL, or behind several as replicas of one."""
    server, limits = settings.servers[name], settings.limits
    plan = Plan(
        settings.tenant,
        edge_id,
        server.era,
        server.transport,
        idle_s=limits.upstream_session_idle_s,
        paused_s=limits.paused_s,
        paused_max=limits.paused_calls_max,
        failures_max=limits.upstream_failures_max,
    )
    replicas = [_replica(name, url, server.headers, limits) for url in server.urls or (server.url,)]
    return HttpUpstream(name, Replicas(replicas), sessions, plan)


def _replica(name: str, url: str, headers: Mapping[str, str], limits: Limits) -> Replica:
    def pool(connections_max: int) -> Pool:
        return Pool(
            name,
            url,
            connections_max=connections_max,
            body_bytes_max=limits.result_bytes_max,
            connect_timeout_s=limits.connect_timeout_s,
        )

    return Replica(pool(limits.upstream_connections_max), pool(limits.upstream_streams_max), headers)


def allowed_hosts(settings: Settings) -> frozenset[str]:
    """Host headers that are served: what is configured, else the public URL's, the listening one's, and localhost on
    loopback.
    """
    if settings.allowed_hosts:
        return frozenset(host.lower() for host in settings.allowed_hosts)
    host, port = host_port(settings.listen)
    names = {settings.listen, urlsplit(settings.url).netloc}
    if host in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
        names |= {f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"}
    return frozenset(name.lower() for name in names)


def allowed_origins(settings: Settings) -> frozenset[str]:
    """Browser origins that may call: what is configured, else those of the hosts served."""
    if settings.allowed_origins:
        return frozenset(origin.lower() for origin in settings.allowed_origins)
    scheme = urlsplit(settings.url).scheme
    return frozenset(f"{scheme}://{host}" for host in allowed_hosts(settings))


async def _close_all(upstreams: dict[str, Upstream]) -> None:
    await asyncio.gather(*[upstream.close() for upstream in upstreams.values()], return_exceptions=True)


def _gauges(edge: Edge, records: Records, watch: Watch, connections: int) -> dict[str, float]:
    ruling, rings = edge.rulings.get(edge.settings.tenant), edge.rings.get(edge.settings.tenant)
    canary = rings.canary if rings else None
    at_us = now_us()
    return {
        "tidegate_calls_in_flight": edge.calls_in_flight,
        "tidegate_connections": connections,
        "tidegate_streams": len(edge.streams),
        "tidegate_questions": len(edge.asks),
        "tidegate_approvals": len(edge.approvals),
        **edge.budgets.gauges(),
        **records.gauges(),
        "tidegate_log_unheard_seconds": watch.remembering.unheard_s,
        "tidegate_kept_state_lost": watch.remembering.is_lost,
        "tidegate_kept_state_stale": watch.remembering.is_stale,
        "tidegate_subject_keys_unpublished": edge.vault.pending if edge.vault else 0,
        "tidegate_tools_held": sum(len(one.held) for one in edge.rulings.values()),
        "tidegate_bundle_release": ruling.number if ruling else 0,
        "tidegate_canary_release": canary.number if canary else 0,
        "tidegate_quarantines": sum(len(quarantines.current(at_us)) for quarantines in edge.quarantines.values()),
    }
