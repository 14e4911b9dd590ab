"""Hearing what other edges say: one subscription, kept alive by pings; above all, notices of ended sessions and the
acknowledgements of them.

Counterpart: `redis.py`. The rule: `is_sound` is True only while every notice published now would reach us. It turns
False at once when the connection breaks, and after `SILENCE_S` when nothing is heard, pings included. What was
cached before is dropped whenever it turns False, because notices may have been missed.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Literal

import msgspec
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_log = logging.getLogger(__name__)

PING_EVERY_S: Final = 0.5
SILENCE_S: Final = 2.0
_RETRY_EVERY_S: Final = 0.25
_ACKNOWLEDGEMENTS_MAX: Final = 10_000
_CONNECT_TIMEOUT_S: Final = 1.0

Kind = Literal["session", "upstream"]


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something is gone. `key` is its Redis key; who publishes a `nonce` wants an acknowledgement on `reply_to`."""

    v: int = 1
    kind: Kind
    key: str
    reply_to: str = ""
    nonce: str = ""


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True):
    nonce: str
    by: str


_notices = msgspec.json.Decoder(Notice)
_acknowledgements = msgspec.json.Decoder(Acknowledgement)

Publish = Callable[[str, bytes], Awaitable[int]]


def is_cancelled(since: int = 0) -> bool:
    """The current task has been asked to end, more than `since` times. To be checked after an exchange with Redis:
    before Python 3.12 `asyncio.wait_for`, which the client library sends with, may swallow a cancellation.
    """
    return cancellations() > since


def cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class Hearing:
    """`on_notice` is called for each notice before it is acknowledged, `on_loss` whenever notices may be missed, and
    `on_regained` when they are heard again.
    """

    def __init__(
        self,
        url: str,
        *,
        publish: Publish,
        on_notice: Callable[[Notice], None],
        on_loss: Callable[[], None],
        on_regained: Callable[[], None],
    ) -> None:
        self._connection_kwargs: dict[str, Any] = {**parse_url(url), "protocol": 2, "decode_responses": False}
        self._connection_class = self._connection_kwargs.pop("connection_class", Connection)
        database = self._connection_kwargs.get("db", 0)
        self.instance = uuid.uuid4().hex
        self.channel = f"tidegate|1|gone|{database}"
        self.reply_to = f"tidegate|1|heard|{database}|{self.instance}"
        self.channels = f"tidegate|1|{database}|"  # what the names of further channels begin with
        self._further: dict[str, Callable[[bytes], None]] = {}
        self._publish, self._on_notice, self._on_loss, self._on_regained = publish, on_notice, on_loss, on_regained
        self._subscribed = False
        self._heard_at = 0.0
        self._waiting: dict[str, _Waiting] = {}
        self._acknowledge: asyncio.Queue[tuple[str, str]] = asyncio.Queue(_ACKNOWLEDGEMENTS_MAX)
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def is_sound(self) -> bool:
        return self._subscribed and time.monotonic() - self._heard_at < SILENCE_S

    def hear(self, channel: str, take: Callable[[bytes], None]) -> None:
        """Hand over what comes on this channel, too. To be called before `start`; `take` must not raise or block."""
        self._further[channel] = take

    def acknowledge(self, reply_to: str, nonce: str) -> None:
        """Tell who waits `until` that its message has taken effect here."""
        with contextlib.suppress(asyncio.QueueFull):  # then its sender waits for its own deadline
            self._acknowledge.put_nowait((reply_to, nonce))

    def start(self) -> None:
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name="sessions-hearing")

    async def stop(self) -> None:
        if self._task is not None:
            self._stopping = True
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    @contextlib.contextmanager
    def expecting(self) -> "Iterator[_Waiting]":
        """A `_Waiting` whose nonce goes into a notice; acknowledgements count from before it is published."""
        waiting = _Waiting(uuid.uuid4().hex)
        self._waiting[waiting.nonce] = waiting
        try:
            yield waiting
        finally:
            del self._waiting[waiting.nonce]

    async def _run(self) -> None:
        reported = False
        while not self._stopping:  # not is_cancelled: a TaskGroup that failed leaves its mark there on Python 3.11
            try:
                connection = await self._subscribe()
                reported = False
                await self._hear(connection)
            except Exception as error:  # the loop of this process: whatever broke it, subscribe again
                if not reported:
                    cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                    _log.warning("sessions: notices are not heard, asking on each call: %r", cause)
                reported = True
            await asyncio.sleep(_RETRY_EVERY_S)

    async def _hear(self, connection: Any) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(connection), name="sessions-read")
                group.create_task(self._ping(connection), name="sessions-ping")
                group.create_task(self._acknowledge_all(), name="sessions-acknowledge")
        finally:
            self._lose()
            await connection.disconnect(nowait=True)

    def _lose(self) -> None:
        self._subscribed = False
        self._on_loss()

    async def _subscribe(self) -> Any:
        before = cancellations()
        connection = self._connection_class(
            **{
                "socket_connect_timeout": _CONNECT_TIMEOUT_S,
                "socket_timeout": SILENCE_S,
                **self._connection_kwargs,
                "retry": Retry(NoBackoff(), 0),  # never reconnect silently: what was missed meanwhile must be known
            }
        )
        try:
            await connection.connect()
            channels = [self.channel, self.reply_to, *self._further]
            await connection.send_command("SUBSCRIBE", *channels)
            for _ in channels:
                await connection.read_response(timeout=SILENCE_S)
            if is_cancelled(since=before):
                raise asyncio.CancelledError
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._heard_at = time.monotonic()
        self._subscribed = True
        self._on_regained()
        return connection

    async def _read(self, connection: Any) -> None:
        try:
            while not is_cancelled():
                reply = await connection.read_response(timeout=SILENCE_S)
                self._heard_at = time.monotonic()
                if reply[0] == b"message":
                    self._take(reply[1].decode(), reply[2])
        finally:
            self._lose()  # at once: the other tasks end a little later

    async def _ping(self, connection: Any) -> None:
        while not is_cancelled():
            await asyncio.sleep(PING_EVERY_S)
            await connection.send_command("PING", check_health=False)

    def _take(self, channel: str, body: bytes) -> None:
        if (take := self._further.get(channel)) is not None:
            take(body)
            return
        try:
            if channel == self.reply_to:
                acknowledgement = _acknowledgements.decode(body)
                if (waiting := self._waiting.get(acknowledgement.nonce)) is not None:
                    waiting.take(acknowledgement.by)
                return
            notice = _notices.decode(body)
        except msgspec.DecodeError:
            _log.warning("sessions: a notice of %d bytes cannot be read; everything cached is dropped", len(body))
            self._on_loss()
            return
        self._on_notice(notice)
        if notice.nonce:
            self.acknowledge(notice.reply_to, notice.nonce)

    async def _acknowledge_all(self) -> None:
        while not is_cancelled():
            reply_to, nonce = await self._acknowledge.get()
            body = msgspec.json.encode(Acknowledgement(nonce=nonce, by=self.instance))
            await self._publish(reply_to, body)


class _Waiting:
    """Who has acknowledged one notice."""

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self._by: set[str] = set()
        self._changed = asyncio.Event()

    def take(self, by: str) -> None:
        self._by.add(by)
        self._changed.set()

    async def until(self, receivers: int) -> None:
        """Returns when so many processes have acknowledged."""
        while len(self._by) < receivers:
            self._changed.clear()
            await self._changed.wait()
