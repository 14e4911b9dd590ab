"""Clients' sessions in this process. Part of `memory.py`; counterpart `redis_clients.py`."""

from collections.abc import Callable

from tidegate.sessions.expiring import Expiring
from tidegate.sessions.memory_room import Room
from tidegate.sessions.memory_taints import MemoryTaints
from tidegate.sessions.port import Clock, SessionRecord
from tidegate.sessions.records import amended, record_as_stored
from tidegate.sessions.takers import tell


class MemoryClientSessions:
    def __init__(self, per_subject_max: int, clock: Clock, entries_max: int, taints: MemoryTaints) -> None:
        self._per_subject_max, self._clock, self._taints = per_subject_max, clock, taints
        self._sessions: Expiring[tuple[str, str], SessionRecord] = Expiring(entries_max)
        self._of_subject: dict[tuple[str, str], set[str]] = {}
        self._room = Room(clock, entries_max, self._sweep)
        self._listeners: list[Callable[[str, str], None]] = []

    async def open(self, record: SessionRecord, ttl_s: float) -> bool:
        record_as_stored(record)
        now = self._clock()
        self._room.make(lambda: max(len(self._sessions), len(self._of_subject)))
        owner = (record.tenant, record.subject_id)
        live = {one for one in self._of_subject.get(owner, ()) if self._sessions.get((record.tenant, one), now)}
        if len(live) >= self._per_subject_max and record.session_id not in live:
            return False
        self._of_subject[owner] = live | {record.session_id}
        self._sessions.put((record.tenant, record.session_id), record, now + ttl_s)
        return True

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        return self._sessions.get((tenant, session_id), self._clock())

    async def touch(self, tenant: str, session_id: str, ttl_s: float) -> bool:
        record = await self.get(tenant, session_id)
        if record is not None:
            self._sessions.put((tenant, session_id), record, self._clock() + ttl_s)
            self._taints.renew(tenant, session_id, ttl_s)
        return record is not None

    async def end(self, tenant: str, session_id: str, acknowledged_within_s: float) -> bool:
        record = await self.get(tenant, session_id)
        self._sessions.drop((tenant, session_id))
        self._taints.forget(tenant, session_id)
        if record is not None:
            owner = (tenant, record.subject_id)
            left = self._of_subject.pop(owner, set()) - {session_id}
            if left:
                self._of_subject[owner] = left
        self._tell(tenant, session_id)
        return True

    async def amend(
        self, tenant: str, session_id: str, *, log_level: str | None = None, subscribe: str = "", unsubscribe: str = ""
    ) -> SessionRecord | None:
        standing = await self.get(tenant, session_id)
        if standing is None:
            return None
        record, _ = amended(standing, record_as_stored(standing), log_level, subscribe, unsubscribe)
        if record != standing:
            self._sessions.amend((tenant, session_id), record)
            self._tell(tenant, session_id)
        return record

    def on_amended(self, listener: Callable[[str, str], None]) -> None:
        self._listeners.append(listener)

    def known(self, tenant: str, session_id: str) -> SessionRecord | None:
        return self._sessions.get((tenant, session_id), self._clock())

    def is_live(self, tenant: str, session_id: str) -> bool | None:
        return True if self._sessions.get((tenant, session_id), self._clock()) else None

    def _tell(self, tenant: str, session_id: str) -> None:
        tell(self._listeners, tenant, session_id)

    def _sweep(self, now: float) -> None:
        self._sessions.sweep(now)
        self._of_subject = {
            owner: live
            for owner, held in self._of_subject.items()
            if (live := {one for one in held if self._sessions.get((owner[0], one), now)})
        }
