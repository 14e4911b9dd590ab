"""An edge before servers that fail for longer than one answer: what clients are told, that the other servers are served
as ever, and that nothing stays behind. (Single bad answers: `test_edge_upstreams.py`.)
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from tests.parts.edge import Answer, RunningEdge, Speaker, running_edge, until
from tests.parts.scripted import Scripted, Seen, Stream, gone, http, progress, question, result, scripted, text, tool

from tidegate.events import CallCompleted
from tidegate_edge.upstream.http import HttpUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
Writer = asyncio.StreamWriter
FAILURES_MAX = 4
CONNECTIONS_MAX = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ups() -> AsyncIterator[dict[str, Scripted]]:
    async with contextlib.AsyncExitStack() as stack:
        eras = {"up": "modern", "sessions": "sessions", "other": "modern"}
        yield {name: await stack.enter_async_context(scripted(era)) for name, era in eras.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(ups: dict[str, Scripted], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    servers = {name: {"url": up.url, "timeout_s": 1.0} for name, up in ups.items()}
    limits = {
        "result_bytes_max": 50_000,
        "upstream_failures_max": FAILURES_MAX,
        "upstream_connections_max": CONNECTIONS_MAX,
    }
    async with running_edge(tmp_path_factory.mktemp("bad"), servers, limits=limits) as running:
        yield running


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def well(edge: RunningEdge, ups: dict[str, Scripted], speaker: Speaker) -> AsyncIterator[None]:
    """Afterwards every server is well, and is served."""
    yield
    for up in ups.values():
        up.behaviours.clear()
    for name in ups:
        await until(lambda name=name: _is_served(speaker, name), 8)  # type: ignore[misc]


async def _is_served(speaker: Speaker, name: str) -> bool:
    return (await speaker.call(f"{name}__echo", {"well": name})).text == f'{{"well": "{name}"}}'


def reason(answer: Answer) -> str:
    assert answer.result.get("isError"), answer.body
    return str(answer.result["_meta"]["tidegate/decision"]["reason"])


async def completion(edge: RunningEdge, nonce: str) -> CallCompleted:
    _, done = await edge.place.calls(nonce)
    assert len(done) == 1
    return done[0]


async def silent(server: Scripted, seen: Seen, writer: Writer) -> None:
    """Half-open: the connection stands, and nothing comes."""
    await gone(seen)


async def endless(server: Scripted, seen: Seen, writer: Writer) -> None:
    stream = Stream(writer)
    number = 0
    while not seen.is_gone:
        number += 1
        await stream.send(progress(number))
        await asyncio.sleep(0.001)


async def half_an_answer(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.write(http(result(seen, text("half")))[:-5])
    await gone(seen)


async def aborted(server: Scripted, seen: Seen, writer: Writer) -> None:
    writer.transport.abort()


async def endless_line(server: Scripted, seen: Seen, writer: Writer) -> None:
    stream = Stream(writer)
    while not seen.is_gone:
        stream.raw("data: " + "x" * 5_000)
        await writer.drain()


async def asks_and_leaves(server: Scripted, seen: Seen, writer: Writer) -> None:
    stream = Stream(writer)
    await stream.send(question(1))
    stream.end()


@pytest.mark.parametrize("name", ["up", "sessions"])
@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (silent, "upstream-timeout"),
        (endless, "upstream-timeout"),
        (half_an_answer, "upstream-timeout"),
        (aborted, "upstream-broken"),
        (endless_line, "upstream-broken"),
        (asks_and_leaves, "upstream-failed"),
    ],
)
async def test_a_failing_server_is_told_of_precisely_and_the_others_are_served(
    edge: RunningEdge, ups: dict[str, Scripted], speaker: Speaker, name: str, behaviour: Any, expected: str
) -> None:
    nonce = f"{name}-{behaviour.__name__}"
    ups[name].behaviours["echo"] = behaviour
    failing = asyncio.create_task(speaker.call(f"{name}__echo", {"nonce": nonce}))
    others = await asyncio.gather(*[speaker.call("other__echo", {"n": n}) for n in range(10)])
    assert [answer.text for answer in others] == [f'{{"n": {n}}}' for n in range(10)]
    answer = await failing
    assert reason(answer) == expected
    assert "It may have been carried out" in answer.text
    assert (await completion(edge, nonce)).reason == expected
    assert len([seen for seen in ups[name].calls() if nonce.encode() in seen.body]) == 1


async def test_a_server_that_fails_again_and_again_is_left_alone_and_tried_again(
    edge: RunningEdge, ups: dict[str, Scripted], speaker: Speaker
) -> None:
    up = ups["up"]
    up.behaviours["echo"] = aborted
    for _ in range(FAILURES_MAX):
        assert reason(await speaker.call("up__echo")) == "upstream-broken"
    before = len(up.calls())
    began_s = asyncio.get_running_loop().time()
    refused = await asyncio.gather(*[speaker.call("up__echo", {"nonce": f"refused-{n}"}) for n in range(10)])
    if asyncio.get_running_loop().time() - began_s < 0.9:  # else it has been tried again meanwhile
        assert [reason(answer) for answer in refused] == ["upstream-circuit-open"] * 10
        assert len(up.calls()) == before
        assert "It was not carried out" in refused[0].text
        assert "tried again in" in refused[0].text
        assert (await completion(edge, "refused-3")).reason == "upstream-circuit-open"
    assert (await speaker.call("other__echo", {"n": 1})).text == '{"n": 1}'
    up.behaviours.clear()
    await until(lambda: _is_served(speaker, "up"), 8)
    assert (await speaker.call("up__echo", {"n": 2})).text == '{"n": 2}'


@pytest.mark.parametrize("era", ["modern", "sessions"])
async def test_a_server_that_is_restarted_is_served_again(tmp_path: Any, era: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        up = await first.enter_async_context(scripted(era))
        port = urlsplit(up.url).port or 0
        servers = {"up": {"url": up.url}}
        edge = await stack.enter_async_context(running_edge(tmp_path, servers))
        speaker = edge.place.speaker()
        assert await _is_served(speaker, "up")
        await first.aclose()
        down = await speaker.call("up__echo", {"nonce": "while-it-was-down"})
        assert reason(down) in ("upstream-unreachable", "upstream-broken")
        again = await stack.enter_async_context(scripted(era, port))
        await until(lambda: _is_served(speaker, "up"), 8)
        sent = {seen.body for seen in (*up.calls(), *again.calls()) if b"while-it-was-down" in seen.body}
        assert len(sent) <= 1
        assert len(again.sessions) == (era == "sessions")


async def test_a_list_that_changes_while_it_is_paged_is_never_served_mixed(tmp_path: Any) -> None:
    """The first reading meets a cursor that has become invalid; the list is read again from its start."""
    version = 1

    async def paged(server: Scripted, seen: Seen, writer: Writer) -> None:
        nonlocal version
        if seen.cursor is None:
            page = {"tools": [tool(f"v{version}-a")], "nextCursor": f"{version}"}
            writer.write(http(result(seen, page)))
            return
        if version == 1:
            version = 2
        if seen.cursor != str(version):
            error = {"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": -32602, "message": "stale cursor"}}
            writer.write(http(error))
            return
        writer.write(http(result(seen, {"tools": [tool(f"v{version}-b")]})))

    async with (
        scripted(behaviours={"tools/list": paged}) as up,
        running_edge(tmp_path, {"up": {"url": up.url}}, waits=()) as edge,
    ):
        speaker = edge.place.speaker()

        async def listed() -> set[str]:
            answer = await speaker.ask(speaker.modern("tools/list"))
            return {one["name"] for one in answer.result.get("tools", [])}

        async def whole() -> bool:
            names = await listed()
            assert names in (set(), {"up__v1-a"}, {"up__v2-a", "up__v2-b"}), names
            return len(names) == 2

        await until(whole, 15)


async def test_nothing_stays_behind(edge: RunningEdge, ups: dict[str, Scripted], speaker: Speaker) -> None:
    """Rounds of all failures, with clients that leave; then nothing is under way, and no session more than before."""

    async def round_of_failures() -> None:
        for behaviour in (aborted, half_an_answer, endless, endless_line, asks_and_leaves):
            for name in ("up", "sessions"):
                ups[name].behaviours["echo"] = behaviour
            calls = [
                asyncio.create_task(speaker.call(f"{name}__echo", {"n": n}))
                for name in ("up", "sessions")
                for n in (1, 2)
            ]
            calls[0].cancel()
            await asyncio.wait(calls)
            for name in ("up", "sessions"):
                ups[name].behaviours.clear()
                await until(lambda name=name: _is_served(speaker, name), 8)  # type: ignore[misc]

    def held() -> int:
        """Calls under way, and what is done or kept for them."""
        found = 0
        for name in ups:
            upstream = edge.edge.upstreams[name]
            assert isinstance(upstream, HttpUpstream)
            in_use = sum(CONNECTIONS_MAX - replica.pool.places._value for replica in upstream.replicas)
            found += len(upstream.errands) + len(upstream.parks) + in_use
        return found

    def tasks() -> Counter[str]:
        names = (task.get_name().rstrip("0123456789") for task in asyncio.all_tasks())
        return Counter(name for name in names if not name.startswith("Task-"))

    await round_of_failures()
    await until(lambda: all(up.open_connections <= 3 for up in ups.values()), 8)
    sessions_before, tasks_before = {name: len(up.sessions) for name, up in ups.items()}, tasks()
    for _ in range(2):
        await round_of_failures()
    await until(lambda: not held() and not tasks() - tasks_before, 8)
    assert {name: len(up.sessions) for name, up in ups.items()} == sessions_before
    await until(lambda: all(up.open_connections <= 3 for up in ups.values()), 8)
