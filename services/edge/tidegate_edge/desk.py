"""The desk behind the front door: an exchange becomes a request of a known principal in a session, and goes to its
method.

A stranger's body is not parsed: identify comes before accept. What a known principal sends and is refused is an event.
"""

import asyncio
from typing import Final
from urllib.parse import unquote

import msgspec

from tidegate.errors import Fault
from tidegate.identity import Principal, Refused, www_authenticate
from tidegate.ids import now_us
from tidegate.limits import LARGE_BYTES
from tidegate.settings import Settings
from tidegate_edge import methods, sessions, streams
from tidegate_edge.accept import MODERN_VERSIONS, Batch, Request, Response, accept, accepting, refuse
from tidegate_edge.edge import Edge
from tidegate_edge.exchange import Exchange
from tidegate_edge.inflight import ClientCancelled
from tidegate_edge.messages import INTERNAL_ERROR, INVALID_REQUEST, Reply, RequestId
from tidegate_edge.refusals import Refusals

CREDENTIALS_NEEDED: Final = (
    "A bearer token is needed: the resource metadata in WWW-Authenticate names who issues them, "
    "and `tidegate token` makes one where the local issuer is on."
)
ELSEWHERE: Final = Refused(
    "token-audience-wrong",
    "the token was made for another endpoint of this gateway (aud); ask for one for this endpoint",
)
BEARER: Final = b"Bearer "
ALLOW: Final = b"allow: POST, GET, DELETE\r\n"


class Desk:
    """Serves exchanges for one edge."""

    def __init__(self, edge: Edge, allowed_hosts: frozenset[str], allowed_origins: frozenset[str]) -> None:
        self._edge = edge
        self.refusals = Refusals(edge, methods.MODERN | methods.LEGACY)
        self._servers = {"/".join(filter(None, ("/mcp", door))).encode(): door for door in edge.settings.doors}
        self._audiences = {server: _audiences_of(edge.settings, server) for server in self._servers.values()}
        self._hosts = frozenset(host.encode() for host in allowed_hosts)
        self._origins = frozenset(origin.encode() for origin in allowed_origins)

    def knows(self, exchange: Exchange) -> bool:
        """Whether this token was verified before; strangers get little room for large bodies."""
        given = exchange.headers.get(b"authorization", b"")
        return self._edge.verifier.verify_cached(given[len(BEARER) :], now_us()) is not None

    async def serve(self, exchange: Exchange) -> Reply:
        """One exchange, start to reply. A fault of ours is told as one, with its code."""
        try:
            return await self._serve(exchange)
        except Fault as fault:
            return _failed(fault)

    async def refused(self, exchange: Exchange, reply: Reply) -> None:
        """What the front door refused unread: a fact where the token is one that was verified before."""
        given = exchange.headers.get(b"authorization", b"")
        principal = self._edge.verifier.verify_cached(given[len(BEARER) :], now_us())
        if principal is not None:
            await self.refusals.note(principal, "", reply)

    async def _serve(self, exchange: Exchange) -> Reply:
        headers = exchange.headers
        if (wrong := self._wrong_address(headers)) is not None:
            return wrong
        server = self._servers.get(exchange.path)
        if server is None and (server := self._server_of(exchange.path)) is None:
            return refuse(
                404, INVALID_REQUEST, "no such MCP endpoint; use /mcp, /mcp/{server} or /mcp/sets/{name}, as configured"
            )
        given = headers.get(b"authorization", b"")
        known = self._edge.verifier.verify_cached(given[len(BEARER) :], now_us()) if given[:7] == BEARER else None
        principal = known or await self._identify(headers, server)
        if isinstance(principal, Reply):
            return principal
        if exchange.method == b"POST" and not self._audiences[server].isdisjoint(principal.audiences):
            return await self._post(exchange, headers, principal, server)
        try:
            reply = await self._beside(exchange, headers, principal, server)
        except Fault as fault:
            reply = _failed(fault)
        if reply.status >= 400:
            await self.refusals.note(principal, "", reply)
        return reply

    async def _beside(
        self, exchange: Exchange, headers: dict[bytes, bytes], principal: Principal, server: str
    ) -> Reply:
        """What is no POST, or at a door that the token is not for."""
        if self._audiences[server].isdisjoint(principal.audiences):
            return self._challenge(ELSEWHERE, server)
        if headers.get(b"mcp-protocol-version", b"").decode("latin-1") not in MODERN_VERSIONS:
            if exchange.method == b"GET":
                return await streams.get_stream(self._edge, principal, server, exchange)
            if exchange.method == b"DELETE":
                return await sessions.end(self._edge, principal, headers.get(b"mcp-session-id", b"").decode("latin-1"))
        told = "this endpoint takes POST; GET and DELETE are for sessions of the revisions before 2026-07-28"
        return Reply(405, refuse(405, INVALID_REQUEST, told).body, ALLOW)

    def _wrong_address(self, headers: dict[bytes, bytes]) -> Reply | None:
        """Foreign Host or Origin: DNS rebinding (2025-11-25 and 2026-07-28 transports, Security)."""
        host = headers.get(b"host", b"")
        if host not in self._hosts and host.lower() not in self._hosts:
            return refuse(
                421, INVALID_REQUEST, "this Host is not served here; add it to allowed_hosts or set public_url"
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in self._origins:
            return refuse(403, INVALID_REQUEST, "this Origin is not allowed; add it to allowed_origins")
        return None

    def _server_of(self, path: bytes) -> str | None:
        """The server of a path that is not written plainly (a query, an escape, a slash at the end); None: no such."""
        plain = unquote(path.partition(b"?")[0].decode("latin-1")).rstrip("/")
        return self._servers.get(plain.encode())

    async def _identify(self, headers: dict[bytes, bytes], server: str) -> Principal | Reply:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            return self._challenge(None, server)
        principal = await self._edge.verifier.verify(token.strip(b" \t").decode("latin-1"))
        return self._challenge(principal, server) if isinstance(principal, Refused) else principal

    def _challenge(self, refused: Refused | None, server: str) -> Reply:
        self._edge.counters.refused_requests[refused.reason if refused else "no-token"] += 1
        path = f"/mcp/{server}" if server else "/mcp"
        metadata = f"{self._edge.settings.url}/.well-known/oauth-protected-resource{path}"
        value = www_authenticate(refused, metadata)
        sentence = refused.message if refused else CREDENTIALS_NEEDED
        reply = refuse(refused.status if refused else 401, INVALID_REQUEST, sentence)
        return msgspec.structs.replace(reply, headers=f"www-authenticate: {value}\r\n".encode("latin-1", "replace"))

    async def _post(self, exchange: Exchange, headers: dict[bytes, bytes], principal: Principal, server: str) -> Reply:
        if exchange.body_bytes <= LARGE_BYTES:
            accepted = accept(headers, exchange.body)
        else:
            accepted = await self._edge.aside.in_turns(accepting(headers, exchange.body))
            await asyncio.sleep(0)  # what follows begins a turn of its own
        if isinstance(accepted, Batch):
            return await self._batch(principal, server, accepted, exchange)
        if isinstance(accepted, Request):
            exchange.cancel_on_disconnect = accepted.modern
        return await self._answer(principal, server, accepted, exchange)

    async def _batch(self, principal: Principal, server: str, batch: Batch, exchange: Exchange) -> Reply:
        replies = await asyncio.gather(*[self._answer(principal, server, one, exchange) for one in batch.members])
        refused = next((reply for reply in replies if reply.status == 404), None)  # the session they share is gone
        if refused is not None:
            return refused
        bodies = [reply.body for reply in replies if reply.body]
        return Reply(200, b"[%b]" % b",".join(bodies)) if bodies else Reply(202)

    async def _answer(
        self, principal: Principal, server: str, accepted: Request | Response | Reply, exchange: Exchange
    ) -> Reply:
        if isinstance(accepted, Reply):
            reply = accepted
        else:
            try:
                if isinstance(accepted, Response):
                    reply = await sessions.answered(self._edge, principal, accepted)
                else:
                    reply = await methods.serve(self._edge, principal, server, accepted, exchange)
            except Fault as fault:  # of a batch, one member's fault is not the others'
                reply = _failed(fault, accepted.id)
            except ClientCancelled:
                reply = Reply(202)
        if not reply.recorded and (reply.status >= 400 or reply.refused):
            await self.refusals.note(principal, accepted.method if isinstance(accepted, Request) else "", reply)
        return reply


def _failed(fault: Fault, request_id: RequestId | None = None) -> Reply:
    return refuse(503, INTERNAL_ERROR, fault.sentence, request_id, {"reason": fault.code})


def _audiences_of(settings: Settings, server: str) -> frozenset[str]:
    """What serves at an endpoint: the gateway's audience and its own; what is configured serves everywhere."""
    if settings.identity.audience:
        return frozenset(settings.audiences)
    whole = f"{settings.url}/mcp"
    return frozenset((whole, f"{whole}/{server}" if server else whole))
