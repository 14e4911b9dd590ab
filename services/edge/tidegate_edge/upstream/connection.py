"""Pooled HTTP/1.1 client connections on httptools: one exchange at a time on each, bodies and events bounded.

Counterparts: `modern.py` and `legacy_call.py` speak MCP over it. Only what they need: POST, GET and DELETE,
content-length and chunked answers, event streams as they come, TLS. Once a byte of a request may have left, a fault
says so (`sent`): such a request is never sent again.
"""

import asyncio
import math
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import httptools
import msgspec

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.port import Answer
from tidegate_edge.upstream.sse import Event, EventReader

HEADERS_BYTES_MAX: Final = 64 * 1024
IDLE_S_MAX: Final = 4.0  # common servers close after 5 s of silence; a request must not meet that
SWEEP_S: Final = 0.25  # late exchanges are looked for together: a timer for each would cost as much as its parsing
STREAM_END_S: Final = 2.0  # how long an event stream may go on after the answer that it was opened for
FOREVER: Final = math.inf
_ALIVE_EVERY_S: Final = 30  # TCP asks a silent peer so often whether it is there, 3 times

Hear = Callable[[Event], Answer | None]
"""Called with each event of a stream as it comes; the answer ends the exchange. Must not raise."""


class Response(msgspec.Struct):
    """The end of an exchange: a body, or `answer` out of an event stream (None: the stream ended without it)."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    is_stream: bool = False
    answer: Answer | None = None


class Exchange:
    """One request under way. `wait` for its end; `let_go` of it, or cancel `wait`, to close its connection."""

    __slots__ = ("_connection", "_has_place", "_outcome", "_waiter", "hear", "late_s", "opened", "reader")

    def __init__(self, connection: "Connection", hear: Hear | None, late_s: float) -> None:
        self._connection = connection
        self._has_place = True
        self._outcome: Response | UpstreamFault | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.hear = hear
        self.late_s = late_s
        self.opened: Callable[[], None] | None = None  # called when an event stream begins
        self.reader: EventReader | None = None  # of the event stream, once there is one

    @property
    def has_ended(self) -> bool:
        return self._outcome is not None

    async def wait(self) -> Response | None:
        """The end, or None when interrupted; then wait again. Raises UpstreamFault."""
        if self._outcome is None:
            self._waiter = self._connection.pool.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.let_go()
                raise
            finally:
                self._waiter = None
        if isinstance(self._outcome, UpstreamFault):
            raise self._outcome
        return self._outcome

    def interrupt(self) -> None:
        """Wake whoever waits, without an end."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, outcome: Response | UpstreamFault) -> None:
        """The connection says how it ended."""
        if self._outcome is None:
            self._outcome = outcome
            self.give_place()
            self.interrupt()

    def fail(self, fault: UpstreamFault) -> None:
        """End it with a fault of the caller's making."""
        if self._outcome is None:
            self.end(fault)
            self._connection.close()

    def give_place(self) -> None:
        """Count no longer among the pool's calls."""
        if self._has_place:
            self._has_place = False
            self._connection.pool.places.release()

    def let_go(self) -> None:
        """Close the connection; which a modern upstream takes as the cancellation. Nobody waits any more."""
        if self._outcome is None:
            name = self._connection.pool.name
            self._outcome = UpstreamFault(f"{name}: the stream was let go", code="upstream-broken")
            self.give_place()
            self._connection.close()


class Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time."""

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None  # until it has ended
        self._end_by: asyncio.TimerHandle | None = None
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
        self._reader: EventReader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.reusable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if self._end_by is not None:
            self._end_by.cancel()
        self.pool.forget(self)
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
            self._reader = EventReader()
            if self._exchange is not None:
                self._exchange.reader = self._reader
                if self._exchange.opened is not None:
                    self._exchange.opened()
        if not self._parser.should_keep_alive():
            self.reusable = False
            self._until_eof = b"content-length" not in self._headers and b"transfer-encoding" not in self._headers

    def on_body(self, body: bytes) -> None:
        if self._reader is None:
            self._body += body
            if len(self._body) > self.pool.body_bytes_max:
                self._is_too_large()
            return
        for event in self._reader.feed(body):
            exchange = self._exchange
            if exchange is None:
                return
            if len(event.data) > self.pool.body_bytes_max:
                self._is_too_large()
                return
            answer = exchange.hear(event) if exchange.hear is not None else None
            if answer is not None:
                self._end(Response(self._parser.get_status_code(), self._headers, b"", True, answer))
                self._end_by = self.pool.loop.call_later(STREAM_END_S, self.close)
        if self._reader.held_bytes > self.pool.body_bytes_max:
            self._is_too_large()

    def _is_too_large(self) -> None:
        self._fail(f"the answer is larger than {self.pool.body_bytes_max} bytes")
        self.close()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            self._reset()
            return
        self._end(Response(status, self._headers, bytes(self._body), self._reader is not None))
        self._busy = self._until_eof = False
        if self._end_by is not None:
            self._end_by.cancel()
            self._end_by = None
        if self.reusable:
            self._reset()
            self.pool.give_back(self)
        else:
            self.close()

    def _end(self, outcome: Response | UpstreamFault) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(outcome)

    def _fail(self, sentence: str, *, code: str = "upstream-broken") -> None:
        self.reusable = False
        self._end(UpstreamFault(f"{self.pool.name}: {sentence}", code=code))

    def begin(self, request: bytes, hear: Hear | None, late_s: float) -> Exchange:
        """Send; the exchange holds one of the pool's places until its end."""
        assert self._transport is not None
        exchange = self._exchange = Exchange(self, hear, late_s)
        self._busy = True
        self._transport.write(request)
        return exchange

    def end_if_late(self, now_s: float) -> bool:
        """Fail an exchange that is past its time; True while one goes on that may come to be late."""
        if self._exchange is None:
            return False
        if now_s < self._exchange.late_s:
            return self._exchange.late_s != FOREVER
        self._fail("no answer in time", code="upstream-timeout")
        self.close()
        return False

    def close(self) -> None:
        """Close now; whoever waits gets a fault through `connection_lost`."""
        self.reusable = False
        self.pool.forget(self)
        if self._transport is not None:
            self._transport.close()


class Pool:
    """Connections to one origin, on the running loop. Bounded: past `connections_max` callers wait for one."""

    def __init__(
        self, name: str, url: str, *, connections_max: int, body_bytes_max: int, connect_timeout_s: float
    ) -> None:
        parts = urlsplit(url)
        self.name = name
        self.url = url
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
        self.places = asyncio.Semaphore(connections_max)

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def send(self, head: bytes, body: bytes, *, hear: Hear | None = None, timeout_s: float) -> Response:
        """One whole exchange. Raises UpstreamFault."""
        response = await (await self.begin(head, body, hear, self.loop.time() + timeout_s)).wait()
        assert response is not None
        return response

    async def begin(self, head: bytes, body: bytes, hear: Hear | None, late_s: float) -> Exchange:
        """Send: `head` is the request line and headers, content-length is added. Raises UpstreamFault, nothing sent.

        `late_s` is on the loop's clock. The exchange must be waited for or let go.
        """
        if self.places.locked():
            await self._wait_for_place(late_s)
        else:
            await self.places.acquire()
        try:
            connection = self._idle_connection() or await self._connect(late_s)
        except BaseException:
            self.places.release()
            raise
        if body or head.startswith(b"POST"):
            request = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        else:
            request = head + b"\r\n"
        if late_s != FOREVER:
            self.watch_the_time()
        return connection.begin(request, hear, late_s)

    def watch_the_time(self) -> None:
        """Look for what is late, or idle for too long; also after an exchange without a `late_s` was given one."""
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._end_late)

    async def _wait_for_place(self, late_s: float) -> None:
        began_s = self.loop.time()
        try:
            async with asyncio.timeout_at(None if late_s == FOREVER else late_s):
                await self.places.acquire()
        except TimeoutError as error:
            raise UpstreamFault(
                f"{self.name}: all connections were in use for {self.loop.time() - began_s:.3g} s "
                "(limits.upstream_connections_max)",
                code="upstream-busy",
                sent=False,
            ) from error

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and self.loop.time() - connection.idle_since_s < IDLE_S_MAX:
                return connection
            connection.close()
        return None

    async def _connect(self, late_s: float) -> Connection:
        try:
            async with asyncio.timeout_at(min(late_s, self.loop.time() + self._connect_timeout_s)):
                transport, connection = await self.loop.create_connection(
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
        _keep_asking(transport.get_extra_info("socket"))
        self._open.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """The exchange is over and the connection may serve another."""
        connection.idle_since_s = self.loop.time()
        self._idle.append(connection)
        self.watch_the_time()

    def forget(self, connection: Connection) -> None:
        """The connection is closed or must not be used again."""
        self._open.discard(connection)

    def _end_late(self) -> None:
        now_s = self.loop.time()
        busy = [connection.end_if_late(now_s) for connection in list(self._open)]
        while self._idle and now_s - self._idle[0].idle_since_s >= IDLE_S_MAX:  # the longest unused are at the left
            self._idle.popleft().close()
        self._sweep = self.loop.call_later(SWEEP_S, self._end_late) if any(busy) or self._idle else None

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._open):
            connection.close()
        self._idle.clear()


def _keep_asking(sock: socket.socket | None) -> None:
    """A peer that is gone without a word must not keep a stream without a deadline open."""
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", _ALIVE_EVERY_S), ("TCP_KEEPINTVL", _ALIVE_EVERY_S), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
