"""Clients' sessions in Redis. Part of `redis.py`; counterpart `memory_clients.py`.

A session is one key; the subject's sorted set holds when each of its sessions would end. Local copies are used only
while notices are heard.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from tidegate.limits import SESSIONS_CACHED_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.hearing import Hearing, Notice
from tidegate.sessions.port import SessionRecord, SessionsUnavailable
from tidegate.sessions.records import amended, record_as_stored
from tidegate.sessions.redis_link import Link, milliseconds, read, session_key, session_of, subject_key, taint_key
from tidegate.sessions.takers import tell

# KEYS session, subject. ARGV session id, record, ttl ms, cap.
_OPEN: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return 1
"""
# KEYS session, subject, taint. ARGV session id, ttl ms.
_TOUCH: Final = """
if redis.call('PEXPIRE', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('PEXPIRE', KEYS[3], ARGV[2])
local t = redis.call('TIME')
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return 1
"""
# KEYS session. ARGV the record as read, the record as amended, channel, notice. One script: nobody can write it and
# die before the edges are told.
_AMEND: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
"""
_AMENDING_TRIES: Final = 64  # each failure is another request's success

_records = msgspec.json.Decoder(SessionRecord)


class RedisClientSessions:
    def __init__(self, link: Link, hearing: Hearing, per_subject_max: int) -> None:
        self._link, self._hearing, self._per_subject_max = link, hearing, per_subject_max
        self._open, self._touch, self._amend = link.script(_OPEN), link.script(_TOUCH), link.script(_AMEND)
        self._copies: Expiring[str, SessionRecord] = Expiring(SESSIONS_CACHED_MAX)
        self._changes = 0  # notices and losses so far: an answer that was under way meanwhile is not kept
        self._listeners: list[Callable[[str, str], None]] = []

    async def open(self, record: SessionRecord, ttl_s: float) -> bool:
        stored = record_as_stored(record)
        key, before, began = session_key(record.tenant, record.session_id), self._changes, time.monotonic()
        keys = [key, subject_key(record.tenant, record.subject_id)]
        async with self._link.asked():
            opened = await self._open(keys, [record.session_id, stored, milliseconds(ttl_s), self._per_subject_max])
        if opened:
            self._keep(key, record, began + ttl_s, before)
        return bool(opened)

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        key, before, began = session_key(tenant, session_id), self._changes, time.monotonic()
        async with self._link.asked():
            pipeline = self._link.redis.pipeline(transaction=False)
            pipeline.get(key)
            pipeline.pttl(key)
            stored, left_ms = await pipeline.execute()
        if stored is None or left_ms <= 0:
            self._copies.drop(key)
            return None
        record = read(_records, stored)
        self._keep(key, record, began + left_ms / 1000, before)
        return record

    async def touch(self, tenant: str, session_id: str, ttl_s: float) -> bool:
        before = self._changes  # first: a record that is amended meanwhile is not kept
        record = self.known(tenant, session_id) or await self.get(tenant, session_id)
        if record is None:
            return False
        key, began = session_key(tenant, session_id), time.monotonic()
        async with self._link.asked():
            keys = [key, subject_key(tenant, record.subject_id), taint_key(tenant, session_id)]
            touched = await self._touch(keys, [session_id, milliseconds(ttl_s)])
        if touched:
            self._keep(key, record, began + ttl_s, before)
        else:
            self._copies.drop(key)
        return bool(touched)

    async def end(self, tenant: str, session_id: str, acknowledged_within_s: float) -> bool:
        key, ends_at = session_key(tenant, session_id), time.monotonic() + acknowledged_within_s
        self._forget(key)
        with self._hearing.expecting() as waiting:
            notice = Notice(kind="session", key=key, reply_to=self._hearing.reply_to, nonce=waiting.nonce)
            async with self._link.asked():
                # One transaction: nobody can delete it and die before the edges are told.
                pipeline = self._link.redis.pipeline()
                pipeline.get(key)
                pipeline.delete(key)
                pipeline.delete(taint_key(tenant, session_id))
                pipeline.publish(self._hearing.channel, msgspec.json.encode(notice))
                stored, _, _, receivers = await pipeline.execute()
                if stored is not None:
                    owner = read(_records, stored).subject_id
                    await self._link.redis.zrem(subject_key(tenant, owner), session_id)
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + ends_at - time.monotonic()):
                    await waiting.until(receivers)
            except TimeoutError:
                return False
        return True

    async def amend(
        self, tenant: str, session_id: str, *, log_level: str | None = None, subscribe: str = "", unsubscribe: str = ""
    ) -> SessionRecord | None:
        key = session_key(tenant, session_id)
        notice = msgspec.json.encode(Notice(kind="session", key=key))
        for _ in range(_AMENDING_TRIES):
            async with self._link.asked():
                stored: bytes | None = await self._link.redis.get(key)  # type: ignore[assignment]  # never decoded
            if stored is None:
                self._forget(key)
                return None
            record, rewritten = amended(read(_records, stored), stored, log_level, subscribe, unsubscribe)
            if rewritten == stored:
                return record
            async with self._link.asked():
                done = await self._amend([key], [stored, rewritten, self._hearing.channel, notice])
            self._forget(key)
            if done:
                return record
        raise SessionsUnavailable("too many requests change one session at once; send them one after the other")

    def on_amended(self, listener: Callable[[str, str], None]) -> None:
        self._listeners.append(listener)

    def known(self, tenant: str, session_id: str) -> SessionRecord | None:
        if not self._hearing.is_sound:
            return None
        return self._copies.get(session_key(tenant, session_id), time.monotonic())

    def is_live(self, tenant: str, session_id: str) -> bool | None:
        return True if self.known(tenant, session_id) is not None else None

    def heard(self, key: str) -> None:
        """A notice: it was amended or ended."""
        self._forget(key)
        tell(self._listeners, *session_of(key))

    def lost(self) -> None:
        """Notices may be missed from now on."""
        self._changes += 1
        self._copies.clear()

    def regained(self) -> None:
        tell(self._listeners, "", "")

    def _keep(self, key: str, record: SessionRecord, until: float, before: int) -> None:
        if before == self._changes and self._hearing.is_sound:
            self._copies.put(key, record, until)

    def _forget(self, key: str) -> None:
        self._changes += 1
        self._copies.drop(key)
