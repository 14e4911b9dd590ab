"""What is heard before the answer, what a stream may hold, and what cancelling does at the server."""

import asyncio
import json
import tracemalloc

import pytest
from tests.parts.scripted import Scripted, Seen, Stream, gone, progress, question, result, scripted, text
from tests.parts.upstreams import ASKABLE, Talking, opened, outgoing, words

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.port import Answer

Writer = asyncio.StreamWriter
ERAS = [(True, "modern"), (False, "sessions")]


@pytest.mark.parametrize(("modern", "era"), ERAS)
async def test_events_reach_the_talk_as_they_come_and_in_order(modern: bool, era: str) -> None:
    go_on = asyncio.Event()

    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        for done in range(3):
            await stream.send(progress(done))
        await go_on.wait()
        await stream.send(result(seen, text("done")))
        stream.end()

    async with scripted(era, behaviours={"echo": behave}) as server, opened(server.url) as up:
        talk = Talking()
        call = asyncio.create_task(up.request(outgoing(modern=modern), talk))
        await server.until_seen(lambda seen: seen.method == "tools/call")
        async with asyncio.timeout(5):
            while len(talk.heard) < 3:
                await asyncio.sleep(0)
        assert not call.done()
        go_on.set()
        assert words(await call) == "done"
        assert [params["progress"] for _, params in talk.heard] == [0, 1, 2]


@pytest.mark.parametrize(("modern", "era"), ERAS)
async def test_progress_for_ever_ends_at_the_call_s_time_and_holds_no_memory(modern: bool, era: str) -> None:
    sent = 0

    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        nonlocal sent
        stream = Stream(writer)
        while not seen.is_gone:
            await stream.send(progress(sent) | {"padding": "x" * 5_000})
            sent += 1

    class Deaf(Talking):
        def notified(self, method: str, params: bytes) -> None: ...

    limits = {"result_bytes_max": 20_000}
    async with scripted(era, behaviours={"echo": behave}) as server, opened(server.url, limits=limits) as up:
        await up.era(True, 5)
        tracemalloc.start()
        try:
            with pytest.raises(UpstreamFault) as caught:
                await up.request(outgoing(modern=modern, timeout_s=1.0), Deaf())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert caught.value.code == "upstream-timeout"
        assert sent * 5_000 > 10 * 20_000  # far more than one answer may hold
        assert peak < 3_000_000
        await _nothing_is_open(server)


async def test_an_event_that_is_larger_than_an_answer_may_be_ends_the_call() -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        await stream.send(progress(1))
        while not seen.is_gone:
            stream.raw("data: " + "x" * 5_000)  # one line without an end
            await writer.drain()

    limits = {"result_bytes_max": 20_000}
    async with scripted(behaviours={"echo": behave}) as server, opened(server.url, limits=limits) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(modern=True), Talking())
        assert "larger than 20000 bytes" in caught.value.sentence
        assert caught.value.sent


@pytest.mark.parametrize(("modern", "era"), ERAS)
async def test_another_s_answer_is_not_taken_and_a_second_one_is_not_heard(modern: bool, era: str) -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        await stream.send({"jsonrpc": "2.0", "id": "another", "result": text("not yours")})
        await stream.send("not JSON")
        await stream.send(result(seen, text("yours")))
        await stream.send(result(seen, text("twice")))
        stream.end()

    async with scripted(era, behaviours={"echo": behave}) as server, opened(server.url) as up:
        for _ in range(3):
            assert words(await up.request(outgoing(modern=modern), Talking())) == "yours"


async def test_cancelling_closes_a_modern_server_s_stream() -> None:
    ended = asyncio.Event()

    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        await Stream(writer).send(progress(1))
        await gone(seen)
        ended.set()

    async with scripted(behaviours={"echo": behave}) as server, opened(server.url) as up:
        call = asyncio.create_task(up.request(outgoing(modern=True), Talking()))
        await server.until_seen(lambda seen: seen.method == "tools/call")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(ended.wait(), 5)
        assert server.count("notifications/cancelled") == 0


@pytest.mark.parametrize("late", [True, False])
async def test_a_server_with_sessions_is_told_that_a_call_was_cancelled_or_late(late: bool) -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        await gone(seen)

    async with scripted("sessions", behaviours={"echo": behave}) as server, opened(server.url) as up:
        call = asyncio.create_task(up.request(outgoing(timeout_s=0.3 if late else 5), Talking()))
        sent = await server.until_seen(lambda seen: seen.method == "tools/call")
        if not late:
            call.cancel()
        with pytest.raises(UpstreamFault if late else asyncio.CancelledError):
            await call
        told = await server.until_seen(lambda seen: seen.method == "notifications/cancelled")
        assert told.params["requestId"] == sent.message["id"]
        assert told.headers["mcp-session-id"] == sent.headers["mcp-session-id"]


async def test_a_server_s_questions_are_answered_in_its_session() -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        await stream.send(question(7, "ping"))
        assert (await server.answer_to(7))["result"] == {}
        await stream.send(question("q", "sampling/createMessage", maxTokens=1))
        sampled = (await server.answer_to("q"))["result"]
        await stream.send(question(9, "tasks/list"))
        assert (await server.answer_to(9))["error"]["code"] == -32601
        await stream.send(result(seen, text(json.dumps(sampled))))
        stream.end()

    async with scripted("sessions", behaviours={"echo": behave}) as server, opened(server.url) as up:
        talk = Talking(answers=lambda method, params: Answer(result=b'{"tokens":%d}' % params.get("maxTokens", 0)))
        assert words(await up.request(outgoing(caller=ASKABLE), talk)) == '{"tokens": 1}'
        # the edge records what it refuses; whatever it says, such a question is not answered with a result
        assert [method for method, _ in talk.questions] == ["sampling/createMessage", "tasks/list"]
        sessions = {seen.headers.get("mcp-session-id") for seen in server.seen if seen.answers is not None}
        assert sessions == {server.sessions[0]}


async def test_a_server_asks_in_vain_for_what_the_client_did_not_declare() -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        await stream.send(question(1))
        refused = (await server.answer_to(1))["error"]["message"]
        await stream.send(result(seen, text(refused)))
        stream.end()

    async with scripted("sessions", behaviours={"echo": behave}) as server, opened(server.url) as up:
        for pausable in (True, False):
            talk = Talking(pausable=pausable)
            assert "declared no such capability" in words(await up.request(outgoing(), talk))
            assert [method for method, _ in talk.questions] == ["elicitation/create"]
            server.seen.clear()


async def test_while_the_client_is_asked_the_server_s_time_does_not_run() -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        await stream.send(question(1))
        await server.answer_to(1)
        await stream.send(result(seen, text("in time")))
        stream.end()

    class Slow(Talking):
        async def asked(self, method: str, params: bytes) -> Answer:
            await asyncio.sleep(1.2)
            return Answer(result=b"{}")

    async with scripted("sessions", behaviours={"echo": behave}) as server, opened(server.url) as up:
        assert words(await up.request(outgoing(caller=ASKABLE, timeout_s=0.6), Slow())) == "in time"


async def test_what_comes_after_a_stream_left_open_is_not_waited_for() -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        await Stream(writer).send(result(seen, text("answered")))
        await gone(seen)

    async with scripted(behaviours={"echo": behave}) as server, opened(server.url) as up:
        assert words(await up.request(outgoing(modern=True), Talking())) == "answered"
        await _nothing_is_open(server)  # the stream is closed for it after a moment


async def _nothing_is_open(server: Scripted) -> None:
    async with asyncio.timeout(5):
        while server.open_connections > 1:  # an idle one may stay
            await asyncio.sleep(0.01)
