"""What is in quarantine is not listed: lists and calls agree, at its beginning and at its end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import RunningEdge, Speaker, running_edge, until
from tests.parts.scripted import Scripted, Seen, http, result, scripted, tool

from tidegate.chain import Chain
from tidegate.events import QuarantineImposed
from tidegate.ids import now_us, uuid7
from tidegate.log.port import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")
LISTS = {
    "tools/list": ("tools", "name"),
    "prompts/list": ("prompts", "name"),
    "resources/list": ("resources", "uri"),
    "resources/templates/list": ("resourceTemplates", "uriTemplate"),
}
EVERYTHING = {"up__echo", "up__note", "up__greet", "other__echo", "docs://Plans/1", "docs://Plans/2", "docs://{name}"}


async def offer(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    answers: dict[str, dict[str, Any]] = {
        "prompts/list": {"prompts": [{"name": "greet"}]},
        "resources/list": {"resources": [{"uri": f"docs://Plans/{one}", "name": "r"} for one in (1, 2)]},
        "resources/templates/list": {"resourceTemplates": [{"uriTemplate": "docs://{name}", "name": "t"}]},
    }
    found = {**answers[seen.method], "resultType": "complete", "ttlMs": 1, "cacheScope": "private"}
    writer.write(http(result(seen, found)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    methods = ("prompts/list", "resources/list", "resources/templates/list")
    capabilities: dict[str, Any] = {"tools": {}, "resources": {}, "prompts": {}}
    async with (
        scripted(
            tools=[tool("echo"), tool("note")], capabilities=capabilities, behaviours=dict.fromkeys(methods, offer)
        ) as up,
        scripted(tools=[tool("echo")]) as other,
        running_edge(tmp_path_factory.mktemp("lists"), {"up": {"url": up.url}, "other": {"url": other.url}}) as running,
    ):
        yield running


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


@contextlib.asynccontextmanager
async def quarantined(edge: RunningEdge, scope: Any, value: str, for_us: int = 0) -> AsyncIterator[None]:
    at_us, held = now_us(), edge.edge.quarantines_of("acme")
    event = QuarantineImposed(
        id=uuid7(at_us), time_us=at_us, tenant="acme", region="local", quarantine_id=uuid7(at_us), scope=scope,
        value=value, reason="looked at", actor="tests", expires_us=at_us + for_us if for_us else 0,
    )  # fmt: skip
    key = f"acme|{event.quarantine_id}".encode()
    await edge.log.append([Record("control-state", key, Chain(event.quarantine_id).seal(event).value)])
    await until(lambda: held.get(event.quarantine_id) is not None)
    try:
        yield
    finally:
        await edge.log.append([Record("control-state", key, None)])
        await until(lambda: held.get(event.quarantine_id) is None)


async def listed(speaker: Speaker, *, modern: bool = True) -> set[str]:
    """All that is in all lists."""
    ask = speaker.modern if modern else speaker.legacy
    pages = {method: (await speaker.ask(ask(method))).result for method in LISTS}
    return {str(one[key]) for method, (member, key) in LISTS.items() for one in pages[method][member]}


@pytest.mark.parametrize(
    ("scope", "value", "gone"),
    [
        ("tool", "up/echo", {"up__echo"}),
        ("tool", "up/greet", {"up__greet"}),
        ("tool", "up/DOCS://plans/1", {"docs://Plans/1"}),
        ("tool", "up/docs://{name}", {"docs://{name}"}),
        ("server", "up", EVERYTHING - {"other__echo"}),
        ("tool", "up/no-such", set()),
    ],
)
async def test_what_is_stopped_is_not_listed(
    edge: RunningEdge, speaker: Speaker, scope: str, value: str, gone: set[str]
) -> None:
    await speaker.initialize()
    assert await listed(speaker) == await listed(speaker, modern=False) == EVERYTHING
    async with quarantined(edge, scope, value):
        assert await listed(speaker) == await listed(speaker, modern=False) == EVERYTHING - gone
        for name in ("up__echo", "up__note", "other__echo"):
            told = (await speaker.call(name)).result
            assert (told.get("_meta", {}).get("tidegate/decision", {}).get("reason") == "quarantined") is (name in gone)
    assert await listed(speaker) == EVERYTHING


async def test_a_quarantine_that_has_expired_is_listed_again(edge: RunningEdge, speaker: Speaker) -> None:
    async with quarantined(edge, "tool", "up/echo", for_us=400_000):

        async def is_back() -> bool:
            return await listed(speaker) == EVERYTHING

        await until(is_back)


async def test_who_is_stopped_is_refused_lists_as_calls(edge: RunningEdge, speaker: Speaker) -> None:
    async with quarantined(edge, "agent", "tests"):
        called = (await speaker.call("up__echo")).result
        for method in LISTS:
            error = (await speaker.ask(speaker.modern(method))).error
            assert error["code"] == -32010
            assert error["message"] == called["content"][0]["text"] == "This agent is in quarantine: looked at"
            about = error["data"]["tidegate/decision"]
            assert about["rules"] == called["_meta"]["tidegate/decision"]["rules"]
            assert (about["decision"], about["reason"], about["stage"]) == ("deny", "quarantined", "quarantine")
    assert await listed(speaker) == EVERYTHING


async def test_who_listens_is_told_of_the_beginning_and_of_the_end(edge: RunningEdge) -> None:
    with edge.edge.announcements.hearing() as hearing:
        async with quarantined(edge, "tool", "up/echo"):
            begun = await asyncio.wait_for(hearing.heard(), 10)
        ended = await asyncio.wait_for(hearing.heard(), 10)
    for heard in (begun, ended):
        assert {(one.tenant, one.server, one.kind) for one in heard} == {
            ("acme", "up", kind) for kind in ("tools", "prompts", "resources")
        }
