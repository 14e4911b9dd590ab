"""What sessions have read, in this process. Part of `memory.py`; counterpart `redis_taints.py`."""

from collections.abc import Set

from tidegate.sessions.expiring import Expiring
from tidegate.sessions.memory_room import room_in
from tidegate.sessions.port import Clock

_NOTHING: frozenset[str] = frozenset()


class MemoryTaints:
    def __init__(self, clock: Clock, entries_max: int) -> None:
        self._clock = clock
        self._taints: Expiring[tuple[str, str], frozenset[str]] = Expiring(entries_max)
        self._make_room = room_in(self._taints, clock, entries_max)

    async def taint(self, tenant: str, session_id: str, labels: Set[str], ttl_s: float) -> frozenset[str]:
        held = self.known_taint(tenant, session_id)
        if not held:
            self._make_room()
        self._taints.put((tenant, session_id), held | labels, self._clock() + ttl_s)
        return frozenset(labels - held)

    async def taint_of(self, tenant: str, session_id: str) -> frozenset[str]:
        return self.known_taint(tenant, session_id)

    def known_taint(self, tenant: str, session_id: str) -> frozenset[str]:
        return self._taints.get((tenant, session_id), self._clock()) or _NOTHING

    def renew(self, tenant: str, session_id: str, ttl_s: float) -> None:
        """The session lives on, and its taint with it."""
        if len(self._taints) and (held := self.known_taint(tenant, session_id)):
            self._taints.put((tenant, session_id), held, self._clock() + ttl_s)

    def forget(self, tenant: str, session_id: str) -> None:
        """The session has ended."""
        self._taints.drop((tenant, session_id))
