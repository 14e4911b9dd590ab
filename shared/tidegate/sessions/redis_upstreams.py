"""Sessions at upstream servers, in Redis. Part of `redis.py`; counterpart `memory_upstreams.py`.

An upstream session is stored as "<ttl ms> <session id in hex> <record>", under a key that lives for the time to live
and as long again as claiming needs. When it was last used follows from how long the key still lives. One sorted set
says of each when it may have been idle long enough to be worth a look; claiming corrects it. What it holds is
"<key>", or "<key> <index>" where the index is the set of all upstream sessions of one legacy client's session.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from tidegate.limits import SESSIONS_CACHED_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.hearing import Hearing, Notice
from tidegate.sessions.port import CLAIMABLE_S, RENEWED_AFTER, UpstreamKey, UpstreamSession
from tidegate.sessions.redis_link import Argument, Link, entry_key, milliseconds, read
from tidegate.sessions.takers import tell

_log = logging.getLogger(__name__)

_IDLE: Final = "|1|idle"  # of all tenants: no tenant has an empty name and a key of this kind
_CLAIMABLE_MS: Final = int(CLAIMABLE_S * 1000)
_SCANNED_MAX: Final = 1_000  # at one claim

# The time to live of the sets is that of what lives longest in them.
_LIVE_ON: Final = """
local function live_on(key, ms)
  if redis.call('PTTL', key) < tonumber(ms) then redis.call('PEXPIRE', key, ms) end
end
local function renew(standing, claimable)
  local ms = string.match(standing, '^%d+') + claimable
  redis.call('PEXPIRE', KEYS[1], ms)
  live_on(KEYS[2], ms)
  if KEYS[3] then live_on(KEYS[3], ms) end
end
"""
# KEYS entry, idle[, index]. ARGV claimable ms, proposal, ttl ms, member, channel, what to publish there or "".
_PUT: Final = (
    _LIVE_ON
    + """
local standing = redis.call('GET', KEYS[1])
if standing then renew(standing, ARGV[1]) return standing end
local t = redis.call('TIME')
local ms = ARGV[3] + ARGV[1]
redis.call('SET', KEYS[1], ARGV[2], 'PX', ms)
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000), ARGV[4])
live_on(KEYS[2], ms)
if KEYS[3] then redis.call('SADD', KEYS[3], KEYS[1]) live_on(KEYS[3], ms) end
if ARGV[6] ~= '' then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
return ARGV[2]
"""
)
# KEYS entry, idle[, index]. ARGV claimable ms.
_RENEW: Final = (
    _LIVE_ON
    + """
local standing = redis.call('GET', KEYS[1])
if standing then renew(standing, ARGV[1]) end
return standing
"""
)
# KEYS entry, idle[, index]. ARGV session id in hex, member.
_DROP: Final = """
local standing = redis.call('GET', KEYS[1])
if not standing or string.match(standing, '^%d+ (%x*) ') ~= ARGV[1] then return 0 end
redis.call('ZREM', KEYS[2], ARGV[2])
if KEYS[3] then redis.call('SREM', KEYS[3], KEYS[1]) end
return redis.call('DEL', KEYS[1])
"""
# KEYS idle. ARGV claimable ms, idle ms, most, scanned at most. Answers entry, what it held, entry, …
_CLAIM: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local taken = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2], 'LIMIT', 0, ARGV[4])) do
  local entry, index = string.match(member, '^(%S+) ?(%S*)$')
  local held = redis.call('GET', entry)
  local idle = held and string.match(held, '^%d+') + ARGV[1] - redis.call('PTTL', entry)
  if held and idle < tonumber(ARGV[2]) then
    redis.call('ZADD', KEYS[1], now - idle, member)
  else
    if held then
      if #taken >= ARGV[3] * 2 then break end
      taken[#taken + 1] = entry
      taken[#taken + 1] = held
      redis.call('DEL', entry)
    end
    redis.call('ZREM', KEYS[1], member)
    if index ~= '' then redis.call('SREM', index, entry) end
  end
end
return taken
"""
# KEYS index. Answers what its entries hold, and lets go of those that are gone.
_OF: Final = """
local held = {}
for _, entry in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local one = redis.call('GET', entry)
  if one then held[#held + 1] = one else redis.call('SREM', KEYS[1], entry) end
end
return held
"""


class _Held(UpstreamSession, frozen=True, kw_only=True, omit_defaults=True):
    """As stored. Records of older edges have no key: nobody claims them, they expire."""

    key: UpstreamKey | None = None


_sessions = msgspec.json.Decoder(UpstreamSession)
_held = msgspec.json.Decoder(_Held)
_keys = msgspec.json.Decoder(UpstreamKey)


class RedisUpstreamSessions:
    def __init__(self, link: Link, hearing: Hearing, opened_channel: str) -> None:
        self._link, self._hearing, self._opened_channel = link, hearing, opened_channel
        self._put, self._renew, self._drop = link.script(_PUT), link.script(_RENEW), link.script(_DROP)
        self._claim, self._of = link.script(_CLAIM), link.script(_OF)
        self._copies: Expiring[str, UpstreamSession] = Expiring(SESSIONS_CACHED_MAX)
        self._changes = 0  # as in `redis_clients.py`
        self._listeners: list[Callable[[UpstreamKey], None]] = []
        hearing.hear(opened_channel, self._heard_opened)

    async def get_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        keys, before, began = _keys_of(key), self._changes, time.monotonic()
        async with self._link.asked():
            stored = await self._renew(keys, [_CLAIMABLE_MS])
        return None if stored is None else self._keep(keys[0], stored, began, before)

    async def put_upstream(self, key: UpstreamKey, session: UpstreamSession, ttl_s: float) -> UpstreamSession:
        keys, before, began = _keys_of(key), self._changes, time.monotonic()
        ttl_ms = milliseconds(ttl_s)
        proposal = b"%d %b %b" % (ttl_ms, session.session_id.encode().hex().encode(), _as_stored(key, session))
        opened = msgspec.json.encode(key) if key.session else b""
        arguments: list[Argument] = [_CLAIMABLE_MS, proposal, ttl_ms, _member(keys), self._opened_channel, opened]
        async with self._link.asked():
            stored = await self._put(keys, arguments)
        return self._keep(keys[0], stored, began, before)

    async def drop_upstream(self, key: UpstreamKey, session_id: str) -> None:
        keys = _keys_of(key)
        self._forget(keys[0])
        async with self._link.asked():
            if await self._drop(keys, [session_id.encode().hex(), _member(keys)]):
                await self._link.publish(self._hearing.channel, _gone(keys[0]))

    async def claim_idle(self, idle_s: float, most: int) -> list[tuple[UpstreamKey, UpstreamSession]]:
        async with self._link.asked():
            taken = await self._claim([_IDLE], [_CLAIMABLE_MS, milliseconds(idle_s), most, _SCANNED_MAX])
            if not taken:
                return []
            pipeline = self._link.redis.pipeline(transaction=False)
            for entry in taken[::2]:
                self._forget(entry.decode())
                pipeline.publish(self._hearing.channel, _gone(entry.decode()))
            await pipeline.execute()
        return _with_keys(taken[1::2])

    async def sessions_of(self, tenant: str, session: str) -> list[tuple[UpstreamKey, UpstreamSession]]:
        async with self._link.asked():
            return _with_keys(await self._of([_index(tenant, session)]))

    def on_upstream_opened(self, listener: Callable[[UpstreamKey], None]) -> None:
        self._listeners.append(listener)

    def known_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        return self._copies.get(_entry(key), time.monotonic())

    def heard(self, key: str) -> None:
        """A notice: it is gone."""
        self._forget(key)

    def lost(self) -> None:
        self._changes += 1
        self._copies.clear()

    def _heard_opened(self, body: bytes) -> None:
        try:
            key = _keys.decode(body)
        except msgspec.DecodeError:
            _log.warning("sessions: a notice of %d bytes on an opened upstream session cannot be read", len(body))
            return
        tell(self._listeners, key)

    def _keep(self, entry: str, stored: bytes, began: float, before: int) -> UpstreamSession:
        ttl_ms, _, record = stored.split(b" ", 2)
        session = read(_sessions, record)
        if before == self._changes:
            self._copies.put(entry, session, began + int(ttl_ms) / 1000 * RENEWED_AFTER)
        return session

    def _forget(self, entry: str) -> None:
        self._changes += 1
        self._copies.drop(entry)


def _as_stored(key: UpstreamKey, session: UpstreamSession) -> bytes:
    fields = {name: getattr(session, name) for name in session.__struct_fields__}
    return msgspec.json.encode(_Held(**fields, key=key))


def _with_keys(stored: list[bytes]) -> list[tuple[UpstreamKey, UpstreamSession]]:
    found = []
    for one in stored:
        record = one.split(b" ", 2)[2]
        if (key := read(_held, record).key) is not None:
            found.append((key, read(_sessions, record)))
    return found


def _gone(entry: str) -> bytes:
    return msgspec.json.encode(Notice(kind="upstream", key=entry))


def _entry(key: UpstreamKey) -> str:
    """Keys without the later fields keep the name that older edges give them."""
    tenant, *parts = key
    return entry_key(tenant, "upstream", *(parts if key.session or key.capabilities else parts[:3]))


def _index(tenant: str, session: str) -> str:
    return entry_key(tenant, "uses", session)


def _keys_of(key: UpstreamKey) -> list[str]:
    keys = [_entry(key), _IDLE]
    return [*keys, _index(key.tenant, key.session)] if key.session else keys


def _member(keys: list[str]) -> str:
    return " ".join([keys[0], *keys[2:]])
