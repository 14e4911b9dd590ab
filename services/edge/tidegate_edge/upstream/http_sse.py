"""The older HTTP+SSE transport (2024-11-05): a session is one GET stream, which names the URL that messages are POSTed
to and carries all answers.

Such a session lives in a connection, so each edge has its own, and a paused call stays on its edge. Counterpart:
`http.py`, which finds out that a server speaks so; `sse_session.py` is one such session.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.sessions.port import UpstreamKey
from tidegate_edge.messages import encode
from tidegate_edge.upstream.answers import nothing_sent
from tidegate_edge.upstream.errands import Errands
from tidegate_edge.upstream.legacy_sessions import LEVELS, InitializeRefused, Introduction
from tidegate_edge.upstream.patience import Patience
from tidegate_edge.upstream.port import SILENCE, Answer, Caller, Outgoing, Paused, Talk, Wanted
from tidegate_edge.upstream.replicas import Replica
from tidegate_edge.upstream.sse_session import SessionEnded, SseCall, SseSession

OPEN_TIMEOUT_S: Final = 5.0
SWEEPS_PER_IDLE: Final = 4


class SseTicket(msgspec.Struct, frozen=True):
    """A paused call by its name, on the edge that has it."""

    name: str


_decode_ticket: Final = msgspec.json.Decoder(SseTicket).decode


class HttpSse:
    """One server. `address` is where other edges find this one."""

    def __init__(
        self,
        name: str,
        replica: Replica,
        errands: Errands,
        address: Callable[[], str],
        *,
        idle_s: float,
        paused_s: float,
        paused_max: int,
    ) -> None:
        self.name = name
        self._replica = replica
        self._errands = errands
        self._address = address
        self._idle_s = idle_s
        self._paused_s = paused_s
        self._paused_max = paused_max
        self._loop = replica.pool.loop
        self._ids = itertools.count(1)
        self._sessions: dict[UpstreamKey, asyncio.Task[SseSession]] = {}
        self._paused: dict[str, tuple[SseCall, asyncio.TimerHandle]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._introduction: Introduction | None = None

    # sessions

    def _key(self, caller: Caller) -> UpstreamKey:
        declared = caller.capabilities.decode()
        return UpstreamKey(caller.tenant, self.name, caller.subject_id, caller.agent, caller.session, declared)

    async def session(self, caller: Caller) -> SseSession:
        """The caller's on this edge; a new one where there is none. Raises UpstreamFault, nothing sent."""
        key = self._key(caller)
        opening = self._sessions.get(key)
        if opening is None:
            opening = asyncio.create_task(self._open(caller), name=f"session at {self.name}")
            self._sessions[key] = opening
            opening.add_done_callback(lambda done: self._opened(key, done))
        try:
            session = await asyncio.shield(opening)
        except InitializeRefused:
            raise
        except UpstreamFault as fault:
            raise nothing_sent(fault) from fault
        session.used_s = self._loop.time()
        return session

    async def _open(self, caller: Caller) -> SseSession:
        session = SseSession(self.name, self._replica, caller, self._errands, lambda: str(next(self._ids)))
        self._introduction = await session.open(OPEN_TIMEOUT_S)
        return session

    def _opened(self, key: UpstreamKey, opening: asyncio.Task[SseSession]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._sessions.pop(key, None)
            return
        opening.result().on_end = lambda: self._forget(key, opening)
        if opening.result().has_ended:
            self._forget(key, opening)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._idle_s / SWEEPS_PER_IDLE, self._end_idle)

    def _forget(self, key: UpstreamKey, opening: asyncio.Task[SseSession]) -> None:
        if self._sessions.get(key) is opening:
            del self._sessions[key]

    def _open_sessions(self) -> list[SseSession]:
        return [one.result() for one in self._sessions.values() if one.done() and one.exception() is None]

    def _end_idle(self) -> None:
        since_s = self._loop.time() - self._idle_s
        for session in self._open_sessions():
            if not session.is_busy and session.used_s < since_s:
                session.close()
        again = self._idle_s / SWEEPS_PER_IDLE
        self._sweep = self._loop.call_later(again, self._end_idle) if self._sessions else None

    # requests

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        for attempt in (1, 2):
            session = await self.session(outgoing.caller)
            try:
                await self._make_verbose(session, outgoing)
                call = SseCall(session, talk, outgoing.progress_token, outgoing.timeout_s)
                return self._paused_or(call, await call.send(outgoing.method, outgoing.params))
            except SessionEnded:
                session.close()
                if attempt == 2:
                    raise
        raise AssertionError("the second attempt returns or raises")

    async def _make_verbose(self, session: SseSession, outgoing: Outgoing) -> None:
        level = outgoing.log_level
        if level not in LEVELS or not session.logs:
            return
        if session.log_level and LEVELS.index(level) >= LEVELS.index(session.log_level):
            return
        session.log_level = level
        call = SseCall(session, SILENCE, "", OPEN_TIMEOUT_S)
        await call.send("logging/setLevel", encode({"level": level}))

    def _paused_or(self, call: SseCall, answer: Answer | None) -> Answer | Paused:
        if answer is not None:
            return answer
        if len(self._paused) >= self._paused_max:
            self._errands.start(call.give_up(), "give up a call that cannot be paused")
            raise UpstreamFault(f"{self.name}: too many calls wait for their clients' answers", code="upstream-busy")
        timer = self._loop.call_later(self._paused_s, self._expired, call.name)
        self._paused[call.name] = (call, timer)
        asked = {key: pending.asked for key, pending in call.pending.items()}
        return Paused(asked, encode(SseTicket(call.name)), self._address())

    def _expired(self, name: str) -> None:
        self._errands.start(self._paused.pop(name)[0].give_up(), "give up a paused call")

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        try:
            name = _decode_ticket(ticket).name
        except (msgspec.DecodeError, UnicodeDecodeError):
            name = ""
        found = self._paused.get(name)
        if found is None or self._key(found[0].session.caller)[:-1] != self._key(caller)[:-1]:
            raise UpstreamFault(
                f"{self.name}: the paused request has ended; make it again", code="upstream-pause-ended"
            )
        del self._paused[name]
        found[1].cancel()
        return self._paused_or(found[0], await found[0].go_on(answers, talk, timeout_s))

    # beside requests

    async def notify(self, method: str, params: bytes, caller: Caller) -> None:
        if self._key(caller) in self._sessions:
            await (await self.session(caller)).tell(method, params)

    async def listen(self, wanted: Wanted, caller: Caller, talk: Talk) -> None:
        patience = Patience()
        while True:
            try:
                session = await self.session(caller)
                patience.reset()
                await session.listen(wanted.uris, talk)
            except UpstreamFault:
                await patience.wait()

    async def introduce(self, caller: Caller, timeout_s: float) -> Introduction:
        await self.session(caller)
        assert self._introduction is not None
        return self._introduction

    async def end(self, caller: Caller) -> None:
        """What this edge has of the caller's session. Other edges end theirs when they are idle."""
        for session in self._open_sessions():
            of = session.caller
            if of.tenant == caller.tenant and (
                of.session == caller.session if caller.session else self._key(of) == self._key(caller)
            ):
                session.close()

    async def close(self) -> None:
        """The edge ends: streams end with it."""
        if self._sweep is not None:
            self._sweep.cancel()
        for _, timer in self._paused.values():
            timer.cancel()
        self._paused.clear()
        for session in self._open_sessions():
            session.close()
        opening = [one for one in self._sessions.values() if not one.done()]
        for one in opening:
            one.cancel()
        if opening:
            await asyncio.wait(opening)
