"""Windows of governance sessions, in Redis. Part of `redis.py`; counterpart `memory_windows.py`.

What the store said last is kept for the idle time. It is fresh, so that nobody is asked, for an eighth of that and
while notices are heard; after that it serves only where asking fails, or failed a moment ago, and as what is proposed
to a store that has lost it. Whatever the store answers takes its place.
"""

import time
from typing import Final, NamedTuple

from tidegate.ids import uuid7
from tidegate.limits import SESSIONS_CACHED_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.port import RENEWED_AFTER, SessionsUnavailable
from tidegate.sessions.redis_link import Argument, Link, entry_key, milliseconds, taint_key
from tidegate.sessions.redis_taints import RedisTaints

AWAY_S: Final = 1.0  # for so long a store that failed is not asked again about windows that are known

# KEYS entry. ARGV proposal, ttl ms, what names of taints begin with. Answers what stands, and lets it live on, taint
# included.
_STANDING: Final = """
local standing = redis.call('GET', KEYS[1])
if standing then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', ARGV[3] .. standing, ARGV[2])
  return standing
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

_Whose = tuple[str, str, str, str]


class _Copy(NamedTuple):
    session_id: str
    fresh_until_s: float
    losses: int  # of the subscription, before it was taken; after a further one it is not fresh


class RedisWindows:
    def __init__(self, link: Link, taints: RedisTaints) -> None:
        self._link, self._taints = link, taints
        self._standing = link.script(_STANDING)
        self._copies: Expiring[_Whose, _Copy] = Expiring(SESSIONS_CACHED_MAX)
        self._losses = 0
        self._away_until_s = 0.0

    async def window(self, tenant: str, subject_id: str, agent: str, sid: str, idle_s: float, now_us: int) -> str:
        whose = (tenant, subject_id, agent, sid)
        if (known := self.known_window(*whose)) is not None:
            return known
        began = time.monotonic()
        copy = self._copies.get(whose, began)
        if copy is not None and began < self._away_until_s:
            return self._gone_on(whose, copy, idle_s)
        if self._away_until_s:  # one asks whether it is back, and the others go on meanwhile
            self._away_until_s = began + AWAY_S
        losses = self._losses
        try:
            session_id = await self._ask(whose, copy.session_id if copy is not None else uuid7(now_us), idle_s)
        except SessionsUnavailable:
            self._away_until_s = time.monotonic() + AWAY_S
            copy = self._copies.get(whose, began)  # what was told meanwhile counts
            if copy is None:
                raise
            return self._gone_on(whose, copy, idle_s)
        self._away_until_s = 0.0
        self._copies.put(whose, _Copy(session_id, began + idle_s * RENEWED_AFTER, losses), began + idle_s)
        self._taints.renew(tenant, session_id, idle_s)
        return session_id

    async def _ask(self, whose: _Whose, proposal: str, idle_s: float) -> str:
        """Raises SessionsUnavailable."""
        tenant, *rest = whose
        arguments: list[Argument] = [proposal, milliseconds(idle_s), taint_key(tenant, "")]
        async with self._link.asked():
            standing = await self._standing([entry_key(tenant, "window", *rest)], arguments)
        return str(standing, "ascii")

    def _gone_on(self, whose: _Whose, copy: _Copy, idle_s: float) -> str:
        """Without the store: the window lives on here while calls keep coming here."""
        self._copies.put(whose, copy, time.monotonic() + idle_s)
        self._taints.renew(whose[0], copy.session_id, idle_s)
        return copy.session_id

    def known_window(self, tenant: str, subject_id: str, agent: str, sid: str) -> str | None:
        now = time.monotonic()
        copy = self._copies.get((tenant, subject_id, agent, sid), now)
        if copy is None or copy.losses != self._losses or now >= copy.fresh_until_s:
            return None
        return copy.session_id

    def lost(self) -> None:
        """What is kept is fresh no more."""
        self._losses += 1

    def regained(self) -> None:
        """The store is there again: the next call asks it."""
        self._away_until_s = 0.0
