"""Revisions with a handshake (2025-03-26 … 2025-11-25) over HTTP: requests in sessions that all edges share.

404 on a session means "not executed": a new session, and the request once more; nothing else is ever sent again.
Counterparts: `legacy_sessions.py`, `legacy_call.py`, `legacy_listen.py`.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.ids import now_us
from tidegate.sessions.port import UpstreamKey, UpstreamSession
from tidegate_edge.messages import RequestId, encode
from tidegate_edge.upstream.answers import fields_of, nothing_sent
from tidegate_edge.upstream.errands import Errands
from tidegate_edge.upstream.legacy_call import LegacyCall, SessionGone, Where
from tidegate_edge.upstream.legacy_listen import Listening
from tidegate_edge.upstream.legacy_sessions import LEVELS, Introduction, LegacySessions
from tidegate_edge.upstream.parks import Parks
from tidegate_edge.upstream.port import SILENCE, Answer, Asked, Caller, Outgoing, Paused, Talk, Wanted
from tidegate_edge.upstream.server_asks import Pending

NOTIFY_TIMEOUT_S: Final = 5.0
TICKET_PARAMS_BYTES_MAX: Final = 8 * 1024


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """`params` only where they are small: to ask again what was not answered."""

    id: RequestId
    method: str
    params: msgspec.Raw = msgspec.Raw(b"")


class Ticket(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that another edge needs to go on with a paused call; or, in `park`, where its stream is kept."""

    owner: str
    v: int = 1
    park: str = ""
    session: str = ""
    protocol: str = ""
    replica: str = ""
    request_id: str = ""
    last_id: str = ""
    asked: dict[str, Question] = {}  # by key


_decode_ticket = msgspec.json.Decoder(Ticket).decode


class Legacy:
    """One server's side of the handshake era. `address` is where other edges find this one."""

    def __init__(self, sessions: LegacySessions, parks: Parks, errands: Errands, address: Callable[[], str]) -> None:
        self.name = sessions.name
        self.sessions = sessions
        self.parks = parks
        self._errands = errands
        self._address = address
        self._listening = Listening(self, sessions, errands)

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        caller = outgoing.caller
        key = self.sessions.key_of(caller)
        for attempt in (1, 2):
            try:
                session = await self._session(key, caller, outgoing)
                call = self._call(key, session, caller, talk, outgoing.timeout_s)
                try:
                    return self._paused(call, await call.send(outgoing.method, outgoing.params))
                finally:
                    if call.session_is_doubtful:  # a new one for the next request; 400 says nothing of this one
                        await self.sessions.dropped(key, session)
            except SessionGone as gone:
                if attempt == 2:
                    raise
                await self.sessions.dropped(key, gone.session)
            except UpstreamFault as fault:
                if attempt == 2 or fault.code != "upstream-unreachable" or not self.sessions.replicas.are_many:
                    raise
                await self._leave_replica(key)
        raise AssertionError("the second attempt returns or raises")

    async def _session(self, key: UpstreamKey, caller: Caller, outgoing: Outgoing) -> UpstreamSession:
        session = self.sessions.known(key)
        if session is None or self.sessions.replicas.named(session.replica) is None:
            session = await self.sessions.session(key, caller, outgoing.timeout_s)
        if outgoing.log_level and _is_more_verbose(outgoing.log_level, session):
            session = await self._make_verbose(key, session, caller, outgoing)
        return session

    def _call(
        self, key: UpstreamKey, session: UpstreamSession, caller: Caller, talk: Talk, timeout_s: float
    ) -> LegacyCall:
        replica = self.sessions.replicas.named(session.replica)
        assert replica is not None
        where = Where(self.sessions, session, replica, caller, _owner(key), self._errands)
        return LegacyCall(where, self.sessions.next_id(), talk, timeout_s)

    async def _leave_replica(self, key: UpstreamKey) -> None:
        """Its replica cannot be reached, and nothing was sent: the session is lost with it."""
        session = self.sessions.known(key) or await self.sessions.standing(key)
        if session is not None:
            replica = self.sessions.replicas.named(session.replica)
            if replica is not None:
                replica.went_down()
            await self.sessions.dropped(key, session)

    async def _make_verbose(
        self, key: UpstreamKey, session: UpstreamSession, caller: Caller, outgoing: Outgoing
    ) -> UpstreamSession:
        """logging/setLevel, once for all edges; a server that refuses is not asked again."""
        session = await self.sessions.standing(key) or session
        if not _is_more_verbose(outgoing.log_level, session):
            return session
        try:
            await self.call_in(session, key, caller, "logging/setLevel", encode({"level": outgoing.log_level}))
        except SessionGone:
            raise
        except UpstreamFault as fault:
            raise nothing_sent(fault) from fault
        return await self.sessions.amended(key, session, outgoing.log_level)

    async def call_in(
        self, session: UpstreamSession, key: UpstreamKey, caller: Caller, method: str, params: bytes
    ) -> Answer:
        """A request of the gateway's own in a caller's session."""
        call = self._call(key, session, caller, SILENCE, NOTIFY_TIMEOUT_S)
        answer = await call.send(method, params)
        assert answer is not None
        return answer

    # pauses

    def _paused(self, call: LegacyCall, answer: Answer | None) -> Answer | Paused:
        if answer is not None:
            return answer
        asked = {key: one.asked for key, one in call.pending.items()}
        owner = call.where.owner
        if call.can_return:
            call.leave()
            session = call.where.session
            ticket = Ticket(
                owner,
                session=session.session_id,
                protocol=session.protocol,
                replica=session.replica,
                request_id=call.request_id,
                last_id=call.last_id,
                asked=_questions(call.pending),
            )
            return Paused(asked, encode(ticket))
        if self.parks.are_full:
            self._errands.start(call.give_up(), "give up a call that cannot be paused")
            raise UpstreamFault(f"{self.name}: too many calls wait for their clients' answers", code="upstream-busy")
        return Paused(asked, encode(Ticket(owner, park=self.parks.keep(call))), self._address())

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        call = self._call_of(ticket, caller, talk, timeout_s)
        if call is None:
            raise UpstreamFault(
                f"{self.name}: the paused request has ended; make it again", code="upstream-pause-ended"
            )
        return self._paused(call, await call.go_on(answers, talk, timeout_s))

    def _call_of(self, ticket: bytes, caller: Caller, talk: Talk, timeout_s: float) -> LegacyCall | None:
        key = self.sessions.key_of(caller)
        try:
            given = _decode_ticket(ticket)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if given.owner != _owner(key):
            return None
        if given.park:
            return self.parks.take(given.park, given.owner)
        replica = self.sessions.replicas.named(given.replica)
        if replica is None:
            return None
        session = UpstreamSession(
            session_id=given.session, protocol=given.protocol, replica=given.replica, opened_us=now_us(), edge=""
        )
        where = Where(self.sessions, session, replica, caller, given.owner, self._errands)
        call = LegacyCall(where, given.request_id, talk, timeout_s)
        call.last_id = given.last_id
        call.pending = {
            name: Pending(one.id, Asked(one.method, bytes(one.params))) for name, one in given.asked.items()
        }
        return call

    # beside requests

    async def notify(self, method: str, params: bytes, caller: Caller) -> None:
        """To the session that there is; nothing where there is none."""
        session = await self.sessions.standing(self.sessions.key_of(caller))
        replica = None if session is None else self.sessions.replicas.named(session.replica)
        if session is None or replica is None:
            return
        body = b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), params)
        await replica.pool.send(self.sessions.head_of(replica.head, session), body, timeout_s=NOTIFY_TIMEOUT_S)

    async def listen(self, wanted: Wanted, caller: Caller, talk: Talk) -> None:
        await self._listening.run(wanted, caller, talk)

    async def end(self, caller: Caller) -> None:
        sessions = await self.sessions.taken(caller)
        await asyncio.gather(*[self.sessions.end(session) for session in sessions])

    async def introduce(self, caller: Caller, timeout_s: float) -> Introduction:
        """What the server says of itself: as the caller's session was told, or one for this alone."""
        if self.sessions.introduction is None:
            await self.sessions.session(self.sessions.key_of(caller), caller, timeout_s)
        if self.sessions.introduction is None:  # another edge has opened that session
            await self.try_handshake(timeout_s)
        assert self.sessions.introduction is not None
        return self.sessions.introduction

    async def try_handshake(self, timeout_s: float) -> None:
        """Open a session, and end it. Raises InitializeRefused, UpstreamFault."""
        await self.sessions.end(await self.sessions.initialize(b"{}", timeout_s))

    async def close(self) -> None:
        self.parks.close()


def _questions(pending: Mapping[str, Pending]) -> dict[str, Question]:
    small = sum(len(one.asked.params) for one in pending.values()) <= TICKET_PARAMS_BYTES_MAX
    return {
        key: Question(one.server_id, one.asked.method, msgspec.Raw(one.asked.params if small else b""))
        for key, one in pending.items()
    }


def _owner(key: UpstreamKey) -> str:
    """Who may go on with a paused call; what the client declares then is another matter."""
    return hashlib.sha256(encode(key[:-1])).hexdigest()[:32]


def _is_more_verbose(level: str, session: UpstreamSession) -> bool:
    """Whether the session must be told so. One that declared no logging has nothing to tell."""
    if level not in LEVELS or "logging" not in fields_of(bytes(session.capabilities)):
        return False
    return not session.log_level or LEVELS.index(level) < LEVELS.index(session.log_level)
