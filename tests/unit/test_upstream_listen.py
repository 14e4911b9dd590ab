"""What servers say outside of requests: subscriptions of the modern era, GET streams of the handshake era."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from tests.parts.scripted import Scripted, Seen, Stream, gone, http, question, refusal, result, scripted
from tests.parts.upstreams import ALICE, ASKABLE, Talking, opened, outgoing

from tidegate.sessions.memory import MemorySessions
from tidegate_edge.upstream.port import Answer, Caller, Wanted

Writer = asyncio.StreamWriter
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
ALL = Wanted(tools=True, prompts=True, resources=True, uris=("test://a",))


@contextlib.asynccontextmanager
async def listening(
    up: Any, wanted: Wanted, talk: Talking, caller: Caller = ALICE, *, modern: bool
) -> AsyncIterator[Any]:
    task = asyncio.create_task(up.listen(wanted, caller, modern, talk))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(fact: Callable[[], Any], deadline_s: float = 5.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not fact():
            await asyncio.sleep(0.005)


async def ends(task: "asyncio.Task[None]") -> None:
    await asyncio.wait_for(asyncio.shield(task), 5)


def tagged(seen: Seen, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params | {"_meta": {SUBSCRIPTION: seen.message["id"]}}}


class Subscriptions:
    """Acknowledges `granted`, says one thing, and ends the stream when told to."""

    def __init__(self, granted: Any) -> None:
        self.granted = granted
        self.end = asyncio.Event()

    async def __call__(self, server: Scripted, seen: Seen, writer: Writer) -> None:
        self.end.clear()
        stream = Stream(writer)
        await stream.send(tagged(seen, "notifications/subscriptions/acknowledged", notifications=self.granted))
        await stream.send(tagged(seen, "notifications/tools/list_changed"))
        await stream.send(tagged(seen, "notifications/resources/updated", uri="test://a"))
        ended = [asyncio.create_task(waiting) for waiting in (self.end.wait(), gone(seen))]
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.cancel()
        await stream.send(result(seen, {"resultType": "complete"}))
        stream.end()


async def test_a_subscription_asks_for_what_is_wanted_and_is_told_without_its_tag() -> None:
    answers = Subscriptions({"toolsListChanged": True})
    async with scripted(behaviours={"subscriptions/listen": answers}) as server, opened(server.url) as up:
        talk = Talking()
        async with listening(up, ALL, talk, modern=True):
            await until(lambda: len(talk.heard) == 2)
        assert talk.heard == [
            ("notifications/tools/list_changed", {}),
            ("notifications/resources/updated", {"uri": "test://a"}),
        ]
        (seen,) = [one for one in server.seen if one.method == "subscriptions/listen"]
        assert seen.params["notifications"] == {
            "toolsListChanged": True,
            "promptsListChanged": True,
            "resourcesListChanged": True,
            "resourceSubscriptions": ["test://a"],
        }
        assert seen.headers["mcp-method"] == "subscriptions/listen"
        await until(lambda: server.open_connections == 0)  # cancelled: the stream is closed


async def test_a_subscription_that_ends_is_opened_again() -> None:
    answers = Subscriptions({"toolsListChanged": True})
    async with scripted(behaviours={"subscriptions/listen": answers}) as server, opened(server.url) as up:
        talk = Talking()
        async with listening(up, ALL, talk, modern=True):
            for times in range(1, 4):
                await until(lambda times=times: len(talk.heard) == 2 * times)  # type: ignore[misc]
                answers.end.set()
        assert server.count("subscriptions/listen") >= 3


@pytest.mark.parametrize(
    "answer",
    [
        lambda seen: http(refusal(seen, -32601, "no such method"), 404),
        lambda seen: http(refusal(seen, -32601, "no such method")),
        lambda seen: http("", 404),
        lambda seen: http("", 405),
    ],
)
async def test_a_server_without_subscriptions_is_asked_once(answer: Any) -> None:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.write(answer(seen))

    async with scripted(behaviours={"subscriptions/listen": behave}) as server, opened(server.url) as up:
        async with listening(up, ALL, Talking(), modern=True) as task:
            await ends(task)
        assert server.count("subscriptions/listen") == 1


async def test_a_server_that_grants_nothing_is_not_listened_to() -> None:
    answers = Subscriptions({})
    async with (
        scripted(behaviours={"subscriptions/listen": answers}) as server,
        opened(server.url) as up,
        listening(up, ALL, Talking(), modern=True) as task,
    ):
        await ends(task)


async def test_a_server_that_fails_is_asked_again_later() -> None:
    failures = 2

    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            writer.write(http("", 503))
        else:
            await Subscriptions({"toolsListChanged": True})(server, seen, writer)

    async with scripted(behaviours={"subscriptions/listen": behave}) as server, opened(server.url) as up:
        talk = Talking()
        async with listening(up, ALL, talk, modern=True):
            await until(lambda: talk.heard)
        assert server.count("subscriptions/listen") == 3


# the handshake era


class GetStream:
    """The GET stream of sessions; `say` sends on the one that is open."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.opened = 0

    async def __call__(self, server: Scripted, seen: Seen, writer: Writer) -> None:
        if seen.headers.get("mcp-session-id") not in server.sessions:
            writer.write(http("", 404))
            return
        self.opened += 1
        mine = self.stream = Stream(writer)
        await writer.drain()
        await gone(seen)
        if self.stream is mine:
            self.stream = None

    async def say(self, message: Any, event_id: str = "") -> None:
        assert self.stream is not None
        await self.stream.send(message, event_id)


def changed(kind: str = "tools") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": f"notifications/{kind}/list_changed"}


async def test_a_session_s_stream_is_opened_and_resources_are_subscribed_to_in_it() -> None:
    get = GetStream()
    async with scripted("sessions", behaviours={"GET": get}) as server, opened(server.url) as up:
        talk = Talking()
        async with listening(up, ALL, talk, ASKABLE, modern=False):
            await until(lambda: get.stream)
            await get.say(changed())
            await until(lambda: talk.heard == [("notifications/tools/list_changed", {})])
            await up.request(outgoing(caller=ASKABLE), Talking())
        (subscribed,) = [seen for seen in server.seen if seen.method == "resources/subscribe"]
        assert subscribed.params == {"uri": "test://a"}
        used = {seen.headers["mcp-session-id"] for seen in (subscribed, *server.calls())}
        assert used == set(server.sessions)
        await until(lambda: get.stream is None)


async def test_another_selection_of_resources_in_the_same_session_replaces_the_first() -> None:
    get = GetStream()
    async with scripted("sessions", behaviours={"GET": get}) as server, opened(server.url) as up:
        for uris in (("test://a", "test://b"), ("test://b", "test://c"), ()):
            before = get.opened
            async with listening(up, Wanted(tools=True, uris=uris), Talking(), ASKABLE, modern=False):
                await until(lambda before=before: get.opened > before)  # type: ignore[misc]
        told = [(seen.method[10:], seen.params["uri"][-1]) for seen in server.seen if "subscribe" in seen.method]
        assert told == [
            ("subscribe", "a"),
            ("subscribe", "b"),
            ("unsubscribe", "a"),
            ("subscribe", "c"),
            ("unsubscribe", "b"),
            ("unsubscribe", "c"),
        ]


async def test_a_stream_that_breaks_is_opened_again_after_the_last_event() -> None:
    get = GetStream()
    async with scripted("sessions", behaviours={"GET": get}) as server, opened(server.url) as up:
        talk = Talking()
        async with listening(up, ALL, talk, modern=False):
            await until(lambda: get.stream)
            await get.say(changed(), "event-1")
            await until(lambda: talk.heard)
            assert get.stream is not None
            get.stream.writer.transport.abort()
            await until(lambda: get.opened == 2)
        last = [seen.last_event_id for seen in server.seen if seen.verb == "GET"]
        assert last == ["", "event-1"]


async def test_a_session_that_was_lost_is_opened_again_with_its_subscriptions() -> None:
    get = GetStream()
    async with scripted("sessions", behaviours={"GET": get}) as server, opened(server.url) as up:
        async with listening(up, ALL, Talking(), modern=False):
            await until(lambda: get.stream)
            server.sessions.clear()
            assert get.stream is not None
            get.stream.writer.transport.abort()
            await until(lambda: get.opened == 2)
        assert (server.count("initialize"), server.count("resources/subscribe")) == (2, 2)


async def test_a_server_without_a_stream_is_asked_once() -> None:
    async with scripted("sessions") as server, opened(server.url) as up:
        async with listening(up, ALL, Talking(), modern=False) as task:
            await ends(task)
        assert sum(seen.verb == "GET" for seen in server.seen) == 1


async def test_a_stream_that_another_holds_is_waited_for() -> None:
    get, refusals = GetStream(), 2

    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            writer.write(http("", 409))
        else:
            await get(server, seen, writer)

    async with (
        scripted("sessions", behaviours={"GET": behave}) as server,
        opened(server.url) as up,
        listening(up, ALL, Talking(), modern=False),
    ):
        await until(lambda: get.stream)


async def test_edges_that_share_a_caller_s_session_listen_in_sessions_of_their_own() -> None:
    get, store = GetStream(), MemorySessions(per_subject_max=10)
    async with scripted("sessions", behaviours={"GET": get}) as server, opened(server.url, store=store) as up:
        await up.request(outgoing(), Talking())
        async with listening(up, ALL, Talking(), modern=False):
            await until(lambda: get.stream)
            assert len(server.sessions) == 2
        await until(lambda: len(server.sessions) == 1)  # ended with the listening
        assert server.sessions == [server.calls()[0].headers["mcp-session-id"]]


async def test_a_question_on_the_stream_is_put_to_the_client_and_answered() -> None:
    get = GetStream()
    async with scripted("sessions", behaviours={"GET": get}) as server, opened(server.url) as up:
        talk = Talking(answers=lambda method, params: Answer(result=msgspec.json.encode({"roots": []})))
        async with listening(up, ALL, talk, ASKABLE, modern=False):
            await until(lambda: get.stream)
            await get.say(question(1, "roots/list"))
            assert json.loads(json.dumps((await server.answer_to(1))["result"])) == {"roots": []}
            await get.say(question(2, "ping"))
            assert (await server.answer_to(2))["result"] == {}
        async with listening(up, ALL, talk, ALICE, modern=False):
            await until(lambda: get.opened == 2 and get.stream)
            await get.say(question(3, "roots/list"))
            assert (await server.answer_to(3))["error"]["code"] == -32601
        assert len(talk.questions) == 1
