"""One request in a session of the handshake era: its stream, what the server asks meanwhile, pauses and coming back.

A stream whose events have ids can be left and come back to from anywhere (GET with Last-Event-ID); the request is not
sent again. One without ids must be kept open: `parks.py` holds it while the client thinks. Counterpart: `legacy.py`.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final

import msgspec

from tidegate.errors import Fault, UpstreamFault
from tidegate.sessions.port import UpstreamSession
from tidegate_edge import messages
from tidegate_edge.messages import INTERNAL_ERROR, METHOD_NOT_FOUND, RequestId, Wire, encode
from tidegate_edge.upstream.answers import (
    answer_in,
    answer_of,
    error_code,
    params_of,
    read_wire,
    response_body,
)
from tidegate_edge.upstream.connection import FOREVER, Exchange, Response
from tidegate_edge.upstream.errands import Errands
from tidegate_edge.upstream.legacy_sessions import LegacySessions
from tidegate_edge.upstream.patience import Patience
from tidegate_edge.upstream.port import SILENCE, Answer, Asked, Caller, Talk
from tidegate_edge.upstream.replicas import Replica
from tidegate_edge.upstream.server_asks import ASKED_MAX, GATHER_S, Pending, own_answer, refusal
from tidegate_edge.upstream.sse import Event

POST_TIMEOUT_S: Final = 10.0
RETRY_S_DEFAULT: Final = 1.0
RETRY_S_MAX: Final = 30.0
QUIET_S: Final = 1.0  # a stream that was come back to and says nothing is fetched anew, each time later
QUIET_S_MAX: Final = 15.0
RETURNS_MAX: Final = 6  # to a stream that tells nothing new


class SessionGone(UpstreamFault):
    """404 on a session: the request was not executed."""

    def __init__(self, name: str, session: UpstreamSession) -> None:
        super().__init__(f"{name}: does not know the session that it opened (404)")
        self.session = session


class Where(msgspec.Struct, frozen=True):
    """Where a request is carried out."""

    sessions: LegacySessions
    session: UpstreamSession
    replica: Replica
    caller: Caller
    owner: str  # who may go on with it after a pause
    errands: Errands


class LegacyCall:
    """From the POST to the answer, over any number of streams and pauses."""

    def __init__(self, where: Where, request_id: str, talk: Talk, timeout_s: float) -> None:
        self.where = where
        self.request_id = request_id
        self.pending: dict[str, Pending] = {}
        self.last_id = ""
        self.session_is_doubtful = False  # many servers answer 400 to a session that they do not know
        self._talk = talk
        self._timeout_s = timeout_s
        self._loop = where.replica.pool.loop
        self._late_s = self._loop.time() + timeout_s
        self._exchange: Exchange | None = None
        self._relaying: set[asyncio.Task[None]] = set()
        self._asking = 0
        self._asked_count = 0
        self._turned_down = 0
        self._is_parked = False
        self._gathering: asyncio.TimerHandle | None = None
        self._is_first = True  # nothing was heard of the server yet but what this request's POST brings
        self._heard = False
        self._patience = Patience()
        self._retry_s = RETRY_S_DEFAULT
        self._quiet_s = QUIET_S
        self._returns = 0

    # the life of it

    async def send(self, method: str, params: bytes) -> Answer | None:
        """POST it and follow it. None: paused, see `pending`. Raises SessionGone, UpstreamFault."""
        where = self.where
        head = where.sessions.head_of(where.replica.head, where.session)
        body = messages.request_body(self.request_id, method, params)
        self._exchange = await where.replica.pool.begin(head, body, self._hear, self._late_s)
        return await self._guarded(self._follow())

    async def go_on(self, answers: Mapping[str, Answer], talk: Talk, timeout_s: float) -> Answer | None:
        """After a pause: tell the server the answers, then follow it. None: paused again."""
        self._talk, self._is_parked = talk, False
        self._timeout_s = timeout_s
        self._late_s = self._loop.time() + timeout_s
        self._is_first = False
        if self._exchange is not None:
            self._exchange.late_s = self._late_s
            self.where.replica.pool.watch_the_time()
        return await self._guarded(self._go_on(answers))

    async def _go_on(self, answers: Mapping[str, Answer]) -> Answer | None:
        given = {
            key: answers.get(key) or one.withdrawal
            for key, one in self.pending.items()
            if key in answers or one.is_bare
        }
        try:
            await asyncio.gather(*[self._tell(self.pending[key].server_id, answer) for key, answer in given.items()])
        except UpstreamFault as fault:  # the request itself was sent long ago
            raise UpstreamFault(fault.sentence, code=fault.code) from fault
        for key in given:
            del self.pending[key]
        if self.pending:
            return None
        if self._exchange is None:
            self._exchange = await self._stream_again()
        return await self._follow()

    async def _guarded(self, work: Coroutine[Any, Any, Answer | None]) -> Answer | None:
        """However it ends, nothing stays behind: no task, no stream that nobody reads, no request still worked at."""
        try:
            return await work
        except asyncio.CancelledError:
            self._send_off(self.cancel("the caller went away"), "cancel")
            self.leave()
            raise
        except UpstreamFault as fault:
            if fault.code == "upstream-timeout":
                self._send_off(self.cancel("timed out"), "cancel")
            self.leave()
            raise
        finally:
            for task in self._relaying:
                task.cancel()
            if self._gathering is not None:
                self._gathering.cancel()
                self._gathering = None

    async def _follow(self) -> Answer | None:
        while True:
            response = await self._end_of_stream()
            if response is None and self.pending:
                return None
            if response is None:
                await self._look_again()
                continue
            if response.answer is not None or not response.is_stream:
                return self._answer_in(response)
            if not self.can_return:
                return answer_of(self.where.sessions.name, response, self.request_id)  # raises: it has none
            if self.pending:
                return None
            await self._return()

    async def _end_of_stream(self) -> Response | None:
        """A stream that broke and can be come back to has merely ended. None: the client must be asked."""
        assert self._exchange is not None
        quiet = None
        if not self._is_first and self.can_return:
            quiet = self._loop.call_later(self._quiet_s, self._exchange.interrupt)
        try:
            response = await self._exchange.wait()
        except UpstreamFault as fault:
            self._mark()
            if fault.code != "upstream-broken" or not self.can_return:
                raise
            return Response(200, {}, b"", is_stream=True)
        finally:
            if quiet is not None:
                quiet.cancel()
        self._mark()
        if response is not None and response.is_stream and response.answer is None and self.can_return:
            self._talk.rested(int(self._retry_s * 1000))
        return response

    def _answer_in(self, response: Response) -> Answer:
        where = self.where
        if response.status in (400, 404) and self._is_first and where.session.session_id:
            wire = read_wire(response.body)
            answer = None if wire is None or wire.id != self.request_id else answer_in(wire, self.request_id)
            self.session_is_doubtful = answer is None and response.status == 400
            is_unread = answer is None or error_code(answer) != METHOD_NOT_FOUND  # else: there is no such method
            if response.status == 404 and is_unread:
                raise SessionGone(where.sessions.name, where.session)
        return answer_of(where.sessions.name, response, self.request_id)

    # streams

    @property
    def can_return(self) -> bool:
        """Whether what is still missing can be fetched by GET."""
        reader = self._exchange.reader if self._exchange is not None else None
        return bool(self.last_id) and not (reader is not None and reader.unmarked)

    def leave(self) -> None:
        """Close the stream; it will be come back to."""
        self._mark()
        if self._exchange is not None:
            self._exchange.let_go()

    def stay(self) -> None:
        """Keep the stream open for as long as the client thinks, outside of the pool's places."""
        assert self._exchange is not None
        self._is_parked = True
        self._talk = SILENCE
        self._exchange.late_s = FOREVER
        self._exchange.give_place()

    def _mark(self) -> None:
        reader = self._exchange.reader if self._exchange is not None else None
        if reader is not None and reader.last_id:
            self.last_id = reader.last_id
        if reader is not None and reader.retry_ms is not None:
            self._retry_s = min(RETRY_S_MAX, reader.retry_ms / 1000)

    async def _return(self) -> None:
        """Wait as the server wishes, longer where it tells nothing; then fetch what followed."""
        wait_s = self._retry_s
        if self._heard:
            self._returns = 0
            self._patience.reset()
        else:
            wait_s = max(wait_s, self._patience.next_s())
        self._heard = False
        self._returns += 1
        if self._returns > RETURNS_MAX:
            raise self._lost("its stream tells nothing new")
        await self._wait(wait_s)
        self._exchange = await self._stream_again()

    async def _look_again(self) -> None:
        """A stream that was come back to is silent. What a server says while it joins the stored events to the live
        ones may be stored alone: it is there for whoever asks once more.
        """
        self._quiet_s = QUIET_S if self._heard else min(QUIET_S_MAX, self._quiet_s * 2)
        self._heard = False
        self.leave()
        self._exchange = await self._stream_again()

    async def _wait(self, wait_s: float) -> None:
        if self._asking == 0 and self._loop.time() + wait_s >= self._late_s:
            await asyncio.sleep(max(0.0, self._late_s - self._loop.time()))
            raise UpstreamFault(f"{self.where.sessions.name}: no answer in time", code="upstream-timeout")
        await asyncio.sleep(wait_s)

    async def _stream_again(self) -> Exchange:
        """GET what follows `last_id`."""
        self._is_first = False
        where = self.where
        head = where.sessions.head_of(where.replica.stream_head, where.session)
        head += b"last-event-id: %b\r\n" % self.last_id.encode()
        while True:
            try:
                return await where.replica.pool.begin(head, b"", self._hear, self._deadline_s())
            except UpstreamFault as fault:
                self._returns += 1
                if self._returns > RETURNS_MAX:
                    raise self._lost(fault.sentence) from fault
            await self._wait(self._patience.next_s())

    def _deadline_s(self) -> float:
        return FOREVER if self._asking else self._late_s

    def _lost(self, why: str) -> UpstreamFault:
        return UpstreamFault(f"{self.where.sessions.name}: the answer's stream was lost: {why}", code="upstream-broken")

    def _hear(self, event: Event) -> Answer | None:
        self._heard = True
        wire = read_wire(event.data)
        if wire is None:
            return None
        if wire.method is msgspec.UNSET:
            return answer_in(wire, self.request_id)
        if wire.id is msgspec.UNSET or wire.id is None:
            self._talk.notified(wire.method, params_of(wire))
        else:
            self._asked(wire)
        return None

    # what the server asks

    def _asked(self, wire: Wire) -> None:
        assert isinstance(wire.method, str)
        server_id: RequestId = wire.id  # type: ignore[assignment]
        asked = Asked(wire.method, params_of(wire))
        waiting = len(self.pending) + len(self._relaying)
        known = own_answer(asked, self.where.caller.capabilities, waiting)
        if known is not None:
            told = bool(known.error) and self._turned_down < ASKED_MAX  # a server that asks on and on fills no log
            self._turned_down += told
            answering = self._turn_down(server_id, asked, known) if told else self._tell(server_id, known)
            self._send_off(answering, f"answer {asked.method}")
        elif self._is_parked or self._talk.pausable:
            self._asked_count += 1
            self.pending[str(self._asked_count)] = Pending(server_id, asked)
            if self._gathering is None and not self._is_parked:
                self._gathering = self._loop.call_later(GATHER_S, self._gathered)
        else:
            self._relay(server_id, asked)

    async def _turn_down(self, server_id: RequestId, asked: Asked, known: Answer) -> None:
        """A question that the client cannot be asked is a fact: the edge records it, and refuses it in its words."""
        try:
            told = await self._talk.asked(asked.method, asked.params)
        except Fault as fault:
            told = refusal(INTERNAL_ERROR, fault.sentence)
        await self._tell(server_id, told if told.error else known)

    def _gathered(self) -> None:
        self._gathering = None
        if self._exchange is not None:
            self._exchange.interrupt()

    def _relay(self, server_id: RequestId, asked: Asked) -> None:
        task = self.where.errands.start(self._ask(server_id, asked), f"ask {asked.method}")
        if task is not None:
            self._relaying.add(task)
            task.add_done_callback(self._relaying.discard)

    async def _ask(self, server_id: RequestId, asked: Asked) -> None:
        """While the client is asked, the server's time does not run."""
        self._asking += 1
        self._set_deadline(FOREVER)
        try:
            answer = await self._talk.asked(asked.method, asked.params)
        except Fault as fault:
            answer = refusal(INTERNAL_ERROR, fault.sentence)
        finally:
            self._asking -= 1
        if self._asking == 0:
            self._late_s = self._loop.time() + self._timeout_s
            self._set_deadline(self._late_s)
        try:
            await self._tell(server_id, answer)
        except UpstreamFault as fault:
            if self._exchange is not None:
                self._exchange.fail(UpstreamFault(fault.sentence, code=fault.code))

    def _set_deadline(self, late_s: float) -> None:
        if self._exchange is not None:
            self._exchange.late_s = late_s
            self.where.replica.pool.watch_the_time()

    # what we tell the server

    async def cancel(self, reason: str) -> None:
        """notifications/cancelled; the stream's end alone means nothing in this era."""
        params = encode({"requestId": self.request_id, "reason": reason})
        await self._post(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":%b}' % params)

    async def give_up(self) -> None:
        """The client has not come back: whatever was asked is answered with its going away."""
        try:
            for pending in self.pending.values():
                await self._tell(pending.server_id, pending.withdrawal)
            await self.cancel("the client did not come back")
        finally:
            self.leave()

    async def _tell(self, server_id: RequestId, answer: Answer) -> None:
        status = await self._post(response_body(server_id, answer))
        if status == 404 and self.where.session.session_id:
            raise UpstreamFault(f"{self.where.sessions.name}: the session has ended", code="upstream-pause-ended")
        if status >= 300:
            raise UpstreamFault(f"{self.where.sessions.name}: answered {status} to the client's answer")

    async def _post(self, body: bytes) -> int:
        where = self.where
        head = where.sessions.head_of(where.replica.head, where.session)
        return (await where.replica.pool.send(head, body, timeout_s=POST_TIMEOUT_S)).status

    def _send_off(self, errand: Coroutine[Any, Any, None], what: str) -> None:
        self.where.errands.start(errand, what)
