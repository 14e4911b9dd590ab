"""A scripted server that speaks outside of requests: a GET stream for each legacy session, or subscriptions/listen.

Tools `echo` and `slow` (which answers when `hold` is set), and resources of which updates can be told.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.parts.scripted import LEGACY, MODERN, Scripted, Seen, http, result, scripted, text, tool

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TAG = "io.modelcontextprotocol/subscriptionId"
CAPABILITIES = {
    "tools": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "logging": {},
}
COMPLETE = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}


class Radio(Scripted):
    """`listening`: open GET streams by session. `filters`: what each open subscription wants, as JSON text."""

    def begin(self) -> None:
        self.listening: dict[str, asyncio.StreamWriter] = {}
        self.filters: dict[str, tuple[Any, asyncio.StreamWriter]] = {}
        self.subscribed: set[str] = set()
        self.answers: list[Any] = []
        self.hold = asyncio.Event()
        self.holding = 0
        self.tools = [tool("echo"), tool("slow")]
        self.behaviours = {
            "GET": _get,
            "initialize": _initialize,
            "server/discover": _discover,
            "subscriptions/listen": _listen,
            "resources/list": _resources,
            "resources/templates/list": _templates,
            "resources/subscribe": _subscribe,
            "resources/unsubscribe": _subscribe,
            "slow": _slow,
        }

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.verb == "POST" and "method" not in seen.message:  # a response to a question of ours
            self.answers.append(seen.message)
            writer.write(http("", 202))
        else:
            await super().answer(seen, writer)

    def say(self, session: str, method: str, params: Any) -> None:
        _event(self.listening[session], {"jsonrpc": "2.0", "method": method, "params": params})

    def ask(self, session: str, method: str, params: Any, request_id: Any) -> None:
        _event(self.listening[session], {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})

    def changed(self, kind: str) -> None:
        """To all that listen for it."""
        for wanted, writer in self.filters.values():
            if wanted["filter"].get(f"{kind}ListChanged"):
                _event(writer, _tagged(f"notifications/{kind}/list_changed", {}, wanted["id"]))

    def updated(self, uri: str) -> None:
        """To all, whether they want it or not."""
        for session in self.listening:
            self.say(session, "notifications/resources/updated", {"uri": uri})
        for wanted, writer in self.filters.values():
            _event(writer, _tagged("notifications/resources/updated", {"uri": uri}, wanted["id"]))

    async def session_of(self, act: Callable[[], Awaitable[Any]]) -> str:
        """The session that an act opened."""
        before = len(self.sessions)
        answer = await act()
        assert answer.status == 200, answer.body
        assert len(self.sessions) == before + 1, answer.body
        return self.sessions[-1]


@contextlib.asynccontextmanager
async def radio(era: str) -> AsyncIterator[Radio]:
    async with scripted(era) as server:
        server.__class__ = Radio
        assert isinstance(server, Radio)
        server.begin()
        yield server
        server.hold.set()


def _event(writer: asyncio.StreamWriter, message: Any) -> None:
    raw = f"data: {json.dumps(message)}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(raw), raw))


def _tagged(method: str, params: dict[str, Any], request_id: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": {**params, "_meta": {TAG: request_id}}}


async def _until_gone(seen: Seen) -> None:
    while not seen.is_gone:
        await asyncio.sleep(0.01)


async def _get(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    assert isinstance(server, Radio)
    session = seen.headers.get("mcp-session-id", "")
    if server.era == "modern" or session not in server.sessions:
        writer.write(http("", 405 if server.era == "modern" else 404))
        return
    writer.write(SSE)
    server.listening[session] = writer
    await _until_gone(seen)
    if server.listening.get(session) is writer:
        del server.listening[session]


async def _listen(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    assert isinstance(server, Radio)
    request_id, wanted = seen.message["id"], seen.params["notifications"]
    writer.write(SSE)
    _event(writer, _tagged("notifications/subscriptions/acknowledged", {"notifications": wanted}, request_id))
    key = json.dumps([wanted, id(writer)])
    server.filters[key] = ({"id": request_id, "filter": wanted}, writer)
    server.subscribed |= set(wanted.get("resourceSubscriptions", []))
    await _until_gone(seen)
    del server.filters[key]


async def _initialize(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    if server.era == "modern":
        writer.write(http({"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": -32601, "message": ""}}, 404))
        return
    server.sessions.append(f"session-{len(server.seen)}")
    info = {"protocolVersion": LEGACY, "capabilities": CAPABILITIES, "serverInfo": {"name": "radio", "version": "1"}}
    writer.write(http(result(seen, info), headers=f"mcp-session-id: {server.sessions[-1]}\r\n"))


async def _discover(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    if server.era != "modern":
        writer.write(http({"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": -32601, "message": ""}}, 400))
        return
    writer.write(http(result(seen, {"supportedVersions": [MODERN], "capabilities": CAPABILITIES, **COMPLETE})))


async def _resources(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    scheme = "new" if server.era == "modern" else "old"
    listed = [{"uri": f"{scheme}://{name}", "name": name} for name in ("one", "two", "watched", "other")]
    writer.write(http(result(seen, {"resources": listed, **COMPLETE})))


async def _templates(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(http(result(seen, {"resourceTemplates": [], **COMPLETE})))


async def _subscribe(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    assert isinstance(server, Radio)
    if seen.method == "resources/subscribe":
        server.subscribed.add(seen.params["uri"])
    else:
        server.subscribed.discard(seen.params["uri"])
    writer.write(http(result(seen, {})))


async def _slow(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    assert isinstance(server, Radio)
    server.holding += 1
    await server.hold.wait()
    server.holding -= 1
    writer.write(http(result(seen, text("slow"))))
