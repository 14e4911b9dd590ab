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
    path: str = ""

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

    @property
    def answers(self) -> Any:
        """The id of the server's question that this answers; None: it is no answer."""
        is_answer = "result" in self.message or "error" in self.message
        return self.message.get("id") if is_answer else None

    @property
    def cursor(self) -> Any:
        return self.params.get("cursor")

    @property
    def last_event_id(self) -> str:
        return self.headers.get("last-event-id", "")


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


def refusal(seen: Seen, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": code, "message": message}}


def question(question_id: Any, method: str = "elicitation/create", **params: Any) -> dict[str, Any]:
    """A request of the server's own."""
    return {"jsonrpc": "2.0", "id": question_id, "method": method, "params": params or {"message": "well?"}}


def progress(done: int, token: str = "t") -> dict[str, Any]:
    params = {"progressToken": token, "progress": done}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


class Stream:
    """An answer as an event stream, on a connection that ends with it."""

    def __init__(self, writer: asyncio.StreamWriter, headers: str = "") -> None:
        self.writer = writer
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{headers}transfer-encoding: chunked\r\n\r\n"
        writer.write(head.encode())

    def raw(self, words: str) -> None:
        self.writer.write(f"{len(words.encode()):x}\r\n{words}\r\n".encode())

    async def send(self, message: Any, event_id: str = "", *, name: str = "", retry_ms: int | None = None) -> None:
        """One event; a message that is a string is sent as it is."""
        data = message if isinstance(message, str) else json.dumps(message)
        lines = [f"event: {name}"] if name else []
        lines += [f"id: {event_id}"] if event_id else []
        lines += [f"retry: {retry_ms}"] if retry_ms is not None else []
        self.raw("\n".join([*lines, f"data: {data}", "", ""]))
        await self.writer.drain()

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")


async def gone(seen: Seen) -> None:
    """Until the client has closed the connection."""
    while not seen.is_gone:
        await asyncio.sleep(0.01)


def text(words: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}]}


@dataclass
class Scripted:
    """A running server. `era`: modern, legacy (no session), sessions (legacy with Mcp-Session-Id)."""

    era: str = "modern"
    tools: list[dict[str, Any]] = field(default_factory=lambda: [tool("echo"), tool("note"), tool("secret-tool")])
    behaviours: dict[str, Behaviour] = field(default_factory=dict)  # by tool, by method, "" for all others
    seen: list[Seen] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    url: str = ""
    minted: int = 0
    connections: int = 0
    open_connections: int = 0
    refused: set[str] = field(default_factory=set)  # methods that are answered with an error
    capabilities: dict[str, Any] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_seen(self, fact: Callable[[Seen], bool], deadline_s: float = 5.0) -> Seen:
        """The first request, of all that ever came, of which this is true."""
        async with asyncio.timeout(deadline_s):
            while True:
                self.arrived.clear()
                for one in list(self.seen):
                    if fact(one):
                        return one
                await self.arrived.wait()

    async def answer_to(self, question_id: Any) -> Any:
        """What the client answered to a question of the server's, once it has."""
        seen = await self.until_seen(lambda one: one.verb == "POST" and one.answers == question_id)
        return seen.message

    def calls(self, name: str = "") -> list[Seen]:
        """The tools/call requests that arrived, in order."""
        return [one for one in self.seen if one.method == "tools/call" and name in ("", one.params["name"])]

    def count(self, method: str) -> int:
        return sum(one.method == method for one in self.seen)

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.split("\r\n")
                pairs = [one.split(":", 1) for one in lines if one]
                headers = {name.strip().lower(): value.strip() for name, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                seen = Seen(line.split(" ")[0], headers, body, reader, line.split(" ")[1])
                self.seen.append(seen)
                self.arrived.set()
                await self.answer(seen, writer)
                await writer.drain()
                if writer.is_closing():
                    break
        self.open_connections -= 1
        writer.close()

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        name = seen.params.get("name", "") if seen.method == "tools/call" else seen.method
        given = self.behaviours
        behaviour = given.get(name) or given.get(seen.method) or given.get("")
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
            found = {"supportedVersions": [MODERN], "capabilities": self.capabilities, "resultType": "complete"}
            writer.write(http(result(seen, found)))
        elif seen.method == "initialize" and not modern:
            minted = ""
            if self.era == "sessions":
                self.minted += 1
                self.sessions.append(f"upstream-session-{self.minted}")
                minted = f"mcp-session-id: {self.sessions[-1]}\r\n"
            about = {"serverInfo": {"name": "s", "version": "1"}, "capabilities": self.capabilities}
            info = {"protocolVersion": LEGACY, **about}
            writer.write(http(result(seen, info), headers=minted))
        elif self.era == "sessions" and session not in self.sessions:
            writer.write(http({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no session"}}, 404))
        elif seen.verb == "GET":
            writer.write(http("", 405))
        elif "id" not in seen.message or seen.answers is not None:
            writer.write(http("", 202))
        elif seen.method in self.refused:
            writer.write(http(refusal(seen, -32601, "refused")))
        elif seen.method in ("logging/setLevel", "resources/subscribe", "resources/unsubscribe", "ping"):
            writer.write(http(result(seen, {})))
        elif seen.method == "tools/list":
            writer.write(http(result(seen, {"tools": self.tools})))
        elif seen.method == "tools/call":
            told = text(json.dumps(seen.params.get("arguments", {}), sort_keys=True))
            writer.write(http(result(seen, told | ({"resultType": "complete"} if modern else {}))))
        else:
            writer.write(http(refusal(seen, -32601, "unknown"), 404 if modern else 400))


@contextlib.asynccontextmanager
async def scripted(era: str = "modern", port: int = 0, **more: Any) -> AsyncIterator[Scripted]:
    """Running until the block ends; at a port of its own, or where another was."""
    server = Scripted(era, **more)
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        await server.serve_one(reader, writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 20)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/mcp"
    try:
        yield server
    finally:
        listener.close()
        for writer in writers:
            writer.close()
