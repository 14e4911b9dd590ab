"""What a server of the handshake era says outside of requests: the GET stream of a caller's session, opened again
whenever it ends, and the resources that are subscribed to in that session.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from tidegate.errors import Fault, UpstreamFault
from tidegate.sessions.port import UpstreamKey, UpstreamSession
from tidegate_edge.messages import INTERNAL_ERROR, RequestId, encode
from tidegate_edge.upstream.answers import params_of, read_wire, response_body
from tidegate_edge.upstream.connection import FOREVER, Exchange, Response
from tidegate_edge.upstream.errands import Errands
from tidegate_edge.upstream.legacy_call import POST_TIMEOUT_S, SessionGone
from tidegate_edge.upstream.legacy_sessions import InitializeRefused, LegacySessions
from tidegate_edge.upstream.patience import Patience
from tidegate_edge.upstream.port import ACKNOWLEDGED, Answer, Asked, Caller, Talk, Wanted
from tidegate_edge.upstream.replicas import Replica
from tidegate_edge.upstream.server_asks import own_answer, refusal
from tidegate_edge.upstream.sse import Event

if TYPE_CHECKING:
    from tidegate_edge.upstream.legacy import Legacy

SESSION_TIMEOUT_S: Final = 30.0
STABLE_S: Final = 5.0  # a stream that lived this long is opened again without much waiting
REMEMBERED_MAX: Final = 10_000
_OFFERS_NOTHING: Final = (400, 404, 405, 406, 501)

_log = logging.getLogger(__name__)


class Listening:
    """Of one server."""

    def __init__(self, legacy: "Legacy", sessions: LegacySessions, errands: Errands) -> None:
        self._legacy = legacy
        self._sessions = sessions
        self._errands = errands
        self._subscribed: dict[str, frozenset[str]] = {}  # by session: the URIs asked for on this edge

    async def run(self, wanted: Wanted, caller: Caller, talk: Talk) -> None:
        """Until cancelled, or the server offers nothing of the kind. Raises InitializeRefused."""
        stream = _Stream(self._sessions, caller, talk, self._errands)
        while True:
            try:
                if not await self._once(stream, wanted):
                    return
            except SessionGone as gone:
                await self._gone(stream.key, gone.session)
            except InitializeRefused:
                raise
            except UpstreamFault as fault:
                _log.debug("%s", fault.sentence)
            except Fault as fault:
                _log.warning("%s: not listening now: %s", self._sessions.name, fault.sentence)
            await asyncio.sleep(stream.wait_s())

    async def _once(self, stream: "_Stream", wanted: Wanted) -> bool:
        session = await self._sessions.standing(stream.key)
        if session is None:
            session = await self._sessions.session(stream.key, stream.caller, SESSION_TIMEOUT_S)
        await self._subscribe(stream, session, frozenset(wanted.uris))
        response = await stream.follow(session)
        if response.is_stream:
            return True
        if response.status == 404 and session.session_id:
            await self._gone(stream.key, session)
            return True
        return response.status not in _OFFERS_NOTHING

    async def _gone(self, key: UpstreamKey, session: UpstreamSession) -> None:
        self._subscribed.pop(session.session_id, None)
        await self._sessions.dropped(key, session)

    async def _subscribe(self, stream: "_Stream", session: UpstreamSession, uris: frozenset[str]) -> None:
        """What this session is to hear of from now on, and no more what it was before."""
        before = self._subscribed.get(session.session_id, frozenset())
        steps = [("resources/unsubscribe", uri) for uri in sorted(before - uris)]
        steps += [("resources/subscribe", uri) for uri in sorted(uris - before)]
        for method, uri in steps:
            answer = await self._legacy.call_in(session, stream.key, stream.caller, method, encode({"uri": uri}))
            if answer.error:
                _log.info("%s: %s was refused", self._sessions.name, method)
        self._subscribed.pop(session.session_id, None)
        if uris:
            self._subscribed[session.session_id] = uris
            if len(self._subscribed) > REMEMBERED_MAX:
                del self._subscribed[next(iter(self._subscribed))]


class _Stream:
    """The GET stream of one caller's session, over its connections."""

    def __init__(self, sessions: LegacySessions, caller: Caller, talk: Talk, errands: Errands) -> None:
        self.caller = caller
        self.key = sessions.key_of(caller)
        self._sessions = sessions
        self._talk = talk
        self._errands = errands
        self._patience = Patience()
        self._retry_s = 0.0
        self._last: tuple[str, str] = ("", "")  # a session and the last event's id in it
        self._asking: set[asyncio.Task[None]] = set()

    def wait_s(self) -> float:
        return max(self._retry_s, self._patience.next_s())

    async def follow(self, session: UpstreamSession) -> Response:
        """Until the stream ends. Raises UpstreamFault."""
        replica = self._sessions.replicas.named(session.replica)
        if replica is None:
            raise UpstreamFault(f"{self._sessions.name}: the session's replica is configured no more", sent=False)
        head = self._sessions.head_of(replica.stream_head, session)
        if self._last[0] == session.session_id and self._last[1]:
            head += b"last-event-id: %b\r\n" % self._last[1].encode()

        def hear(event: Event) -> Answer | None:
            self._hear(event, session, replica)
            return None

        exchange = await replica.streams.begin(head, b"", hear, FOREVER)
        exchange.opened = self._opened
        try:
            return await self._until_it_ends(exchange, replica)
        finally:
            exchange.let_go()
            reader = exchange.reader
            if reader is not None:
                before = self._last[1] if self._last[0] == session.session_id else ""
                self._last = (session.session_id, reader.last_id or before)
                self._retry_s = min(30.0, (reader.retry_ms or 0) / 1000)
            for task in self._asking:
                task.cancel()

    def _opened(self) -> None:
        """From now on the server is heard."""
        self._talk.notified(ACKNOWLEDGED, b"{}")

    async def _until_it_ends(self, exchange: Exchange, replica: Replica) -> Response:
        """A session that is listened to is in use: the store is told now and then."""
        loop = replica.streams.loop
        began_s = loop.time()
        while True:
            timer = loop.call_later(self._sessions.touch_every_s, exchange.interrupt)
            try:
                response = await exchange.wait()
            finally:
                timer.cancel()
                if loop.time() - began_s > STABLE_S:
                    self._patience.reset()
            if response is not None:
                return response
            try:
                await self._sessions.standing(self.key)
            except Fault as fault:
                _log.debug("%s", fault.sentence)

    def _hear(self, event: Event, session: UpstreamSession, replica: Replica) -> None:
        wire = read_wire(event.data)
        if wire is None or wire.method is msgspec.UNSET:
            return
        self._patience.reset()
        if wire.id is msgspec.UNSET or wire.id is None:
            self._talk.notified(wire.method, params_of(wire))
            return
        server_id: RequestId = wire.id  # type: ignore[assignment]
        errand = self._answer(server_id, wire.method, params_of(wire), session, replica)
        task = self._errands.start(errand, f"answer {wire.method}")
        if task is not None:
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _answer(
        self, server_id: RequestId, method: str, params: bytes, session: UpstreamSession, replica: Replica
    ) -> None:
        answer = await self._answer_to(method, params)
        head = self._sessions.head_of(replica.head, session)
        await replica.pool.send(head, response_body(server_id, answer), timeout_s=POST_TIMEOUT_S)

    async def _answer_to(self, method: str, params: bytes) -> Answer:
        known = own_answer(Asked(method, params), self.caller.capabilities, len(self._asking) - 1)
        if known is not None:
            return known
        try:
            return await self._talk.asked(method, params)
        except Fault as fault:
            return refusal(INTERNAL_ERROR, fault.sentence)
