"""Asks another edge: for what a process that it owns does, or to go on with a request that it has paused.

One POST is one request. Its reply is a stream of frames until the last one; closing it early cancels. An answer to
what the server asks meanwhile is a POST of its own. Nothing is sent twice: where the reply breaks off, what was done is
not known, and the fault says so. Counterpart: `tidegate_edge/peers.py`.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import aiohttp
import msgspec

from tidegate.errors import Fault, UpstreamFault
from tidegate_edge.messages import INTERNAL_ERROR, RpcError, encode
from tidegate_edge.upstream.owners import Owners, Peer
from tidegate_edge.upstream.peer_frames import (
    FRAME_HEAD,
    LAST,
    PATH,
    Frame,
    PeerCall,
    PeerSeal,
    encode_call,
)
from tidegate_edge.upstream.port import SILENCE, Answer, Caller, Paused, Talk

CONNECTIONS_MAX: Final = 4_096  # one for each call and each listener under way
CONNECT_S: Final = 2.0
SILENT_S: Final = 15.0  # an edge that works on a request says so every few seconds
OVERTIME_S: Final = 5.0  # past a request's own time, which the other edge keeps


class Peers:
    """This edge's way to the others. Without `owners` (one process, sessions in memory) there are none."""

    def __init__(self, seal: PeerSeal, owners: Owners | None, *, frame_bytes_max: int) -> None:
        self._seal = seal
        self._owners = owners
        self._frame_bytes_max = frame_bytes_max
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, limit_per_host=CONNECTIONS_MAX),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=2 * CONNECT_S, sock_connect=CONNECT_S, sock_read=SILENT_S
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def resume(
        self,
        address: str,
        server: str,
        ticket: bytes,
        answers: Mapping[str, Answer],
        caller: Caller,
        talk: Talk,
        timeout_s: float,
    ) -> Answer | Paused:
        """Go on with what the edge at `address` (on the bus) has paused. Raises UpstreamFault; `upstream-pause-ended`
        where that edge is gone.
        """
        peer = None if self._owners is None else await self._owners.find(address)
        if peer is None:
            raise UpstreamFault(
                f"{server}: the edge that held this request is gone; call again", code="upstream-pause-ended"
            )
        call = PeerCall(
            to=peer.bus,
            server=server,
            ticket=ticket,
            answers=answers,
            caller=caller,
            pausable=talk.pausable,
            timeout_s=timeout_s,
        )
        try:
            return answer_in(await self.ask(peer, "resume", call, talk))
        except UpstreamFault as fault:
            if fault.code in ("peer-moved", "peer-unreachable") and self._owners is not None:
                self._owners.forget_edge(address)
                raise UpstreamFault(fault.sentence, code="upstream-pause-ended") from fault
            raise

    async def ask(self, peer: Peer, what: str, call: PeerCall, talk: Talk = SILENCE) -> Frame:
        """The last frame; `talk` hears the others. Raises UpstreamFault: the other edge's own, `peer-unreachable` or
        `peer-moved` (both with nothing sent), `upstream-broken` where the reply breaks off.
        """
        call = msgspec.structs.replace(call, call=secrets.token_hex(16))
        questions: set[asyncio.Task[None]] = set()
        limit_s = call.timeout_s + OVERTIME_S if call.timeout_s else None

        def put(frame: Frame) -> None:
            task = asyncio.create_task(self._put(peer, call, frame, talk), name=f"ask for {peer.address}")
            questions.add(task)
            task.add_done_callback(questions.discard)

        try:
            async with asyncio.timeout(limit_s), self._replying(peer, what, call) as frames:
                async for frame in frames:
                    if frame.kind in LAST:
                        return _without_fault(frame)
                    _hear(frame, talk, put)
        except TimeoutError as error:
            raise UpstreamFault(f"{call.server}: no answer from {peer.address}", code="upstream-timeout") from error
        finally:
            for task in questions:
                task.cancel()
        raise _broken(call.server, peer)

    async def _put(self, peer: Peer, call: PeerCall, frame: Frame, talk: Talk) -> None:
        """A question to this edge's client, and its answer to the edge that asks."""
        try:
            answer = await talk.asked(frame.method, frame.params)
        except Fault as fault:
            answer = Answer(error=encode(RpcError(INTERNAL_ERROR, fault.sentence)))
        back = PeerCall(to=peer.bus, server=call.server, call=call.call, number=frame.number, answer=answer)
        with contextlib.suppress(UpstreamFault):  # then that edge is gone, and the call with it
            async with self._replying(peer, "answer", back) as frames:
                async for _ in frames:
                    pass

    @contextlib.asynccontextmanager
    async def _replying(self, peer: Peer, what: str, call: PeerCall) -> AsyncIterator[AsyncIterator[Frame]]:
        assert self._http is not None, "`start` comes first"
        path = PATH + what
        proof, body = self._seal.seal_call(path, encode_call(call), int(time.time()))
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Tidegate-Time": str(proof.at_s),
            "X-Tidegate-Nonce": proof.nonce.hex(),
            "X-Tidegate-Proof": proof.proof.hex(),
        }
        try:
            async with self._http.post(
                peer.address + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise UpstreamFault(
                        f"{call.server}: the edge at {peer.address} does not accept this edge ({response.status}); "
                        "see its log, and compare secrets_file, the clocks and edge.address",
                        code="peer-unreachable",
                        sent=False,
                    )
                yield self._frames(response.content, proof.nonce, call.server, peer)
        except aiohttp.ClientConnectorError as error:
            raise UpstreamFault(
                f"{call.server}: the edge at {peer.address} cannot be reached ({error.strerror or error})",
                code="peer-unreachable",
                sent=False,
            ) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UpstreamFault(
                    f"{call.server}: the edge at {peer.address} cannot be reached", code="peer-unreachable", sent=False
                ) from error
            raise _broken(call.server, peer) from error

    async def _frames(
        self, content: aiohttp.StreamReader, nonce: bytes, server: str, peer: Peer
    ) -> AsyncIterator[Frame]:
        seal = self._seal.frames_of(nonce)
        while True:
            try:
                size = int.from_bytes(await content.readexactly(FRAME_HEAD))
                if size > self._frame_bytes_max:
                    raise _broken(server, peer)
                frame = seal.open(await content.readexactly(size))
            except asyncio.IncompleteReadError as error:
                raise _broken(server, peer) from error
            if frame is None:
                raise _broken(server, peer)
            yield frame
            if frame.kind in LAST:
                return


def answer_in(frame: Frame) -> Answer | Paused:
    if frame.kind == "paused":
        return Paused(frame.asked, frame.ticket, frame.edge)
    return frame.answer


def _hear(frame: Frame, talk: Talk, put: Callable[[Frame], None]) -> None:
    if frame.kind == "notified":
        talk.notified(frame.method, frame.params)
    elif frame.kind == "rested":
        talk.rested(frame.retry_ms)
    elif frame.kind == "asked":
        put(frame)


def _without_fault(frame: Frame) -> Frame:
    if frame.kind == "fault":
        raise UpstreamFault(frame.sentence, code=frame.code, sent=frame.sent)
    return frame


def _broken(server: str, peer: Peer) -> UpstreamFault:
    return UpstreamFault(
        f"{server}: the edge at {peer.address}, which runs this server's process, broke off", code="upstream-broken"
    )
