"""The front door: uvicorn's httptools protocol, with the MCP path answered here and every other request handed to ASGI.

An `Exchange` (`exchange.py`) stands where uvicorn expects its request/response cycle, so that pipelining, keep-alive
and the drain at shutdown are uvicorn's own: `shutdown()` closes idle connections and lets a running exchange finish;
streams without an end of their own are told by `draining`. Limits on headers, body and time are ours. Written against
uvicorn 0.54 (pinned to its minor version).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tidegate.limits import HEADERS_BYTES_MAX, HEADERS_COUNT_MAX, Limits
from tidegate_edge.accept import PARAM_HEADER, SINGLE_HEADERS
from tidegate_edge.addresses import FORWARDING
from tidegate_edge.exchange import Exchange as Exchange
from tidegate_edge.exchange import fault
from tidegate_edge.messages import Reply
from tidegate_edge.outlet import Outlets
from tidegate_edge.room import UNCOUNTED_BYTES, Rooms

LINGER_S: Final = 1.0
_MCP_PATHS: Final = (b"/mcp/", b"/mcp?")
_OWS: Final = (b" ", b"\t")


Serve = Callable[[Exchange], Awaitable[Reply]]
Knows = Callable[[Exchange], bool]
"""Whether the exchange's token was verified before; no more than a look-up."""
Refused = Callable[[Exchange, Reply], Awaitable[None]]
"""Told what the protocol itself refuses."""


async def _told_nobody(exchange: Exchange, reply: Reply) -> None: ...


class _Ended(Exception):
    """Raised in a parser's callback: nothing more is read on this connection."""


class McpProtocol(HttpToolsProtocol):
    """Bind `serve` and `limits` by subclassing (see `protocol_class`): uvicorn constructs this class itself."""

    serve: Serve
    knows: Knows
    refused: Refused
    rooms: Rooms
    outlets: Outlets
    draining: asyncio.Event
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
                    exchange.fault = fault(400, f"the header {name.decode('latin-1')} is given twice")
                seen.add(name)
            for name in FORWARDING:  # each proxy may have added a line of its own: together they are one list
                if name in seen:
                    headers[name] = b", ".join(value for key, value in pairs if key == name)
        length = headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self.limits.body_bytes_max):
            exchange.fault = fault(413, f"the body is larger than {self.limits.body_bytes_max} bytes")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            exchange.fault = fault(415, "a body is taken as it is: send it without Content-Encoding")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            exchange.fault = fault(400, "no transfer coding but chunked is served")
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
            self._refuse(exchange, fault(413, f"the body is larger than {self.limits.body_bytes_max} bytes"))
        elif exchange.body_bytes > UNCOUNTED_BYTES and not exchange.hold(len(body)):
            self._refuse(exchange, fault(503, "too many large requests at once; try again shortly"))

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

    def shutdown(self) -> None:
        """Named for uvicorn, which calls it when the server is to end."""
        self.draining.set()
        super().shutdown()

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

    def tick(self, now_s: float) -> None:
        """Keep the stream under way alive, if there is one."""
        running = self._running
        if running is not None and running.out is not None and not running.response_complete:
            running.out.tick(now_s)

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
        self._refuse(exchange, fault(status, message))

    def _refuse(self, exchange: Exchange, reply: Reply) -> None:
        """Answer without waiting for the rest of the request, once what came before is answered."""
        self._ended = True
        self._began_s = 0.0
        exchange.parts.clear()
        exchange.let_go()
        exchange.fault, exchange.more_body = reply, False
        if not self.pipeline:
            self._start_asgi_task(exchange, self.app)

    def end(self) -> None:
        """Close when the peer has had time to read: closing over unread bytes would reset what was written."""
        self._ended = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def protocol_class(
    serve: Serve,
    knows: Knows,
    limits: Limits,
    rooms: Rooms | None = None,
    outlets: Outlets | None = None,
    draining: asyncio.Event | None = None,
    refused: Refused = _told_nobody,
) -> type[McpProtocol]:
    """The class to hand to uvicorn (`Config(http=…)`), bound to this edge. `draining` is set when the server ends."""
    bound = {
        "serve": staticmethod(serve),
        "knows": staticmethod(knows),
        "refused": staticmethod(refused),
        "limits": limits,
        "rooms": rooms or Rooms(),
        "outlets": outlets or Outlets(),
        "draining": draining or asyncio.Event(),
    }
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
            connection.tick(now_s)
