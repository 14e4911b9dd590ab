"""One exchange's answer as server-sent events (WHATWG HTML §9.2) over HTTP/1.1: what goes onto the wire, and how much
may wait there.

A reader that does not keep up is cut off: what waits for it never exceeds `STREAM_BUFFER_BYTES_MAX` and one event.
Counterpart: `outlet.py` decides what is sent.
"""

import time
from typing import TYPE_CHECKING, Final

from tidegate.limits import STREAM_BUFFER_BYTES_MAX

if TYPE_CHECKING:
    from tidegate_edge.exchange import Exchange

KEEP_ALIVE_S: Final = 15.0
STUCK_TICKS_MAX: Final = 2  # so many keep-alive times without a byte taken, and the reader is gone
COMMENT: Final = b":\n\n"
# X-Accel-Buffering: 2026-07-28 basic/transports/streamable-http; proxies would hold events back.
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)


def event(message: bytes, event_id: str = "") -> bytes:
    """A JSON text as one event. Line breaks in it are white space between tokens, and would end the field."""
    if b"\n" in message or b"\r" in message:
        message = message.replace(b"\r", b" ").replace(b"\n", b" ")
    if event_id:
        return b"id: %b\ndata: %b\n\n" % (event_id.encode(), message)
    return b"data: %b\n\n" % message


class EventStream:
    """Begun by the first `begin`, over with `end` or with the connection. Nothing here blocks or raises."""

    __slots__ = ("_chunked", "_exchange", "_last_s", "_stuck", "_unread", "is_begun", "is_ended")

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self._chunked = True
        self._last_s = 0.0
        self._stuck = 0
        self._unread = 0
        self.is_begun = False
        self.is_ended = False

    @property
    def is_connected(self) -> bool:
        """Whether what is written may still arrive."""
        return not (self.is_ended or self._exchange.disconnected or self._exchange.response_complete)

    def age_s(self, now_s: float) -> float:
        """Seconds since the request had arrived."""
        return now_s - self._exchange.started_s

    def begin(self) -> bool:
        """Write the head, once. False: there is nobody to stream to."""
        if self.is_begun:
            return True
        exchange = self._exchange
        if not self.is_connected or exchange.method == b"HEAD":
            return False
        self.is_begun = True
        self._chunked = exchange.keep_alive  # without: HTTP/1.0 or the last answer, ended by closing (RFC 9112 §6.3)
        framing = b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"connection: close\r\n\r\n"
        exchange.protocol.transport.write(_HEAD + framing)
        self._last_s = time.monotonic()
        return True

    def write(self, raw: bytes) -> None:
        """One whole event or comment."""
        if not self.is_begun or not self.is_connected:
            return
        transport = self._exchange.protocol.transport
        if transport.get_write_buffer_size() > STREAM_BUFFER_BYTES_MAX:
            self.cut()
            return
        transport.write(b"%x\r\n%b\r\n" % (len(raw), raw) if self._chunked else raw)
        self._last_s = time.monotonic()

    async def drained(self) -> None:
        """Wait until the reader has taken most of what was written. For what is sent faster than it came to be."""
        await self._exchange.protocol.flow.drain()

    def end(self) -> None:
        """The answer is whole; the connection serves on where it may."""
        if not self.is_begun or self.is_ended:
            return
        exchange, connected = self._exchange, self.is_connected
        self.is_ended = True
        exchange.let_go()
        exchange.response_complete = True
        if not connected:
            return
        protocol = exchange.protocol
        if self._chunked:
            protocol.transport.write(b"0\r\n\r\n")
        if not self._chunked or not exchange.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    def cut(self) -> None:
        """Give up on the reader: what waits for it is dropped with the connection."""
        self._exchange.protocol.transport.abort()

    def tick(self, now_s: float) -> None:
        """Called about every second: keep proxies from ending a silent stream, and notice a reader that is stuck."""
        if not self.is_begun or not self.is_connected or now_s - self._last_s < KEEP_ALIVE_S:
            return
        unread = self._exchange.protocol.transport.get_write_buffer_size()
        self._stuck = self._stuck + 1 if unread and unread >= self._unread else 0
        self._unread = unread
        if self._stuck >= STUCK_TICKS_MAX:
            self.cut()
            return
        self.write(COMMENT)
        self._unread = self._exchange.protocol.transport.get_write_buffer_size()
