"""An upstream MCP server as the spine sees it. Adapters: `http.py` (streamable HTTP of either era), `stdio.py` (a
process).
"""

from typing import Protocol

import msgspec


class Caller(msgspec.Struct, frozen=True):
    """For whom an upstream is called: upstream sessions are kept apart by it."""

    tenant: str
    subject_id: str
    agent: str


class Answer(msgspec.Struct, frozen=True):
    """A JSON-RPC response's content, bytes as the upstream sent them. One of `result` and `error` is not empty."""

    result: bytes = b""
    error: bytes = b""


class Routing(msgspec.Struct, frozen=True):
    """What a modern upstream wants in headers: the name as Mcp-Name carries it, and Mcp-Param-* lines (each ending in
    CRLF).
    """

    name: str = ""
    param_headers: bytes = b""


NO_ROUTING = Routing()


class Definitions(msgspec.Struct, frozen=True):
    """What a server offers: its tools' definitions, byte for byte, and what it says of itself."""

    tools: tuple[bytes, ...]
    server_info: bytes = b"null"
    instructions: str = ""
    partial: str = ""  # why not everything could be listed; then nothing may be taken as withdrawn


class Upstream(Protocol):
    """One configured server. Raises UpstreamFault, whose `sent` says whether a byte may have reached the server."""

    name: str

    @property
    def modern(self) -> bool:
        """Whether requests are spoken in revision 2026-07-28."""
        ...

    async def start(self) -> None: ...

    async def ready(self, timeout_s: float) -> None:
        """Returns once `modern` is known and a request can be sent; at once in the common case."""
        ...

    async def request(
        self, method: str, params: bytes, caller: Caller, *, routing: Routing, timeout_s: float
    ) -> Answer:
        """One request, after `ready`. `params` is a JSON object already in the upstream's era.

        Cancelling the call tells the upstream so.
        """
        ...

    async def definitions(self, timeout_s: float) -> Definitions:
        """All pages of the tools' list, under the gateway's own identity."""
        ...

    async def close(self) -> None: ...
