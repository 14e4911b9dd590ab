"""The front door: uvicorn's httptools protocol, with the MCP path answered here and every other request handed to ASGI.

An `Exchange` stands where uvicorn expects its request/response cycle, so that pipelining, keep-alive and the drain at
shutdown are uvicorn's own: `shutdown()` closes idle connections and lets a running exchange finish. Limits on headers,
body and time are ours. Counterpart: `spine.py` serves an exchange. Written against uvicorn 0.54 (pinned to its minor
version).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tidegate.limits import HEADERS_BYTES_MAX, HEADERS_COUNT_MAX, Limits
from tidegate_edge.accept import PARAM_HEADER, SINGLE_HEADERS
from tidegate_edge.messages import INVALID_REQUEST, Reply, error_body
from tidegate_edge.room import UNCOUNTED_BYTES, Room, Rooms

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_OK_JSON: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
LINGER_S: Final = 1.0
_MCP_PATHS: Final = (b"/mcp/", b"/mcp?")
_OWS: Final = (b" ", b"\t")


class Exchange:
    """One request to the MCP path and its reply. To uvicorn it looks like a RequestResponseCycle."""

    __slots__ = (
        "body_bytes",
        "cancel_on_disconnect",
        "client",
        "disconnected",
        "fault",
        "headers",
        "held",
        "keep_alive",
        "message_event",
        "method",
        "more_body",
        "parts",
        "path",
        "protocol",
        "response_complete",
        "room",
        "started_s",
        "task",
    )

    def __init__(self, protocol: "McpProtocol", method: bytes, path: bytes, keep_alive: bool) -> None:
        self.protocol = protocol
        self.method = method
        self.path = path
        self.keep_alive = keep_alive
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.body_bytes = 0
        self.room: Room | None = None  # that a large body is counted in
        self.held = 0
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self.cancel_on_disconnect = False
        self.fault: Reply | None = None
        self.message_event = protocol.idle_event
        self.client = protocol.client
        self.started_s = 0.0
        self.task: asyncio.Task[None] | None = None

    @property
    def body(self) -> bytes:
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    def hold(self, size: int) -> bool:
        """Count a large body. False where all rooms are taken."""
        if self.room is None:
            protocol = self.protocol
            self.room = protocol.rooms.callers if protocol.knows(self) else protocol.rooms.strangers
            size = self.body_bytes
        if not self.room.take(size):
            return False
        self.held += size
        return True

    def let_go(self) -> None:
        """The body is not held any more."""
        if self.room is not None:
            self.room.give_back(self.held)
            self.held = 0

    async def run_asgi(self, _app: object) -> None:
        """Named for uvicorn, which starts a queued exchange by this."""
        try:
            reply = self.fault or await self.protocol.serve(self)
        except asyncio.CancelledError:
            self.protocol.transport.close()
            raise
        except Exception:  # a fault of ours must cost one request, not the connection's task
            self.protocol.logger.exception("a request failed")
            reply = _fault(500, "the gateway failed on this request; its log says more")
        self.send(reply)

    def send(self, reply: Reply) -> None:
        """Write the reply; the exchange is over."""
        self.let_go()
        if self.disconnected or self.response_complete:
            self.response_complete = True
            return
        self.response_complete = True
        closing = reply.close or not self.keep_alive
        headers = reply.headers + (b"connection: close\r\n" if closing else b"")
        transport = self.protocol.transport
        if self.method == b"HEAD":
            transport.write(b"%bcontent-length: %d\r\n%b\r\n" % (_STATUS_LINES[reply.status], len(reply.body), headers))
        elif reply.status == 200:
            transport.write(_OK_JSON % (len(reply.body), headers, reply.body))
        else:
            kind = b"content-type: application/json\r\n" if reply.body else b""
            line = _STATUS_LINES[reply.status]
            transport.write(b"%b%bcontent-length: %d\r\n%b\r\n%b" % (line, kind, len(reply.body), headers, reply.body))
        if reply.close:
            self.protocol.end()
        elif closing:
            transport.close()
        self.protocol.on_response_complete()


Serve = Callable[[Exchange], Awaitable[Reply]]
Knows = Callable[[Exchange], bool]
"""Whether the exchange's token was verified before; no more than a look-up."""


class _Ended(Exception):
    """Raised in a parser's callback: nothing more is read on this connection."""


class McpProtocol(HttpToolsProtocol):
    """Bind `serve` and `limits` by subclassing (see `protocol_class`): uvicorn constructs this class itself."""

    serve: Serve
    knows: Knows
    rooms: Rooms
    limits: Limits
    idle_event: asyncio.Event

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.idle_event = asyncio.Event()
        self._header_bytes = 0
        self._began_s = 0.0  # when the request being read began; 0 between requests
        self._running: Exchange | None = None
        self._last = False  # the request being read is the last one
        self._ended = False  # nothing more is taken from this connection
        self._idle_since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began_s = time.monotonic()
        if len(self.connections) > self.limits.connections_max:
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in (self._running, self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if isinstance(cycle, Exchange):
                cycle.disconnected = True
                cycle.let_go()
                if cycle.task is not None and cycle.cancel_on_disconnect:
                    cycle.task.cancel()
        self.pipeline.clear()

    def on_message_begin(self) -> None:
        if self._last or self._ended:
            self._ended = True
            raise _Ended
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._header_bytes = 0
        self._began_s = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._header_bytes += len(url)
        if self._header_bytes > HEADERS_BYTES_MAX:
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if value[-1:] in _OWS:  # httptools keeps trailing white space, which is no part of the value (RFC 9110 §5.5)
            value = value.rstrip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADERS_BYTES_MAX or len(self.headers) > HEADERS_COUNT_MAX:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        self._refuse_unread(431, "headers too large")
        raise _Ended

    def on_headers_complete(self) -> None:
        if self._ended:
            raise _Ended
        if self.url[:1] != b"/":
            self._take_origin_form()
        path = self.url
        if path != b"/mcp" and not path.startswith(_MCP_PATHS):
            self._begin_asgi()
            super().on_headers_complete()
            return
        parser = self.parser
        http_version = parser.get_http_version()
        keep_alive = http_version != "1.0" and parser.should_keep_alive() and not parser.should_upgrade()
        exchange = Exchange(self, parser.get_method(), path, keep_alive)
        self._last = not keep_alive
        exchange.headers = self._read_headers(exchange)
        if self.expect_100_continue and exchange.fault is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        waiting = self.cycle is not None and not self.cycle.response_complete
        self.cycle, running = exchange, self.cycle  # type: ignore[assignment]
        if waiting:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
            exchange.message_event = running.message_event
        if exchange.fault is not None:
            self._refuse(exchange, exchange.fault)

    def _take_origin_form(self) -> None:
        """RFC 9112 §3.2.2: the authority of a target in absolute form counts, whatever Host says."""
        _, absolute, rest = self.url.partition(b"://")
        if absolute:
            authority, _, path = rest.partition(b"/")
            self.url = b"/" + path
            self.headers[:] = [(name, authority if name == b"host" else value) for name, value in self.headers]

    def _begin_asgi(self) -> None:
        """What uvicorn prepares at the beginning of every message, which the MCP path has no use for."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers

    def _read_headers(self, exchange: Exchange) -> dict[bytes, bytes]:
        pairs = self.headers
        headers = dict(pairs)
        if len(headers) != len(pairs):
            seen: set[bytes] = set()
            for name, _ in pairs:
                if name in seen and (name in SINGLE_HEADERS or name.startswith(PARAM_HEADER)):
                    exchange.fault = _fault(400, f"the header {name.decode('latin-1')} is given twice")
                seen.add(name)
        length = headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self.limits.body_bytes_max):
            exchange.fault = _fault(413, f"the body is larger than {self.limits.body_bytes_max} bytes")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            exchange.fault = _fault(415, "a body is taken as it is: send it without Content-Encoding")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            exchange.fault = _fault(400, "no transfer coding but chunked is served")
        return headers

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if not isinstance(exchange, Exchange):
            super().on_body(body)
            return
        if exchange.fault is not None or exchange.response_complete:
            return
        exchange.parts.append(body)
        exchange.body_bytes += len(body)
        if exchange.body_bytes > self.limits.body_bytes_max:
            exchange.parts.clear()
            self._refuse(exchange, _fault(413, f"the body is larger than {self.limits.body_bytes_max} bytes"))
        elif exchange.body_bytes > UNCOUNTED_BYTES and not exchange.hold(len(body)):
            self._refuse(exchange, _fault(503, "too many large requests at once; try again shortly"))

    def on_message_complete(self) -> None:
        self._began_s = 0.0
        exchange = self.cycle
        if not isinstance(exchange, Exchange):
            super().on_message_complete()
            return
        if not exchange.more_body:  # refused already
            return
        exchange.more_body = False
        exchange.started_s = time.monotonic()
        if not self.pipeline:
            self._start_asgi_task(exchange, self.app)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if not isinstance(cycle, Exchange):
            super()._start_asgi_task(cycle, app)
            return
        self._running = cycle
        if cycle.more_body:  # its turn came before its body: `on_message_complete` will start it
            self._began_s = time.monotonic()
            return
        task = self.loop.create_task(cycle.run_asgi(app))
        cycle.task = task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        """As uvicorn's, without a keep-alive timer for each response: the sweep closes idle connections."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._idle_since_s = time.monotonic()

    def is_idle(self, now_s: float) -> bool:
        """True when no request has come for longer than the keep-alive time."""
        resting = self._began_s == 0.0 and (self.cycle is None or self.cycle.response_complete)
        return resting and now_s - self._idle_since_s > self.limits.keep_alive_s

    def is_slow(self, now_s: float) -> bool:
        """True when the request being read has taken too long: headers, or headers and body."""
        if self._began_s == 0.0 or self.flow.read_paused:
            return False
        allowed = self.limits.header_timeout_s
        if isinstance(self.cycle, Exchange) and self.cycle.more_body:
            allowed += self.limits.body_timeout_s
        return now_s - self._began_s > allowed

    def refuse_slow(self) -> None:
        """Answer 408 and close."""
        self._refuse_unread(408, "the request took too long to arrive")

    def send_400_response(self, msg: str) -> None:
        """Named for uvicorn, which calls it where the parser fails."""
        self._refuse_unread(400, msg)

    def _refuse_unread(self, status: int, message: str) -> None:
        """Refuse the request being read, in its turn; nothing after it is read."""
        if self._ended:
            return
        before: Any = self.cycle
        if isinstance(before, Exchange) and before.more_body:
            exchange = before
        else:
            exchange = Exchange(self, b"", b"", False)
            self.cycle = exchange  # type: ignore[assignment]
            if before is not None and not before.response_complete:
                self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        self._refuse(exchange, _fault(status, message))

    def _refuse(self, exchange: Exchange, fault: Reply) -> None:
        """Answer without waiting for the rest of the request, once what came before is answered."""
        self._ended = True
        self._began_s = 0.0
        exchange.parts.clear()
        exchange.let_go()
        exchange.fault, exchange.more_body = fault, False
        if not self.pipeline:
            self._start_asgi_task(exchange, self.app)

    def end(self) -> None:
        """Close when the peer has had time to read: closing over unread bytes would reset what was written."""
        self._ended = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _fault(status: int, message: str) -> Reply:
    return Reply(status, error_body(None, INVALID_REQUEST, message), close=True)


def protocol_class(serve: Serve, knows: Knows, limits: Limits, rooms: Rooms | None = None) -> type[McpProtocol]:
    """The class to hand to uvicorn (`Config(http=…)`), bound to this edge."""
    bound = {"serve": staticmethod(serve), "knows": staticmethod(knows), "limits": limits, "rooms": rooms or Rooms()}
    return type("BoundMcpProtocol", (McpProtocol,), bound)


async def sweep_connections(connections: set[Any], every_s: float = 1.0) -> None:
    """One coarse look at all connections instead of timers for each: slow and idle ones end. Runs until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        now_s = time.monotonic()
        for connection in list(connections):
            if not isinstance(connection, McpProtocol):
                continue
            if connection.is_slow(now_s):
                connection.refuse_slow()
            elif connection.is_idle(now_s):
                connection.transport.close()
