"""Windows of governance sessions, in Redis. Part of `redis.py`."""

import time
from typing import Final

from tidegate.ids import uuid7
from tidegate.limits import SESSIONS_CACHED_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.port import RENEWED_AFTER
from tidegate.sessions.redis_link import Argument, Link, entry_key, milliseconds, taint_key

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


class RedisWindows:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._standing = link.script(_STANDING)
        self._copies: Expiring[tuple[str, str, str, str], str] = Expiring(SESSIONS_CACHED_MAX)
        self._losses = 0

    async def window(self, tenant: str, subject_id: str, agent: str, sid: str, idle_s: float, now_us: int) -> str:
        if (known := self.known_window(tenant, subject_id, agent, sid)) is not None:
            return known
        entry, before, began = entry_key(tenant, "window", subject_id, agent, sid), self._losses, time.monotonic()
        async with self._link.asked():
            arguments: list[Argument] = [uuid7(now_us), milliseconds(idle_s), taint_key(tenant, "")]
            standing = await self._standing([entry], arguments)
        session_id = str(standing, "ascii")
        if before == self._losses:
            self._copies.put((tenant, subject_id, agent, sid), session_id, began + idle_s * RENEWED_AFTER)
        return session_id

    def known_window(self, tenant: str, subject_id: str, agent: str, sid: str) -> str | None:
        return self._copies.get((tenant, subject_id, agent, sid), time.monotonic())

    def lost(self) -> None:
        self._losses += 1
        self._copies.clear()
