"""Pooled HTTP/1.1 client connections on httptools: one request at a time on each, bodies and event streams bounded.

Counterpart: `http.py` speaks MCP over it. Only what the hot path needs: POST, GET and DELETE, content-length and
chunked answers, TLS. Once a byte of a request may have left, a fault says so (`sent`): such a request is never sent
again.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import httptools
import msgspec

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.sse import EventReader

HEADERS_BYTES_MAX: Final = 64 * 1024
IDLE_S_MAX: Final = 4.0  # common servers close after 5 s of silence; a request must not meet that
SWEEP_S: Final = 0.25  # late exchanges are looked for together: a timer for each would cost as much as its parsing
STREAM_END_S: Final = 2.0  # how long an event stream may go on after the answer that it was opened for

IsWanted = Callable[[bytes], bool]


class Response(msgspec.Struct):
    """A whole answer. For an event stream `events` holds the data of each event, `body` is empty."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    events: list[bytes] | None = None


class Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._is_wanted: IsWanted | None = None  # the event that ends the wait before the stream's end
        self._end_by: asyncio.TimerHandle | None = None
        self._late_s = 0.0
        self.reusable = False
        self.idle_since_s = 0.0
        self._busy = False  # a request was sent, and its answer has not ended
        self._until_eof = False
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._body = bytearray()
        self._events: EventReader | None = None
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.reusable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._pool.forget(self)
        self._fail("the connection was lost before the answer came")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("the answer is not valid HTTP")
            self.close()

    def eof_received(self) -> None:
        if self._until_eof:
            self.on_message_complete()
        self.close()

    def on_message_begin(self) -> None:
        if not self._busy:  # nobody asked: whoever came next must not get this as an answer
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADERS_BYTES_MAX:
            self._fail("the answer's headers are too large")
            self.close()
            return
        self._headers[name.lower()] = value.strip(b" \t")

    def on_headers_complete(self) -> None:
        if self._headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            self._events = EventReader()
        if not self._parser.should_keep_alive():
            self.reusable = False
            self._until_eof = b"content-length" not in self._headers and b"transfer-encoding" not in self._headers

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._pool.body_bytes_max:
            self._fail(f"the answer is larger than {self._pool.body_bytes_max} bytes")
            self.close()
        elif self._events is None:
            self._body += body
        else:
            for event in self._events.feed(body):
                if self._waiter is not None and self._is_wanted is not None and self._is_wanted(event):
                    self._answer()
                    self._end_by = asyncio.get_running_loop().call_later(STREAM_END_S, self.close)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            self._reset()
            return
        self._answer()
        self._busy = self._until_eof = False
        if self._end_by is not None:
            self._end_by.cancel()
            self._end_by = None
        if self.reusable:
            self._reset()
            self._pool.give_back(self)
        else:
            self.close()

    def _answer(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            events = None if self._events is None else self._events.events
            waiter.set_result(Response(self._parser.get_status_code(), self._headers, bytes(self._body), events))

    def _fail(self, sentence: str, *, code: str = "upstream-broken") -> None:
        self.reusable = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(UpstreamFault(f"{self._pool.name}: {sentence}", code=code))

    async def exchange(self, request: bytes, is_wanted: IsWanted | None, timeout_s: float) -> Response:
        """Send and wait. Cancelled: the connection is closed, which a modern upstream takes as the cancellation."""
        assert self._transport is not None
        loop = self._pool.loop
        self._waiter = loop.create_future()
        self._busy = True
        self._is_wanted = is_wanted
        self._late_s = loop.time() + timeout_s
        self._transport.write(request)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self._waiter = None
            self.close()
            raise

    def end_if_late(self, now_s: float) -> bool:
        """Fail an exchange that is past its time; True while one goes on."""
        if self._waiter is None:
            return False
        if now_s < self._late_s:
            return True
        self._fail("no answer in time", code="upstream-timeout")
        self.close()
        return False

    def close(self) -> None:
        """Close now; whoever waits gets a fault through `connection_lost`."""
        self.reusable = False
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.close()


class Pool:
    """Connections to one origin, on the running loop. Bounded: past `connections_max` callers wait for one."""

    def __init__(
        self, name: str, url: str, *, connections_max: int, body_bytes_max: int, connect_timeout_s: float
    ) -> None:
        parts = urlsplit(url)
        self.name = name
        self.target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.authority = parts.netloc.rpartition("@")[2]
        self.body_bytes_max = body_bytes_max
        self._host = parts.hostname or "localhost"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self.loop = asyncio.get_running_loop()
        self._sweep: asyncio.TimerHandle | None = None
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._places = asyncio.Semaphore(connections_max)

    async def send(self, head: bytes, body: bytes, *, is_wanted: IsWanted | None = None, timeout_s: float) -> Response:
        """One exchange: `head` is the request line and headers up to content-length, which is added. Raises
        UpstreamFault.
        """
        request = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        if self._places.locked():
            await self._wait_for_place(timeout_s)
        async with self._places:
            connection = await self._connection()
            if self._sweep is None:
                self._sweep = self.loop.call_later(SWEEP_S, self._end_late)
            return await connection.exchange(request, is_wanted, timeout_s)

    async def _wait_for_place(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        except TimeoutError as error:
            raise UpstreamFault(
                f"{self.name}: all connections were in use for {timeout_s:g} s (limits.upstream_connections_max)",
                code="upstream-busy",
                sent=False,
            ) from error
        self._places.release()

    async def _connection(self) -> Connection:
        loop = self.loop
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and loop.time() - connection.idle_since_s < IDLE_S_MAX:
                return connection
            connection.close()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self),
                    self._host,
                    self._port,
                    ssl=self._ssl,
                    server_hostname=self._host if self._ssl else None,
                )
        except (OSError, TimeoutError) as error:
            reason = str(error) or "timed out"
            raise UpstreamFault(
                f"{self.name}: cannot connect to {self._host}:{self._port} ({reason})",
                code="upstream-unreachable",
                sent=False,
            ) from error
        self._open.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """The exchange is over and the connection may serve another."""
        connection.idle_since_s = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is closed or must not be used again."""
        self._open.discard(connection)

    def _end_late(self) -> None:
        now_s = self.loop.time()
        busy = [connection.end_if_late(now_s) for connection in list(self._open)]
        self._sweep = self.loop.call_later(SWEEP_S, self._end_late) if any(busy) else None

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._open):
            connection.close()
        self._idle.clear()
