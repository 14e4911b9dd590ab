"""Messages between edges over Redis' channels. Part of `redis.py`; counterpart `memory_bus.py`.

One task sends, so that messages keep their order; what waits meanwhile goes out in one exchange. On the wire stands
"<sender> <number>\\n<message>": numbers grow, so that what a broken connection made us send twice is taken once.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from tidegate.limits import BUS_OUTBOX_BYTES_MAX, BUS_OUTBOX_MAX
from tidegate.sessions.hearing import Hearing
from tidegate.sessions.port import SessionsUnavailable
from tidegate.sessions.redis_link import Link
from tidegate.sessions.takers import Takers, check_message

_ADDRESS: Final = re.compile(r"[0-9a-f]{32}")
_SENDERS_MAX: Final = 1_000  # edges whose last number is remembered
_DIGITS_MAX: Final = 18
_SENT_AT_ONCE_MAX: Final = 64
_SENT_AT_ONCE_BYTES: Final = 1024 * 1024  # and one message more


class _Letter(NamedTuple):
    channel: str
    body: bytes
    receivers: "asyncio.Future[int]"


class RedisBus:
    def __init__(self, link: Link, hearing: Hearing, channels: str) -> None:
        self._link, self._channels = link, channels
        self.address = hearing.instance
        self._takers = Takers()
        self._outbox: asyncio.Queue[_Letter] = asyncio.Queue(BUS_OUTBOX_MAX)
        self._outbox_bytes = 0
        self._number = 0
        self._heard: dict[bytes, int] = {}
        self._task: asyncio.Task[None] | None = None
        hearing.hear(f"{channels}all", self._take)
        hearing.hear(f"{channels}{self.address}", self._take)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._send_all(), name="sessions-bus")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        while not self._outbox.empty():
            _fail([self._outbox.get_nowait()], "this edge stops")

    async def post(self, address: str, message: bytes) -> bool:
        check_message(message)
        if address == self.address:
            asyncio.get_running_loop().call_soon(self._takers.take, message)
            return True
        if _ADDRESS.fullmatch(address) is None:
            return False  # it may have come back from a client
        return await self._send(address, message) > 0

    async def tell_all(self, message: bytes) -> None:
        check_message(message)
        await self._send("all", message)

    def on_message(self, kind: str, take: Callable[[bytes], None]) -> None:
        self._takers.on_message(kind, take)

    async def _send(self, to: str, message: bytes) -> int:
        self._number += 1
        body = b"%b %d\n%b" % (self.address.encode(), self._number, message)
        letter = _Letter(self._channels + to, body, asyncio.get_running_loop().create_future())
        if self._outbox.full() or self._outbox_bytes + len(body) > BUS_OUTBOX_BYTES_MAX:
            raise SessionsUnavailable(f"{self._outbox.qsize()} messages to other edges wait already; is Redis slow?")
        self._outbox.put_nowait(letter)
        self._outbox_bytes += len(body)
        async with self._link.asked():
            return await letter.receivers

    async def _send_all(self) -> None:
        while True:
            letters = [await self._outbox.get()]
            size = len(letters[0].body)
            while len(letters) < _SENT_AT_ONCE_MAX and size < _SENT_AT_ONCE_BYTES and not self._outbox.empty():
                letters.append(self._outbox.get_nowait())
                size += len(letters[-1].body)
            self._outbox_bytes -= size
            wanted = [letter for letter in letters if not letter.receivers.done()]
            if wanted:
                await self._exchange(wanted)

    async def _exchange(self, letters: list[_Letter]) -> None:
        try:
            async with self._link.asked():
                pipeline = self._link.redis.pipeline(transaction=False)
                for letter in letters:
                    pipeline.publish(letter.channel, letter.body)
                receivers = await pipeline.execute()
        except SessionsUnavailable as error:
            _fail(letters, error.sentence)
            return
        except asyncio.CancelledError:
            _fail(letters, "this edge stops")
            raise
        for letter, count in zip(letters, receivers, strict=True):
            if not letter.receivers.done():
                letter.receivers.set_result(int(count))

    def _take(self, body: bytes) -> None:
        head, _, message = body.partition(b"\n")
        sender, _, digits = head.partition(b" ")
        if sender == self.address.encode():
            return
        if not digits.isdigit() or len(digits) > _DIGITS_MAX:
            return
        last, number = self._heard.pop(sender, 0), int(digits)
        while len(self._heard) >= _SENDERS_MAX:
            del self._heard[next(iter(self._heard))]
        self._heard[sender] = max(last, number)
        if number > last:
            self._takers.take(message)


def _fail(letters: list[_Letter], sentence: str) -> None:
    for letter in letters:
        if not letter.receivers.done():
            letter.receivers.set_exception(SessionsUnavailable(sentence))
