"""A server of the handshake era asks mid-call: the call is paused, and gone on with at any edge where that can be; and
streams that a server ends before the answer.
"""

import asyncio
import json
from typing import Any

import pytest
from tests.parts.scripted import Scripted, Seen, Stream, gone, http, progress, question, result, scripted, text
from tests.parts.upstreams import ALICE, ASKABLE, Talking, opened, outgoing, words

from tidegate.errors import UpstreamFault
from tidegate.sessions.memory import MemorySessions
from tidegate_edge.upstream.port import Answer, Caller, Paused

Writer = asyncio.StreamWriter
YES = Answer(result=b'{"action":"accept","content":{"n":1}}')


class Asking:
    """A tool that asks `questions` at once; `marked`: its events have ids, and a GET brings what came after one."""

    def __init__(self, questions: int = 1, *, marked: bool = True, rounds: int = 1) -> None:
        self.questions, self.marked, self.rounds = questions, marked, rounds
        self.missed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.call: Any = None

    async def __call__(self, server: Scripted, seen: Seen, writer: Writer) -> None:
        if seen.verb == "GET":
            stream = Stream(writer)
            for number in range(100):
                message = await self.missed.get()
                await stream.send(message, f"late-{number}")
                if "result" in message:
                    stream.end()
                    return
        self.call = seen
        stream = Stream(writer)
        self._begun = asyncio.create_task(self._run(server, seen, stream))
        await asyncio.wait([self._begun])

    async def _run(self, server: Scripted, seen: Seen, stream: Stream) -> None:
        heard = []
        for at in range(self.rounds):
            for number in range(self.questions):
                asked = question(f"q{at}{number}", message=f"question {number}")
                if at == 0 or not self.marked:
                    await stream.send(asked, f"e{at}{number}" if self.marked else "")
                else:
                    await self.missed.put(asked)
            for number in range(self.questions):
                answer = await server.answer_to(f"q{at}{number}")
                heard.append(answer.get("result", answer.get("error")))
        last = result(seen, text(json.dumps(heard)))
        if self.marked:
            await self.missed.put(last)
        else:
            await stream.send(last)
            stream.end()


def scripted_asking(tool: Asking) -> Any:
    return scripted("sessions", behaviours={"echo": tool, "GET": tool})


async def paused(up: Any, **more: Any) -> Paused:
    found = await up.request(outgoing(caller=ASKABLE, **more), Talking(pausable=True))
    assert isinstance(found, Paused)
    return found


async def test_a_marked_stream_is_left_and_any_edge_goes_on() -> None:
    store = MemorySessions(per_subject_max=10)
    async with scripted_asking(Asking(questions=3)) as server:
        async with opened(server.url, store=store) as one, opened(server.url, store=store) as other:
            pause = await paused(one)
            assert (pause.edge, len(pause.asked), len(one.parks)) == ("", 3, 0)
            assert [json.loads(asked.params)["message"] for asked in pause.asked.values()] == [
                f"question {n}" for n in range(3)
            ]
            await one.close()
            answers = {
                key: Answer(result=b'{"action":"accept","content":{"key":"%b"}}' % key.encode()) for key in pause.asked
            }
            talk = Talking(pausable=True)
            told = json.loads(words(await other.resume(pause.ticket, answers, ASKABLE, talk, 5)))
            assert [answer["content"]["key"] for answer in told] == list(pause.asked)
        assert len(server.calls()) == 1  # never sent again
        assert [seen.last_event_id for seen in server.seen if seen.verb == "GET"] == ["e02"]


async def test_an_unmarked_stream_is_kept_open_here_and_gone_on_with_here() -> None:
    tool = Asking(marked=False, rounds=2)
    async with scripted_asking(tool) as server, opened(server.url) as up, opened(server.url) as other:
        pause = await paused(up)
        assert pause.edge
        assert len(up.parks) == 1
        with pytest.raises(UpstreamFault) as caught:
            await other.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(), 5)
        assert caught.value.code == "upstream-pause-ended"
        again = await up.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(pausable=True), 5)
        assert isinstance(again, Paused)
        (key,) = again.asked
        done = await up.resume(again.ticket, {key: YES}, ASKABLE, Talking(pausable=True), 5)
        assert json.loads(words(done)) == [{"action": "accept", "content": {"n": 1}}] * 2
        assert len(up.parks) == 0
        with pytest.raises(UpstreamFault):
            await up.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(), 5)
        assert len(server.calls()) == 1


@pytest.mark.parametrize("marked", [True, False])
async def test_nobody_else_may_go_on(marked: bool) -> None:
    async with scripted_asking(Asking(marked=marked)) as server, opened(server.url) as up:
        pause = await paused(up)
        for other in (ALICE, Caller("acme", "mallory", "tests", "client-1", ASKABLE.capabilities)):
            with pytest.raises(UpstreamFault) as caught:
                await up.resume(pause.ticket, {"1": YES}, other, Talking(), 5)
            assert caught.value.code == "upstream-pause-ended"
        assert words(await up.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(), 5))


@pytest.mark.parametrize("ticket", [b"", b"{}", b"[]", b"\xff", b'{"owner":"x","park":"y"}'])
async def test_what_is_no_ticket_is_refused(ticket: bytes) -> None:
    async with scripted("sessions") as server, opened(server.url) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.resume(ticket, {}, ASKABLE, Talking(), 5)
        assert caught.value.code == "upstream-pause-ended"


@pytest.mark.parametrize("marked", [True, False])
async def test_what_was_not_answered_is_asked_again(marked: bool) -> None:
    async with scripted_asking(Asking(2, marked=marked)) as server, opened(server.url) as up:
        pause = await paused(up)
        again = await up.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(pausable=True), 5)
        assert isinstance(again, Paused)
        assert again.asked == {"2": pause.asked["2"]}
        done = await up.resume(again.ticket, {"2": YES}, ASKABLE, Talking(pausable=True), 5)
        assert len(json.loads(words(done))) == 2


async def test_a_client_that_does_not_come_back_is_told_to_the_server_and_nothing_stays() -> None:
    tool = Asking(marked=False)
    async with scripted_asking(tool) as server, opened(server.url, limits={"paused_s": 0.3}) as up:
        pause = await paused(up)
        assert (await server.answer_to("q00"))["result"] == {"action": "cancel"}
        told = await server.until_seen(lambda seen: seen.method == "notifications/cancelled")
        assert told.params["requestId"] == tool.call.message["id"]
        with pytest.raises(UpstreamFault) as caught:
            await up.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(), 5)
        assert caught.value.code == "upstream-pause-ended"
        assert len(up.parks) == 0


async def test_no_more_calls_are_kept_open_than_there_is_room_for() -> None:
    limits = {"paused_calls_max": 2, "upstream_connections_max": 2}
    async with scripted_asking(Asking(marked=False)) as server, opened(server.url, limits=limits) as up:
        for _ in range(2):
            await paused(up)
        with pytest.raises(UpstreamFault) as caught:  # but connections there were: what is kept counts apart
            await paused(up)
        assert caught.value.code == "upstream-busy"
        assert len(up.parks) == 2


async def test_a_session_that_ended_meanwhile_ends_the_pause() -> None:
    async with scripted_asking(Asking()) as server, opened(server.url) as up:
        pause = await paused(up)
        server.sessions.clear()
        server.behaviours.clear()
        with pytest.raises(UpstreamFault) as caught:
            await up.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(), 5)
        assert (caught.value.code, caught.value.sent) == ("upstream-pause-ended", True)


# streams that end before the answer


class Leaving:
    """A tool whose server lets go of the stream: its POST brings one event, each GET one more, then the answer."""

    def __init__(self, gets: int = 2, *, retry_ms: int | None = 20, breaks: bool = False) -> None:
        self.gets, self.retry_ms, self.breaks = gets, retry_ms, breaks
        self.call: Any = None

    async def __call__(self, server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        if seen.verb == "POST":
            self.call = seen
            await stream.send("", "0", retry_ms=self.retry_ms)
        else:
            at = int(seen.last_event_id) + 1
            if at > self.gets:
                await stream.send(result(self.call, text("at last")), str(at))
            else:
                await stream.send(progress(at), str(at))
        if self.breaks:
            writer.transport.abort()
        else:
            stream.end()


@pytest.mark.parametrize("breaks", [True, False])
async def test_a_stream_that_ends_early_is_come_back_to_and_nothing_is_sent_twice(breaks: bool) -> None:
    tool = Leaving(breaks=breaks)
    async with scripted("sessions", behaviours={"echo": tool, "GET": tool}) as server, opened(server.url) as up:
        talk = Talking()
        assert words(await up.request(outgoing(), talk)) == "at last"
        assert [params["progress"] for _, params in talk.heard] == [1, 2]
        assert [seen.last_event_id for seen in server.seen if seen.verb == "GET"] == ["0", "1", "2"]
        assert len(server.calls()) == 1
        assert talk.rests == ([] if breaks else [20, 20, 20])


async def test_the_server_s_retry_time_is_kept() -> None:
    tool = Leaving(gets=0, retry_ms=400)
    async with scripted("sessions", behaviours={"echo": tool, "GET": tool}) as server, opened(server.url) as up:
        await up.era(True, 5)
        began_s = asyncio.get_running_loop().time()
        await up.request(outgoing(), Talking())
        assert asyncio.get_running_loop().time() - began_s >= 0.4


async def test_an_answer_that_was_only_stored_while_a_stream_was_joined_is_fetched() -> None:
    """A server may lose what it says between the stored events and the live ones; asked once more, it has it."""
    calls: list[Seen] = []

    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        if seen.verb == "POST":
            calls.append(seen)
            await stream.send("", "0", retry_ms=0)
            stream.end()
        elif sum(one.verb == "GET" for one in server.seen) == 1:
            await writer.drain()
            await gone(seen)
        else:
            await stream.send(result(calls[0], text("stored")), "1")
            stream.end()

    async with scripted("sessions", behaviours={"echo": behave, "GET": behave}) as server, opened(server.url) as up:
        assert words(await up.request(outgoing(), Talking())) == "stored"
        assert len(server.calls()) == 1


async def test_a_stream_that_tells_nothing_new_is_not_come_back_to_for_ever() -> None:
    async def empty(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        if seen.verb == "POST":
            await stream.send("", "0", retry_ms=0)
        stream.end()

    async with scripted("sessions", behaviours={"echo": empty, "GET": empty}) as server, opened(server.url) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(timeout_s=2.0), Talking())
        assert caught.value.sent
        assert sum(seen.verb == "GET" for seen in server.seen) < 10
        assert len(server.calls()) == 1


async def test_an_answer_that_was_lost_with_its_session_is_not_asked_for_again() -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        await stream.send("", "0", retry_ms=0)
        server.sessions.clear()
        stream.end()

    async def unknown(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.write(http("", 404))

    async with scripted("sessions", behaviours={"echo": behave, "GET": unknown}) as server, opened(server.url) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(), Talking())
        assert caught.value.sent
        assert "404" in caught.value.sentence
        assert len(server.calls()) == 1


async def test_a_stream_without_ids_that_breaks_is_lost() -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        await Stream(writer).send(progress(1))
        writer.transport.abort()

    async with scripted("sessions", behaviours={"echo": behave}) as server, opened(server.url) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(), Talking())
        assert (caught.value.code, caught.value.sent) == ("upstream-broken", True)
        assert len(server.calls()) == 1


async def test_cancelling_a_paused_stream_s_answer_leaves_nothing_open() -> None:
    async def never(server: Scripted, seen: Seen, writer: Writer) -> None:
        stream = Stream(writer)
        await stream.send(question(1))
        await gone(seen)

    async with scripted("sessions", behaviours={"echo": never}) as server, opened(server.url) as up:
        pause = await paused(up)
        going = asyncio.create_task(up.resume(pause.ticket, {"1": YES}, ASKABLE, Talking(), 5))
        await server.answer_to(1)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        await server.until_seen(lambda seen: seen.method == "notifications/cancelled")
        async with asyncio.timeout(5):
            while server.open_connections > 2:  # idle ones
                await asyncio.sleep(0.01)
