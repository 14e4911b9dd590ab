"""One request to the MCP path and its reply: plain JSON, or a stream where its handler spoke before the answer.

Counterparts: `http_front.py` reads the request, `desk.py` serves it, `outlet.py` and `event_stream.py` are the stream.
"""

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tidegate.claims import Principal
from tidegate_edge.event_stream import EventStream, event
from tidegate_edge.inflight import ClientCancelled
from tidegate_edge.messages import INVALID_REQUEST, Reply, RequestId, error_body
from tidegate_edge.outlet import StreamOutlet
from tidegate_edge.room import Room

if TYPE_CHECKING:
    from tidegate_edge.http_front import McpProtocol

STREAM_KIND: Final = b"text/event-stream"
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_OK_JSON: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"


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
        "out",
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
        self.out: StreamOutlet | None = None

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

    def outlet(
        self, principal: Principal, session: str, version: str, request_id: RequestId | None = None
    ) -> StreamOutlet:
        """The way to the client before the answer; one per exchange. `session`: a legacy client's, "" without."""
        if self.out is None:
            self.out = self.protocol.outlets.make(EventStream(self), principal.tenant, session, version, request_id)
        return self.out

    async def run_asgi(self, _app: object) -> None:
        """Named for uvicorn, which starts a queued exchange by this."""
        try:
            if self.fault is not None:
                await self.protocol.refused(self, self.fault)
            reply = self.fault or await self.protocol.serve(self)
        except asyncio.CancelledError:
            self.protocol.transport.close()
            if self.out is not None:
                await self.out.abandon()
            raise
        except ClientCancelled:
            reply = Reply(202)
        except Exception:  # a fault of ours must cost one request, not the connection's task
            self.protocol.logger.exception("a request failed")
            reply = fault(500, "the gateway failed on this request; its log says more")
        if self.out is not None and self.out.stream.is_begun:
            await self.out.finish(reply)
        elif self.headers.get(b"accept", b"").startswith(STREAM_KIND) and self._streamed(reply):
            return
        else:
            self.send(reply)

    def _streamed(self, reply: Reply) -> bool:
        """Answer a client that names event streams first in such a one. False: this reply has to be plain."""
        stream = EventStream(self)
        if reply.status != 200 or not reply.body or reply.headers or not stream.begin():
            return False
        stream.write(event(reply.body))
        stream.end()
        return True

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


def fault(status: int, message: str) -> Reply:
    """A refusal after which the connection ends."""
    return Reply(status, error_body(None, INVALID_REQUEST, message), close=True)
