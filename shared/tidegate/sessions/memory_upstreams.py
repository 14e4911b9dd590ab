"""Sessions at upstream servers, in this process. Part of `memory.py`; counterpart `redis_upstreams.py`."""

from collections.abc import Callable
from typing import NamedTuple

from tidegate.sessions.expiring import Expiring
from tidegate.sessions.memory_room import Room
from tidegate.sessions.port import CLAIMABLE_S, Clock, UpstreamKey, UpstreamSession
from tidegate.sessions.takers import tell


class _Held(NamedTuple):
    session: UpstreamSession
    ttl_s: float
    used_at: float


class MemoryUpstreamSessions:
    def __init__(self, clock: Clock, entries_max: int) -> None:
        self._clock = clock
        self._held: Expiring[UpstreamKey, _Held] = Expiring(entries_max)
        self._of_session: dict[tuple[str, str], set[UpstreamKey]] = {}
        self._room = Room(clock, entries_max, self._sweep)
        self._listeners: list[Callable[[UpstreamKey], None]] = []

    async def get_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        return self.known_upstream(key)

    async def put_upstream(self, key: UpstreamKey, session: UpstreamSession, ttl_s: float) -> UpstreamSession:
        if (standing := self.known_upstream(key)) is not None:
            return standing
        self._room.make(self._held.__len__)
        self._use(key, session, ttl_s)
        if key.session:
            self._of_session.setdefault((key.tenant, key.session), set()).add(key)
            tell(self._listeners, key)
        return session

    async def drop_upstream(self, key: UpstreamKey, session_id: str) -> None:
        held = self._held.get(key, self._clock())
        if held is not None and held.session.session_id == session_id:
            self._drop(key)

    async def claim_idle(self, idle_s: float, most: int) -> list[tuple[UpstreamKey, UpstreamSession]]:
        now = self._clock()
        idle: list[tuple[UpstreamKey, UpstreamSession]] = []
        ended: list[UpstreamKey] = []
        for key, held in self._held:  # the longest unused first
            if held.used_at > now - idle_s or len(idle) >= most:
                break
            if now < held.used_at + held.ttl_s + CLAIMABLE_S:
                idle.append((key, held.session))
            ended.append(key)
        for key in ended:
            self._drop(key)
        return idle

    async def sessions_of(self, tenant: str, session: str) -> list[tuple[UpstreamKey, UpstreamSession]]:
        now = self._clock()
        keys = self._of_session.get((tenant, session), ())
        return [(key, held.session) for key in keys if (held := self._held.get(key, now)) is not None]

    def on_upstream_opened(self, listener: Callable[[UpstreamKey], None]) -> None:
        self._listeners.append(listener)

    def known_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        """Renews it as it answers: nobody else has to be told."""
        held = self._held.get(key, self._clock())
        if held is None:
            return None
        self._use(key, held.session, held.ttl_s)
        return held.session

    def _use(self, key: UpstreamKey, session: UpstreamSession, ttl_s: float) -> None:
        now = self._clock()
        self._held.put(key, _Held(session, ttl_s, now), now + ttl_s + CLAIMABLE_S)

    def _drop(self, key: UpstreamKey) -> None:
        self._held.drop(key)
        left = self._of_session.get((key.tenant, key.session))
        if left is not None:
            left.discard(key)
            if not left:
                del self._of_session[key.tenant, key.session]

    def _sweep(self, now: float) -> None:
        self._held.sweep(now)
        self._of_session = {
            owner: live
            for owner, keys in self._of_session.items()
            if (live := {key for key in keys if self._held.get(key, now) is not None})
        }
