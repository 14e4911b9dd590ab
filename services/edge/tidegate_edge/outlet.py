"""What a request's handler may say before its answer: notifications and questions, as events of the answer's stream.

The first message opens the stream; with none, the answer stays plain JSON. A stream of a 2025-11-25 session is
resumable: each event is kept before it is written, so that no client ever holds an id that nothing follows, and its
number is the store's. That costs one round trip per streamed event and nothing to answers that do not stream.
Counterparts: `event_stream.py` (the wire), `streams.py` (what was kept, fetched by GET and Last-Event-ID at any edge).
"""

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import msgspec

from tidegate.errors import Fault
from tidegate.limits import OUTLET_BYTES_MAX, OUTLET_MESSAGES_MAX
from tidegate.sessions.port import KeptStreams
from tidegate_edge.event_stream import EventStream, event
from tidegate_edge.messages import INTERNAL_ERROR, Reply, RequestId, encode, error_body

RESUMABLE_VERSIONS: Final = frozenset({"2025-11-25"})
"""Earlier clients take the priming event's empty data for a message that is not JSON."""
OPENS_AFTER_S: Final = 5.0
RETRY_MS: Final = 1_000
PRIMING: Final = b"\x00"  # kept for the priming event, and then the request's id; no message begins so
ANSWER_LOST: Final = "The gateway stopped before the call ended; whether it was carried out is in its records."
_EVENT_ID: Final = re.compile(r"([A-Za-z0-9]{1,32}_[A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{1,64})")


_decode_id: Final[Callable[[bytes], RequestId | None]] = msgspec.json.Decoder(int | str | None).decode


class Outlet(Protocol):
    """The way to a client while its request is under way."""

    @property
    def resumable(self) -> bool:
        """Events are kept, and may be fetched at any edge after a disconnect."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether what is sent may still reach the client."""
        ...

    def send(self, message: bytes) -> None:
        """One JSON-RPC message. Never blocks; what cannot arrive any more is dropped."""
        ...

    def rest(self, retry_ms: int) -> None:
        """End the client's HTTP answer and go on keeping events, which it comes back for. Nothing if not resumable."""
        ...


class StreamOutlet:
    """The outlet of an exchange: not resumable, so an event goes to the wire at once."""

    __slots__ = ("stream",)
    resumable = False

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream

    @property
    def is_open(self) -> bool:
        return self.stream.is_connected

    def open(self) -> None:
        """Begin the stream before there is something to say."""
        self.stream.begin()

    def send(self, message: bytes) -> None:
        self.open()
        self.stream.write(event(message))

    def put(self, event_id: str, message: bytes) -> None:
        """An event that was kept, under its own id."""
        self.stream.write(event(message, event_id))

    def rest(self, retry_ms: int) -> None: ...

    async def finish(self, reply: Reply) -> None:
        """The stream, once begun, ends with this as its last event; whatever the status, which went with the head."""
        if reply.body:
            self.stream.write(event(reply.body))
        self.stream.end()

    async def abandon(self) -> None:
        """The handler was cancelled: no answer will come."""

    def tick(self, now_s: float) -> None:
        """About once a second while the exchange is under way."""
        self.stream.tick(now_s)


class Rest(NamedTuple):
    """In the queue: the client's HTTP answer ends here."""

    retry_ms: int


class ResumableOutlet(StreamOutlet):
    """Events go through a bounded queue to the store and, once kept, to the wire. One writer: order holds."""

    __slots__ = (
        "_keeping",
        "_kept",
        "_name",
        "_opened",
        "_owner",
        "_request_id",
        "_ttl_s",
        "_waiting",
        "_waiting_bytes",
        "_writer",
    )
    resumable = True

    def __init__(
        self,
        stream: EventStream,
        kept: KeptStreams,
        name: str,
        owner: str,
        ttl_s: float,
        request_id: RequestId | None,
    ) -> None:
        super().__init__(stream)
        self._kept = kept
        self._owner = owner
        self._ttl_s = ttl_s
        self._request_id = request_id
        self._name = name
        self._waiting: deque[bytes | Rest] = deque()
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._opened = False
        self._keeping = True

    @property
    def is_open(self) -> bool:
        return self.stream.is_connected or (self._opened and self._keeping)

    def open(self) -> None:
        if not self._opened and self.stream.begin():
            self._opened = True
            self._enqueue(PRIMING + encode(self._request_id))

    def send(self, message: bytes) -> None:
        self.open()
        full = len(self._waiting) >= OUTLET_MESSAGES_MAX or self._waiting_bytes > OUTLET_BYTES_MAX
        if self._opened and not full:
            self._enqueue(message)

    def rest(self, retry_ms: int) -> None:
        self.open()
        if self._opened:
            self._enqueue(Rest(retry_ms))

    def tick(self, now_s: float) -> None:
        if not self._opened and self.stream.age_s(now_s) > OPENS_AFTER_S:
            self.open()
        super().tick(now_s)

    async def finish(self, reply: Reply) -> None:
        if reply.body:
            self._enqueue(reply.body)
        if self._writer is not None:
            await self._writer
        await self._end_kept()
        self.stream.end()

    async def abandon(self) -> None:
        """Whoever comes back for the answer is told that none will come."""
        if self._opened and self._request_id is not None:
            await self.finish(Reply(200, error_body(self._request_id, INTERNAL_ERROR, ANSWER_LOST)))

    def _enqueue(self, item: bytes | Rest) -> None:
        self._waiting.append(item)
        self._waiting_bytes += len(item) if isinstance(item, bytes) else 0
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="write a resumable stream")

    async def _write(self) -> None:
        while self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, Rest):
                self.stream.write(b"retry: %d\n\n" % item.retry_ms)
                self.stream.end()
                continue
            self._waiting_bytes -= len(item)
            number = await self._keep(item)
            event_id = event_id_of(self._name, number) if number else ""
            if not is_priming(item):
                self.stream.write(event(item, event_id))
            elif event_id:  # 2025-11-25 basic/transports: an id with empty data primes the client to come back
                self.stream.write(b"retry: %d\n%b" % (RETRY_MS, event(b"", event_id)))

    async def _keep(self, message: bytes) -> str:
        """The event's number; "" where the store is away: from then on the stream is not resumable, or there would be
        a gap that nobody sees.
        """
        if self._keeping:
            try:
                return await self._kept.keep(self._owner, self._name, message, self._ttl_s)
            except Fault:
                self._keeping = False
        return ""

    async def _end_kept(self) -> None:
        try:
            await self._kept.finish(self._owner, self._name, self._ttl_s)
        except Fault:  # what is kept ends by its time to live
            self._keeping = False


class Outlets:
    """Makes the outlet that a client's revision and session allow. `address` is this edge's on the bus."""

    def __init__(self, kept: KeptStreams | None = None, ttl_s: float = 0.0, address: str = "edge") -> None:
        self._kept = kept
        self._ttl_s = ttl_s
        self._address = address

    def make(
        self, stream: EventStream, tenant: str, session: str, version: str, request_id: RequestId | None
    ) -> StreamOutlet:
        if self._kept is None or not session or version not in RESUMABLE_VERSIONS:
            return StreamOutlet(stream)
        # Nobody can guess the name, and only its owner could use it. It says which edge the rest will come from.
        name = f"{self._address}_{secrets.token_urlsafe(16)}"
        return ResumableOutlet(stream, self._kept, name, owner_of(tenant, session), self._ttl_s, request_id)


def owner_of(tenant: str, session: str) -> str:
    """To whom the kept streams of a session belong."""
    return f"{tenant}|{session}"


def edge_of(stream: str) -> str:
    """The bus address of the edge that a stream is filled by."""
    return stream.partition("_")[0]


def is_priming(message: bytes) -> bool:
    """A kept event that is no message."""
    return message[:1] == PRIMING


def primed_for(message: bytes) -> RequestId | None:
    """The id of the request that a priming event was kept for."""
    return _decode_id(message[1:])


def event_id_of(stream: str, number: str) -> str:
    """As the client sees it, and sends it in Last-Event-ID."""
    return f"{stream}.{number}"


def read_event_id(given: str) -> tuple[str, str] | None:
    """(stream, number) of an id that an outlet may have sent; None where it cannot be one."""
    found = _EVENT_ID.fullmatch(given)
    return (found[1], found[2]) if found else None
