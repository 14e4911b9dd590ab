"""Sessions in Redis or Valkey (6.2 and later, not Redis Cluster): for any number of edges.

Counterparts: `memory.py` under the same suite, `hearing.py` for notices of what is gone. Every key begins with the
tenant and the format's version and has a time to live. Local copies are used only while notices are heard.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec
import redis.asyncio
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tidegate.errors import ConfigFault
from tidegate.ids import uuid7
from tidegate.limits import SESSIONS_CACHED_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.hearing import Hearing, Notice, cancellations, is_cancelled
from tidegate.sessions.memory import check_size
from tidegate.sessions.port import (
    RENEWED_AFTER,
    SessionRecord,
    SessionsUnavailable,
    UpstreamKey,
    UpstreamSession,
)

_CONNECTIONS_MAX: Final = 32
_CONNECT_TIMEOUT_S: Final = 1.0
_REPLY_TIMEOUT_S: Final = 1.0
_DEADLINE_S: Final = 2.0  # of one method, connecting and one retry included

# KEYS session, subject. ARGV session id, record, ttl ms, cap. The subject's set holds when each session would end.
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
_TOUCH: Final = """
if redis.call('PEXPIRE', KEYS[1], ARGV[2]) == 0 then return 0 end
local t = redis.call('TIME')
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return 1
"""
# KEYS entry. ARGV proposal, ttl ms. Answers what stands, and lets it live on.
_STANDING: Final = """
local standing = redis.call('GET', KEYS[1])
if standing then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return standing end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
# KEYS entry. An upstream session is stored as "<ttl ms> <session id in hex> <record>".
_RENEW: Final = """
local standing = redis.call('GET', KEYS[1])
if standing then redis.call('PEXPIRE', KEYS[1], string.match(standing, '^%d+')) end
return standing
"""
# KEYS entry. ARGV session id in hex.
_DROP: Final = """
local standing = redis.call('GET', KEYS[1])
if standing and string.match(standing, '^%d+ (%x*) ') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

T = TypeVar("T")
_records = msgspec.json.Decoder(SessionRecord)
_upstreams = msgspec.json.Decoder(UpstreamSession)


class RedisSessions:
    """`url` is redis:// or rediss:// (TLS; `?ssl_ca_certs=FILE`). Raises ConfigFault when it is malformed."""

    def __init__(self, url: str, *, per_subject_max: int) -> None:
        self._per_subject_max = per_subject_max
        try:
            options = parse_url(url)
        except ValueError as error:
            raise ConfigFault(f"$.sessions: {error}; expected redis://[user:password@]host:port/db") from None
        self._where = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS_MAX,
            timeout=_REPLY_TIMEOUT_S,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_REPLY_TIMEOUT_S,
            protocol=2,
            # A pooled connection may have died unseen: once more on a new one. Every command here may be repeated.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self._redis: redis.asyncio.Redis = redis.asyncio.Redis(connection_pool=pool)
        self._open = self._redis.register_script(_OPEN)
        self._touch = self._redis.register_script(_TOUCH)
        self._standing = self._redis.register_script(_STANDING)
        self._renew = self._redis.register_script(_RENEW)
        self._drop = self._redis.register_script(_DROP)
        self._sessions: Expiring[str, SessionRecord] = Expiring(SESSIONS_CACHED_MAX)
        self._upstreams: Expiring[str, UpstreamSession] = Expiring(SESSIONS_CACHED_MAX)
        self._windows: Expiring[tuple[str, str, str, str], str] = Expiring(SESSIONS_CACHED_MAX)
        self._changes = 0  # notices and losses so far: an answer that was under way meanwhile is not kept
        self._hearing = Hearing(url, publish=self._publish, on_notice=self._forget, on_loss=self._forget_all)

    @property
    def awaiting(self) -> frozenset[str]:
        return frozenset() if self._hearing.is_sound else frozenset({"sessions"})

    async def start(self) -> None:
        self._hearing.start()

    async def stop(self) -> None:
        await self._hearing.stop()
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def open(self, record: SessionRecord, ttl_s: float) -> bool:
        stored = check_size(record)
        key, before, began = _session(record.tenant, record.session_id), self._changes, time.monotonic()
        keys = [key, _subject(record.tenant, record.subject_id)]
        async with self._asked():
            opened = await self._open(keys, [record.session_id, stored, _ms(ttl_s), self._per_subject_max])
        if opened:
            self._keep_session(key, record, began + ttl_s, before)
        return bool(opened)

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        key, before, began = _session(tenant, session_id), self._changes, time.monotonic()
        async with self._asked():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.get(key)
            pipeline.pttl(key)
            stored, left_ms = await pipeline.execute()
        if stored is None or left_ms <= 0:
            self._sessions.drop(key)
            return None
        record = _read(_records, stored)
        self._keep_session(key, record, began + left_ms / 1000, before)
        return record

    async def touch(self, tenant: str, session_id: str, ttl_s: float) -> bool:
        record = self.known(tenant, session_id) or await self.get(tenant, session_id)
        if record is None:
            return False
        key, before, began = _session(tenant, session_id), self._changes, time.monotonic()
        async with self._asked():
            touched = await self._touch([key, _subject(tenant, record.subject_id)], [session_id, _ms(ttl_s)])
        if touched:
            self._keep_session(key, record, began + ttl_s, before)
        else:
            self._sessions.drop(key)
        return bool(touched)

    async def end(self, tenant: str, session_id: str, acknowledged_within_s: float) -> bool:
        key, ends_at = _session(tenant, session_id), time.monotonic() + acknowledged_within_s
        self._forget_key(key)
        with self._hearing.expecting() as waiting:
            notice = Notice(kind="session", key=key, reply_to=self._hearing.reply_to, nonce=waiting.nonce)
            async with self._asked():
                # One transaction: nobody can delete it and die before the edges are told.
                pipeline = self._redis.pipeline()
                pipeline.get(key)
                pipeline.delete(key)
                pipeline.publish(self._hearing.channel, msgspec.json.encode(notice))
                stored, _, receivers = await pipeline.execute()
                if stored is not None:
                    owner = _read(_records, stored).subject_id
                    await self._redis.zrem(_subject(tenant, owner), session_id)
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + ends_at - time.monotonic()):
                    await waiting.until(receivers)
            except TimeoutError:
                return False
        return True

    def known(self, tenant: str, session_id: str) -> SessionRecord | None:
        if not self._hearing.is_sound:
            return None
        return self._sessions.get(_session(tenant, session_id), time.monotonic())

    def is_live(self, tenant: str, session_id: str) -> bool | None:
        return True if self.known(tenant, session_id) is not None else None

    async def get_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        entry, before, began = _entry(key.tenant, "upstream", *key[1:]), self._changes, time.monotonic()
        async with self._asked():
            stored = await self._renew([entry])
        return None if stored is None else self._keep_upstream(entry, stored, began, before)

    async def put_upstream(self, key: UpstreamKey, session: UpstreamSession, ttl_s: float) -> UpstreamSession:
        entry, before, began = _entry(key.tenant, "upstream", *key[1:]), self._changes, time.monotonic()
        proposal = b"%d %b %b" % (_ms(ttl_s), session.session_id.encode().hex().encode(), msgspec.json.encode(session))
        async with self._asked():
            stored = await self._standing([entry], [proposal, _ms(ttl_s)])
        return self._keep_upstream(entry, stored, began, before)

    async def drop_upstream(self, key: UpstreamKey, session_id: str) -> None:
        entry = _entry(key.tenant, "upstream", *key[1:])
        self._forget_key(entry)
        async with self._asked():
            if await self._drop([entry], [session_id.encode().hex()]):
                notice = Notice(kind="upstream", key=entry)
                await self._redis.publish(self._hearing.channel, msgspec.json.encode(notice))

    def known_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        return self._upstreams.get(_entry(key.tenant, "upstream", *key[1:]), time.monotonic())

    async def window(self, tenant: str, subject_id: str, agent: str, sid: str, idle_s: float, now_us: int) -> str:
        if (known := self.known_window(tenant, subject_id, agent, sid)) is not None:
            return known
        entry, before, began = _entry(tenant, "window", subject_id, agent, sid), self._changes, time.monotonic()
        async with self._asked():
            standing = await self._standing([entry], [uuid7(now_us), _ms(idle_s)])
        session_id = str(standing, "ascii")
        if before == self._changes:
            self._windows.put((tenant, subject_id, agent, sid), session_id, began + idle_s * RENEWED_AFTER)
        return session_id

    def known_window(self, tenant: str, subject_id: str, agent: str, sid: str) -> str | None:
        return self._windows.get((tenant, subject_id, agent, sid), time.monotonic())

    def _keep_session(self, key: str, record: SessionRecord, until: float, before: int) -> None:
        if before == self._changes and self._hearing.is_sound:
            self._sessions.put(key, record, until)

    def _keep_upstream(self, entry: str, stored: bytes, began: float, before: int) -> UpstreamSession:
        ttl_ms, _, record = stored.split(b" ", 2)
        session = _read(_upstreams, record)
        if before == self._changes:
            self._upstreams.put(entry, session, began + int(ttl_ms) / 1000 * RENEWED_AFTER)
        return session

    def _forget(self, notice: Notice) -> None:
        self._forget_key(notice.key)

    def _forget_key(self, key: str) -> None:
        self._changes += 1
        self._sessions.drop(key)
        self._upstreams.drop(key)

    def _forget_all(self) -> None:
        self._changes += 1
        self._sessions.clear()
        self._upstreams.clear()
        self._windows.clear()

    async def _publish(self, channel: str, body: bytes) -> int:
        return int(await self._redis.publish(channel, body))

    @contextlib.asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        """Bounds the wait and turns what the client library raises into SessionsUnavailable."""
        before = cancellations()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                yield
        except (RedisError, OSError, TimeoutError) as error:
            what = type(error).__name__
            sentence = f"the session store at {self._where} did not answer ({what}); check `sessions` and the server"
            raise SessionsUnavailable(sentence) from error
        if is_cancelled(since=before):
            raise asyncio.CancelledError


def _read(decoder: "msgspec.json.Decoder[T]", stored: bytes) -> T:
    try:
        return decoder.decode(stored)
    except msgspec.DecodeError as error:
        raise SessionsUnavailable(
            f"a stored session cannot be read ({error}); is Redis shared with something else?"
        ) from None


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


@lru_cache(maxsize=1024)
def _prefix(tenant: str) -> str:
    """Tenant, then format version. Quoted: no tenant's name can reach into another's keys."""
    return f"{quote(tenant, safe='')}|1|"


def _session(tenant: str, session_id: str) -> str:
    return f"{_prefix(tenant)}session|{session_id}"


def _subject(tenant: str, subject_id: str) -> str:
    return f"{_prefix(tenant)}subject|{subject_id}"


@lru_cache(maxsize=SESSIONS_CACHED_MAX)
def _entry(tenant: str, kind: str, *parts: str) -> str:
    """Parts of any length and content (an agent's name may be a URL) become one digest."""
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()
    return f"{_prefix(tenant)}{kind}|{digest}"
