"""The matrix's server of the modern era, on mcp 2.3: of both eras, or with `--modern-only` of 2026-07-28 alone.

`python -m tests.matrix.modern_server SEEN [--modern-only]`; prints {"url"}. Results leave as offer.py says them,
unknown members included: a middleware answers, and the SDK brings transport, sessions and eras. Counterpart:
legacy_server.py.
"""

import asyncio
import contextlib
import json
import logging
import socket
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import mcp_types as types
import uvicorn
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.session import ServerSession
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter
from tests.matrix.offer import APPS, APPS_SETTINGS, INSTRUCTIONS, Offer, Refusal, Wire

NEEDED: Final = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
"""The capability that a question needs. Others need none."""
OWN: Final = "io.modelcontextprotocol/"
CACHING: Final[Wire] = {"resultType": "complete", "ttlMs": 1000, "cacheScope": "private"}
CHANGES: Final[dict[str, Callable[[], ServerEvent]]] = {
    "tools": ToolsListChanged,
    "prompts": PromptsListChanged,
    "resources": ResourcesListChanged,
}
_request_of: Final[TypeAdapter[types.ServerRequest]] = TypeAdapter(types.ServerRequest)
_notification_of: Final[TypeAdapter[types.ServerNotification]] = TypeAdapter(types.ServerNotification)
Context = ServerRequestContext[Any, Any]


class NeedsInput(Exception):
    """Unwinds a tool whose question has not been answered yet."""


class Dual(Server[Any]):
    """Sessions and listeners that hear of every change, whoever made it."""

    def __init__(self, offer: Offer, *, modern_only: bool) -> None:
        self.bus = InMemorySubscriptionBus()
        super().__init__(
            "matrix-modern" if modern_only else "matrix-dual",
            version="1",
            instructions=INSTRUCTIONS,
            on_list_tools=_never,
            on_call_tool=_never,
            on_list_prompts=_never,
            on_get_prompt=_never,
            on_list_resources=_never,
            on_list_resource_templates=_never,
            on_read_resource=_never,
            on_completion=_never,
            on_subscribe_resource=_never,
            on_unsubscribe_resource=_never,
            on_set_logging_level=_never,
            on_subscriptions_listen=ListenHandler(self.bus),
            get_tool_input_schema=self._input_schema,
        )
        self.offer = offer
        self.modern_only = modern_only
        self.connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self.levels: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self.subscribed: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
        self.extensions = {APPS: APPS_SETTINGS}
        self.middleware[:] = [self._answer]

    def create_initialization_options(self, *_: Any, **__: Any) -> InitializationOptions:
        return super().create_initialization_options(NotificationOptions(True, True, True))

    def _input_schema(self, name: str) -> Mapping[str, Any] | None:
        cursor: str | None = None
        while True:
            page = self.offer.page("tools", cursor, modern=True)
            for tool in page["tools"]:
                if tool["name"] == name:
                    return dict(tool["inputSchema"])
            cursor = page.get("nextCursor")
            if cursor is None:
                return None

    async def _answer(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        if self.modern_only and not modern:
            raise MCPError(types.UNSUPPORTED_PROTOCOL_VERSION, "modern only", {"supported": MODERN_PROTOCOL_VERSIONS})
        if ctx.method == "notifications/roots/list_changed":
            self.offer.see("roots-changed")
        if ctx.request_id is None or ctx.method in ("initialize", "ping", "server/discover", "subscriptions/listen"):
            return await call_next(ctx)
        turn = ModernTurn(self, ctx)
        try:
            return await self._result(turn, ctx.method, dict(ctx.params or {}))
        except NeedsInput:
            return turn.questions()
        except Refusal as refusal:
            raise MCPError(refusal.code, refusal.message, refusal.data) from None

    async def _result(self, turn: "ModernTurn", method: str, params: Wire) -> Wire:
        caching = CACHING if turn.modern else {}
        complete = {"resultType": "complete"} if turn.modern else {}
        match method:
            case "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list":
                kind = "templates" if "templates" in method else method.partition("/")[0]
                return {**self.offer.page(kind, params.get("cursor"), modern=turn.modern), **caching}
            case "tools/call":
                return {**await self.offer.call(turn, params["name"], params.get("arguments") or {}), **complete}
            case "prompts/get":
                return {**await self.offer.get(turn, params["name"], params.get("arguments") or {}), **complete}
            case "resources/read":
                return {**await self.offer.read(turn, params["uri"]), **caching}
            case "completion/complete":
                given = (params.get("context") or {}).get("arguments", {})
                return {**self.offer.complete(params["ref"], params["argument"], given), **complete}
            case "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel" if not turn.modern:
                turn.setting(method.rpartition("/")[2], params)
                return {}
            case _:
                raise Refusal(types.METHOD_NOT_FOUND, "Method not found", method)

    async def tell(self, notification: Wire, wanted: Callable[[Any], bool] = lambda _: True) -> None:
        """Every session of the handshake era that wants it, outside of requests."""
        for connection in [one for one in self.connections if wanted(one)]:
            with contextlib.suppress(Exception):  # that client has gone
                await connection.notify(notification["method"], notification.get("params"))


class ModernTurn:
    """A request of either era. In the modern one a tool runs anew for each round, and the state holds what was said."""

    def __init__(self, server: Dual, ctx: Context) -> None:
        self._server = server
        self._ctx = ctx
        self._session: ServerSession = ctx.session
        self.connection = ctx.session._connection
        self.modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        params = dict(ctx.params or {})
        meta = dict(params.get("_meta") or {})
        self._token = meta.pop("progressToken", None)
        self.meta: Wire = {name: value for name, value in meta.items() if not name.startswith(OWN)}
        declared = ctx.session.client_capabilities
        self.capabilities: Wire = (
            {} if declared is None else declared.model_dump(mode="json", by_alias=True, exclude_none=True)
        )
        self._answers: Wire = {**json.loads(params.get("requestState") or "{}"), **(params.get("inputResponses") or {})}
        self._asked: dict[str, Wire] = {}
        if not self.modern:
            server.connections.add(self.connection)

    async def ask(self, key: str, method: str, params: Wire) -> Wire:
        if key != "anyway" and NEEDED.get(method, "") not in {"", *self.capabilities}:
            needed: Wire = {"requiredCapabilities": {NEEDED[method]: {}}}
            if not self.modern:
                raise Refusal(types.INVALID_REQUEST, f"the client has no {NEEDED[method]}")
            raise Refusal(types.MISSING_REQUIRED_CLIENT_CAPABILITY, f"the client has no {NEEDED[method]}", needed)
        if not self.modern:
            return await self._ask_now(method, params)
        if key not in self._answers:
            self._asked[key] = {"method": method, "params": params}
            raise NeedsInput
        return dict(self._answers[key])

    async def _ask_now(self, method: str, params: Wire) -> Wire:
        request = _request_of.validate_python({"method": method, "params": params})
        try:
            answer = await self._session._request_outbound.send_raw_request(
                method, request.model_dump(mode="json", by_alias=True, exclude_none=True)["params"]
            )
        except MCPError as error:
            raise Refusal(error.code, error.message) from None
        return dict(answer)

    def questions(self) -> Wire:
        return {
            "resultType": "input_required",
            "inputRequests": self._asked,
            "requestState": json.dumps(self._answers),
        }

    async def progress(self, progress: float, total: float, message: str) -> None:
        if self._token is not None:
            told = {"progressToken": self._token, "progress": progress, "total": total, "message": message}
            await self._session._request_outbound.notify("notifications/progress", told)

    async def log(self, level: str, data: Any) -> None:
        levels = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
        wanted = (self._ctx.meta or {}).get(f"{OWN}logLevel") if self.modern else self._wanted_level()
        if wanted is not None and levels.index(level) >= levels.index(str(wanted)):
            told = {"level": level, "logger": "matrix", "data": data}
            await self._session._request_outbound.notify("notifications/message", told)

    def _wanted_level(self) -> str:
        return self._server.levels.get(self.connection, "warning")

    async def changed(self, kind: str) -> None:
        await self._server.bus.publish(CHANGES[kind]())
        await self._server.tell({"method": f"notifications/{kind}/list_changed"})

    async def updated(self, uri: str) -> None:
        def wanted(connection: Any) -> bool:
            return uri in self._server.subscribed.get(connection, ())

        await self._server.bus.publish(ResourceUpdated(uri=uri))
        await self._server.tell({"method": "notifications/resources/updated", "params": {"uri": uri}}, wanted)

    async def visited(self, elicitation_id: str) -> None:
        if not self.modern:
            told = {"elicitationId": elicitation_id}
            await self._session._request_outbound.notify("notifications/elicitation/complete", told)

    def setting(self, what: str, params: Wire) -> None:
        """resources/subscribe, resources/unsubscribe, logging/setLevel."""
        if what == "setLevel":
            self._server.offer.see("level", level=params["level"])
            self._server.levels[self.connection] = params["level"]
            return
        self._server.offer.see(what, uri=params["uri"])
        uris = self._server.subscribed.setdefault(self.connection, set())
        if what == "subscribe":
            uris.add(params["uri"])
        else:
            uris.discard(params["uri"])


async def _never(ctx: Context, params: Any) -> Any:
    raise AssertionError("the middleware answers")


async def main(seen: Path, modern_only: bool) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    app = Dual(Offer(seen), modern_only=modern_only).streamable_http_app()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"}), flush=True)
        config = uvicorn.Config(app, log_level="error", http="h11", timeout_graceful_shutdown=1)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), "--modern-only" in sys.argv))
