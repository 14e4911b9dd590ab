"""What is under way with one server process, from its start to its end: requests by their ids, what the server says on
the side, what it asks. Counterparts: `stdio_child.py` (the pipes), `stdio_handshake.py` (how it begins).

On a pipe nothing says to which request a server's own question or log line belongs. It goes to a request of the only
principal that has any under way; where a shared process works for several, nobody is asked: one principal's question
must never reach another. What was cancelled may still be worked on, so it counts for a while.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Coroutine, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from tidegate import json_values
from tidegate.errors import Fault, UpstreamFault
from tidegate.limits import QUESTION_BYTES_MAX
from tidegate_edge import abilities, messages
from tidegate_edge.messages import INTERNAL_ERROR, METHOD_NOT_FOUND, RequestId, RpcError, encode
from tidegate_edge.upstream.port import SILENCE, Answer, Asked, Caller, Outgoing, Paused, Talk
from tidegate_edge.upstream.server_asks import TOO_LARGE
from tidegate_edge.upstream.stdio_child import Child
from tidegate_edge.upstream.stdio_listening import Listeners

GATHER_S: Final = 0.03  # what a server asks within this time is asked of the client at once
PAUSED_MAX: Final = 256
QUESTIONS_MAX: Final = 32  # unanswered ones of one request
LINGERING_S: Final = 300.0  # so long a cancelled request may still be worked on
LINGERING_MAX: Final = 256
LEVELS: Final = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
_ASK_NOBODY: Final = frozenset(
    {
        *("initialize", "server/discover", "ping", "logging/setLevel", "subscriptions/listen"),
        *("tools/list", "prompts/list", "resources/list", "resources/templates/list"),
        *("resources/subscribe", "resources/unsubscribe"),
    }
)
_OWN: Final = Caller("", "gateway", "tidegate")
_NO_ABILITY: Final = "the client declared no such capability"
_NOBODY: Final = "no request is under way for which a client could be asked"
_CROWDED: Final = "several principals share this server, so it cannot be told which of them is asked"

_log = logging.getLogger(__name__)
Principal = tuple[str, str, str]


class Question(NamedTuple):
    """A server's request; `number` is the server's own id."""

    number: RequestId
    asked: Asked


class Underway:
    """A request that the server has not answered yet. `turn` is its answer, or None where it pauses."""

    __slots__ = ("asking", "caller", "expiry", "gathering", "method", "number", "questions", "talk", "token", "turn")

    def __init__(self, number: int, method: str, caller: Caller, talk: Talk, token: str) -> None:
        self.number = number
        self.method = method
        self.caller = caller
        self.talk = talk
        self.token = token
        self.turn: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self.questions: dict[str, Question] = {}
        self.asking: dict[RequestId, asyncio.Task[None]] = {}
        self.gathering: asyncio.TimerHandle | None = None
        self.expiry: asyncio.TimerHandle | None = None

    @property
    def principal(self) -> Principal:
        return _principal(self.caller)

    def settle(self, answer: Answer) -> None:
        if not self.turn.done():
            self.turn.set_result(answer)

    def fail(self, fault: Fault) -> None:
        if not self.turn.done():
            self.turn.set_exception(fault)
            self.turn.exception()  # heard: nobody may be waiting while it is paused

    def pause(self) -> None:
        self.gathering = None
        if not self.turn.done():
            self.turn.set_result(None)

    def stop_timers(self) -> None:
        for timer in (self.gathering, self.expiry):
            if timer is not None:
                timer.cancel()
        self.gathering = self.expiry = None


class StdioSession:
    """JSON-RPC with one process. `read` runs for as long as it lives."""

    def __init__(self, child: Child, *, shared: bool, edge: str, paused_s: float) -> None:
        self.name = child.name
        self.child = child
        self.over = asyncio.Event()
        self._shared = shared
        self._edge = edge
        self._paused_s = paused_s
        self._ids = itertools.count(1)
        self._keys = itertools.count(1)
        self._underway: dict[int, Underway] = {}
        self._by_token: dict[str, Underway] = {}
        self._paused: dict[bytes, Underway] = {}
        self._lingering: dict[int, tuple[Principal, float]] = {}
        self._nobody_until_s = 0.0
        self._level = -1
        self._told_crowded = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.listeners = Listeners()
        self.overheard = Listeners()  # who hears list changes as well, and takes them from nobody

    @property
    def is_busy(self) -> bool:
        return bool(self._underway)

    # requests

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        """Raises UpstreamFault."""
        under = self._send(outgoing.method, outgoing.params, outgoing.caller, talk, outgoing.progress_token)
        return await self._follow(under, outgoing.timeout_s)

    async def ask(self, method: str, params: bytes, timeout_s: float) -> Answer:
        """A request of the gateway's own."""
        answer = await self._follow(self._send(method, params, _OWN, SILENCE, ""), timeout_s)
        assert isinstance(answer, Answer)
        return answer

    def begin(self, method: str, params: bytes, talk: Talk = SILENCE) -> Underway:
        """A request of the gateway's own whose answer may come at any time, or never; `forget` it."""
        return self._send(method, params, _OWN, talk, "")

    def forget(self, under: Underway) -> None:
        under.stop_timers()
        self._underway.pop(under.number, None)
        if under.token:
            self._by_token.pop(under.token, None)
        for task in under.asking.values():
            task.cancel()
        for question in under.questions.values():
            self._leave_unanswered(question)
        under.questions.clear()

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        """Raises UpstreamFault `upstream-pause-ended` where the ticket is not this caller's, or holds no more."""
        under = self._paused.get(ticket)
        if under is None or under.principal != _principal(caller):
            raise pause_ended(self.name)
        del self._paused[ticket]
        under.stop_timers()
        under.talk = talk
        if not under.turn.done():
            for key, answer in answers.items():
                question = under.questions.pop(key, None)
                if question is not None:
                    self._reply(_response(question.number, answer))
            if under.questions:
                return self._pause(under)
        return await self._follow(under, timeout_s)

    async def set_level(self, level: str, timeout_s: float) -> None:
        """The server's log shall be at least as verbose."""
        wanted = LEVELS.index(level) if level in LEVELS else -1
        if wanted > self._level:
            self._level = wanted
            with contextlib.suppress(UpstreamFault):  # whoever asks for the level wants an answer first of all
                await self.ask("logging/setLevel", encode({"level": level}), timeout_s)

    def notify(self, method: str, params: bytes) -> None:
        self.child.write(b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), params or b"{}"))

    def drop_paused(self, caller: Caller) -> None:
        """Nobody will resume what this caller's session had paused."""
        for ticket, under in list(self._paused.items()):
            if under.caller == caller:
                self._expire(ticket)

    def _send(self, method: str, params: bytes, caller: Caller, talk: Talk, token: str) -> Underway:
        under = Underway(next(self._ids), method, caller, talk, token)
        self.child.write(messages.request_body(under.number, method, params))
        self._underway[under.number] = under
        if token:
            self._by_token[token] = under
        return under

    async def _follow(self, under: Underway, timeout_s: float) -> Answer | Paused:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await under.turn
        except TimeoutError as error:
            self._cancel(under, "timed out")
            raise UpstreamFault(f"{self.name}: no answer within {timeout_s:g} s", code="upstream-timeout") from error
        except asyncio.CancelledError:
            self._cancel(under, "the caller went away")
            raise
        except UpstreamFault:
            self.forget(under)
            raise
        if answer is None:
            return self._pause(under)
        self.forget(under)
        return answer

    def _cancel(self, under: Underway, reason: str) -> None:
        self.forget(under)
        now_s = asyncio.get_running_loop().time()
        if len(self._lingering) >= LINGERING_MAX:
            del self._lingering[next(iter(self._lingering))]
            self._nobody_until_s = now_s + LINGERING_S
        self._lingering[under.number] = (under.principal, now_s + LINGERING_S)
        self.tell_cancelled(under, reason)

    def tell_cancelled(self, under: Underway, reason: str) -> None:
        try:
            self.notify("notifications/cancelled", encode({"requestId": under.number, "reason": reason}))
        except UpstreamFault:
            return  # it ended meanwhile: nothing left to cancel

    # pauses

    def _pause(self, under: Underway) -> Paused:
        loop = asyncio.get_running_loop()
        ticket = secrets.token_hex(16).encode()
        under.turn = loop.create_future()
        under.expiry = loop.call_later(self._paused_s, self._expire, ticket)
        self._paused[ticket] = under
        return Paused({key: question.asked for key, question in under.questions.items()}, ticket, self._edge)

    def _expire(self, ticket: bytes) -> None:
        under = self._paused.pop(ticket, None)
        if under is not None:
            self._cancel(under, "the client did not answer in time")

    # what the server says

    async def read(self) -> None:
        """Until the process ends."""
        try:
            async for line in self.child.lines():
                try:
                    self._heard(line)
                except Exception:  # a fault of ours must cost one message, not the process
                    _log.exception("%s: a message could not be passed on", self.name)
        finally:
            self.fail_all(f"the process ended{self.child.why}")

    def fail_all(self, why: str) -> None:
        """Nothing that is under way will be answered."""
        self.over.set()
        fault = UpstreamFault(f"{self.name}: {why}", code="upstream-broken")
        for under in list(self._underway.values()):
            under.fail(fault)
            under.stop_timers()
        for task in self._tasks:
            task.cancel()

    def _heard(self, line: bytes) -> None:
        try:
            wire = messages.decode_wire(line)
        except msgspec.DecodeError:
            self.child.junk(line)
            return
        if isinstance(wire.method, str):
            params = b"{}" if isinstance(wire.params, msgspec.UnsetType) else bytes(wire.params)
            if isinstance(wire.id, int | str):
                self._questioned(wire.id, Asked(wire.method, params))
            elif wire.id is msgspec.UNSET:
                self._notified(wire.method, params)
            return
        if not isinstance(wire.id, int):
            return
        self._lingering.pop(wire.id, None)
        under = self._underway.get(wire.id)
        if under is None:
            return
        if not isinstance(wire.result, msgspec.UnsetType):
            under.settle(Answer(result=bytes(wire.result)))
        elif not isinstance(wire.error, msgspec.UnsetType):
            under.settle(Answer(error=bytes(wire.error)))

    def _notified(self, method: str, params: bytes) -> None:
        if method == "notifications/progress":
            under = self._by_token.get(_token_of(params))
            if under is not None:
                under.talk.notified(method, params)
        elif method == "notifications/cancelled" and self._withdrawn(_cancelled_in(params)):
            return
        else:
            self._told(method, params)

    def _told(self, method: str, params: bytes) -> None:
        """What names no request."""
        self.overheard.hear(method, params)
        if not self.listeners.hear(method, params):
            for under in self._candidates():
                under.talk.notified(method, params)
                return
            if not self._shared:
                self.listeners.hear_all(method, params)

    def _withdrawn(self, number: RequestId | None) -> bool:
        """The server takes back a question of its own."""
        for under in self._underway.values():
            for key, question in under.questions.items():
                if question.number == number:
                    del under.questions[key]
                    return True
            if number in under.asking:
                under.asking[number].cancel()
                return True
        return False

    # what the server asks

    def _questioned(self, number: RequestId, asked: Asked) -> None:
        """ping is answered here; what may be asked of a client goes to the request that it belongs to."""
        if asked.method == "ping":
            self._reply(messages.result_body(number, b"{}"))
            return
        under, refusal = self._belongs_to(asked)
        if under is None:
            self._refuse(number, refusal)
        elif len(under.questions) + len(under.asking) >= QUESTIONS_MAX:
            self._refuse(number, "too many questions are unanswered", INTERNAL_ERROR)
        elif under.talk.pausable:
            self._gather(under, Question(number, asked))
        else:
            under.asking[number] = self._spawn(self._put(under, number, asked), f"stdio {self.name} asks")

    def _gather(self, under: Underway, question: Question) -> None:
        if len(self._paused) >= PAUSED_MAX:
            self._refuse(question.number, "too many requests are paused here", INTERNAL_ERROR)
            return
        under.questions[str(next(self._keys))] = question
        if under.gathering is None and under.expiry is None:
            under.gathering = asyncio.get_running_loop().call_later(GATHER_S, under.pause)

    async def _put(self, under: Underway, number: RequestId, asked: Asked) -> None:
        try:
            answer = await under.talk.asked(asked.method, asked.params)
        except asyncio.CancelledError:
            self._leave_unanswered(Question(number, asked))
            raise
        except Fault as fault:
            answer = Answer(error=encode(RpcError(INTERNAL_ERROR, fault.sentence)))
        except Exception:  # a fault of ours must cost one question, not the process
            _log.exception("%s: a question could not be put to the client", self.name)
            answer = Answer(error=encode(RpcError(INTERNAL_ERROR, "the gateway could not ask the client")))
        finally:
            under.asking.pop(number, None)
        self._reply(_response(number, answer))

    def _belongs_to(self, asked: Asked) -> tuple[Underway | None, str]:
        """The request that a question belongs to, else why there is none."""
        candidates = self._candidates()
        if not candidates:
            if self._is_crowded():
                self._tell_crowded(asked.method)
                return None, _CROWDED
            return None, _NOBODY
        if len(asked.params) > QUESTION_BYTES_MAX:
            return None, TOO_LARGE
        try:
            params = json_values.decode(asked.params)
        except msgspec.DecodeError:
            return None, _NO_ABILITY
        for under in candidates:
            able = abilities.of_legacy(under.caller.capabilities)
            if isinstance(params, dict) and able.can_answer(asked.method, params):
                return under, ""
        return None, _NO_ABILITY

    def _candidates(self) -> list[Underway]:
        """Requests that the server may be working on, the latest first; none where they are of several principals."""
        if self._is_crowded():
            return []
        return [under for under in reversed(self._underway.values()) if under.method not in _ASK_NOBODY]

    def _is_crowded(self) -> bool:
        if not self._shared:
            return False
        now_s = asyncio.get_running_loop().time()
        if now_s < self._nobody_until_s:
            return True
        for number in [number for number, (_, until_s) in self._lingering.items() if until_s < now_s]:
            del self._lingering[number]
        at_work = {under.principal for under in self._underway.values() if under.method not in _ASK_NOBODY}
        return len(at_work | {principal for principal, _ in self._lingering.values()}) > 1

    def _tell_crowded(self, method: str) -> None:
        if not self._told_crowded:
            self._told_crowded = True
            _log.warning(
                "%s: %s was refused: %s. Set `process: per-principal` under servers.%s, and each has its own process",
                *(self.name, method, _CROWDED, self.name),
            )

    def _leave_unanswered(self, question: Question) -> None:
        """The server must not wait for an answer that will not come."""
        if self.over.is_set():
            return
        if question.asked.method == "elicitation/create":
            self._reply(_response(question.number, Answer(result=b'{"action":"cancel"}')))
        else:
            self._refuse(question.number, "the client does not answer", INTERNAL_ERROR)

    def _refuse(self, number: RequestId, sentence: str, code: int = METHOD_NOT_FOUND) -> None:
        self._reply(messages.error_body(number, code, sentence))

    def _reply(self, message: bytes) -> None:
        try:
            self.child.write(message)
        except UpstreamFault as fault:  # it has ended, or reads nothing: then it waits for nothing either
            _log.info("%s", fault)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that ends with the process."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def pause_ended(name: str) -> UpstreamFault:
    return UpstreamFault(
        f"{name}: the server no longer waits for this answer; call again", code="upstream-pause-ended", sent=True
    )


def _principal(caller: Caller) -> Principal:
    return (caller.tenant, caller.subject_id, caller.agent)


def _response(number: RequestId, answer: Answer) -> bytes:
    if answer.result:
        return messages.result_body(number, answer.result)
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (encode(number), answer.error)


class _Progress(msgspec.Struct):
    progressToken: str | int = ""


class _Cancelled(msgspec.Struct):
    requestId: str | int | None = None


_decode_progress: Final = messages.careful(msgspec.json.Decoder(_Progress).decode)
_decode_cancelled: Final = messages.careful(msgspec.json.Decoder(_Cancelled).decode)


def _token_of(params: bytes) -> str:
    try:
        return str(_decode_progress(params).progressToken)
    except msgspec.DecodeError:
        return ""


def _cancelled_in(params: bytes) -> RequestId | None:
    try:
        return _decode_cancelled(params).requestId
    except msgspec.DecodeError:
        return None
