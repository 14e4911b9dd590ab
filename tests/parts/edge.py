"""An edge on the local log and memory sessions, with a signed bundle and a token issuer: in this process
(`running_edge`), or in one of its own (`edge_process`) where it must be killed.

What it recorded is read from the log's file; what it answers, from a socket, byte for byte.
"""

import asyncio
import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from tests.parts import warm
from tests.parts.boxes import opened
from tests.parts.processes import free_port, stop

from tidegate.chain import Chain, open_event, open_head
from tidegate.events import AnyEvent, CallCompleted, CallRequested
from tidegate.ids import now_us
from tidegate.local_issuer import LocalIssuer, open_local_issuer
from tidegate.log.port import Record
from tidegate.log.sqlite import SqliteLog, open_readonly
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.release import records_for_release
from tidegate.policy.signing import Release, ensure_signing_key, trusted_keys
from tidegate.secrets import open_secrets, write_private
from tidegate.serving import health_routes, open_server
from tidegate.sessions.opening import open_sessions
from tidegate.settings import Settings
from tidegate_edge.edge import Edge
from tidegate_edge.wiring import open_edge

ROOT = Path(__file__).resolve().parents[2]
MODERN = "2026-07-28"
LEGACY = "2025-11-25"
SECRET = "AKIAIOSFODNN7EXAMPLE"
"""Masked in arguments and results by the bundle below; never to be found in what is stored."""
BLOCKED = "forbidden-word-4711"

BUNDLE = {
    "manifest.json": '{"v": 1, "name": "edge-tests"}',
    "policies/p.cedar": """
@id("eng-all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("not-etc") @reason("Nothing below /etc may be read.")
forbid (principal, action in Action::"call", resource) when { context.args has path && context.args.path like "/etc*" };
@id("hidden") forbid (principal, action == Action::"up/secret-tool", resource);
""",
    "inspection.yaml": """
patterns:
  - {id: key, pattern: 'AKIA[A-Z0-9]{16}', severity: high, arguments: mask, result: mask}
  - {id: word, pattern: 'forbidden-word-[0-9]{4}', severity: high, arguments: block, result: block}
""",
}
_keys: dict[str, bytes] = {}


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def result(self) -> Any:
        return self.json["result"]

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def text(self) -> str:
        return str(self.result["content"][0]["text"])


@dataclass
class Event:
    """One server-sent event; `comment` where it was nothing else."""

    id: str = ""
    data: str = ""
    retry_ms: int | None = None
    comment: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Client:
    """One connection: bytes out, answers in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._chunked = False
        self._events = b""  # of the stream being read, as far as they have come
        self._over = False

    def write(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def answer(self, *, head_only: bool = False, timeout_s: float = 10.0) -> Answer:
        """The next whole answer. Raises IncompleteReadError at the end of the connection."""
        async with asyncio.timeout(timeout_s):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, value in (one.split(":", 1) for one in lines if one)}
            status = int(line.split(" ")[1])
            length = 0 if head_only or status < 200 else int(headers["content-length"])
            return Answer(status, headers, await self.reader.readexactly(length))

    async def stream(self, timeout_s: float = 10.0) -> Answer:
        """The head of the next answer, whose body is read event by event; a plain answer whole, if it is none."""
        async with asyncio.timeout(timeout_s):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, value in (one.split(":", 1) for one in lines if one)}
            self._chunked, self._events, self._over = headers.get("transfer-encoding") == "chunked", b"", False
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(int(line.split(" ")[1]), headers, body)

    async def event(self, timeout_s: float = 10.0, *, comments: bool = False) -> Event | None:
        """The next event; None at the stream's proper end. Raises IncompleteReadError where it breaks off."""
        async with asyncio.timeout(timeout_s):
            while True:
                while b"\n\n" not in self._events:
                    if self._over or not await self._more():
                        assert not self._events, self._events
                        return None
                raw, self._events = self._events.split(b"\n\n", 1)
                found = _event_of(raw.decode())
                if comments or not found.comment:
                    return found

    async def events(self, timeout_s: float = 10.0) -> list[Event]:
        """All until the end."""
        found: list[Event] = []
        while (event := await self.event(timeout_s)) is not None:
            found.append(event)
        return found

    async def _more(self) -> bool:
        if self._chunked:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            self._events += (await self.reader.readexactly(size + 2))[:-2]
            self._over = size == 0
            return size > 0
        piece = await self.reader.read(1 << 16)
        self._events += piece
        self._over = not piece
        return bool(piece)

    async def ended(self, timeout_s: float = 10.0) -> bytes:
        """What is left until the other side closes."""
        async with asyncio.timeout(timeout_s):
            try:
                return await self.reader.read(1 << 20)
            except ConnectionResetError:
                return b""

    def close(self) -> None:
        self.writer.close()


def _event_of(raw: str) -> Event:
    event = Event(comment=True)
    for line in raw.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        event.comment = event.comment and not field
        if field == "id":
            event.id = value
        elif field == "data":
            event.data += value
        elif field == "retry":
            event.retry_ms = int(value)
    return event


def modern_body(method: str, params: dict[str, Any] | None = None, request_id: Any = 1) -> bytes:
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
    }
    params = {"_meta": meta, **(params or {})}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}).encode()


def legacy_body(method: str, params: dict[str, Any] | None = None, request_id: Any = 1) -> bytes:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}
    return json.dumps({key: value for key, value in message.items() if value is not None}).encode()


class Speaker:
    """What a client says to an edge at `listen` under a token."""

    def __init__(self, listen: str, token: str) -> None:
        self.listen = listen
        self.auth = token
        self.session = ""

    async def connect(self, receive_bytes: int = 0) -> Client:
        """`receive_bytes`: the least that the system and the reader take in beforehand; 0 for plenty."""
        host, port = self.listen.split(":")
        if not receive_bytes:
            return Client(*await asyncio.open_connection(host, int(port), limit=1 << 24))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        return Client(*await asyncio.open_connection(sock=sock, limit=receive_bytes))

    def request(
        self, body: bytes, path: str = "/mcp", verb: str = "POST", headers: dict[str, str] | None = None
    ) -> bytes:
        """The bytes of one request; a header given as "" is left out."""
        given = {
            "Host": self.listen,
            "Authorization": f"Bearer {self.auth}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
        return f"{verb} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body

    def modern(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        path: str = "/mcp",
        request_id: Any = 1,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, **(headers or {})}
        if params and isinstance(params.get("name"), str):
            headers["Mcp-Name"] = params["name"]
        return self.request(modern_body(method, params, request_id), path, headers=headers)

    def calling(self, name: str, arguments: Any = None, *, path: str = "/mcp", request_id: Any = 1) -> bytes:
        params = {"name": name, "arguments": {} if arguments is None else arguments}
        return self.modern("tools/call", params, path=path, request_id=request_id)

    def legacy(
        self, method: str, params: dict[str, Any] | None = None, *, path: str = "/mcp", request_id: Any = 1
    ) -> bytes:
        headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": self.session}
        return self.request(legacy_body(method, params, request_id), path, headers=headers)

    async def say(self, *requests: bytes, timeout_s: float = 15.0) -> list[Answer]:
        """All requests in one write on a new connection; their answers."""
        client = await self.connect()
        try:
            client.write(b"".join(requests))
            return [await client.answer(timeout_s=timeout_s) for _ in requests]
        finally:
            client.close()

    async def ask(self, request: bytes, timeout_s: float = 15.0) -> Answer:
        return (await self.say(request, timeout_s=timeout_s))[0]

    async def call(self, name: str, arguments: Any = None, *, path: str = "/mcp") -> Answer:
        return await self.ask(self.calling(name, arguments, path=path))

    async def initialize(self, version: str = LEGACY, capabilities: dict[str, Any] | None = None) -> Answer:
        info = {"name": "tests", "version": "1"}
        params = {"protocolVersion": version, "capabilities": capabilities or {}, "clientInfo": info}
        answer = await self.ask(self.request(legacy_body("initialize", params)))
        self.session = answer.headers.get("mcp-session-id", "")
        return answer


class Place:
    """Where an edge keeps its things, and what can be done there without it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.listen = settings.listen
        self.key = ensure_signing_key(settings.data_dir / "keys" / "signing.pem")
        self.issuer: LocalIssuer = open_local_issuer(settings)

    def token(
        self,
        user: str = "alice@example.com",
        agent: str = "tests",
        groups: tuple[str, ...] = ("eng",),
        audience: str = "",
        ttl_s: int = 600,
        ago_s: int = 0,
        sid: str = "sid-1",
    ) -> str:
        audiences = [audience or f"{self.settings.url}/mcp"]
        return self.issuer.mint(user, agent, groups, ttl_s, audiences, int(time.time()) - ago_s, sid=sid)

    def speaker(self, **more: Any) -> Speaker:
        return Speaker(self.listen, self.token(**more))

    def release(self, files: dict[str, str], number: int, **more: Any) -> list[Record]:
        """`more`: fields of the release. Without files it ends its role."""
        bundle: Bundle | None = (
            bundle_of({path: content.encode() for path, content in files.items()}) if files else None
        )
        digest = bundle.digest if bundle else ""
        release = Release(tenant=self.settings.tenant, ring="main", number=number, digest=digest, previous="", **more)
        return records_for_release(
            Chain(f"tests-{number}"),
            self.key.sign(release),
            bundle,
            region="local",
            actor="tests",
            cause="published",
            now_us=now_us(),
        )

    async def stored(self, *topics: str) -> list[bytes]:
        """Every value in the log, as stored, in order."""
        log = open_readonly(self.settings.data_dir / "log.db")
        try:
            subscription = await log.follow(topics or ("calls", "sessions", "catalog", "policy", "control"))
            found: list[bytes] = []
            while not subscription.caught_up or not found:
                records = await subscription.poll(10_000, 0.05)
                found += [record.value for record in records if record.value is not None]
                if subscription.caught_up:
                    break
            await subscription.close()
            return found
        finally:
            await log.close()

    async def events(self, *topics: str) -> list[AnyEvent]:
        """With personal parts opened."""
        found = [open_event(value) for value in await self.stored(*(topics or ("calls",)))]
        log = open_readonly(self.settings.data_dir / "log.db")
        try:
            return await opened(found, self.settings, log)
        finally:
            await log.close()

    async def shown(self) -> bytes:
        """All that the log holds, as whoever has the master can read it."""
        topics = ("calls", "sessions", "catalog", "policy", "control")
        return b"\n".join([msgspec.json.encode(event) for event in await self.events(*topics)])

    async def calls(self, nonce: str) -> tuple[list[CallRequested], list[CallCompleted]]:
        """The events of the calls whose target or captured arguments hold the nonce."""
        events = await self.events("calls")
        asked = [
            one
            for one in events
            if isinstance(one, CallRequested) and (nonce.encode() in bytes(one.sealed.arguments) or one.target == nonce)
        ]
        ids = {one.call_id for one in asked}
        return asked, [one for one in events if isinstance(one, CallCompleted) and one.call_id in ids]

    async def chains_hold(self) -> None:
        """Each writer's numbers have no gap and each `prev` is the hash of what was stored before."""
        by_writer: dict[str, dict[int, bytes]] = {}
        for value in await self.stored():
            head = open_head(value)
            numbers = by_writer.setdefault(head.writer, {})
            assert head.seq not in numbers
            numbers[head.seq] = value
        for numbers in by_writer.values():
            assert sorted(numbers) == list(range(1, len(numbers) + 1))
            prev = ""
            for seq in sorted(numbers):
                assert open_head(numbers[seq]).prev == prev
                prev = hashlib.sha256(numbers[seq]).hexdigest()


@dataclass
class RunningEdge:
    """An edge in this process."""

    place: Place
    edge: Edge
    log: SqliteLog
    server: uvicorn.Server

    @property
    def settings(self) -> Settings:
        return self.place.settings

    async def publish(self, files: dict[str, str], number: int) -> None:
        """Release a bundle and wait until it rules."""
        await self.log.append(self.place.release(files, number))
        await until(
            lambda: (ruling := self.edge.rulings.get(self.settings.tenant)) is not None and ruling.number >= number
        )


def settings_for(root: Path, servers: dict[str, Any], **more: Any) -> Settings:
    given = {"listen": f"127.0.0.1:{free_port()}", "root": str(root), "tenant": "acme", "servers": servers, **more}
    return msgspec.convert(given, Settings)


def prepare(settings: Settings) -> Place:
    """Keys are made once for the whole run: an RSA key costs more than an edge."""
    keys = settings.data_dir / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    for name, content in _keys.items():
        if not (keys / name).exists():
            write_private(keys / name, content)
    place = Place(settings)
    _keys.update({name: (keys / name).read_bytes() for name in ("signing.pem", "local-issuer.pem")})
    return place


@contextlib.asynccontextmanager
async def running_edge(
    root: Path,
    servers: dict[str, Any],
    *,
    bundle: dict[str, str] | None = BUNDLE,
    waits: tuple[str, ...] | None = None,
    **more: Any,
) -> AsyncIterator[RunningEdge]:
    """The tools of the servers in `waits` (all of them) are known on entry; drained and closed on exit."""
    settings = settings_for(root, servers, **more)
    place = prepare(settings)
    async with _served(place, waits) as running:
        if bundle is not None and settings.tenant not in running.edge.rulings:
            await running.publish(bundle, 1)
        await until(lambda: running.server.started)
        yield running


@contextlib.asynccontextmanager
async def _served(place: Place, waits: tuple[str, ...] | None = None) -> AsyncIterator[RunningEdge]:
    settings = place.settings
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    registry = CollectorRegistry()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(log.close)
        sessions = open_sessions(settings)
        await sessions.start()
        stack.push_async_callback(sessions.stop)
        trust = trusted_keys([place.key.public])
        service = await stack.enter_async_context(
            open_edge(settings, log, sessions, open_secrets(settings), trust, registry)
        )
        app = FastAPI()
        app.include_router(health_routes({"edge": service.awaiting}, registry))
        app.include_router(service.router)
        server = open_server(app, settings.listen, settings.limits, http=service.http)
        service.watch_connections(server.server_state.connections)
        if threading.current_thread() is threading.main_thread() and not isinstance(place, _Served):
            server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server.serve(), name="serve")
        try:
            awaited = {"log", *(f"tools of {name}" for name in (settings.servers if waits is None else waits))}
            await until(lambda: not awaited & service.awaiting())
            yield RunningEdge(place, service.edge, log, server)
        finally:
            server.should_exit = True
            await serving


class _Served(Place):
    """In a process of its own: signals are the server's."""


async def until(fact: Callable[[], bool | Awaitable[bool]], deadline_s: float = 10.0) -> None:
    """Wait for a fact."""
    end = time.monotonic() + deadline_s
    while True:
        found = fact()
        if found is True or (not isinstance(found, bool) and await found):
            return
        assert time.monotonic() < end, "the awaited fact did not come"
        await asyncio.sleep(0.005)


@dataclass
class EdgeProcess:
    """An edge in a process of its own."""

    place: Place
    process: Any
    log: Path


@contextlib.asynccontextmanager
async def edge_process(
    root: Path, servers: dict[str, Any], *, listen: str = "", **more: Any
) -> AsyncIterator[EdgeProcess]:
    """Ready on entry; ended on exit if it still runs."""
    settings = settings_for(root, servers, **({"listen": listen} if listen else {}), **more)
    place = prepare(settings)
    config = root / "settings.json"
    config.write_bytes(msgspec.json.encode(settings))
    log = root / "edge.log"
    process = warm.start([sys.executable, "-m", "tests.parts.edge", str(config)], cwd=ROOT, log=log)
    try:
        await until(lambda: (root / "ready").exists() or process.poll() is not None, 30)
        assert process.poll() is None, log.read_text()
        yield EdgeProcess(place, process, log)
    finally:
        await asyncio.to_thread(stop, process)
        (root / "ready").unlink(missing_ok=True)


async def _main(config: Path) -> None:
    settings = msgspec.json.decode(config.read_bytes(), type=Settings)
    async with _served(_Served(settings)) as running:
        if settings.tenant not in running.edge.rulings:
            await running.publish(BUNDLE, 1)
        await until(lambda: running.server.started)
        (config.parent / "ready").touch()
        ended = next(task for task in asyncio.all_tasks() if task.get_name() == "serve")
        await asyncio.wait([ended])


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1])))
