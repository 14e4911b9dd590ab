"""Leases in this process. Part of `memory.py`; counterpart `redis_leases.py`."""

from collections.abc import Sequence

from tidegate.sessions.expiring import Expiring
from tidegate.sessions.memory_room import room_in
from tidegate.sessions.port import Clock


class MemoryLeases:
    def __init__(self, clock: Clock, entries_max: int) -> None:
        self._clock = clock
        self._leases: Expiring[str, str] = Expiring(entries_max)
        self._make_room = room_in(self._leases, clock, entries_max)

    async def take(self, name: str, value: str, ttl_s: float) -> str:
        now = self._clock()
        standing = self._leases.get(name, now)
        if standing is not None and standing != value:
            return standing
        if standing is None:
            self._make_room()
        self._leases.put(name, value, now + ttl_s)
        return value

    async def renew(self, names: Sequence[str], value: str, ttl_s: float) -> frozenset[str]:
        now = self._clock()
        held = frozenset(name for name in names if self._leases.get(name, now) == value)
        for name in held:
            self._leases.put(name, value, now + ttl_s)
        return held

    async def give_up(self, name: str, value: str) -> None:
        if self._leases.get(name, self._clock()) == value:
            self._leases.drop(name)
