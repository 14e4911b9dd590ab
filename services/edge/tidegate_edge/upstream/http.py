"""An upstream over streamable HTTP, in the era it speaks: modern (2026-07-28, no session) or legacy (a session per
caller).

The era is found once by `server/discover` and kept; a network fault is no verdict. Legacy sessions are shared by the
edges through the session store: whoever initializes first, wins. 404 on a session means "not executed": re-initialize
and send once more.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from tidegate import __version__
from tidegate.errors import UpstreamFault
from tidegate.ids import now_us
from tidegate.sessions.port import SessionStore, UpstreamKey, UpstreamSession
from tidegate_edge import messages, strict_json
from tidegate_edge.messages import CLIENT_CAPABILITIES_META, CLIENT_INFO_META, PROTOCOL_VERSION_META, encode
from tidegate_edge.translate import CLIENT_INFO, MODERN
from tidegate_edge.upstream.connection import Pool, Response
from tidegate_edge.upstream.listing import drain_tools
from tidegate_edge.upstream.port import (
    SILENCE,
    Answer,
    Caller,
    Definitions,
    Outgoing,
    Paused,
    Routing,
    Talk,
    Wanted,
)

LEGACY: Final = "2025-11-25"
SESSION_TTL_S: Final = 3_600.0


class HttpUpstream:
    """One server behind a URL; `headers` carry its credential."""

    def __init__(
        self, name: str, pool: Pool, headers: dict[str, str], sessions: SessionStore, *, tenant: str, edge: str
    ) -> None:
        self.name = name
        self._pool = pool
        self._sessions = sessions
        self._edge = edge
        self._owner = Caller(tenant, "gateway", "tidegate")
        self._modern: bool | None = None
        self._ids = itertools.count(1)
        self._probe = asyncio.Lock()
        own = "".join(f"{key.lower()}: {value}\r\n" for key, value in headers.items())
        self._head = (
            f"POST {pool.target} HTTP/1.1\r\nhost: {pool.authority}\r\ncontent-type: application/json\r\n"
            f"accept: application/json, text/event-stream\r\nuser-agent: tidegate/{__version__}\r\n{own}"
        ).encode()
        self._modern_head = self._head + f"mcp-protocol-version: {MODERN}\r\n".encode()

    async def start(self) -> None:
        """Nothing to do: connections open with the first request."""

    def known_era(self, client_modern: bool) -> bool | None:
        return self._modern

    async def era(self, client_modern: bool, timeout_s: float) -> bool:
        if self._modern is None:
            with _nothing_sent():
                await self._find_era(timeout_s)
        return bool(self._modern)

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        if outgoing.modern:
            return await self._modern_request(outgoing.method, outgoing.params, outgoing.routing, outgoing.timeout_s)
        return await self._legacy_request(outgoing.method, outgoing.params, outgoing.caller, outgoing.timeout_s)

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        raise UpstreamFault(f"{self.name}: the pause has ended", code="upstream-pause-ended", sent=False)

    async def notify(self, method: str, params: bytes, caller: Caller) -> None: ...

    async def listen(self, wanted: Wanted, caller: Caller, modern: bool, talk: Talk) -> None: ...

    async def end(self, caller: Caller) -> None: ...

    async def definitions(self, timeout_s: float) -> Definitions:
        modern = await self.era(True, timeout_s)

        async def fetch(cursor: str | None) -> Answer:
            params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
            if modern:
                params["_meta"] = _own_meta()
            outgoing = Outgoing("tools/list", encode(params), self._owner, modern, timeout_s)
            answer = await self.request(outgoing, SILENCE)
            assert isinstance(answer, Answer)
            return answer

        return await drain_tools(self.name, fetch)

    async def close(self) -> None:
        """Close the connections. Sessions live on: other edges use them, and the upstream ends idle ones."""
        self._pool.close()

    # the two eras

    async def _find_era(self, timeout_s: float) -> None:
        async with self._probe:
            if self._modern is not None:
                return
            request_id = next(self._ids)
            body = messages.request_body(request_id, "server/discover", encode({"_meta": _own_meta()}))
            response = await self._post(
                self._modern_head + b"mcp-method: server/discover\r\n", body, request_id, timeout_s
            )
            if response.status in (401, 403) or response.status >= 500:
                raise UpstreamFault(
                    f"{self.name}: answered {response.status} to server/discover; "
                    f"check its URL and credential (servers.{self.name})",
                    code="upstream-unauthorized" if response.status < 500 else "upstream-failed",
                )
            self._modern = _is_modern(response, request_id)
            session = response.headers.get(b"mcp-session-id")
            if session and not self._modern:  # some servers open a session for the probe: do not leave it behind
                await self._end_session(self._opened(session, LEGACY))

    async def _modern_request(self, method: str, params: bytes, routing: Routing, timeout_s: float) -> Answer:
        request_id = next(self._ids)
        head = b"%bmcp-method: %b\r\n" % (self._modern_head, method.encode())
        if routing.name:
            head += b"mcp-name: %b\r\n%b" % (routing.name.encode(), routing.param_headers)
        body = messages.request_body(request_id, method, params)
        return self._answer_in(await self._post(head, body, request_id, timeout_s), request_id)

    async def _legacy_request(self, method: str, params: bytes, caller: Caller, timeout_s: float) -> Answer:
        for attempt in (1, 2):
            session = self._sessions.known_upstream(self._key(caller)) or await self._session(caller, timeout_s)
            request_id = next(self._ids)
            body = messages.request_body(request_id, method, params)
            response = await self._post(self._session_head(session), body, request_id, timeout_s)
            if response.status != 404 or not session.session_id or attempt == 2:
                return self._answer_in(response, request_id)
            # 404 on a session: not executed, so it may be sent once more
            await self._sessions.drop_upstream(self._key(caller), session.session_id)
        raise AssertionError("the second attempt returns")

    # legacy sessions

    async def _session(self, caller: Caller, timeout_s: float) -> UpstreamSession:
        key = self._key(caller)
        standing = await self._sessions.get_upstream(key)
        if standing is None:
            with _nothing_sent():
                mine = await self._initialize(timeout_s)
            standing = await self._sessions.put_upstream(key, mine, SESSION_TTL_S)
            if standing.session_id != mine.session_id:  # another edge was first
                await self._end_session(mine)
        return standing

    async def _initialize(self, timeout_s: float) -> UpstreamSession:
        request_id = next(self._ids)
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT_INFO}
        body = messages.request_body(request_id, "initialize", encode(params))
        response = await self._post(self._head, body, request_id, timeout_s)
        answer = self._answer_in(response, request_id)
        if answer.error:
            raise UpstreamFault(
                f"{self.name}: initialize failed: {answer.error[:200].decode(errors='replace')}", sent=False
            )
        version = _negotiated(self.name, answer.result)
        session = self._opened(response.headers.get(b"mcp-session-id", b""), version)
        initialized = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
        await self._pool.send(self._session_head(session), initialized, timeout_s=timeout_s)
        return session

    def _opened(self, session_id: bytes, version: str) -> UpstreamSession:
        return UpstreamSession(
            session_id=session_id.decode("latin-1"), protocol=version, opened_us=now_us(), edge=self._edge
        )

    async def _end_session(self, session: UpstreamSession) -> None:
        head = self._session_head(session).replace(b"POST ", b"DELETE ", 1)
        try:
            await self._pool.send(head, b"", timeout_s=2.0)
        except UpstreamFault:
            return  # best effort: the upstream ends idle sessions by itself

    def _session_head(self, session: UpstreamSession) -> bytes:
        head = b"%bmcp-protocol-version: %b\r\n" % (self._head, session.protocol.encode())
        return head + b"mcp-session-id: %b\r\n" % session.session_id.encode("latin-1") if session.session_id else head

    def _key(self, caller: Caller) -> UpstreamKey:
        return UpstreamKey(caller.tenant, self.name, caller.subject_id, caller.agent)

    # answers

    async def _post(self, head: bytes, body: bytes, request_id: int, timeout_s: float) -> Response:
        def is_wanted(event: bytes) -> bool:
            return _response_in(event, request_id) is not None

        return await self._pool.send(head, body, is_wanted=is_wanted, timeout_s=timeout_s)

    def _answer_in(self, response: Response, request_id: int) -> Answer:
        candidates = [response.body] if response.events is None else response.events
        for raw in candidates:
            if (answer := _response_in(raw, request_id)) is not None:
                return answer
        if response.status in (401, 403):
            raise UpstreamFault(
                f"{self.name}: refused the gateway's credential ({response.status}); see servers.{self.name}.headers",
                code="upstream-unauthorized",
            )
        kind = response.headers.get(b"content-type", b"nothing").decode("latin-1")[:80]
        if response.body and kind.startswith("application/json"):
            try:
                strict_json.read(response.body)
            except strict_json.NotStrictJson as error:
                raise UpstreamFault(
                    f"{self.name}: the answer is refused: {error}", code="upstream-malformed"
                ) from error
        raise UpstreamFault(f"{self.name}: answered {response.status} with {kind}, not with this request's response")


@contextlib.contextmanager
def _nothing_sent() -> Iterator[None]:
    """A fault while getting ready is no fault of the call: that was not sent."""
    try:
        yield
    except UpstreamFault as fault:
        raise UpstreamFault(fault.sentence, code=fault.code, sent=False) from fault


class _Initialized(msgspec.Struct):
    protocolVersion: str = LEGACY


_decode_initialized: Final = messages.careful(msgspec.json.Decoder(_Initialized).decode)
_decode_any: Final = messages.careful(msgspec.json.Decoder().decode)


def _negotiated(name: str, result: bytes) -> str:
    """The revision that the server chose. Raises UpstreamFault where it is none that is spoken here."""
    try:
        version = _decode_initialized(result).protocolVersion
    except msgspec.DecodeError as error:
        raise UpstreamFault(
            f"{name}: the answer to initialize is malformed: {error}", code="upstream-malformed"
        ) from error
    if version not in HANDSHAKE_PROTOCOL_VERSIONS:
        raise UpstreamFault(f"{name}: chose the protocol revision {version[:32]!r}, which is not spoken here")
    return version


def _response_in(raw: bytes, request_id: int) -> Answer | None:
    """The response to `request_id` in these bytes. An error without a readable id answers the only request there is."""
    try:
        wire = messages.decode_wire(raw)
    except msgspec.DecodeError:
        return None
    if wire.id == request_id and wire.result is not msgspec.UNSET:
        return Answer(result=bytes(wire.result))
    if (
        wire.error is not msgspec.UNSET
        and wire.method is msgspec.UNSET
        and wire.id in (request_id, None, msgspec.UNSET)
    ):
        return Answer(error=bytes(wire.error))
    return None


def _is_modern(response: Response, request_id: int) -> bool:
    """Modern iff a DiscoverResult names a modern version, or an error is one that only a modern server gives."""
    for raw in [response.body] if response.events is None else response.events:
        answer = _response_in(raw, request_id)
        if answer is None:
            continue
        try:
            if answer.result:
                versions = _decode_any(answer.result).get("supportedVersions", [])
                return bool(set(MODERN_PROTOCOL_VERSIONS) & set(versions))
            return messages.decode_error(answer.error).code in (-32020, -32021, -32022)
        except (msgspec.DecodeError, AttributeError, TypeError):
            return False
    return False


def _own_meta() -> dict[str, Any]:
    return {PROTOCOL_VERSION_META: MODERN, CLIENT_CAPABILITIES_META: {}, CLIENT_INFO_META: CLIENT_INFO}
