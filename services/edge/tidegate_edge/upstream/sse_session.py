"""One session of the older HTTP+SSE transport: its stream, what is under way in it, and one call in it.

All that the server says comes on one stream: answers are told apart by their ids, progress by its token; what cannot be
told apart goes to the call that began last, or to whoever listens.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import msgspec

from tidegate.errors import Fault, UpstreamFault
from tidegate_edge import messages
from tidegate_edge.messages import INTERNAL_ERROR, RequestId, Wire, encode
from tidegate_edge.upstream.answers import answer_in, error_message, fields_of, params_of, read_wire, response_body
from tidegate_edge.upstream.connection import FOREVER, Exchange
from tidegate_edge.upstream.errands import Errands
from tidegate_edge.upstream.legacy_sessions import (
    InitializeRefused,
    Introduction,
    initialize_params,
    introduction_in,
    negotiated,
)
from tidegate_edge.upstream.port import SILENCE, Answer, Asked, Caller, Talk
from tidegate_edge.upstream.replicas import Replica
from tidegate_edge.upstream.server_asks import GATHER_S, Pending, own_answer, refusal
from tidegate_edge.upstream.sse import Event

POST_TIMEOUT_S: Final = 10.0
_INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


class SessionEnded(UpstreamFault):
    """404 to a message: the server does not know the session, and has not carried it out."""


class SseSession:
    """From `open` to `close`, or the end of its stream. Ids are of this session alone."""

    def __init__(
        self, name: str, replica: Replica, caller: Caller, errands: Errands, next_id: Callable[[], str]
    ) -> None:
        self.name = name
        self.caller = caller
        self.next_id = next_id
        self.on_end: Callable[[], None] = lambda: None
        self.used_s = replica.pool.loop.time()
        self.logs = False
        self.log_level = ""
        self.loop = replica.pool.loop
        self.errands = errands
        self._replica = replica
        self._head = b""
        self._stream: Exchange | None = None
        self._ready: asyncio.Future[str] = self.loop.create_future()  # the endpoint
        self._ended: asyncio.Future[UpstreamFault] = self.loop.create_future()
        self._follower: asyncio.Task[None] | None = None
        self._calls: dict[str, SseCall] = {}  # under way, by id, oldest first
        self._listeners: list[Talk] = []

    @property
    def has_ended(self) -> bool:
        return self._ended.done()

    @property
    def is_busy(self) -> bool:
        return bool(self._calls or self._listeners)

    async def open(self, timeout_s: float) -> Introduction:
        """The stream, the endpoint, the handshake. Raises UpstreamFault, nothing sent."""
        try:
            async with asyncio.timeout(timeout_s):
                late_s = self.loop.time() + timeout_s
                head = self._replica.stream_head
                self._stream = await self._replica.streams.begin(head, b"", self._hear, late_s)
                self._follower = self.errands.start(self._follow(self._stream), "follow a session's stream")
                either: list[asyncio.Future[Any]] = [self._ready, self._ended]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if self._ended.done():
                    raise self._ended.result()
                self._stream.late_s = FOREVER
                self._head = self._replica.head_to(self._ready.result())
                call = SseCall(self, SILENCE, "", timeout_s)
                answer = await call.send("initialize", initialize_params(self.caller.capabilities))
                assert answer is not None
                return await self._introduced(answer)
        except TimeoutError as error:
            self.close()
            raise UpstreamFault(f"{self.name}: its event stream names no endpoint in time", sent=False) from error
        except BaseException:
            self.close()
            raise

    async def _introduced(self, answer: Answer) -> Introduction:
        if answer.error:
            raise InitializeRefused(f"{self.name}: initialize failed: {error_message(answer.error)}", 200)
        version = negotiated(self.name, answer.result)
        introduction = introduction_in(answer.result)
        self.logs = "logging" in fields_of(introduction.capabilities)
        self._head += b"mcp-protocol-version: %b\r\n" % version.encode()
        await self.post(_INITIALIZED)
        return introduction

    async def _follow(self, stream: Exchange) -> None:
        try:
            response = await stream.wait()
            status = 0 if response is None else response.status
            fault = UpstreamFault(f"{self.name}: the session's stream ended ({status})", code="upstream-broken")
        except UpstreamFault as broken:
            fault = broken
        finally:
            stream.let_go()
        self._end(fault)

    def _end(self, fault: UpstreamFault) -> None:
        if self._ended.done():
            return
        self._ended.set_result(fault)
        for call in list(self._calls.values()):
            call.fail(fault)
        self.on_end()

    def close(self) -> None:
        """The stream's end is the session's."""
        if self._stream is not None:
            self._stream.let_go()
        if self._follower is not None:
            self._follower.cancel()
        self._end(UpstreamFault(f"{self.name}: the session was ended", code="upstream-broken"))

    # what is heard

    def _hear(self, event: Event) -> Answer | None:
        if event.name == b"endpoint":
            self._endpoint(event.data)
            return None
        wire = read_wire(event.data)
        if wire is None:
            return None
        if wire.method is msgspec.UNSET:
            call = self._calls.get(wire.id) if isinstance(wire.id, str) else None
            answer = None if call is None else answer_in(wire, call.request_id)
            if call is not None and answer is not None:
                call.answered(answer)
        elif wire.id is msgspec.UNSET or wire.id is None:
            self._talk_for(wire).notified(wire.method, params_of(wire))
        else:
            self._asked(wire)
        return None

    def _endpoint(self, data: bytes) -> None:
        """Same origin, or nothing: the credential goes along."""
        url = urljoin(self._replica.url, data.decode(errors="replace").strip())
        mine, theirs = urlsplit(self._replica.url), urlsplit(url)
        if (mine.scheme, mine.netloc) != (theirs.scheme, theirs.netloc) or any(ord(one) <= 32 for one in url):
            self._end(UpstreamFault(f"{self.name}: names an endpoint elsewhere ({theirs.netloc[:80]})", sent=False))
        elif not self._ready.done():
            self._ready.set_result((theirs.path or "/") + (f"?{theirs.query}" if theirs.query else ""))

    def _talk_for(self, wire: Wire) -> Talk:
        if wire.method == "notifications/progress":
            token = fields_of(params_of(wire)).get("progressToken")
            for call in self._calls.values():
                if call.progress_token and token is not None and encode(call.progress_token) == bytes(token):
                    return call.talk
            return SILENCE
        if wire.method == "notifications/message" and self._calls:
            return next(reversed(self._calls.values())).talk
        if self._listeners:
            return self._listeners[-1]
        return next(reversed(self._calls.values())).talk if self._calls else SILENCE

    def _asked(self, wire: Wire) -> None:
        assert isinstance(wire.method, str)
        server_id: RequestId = wire.id  # type: ignore[assignment]
        asked = Asked(wire.method, params_of(wire))
        known = own_answer(asked, self.caller.capabilities, sum(len(one.pending) for one in self._calls.values()))
        if known is None and self._calls:
            next(reversed(self._calls.values())).asked(server_id, asked)
        elif known is None and self._listeners:
            self.errands.start(self.relay(self._listeners[-1], server_id, asked), f"ask {asked.method}")
        else:
            answer = known or refusal(INTERNAL_ERROR, "no request is under way that this could belong to")
            self.errands.start(self.answer(server_id, answer), f"answer {asked.method}")

    async def relay(self, talk: Talk, server_id: RequestId, asked: Asked) -> None:
        try:
            answer = await talk.asked(asked.method, asked.params)
        except Fault as fault:
            answer = refusal(INTERNAL_ERROR, fault.sentence)
        await self.answer(server_id, answer)

    async def listen(self, uris: tuple[str, ...], talk: Talk) -> None:
        """Until the session ends. Raises UpstreamFault."""
        self._listeners.append(talk)
        try:
            for uri in uris:
                await SseCall(self, SILENCE, "", POST_TIMEOUT_S).send("resources/subscribe", encode({"uri": uri}))
            raise await asyncio.shield(self._ended)
        finally:
            self._listeners.remove(talk)

    # what is said

    def begin(self, call: "SseCall") -> None:
        if self._ended.done():
            raise SessionEnded(self._ended.result().sentence, sent=False)
        self._calls[call.request_id] = call

    def over(self, call: "SseCall") -> None:
        self._calls.pop(call.request_id, None)
        self.used_s = self.loop.time()

    async def post(self, body: bytes) -> None:
        """One message to the endpoint. Raises SessionEnded, UpstreamFault."""
        response = await self._replica.pool.send(self._head, body, timeout_s=POST_TIMEOUT_S)
        if response.status == 404:
            raise SessionEnded(f"{self.name}: does not know the session that it opened (404)", sent=False)
        if response.status >= 300:
            code = "upstream-unauthorized" if response.status in (401, 403) else None
            raise UpstreamFault(f"{self.name}: answered {response.status} to a message", code=code)

    async def answer(self, server_id: RequestId, answer: Answer) -> None:
        await self.post(response_body(server_id, answer))

    async def tell(self, method: str, params: bytes) -> None:
        """A notification."""
        await self.post(b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), params))


class SseCall:
    """One request: sent, answered on the session's stream, paused in between where the client must be asked."""

    def __init__(self, session: SseSession, talk: Talk, progress_token: str, timeout_s: float) -> None:
        self.session = session
        self.name = secrets.token_hex(16)
        self.request_id = session.next_id()
        self.talk = talk
        self.progress_token = progress_token
        self.pending: dict[str, Pending] = {}
        self._timeout_s = timeout_s
        self._asked_count = 0
        self._outcome: Answer | UpstreamFault | None = None
        self._changed = asyncio.Event()
        self._is_parked = False
        self._relaying: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.TimerHandle | None = None

    async def send(self, method: str, params: bytes) -> Answer | None:
        """None: paused, see `pending`. Raises SessionEnded, UpstreamFault."""
        self.session.begin(self)
        try:
            await self.session.post(messages.request_body(self.request_id, method, params))
        except BaseException:
            self.session.over(self)
            raise
        return await self._follow()

    async def go_on(self, answers: Mapping[str, Answer], talk: Talk, timeout_s: float) -> Answer | None:
        """After a pause. None: paused again."""
        self.talk, self._timeout_s, self._is_parked = talk, timeout_s, False
        for key in [key for key in self.pending if key in answers]:
            await self.session.answer(self.pending.pop(key).server_id, answers[key])
        return None if self.pending else await self._follow()

    async def _follow(self) -> Answer | None:
        try:
            while self._outcome is None and not (self.pending and self._gathering is None):
                self._changed.clear()
                async with asyncio.timeout(None if self._relaying else self._timeout_s):
                    await self._changed.wait()
        except TimeoutError as error:
            self._end("timed out")
            raise UpstreamFault(f"{self.session.name}: no answer in time", code="upstream-timeout") from error
        except asyncio.CancelledError:
            self._end("the caller went away")
            raise
        if self._outcome is None:
            self._is_parked, self.talk = True, SILENCE
            return None
        self._end()
        if isinstance(self._outcome, UpstreamFault):
            raise self._outcome
        return self._outcome

    def _end(self, cancelled: str = "") -> None:
        self.session.over(self)
        for task in self._relaying:
            task.cancel()
        if self._gathering is not None:
            self._gathering.cancel()
        if cancelled:
            self.session.errands.start(self._cancel(cancelled), "cancel")

    async def _cancel(self, reason: str) -> None:
        await self.session.tell("notifications/cancelled", encode({"requestId": self.request_id, "reason": reason}))

    async def give_up(self) -> None:
        """The client has not come back."""
        for pending in self.pending.values():
            await self.session.answer(pending.server_id, pending.withdrawal)
        self._end("the client did not come back")

    def answered(self, answer: Answer) -> None:
        self._outcome = answer
        self._changed.set()

    def fail(self, fault: UpstreamFault) -> None:
        """The session has ended."""
        if self._outcome is None:
            self._outcome = fault
            self._changed.set()

    def asked(self, server_id: RequestId, asked: Asked) -> None:
        """A question of the server's that is taken to belong to this call."""
        if self._is_parked or self.talk.pausable:
            self._asked_count += 1
            self.pending[str(self._asked_count)] = Pending(server_id, asked)
            if self._gathering is None and not self._is_parked:
                self._gathering = self.session.loop.call_later(GATHER_S, self._gathered)
            return
        errand = self.session.relay(self.talk, server_id, asked)
        task = self.session.errands.start(errand, f"ask {asked.method}")
        if task is not None:
            self._relaying.add(task)
            task.add_done_callback(self._relayed)
        self._changed.set()

    def _gathered(self) -> None:
        self._gathering = None
        self._changed.set()

    def _relayed(self, task: asyncio.Task[None]) -> None:
        self._relaying.discard(task)
        self._changed.set()
