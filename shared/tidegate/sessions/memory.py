"""Sessions in this process: for one edge in one process. Counterpart: `redis.py`; both obey `port.py` under one suite.

Nothing is evicted to make room: a full store refuses, as Redis would.
"""

import time
from typing import TypeVar

import msgspec

from tidegate.errors import CallerFault
from tidegate.ids import uuid7
from tidegate.limits import SESSION_RECORD_BYTES_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.port import Clock, SessionRecord, SessionsUnavailable, UpstreamKey, UpstreamSession

K = TypeVar("K")
V = TypeVar("V")

ENTRIES_MAX = 200_000  # of each kind
_SWEEP_EVERY_S = 1.0  # looking for ended entries costs milliseconds when there are many


class MemorySessions:
    def __init__(self, *, per_subject_max: int, clock: Clock = time.monotonic, entries_max: int = ENTRIES_MAX) -> None:
        self._per_subject_max = per_subject_max
        self._clock = clock
        self._entries_max = entries_max
        self._swept_at = -_SWEEP_EVERY_S
        self._sessions: Expiring[tuple[str, str], SessionRecord] = Expiring(entries_max)
        self._of_subject: dict[tuple[str, str], set[str]] = {}
        self._upstreams: Expiring[UpstreamKey, tuple[UpstreamSession, float]] = Expiring(entries_max)
        self._windows: Expiring[tuple[str, str, str, str], tuple[str, float]] = Expiring(entries_max)

    @property
    def awaiting(self) -> frozenset[str]:
        return frozenset()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def open(self, record: SessionRecord, ttl_s: float) -> bool:
        check_size(record)
        now = self._clock()
        self._make_room(self._sessions, now)
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
        return record is not None

    async def end(self, tenant: str, session_id: str, acknowledged_within_s: float) -> bool:
        record = await self.get(tenant, session_id)
        self._sessions.drop((tenant, session_id))
        if record is not None:
            owner = (tenant, record.subject_id)
            left = self._of_subject.pop(owner, set()) - {session_id}
            if left:
                self._of_subject[owner] = left
        return True

    def known(self, tenant: str, session_id: str) -> SessionRecord | None:
        return self._sessions.get((tenant, session_id), self._clock())

    def is_live(self, tenant: str, session_id: str) -> bool | None:
        return True if self._sessions.get((tenant, session_id), self._clock()) else None

    async def get_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        now = self._clock()
        found = self._upstreams.get(key, now)
        if found is None:
            return None
        session, ttl_s = found
        self._upstreams.put(key, found, now + ttl_s)
        return session

    async def put_upstream(self, key: UpstreamKey, session: UpstreamSession, ttl_s: float) -> UpstreamSession:
        if (standing := await self.get_upstream(key)) is not None:
            return standing
        now = self._clock()
        self._make_room(self._upstreams, now)
        self._upstreams.put(key, (session, ttl_s), now + ttl_s)
        return session

    async def drop_upstream(self, key: UpstreamKey, session_id: str) -> None:
        found = self._upstreams.get(key, self._clock())
        if found is not None and found[0].session_id == session_id:
            self._upstreams.drop(key)

    def known_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        found = self._upstreams.get(key, self._clock())
        return found[0] if found else None

    async def window(self, tenant: str, subject_id: str, agent: str, sid: str, idle_s: float, now_us: int) -> str:
        if (known := self.known_window(tenant, subject_id, agent, sid)) is not None:
            return known
        now = self._clock()
        self._make_room(self._windows, now)
        session_id = uuid7(now_us)
        self._windows.put((tenant, subject_id, agent, sid), (session_id, idle_s), now + idle_s)
        return session_id

    def known_window(self, tenant: str, subject_id: str, agent: str, sid: str) -> str | None:
        """Renews the window as it answers: nobody else has to be told."""
        key, now = (tenant, subject_id, agent, sid), self._clock()
        found = self._windows.get(key, now)
        if found is None:
            return None
        self._windows.put(key, found, now + found[1])
        return found[0]

    def _make_room(self, entries: Expiring[K, V], now: float) -> None:
        if len(entries) < self._entries_max and len(self._of_subject) < self._entries_max:
            return
        if now >= self._swept_at + _SWEEP_EVERY_S:
            self._swept_at = now
            entries.sweep(now)
            self._of_subject = {
                owner: live
                for owner, held in self._of_subject.items()
                if (live := {one for one in held if self._sessions.get((owner[0], one), now)})
            }
        if len(entries) >= self._entries_max:
            raise SessionsUnavailable(f"{self._entries_max} sessions are held in memory; use `sessions: redis://…`")


def check_size(record: SessionRecord) -> bytes:
    """The record as stored. Raises CallerFault."""
    stored = msgspec.json.encode(record)
    if len(stored) > SESSION_RECORD_BYTES_MAX:
        raise CallerFault(
            f"clientInfo and capabilities are larger than {SESSION_RECORD_BYTES_MAX} bytes together; send less of them",
            code="session-too-large",
        )
    return stored
