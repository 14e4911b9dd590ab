"""Streams at the front door, as transcripts: a real server with handlers of the test's own, raw bytes both ways."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
import uvicorn
from fastapi import FastAPI
from tests.parts.edge import Client, Event, until
from tests.parts.processes import free_port

from tidegate.limits import OUTLET_MESSAGES_MAX, STREAM_BUFFER_BYTES_MAX, Limits
from tidegate.serving import open_server
from tidegate.sessions.port import KeptEvent, KeptStreams, SessionsUnavailable
from tidegate_edge import event_stream, outlet
from tidegate_edge.exchange import Exchange
from tidegate_edge.http_front import protocol_class, sweep_connections
from tidegate_edge.inflight import ClientCancelled
from tidegate_edge.messages import Reply
from tidegate_edge.outlet import Outlets, StreamOutlet, owner_of, read_event_id

Handler = Callable[[Exchange], Awaitable[Reply]]
PRIMED = b"\x001"
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{}}'
LEGACY = "2025-11-25"


@dataclass
class Person:
    tenant: str = "acme"


@dataclass
class Kept(KeptStreams):
    """Kept events in a list for each stream; can be slow, or away."""

    streams: dict[tuple[str, str], list[KeptEvent]] = field(default_factory=dict)
    finished: set[tuple[str, str]] = field(default_factory=set)
    away: bool = False
    gate: asyncio.Event | None = None
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    async def keep(self, owner: str, stream: str, message: bytes, ttl_s: float) -> str:
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.away:
            raise SessionsUnavailable("the store is away")
        number = str(next(self.numbers))
        self.streams.setdefault((owner, stream), []).append(KeptEvent(number, message))
        return number

    async def kept_after(self, owner: str, stream: str, number: str, wait_s: float) -> list[KeptEvent] | None:
        found = self.streams.get((owner, stream))
        return None if found is None else [one for one in found if int(one.number) > int(number)]

    async def finish(self, owner: str, stream: str, ttl_s: float) -> None:
        self.finished.add((owner, stream))

    @property
    def messages(self) -> list[bytes]:
        return [one.message for events in self.streams.values() for one in events]


@dataclass
class Front:
    """A front door with one handler."""

    listen: str
    server: uvicorn.Server
    kept: Kept
    draining: asyncio.Event
    handler: Handler
    outlets: list[StreamOutlet] = field(default_factory=list)

    async def connect(self, receive_bytes: int = 0) -> Client:
        host, port = self.listen.split(":")
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        return Client(*await asyncio.open_connection(sock=sock, limit=1 << 20))

    async def post(self, *, close: bool = False, version: str = "1.1", verb: str = "POST") -> Client:
        client = await self.connect()
        client.write(request(close=close, version=version, verb=verb))
        return client


def request(*, close: bool = False, version: str = "1.1", verb: str = "POST", path: str = "/mcp") -> bytes:
    extra = "Connection: close\r\n" if close else ""
    return f"{verb} {path} HTTP/{version}\r\nHost: x\r\n{extra}Content-Length: 2\r\n\r\n{{}}".encode()


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    async with _front() as opened:
        yield opened


@contextlib.asynccontextmanager
async def _front(**limits: float) -> AsyncIterator[Front]:
    kept, draining = Kept(), asyncio.Event()

    async def serve(exchange: Exchange) -> Reply:
        return await opened.handler(exchange)

    async def plain(exchange: Exchange) -> Reply:
        return Reply(200, ANSWER)

    chosen = Limits(**{"drain_timeout_s": 5.0, **limits})  # type: ignore[arg-type]
    http = protocol_class(serve, lambda _: True, chosen, outlets=Outlets(kept, 60.0), draining=draining)
    server = open_server(FastAPI(), f"127.0.0.1:{free_port()}", chosen, http=http)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    opened = Front(f"127.0.0.1:{server.config.port}", server, kept, draining, plain)
    serving = asyncio.create_task(server.serve())
    sweeping = asyncio.create_task(sweep_connections(server.server_state.connections, 0.02))
    try:
        await until(lambda: server.started)
        yield opened
    finally:
        server.should_exit = True
        await serving
        sweeping.cancel()


def legacy(exchange: Exchange, session: str = "s-1") -> StreamOutlet:
    return exchange.outlet(Person(), session, LEGACY, 1)  # type: ignore[arg-type]


def plain(exchange: Exchange) -> StreamOutlet:
    return exchange.outlet(Person(), "", "2026-07-28")  # type: ignore[arg-type]


def say(number: int) -> bytes:
    return b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"n":%d}}' % number


# opening and ending


async def test_a_handler_that_says_nothing_is_answered_in_plain_json(front: Front) -> None:
    async def handler(exchange: Exchange) -> Reply:
        plain(exchange)
        return Reply(200, ANSWER)

    front.handler = handler
    answer = await (await front.post()).answer()
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", ANSWER)


@pytest.mark.parametrize(
    ("accept", "reply", "streamed"),
    [
        ("text/event-stream, application/json", Reply(200, ANSWER), True),
        ("application/json, text/event-stream", Reply(200, ANSWER), False),
        ("text/event-stream, application/json", Reply(400, ANSWER), False),
        ("text/event-stream, application/json", Reply(202), False),
        ("text/event-stream, application/json", Reply(200, ANSWER, b"mcp-session-id: x\r\n"), False),
    ],
)
async def test_a_client_that_names_streams_first_is_answered_in_one(
    front: Front, accept: str, reply: Reply, streamed: bool
) -> None:
    async def handler(exchange: Exchange) -> Reply:
        return reply

    front.handler = handler
    client = await front.connect()
    for _ in range(2):
        client.write(request().replace(b"Host: x", b"Host: x\r\nAccept: " + accept.encode()))
        if streamed:
            assert (await client.stream()).headers["content-type"] == "text/event-stream"
            assert [one.data.encode() for one in await client.events()] == [ANSWER]
        else:
            answer = await client.answer()
            assert (answer.status, answer.body) == (reply.status, reply.body)
    client.close()


@pytest.mark.parametrize("status", [200, 400, 503])
async def test_the_answer_is_the_last_event_and_the_connection_serves_on(front: Front, status: int) -> None:
    async def handler(exchange: Exchange) -> Reply:
        out = plain(exchange)
        out.send(say(1))
        out.send(say(2))
        return Reply(status, ANSWER)

    front.handler = handler
    client = await front.post()
    for _ in range(2):
        head = await client.stream()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert (head.headers["x-accel-buffering"], head.headers["cache-control"]) == ("no", "no-cache")
        assert [one.data.encode() for one in await client.events()] == [say(1), say(2), ANSWER]
        client.write(request())
    client.close()


async def test_pipelined_requests_are_answered_in_order_behind_a_stream(front: Front) -> None:
    goes_on = asyncio.Event()
    served = count()

    async def handler(exchange: Exchange) -> Reply:
        if next(served) == 0:
            plain(exchange).send(say(1))
            await goes_on.wait()
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.connect()
    client.write(request() + request())
    await client.stream()
    first = await client.event()
    assert first is not None
    assert first.data.encode() == say(1)
    goes_on.set()
    assert [one.data.encode() for one in await client.events()] == [ANSWER]
    assert (await client.answer()).body == ANSWER
    client.close()


@pytest.mark.parametrize(("version", "close"), [("1.0", False), ("1.1", True)])
async def test_without_keep_alive_the_stream_ends_with_the_connection(front: Front, version: str, close: bool) -> None:
    async def handler(exchange: Exchange) -> Reply:
        plain(exchange).send(say(1))
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post(version=version, close=close)
    head = await client.stream()
    assert "transfer-encoding" not in head.headers
    assert head.headers["connection"] == "close"
    assert [one.data.encode() for one in await client.events()] == [say(1), ANSWER]
    assert await client.ended() == b""


async def test_head_has_no_stream(front: Front) -> None:
    async def handler(exchange: Exchange) -> Reply:
        plain(exchange).send(say(1))
        return Reply(405, ANSWER)

    front.handler = handler
    client = await front.post(verb="HEAD")
    answer = await client.answer(head_only=True)
    assert answer.status == 405


async def test_line_breaks_between_tokens_do_not_end_an_event(front: Front) -> None:
    async def handler(exchange: Exchange) -> Reply:
        plain(exchange).send(b'{\r\n\r\n"a":\n\n"x\\ny"\r}')
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    first = await client.event()
    assert first is not None
    assert first.json == {"a": "x\ny"}
    assert len(await client.events()) == 1


async def test_a_request_that_its_client_cancelled_ends_without_a_response(front: Front) -> None:
    async def handler(exchange: Exchange) -> Reply:
        if exchange.headers.get(b"x-speaks"):
            plain(exchange).send(say(1))
        raise ClientCancelled

    front.handler = handler
    answer = await (await front.post()).answer()
    assert (answer.status, answer.body) == (202, b"")
    client = await front.connect()
    client.write(request().replace(b"Host: x", b"Host: x\r\nX-Speaks: 1"))
    await client.stream()
    assert [one.data.encode() for one in await client.events()] == [say(1)]


# readers


async def test_a_reader_that_never_reads_is_cut_off_at_a_bound(front: Front) -> None:
    most, cut = 0, asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        nonlocal most
        exchange.cancel_on_disconnect = True
        out = plain(exchange)
        try:
            while True:
                out.send(b'"' + b"x" * 20_000 + b'"')
                most = max(most, exchange.protocol.transport.get_write_buffer_size())
                await asyncio.sleep(0)
        finally:
            cut.set()

    front.handler = handler
    client = await front.connect(receive_bytes=4_096)
    client.reader._limit = 1_024  # type: ignore[attr-defined]  # the test's own reader must not read ahead
    client.write(request())
    await asyncio.wait_for(cut.wait(), 10)
    assert most <= STREAM_BUFFER_BYTES_MAX + 21_000
    await until(lambda: not front.server.server_state.connections)
    client.close()


async def test_a_silent_stream_is_kept_alive_by_comments(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.05)
    goes_on = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        plain(exchange).open()
        await goes_on.wait()
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    for _ in range(3):
        event = await client.event(comments=True)
        assert event is not None
        assert event.comment
    goes_on.set()
    assert [one.data.encode() for one in await client.events()] == [ANSWER]


async def test_a_reader_that_takes_nothing_for_long_is_cut_off_though_little_waits(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.05)
    gone = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        exchange.cancel_on_disconnect = True
        out = plain(exchange)
        try:
            while exchange.protocol.transport.get_write_buffer_size() < 50_000:
                out.send(b'"' + b"x" * 10_000 + b'"')
            await asyncio.Event().wait()
        finally:
            gone.set()
        return Reply(200)

    front.handler = handler
    client = await front.connect(receive_bytes=4_096)
    client.reader._limit = 1_024  # type: ignore[attr-defined]
    client.write(request())
    await asyncio.wait_for(gone.wait(), 10)
    client.close()


# resumable streams


def ids(events: list[Event]) -> list[str]:
    return [one.id for one in events]


async def test_a_resumable_stream_begins_with_a_priming_event_and_every_event_has_an_id(front: Front) -> None:
    async def handler(exchange: Exchange) -> Reply:
        out = legacy(exchange)
        assert out.resumable
        for number in range(5):
            out.send(say(number))
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    priming, *events = await client.events()
    assert (priming.data, priming.retry_ms, bool(priming.id)) == ("", outlet.RETRY_MS, True)
    assert [one.data.encode() for one in events] == [*map(say, range(5)), ANSWER]
    streams = {read_event_id(one.id)[0] for one in [priming, *events]}  # type: ignore[index]
    assert len(streams) == 1
    assert len(set(ids([priming, *events]))) == 7
    assert front.kept.messages == [PRIMED, *map(say, range(5)), ANSWER]
    assert front.kept.finished == {(owner_of("acme", "s-1"), streams.pop())}


async def test_no_event_is_seen_before_it_is_kept(front: Front) -> None:
    front.kept.gate = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        legacy(exchange).send(say(1))
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    with pytest.raises(TimeoutError):
        await client.event(0.1)
    front.kept.gate.set()
    assert [one.data.encode() for one in await client.events()] == [b"", say(1), ANSWER]


async def test_without_the_store_the_stream_goes_on_without_ids(front: Front) -> None:
    async def handler(exchange: Exchange) -> Reply:
        out = legacy(exchange)
        out.send(say(1))
        await until(lambda: len(front.kept.messages) == 2)
        front.kept.away = True
        out.send(say(2))
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    events = await client.events()
    assert [one.data.encode() for one in events] == [b"", say(1), say(2), ANSWER]
    assert [bool(one.id) for one in events] == [True, True, False, False]


async def test_a_client_that_vanishes_does_not_end_the_call_and_its_answer_is_kept(front: Front) -> None:
    goes_on = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        out = legacy(exchange)
        out.send(say(1))
        await goes_on.wait()
        assert out.is_open
        out.send(say(2))
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    assert await client.event() is not None
    client.close()
    await until(lambda: not front.server.server_state.connections)
    goes_on.set()
    await until(lambda: front.kept.messages == [PRIMED, say(1), say(2), ANSWER])
    await until(lambda: len(front.kept.finished) == 1)


async def test_a_rest_ends_the_answer_in_order_and_events_go_on_being_kept(front: Front) -> None:
    rested = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        if exchange.headers.get(b"x-second"):
            return Reply(200, ANSWER)
        out = legacy(exchange)
        out.send(say(1))
        out.rest(250)
        out.send(say(2))
        await rested.wait()
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    events = await client.events()
    assert [one.data.encode() for one in events] == [b"", say(1), b""]
    assert events[-1].retry_ms == 250
    client.write(request().replace(b"Host: x", b"Host: x\r\nX-Second: 1"))  # the connection serves on meanwhile
    assert (await client.answer()).body == ANSWER
    rested.set()
    await until(lambda: front.kept.messages == [PRIMED, say(1), say(2), ANSWER])


async def test_a_long_legacy_call_opens_its_stream_by_itself(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "OPENS_AFTER_S", 0.1)
    goes_on = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        legacy(exchange)
        await goes_on.wait()
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    priming = await client.event()
    assert priming is not None
    assert priming.id
    assert not priming.data
    goes_on.set()
    assert [one.data.encode() for one in await client.events()] == [ANSWER]


async def test_what_waits_for_the_store_is_bounded_and_the_answer_always_goes(front: Front) -> None:
    front.kept.gate = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        out = legacy(exchange)
        for number in range(5_000):
            out.send(say(number))
        front.kept.gate.set()  # type: ignore[union-attr]
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    events = await client.events()
    assert len(events) <= OUTLET_MESSAGES_MAX + 2
    assert events[-1].data.encode() == ANSWER


# the end of the server


async def test_a_drain_lets_a_stream_under_way_end_and_closes_its_connection(front: Front) -> None:
    begun = asyncio.Event()

    async def handler(exchange: Exchange) -> Reply:
        plain(exchange).send(say(1))
        begun.set()
        await front.draining.wait()  # told to whoever has no end of its own
        return Reply(200, ANSWER)

    front.handler = handler
    client = await front.post()
    await client.stream()
    await begun.wait()
    front.server.should_exit = True
    assert [one.data.encode() for one in await client.events()] == [say(1), ANSWER]
    assert await client.ended() == b""


async def test_a_call_that_outlasts_the_drain_tells_whoever_comes_back_for_it(tmp_path: object) -> None:
    async with _front(drain_timeout_s=1.0) as front:
        begun = asyncio.Event()

        async def handler(exchange: Exchange) -> Reply:
            legacy(exchange).send(say(1))
            begun.set()
            await asyncio.Event().wait()
            return Reply(200)

        front.handler = handler
        client = await front.post()
        await client.stream()
        await begun.wait()
        front.server.should_exit = True
        await until(lambda: bool(front.kept.finished))
    answer = front.kept.messages[-1]
    assert json.loads(answer)["error"]["code"] == -32603
    assert json.loads(answer)["id"] == 1


def test_only_what_an_outlet_may_have_sent_is_read_as_an_event_id() -> None:
    assert read_event_id("e1_" + "A" * 22 + ".17-0") == ("e1_" + "A" * 22, "17-0")
    for garbage in (
        "",
        ".",
        "A" * 22,
        "e_" + "A" * 21 + ".1",
        "e_" + "A" * 22 + ".",
        "e_" + "A" * 22 + ".1|2",
        "_" + "A" * 22 + ".1",
    ):
        assert read_event_id(garbage) is None
