"""Where other edges ask this one: `POST /internal/v1/upstream/{what}`. Counterpart: `upstream/peers.py`.

Whoever does not prove to be an edge of this cluster gets what an unknown path gets, before its body is read. A request
counts once within its time. What is asked is done under the identity that the asking edge has established, and recorded
there. The asking edge leaves by closing the connection: what it asked for is cancelled.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from tidegate.errors import Fault, UpstreamFault
from tidegate_edge.upstream.owned import Here, encode_spoken
from tidegate_edge.upstream.peer_frames import (
    ALIVE,
    NONCE_BYTES,
    PATH,
    WINDOW_S,
    Frame,
    FrameSeal,
    PeerCall,
    PeerSeal,
    Proof,
    decode_call,
)
from tidegate_edge.upstream.port import Answer, Outgoing, Paused, Upstream
from tidegate_edge.upstream.stdio import StdioUpstream
from tidegate_edge.upstream.stdio_eras import owned_in

ALIVE_S: Final = 4.0
TOLD_EVERY_S: Final = 1.0  # refusals are logged no more often
NONCES_MAX: Final = 200_000  # of authenticated requests within their time; past it, edges are refused
CALLS_MAX: Final = 4_096
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024  # said to an edge that does not read
FRAME_BYTES: Final = 200  # counted for each, beside what it carries
NUMBER_CHARS_MAX: Final = 12
_NOT_FOUND: Final = b'{"detail":"Not Found"}'  # as for a path that does not exist

_log = logging.getLogger(__name__)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class PeerDoor:
    """`me` is this edge's address on the bus; a request meant for another is refused."""

    def __init__(
        self,
        seal: PeerSeal,
        me: str,
        upstreams: Mapping[str, Upstream],
        *,
        body_bytes_max: int,
        draining: asyncio.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._seal = seal
        self._me = me
        self._upstreams = upstreams
        self._body_bytes_max = body_bytes_max
        self._draining = draining
        self._clock = clock
        self._nonces: OrderedDict[bytes, float] = OrderedDict()
        self._calls: dict[str, PeerTalk] = {}
        self._told_s = -TOLD_EVERY_S

    def routes(self) -> APIRouter:
        router = APIRouter()

        @router.post(PATH + "{what}", include_in_schema=False)
        async def upstream(request: Request, what: str) -> Response:
            return await self.serve(request, what)

        return router

    async def serve(self, request: Request, what: str) -> Response:
        opened = await self._open(request, PATH + what)
        if opened is None:
            return Response(_NOT_FOUND, 404, media_type="application/json")
        proof, call = opened
        talk = PeerTalk(call)
        return Frames(self._seal.frames_of(proof.nonce), talk, lambda: self._work(what, call, talk))

    async def _open(self, request: Request, path: str) -> tuple[Proof, PeerCall] | None:
        """The call, whose sender has proved itself; None, and the reason in this edge's own log."""
        proof = _proof_in(request)
        given = request.headers.get("content-length", "")
        length = int(given) if given.isdecimal() and len(given) <= NUMBER_CHARS_MAX else -1
        if proof is None or not 0 < length <= self._body_bytes_max:
            return self._refuse(request, "no proof, or a body that is too large")
        now_s = self._clock()
        if not self._seal.proves(path, proof, length, now_s):
            return self._refuse(request, f"a wrong proof, or a clock that differs by {now_s - proof.at_s:.0f} s")
        if proof.nonce in self._nonces:
            return self._refuse(request, "it was sent before")
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > length:
                    return self._refuse(request, "the body is longer than it says")
                parts.append(part)
        except ClientDisconnect:
            return None
        raw = self._seal.open_call(path, proof, b"".join(parts))
        if raw is None or not self._is_first(proof.nonce, now_s):
            return self._refuse(request, "an altered body, or one that was sent before")
        try:
            return proof, decode_call(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._refuse(request, f"a call that is not understood ({error})")

    def _is_first(self, nonce: bytes, now_s: float) -> bool:
        """Remembers it for as long as its time could still be right."""
        nonces = self._nonces
        while nonces and next(iter(nonces.values())) < now_s:
            nonces.popitem(last=False)
        if nonce in nonces or len(nonces) >= NONCES_MAX:
            return False
        nonces[nonce] = now_s + 2 * WINDOW_S
        return True

    def _refuse(self, request: Request, why: str) -> tuple[Proof, PeerCall] | None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s >= TOLD_EVERY_S:
            self._told_s = now_s
            source = request.client.host if request.client else "somewhere"
            _log.warning("a request from %s to the edges' own path was refused: %s", source, why)
        return None

    # what is asked

    async def _work(self, what: str, call: PeerCall, talk: "PeerTalk") -> Frame:
        """The last frame. Raises Fault."""
        if call.to != self._me:
            raise UpstreamFault(f"{call.server}: another edge was meant", code="peer-moved", sent=False)
        if what == "answer":
            return self._answered(call)
        upstream = self._upstreams.get(call.server)
        if upstream is None:
            raise UpstreamFault(
                f"{call.server}: the edge that is asked has no such server; give all edges the same `servers`",
                code="upstream-unreachable",
                sent=False,
            )
        if len(self._calls) >= CALLS_MAX:
            raise UpstreamFault(f"{call.server}: the edge that is asked is busy", code="upstream-busy", sent=False)
        self._calls[call.call] = talk
        try:
            if what == "resume":
                return _last(await upstream.resume(call.ticket, call.answers, call.caller, talk, call.timeout_s))
            for owned in owned_in(upstream):
                if owned.here.local.plan.second == call.second:
                    return await self._owned(what, call, talk, owned.here)
        finally:
            self._calls.pop(call.call, None)
        raise UpstreamFault(f"{call.server}: '{what}' is not asked of other edges", sent=False)

    async def _owned(self, what: str, call: PeerCall, talk: "PeerTalk", here: Here) -> Frame:
        async with here.owning(here.local.own if what == "spoken" else call.caller):
            return await self._with_process(what, call, talk, here.local)

    async def _with_process(self, what: str, call: PeerCall, talk: "PeerTalk", local: StdioUpstream) -> Frame:
        if what == "request":
            outgoing = Outgoing(
                call.method,
                call.params,
                call.caller,
                call.modern,
                call.timeout_s,
                progress_token=call.progress_token,
                log_level=call.log_level,
            )
            return _last(await local.request(outgoing, talk))
        if what == "spoken":
            return Frame(kind="answer", answer=Answer(result=encode_spoken(await local.spoken(call.timeout_s))))
        if what == "notify":
            await local.notify(call.method, call.params, call.caller)
        elif what == "end":
            await local.end(call.caller)
        elif what == "listen":
            await self._listen(call, talk, local)
        else:
            raise UpstreamFault(f"{call.server}: this edge does not know '{what}' yet; upgrade it", sent=False)
        return Frame(kind="done")

    async def _listen(self, call: PeerCall, talk: "PeerTalk", local: StdioUpstream) -> None:
        """Until it ends by itself, or this edge is about to stop."""
        listening = asyncio.create_task(
            local.listen(call.wanted, call.caller, call.modern, talk), name=f"listen for an edge to {call.server}"
        )
        draining = asyncio.create_task(self._draining.wait(), name="draining")
        try:
            await asyncio.wait((listening, draining), return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                raise UpstreamFault(f"{call.server}: the edge that is asked stops", code="peer-moved", sent=False)
            await listening
        finally:
            listening.cancel()
            draining.cancel()
            await asyncio.wait((listening, draining))

    def _answered(self, call: PeerCall) -> Frame:
        talk = self._calls.get(call.call)
        if talk is not None:
            talk.answered(call.number, call.answer)
        return Frame(kind="done")


class PeerTalk:
    """The client's side of a call that another edge asks for: what is said goes there as frames."""

    def __init__(self, call: PeerCall) -> None:
        self._call = call
        self._waiting: list[Frame] = []
        self._waiting_bytes = 0
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._count = 0
        self.said = asyncio.Event()
        self.is_behind = False

    @property
    def pausable(self) -> bool:
        return self._call.pausable

    def notified(self, method: str, params: bytes) -> None:
        self._say(Frame(kind="notified", method=method, params=params))

    async def asked(self, method: str, params: bytes) -> Answer:
        self._count += 1
        number = self._count
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        self._say(Frame(kind="asked", method=method, params=params, number=number))
        try:
            return await future
        finally:
            del self._answers[number]

    def rested(self, retry_ms: int) -> None:
        self._say(Frame(kind="rested", retry_ms=retry_ms))

    def answered(self, number: int, answer: Answer) -> None:
        future = self._answers.get(number)
        if future is not None and not future.done():
            future.set_result(answer)

    def taken(self) -> list[Frame]:
        """What was said since the last time."""
        self.said.clear()
        frames, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return frames

    def _say(self, frame: Frame) -> None:
        self._waiting_bytes += len(frame.params) + FRAME_BYTES
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self.is_behind = True
        else:
            self._waiting.append(frame)
        self.said.set()


class Frames(Response):
    """The reply: frames as they come, a sign of life now and then, and the last one. `work` gives the last one."""

    def __init__(self, seal: FrameSeal, talk: PeerTalk, work: Callable[[], Awaitable[Frame]]) -> None:
        super().__init__(media_type="application/octet-stream")
        del self.headers["content-length"]
        self._seal = seal
        self._talk = talk
        self._work = work

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        working = asyncio.create_task(self._last_frame(), name="work for an edge")
        leaving = asyncio.create_task(_left(receive), name="an edge leaves")
        try:
            await self._pass_on(send, working, leaving)
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.wait((working, leaving))

    async def _pass_on(self, send: Send, working: "asyncio.Task[Frame]", leaving: "asyncio.Task[None]") -> None:
        talk = self._talk
        while not leaving.done() and not talk.is_behind:
            saying = asyncio.create_task(talk.said.wait(), name="frames")
            try:
                done, _ = await asyncio.wait(
                    (working, leaving, saying), timeout=ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                saying.cancel()
            frames = talk.taken() or ([] if done else [ALIVE])
            last = working.done() and not leaving.done()
            if last:
                frames.append(working.result())
            body = b"".join(self._seal.seal(frame) for frame in frames)
            if body and not leaving.done():
                await send({"type": "http.response.body", "body": body, "more_body": not last})
            if last:
                return

    async def _last_frame(self) -> Frame:
        try:
            return await self._work()
        except UpstreamFault as fault:
            return Frame(kind="fault", code=fault.code, sentence=fault.sentence, sent=fault.sent)
        except Fault as fault:
            return Frame(kind="fault", code=fault.code, sentence=fault.sentence, sent=False)
        except Exception:  # a fault of ours must cost one call
            _log.exception("a call for another edge failed")
            return Frame(kind="fault", code="gateway-failed", sentence="the edge that was asked failed; see its log")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _last(answer: Answer | Paused) -> Frame:
    if isinstance(answer, Paused):
        return Frame(kind="paused", asked=answer.asked, ticket=answer.ticket, edge=answer.edge)
    return Frame(kind="answer", answer=answer)


def _proof_in(request: Request) -> Proof | None:
    headers = request.headers
    at_s, nonce, proof = (headers.get(f"x-tidegate-{name}", "") for name in ("time", "nonce", "proof"))
    if len(at_s) > NUMBER_CHARS_MAX or not at_s.isdecimal() or len(nonce) != 2 * NONCE_BYTES or len(proof) != 64:
        return None
    try:
        return Proof(int(at_s), bytes.fromhex(nonce), bytes.fromhex(proof))
    except ValueError:
        return None
