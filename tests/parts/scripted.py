"""An MCP server over streamable HTTP that does what a test tells it to, good or bad. One asyncio server, loopback only.

It remembers every request (`seen`), headers included, so that a test can count what reached it. Counterpart:
`edge.py` puts a gateway before it.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

MODERN = "2026-07-28"
LEGACY = "2025-11-25"


def tool(name: str, **more: Any) -> dict[str, Any]:
    """A definition whose input is any object."""
    return {"name": name, "description": f"The tool {name}.", "inputSchema": {"type": "object"}, **more}


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    verb: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader

    @property
    def is_gone(self) -> bool:
        """The client has closed the connection."""
        return self.reader.at_eof()

    @property
    def message(self) -> Any:
        return json.loads(self.body) if self.body else {}

    @property
    def method(self) -> str:
        return str(self.message.get("method", "")) if self.verb == "POST" else self.verb

    @property
    def params(self) -> Any:
        return self.message.get("params", {})


Behaviour = Callable[["Scripted", Seen, asyncio.StreamWriter], Awaitable[None]]


def http(
    body: bytes | str | dict[str, Any] | list[Any], status: int = 200, headers: str = "", kind: str = "application/json"
) -> bytes:
    """An HTTP answer with a length."""
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{headers}content-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def result(seen: Seen, value: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": seen.message["id"], "result": value}


def text(words: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}]}


@dataclass
class Scripted:
    """A running server. `era`: modern, legacy (no session), sessions (legacy with Mcp-Session-Id)."""

    era: str = "modern"
    tools: list[dict[str, Any]] = field(default_factory=lambda: [tool("echo"), tool("note"), tool("secret-tool")])
    behaviours: dict[str, Behaviour] = field(default_factory=dict)  # by tool, or by method
    seen: list[Seen] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    url: str = ""
    connections: int = 0

    def calls(self, name: str = "") -> list[Seen]:
        """The tools/call requests that arrived, in order."""
        return [one for one in self.seen if one.method == "tools/call" and name in ("", one.params["name"])]

    def count(self, method: str) -> int:
        return sum(one.method == method for one in self.seen)

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.split("\r\n")
                pairs = [one.split(":", 1) for one in lines if one]
                headers = {name.strip().lower(): value.strip() for name, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                seen = Seen(line.split(" ")[0], headers, body, reader)
                self.seen.append(seen)
                await self.answer(seen, writer)
                await writer.drain()
                if writer.is_closing():
                    break
        writer.close()

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        name = seen.params.get("name", "") if seen.method == "tools/call" else ""
        behaviour = self.behaviours.get(name) or self.behaviours.get(seen.method)
        if behaviour is not None:
            await behaviour(self, seen, writer)
        else:
            self.well(seen, writer)

    def well(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        """Answer as the era has it."""
        modern = self.era == "modern"
        session = seen.headers.get("mcp-session-id", "")
        if seen.method == "DELETE":
            if session in self.sessions:
                self.sessions.remove(session)
            writer.write(http("", 200))
        elif seen.method == "server/discover" and modern:
            found = {"supportedVersions": [MODERN], "capabilities": {}, "resultType": "complete"}
            writer.write(http(result(seen, found)))
        elif seen.method == "initialize" and not modern:
            minted = ""
            if self.era == "sessions":
                self.sessions.append(f"upstream-session-{len(self.seen)}")
                minted = f"mcp-session-id: {self.sessions[-1]}\r\n"
            info = {"protocolVersion": LEGACY, "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
            writer.write(http(result(seen, info), headers=minted))
        elif self.era == "sessions" and session not in self.sessions:
            writer.write(http({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no session"}}, 404))
        elif "id" not in seen.message:
            writer.write(http("", 202))
        elif seen.method == "tools/list":
            writer.write(http(result(seen, {"tools": self.tools})))
        elif seen.method == "tools/call":
            told = text(json.dumps(seen.params.get("arguments", {}), sort_keys=True))
            writer.write(http(result(seen, told | ({"resultType": "complete"} if modern else {}))))
        else:
            refused = {"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": -32601, "message": "unknown"}}
            writer.write(http(refused, 404 if modern else 400))


@contextlib.asynccontextmanager
async def scripted(era: str = "modern", **more: Any) -> AsyncIterator[Scripted]:
    """Running until the block ends."""
    server = Scripted(era, **more)
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        await server.serve_one(reader, writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/mcp"
    try:
        yield server
    finally:
        listener.close()
        for writer in writers:
            writer.close()
