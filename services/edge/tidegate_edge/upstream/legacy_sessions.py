"""The sessions that callers have at one server of the handshake era, kept in the store for all edges.

Whoever initializes first, wins; what comes second is ended. A session stays at the replica that opened it. Counterpart:
`legacy.py` sends requests in them, `reaper.py` ends idle ones.
"""

import asyncio
import hashlib
import itertools
import logging
import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from tidegate.errors import UpstreamFault
from tidegate.ids import now_us
from tidegate.sessions.port import SessionStore, UpstreamKey, UpstreamSession
from tidegate_edge import messages
from tidegate_edge.messages import encode
from tidegate_edge.translate import CLIENT_INFO
from tidegate_edge.upstream.answers import Unanswered, answer_of, error_message, fields_of, hear_answer, nothing_sent
from tidegate_edge.upstream.connection import Response
from tidegate_edge.upstream.port import NO_CAPABILITIES, Answer, Caller
from tidegate_edge.upstream.replicas import Replica, Replicas

LEGACY: Final = "2025-11-25"
END_TIMEOUT_S: Final = 2.0
LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
CAPABILITIES_BYTES_MAX: Final = 8 * 1024
SESSION_ID_BYTES_MAX: Final = 2 * 1024
_DIGESTS_KEPT_MAX: Final = 10_000

_log = logging.getLogger(__name__)


class InitializeRefused(UpstreamFault):
    """The server answered, and knows no `initialize` here. 4xx: it may speak the older HTTP+SSE transport."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence, sent=False)
        self.status = status


class Introduction(msgspec.Struct, frozen=True):
    """What a server says of itself."""

    capabilities: bytes = b"{}"
    server_info: bytes = b"null"
    instructions: str = ""


class LegacySessions:
    """Of one server. Ids of requests are unique over all edges, which share sessions."""

    def __init__(self, name: str, replicas: Replicas, store: SessionStore, *, edge: str, idle_s: float) -> None:
        self.name = name
        self.replicas = replicas
        self.introduction: Introduction | None = None  # as any session of this process was told last
        self._store = store
        self._edge = edge
        self._idle_s = idle_s
        self.touch_every_s = idle_s / 4  # what is in use without calls must be told to be
        self._ids = itertools.count(1)
        self._writer = secrets.token_hex(4)
        self._opening: dict[UpstreamKey, asyncio.Task[UpstreamSession]] = {}
        self._digests: dict[bytes, str] = {}

    def next_id(self) -> str:
        return f"{self._writer}-{next(self._ids)}"

    def key_of(self, caller: Caller) -> UpstreamKey:
        declared = "" if caller.capabilities == NO_CAPABILITIES else self._digest(caller.capabilities)
        return UpstreamKey(caller.tenant, self.name, caller.subject_id, caller.agent, caller.session, declared)

    def known(self, key: UpstreamKey) -> UpstreamSession | None:
        """Without asking anybody."""
        return self._store.known_upstream(key)

    async def standing(self, key: UpstreamKey) -> UpstreamSession | None:
        """The session that there is; asking counts as use."""
        return await self._store.get_upstream(key)

    async def session(self, key: UpstreamKey, caller: Caller, timeout_s: float) -> UpstreamSession:
        """The one that there is, else a new one; callers of this edge wait for the same. Raises UpstreamFault, with
        nothing sent of what it is for.
        """
        opening = self._opening.get(key)
        if opening is None:
            opening = asyncio.create_task(self._open(key, caller, timeout_s), name=f"session at {self.name}")
            self._opening[key] = opening
            opening.add_done_callback(lambda done: self._opened(key, done))
        try:
            return await asyncio.shield(opening)
        except InitializeRefused:
            raise
        except UpstreamFault as fault:
            raise nothing_sent(fault) from fault

    def _opened(self, key: UpstreamKey, done: asyncio.Task[UpstreamSession]) -> None:
        self._opening.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever waits has it; all may have gone

    async def _open(self, key: UpstreamKey, caller: Caller, timeout_s: float) -> UpstreamSession:
        standing = await self._store.get_upstream(key)
        if standing is not None and self.replicas.named(standing.replica) is not None:
            return standing
        if standing is not None:  # its replica is configured no more
            await self._store.drop_upstream(key, standing.session_id)
        mine = await self.initialize(caller.capabilities, timeout_s)
        won = await self._store.put_upstream(key, mine, self._idle_s)
        if won.session_id != mine.session_id:  # another edge was first
            await self.end(mine)
        return won

    async def initialize(self, capabilities: bytes, timeout_s: float) -> UpstreamSession:
        """A new session that nobody knows of yet, at a replica that can be reached."""
        fault: UpstreamFault | None = None
        for replica in self.replicas.in_turn():
            try:
                return await self._initialize(replica, capabilities, timeout_s)
            except UpstreamFault as unreachable:
                if unreachable.code != "upstream-unreachable":
                    raise
                replica.went_down()
                fault = unreachable
        assert fault is not None
        raise fault

    async def _initialize(self, replica: Replica, capabilities: bytes, timeout_s: float) -> UpstreamSession:
        request_id = self.next_id()
        body = messages.request_body(request_id, "initialize", initialize_params(capabilities))
        hear = hear_answer(request_id)
        response = await replica.pool.send(replica.head, body, hear=hear, timeout_s=timeout_s)
        answer = self._introduced(response, request_id)
        version = negotiated(self.name, answer.result)
        session_id = response.headers.get(b"mcp-session-id", b"")
        if len(session_id) > SESSION_ID_BYTES_MAX:
            raise UpstreamFault(f"{self.name}: its session id is too long ({len(session_id)} bytes)")
        self.introduction = introduction_in(answer.result)
        session = UpstreamSession(
            session_id=session_id.decode("latin-1"),
            protocol=version,
            capabilities=msgspec.Raw(_small(self.introduction.capabilities)),
            opened_us=now_us(),
            edge=self._edge,
            replica=self.replicas.name_of(replica),
        )
        await replica.pool.send(self.head_of(replica.head, session), _INITIALIZED, timeout_s=timeout_s)
        return session

    def _introduced(self, response: Response, request_id: str) -> Answer:
        try:
            answer = answer_of(self.name, response, request_id)
        except Unanswered as fault:
            if 400 <= fault.status < 500:
                raise InitializeRefused(fault.sentence, fault.status) from fault
            raise
        if answer.error:
            raise InitializeRefused(f"{self.name}: initialize failed: {error_message(answer.error)}", response.status)
        return answer

    async def dropped(self, key: UpstreamKey, session: UpstreamSession) -> None:
        """It is gone at the server."""
        await self._store.drop_upstream(key, session.session_id)

    async def amended(self, key: UpstreamKey, session: UpstreamSession, log_level: str) -> UpstreamSession:
        """The session as every edge shall know it from now on."""
        await self._store.drop_upstream(key, session.session_id)
        amended = msgspec.structs.replace(session, log_level=log_level)
        standing = await self._store.put_upstream(key, amended, self._idle_s)
        if standing.session_id != session.session_id:  # between the two, another edge put one of its own
            await self.end(session)
        return standing

    async def taken(self, caller: Caller) -> list[UpstreamSession]:
        """All sessions of a caller's session at this server, taken out of the store; its only one where it has none."""
        if caller.session:
            found = [
                pair
                for pair in await self._store.sessions_of(caller.tenant, caller.session)
                if pair[0].server == self.name
            ]
        else:
            key = self.key_of(caller)
            standing = await self._store.get_upstream(key)
            found = [] if standing is None else [(key, standing)]
        for key, session in found:
            await self._store.drop_upstream(key, session.session_id)
        return [session for _, session in found]

    async def end(self, session: UpstreamSession) -> None:
        """DELETE it at the server. Best effort: the server ends idle ones by itself."""
        replica = self.replicas.named(session.replica)
        if replica is None or not session.session_id:
            return
        try:
            await replica.pool.send(self.head_of(replica.end_head, session), b"", timeout_s=END_TIMEOUT_S)
        except UpstreamFault as fault:
            _log.debug("%s", fault.sentence)

    async def end_minted(self, session_id: bytes) -> None:
        """One that a server opened unasked."""
        for replica in self.replicas:
            minted = UpstreamSession(
                session_id=session_id.decode("latin-1"),
                protocol=LEGACY,
                opened_us=0,
                edge="",
                replica=self.replicas.name_of(replica),
            )
            await self.end(minted)

    def head_of(self, head: bytes, session: UpstreamSession) -> bytes:
        """Request line and headers of anything sent in this session."""
        head = b"%bmcp-protocol-version: %b\r\n" % (head, session.protocol.encode())
        return head + b"mcp-session-id: %b\r\n" % session.session_id.encode("latin-1") if session.session_id else head

    def _digest(self, capabilities: bytes) -> str:
        digest = self._digests.get(capabilities)
        if digest is None:
            if len(self._digests) >= _DIGESTS_KEPT_MAX:
                self._digests.clear()
            digest = self._digests[capabilities] = hashlib.sha256(capabilities).hexdigest()[:32]
        return digest


def initialize_params(capabilities: bytes) -> bytes:
    """What is declared is what the client can be asked for, nothing of the gateway's own."""
    params: Mapping[str, Any] = {
        "protocolVersion": LEGACY,
        "capabilities": msgspec.Raw(capabilities),
        "clientInfo": CLIENT_INFO,
    }
    return encode(params)


def _small(capabilities: bytes) -> bytes:
    """As the record may hold them: no longer than what a sane server declares."""
    return capabilities if len(capabilities) <= CAPABILITIES_BYTES_MAX else b"{}"


class _Initialized(msgspec.Struct):
    protocolVersion: str = LEGACY


_decode_initialized: Final = messages.careful(msgspec.json.Decoder(_Initialized).decode)


def negotiated(name: str, result: bytes) -> str:
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


def introduction_in(result: bytes) -> Introduction:
    """Of an InitializeResult or a DiscoverResult; what is malformed in it counts as not said."""
    fields = fields_of(result)
    meta = fields_of(bytes(fields.get("_meta", b"{}")))
    info = fields.get("serverInfo", meta.get(messages.SERVER_INFO_META, b"null"))
    try:
        instructions = msgspec.json.decode(fields.get("instructions", b'""'), type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        instructions = ""
    capabilities = bytes(fields.get("capabilities", b"{}"))
    return Introduction(capabilities if capabilities.startswith(b"{") else b"{}", bytes(info), instructions)
