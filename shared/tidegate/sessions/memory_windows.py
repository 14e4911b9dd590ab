"""Windows of governance sessions, in this process. Part of `memory.py`; counterpart `redis_windows.py`."""

from tidegate.ids import uuid7
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.memory_room import room_in
from tidegate.sessions.memory_taints import MemoryTaints
from tidegate.sessions.port import Clock


class MemoryWindows:
    def __init__(self, clock: Clock, entries_max: int, taints: MemoryTaints) -> None:
        self._clock, self._taints = clock, taints
        self._windows: Expiring[tuple[str, str, str, str], tuple[str, float]] = Expiring(entries_max)
        self._make_room = room_in(self._windows, clock, entries_max)

    async def window(self, tenant: str, subject_id: str, agent: str, sid: str, idle_s: float, now_us: int) -> str:
        if (known := self.known_window(tenant, subject_id, agent, sid)) is not None:
            return known
        self._make_room()
        session_id = uuid7(now_us)
        self._windows.put((tenant, subject_id, agent, sid), (session_id, idle_s), self._clock() + idle_s)
        return session_id

    def known_window(self, tenant: str, subject_id: str, agent: str, sid: str) -> str | None:
        """Renews the window as it answers: nobody else has to be told."""
        key, now = (tenant, subject_id, agent, sid), self._clock()
        found = self._windows.get(key, now)
        if found is None:
            return None
        self._windows.put(key, found, now + found[1])
        self._taints.renew(tenant, *found)
        return found[0]
