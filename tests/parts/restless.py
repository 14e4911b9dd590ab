"""A streamable HTTP server with a life of its own: sessions that it counts, streams to whoever listens, a list of tools
that changes, restarts that forget everything, misfortunes on request. It keeps books of each call that reached it.

`with restless("sessions") as server` runs it in a thread; `python -m tests.parts.restless sessions` in a process, which
prints {"url"} and tells its books at GET /books. Counterpart: scripted.py, which it is made of; federation.py.
"""

import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.parts.scripted import LEGACY, MODERN, Scripted, Seen, http, result, text, tool

DEADLINE_S: Final = 10.0
TOOLS: Final = ("echo", "note", "fail", "drip", "hold", "confirm", "secret-tool")
_SSE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n%b\r\n"
_END: Final = b"0\r\n\r\n"
_KINDS: Final = {"tools": "toolsListChanged", "prompts": "promptsListChanged", "resources": "resourcesListChanged"}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(message: Any) -> bytes:
    """One server-sent event, as a chunk."""
    return chunk(b"data: " + json.dumps(message).encode() + b"\n\n")


@dataclass
class Listening:
    """An open stream for what is said outside of requests; `wanted` is the filter of a modern one."""

    writer: asyncio.StreamWriter
    session: str = ""
    request_id: Any = None
    wanted: dict[str, Any] = field(default_factory=dict)


@dataclass
class Restless(Scripted):
    """`era`: modern, or sessions. Methods may be called from any thread while it runs."""

    tools: list[dict[str, Any]] = field(default_factory=lambda: [tool(name) for name in TOOLS])
    opened: int = 0  # sessions, since start
    came: list[tuple[str, str]] = field(default_factory=list)  # (nonce, session) of each tools/call
    streams: list[Listening] = field(default_factory=list)
    waiting: dict[str, "asyncio.Future[Any]"] = field(default_factory=dict)  # questions to clients
    released: asyncio.Event = field(default_factory=asyncio.Event)
    list_status: int = 200  # of tools/list; 200 is well
    status: int = 200  # of everything; 200 is well
    port: int = 0
    is_counting: bool = True  # whether `seen` grows
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _listener: asyncio.Server | None = None

    # ---- what a test says

    def nonces(self) -> list[str]:
        return [nonce for nonce, _ in self.came]

    def sessions_of(self, *nonces: str) -> set[str]:
        """In which sessions these calls came."""
        return {session for nonce, session in self.came if nonce in nonces}

    def change(self, *names: str) -> None:
        """From now on it has these tools, and says so to all that listen."""
        self._do(self._change(names))

    def forget(self) -> None:
        """As a restart does, without being away: no session is known any more."""
        self._do(self._forget())

    def stop(self) -> None:
        """The port refuses; connections end; sessions are forgotten."""
        self._do(self._stop())

    def start(self) -> None:
        """On the port it had."""
        self._do(self._start())

    def release(self) -> None:
        """All calls of `hold` go on."""
        self.loop.call_soon_threadsafe(self.released.set)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    # ---- its life

    async def _start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self.serve_one(reader, writer)
        finally:
            self._writers.discard(writer)

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._listener = None
        for writer in list(self._writers):
            writer.transport.abort()
        await self._forget()

    async def _forget(self) -> None:
        self.sessions.clear()
        for stream in self.streams:
            stream.writer.transport.abort()
        self.streams.clear()

    async def _change(self, names: tuple[str, ...]) -> None:
        self.tools = [tool(name) for name in names]
        await self.tell("tools")

    async def tell(self, kind: str) -> None:
        """`notifications/{kind}/list_changed` to all that want it."""
        for stream in self.streams:
            told: dict[str, Any] = {"jsonrpc": "2.0", "method": f"notifications/{kind}/list_changed"}
            if self.era == "modern":
                if not stream.wanted.get(_KINDS[kind]):
                    continue
                told["params"] = {"_meta": {"io.modelcontextprotocol/subscriptionId": stream.request_id}}
            stream.writer.write(event(told))

    # ---- what it answers

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if not self.is_counting:
            self.seen.clear()
        if seen.verb == "GET" and seen.headers.get("x-books"):
            writer.write(http(self.books()))
        elif self.status != 200:
            told = {"error": "invalid_token", "error_description": "no"}
            writer.write(http(told, self.status, 'www-authenticate: Bearer error="invalid_token"\r\n'))
        elif not await self._special(seen, writer):
            await super().answer(seen, writer)

    def books(self) -> dict[str, Any]:
        return {
            "came": self.came,
            "opened": self.opened,
            "sessions": len(self.sessions),
            "streams": len(self.streams),
            "connections": len(self._writers),
        }

    async def _special(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        """True: it has been answered."""
        session = seen.headers.get("mcp-session-id", "")
        is_known = self.era == "modern" or session in self.sessions
        if seen.verb == "GET" and is_known:
            await self._stream(seen, writer, Listening(writer, session))
        elif seen.method == "server/discover" and self.era == "modern":
            offer = {"tools": {"listChanged": True}}
            writer.write(http(result(seen, {"supportedVersions": [MODERN], "capabilities": offer, **_COMPLETE})))
        elif seen.method == "subscriptions/listen" and self.era == "modern":
            wanted = seen.params.get("notifications", {})
            await self._stream(seen, writer, Listening(writer, "", seen.message["id"], wanted))
        elif seen.method == "initialize" and self.era != "modern":
            self._open(seen, writer)
        elif seen.method == "tools/list" and is_known and self.list_status != 200:
            writer.write(http({"oops": True}, self.list_status))
        elif seen.method == "" and is_known and seen.message.get("id") in self.waiting:
            asked = self.waiting.pop(seen.message["id"])
            if not asked.done():  # else whoever asked has given up
                asked.set_result(seen.message)
            writer.write(http("", 202))
        elif seen.method == "tools/call" and is_known:
            return await self._called(seen, writer, session)
        else:
            return False
        return True

    def _open(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.sessions.append(f"upstream-{self.port}-{self.opened}")
        offer = {"tools": {"listChanged": True}, "logging": {}}
        info = {"protocolVersion": LEGACY, "capabilities": offer, "serverInfo": {"name": "restless", "version": "1"}}
        writer.write(http(result(seen, info), headers=f"mcp-session-id: {self.sessions[-1]}\r\n"))

    async def _stream(self, seen: Seen, writer: asyncio.StreamWriter, stream: Listening) -> None:
        writer.write(_SSE % b"")
        if self.era == "modern":
            meta = {"io.modelcontextprotocol/subscriptionId": stream.request_id}
            params = {"notifications": stream.wanted, "_meta": meta}
            told = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params}
            writer.write(event(told))
        self.streams.append(stream)
        try:
            await seen.reader.read(1)  # until the client leaves
        finally:
            if stream in self.streams:
                self.streams.remove(stream)
            writer.close()

    async def _called(self, seen: Seen, writer: asyncio.StreamWriter, session: str) -> bool:
        params = seen.params
        name, given = params["name"], params.get("arguments") or {}
        if not (self.era == "modern" and "inputResponses" in params):
            self.came.append((str(given.get("nonce", "")), session))
        done = self._done(text(json.dumps(given, sort_keys=True)))
        if name == "fail":
            writer.write(http(result(seen, self._done(text("It went wrong.") | {"isError": True}))))
        elif name == "drip":
            await self._drip(seen, writer, given, done)
        elif name == "hold":
            await _first_of(seen.reader, asyncio.ensure_future(self.released.wait()))
            writer.write(http(result(seen, done)))
        elif name == "confirm":
            await self._confirm(seen, writer, given)
        else:
            return False
        return True

    def _done(self, value: dict[str, Any]) -> dict[str, Any]:
        return {**value, **(_COMPLETE if self.era == "modern" else {})}

    async def _drip(self, seen: Seen, writer: asyncio.StreamWriter, given: Any, done: dict[str, Any]) -> None:
        """Progress, `times` times with `gap_s` between, then the answer: a stream that a client can leave."""
        writer.write(_SSE % b"")
        token = (seen.params.get("_meta") or {}).get("progressToken")
        for number in range(given.get("times", 3)):
            if token is not None:
                told = {"progressToken": token, "progress": number, "total": given.get("times", 3)}
                writer.write(event({"jsonrpc": "2.0", "method": "notifications/progress", "params": told}))
                await writer.drain()
            await asyncio.sleep(given.get("gap_s", 0.02))
        writer.write(event({"jsonrpc": "2.0", "id": seen.message["id"], "result": done}) + _END)

    async def _confirm(self, seen: Seen, writer: asyncio.StreamWriter, given: Any) -> None:
        """Asks the client's user before it does anything."""
        schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}}
        params = {"message": given.get("words", "Sure?"), "requestedSchema": schema}
        if self.era == "modern":
            said = seen.params.get("inputResponses")
            if said is None:
                asked = {"sure": {"method": "elicitation/create", "params": {**params, "mode": "form"}}}
                told = {"resultType": "input_required", "inputRequests": asked, "requestState": "kept by the client"}
                writer.write(http(result(seen, told)))
            else:
                told = text(json.dumps([said["sure"], seen.params.get("requestState")]))
                writer.write(http(result(seen, self._done(told))))
            return
        key = f"question-{self.port}-{len(self.came)}"
        self.waiting[key] = asyncio.get_running_loop().create_future()
        writer.write(_SSE % b"")
        writer.write(event({"jsonrpc": "2.0", "id": key, "method": "elicitation/create", "params": params}))
        await _first_of(seen.reader, self.waiting[key])
        answered = self.waiting.pop(key, None) is None
        said = "answered" if answered else "left"
        writer.write(event({"jsonrpc": "2.0", "id": seen.message["id"], "result": text(said)}) + _END)


_COMPLETE: Final = {"resultType": "complete"}


async def _first_of(reader: asyncio.StreamReader, fact: "asyncio.Future[Any]") -> None:
    """Until the fact, or the client has closed. A gateway sends one request at a time, so no byte is lost."""
    gone = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait((gone, fact), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        fact.cancel()
        await asyncio.wait((gone,))  # the reader is free again


@contextlib.contextmanager
def restless(era: str = "sessions", **more: Any) -> Iterator[Restless]:
    """Running until the block ends, in a thread of its own."""
    server = Restless(era, **more)
    thread = threading.Thread(target=server.loop.run_forever, name=f"restless {era}", daemon=True)
    thread.start()
    server.start()
    try:
        yield server
    finally:
        server.release()
        server.stop()
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(DEADLINE_S)
        _close(server.loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.close()


def main() -> None:
    """Until SIGTERM or SIGINT."""
    server = Restless(sys.argv[1], is_counting=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        server.loop.add_signal_handler(number, server.loop.stop)
    server.loop.run_until_complete(server._start())
    print(json.dumps({"url": server.url}), flush=True)
    server.loop.run_forever()
    server.loop.run_until_complete(server._stop())
    _close(server.loop)


if __name__ == "__main__":
    main()
