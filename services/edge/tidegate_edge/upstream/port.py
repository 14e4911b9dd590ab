"""An upstream MCP server as the spine sees it. Adapters: `http.py` (streamable HTTP of either era), `http_sse.py` (the
older HTTP+SSE), `stdio.py` (a process), `stdio_eras.py` (two, of a server that speaks both eras), `owned.py` (a process
that another edge may own).
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from tidegate_edge.messages import METHOD_NOT_FOUND, RpcError, encode

ListKind = Literal["tools", "prompts", "resources", "templates"]
NO_CAPABILITIES = b"{}"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
"""What `listen` tells its talk whenever the server is heard: at first, and after each interruption."""


class Caller(msgspec.Struct, frozen=True):
    """For whom an upstream is called: upstream sessions are kept apart by every field."""

    tenant: str
    subject_id: str
    agent: str
    session: str = ""  # a legacy client's protocol session: its upstream sessions are its own. "": shared by its calls
    capabilities: bytes = NO_CAPABILITIES  # what the client can be asked for, as declared upstream; canonical JSON


class Answer(msgspec.Struct, frozen=True):
    """A JSON-RPC response's content, bytes as the peer sent them. One of `result` and `error` is not empty."""

    result: bytes = b""
    error: bytes = b""


class Asked(msgspec.Struct, frozen=True):
    """What a server asks of the client before it answers: sampling/createMessage, elicitation/create, roots/list."""

    method: str
    params: bytes


class Paused(msgspec.Struct, frozen=True):
    """The server waits for answers. `ticket` is all that `resume` needs."""

    asked: dict[str, Asked]  # by a key of the adapter's own
    ticket: bytes
    edge: str = ""  # the bus address of the edge that holds the server's stream; "": any edge may resume


class Routing(msgspec.Struct, frozen=True):
    """What a modern upstream wants in headers: the name as Mcp-Name carries it, and Mcp-Param-* lines (each ending in
    CRLF).
    """

    name: str = ""
    param_headers: bytes = b""


NO_ROUTING = Routing()


class Outgoing(msgspec.Struct, frozen=True):
    """One request to an upstream; `params` is a JSON object in the era named."""

    method: str
    params: bytes
    caller: Caller
    modern: bool
    timeout_s: float
    routing: Routing = NO_ROUTING
    progress_token: str = ""  # the one in params._meta, unique over all edges; "" without
    log_level: str = ""  # a legacy server's session must be at least as verbose; "": as it is


class Talk(Protocol):
    """The client's side of a request under way, called on the loop in the order of what is heard."""

    @property
    def pausable(self) -> bool:
        """True: return `Paused` when the server asks for something. False: call `asked` and go on."""
        ...

    def notified(self, method: str, params: bytes) -> None:
        """A notification on the request's stream (progress, message, list changes …). Must not block."""
        ...

    async def asked(self, method: str, params: bytes) -> Answer:
        """The client's answer to a server's request; an error where it cannot be asked."""
        ...

    def rested(self, retry_ms: int) -> None:
        """The server has let go of the stream mid-call (2025-11-25 polling); the adapter resumes it by itself."""
        ...


class Silence:
    """The talk of requests that the gateway makes for itself: nobody can be asked."""

    pausable = False

    def notified(self, method: str, params: bytes) -> None: ...

    async def asked(self, method: str, params: bytes) -> Answer:
        return Answer(error=encode(RpcError(METHOD_NOT_FOUND, "the client declared no such capability")))

    def rested(self, retry_ms: int) -> None: ...


SILENCE = Silence()


class Wanted(msgspec.Struct, frozen=True):
    """What a listener wants to hear outside of requests."""

    tools: bool = False
    prompts: bool = False
    resources: bool = False
    uris: tuple[str, ...] = ()  # resources whose updates are wanted, as the upstream names them


class Definitions(msgspec.Struct, frozen=True):
    """What a server offers, byte for byte, and what it says of itself."""

    tools: tuple[bytes, ...] = ()
    prompts: tuple[bytes, ...] = ()
    resources: tuple[bytes, ...] = ()
    templates: tuple[bytes, ...] = ()
    capabilities: bytes = b"{}"
    server_info: bytes = b"null"
    instructions: str = ""
    partial: Mapping[ListKind, str] = {}  # why a list is not whole; then nothing of it may be taken as withdrawn


class Upstream(Protocol):
    """One configured server. Raises UpstreamFault, whose `sent` says whether a byte may have reached the server."""

    name: str

    async def start(self) -> None: ...

    def known_era(self, client_modern: bool) -> bool | None:
        """`era` without asking; None where it must be asked for. For the hot path."""
        ...

    async def era(self, client_modern: bool, timeout_s: float) -> bool:
        """Whether requests of clients of this era are sent in revision 2026-07-28: mirrored where both are spoken."""
        ...

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        """One request. Cancelling it tells the upstream so. `Paused` only where `talk.pausable`."""
        ...

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        """Go on with a paused request. A ticket that holds no more raises UpstreamFault code `upstream-pause-ended`."""
        ...

    async def notify(self, method: str, params: bytes, caller: Caller) -> None:
        """A client's notification, to the legacy session that stands for this caller; nothing where there is none."""
        ...

    async def listen(self, wanted: Wanted, caller: Caller, modern: bool, talk: Talk) -> None:
        """Hear what the server says outside of requests, until cancelled. Connects again by itself, with back-off.

        Modern: `subscriptions/listen`. Legacy: the GET stream of the caller's session (opened if need be), after
        resources/subscribe for each of `uris`. Returns where the server offers nothing of the kind.
        """
        ...

    async def end(self, caller: Caller) -> None:
        """The caller's session is over: end what it holds upstream. Best effort, bounded."""
        ...

    async def definitions(self, timeout_s: float) -> Definitions:
        """All pages of all lists that the server offers, under the gateway's own identity."""
        ...

    async def close(self) -> None: ...
