"""Edges as far as they share stdio processes: leases in common, a door each on loopback, the same server.

`async with running_nodes(plan, 2) as nodes`. A node can be `vanish`ed: it does not answer, and renews nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import uvicorn
from fastapi import FastAPI
from tests.parts.processes import free_port

from tidegate.sessions.memory_leases import MemoryLeases
from tidegate_edge.peers import PeerDoor
from tidegate_edge.upstream.owned import OwnedUpstream
from tidegate_edge.upstream.owners import Owners, Peer
from tidegate_edge.upstream.peer_frames import PeerSeal
from tidegate_edge.upstream.peers import Peers
from tidegate_edge.upstream.stdio import StdioUpstream
from tidegate_edge.upstream.stdio_eras import StdioEras, second_of
from tidegate_edge.upstream.stdio_kept import Plan, Room

KEY = b"k" * 32
LEASE_S = 1.0


class Node:
    """One edge's part in it: `local` and `upstream` are the first process's, `eras` has a second one as well."""

    def __init__(self, plan: Plan, leases: MemoryLeases, clock: Callable[[], float], key: bytes = KEY) -> None:
        self.me = Peer(uuid4().hex, f"http://127.0.0.1:{free_port()}")
        self.owners = Owners(leases, self.me, lease_s=LEASE_S)
        self.seal = PeerSeal(key)
        self.peers = Peers(self.seal, self.owners, frame_bytes_max=16 << 20)
        self.local = StdioUpstream(plan._replace(edge=self.me.bus), "acme", Room(64, 8))
        self.upstream = OwnedUpstream(self.local, self.owners, self.peers)
        second = StdioUpstream(second_of(self.local.plan), "acme", Room(64, 8))
        self.eras = StdioEras(self.upstream, OwnedUpstream(second, self.owners, self.peers))
        self.draining = asyncio.Event()
        door = PeerDoor(
            self.seal,
            self.me.bus,
            {plan.name: self.eras},
            body_bytes_max=1 << 20,
            draining=self.draining,
            clock=clock,
        )
        app = FastAPI()
        app.include_router(door.routes())
        port = int(self.me.address.rpartition(":")[2])
        config = uvicorn.Config(app, port=port, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.peers.start()
        self.owners.start()
        self._serving = asyncio.create_task(self._server.serve(), name="serve")
        while not self._server.started:
            await asyncio.sleep(0.005)
        await self.eras.start()

    async def stop(self) -> None:
        self.draining.set()
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        await self.eras.close()
        await self.peers.stop()
        await self.owners.stop()

    async def vanish(self) -> None:
        """As a machine does whose power fails."""
        assert self.owners._keeper is not None
        self.owners._keeper.cancel()
        self._server.force_exit = self._server.should_exit = True
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        assert self._serving is not None
        await self._serving


@contextlib.asynccontextmanager
async def running_nodes(
    plan: Plan, count: int = 2, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[list[Node]]:
    leases = MemoryLeases(time.monotonic, 1_000)
    nodes = [Node(plan, leases, clock) for _ in range(count)]
    try:
        for node in nodes:
            await node.start()
        yield nodes
    finally:
        for node in nodes:
            await node.stop()
