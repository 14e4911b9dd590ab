"""MCP by hand over one HTTP connection pool: modern calls and legacy sessions, with whatever came back.

Counterpart: driving.py, where the official SDK does the talking.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
from aiohttp import web

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Told(NamedTuple):
    """What came back; status 0 where nobody answered."""

    status: int
    message: dict[str, Any]
    session: str = ""

    @property
    def is_ok(self) -> bool:
        """A tool result that is no error."""
        return "result" in self.message and not self.message["result"].get("isError")

    @property
    def decision(self) -> dict[str, Any]:
        """The details of a refusal; {} where there are none."""
        return dict(self.message.get("result", {}).get("_meta", {}).get("tidegate/decision", {}))

    @property
    def text(self) -> str:
        """The first text of a tool result."""
        return str(self.message["result"]["content"][0]["text"])


class Raw:
    """A caller with a token. Every method names the edge (its base URL), so that a test can move between edges."""

    def __init__(self, client: aiohttp.ClientSession, token: str) -> None:
        self._client = client
        self._token = token
        self._ids = 0

    async def call(self, base: str, tool: str, session: str = "", **arguments: object) -> Told:
        """tools/call: modern, or legacy within `session`."""
        params: dict[str, Any] = {"name": tool, "arguments": arguments}
        if session:
            return await self.legacy(base, "tools/call", params, session)
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": tool}
        return await self._post(base, "tools/call", {**params, "_meta": _META}, headers)

    async def initialize(self, base: str) -> str:
        """Open a legacy session; its id. Raises AssertionError."""
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        told = await self._post(base, "initialize", params, {})
        assert told.status == 200, told
        assert told.session, told
        return told.session

    async def legacy(self, base: str, method: str, params: dict[str, Any], session: str) -> Told:
        return await self._post(base, method, params, {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": session})

    async def delete(self, base: str, session: str) -> int:
        """End the session; the HTTP status."""
        headers = self._headers({"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": session})
        async with self._client.delete(f"{base}/mcp", headers=headers) as response:
            return response.status

    async def _post(self, base: str, method: str, params: dict[str, Any], headers: dict[str, str]) -> Told:
        self._ids += 1
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params})
        try:
            async with self._client.post(f"{base}/mcp", data=body, headers=self._headers(headers)) as response:
                answer = await response.read()
                told = msgspec.json.decode(answer) if answer else {}
                return Told(response.status, told, response.headers.get("Mcp-Session-Id", ""))
        except (aiohttp.ClientError, TimeoutError):
            return Told(0, {})

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            **more,
        }


@contextlib.asynccontextmanager
async def http_client(timeout_s: float = 30.0) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=64)) as client:
        yield client


@dataclass
class Load:
    """Callers that call without pause until told to stop, each call with a nonce of its own."""

    answered: dict[str, Told] = field(default_factory=dict)  # by nonce; status 0: no answer came

    @property
    def done(self) -> int:
        """Calls that were answered well."""
        return sum(told.is_ok for told in self.answered.values())


@contextlib.asynccontextmanager
async def running_load(
    tokens: Sequence[str],
    bases: Sequence[str],
    *,
    name: str,
    callers: int = 16,
    calls_max: int = 16_000,
    arguments: Callable[[int], dict[str, Any]] = lambda _: {"path": "/srv/a"},
    tool: str = "up__echo",
) -> AsyncIterator[Load]:
    """The load runs inside the block, at most `calls_max` answered calls; on exit every call under way has come to its
    end.

    A caller whose edge is gone goes on at the next one; calls are never repeated.
    """
    load = Load()
    stopping = asyncio.Event()

    async def caller(number: int, client: aiohttp.ClientSession) -> None:
        raw, at, left = Raw(client, tokens[number % len(tokens)]), number, calls_max // callers
        for count in itertools.count():
            if stopping.is_set() or not left:
                return
            nonce = f"{name} {number} {count}"
            told = await raw.call(bases[at % len(bases)], tool, text="t", nonce=nonce, **arguments(number + count))
            load.answered[nonce] = told
            if told.status in (0, 503):
                at += 1
                await asyncio.sleep(0.05)  # an edge that is gone refuses at once: leave it room to come back
            else:
                left -= 1

    async with http_client() as client:
        tasks = [asyncio.create_task(caller(number, client), name=f"caller {number}") for number in range(callers)]
        try:
            yield load
        finally:
            stopping.set()
            await asyncio.gather(*tasks)


async def reached(load: Load, more: int, deadline_s: float = 30.0) -> None:
    """Until so many more calls went well than when this was asked. Raises TimeoutError."""
    goal = load.done + more
    async with asyncio.timeout(deadline_s):
        while load.done < goal:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def round_robin(listen: str, bases: Sequence[str]) -> AsyncIterator[list[str]]:
    """A reverse proxy that sends each request to the next edge; yields the growing list of edges that were asked."""
    asked: list[str] = []
    host, _, port = listen.rpartition(":")

    async def forward(request: web.Request) -> web.Response:
        base = bases[len(asked) % len(bases)]
        asked.append(base)
        body = await request.read()
        async with client.request(request.method, f"{base}{request.path_qs}", data=body, headers=_kept(request)) as got:
            kept = {name: got.headers[name] for name in ("Content-Type", "Mcp-Session-Id") if name in got.headers}
            return web.Response(status=got.status, body=await got.read(), headers=kept)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    async with http_client() as client:
        await runner.setup()
        try:
            await web.TCPSite(runner, host, int(port)).start()
            yield asked
        finally:
            await runner.cleanup()


def _kept(request: web.Request) -> dict[str, str]:
    dropped = ("connection", "transfer-encoding", "content-length")
    return {name: value for name, value in request.headers.items() if name.lower() not in dropped}
