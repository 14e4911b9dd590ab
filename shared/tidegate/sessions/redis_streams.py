"""Kept streams in Redis: a Redis stream of events each, and beside it what was forgotten of it and who waits. Part of
`redis.py`; counterpart `memory_streams.py`.

No connection is held while waiting: a reader leaves its edge's address beside the stream, and whoever adds an event
tells that address once, over the subscription that every edge has.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final

from tidegate.limits import KEPT_EVENTS_MAX, KEPT_STREAM_BYTES_MAX, KEPT_WAITERS_MAX
from tidegate.sessions.hearing import Hearing
from tidegate.sessions.numbers import number_of
from tidegate.sessions.port import KeptEvent, SessionsUnavailable
from tidegate.sessions.redis_link import Argument, Link, milliseconds, named_key

_READ_AT_ONCE: Final = 256
_LOOK_AGAIN_S: Final = 1.0  # while wake-ups may be missed

_WAKE: Final = """
local function wake(notes, channels)
  for address in string.gmatch(redis.call('HGET', notes, 'waiting') or '', '%S+') do
    redis.call('PUBLISH', channels .. address, notes)
  end
  redis.call('HDEL', notes, 'waiting')
end
"""
# KEYS events, notes. ARGV message, nonce, ttl ms, events at most, bytes at most, channels. Answers the number. The
# nonce makes the same event sent again the same event.
_KEEP: Final = (
    _WAKE
    + """
local last = redis.call('HMGET', KEYS[2], 'nonce', 'number')
if last[1] == ARGV[2] then return last[2] end
local number = redis.call('XADD', KEYS[1], '*', 'm', ARGV[1])
local bytes = redis.call('HINCRBY', KEYS[2], 'bytes', #ARGV[1])
while bytes > tonumber(ARGV[5]) or redis.call('XLEN', KEYS[1]) > tonumber(ARGV[4]) do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  redis.call('XDEL', KEYS[1], oldest[1])
  redis.call('HSET', KEYS[2], 'forgotten', oldest[1])
  bytes = redis.call('HINCRBY', KEYS[2], 'bytes', -#oldest[2][2])
end
redis.call('HSET', KEYS[2], 'nonce', ARGV[2], 'number', number)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
wake(KEYS[2], ARGV[6])
return number
"""
)
# KEYS events, notes. ARGV after, events at most, address. Answers nothing for no such stream; else what was forgotten
# last, whether it is finished, and the events. Where there are none, the address will be told of the next.
_READ: Final = """
local notes = redis.call('HMGET', KEYS[2], 'forgotten', 'finished', 'waiting', 'number')
if not notes[4] then return nil end
local events = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
if #events == 0 and not notes[2] and not string.find(notes[3] or '', ARGV[3], 1, true) then
  redis.call('HSET', KEYS[2], 'waiting', string.sub((notes[3] or '') .. ' ' .. ARGV[3], -132))
end
return {notes[1] or '', notes[2] or '', events}
"""
# KEYS events, notes. ARGV ttl ms, channels.
_FINISH: Final = (
    _WAKE
    + """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], 'finished', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
wake(KEYS[2], ARGV[2])
return 1
"""
)


class RedisKeptStreams:
    def __init__(self, link: Link, hearing: Hearing, channels: str) -> None:
        self._link, self._hearing, self._channels = link, hearing, channels
        self._keep, self._read, self._finish = link.script(_KEEP), link.script(_READ), link.script(_FINISH)
        self._kept = 0
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._waiters = 0
        hearing.hear(channels + hearing.instance, self._wake)

    async def keep(self, owner: str, stream: str, message: bytes, ttl_s: float) -> str:
        self._kept += 1
        nonce = f"{self._hearing.instance} {self._kept}"
        bounds = [KEPT_EVENTS_MAX, KEPT_STREAM_BYTES_MAX]
        arguments: list[Argument] = [message, nonce, milliseconds(ttl_s), *bounds, self._channels]
        async with self._link.asked():
            return str(await self._keep(_keys_of(owner, stream), arguments), "ascii")

    async def kept_after(self, owner: str, stream: str, number: str, wait_s: float) -> list[KeptEvent] | None:
        keys, ends_at = _keys_of(owner, stream), time.monotonic() + wait_s
        if number_of(number) is None:
            return None
        with self._expecting(keys[1]) as news:
            while True:
                news.clear()
                events = await self._read_once(keys, number)
                left_s = ends_at - time.monotonic()
                if events is None or events or left_s <= 0:
                    return events
                if not self._hearing.is_sound:
                    left_s = min(left_s, _LOOK_AGAIN_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await news.wait()

    async def finish(self, owner: str, stream: str, ttl_s: float) -> None:
        async with self._link.asked():
            await self._finish(_keys_of(owner, stream), [milliseconds(ttl_s), self._channels])

    def lost(self) -> None:
        """Wake-ups may be missed from now on: all who wait look for themselves."""
        for waiting in self._waiting.values():
            for news in waiting:
                news.set()

    async def _read_once(self, keys: list[str], number: str) -> list[KeptEvent] | None:
        async with self._link.asked():
            found = await self._read(keys, [number, _READ_AT_ONCE, self._hearing.instance])
        if found is None:
            return None
        forgotten, finished, events = found
        after, gone = number_of(number), number_of(forgotten.decode())
        if gone is not None and (after is None or gone > after):
            return None
        if finished and not events:
            return None
        return [KeptEvent(str(one, "ascii"), fields[1]) for one, fields in events]

    @contextlib.contextmanager
    def _expecting(self, key: str) -> Iterator[asyncio.Event]:
        if self._waiters >= KEPT_WAITERS_MAX:
            raise SessionsUnavailable(
                f"{KEPT_WAITERS_MAX} readers of streams wait at this edge already; come back later"
            )
        news = asyncio.Event()
        self._waiters += 1
        self._waiting.setdefault(key, set()).add(news)
        try:
            yield news
        finally:
            self._waiters -= 1
            waiting = self._waiting[key]
            waiting.discard(news)
            if not waiting:
                del self._waiting[key]

    def _wake(self, body: bytes) -> None:
        for news in self._waiting.get(body.decode(errors="replace"), ()):
            news.set()


def _keys_of(owner: str, stream: str) -> list[str]:
    return [named_key("stream", owner, stream), named_key("notes", owner, stream)]
