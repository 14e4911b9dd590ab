"""The clients of a soak: each lives through its share of calls over two edges, then ends as it should, or vanishes amid
something: a stream, a question put to it, a call. Half of each era vanish, and no DELETE ever comes from them.

Counterpart: run.py, which starts them and keeps the books.
"""

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from tests.parts.edge import LEGACY, Client, Speaker

MODERN_META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "soak", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
}
ANSWER_DEADLINE_S: Final = 30.0
GIVEN_UP: Final = (OSError, asyncio.IncompleteReadError, TimeoutError)
TOOLS: Final = (
    ("old__echo",) * 5 + ("new__echo",) * 5 + ("own__echo", "old__fail", "new__fail", "old__drip", "new__drip")
)
FAREWELLS: Final = ("amid a stream", "amid a question", "amid a call", "while listening")


@dataclass
class Tally:
    """What the clients know: the nonce of each call, answered or left."""

    answered: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)  # nobody waited for the answer
    wrong: list[str] = field(default_factory=list)  # what should not have been answered so
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        return len(self.answered) + len(self.left)


class Life:
    """One client, with one session (or none, as 2026-07-28 has it) and a connection to each edge."""

    def __init__(self, name: str, speakers: list[Speaker], *, modern: bool, order: random.Random, tally: Tally) -> None:
        self.name = name
        self.modern = modern
        self._speakers = speakers
        self._order = order
        self._tally = tally
        self._connections: dict[int, Client] = {}
        self._count = 0

    async def live(self, calls: int, *, vanishes: bool) -> None:
        """So many calls, the last of which is never answered where the client vanishes."""
        try:
            if not self.modern:
                await self._initialize()
            for _ in range(calls - vanishes):
                await self._call(self._order.choice(TOOLS))
            if vanishes:
                await self._vanish()
            elif not self.modern:
                await self._delete()
        except GIVEN_UP as error:
            self._tally.wrong.append(f"{self.name}: {error!r}")
        finally:
            for connection in self._connections.values():
                connection.close()

    def _nonce(self) -> str:
        self._count += 1
        return f"{self.name} {self._count}"

    async def _connection(self, edge: int) -> Client:
        found = self._connections.get(edge)
        if found is None:
            found = self._connections[edge] = await self._speakers[edge].connect()
        return found

    def _edge(self) -> int:
        return self._order.randrange(len(self._speakers))

    async def _initialize(self) -> None:
        speaker, connection = self._speakers[edge := self._edge()], await self._connection(edge)
        params = {
            "protocolVersion": LEGACY,
            "capabilities": {"elicitation": {}},
            "clientInfo": {"name": "soak", "version": "1"},
        }
        connection.write(speaker.legacy("initialize", params))
        answer = await connection.answer(timeout_s=ANSWER_DEADLINE_S)
        session = answer.headers.get("mcp-session-id", "")
        if not session:
            self._tally.wrong.append(f"{self.name}: initialize: {answer.status} {answer.body[:200]!r}")
        for one in self._speakers:
            one.session = session

    async def _delete(self) -> None:
        speaker, connection = self._speakers[edge := self._edge()], await self._connection(edge)
        headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session}
        connection.write(speaker.request(b"", verb="DELETE", headers=headers))
        answer = await connection.answer(timeout_s=ANSWER_DEADLINE_S)
        self._tally.ends[f"DELETE {answer.status}"] += 1

    def _request(self, speaker: Speaker, tool: str, nonce: str, **arguments: Any) -> bytes:
        params: dict[str, Any] = {"name": tool, "arguments": {"nonce": nonce, **arguments}}
        meta: dict[str, Any] = {"progressToken": self._count} if tool.endswith("drip") else {}
        if self.modern:
            return speaker.modern("tools/call", {**params, "_meta": {**MODERN_META, **meta}}, request_id=self._count)
        return speaker.legacy("tools/call", {**params, "_meta": meta} if meta else params, request_id=self._count)

    async def _call(self, tool: str) -> None:
        nonce, edge = self._nonce(), self._edge()
        connection = await self._connection(edge)
        more = {"times": 2, "gap_s": 0.01} if tool.endswith("drip") else {}
        connection.write(self._request(self._speakers[edge], tool, nonce, **more))
        message = await _answer(connection)
        self._tally.answered.add(nonce)
        failed = message.get("result", {}).get("isError") is True
        if "result" not in message or failed != tool.endswith("fail"):
            self._tally.wrong.append(f"{nonce}: {tool}: {str(message)[:300]}")

    async def _vanish(self) -> None:
        how = self._order.choice(FAREWELLS)
        self._tally.ends[f"vanished {how}"] += 1
        edge = self._edge()
        speaker, connection = self._speakers[edge], await self._connection(edge)
        nonce = self._nonce()
        server = self._order.choice(("old", "new"))
        self._tally.left.add(nonce)
        with contextlib.suppress(*GIVEN_UP):
            match how:
                case "amid a stream":
                    connection.write(self._request(speaker, f"{server}__drip", nonce, times=100, gap_s=0.05))
                    await connection.stream(ANSWER_DEADLINE_S)
                    await connection.event(ANSWER_DEADLINE_S)
                case "amid a question":
                    connection.write(self._request(speaker, f"{server}__confirm", nonce))
                    await connection.stream(ANSWER_DEADLINE_S)
                case "amid a call":
                    connection.write(self._request(speaker, f"{server}__drip", nonce, times=4, gap_s=0.25))
                    await connection.writer.drain()
                case _:
                    connection.write(self._request(speaker, f"{server}__echo", nonce))
                    await _answer(connection)
                    connection.write(self._listening(speaker))
                    await connection.stream(ANSWER_DEADLINE_S)
        for one in self._connections.values():
            one.writer.transport.abort()

    def _listening(self, speaker: Speaker) -> bytes:
        if self.modern:
            wanted = {"notifications": {"toolsListChanged": True}, "_meta": MODERN_META}
            return speaker.modern("subscriptions/listen", wanted, request_id="listen")
        headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session, "Accept": "text/event-stream"}
        return speaker.request(b"", verb="GET", headers={**headers, "Content-Length": "", "Content-Type": ""})


async def _answer(connection: Client) -> dict[str, Any]:
    """The response, whether it came as JSON or as the last event of a stream."""
    head = await connection.stream(ANSWER_DEADLINE_S)
    if "text/event-stream" not in head.headers.get("content-type", ""):
        return dict(head.json) if head.body else {}
    last: dict[str, Any] = {}
    for event in await connection.events(ANSWER_DEADLINE_S):
        if event.data:
            last = event.json
    return last
