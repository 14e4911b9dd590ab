"""Large requests and results at a running edge: the same findings as in small ones, and others have their turn."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import BLOCKED, SECRET, RunningEdge, Speaker, running_edge, until
from tests.parts.scripted import Scripted, Seen, Stream, http, result, scripted, text

from tidegate.chain import Chain
from tidegate.events import CallCompleted, CallRequested, QuarantineImposed
from tidegate.ids import now_us, uuid7
from tidegate.limits import CONTAINERS_PER_BODY_MAX, LARGE_BYTES, NOTIFICATION_BYTES_MAX
from tidegate.log.port import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILLER = "The books are kept, line by line.\n" * (3 * LARGE_BYTES // 34)
SLOW: list[str] = [SECRET] * 40_000
"""Takes a while to inspect, and is read in no time."""


class Upstream:
    """Answers `fetch` with what it is told to."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = text("nothing")
        self.said: list[dict[str, Any]] = []

    async def fetch(self, server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(result(seen, self.told | {"resultType": "complete"})))

    async def tell(self, server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        """Says something beside its answer."""
        stream = Stream(writer)
        for params in self.said:
            await stream.send({"jsonrpc": "2.0", "method": "notifications/told", "params": params})
        await stream.send(result(seen, text("done") | {"resultType": "complete"}))
        stream.end()

    async def mumble(self, server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        """JSON that is no answer, and large."""
        writer.write(http({"jsonrpc": "2.0", "id": "another", "told": FILLER}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told() -> AsyncIterator[Upstream]:
    yield Upstream()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(told: Upstream) -> AsyncIterator[Scripted]:
    tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "fetch", "tell", "mumble")]
    behaviours = {"fetch": told.fetch, "tell": told.tell, "mumble": told.mumble}
    async with scripted(tools=tools, behaviours=behaviours) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    servers = {"up": {"url": up.url, "labels": ["egress", "sensitive"]}}
    async with running_edge(tmp_path_factory.mktemp("large"), servers, taint_labels=[]) as running:
        yield running


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


async def last(edge: RunningEdge, kind: type) -> Any:
    return [one for one in await edge.place.events("calls") if isinstance(one, kind)][-1]


async def test_what_is_masked_in_a_large_request_is_what_the_server_gets(
    edge: RunningEdge, speaker: Speaker, up: Scripted
) -> None:
    given = {"text": FILLER + SECRET, "rows": [{"n": n, "k": SECRET} for n in range(2_000)], SECRET: "\u00e9\\n"}
    answer = await speaker.ask(speaker.calling("up__echo", given))
    arguments = up.calls("echo")[-1].params["arguments"]
    assert arguments["text"] == FILLER + "[masked:key]"
    assert arguments["rows"] == [{"n": n, "k": "[masked:key]"} for n in range(2_000)]
    assert arguments["[masked:key]"] == "\u00e9\\n"
    assert SECRET.encode() not in answer.body
    event = await last(edge, CallRequested)
    assert [(one.rule, one.action, one.count) for one in event.findings] == [("key", "mask", 2_002)]
    assert event.fingerprints


async def test_what_is_blocked_far_behind_in_a_large_request_is_not_sent(speaker: Speaker, up: Scripted) -> None:
    before = len(up.calls())
    answer = await speaker.ask(speaker.calling("up__echo", {"text": [FILLER, {"deep": [FILLER + BLOCKED]}]}))
    assert answer.result["_meta"]["tidegate/decision"]["reason"] == "arguments-blocked"
    assert len(up.calls()) == before


async def test_a_large_result_is_masked_and_else_byte_for_byte(
    edge: RunningEdge, speaker: Speaker, told: Upstream
) -> None:
    told.told = {"content": [{"type": "text", "text": FILLER + SECRET}], "structuredContent": {"x": ["a", SECRET] * 9}}
    answer = await speaker.call("up__fetch")
    assert answer.text == FILLER + "[masked:key]"
    assert answer.result["structuredContent"] == {"x": ["a", "[masked:key]"] * 9}
    event = await last(edge, CallCompleted)
    assert (event.outcome, event.masked) == ("ok", 10)
    told.told = text(FILLER)
    assert b'"text": ' + json.dumps(FILLER).encode() in (await speaker.call("up__fetch")).body


async def test_a_large_result_that_reads_in_two_ways_is_refused(speaker: Speaker, told: Upstream) -> None:
    class Twice(dict[str, Any]):
        def items(self) -> Any:
            return [("a", 1), ("b", FILLER), ("a", 2)]

    told.told = {"content": [], "structuredContent": Twice(a=1)}
    answer = await speaker.call("up__fetch")
    assert answer.result["isError"]
    assert "the key 'a' appears twice in one object" in answer.text


async def test_small_calls_are_answered_while_a_large_one_is_inspected(
    edge: RunningEdge, speaker: Speaker, told: Upstream
) -> None:
    told.told = {"content": [], "structuredContent": {"rows": SLOW}}
    aside = edge.edge.aside
    began = aside.begun
    slow = asyncio.create_task(speaker.call("up__fetch"))
    await until(lambda: aside.begun > began)
    for _ in range(5):
        assert (await speaker.call("up__echo", {"n": 1})).status == 200
    assert not slow.done()
    assert aside.ended == began
    assert (await slow).result["structuredContent"]["rows"][-1] == "[masked:key]"


async def test_answers_on_one_connection_keep_their_order(speaker: Speaker, up: Scripted) -> None:
    large = speaker.calling("up__echo", {"rows": SLOW[:10_000]}, request_id="large")
    small = speaker.calling("up__echo", {"n": 2}, request_id="small")
    answers = await speaker.say(large, small, large.replace(b'"large"', b'"again"'))
    assert [one.json["id"] for one in answers] == ["large", "small", "again"]
    assert [len(one.params["arguments"]) for one in up.calls()[-3:]] == [1, 1, 1]


async def test_a_client_that_leaves_while_its_request_is_inspected_has_made_no_call(
    edge: RunningEdge, speaker: Speaker, up: Scripted
) -> None:
    aside, before, events = edge.edge.aside, len(up.calls()), len(await edge.place.events("calls"))
    began = aside.begun
    client = await speaker.connect()
    client.write(speaker.calling("up__echo", {"rows": SLOW}))
    await until(lambda: aside.begun == began + 2)  # read, and now inspected
    client.close()
    await until(lambda: aside.ended == began + 2)
    assert (await speaker.call("up__echo", {"n": 3})).status == 200
    assert len(up.calls()) == before + 1
    assert len(await edge.place.events("calls")) == events + 2


async def test_a_client_that_leaves_while_its_result_is_inspected_is_recorded(
    edge: RunningEdge, speaker: Speaker, told: Upstream
) -> None:
    told.told = {"content": [], "structuredContent": {"rows": SLOW}}
    began = edge.edge.aside.begun
    client = await speaker.connect()
    client.write(speaker.calling("up__fetch"))
    await until(lambda: edge.edge.aside.begun == began + 1)
    client.close()
    await until(lambda: edge.edge.aside.ended == began + 1)

    async def is_settled() -> bool:
        return bool((await last(edge, CallCompleted)).outcome == "cancelled")

    await until(is_settled)
    assert edge.edge.calls_in_flight == 0


async def test_a_quarantine_that_comes_while_a_request_is_inspected_stops_it(
    edge: RunningEdge, speaker: Speaker, up: Scripted
) -> None:
    imposed = QuarantineImposed(
        id=uuid7(), time_us=now_us(), tenant="acme", region="local", quarantine_id=uuid7(), scope="tool",
        value="up/echo", reason="looks wrong", actor="detector",
    )  # fmt: skip
    aside, before, key = edge.edge.aside, len(up.calls()), f"acme|{imposed.quarantine_id}".encode()
    began = aside.begun
    slow = asyncio.create_task(speaker.call("up__echo", {"rows": SLOW}))
    await until(lambda: aside.begun == began + 2)
    await edge.log.append([Record("control-state", key, Chain(imposed.quarantine_id).seal(imposed).value)])
    held = edge.edge.quarantines_of("acme")
    await until(lambda: held.get(imposed.quarantine_id) is not None)
    assert aside.ended == began + 1  # still inspected
    answer = await slow
    await edge.log.append([Record("control-state", key, None)])
    await until(lambda: held.get(imposed.quarantine_id) is None)
    assert answer.result["_meta"]["tidegate/decision"]["reason"] == "quarantined"
    assert len(up.calls()) == before
    assert (await last(edge, CallRequested)).decision == "deny"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([[]] * (CONTAINERS_PER_BODY_MAX + 1), f"more than {CONTAINERS_PER_BODY_MAX} objects and lists"),
        ({"k" * (2 * LARGE_BYTES): 1}, "a key is longer than"),
    ],
)
async def test_what_would_take_too_long_to_read_is_refused(
    speaker: Speaker, up: Scripted, arguments: Any, said: str
) -> None:
    before = len(up.calls())
    answer = await speaker.ask(speaker.calling("up__echo", {"x": arguments}))
    assert answer.status == 400
    assert said in answer.error["message"]
    assert len(up.calls()) == before


async def test_a_large_request_that_is_no_utf_8_is_refused_and_holds_nobody_up(
    edge: RunningEdge, speaker: Speaker, up: Scripted
) -> None:
    before = len(up.calls())
    marker = "k" * (2 * LARGE_BYTES)
    request = speaker.calling("up__echo", {"text": marker})
    answer = await speaker.ask(request.replace(marker.encode(), b"\x80" * len(marker)))
    assert answer.status == 400
    assert "not valid UTF-8" in answer.error["message"]
    assert edge.edge.aside.begun == edge.edge.aside.ended
    assert len(up.calls()) == before


async def test_what_a_server_says_beside_its_answer_is_dropped_where_it_is_large(
    edge: RunningEdge, speaker: Speaker, told: Upstream
) -> None:
    dropped = edge.edge.counters.refused_requests
    before = dropped["notification-too-large"]
    overhead = len(json.dumps({"k": ""}))
    longest = "a" * (NOTIFICATION_BYTES_MAX - overhead)
    told.said = [{"k": longest + "a"}, {"k": longest}, {"k": [SECRET] * 100_000}, {"k": SECRET}]
    client = await speaker.connect()
    client.write(speaker.calling("up__tell"))
    await client.stream()
    messages = [one.json for one in await client.events()]
    client.close()
    assert [one["params"]["k"] for one in messages[:-1]] == [longest, "[masked:key]"]
    assert messages[-1]["result"]["content"][0]["text"] == "done"
    assert dropped["notification-too-large"] == before + 2


async def test_a_large_body_that_is_no_answer_is_told_as_that(speaker: Speaker) -> None:
    answer = await speaker.call("up__mumble")
    assert "not with this request's response" in answer.text
