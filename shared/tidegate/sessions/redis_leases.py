"""Leases in Redis: one key each, holding its owner's word. Part of `redis.py`; counterpart `memory_leases.py`."""

from collections.abc import Sequence
from typing import Final

from tidegate.sessions.redis_link import Link, milliseconds, named_key

_RENEWED_AT_ONCE: Final = 500

# KEYS lease. ARGV value, ttl ms. Answers the value that stands.
_TAKE: Final = """
local standing = redis.call('GET', KEYS[1])
if standing and standing ~= ARGV[1] then return standing end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
# KEYS leases. ARGV value, ttl ms. Answers 1 or 0 for each.
_RENEW: Final = """
local kept = {}
for i, lease in ipairs(KEYS) do
  kept[i] = redis.call('GET', lease) == ARGV[1] and redis.call('PEXPIRE', lease, ARGV[2]) or 0
end
return kept
"""
# KEYS lease. ARGV value.
_GIVE_UP: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisLeases:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._take, self._renew, self._give_up = link.script(_TAKE), link.script(_RENEW), link.script(_GIVE_UP)

    async def take(self, name: str, value: str, ttl_s: float) -> str:
        async with self._link.asked():
            return str(await self._take([_lease(name)], [value, milliseconds(ttl_s)]), "utf-8")

    async def renew(self, names: Sequence[str], value: str, ttl_s: float) -> frozenset[str]:
        held: set[str] = set()
        for start in range(0, len(names), _RENEWED_AT_ONCE):
            part = names[start : start + _RENEWED_AT_ONCE]
            async with self._link.asked():
                kept = await self._renew([_lease(name) for name in part], [value, milliseconds(ttl_s)])
            held.update(name for name, is_kept in zip(part, kept, strict=True) if is_kept)
        return frozenset(held)

    async def give_up(self, name: str, value: str) -> None:
        async with self._link.asked():
            await self._give_up([_lease(name)], [value])


def _lease(name: str) -> str:
    return named_key("lease", name)
