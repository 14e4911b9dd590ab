"""An upstream behind a URL, in the eras and the transport that it speaks: which of them is found out here.

Counterparts: `modern.py`, `legacy.py` and `http_sse.py` speak; `era.py` and `breaker.py` decide. A server that fails
again and again is left alone for a while, and its callers are told so at once.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.sessions.port import SessionStore, UpstreamKey, UpstreamSession
from tidegate_edge.messages import encode
from tidegate_edge.upstream.answers import Unanswered, error_code, nothing_sent
from tidegate_edge.upstream.breaker import Breaker
from tidegate_edge.upstream.era import DOUBTFUL_ERRORS, Era, Eras, doubtful, read_discovery
from tidegate_edge.upstream.errands import Errands
from tidegate_edge.upstream.http_sse import HttpSse
from tidegate_edge.upstream.legacy import Legacy
from tidegate_edge.upstream.legacy_sessions import InitializeRefused, Introduction, LegacySessions, introduction_in
from tidegate_edge.upstream.listing import drain
from tidegate_edge.upstream.modern import Modern, own_meta
from tidegate_edge.upstream.parks import Parks
from tidegate_edge.upstream.port import SILENCE, Answer, Caller, Definitions, Outgoing, Paused, Talk, Wanted
from tidegate_edge.upstream.replicas import Replicas

Transport = Literal["auto", "http", "sse"]
T = TypeVar("T")
_TRANSPORT_FAULTS: Final = ("upstream-unreachable", "upstream-timeout", "upstream-broken")


class Plan(msgspec.Struct, frozen=True):
    """How a server is spoken to, as configured."""

    tenant: str
    edge: str
    era: Era = "auto"
    transport: Transport = "auto"
    idle_s: float = 1_800.0
    paused_s: float = 600.0
    paused_max: int = 256
    failures_max: int = 10


class Handshake(Protocol):
    """What either transport of the handshake era offers."""

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused: ...

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused: ...

    async def notify(self, method: str, params: bytes, caller: Caller) -> None: ...

    async def listen(self, wanted: Wanted, caller: Caller, talk: Talk) -> None: ...

    async def introduce(self, caller: Caller, timeout_s: float) -> Introduction: ...

    async def end(self, caller: Caller) -> None: ...


class HttpUpstream:
    """One server."""

    def __init__(self, name: str, replicas: Replicas, store: SessionStore, plan: Plan) -> None:
        self.name = name
        self.plan = plan
        self.replicas = replicas
        self._store = store
        self.errands = Errands(name)
        self.parks = Parks(self.errands, calls_max=plan.paused_max, kept_s=plan.paused_s)
        self._loop = asyncio.get_running_loop()
        self._owner = Caller(plan.tenant, "gateway", "tidegate")
        self._eras = Eras("legacy" if plan.transport == "sse" else plan.era, self._loop.time)
        self._breaker = Breaker(plan.failures_max)
        self._asking = asyncio.Lock()
        self._modern = Modern(name, replicas)
        self._sessions = LegacySessions(name, replicas, store, edge=plan.edge, idle_s=plan.idle_s)
        self._streamable = Legacy(self._sessions, self.parks, self.errands, lambda: self._store.address)
        self._older = HttpSse(
            name,
            next(iter(replicas)),
            self.errands,
            lambda: self._store.address,
            idle_s=plan.idle_s,
            paused_s=plan.paused_s,
            paused_max=plan.paused_max,
        )
        self._legacy: Handshake = self._older if plan.transport == "sse" else self._streamable

    async def start(self) -> None:
        """Nothing to do: connections open with the first request."""

    # which era

    def known_era(self, client_modern: bool) -> bool | None:
        return self._eras.known(client_modern)

    async def era(self, client_modern: bool, timeout_s: float) -> bool:
        known = self._eras.known(client_modern)
        if known is not None:
            return known
        self._admit()
        try:
            async with self._asking:
                return await self._ask_for_era(client_modern, timeout_s)
        except UpstreamFault as fault:
            self._failed(fault)
            raise nothing_sent(fault) from fault
        except BaseException:
            self._breaker.abandoned()
            raise

    async def _ask_for_era(self, client_modern: bool, timeout_s: float) -> bool:
        if self._eras.known(True) is None:
            await self._discover(timeout_s)
        known = self._eras.known(client_modern)
        if known is None:  # a modern server, and a legacy client: whether both can speak as the client does
            known = not await self._try_handshake(timeout_s)
        return known

    async def _discover(self, timeout_s: float) -> Introduction | None:
        response, request_id = await self._modern.discover(timeout_s)
        found = read_discovery(self.name, response, request_id)
        self._eras.found(found)
        session = response.headers.get(b"mcp-session-id")
        if session and not found.modern:  # some servers open a session for the probe: do not leave it behind
            await self._sessions.end_minted(session)
        return introduction_in(found.result) if found.result else None

    async def _try_handshake(self, timeout_s: float) -> bool:
        try:
            await self._streamable.try_handshake(timeout_s)
            self._eras.found_handshake(True)
            return True
        except InitializeRefused:
            self._eras.found_handshake(False)
        except UpstreamFault:  # tells nothing: for now, the era that is known to be spoken
            pass
        return False

    # requests

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        breaker = self._breaker
        if breaker.is_open:
            self._admit()
        answer: Answer | Paused
        try:
            if outgoing.modern:
                answer = await self._modern.request(outgoing, talk)
                if answer.error and error_code(answer) in DOUBTFUL_ERRORS:
                    self._eras.forget()
            else:
                answer = await self._in_transport(lambda legacy: legacy.request(outgoing, talk))
        except UpstreamFault as fault:
            self._failed(fault)
            if isinstance(fault, InitializeRefused) or (
                outgoing.modern and isinstance(fault, Unanswered) and doubtful(fault.status)
            ):
                self._eras.forget()
            raise
        except BaseException:
            breaker.abandoned()
            raise
        if breaker.failures:
            breaker.succeeded()
        return answer

    async def _in_transport(self, work: Callable[[Handshake], Awaitable[T]]) -> T:
        """In the transport that the server speaks. One that refuses a POST of `initialize` may speak the older one."""
        try:
            return await work(self._legacy)
        except InitializeRefused as refused:
            if not 400 <= refused.status < 500 or not await self._speaks_the_older():
                raise
        return await work(self._legacy)

    async def _speaks_the_older(self) -> bool:
        """Source: specification 2025-11-25, basic/transports, "Backwards Compatibility"."""
        if self.plan.transport != "auto" or self._legacy is self._older:
            return False
        try:
            await self._older.session(self._own_session(self._owner))
        except UpstreamFault:
            return False
        self._legacy = self._older
        return True

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        return await self._legacy.resume(ticket, answers, caller, talk, timeout_s)

    async def notify(self, method: str, params: bytes, caller: Caller) -> None:
        await self._legacy.notify(method, params, caller)

    async def listen(self, wanted: Wanted, caller: Caller, modern: bool, talk: Talk) -> None:
        if modern:
            await self._modern.listen(wanted, talk)
            return
        if caller.session:
            await self._listen_in_session(wanted, caller, talk)
            return
        # a session has one stream, and edges share the sessions of such callers: each listens in one of its own
        listener = self._own_session(caller)
        try:
            await self._listen_in_session(wanted, listener, talk)
        finally:
            self.errands.start(self.end(listener), "end a listener's session")

    async def _listen_in_session(self, wanted: Wanted, caller: Caller, talk: Talk) -> None:
        with contextlib.suppress(InitializeRefused):
            await self._in_transport(lambda legacy: legacy.listen(wanted, caller, talk))

    def _own_session(self, caller: Caller) -> Caller:
        """This edge's own session: asked for lists and listened to, for many servers tell changes to those alone who
        have asked them something.
        """
        return msgspec.structs.replace(caller, session=f"edge:{self._store.address}")

    async def definitions(self, timeout_s: float) -> Definitions:
        own = self._own_session(self._owner)
        modern = await self.era(True, timeout_s)
        if modern:
            said = await self._discover(timeout_s) or Introduction()
        else:
            said = await self._in_transport(lambda legacy: legacy.introduce(own, timeout_s))

        async def fetch(method: str, cursor: str | None) -> Answer:
            params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
            if modern:
                params["_meta"] = own_meta()
            answer = await self.request(Outgoing(method, encode(params), own, modern, timeout_s), SILENCE)
            assert isinstance(answer, Answer)
            return answer

        return await drain(
            self.name,
            fetch,
            capabilities=said.capabilities,
            server_info=said.server_info,
            instructions=said.instructions,
        )

    # ends

    async def end(self, caller: Caller) -> None:
        await self._legacy.end(caller)

    async def end_claimed(self, key: UpstreamKey, session: UpstreamSession) -> None:
        """A session that was taken out of the store because nobody uses it."""
        await self._sessions.end(session)

    async def close(self) -> None:
        """Close the connections. Sessions live on: other edges use them, and what is idle is ended by any of them."""
        self.parks.close()
        await self._older.close()
        await self.errands.close()
        self.replicas.close()

    # failures

    def _admit(self) -> None:
        wait_s = self._breaker.admit(self._loop.time())
        if wait_s:
            raise UpstreamFault(
                f"{self.name}: failed {self._breaker.failures} times in a row and is left alone; "
                f"it is tried again in {wait_s:.1f} s",
                code="upstream-circuit-open",
                sent=False,
            )

    def _failed(self, fault: UpstreamFault) -> None:
        if fault.code in _TRANSPORT_FAULTS:
            self._breaker.failed(self._loop.time())
        elif fault.code == "upstream-busy":
            self._breaker.abandoned()
        elif self._breaker.failures:
            self._breaker.succeeded()  # it answered, however badly
