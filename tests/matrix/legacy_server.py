"""The matrix's server of the handshake era, on mcp 1.30: knows no modern revision.

`python -m tests.matrix.legacy_server SEEN [--resumable]`; prints {"url"}. With `--resumable` its events have ids, so
that a stream can be left and taken up again. Runs in the environment of sdk130.py.
Counterpart: modern_server.py; what it offers: offer.py.
"""
# mypy: ignore-errors
# It would be checked against 2.x, and runs with 1.30.

import asyncio
import contextlib
import json
import logging
import socket
import sys
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import mcp.types as types
import uvicorn
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import McpError
from mcp.shared.message import ServerMessageMetadata
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.matrix.offer import APPS, APPS_SETTINGS, INSTRUCTIONS, Offer, Refusal, Wire

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
NEEDED: Final = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
"""The capability that a question needs. Others need none."""


def dumped(model: Any) -> Wire:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


class LegacyServer(Server):
    """Sessions that hear of every change, whoever made it."""

    def __init__(self, offer: Offer) -> None:
        super().__init__("matrix-legacy", version="1", instructions=INSTRUCTIONS)
        self.offer = offer
        self.sessions = weakref.WeakSet()
        self.levels = weakref.WeakKeyDictionary()
        self.subscribed = weakref.WeakKeyDictionary()
        for request, handler in HANDLERS.items():
            self.request_handlers[request] = self._handler(handler)
        self.notification_handlers[types.RootsListChangedNotification] = self._roots_changed

    def create_initialization_options(self, *_: Any, **__: Any) -> Any:
        options = super().create_initialization_options(NotificationOptions(True, True, True), {})
        options.capabilities.resources.subscribe = True
        options.capabilities.extensions = {APPS: APPS_SETTINGS}
        return options

    def _handler(self, handler: "Handler") -> Callable[[Any], Awaitable[types.ServerResult]]:
        async def handle(request: Any) -> types.ServerResult:
            turn = LegacyTurn(self)
            try:
                result = await handler(self, turn, dumped(request).get("params", {}))
            except Refusal as refusal:
                raise McpError(types.ErrorData(code=refusal.code, message=refusal.message, data=refusal.data)) from None
            return types.ServerResult(types.EmptyResult.model_validate(result))

        return handle

    async def _roots_changed(self, notification: Any) -> None:
        self.offer.see("roots-changed")

    async def tell(self, notification: Wire, wanted: Callable[[Any], bool] = lambda _: True) -> None:
        """Every session that wants it, outside of requests."""
        for session in [one for one in self.sessions if wanted(one)]:
            with contextlib.suppress(Exception):  # that client has gone
                await session.send_notification(types.ServerNotification.model_validate(notification))


class LegacyTurn:
    """A request of a session."""

    modern = False

    def __init__(self, server: LegacyServer) -> None:
        self._server = server
        self._context = server.request_context
        self._session = self._context.session
        self._token = None if self._context.meta is None else self._context.meta.progressToken
        self.meta: Wire = {} if self._context.meta is None else dumped(self._context.meta)
        self.meta.pop("progressToken", None)
        self.capabilities: Wire = dumped(self._session.client_params.capabilities)
        server.sessions.add(self._session)

    async def ask(self, key: str, method: str, params: Wire) -> Wire:
        if key != "anyway" and NEEDED.get(method, "") not in {"", *self.capabilities}:
            raise Refusal(-32600, f"the client has no {NEEDED[method]}")
        request = types.ServerRequest.model_validate({"method": method, "params": params})
        metadata = ServerMessageMetadata(related_request_id=self._context.request_id)
        try:
            return dumped(await self._session.send_request(request, types.EmptyResult, metadata=metadata))
        except McpError as error:
            raise Refusal(error.error.code, error.error.message) from None

    async def _notify(self, method: str, params: Wire) -> None:
        notification = types.ServerNotification.model_validate({"method": method, "params": params})
        await self._session.send_notification(notification, related_request_id=self._context.request_id)

    async def progress(self, progress: float, total: float, message: str) -> None:
        if self._token is not None:
            told = {"progressToken": self._token, "progress": progress, "total": total, "message": message}
            await self._notify("notifications/progress", told)

    async def log(self, level: str, data: Any) -> None:
        if LEVELS.index(level) >= LEVELS.index(self._server.levels.get(self._session, "warning")):
            await self._notify("notifications/message", {"level": level, "logger": "matrix", "data": data})

    async def changed(self, kind: str) -> None:
        await self._server.tell({"method": f"notifications/{kind}/list_changed"})

    async def updated(self, uri: str) -> None:
        def wanted(session: Any) -> bool:
            return uri in self._server.subscribed.get(session, ())

        await self._server.tell({"method": "notifications/resources/updated", "params": {"uri": uri}}, wanted)

    async def visited(self, elicitation_id: str) -> None:
        await self._notify("notifications/elicitation/complete", {"elicitationId": elicitation_id})

    def subscribe(self, uri: str, wanted: bool) -> None:
        self._server.offer.see("subscribe" if wanted else "unsubscribe", uri=uri)
        uris = self._server.subscribed.setdefault(self._session, set())
        uris.add(uri) if wanted else uris.discard(uri)

    def level(self, level: str) -> None:
        self._server.offer.see("level", level=level)
        self._server.levels[self._session] = level


Handler = Callable[[LegacyServer, LegacyTurn, Wire], Awaitable[Wire]]


def _listing(kind: str) -> Handler:
    async def listing(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
        return server.offer.page(kind, params.get("cursor"), modern=False)

    return listing


async def _call(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
    return await server.offer.call(turn, params["name"], params.get("arguments", {}))


async def _get(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
    return await server.offer.get(turn, params["name"], params.get("arguments", {}))


async def _read(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
    return await server.offer.read(turn, params["uri"])


async def _complete(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
    return server.offer.complete(params["ref"], params["argument"], params.get("context", {}).get("arguments", {}))


async def _subscribe(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
    turn.subscribe(params["uri"], True)
    return {}


async def _unsubscribe(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
    turn.subscribe(params["uri"], False)
    return {}


async def _level(server: LegacyServer, turn: LegacyTurn, params: Wire) -> Wire:
    turn.level(params["level"])
    return {}


HANDLERS: Final[dict[type, Handler]] = {
    types.ListToolsRequest: _listing("tools"),
    types.ListPromptsRequest: _listing("prompts"),
    types.ListResourcesRequest: _listing("resources"),
    types.ListResourceTemplatesRequest: _listing("templates"),
    types.CallToolRequest: _call,
    types.GetPromptRequest: _get,
    types.ReadResourceRequest: _read,
    types.CompleteRequest: _complete,
    types.SubscribeRequest: _subscribe,
    types.UnsubscribeRequest: _unsubscribe,
    types.SetLevelRequest: _level,
}


class Kept(EventStore):
    """A session's events; an event's id is its place. (Streams are named by request: each session needs its own.)"""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        place = int(last_event_id)
        stream = self._events[place][0]
        for number, (owner, message) in enumerate(self._events[place + 1 :], place + 1):
            if owner == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Resumable(StreamableHTTPSessionManager):
    """Each session that is opened takes a new store."""

    @property
    def event_store(self) -> EventStore:
        return Kept()

    @event_store.setter
    def event_store(self, given: None) -> None: ...


async def main(seen: Path, resumable: bool) -> None:
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    manager = (Resumable if resumable else StreamableHTTPSessionManager)(LegacyServer(Offer(seen)))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette):
        async with manager.run():
            yield

    app = Starlette(routes=[Mount("/", app=manager.handle_request)], lifespan=lifespan)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"}), flush=True)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), "--resumable" in sys.argv))
