"""Kept streams in this process. Part of `memory.py`; counterpart `redis_streams.py`."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from tidegate.limits import KEPT_EVENTS_MAX, KEPT_STREAM_BYTES_MAX, KEPT_WAITERS_MAX
from tidegate.sessions.expiring import Expiring
from tidegate.sessions.memory_room import room_in
from tidegate.sessions.numbers import number_of
from tidegate.sessions.port import Clock, KeptEvent, SessionsUnavailable

_BYTES_MAX: Final = 256 * 1024 * 1024  # of all streams together
_READ_AT_ONCE: Final = 256
_SWEEP_EVERY_S: Final = 10.0


@dataclass(slots=True)
class _Stream:
    events: deque[tuple[int, bytes]] = field(default_factory=deque)
    size: int = 0
    last: int = 0
    forgotten: int = 0
    is_finished: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, message: bytes) -> int:
        """How much larger the stream is now."""
        before = self.size
        self.last += 1
        self.events.append((self.last, message))
        self.size += len(message)
        while self.size > KEPT_STREAM_BYTES_MAX or len(self.events) > KEPT_EVENTS_MAX:
            self.forgotten, oldest = self.events.popleft()
            self.size -= len(oldest)
        return self.size - before

    def after(self, number: int) -> list[KeptEvent] | None:
        if number < self.forgotten:
            return None
        found = [KeptEvent(f"{one}-0", message) for one, message in self.events if one > number][:_READ_AT_ONCE]
        return None if self.is_finished and not found else found


class MemoryKeptStreams:
    def __init__(self, clock: Clock, entries_max: int) -> None:
        self._clock = clock
        self._streams: Expiring[tuple[str, str], _Stream] = Expiring(entries_max)
        self._make_room = room_in(self._streams, clock, entries_max)
        self._size = 0
        self._swept_at = clock()
        self._waiters = 0

    async def keep(self, owner: str, stream: str, message: bytes, ttl_s: float) -> str:
        now = self._clock()
        self._sweep(now)
        found = self._streams.get((owner, stream), now)
        if self._size + len(message) > _BYTES_MAX:
            raise SessionsUnavailable(f"{_BYTES_MAX} bytes of streams are kept in memory; use `sessions: redis://…`")
        if found is None:
            self._make_room()
            found = _Stream()
        self._size += found.add(message)
        self._streams.put((owner, stream), found, now + ttl_s)
        _wake(found)
        return f"{found.last}-0"

    async def kept_after(self, owner: str, stream: str, number: str, wait_s: float) -> list[KeptEvent] | None:
        found, after = self._streams.get((owner, stream), self._clock()), number_of(number)
        if found is None or after is None:
            return None
        events = found.after(after[0])
        if events is None or events or wait_s <= 0:
            return events
        if self._waiters >= KEPT_WAITERS_MAX:
            raise SessionsUnavailable(f"{KEPT_WAITERS_MAX} readers of streams wait already; come back later")
        self._waiters += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await found.news.wait()
        finally:
            self._waiters -= 1
        return found.after(after[0])

    async def finish(self, owner: str, stream: str, ttl_s: float) -> None:
        now = self._clock()
        if (found := self._streams.get((owner, stream), now)) is not None:
            found.is_finished = True
            self._streams.put((owner, stream), found, now + ttl_s)
            _wake(found)

    def _sweep(self, now: float) -> None:
        """Events take room, so what has ended does not wait until the map is full."""
        if now >= self._swept_at + _SWEEP_EVERY_S:
            self._swept_at = now
            self._streams.sweep(now)
            self._size = sum(one.size for _, one in self._streams)


def _wake(stream: _Stream) -> None:
    """Whoever waits now; who comes later waits for the next."""
    stream.news.set()
    stream.news = asyncio.Event()
