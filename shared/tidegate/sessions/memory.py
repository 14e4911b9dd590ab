"""Sessions in this process: for one edge in one process. Counterpart: `redis.py`; both obey `port.py` under one suite.

Nothing is evicted to make room: a full store refuses, as Redis would. The parts stand in `memory_….py`.
"""

import time

from tidegate.sessions.memory_budgets import MemoryBudgets
from tidegate.sessions.memory_bus import MemoryBus
from tidegate.sessions.memory_clients import MemoryClientSessions
from tidegate.sessions.memory_leases import MemoryLeases
from tidegate.sessions.memory_room import ENTRIES_MAX
from tidegate.sessions.memory_streams import MemoryKeptStreams
from tidegate.sessions.memory_taints import MemoryTaints
from tidegate.sessions.memory_upstreams import MemoryUpstreamSessions
from tidegate.sessions.memory_windows import MemoryWindows
from tidegate.sessions.port import Clock


class MemorySessions:
    def __init__(self, *, per_subject_max: int, clock: Clock = time.monotonic, entries_max: int = ENTRIES_MAX) -> None:
        taints = MemoryTaints(clock, entries_max)
        clients = MemoryClientSessions(per_subject_max, clock, entries_max, taints)
        upstreams = MemoryUpstreamSessions(clock, entries_max)
        windows = MemoryWindows(clock, entries_max, taints)
        leases, bus, streams = MemoryLeases(clock, entries_max), MemoryBus(), MemoryKeptStreams(clock, entries_max)
        budgets = MemoryBudgets(entries_max=entries_max)
        # The port, method by method: bound once, so that the hot path goes through no further call.
        self.open, self.get, self.touch, self.end = clients.open, clients.get, clients.touch, clients.end
        self.amend, self.on_amended = clients.amend, clients.on_amended
        self.known, self.is_live = clients.known, clients.is_live
        self.get_upstream, self.put_upstream = upstreams.get_upstream, upstreams.put_upstream
        self.drop_upstream, self.known_upstream = upstreams.drop_upstream, upstreams.known_upstream
        self.claim_idle, self.sessions_of = upstreams.claim_idle, upstreams.sessions_of
        self.on_upstream_opened = upstreams.on_upstream_opened
        self.window, self.known_window = windows.window, windows.known_window
        self.address, self.post, self.tell_all, self.on_message = bus.address, bus.post, bus.tell_all, bus.on_message
        self.take, self.renew, self.give_up = leases.take, leases.renew, leases.give_up
        self.draw, self.standings = budgets.draw, budgets.standings
        self.keep, self.kept_after, self.finish = streams.keep, streams.kept_after, streams.finish
        self.taint, self.taint_of, self.known_taint = taints.taint, taints.taint_of, taints.known_taint

    @property
    def awaiting(self) -> frozenset[str]:
        return frozenset()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
