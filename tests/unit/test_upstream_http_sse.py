"""The older HTTP+SSE transport: found out by itself, its sessions in connections, answers on their streams."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.parts.scripted import Scripted, Seen, Stream, gone, http, progress, question, result, scripted, text
from tests.parts.upstreams import ALICE, ASKABLE, Talking, opened, outgoing, words

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.port import Answer, Paused, Wanted

Writer = asyncio.StreamWriter
YES = Answer(result=b'{"action":"accept"}')


class Older:
    """Speaks HTTP+SSE alone. `tool` makes the answer to a tools/call, on the session's stream."""

    def __init__(self, server: Scripted) -> None:
        self.server = server
        self.streams: dict[str, Stream] = {}
        self.opened = 0
        self.endpoint = "/messages?session={}"
        self.tool: Any = None
        server.behaviours.update({"GET": self.get, "": self.post})

    async def get(self, server: Scripted, seen: Seen, writer: Writer) -> None:
        self.opened += 1
        name = f"s{self.opened}"
        stream = self.streams[name] = Stream(writer)
        await stream.send(self.endpoint.format(name), name="endpoint")
        await gone(seen)
        self.streams.pop(name, None)

    async def post(self, server: Scripted, seen: Seen, writer: Writer) -> None:
        if "/messages" not in seen.path:
            writer.write(http("", 405))
            return
        stream = self.streams.get(seen.path.rpartition("=")[2])
        writer.write(http("", 404 if stream is None else 202))
        await writer.drain()
        if stream is None or seen.answers is not None or "id" not in seen.message:
            return
        match seen.method:
            case "initialize":
                info = {
                    "protocolVersion": "2024-11-05",
                    "capabilities": {},
                    "serverInfo": {"name": "old", "version": "1"},
                }
                await stream.send(result(seen, info), name="message")
            case "tools/list":
                await stream.send(result(seen, {"tools": server.tools}))
            case "tools/call" if self.tool is not None:
                self.task = asyncio.create_task(self.tool(seen, stream))
            case _:
                await stream.send(result(seen, text(json.dumps(seen.params.get("arguments")))))


@contextlib.asynccontextmanager
async def older() -> AsyncIterator[tuple[Scripted, Older]]:
    async with scripted("legacy") as server:
        yield server, Older(server)


async def test_the_transport_is_found_out_and_remembered() -> None:
    async with older() as (server, old), opened(server.url) as up:
        assert await up.era(True, 5) is False
        assert words(await up.request(outgoing(), Talking())) == "{}"
        assert len((await up.definitions(5)).tools) == 3
        refused = [seen for seen in server.seen if seen.method == "initialize" and "/messages" not in seen.path]
        assert len(refused) == 1
        assert old.opened == 2  # the gateway's own and Alice's


async def test_a_configured_transport_is_not_asked_for() -> None:
    async with older() as (server, old), opened(server.url, transport="sse") as up:
        assert up.known_era(True) is False
        assert words(await up.request(outgoing(), Talking())) == "{}"
        assert (old.opened, server.count("server/discover")) == (1, 0)
    async with older() as (server, _), opened(server.url, transport="http") as up:
        with pytest.raises(UpstreamFault):
            await up.request(outgoing(), Talking())
        assert sum(seen.verb == "GET" for seen in server.seen) == 0


async def test_calls_at_once_get_their_own_answers_and_progress() -> None:
    async def tool(seen: Seen, stream: Stream) -> None:
        token = seen.params["_meta"]["progressToken"]
        await stream.send(progress(1, token))
        await stream.send(result(seen, text(token)))

    async with older() as (server, old), opened(server.url, transport="sse") as up:
        old.tool = tool

        async def call(token: str) -> tuple[str, list[Any]]:
            talk = Talking()
            params = {"name": "echo", "arguments": {}, "_meta": {"progressToken": token}}
            answer = await up.request(outgoing(params=params, progress_token=token), talk)
            return words(answer), [said["progressToken"] for _, said in talk.heard]

        tokens = [f"t{n}" for n in range(20)]
        assert await asyncio.gather(*[call(token) for token in tokens]) == [(token, [token]) for token in tokens]
        assert old.opened == 1


async def test_a_question_is_put_to_the_client_or_pauses_the_call() -> None:
    async def tool(seen: Seen, stream: Stream) -> None:
        await stream.send(question(1))
        await stream.send(question(2))
        answers = [(await server.answer_to(n))["result"]["action"] for n in (1, 2)]
        server.seen.clear()
        await stream.send(result(seen, text(" ".join(answers))))

    async with older() as (server, old), opened(server.url, transport="sse") as up:
        old.tool = tool
        talk = Talking()
        assert words(await up.request(outgoing(caller=ASKABLE), talk)) == "accept accept"
        assert len(talk.questions) == 2
        pause = await up.request(outgoing(caller=ASKABLE), Talking(pausable=True))
        assert isinstance(pause, Paused)
        assert pause.edge
        assert len(pause.asked) == 2
        with pytest.raises(UpstreamFault):
            await up.resume(pause.ticket, {}, ALICE, Talking(), 5)
        done = await up.resume(pause.ticket, dict.fromkeys(pause.asked, YES), ASKABLE, Talking(pausable=True), 5)
        assert words(done) == "accept accept"


async def test_a_client_that_does_not_come_back_is_told_to_the_server() -> None:
    async def tool(seen: Seen, stream: Stream) -> None:
        await stream.send(question(1))

    async with older() as (server, old), opened(server.url, transport="sse", limits={"paused_s": 0.2}) as up:
        old.tool = tool
        assert isinstance(await up.request(outgoing(caller=ASKABLE), Talking(pausable=True)), Paused)
        assert (await server.answer_to(1))["result"] == {"action": "cancel"}
        await server.until_seen(lambda seen: seen.method == "notifications/cancelled")


async def test_a_lost_stream_fails_what_is_under_way_and_the_next_call_opens_another() -> None:
    async def tool(seen: Seen, stream: Stream) -> None:
        stream.writer.transport.abort()

    async with older() as (server, old), opened(server.url, transport="sse") as up:
        old.tool = tool
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(), Talking())
        assert (caught.value.code, caught.value.sent) == ("upstream-broken", True)
        assert len(server.calls()) == 1
        old.tool = None
        assert words(await up.request(outgoing(), Talking())) == "{}"


async def test_a_late_or_cancelled_call_is_told_to_the_server() -> None:
    async def tool(seen: Seen, stream: Stream) -> None: ...

    async with older() as (server, old), opened(server.url, transport="sse") as up:
        old.tool = tool
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(timeout_s=0.2), Talking())
        assert caught.value.code == "upstream-timeout"
        told = await server.until_seen(lambda seen: seen.method == "notifications/cancelled")
        assert told.params["requestId"] == server.calls()[0].message["id"]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1/messages", "//evil.example/x", "/with space", "ftp://x"])
async def test_an_endpoint_elsewhere_is_refused_and_sees_nothing(endpoint: str) -> None:
    async with older() as (server, old), opened(server.url, transport="sse", headers={"X-Key": "secret"}) as up:
        old.endpoint = endpoint
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(), Talking())
        assert not caught.value.sent
        assert [seen.verb for seen in server.seen] == ["GET"]


async def test_a_session_ends_with_its_client_and_when_idle() -> None:
    limits = {"upstream_session_idle_s": 0.4}
    async with older() as (server, old), opened(server.url, transport="sse", limits=limits) as up:
        await up.request(outgoing(caller=ASKABLE), Talking())
        await up.request(outgoing(), Talking())
        assert len(old.streams) == 2
        await up.end(ASKABLE)
        listening = asyncio.create_task(up.listen(Wanted(tools=True), ALICE, False, talk := Talking()))
        async with asyncio.timeout(5):
            while len(old.streams) != 1:
                await asyncio.sleep(0.01)
            await next(iter(old.streams.values())).send(
                {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
            )
            while not talk.heard:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.8)
            assert len(old.streams) == 1  # what is listened to is in use
            listening.cancel()
            while old.streams:
                await asyncio.sleep(0.01)
