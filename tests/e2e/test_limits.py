"""Limits over two edges on one Valkey: exact counts at the server, what callers are told, and Redis away."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio
from tests.parts.clients.driving import sdk_client
from tests.parts.edge import Answer, RunningEdge, Speaker, edge_process, prepare, running_edge, settings_for, until
from tests.parts.scripted import Scripted, Seen, http, result, scripted, text, tool
from tests.parts.valkey import Valkey, running_valkey_server

from tidegate.events import CallCompleted, CallRequested
from tidegate.ids import now_us
from tidegate.log.sqlite import SqliteLog

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.redis]

PUBLIC_URL = "http://127.0.0.1:1"
TOOLS = [tool("echo"), tool("note"), tool("slow"), tool("search"), tool("large")]


@dataclass
class Place:
    """Two edges of one cluster, each with a log of its own; the server behind both, and their Valkey."""

    edges: tuple[RunningEdge, RunningEdge]
    up: Scripted
    valkey: Valkey
    released: int = 1

    async def rule(self, limits: str, zone: str = "UTC") -> None:
        """From now on, and until the next such call."""
        self.released += 1
        await asyncio.gather(*[edge.publish(bundle(limits, zone), self.released) for edge in self.edges])

    def speakers(self, user: str = "alice", agent: str = "tests", *groups: str) -> list[Speaker]:
        return [edge.place.speaker(user=user, agent=agent, groups=("eng", *groups)) for edge in self.edges]

    def reached(self, nonce: str) -> int:
        return sum(nonce.encode() in seen.body for seen in self.up.seen)

    async def asked(self, edge: int = 0) -> int:
        """How often this edge has asked Redis about limits."""
        return int(self.edges[edge].edge.budgets.gauges()["tidegate_limit_exchanges"])


def bundle(limits: str, zone: str = "UTC") -> dict[str, str]:
    return {
        "manifest.json": json.dumps({"v": 1, "name": "limits", "timezone": zone}),
        "policies/p.cedar": """
@id("all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("not-note") forbid (principal, action == Action::"up/note", resource);
""",
        "limits.yaml": f"v: 1\n{limits}",
    }


async def slow(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(float(seen.params["arguments"].get("s", 0.5)))
    writer.write(http(result(seen, text("done"))))


async def search(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Items by number, `from` one up to another."""
    given = seen.params["arguments"]
    items = [{"id": number} for number in range(given.get("first", 0), given.get("last", 0))]
    writer.write(http(result(seen, {**text("found"), "structuredContent": {"items": items}})))


async def large(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(http(result(seen, text("x" * seen.params["arguments"].get("size", 1)))))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    root = tmp_path_factory.mktemp("limits")
    async with contextlib.AsyncExitStack() as stack:
        valkey = stack.enter_context(running_valkey_server())
        behaviours = {"slow": slow, "search": search, "large": large}
        up = await stack.enter_async_context(scripted(tools=TOOLS, behaviours=behaviours))
        edges = []
        for name in ("a", "b"):
            edge = running_edge(
                root / name, {"up": {"url": up.url}}, bundle=bundle("limits: []"), **shared(root, valkey)
            )
            edges.append(await stack.enter_async_context(edge))
        yield Place((edges[0], edges[1]), up, valkey)


def shared(root: Path, valkey: Valkey) -> dict[str, Any]:
    """One person is one subject at both edges: the same issuer, the same secrets."""
    return {"sessions": valkey.url, "public_url": PUBLIC_URL, "secrets_file": str(root / "secrets.json")}


def decision(answer: Answer) -> Any:
    return answer.result["_meta"]["tidegate/decision"]


def is_limited(answer: Answer) -> bool:
    if not answer.result.get("isError"):
        return False
    assert decision(answer).get("decision") == "limited", answer.body
    return True


async def calls(speakers: Iterable[Speaker], times: int, nonce: str, name: str = "up__echo") -> list[Answer]:
    """Each of them so many times, all at once."""

    async def one(speaker: Speaker) -> list[Answer]:
        return [await speaker.call(name, {"nonce": nonce}) for _ in range(times)]

    return [answer for answers in await asyncio.gather(*map(one, speakers)) for answer in answers]


def passed(answers: Iterable[Answer]) -> int:
    return sum(not is_limited(answer) for answer in answers)


async def test_two_edges_let_exactly_so_many_calls_pass_as_a_day_has(place: Place) -> None:
    await place.rule("limits: [{id: exact, per: user, daily: {calls: 100}}]")
    answers = await calls(place.speakers() * 10, 15, "exact-nonce")
    assert (passed(answers), place.reached("exact-nonce"), len(answers)) == (100, 100, 300)
    refused = next(answer for answer in answers if is_limited(answer))
    assert decision(refused)["reason"] == "budget-exhausted"
    assert decision(refused)["rules"] == ["exact"]
    assert "100 calls" in refused.text
    assert 0 < decision(refused)["retry_after_s"] <= 86_400


async def test_a_burst_passes_and_then_the_pace_counts_over_both_edges(place: Place) -> None:
    await place.rule("limits: [{id: pace, per: user, calls: 20/hour, burst: 30}]")
    answers = await calls(place.speakers() * 5, 8, "pace-nonce")
    assert (passed(answers), place.reached("pace-nonce")) == (30, 30)
    refused = next(answer for answer in answers if is_limited(answer))
    assert decision(refused)["reason"] == "rate-limited"
    assert refused.headers["ratelimit-policy"] == '"pace";q=30;w=5400'
    assert refused.headers["ratelimit"].startswith('"pace";r=0;t=')
    assert 0 < int(refused.headers["retry-after"]) <= 180
    assert int(refused.headers["retry-after"]) == decision(refused)["retry_after_s"]
    assert "Try again in " in refused.text


async def test_the_time_to_retry_is_true(place: Place) -> None:
    await place.rule("limits: [{id: true-time, per: user, calls: 2/second, burst: 1}]")
    speaker = place.speakers()[0]
    async with asyncio.timeout(20):
        while not is_limited(refused := await speaker.call("up__echo")):
            pass  # where two calls take half a second, each has its own
    assert decision(refused)["retry_after_s"] == 1
    await until(lambda: _passes(speaker), 5)


async def _passes(speaker: Speaker) -> bool:
    return not is_limited(await speaker.call("up__echo"))


async def test_sdk_clients_are_told_as_a_result_and_count_like_all_others(place: Place) -> None:
    await place.rule("limits: [{id: sdk, per: tenant, tools: {up: [echo]}, daily: {calls: 12}, advice: Ask for more.}]")

    def drive(kind: Any, edge: RunningEdge) -> list[dict[str, Any]]:
        with sdk_client(kind, f"http://{edge.settings.listen}/mcp", edge.place.token()) as client:
            return [client.call("up__echo", nonce="sdk-nonce") for _ in range(10)]

    kinds = ("1.30", "legacy")
    told = await asyncio.gather(
        *[asyncio.to_thread(drive, kind, edge) for kind, edge in zip(kinds, place.edges, strict=True)]
    )
    assert place.reached("sdk-nonce") == 12
    assert sum("Ask for more." in json.dumps(one) for one in [*told[0], *told[1]]) == 8


async def test_each_combination_has_a_counter_of_its_own(place: Place) -> None:
    await place.rule("limits: [{id: each, per: [user, agent, tool], tools: {up: [echo, large]}, daily: {calls: 3}}]")
    for user, agent in (("alice", "x"), ("alice", "y"), ("bob", "x")):
        for name in ("up__echo", "up__large"):
            speakers = place.speakers(user, agent)
            answers = [await speaker.call(name, {"size": 1}) for speaker in speakers * 3]
            assert passed(answers) == 3, (user, agent, name)
    assert passed(await calls(place.speakers("carol"), 5, "each-other", "up__search")) == 10, "not in the limit's tools"


async def test_a_limit_is_for_whom_it_names(place: Place) -> None:
    await place.rule("limits: [{id: whom, team: interns, agent: bot, per: tenant, daily: {calls: 1}}]")
    assert passed(await calls(place.speakers("dora", "bot", "interns"), 2, "whom")) == 1
    assert passed(await calls(place.speakers("dora", "other", "interns"), 2, "whom")) == 4
    assert passed(await calls(place.speakers("dora", "bot"), 2, "whom")) == 4


async def test_what_is_refused_or_denied_uses_nothing(place: Place) -> None:
    first = "{id: first, per: user, tools: {up: [large]}, daily: {calls: 1}}"
    await place.rule(f"limits: [{first}, {{id: all, per: user, daily: {{calls: 4}}}}]")
    speaker = place.speakers("erin")[0]
    for _ in range(5):
        denied = await speaker.call("up__note")
        assert denied.json["error"]["code"] == -32602
    assert not is_limited(await speaker.call("up__large", {"size": 1}))
    for _ in range(5):
        limited = await speaker.call("up__large", {"size": 1})
        assert decision(limited)["rules"] == ["first"]
    assert passed(await calls([speaker], 6, "uses-nothing")) == 3


async def test_places_are_given_back_and_bound_calls_over_both_edges(place: Place) -> None:
    await place.rule("limits: [{id: places, per: user, tools: {up: [slow]}, concurrent: 3}]")
    speakers = place.speakers("frank")
    answers = await asyncio.gather(*[speaker.call("up__slow", {"s": 1.0}) for speaker in speakers * 5])
    assert passed(answers) == 3
    refused = next(answer for answer in answers if is_limited(answer))
    assert decision(refused)["reason"] == "too-many-at-once"
    assert "retry-after" not in refused.headers
    for speaker in speakers * 3:
        assert not is_limited(await speaker.call("up__slow", {"s": 0.0}))


async def test_an_edge_that_dies_frees_its_places(place: Place, tmp_path: Path) -> None:
    limits = "limits: [{id: dying, per: user, tools: {up: [slow]}, concurrent: 2}]"
    await place.rule(limits)
    settings = {"servers": {"up": {"url": place.up.url}}, **shared(_root(place), place.valkey)}
    log = SqliteLog(settings_for(tmp_path, **settings).data_dir / "log.db")
    await log.prepare()
    await log.append(prepare(settings_for(tmp_path, **settings)).release(bundle(limits), 1))
    await log.close()
    own = place.edges[1].place.speaker(user="grace")
    async with edge_process(tmp_path, **settings) as third:
        speaker = third.place.speaker(user="grace")
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(_lost(speaker))
            await until(lambda: place.reached('"s": 30') + place.reached('"s":30') == 2, 20)
            assert is_limited(await own.call("up__slow", {"s": 0}))
            third.process.kill()
    await until(lambda: _is_free(own), 25)


def _root(place: Place) -> Path:
    return Path(place.edges[0].settings.root).parent


async def _lost(speaker: Speaker) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        await speaker.ask(speaker.calling("up__slow", {"s": 30}), 40)


async def _is_free(speaker: Speaker) -> bool:
    return not is_limited(await speaker.call("up__slow", {"s": 0}))


async def test_bytes_are_charged_after_the_result_and_end_the_day(place: Place) -> None:
    await place.rule("limits: [{id: bytes, per: user, daily: {bytes: 100kB}}]")
    speakers = place.speakers("heidi")
    answers = [await speakers[number % 2].call("up__large", {"size": 9_000}) for number in range(20)]
    assert passed(answers) in (11, 12), "what is under way when the day's bytes end is still answered"
    refused = next(answer for answer in answers if is_limited(answer))
    assert decision(refused)["reason"] == "budget-exhausted"
    assert 'qu="content-bytes"' in refused.headers["ratelimit-policy"]


async def test_costs_are_charged_and_recorded(place: Place) -> None:
    await place.rule(
        """
limits: [{id: cost, per: user, daily: {cost: 1.00}}]
prices: [{tools: {up: [echo]}, per_call: 0.25}, {tools: {up: [large]}, per_call: 0.10, per_mb: 2.0}]
"""
    )
    answers = await calls(place.speakers("ivan") * 3, 2, "cost-nonce")
    assert (passed(answers), place.reached("cost-nonce")) == (4, 4)
    speaker = place.speakers("ivana")[0]
    assert passed([await speaker.call("up__large", {"size": 100_000, "nonce": "mb"}) for _ in range(8)]) == 3, (
        "0.30 each"
    )
    assert passed([await speaker.call("up__search", {"first": 0, "last": 1})]) == 1, "what costs nothing is not stopped"
    _, completed = await place.edges[0].place.calls("mb")
    moved = {one.arguments_bytes + one.result_bytes for one in completed}
    assert {one.cost_micros for one in completed} == {100_000 + 2 * size for size in moved}


async def test_records_are_counted_once_over_both_edges(place: Place) -> None:
    await place.rule(
        """
limits: [{id: records, per: user, daily: {records: 50}, reason: No more customers today.}]
records: {up/search: "items[].id"}
"""
    )
    speakers = place.speakers("judy")
    for number in range(6):
        told = await speakers[number % 2].call("up__search", {"first": 0, "last": 40, "nonce": "records-nonce"})
        assert not is_limited(told), "the same ones, again"
    assert not is_limited(await speakers[0].call("up__search", {"first": 30, "last": 55}))
    refused = [await speaker.call("up__search", {"first": 0, "last": 1}) for speaker in speakers]
    assert [is_limited(answer) for answer in refused] == [True, True]
    assert refused[0].text.startswith("No more customers today. Try again in ")
    _, completed = await place.edges[0].place.calls("records-nonce")
    assert {one.records for one in completed} == {40}


async def test_a_limit_that_a_new_bundle_changes_counts_what_was_used(place: Place) -> None:
    await place.rule("limits: [{id: changed, per: user, daily: {calls: 10}}]")
    assert passed(await calls(place.speakers("kim"), 10, "changed")) == 10
    await place.rule("limits: [{id: changed, per: user, daily: {calls: 16}}]")
    assert passed(await calls(place.speakers("kim"), 10, "changed")) == 6
    await place.rule("limits: []")
    assert passed(await calls(place.speakers("kim"), 3, "changed")) == 6


async def test_the_common_call_asks_nobody(place: Place) -> None:
    await place.rule(
        "limits: [{id: common, per: user, tools: {up: [echo]}, calls: 100000/minute, daily: {calls: 1000000}}]"
    )
    speaker = place.speakers("lena")[0]
    await calls([speaker], 20, "warm")
    before = await place.asked()
    assert passed(await calls([speaker], 300, "common")) == 300
    assert await place.asked() - before <= 30
    before = await place.asked()
    assert passed(await calls([speaker], 50, "none", "up__search")) == 50
    assert await place.asked() - before <= 10, "a tick tells what was used; calls without a limit ask nothing"


async def test_one_exchange_asks_for_all_counters_that_lack(place: Place) -> None:
    many = ", ".join(f"{{id: many-{number}, per: [user, tool], daily: {{calls: 1000}}}}" for number in range(20))
    await place.rule(f"limits: [{many}]")
    before = await place.asked()
    await calls([place.speakers("mike")[0]], 1, "many")
    assert 1 <= await place.asked() - before <= 3, "a tick may tell of earlier ones meanwhile"


async def test_calls_that_are_withdrawn_while_redis_is_asked_use_nothing_of_others(place: Place) -> None:
    speaker = place.speakers("mallory")[0]
    async with redis.asyncio.Redis.from_url(place.valkey.url) as client:
        for number in range(40):
            most = 2_000 + number  # another bound: what is on lease goes back, and the next call asks
            await place.rule(f"limits: [{{id: withdrawn, per: tenant, daily: {{calls: {most}}}}}]")
            clients = [await speaker.connect() for _ in range(4)]
            before = await place.asked()
            for one in clients:
                one.writer.write(speaker.calling("up__echo", {"nonce": "withdrawn-nonce"}))
            async with asyncio.timeout(20):
                while await place.asked() == before:
                    await asyncio.sleep(0)
            for _ in range(number % 4):
                await asyncio.sleep(0)
            for one in clients:
                one.writer.transport.abort()

        async def nothing_is_lost() -> bool:
            requested, _ = await place.edges[0].place.calls("withdrawn-nonce")
            return await _used(client, "withdrawn") <= sum(one.decision == "allow" for one in requested)

        await until(nothing_is_lost, 30)
    assert passed(await calls(place.speakers("niaj"), 10, "beside-withdrawn")) == 20


async def _used(client: "redis.asyncio.Redis", limit: str) -> int:
    """As Redis has counted it, leases included."""
    counters = [await client.hgetall(key) async for key in client.scan_iter("*|counter|*")]
    return sum(int(one[b"u"]) for one in counters if f'["{limit}",'.encode() in one[b"n"])


async def test_every_refusal_is_recorded_with_its_limit_and_the_time_to_retry(place: Place) -> None:
    await place.rule("limits: [{id: recorded, per: user, daily: {calls: 2}}]")
    answers = await calls([place.speakers("nina")[0]], 5, "recorded-nonce")
    requested, completed = await place.edges[0].place.calls("recorded-nonce")
    assert Counter(one.decision for one in requested) == {"allow": 2, "limited": 3}
    assert len(completed) == 2
    limited = [one for one in requested if one.decision == "limited"]
    assert {(one.stage, one.reason, one.rules) for one in limited} == {("limit", "budget-exhausted", ("recorded",))}
    assert all(0 < one.retry_after_ms <= 86_400_000 for one in limited)
    assert passed(answers) == 2
    assert isinstance(requested[0], CallRequested)
    assert isinstance(completed[0], CallCompleted)


@pytest.mark.parametrize(
    ("away", "passing"), [("refuse", 0), ("allow", 12), ("local", 8)], ids=["refuse", "allow", "local"]
)
async def test_where_redis_cannot_count_the_limit_s_setting_says_what_happens(
    place: Place, away: str, passing: int
) -> None:
    speakers = place.speakers("olga")
    await place.rule("limits: []")
    for speaker in speakers:  # whose sessions the edges know
        await speaker.call("up__echo", {"nonce": "before"})
    await place.rule(f"limits: [{{id: away-{away}, per: user, daily: {{calls: 4}}, away: {away}}}]")
    async with redis.asyncio.Redis.from_url(place.valkey.url) as client:
        await client.config_set("maxmemory", "1")  # full: nothing may be written
        try:
            answers = await calls(speakers, 6, f"away-{away}")
            assert passed(answers) == place.reached(f"away-{away}") == passing
            if away == "refuse":
                assert decision(answers[0])["reason"] == "limits-unavailable"
                assert decision(answers[0])["retry_after_s"] == 1
        finally:
            await client.config_set("maxmemory", "0")
    await until(lambda: _counts_again(place, away), 20)


@pytest.mark.parametrize(
    ("away", "passing"),
    [("refuse", 0), ("allow", 12), ("local", 8), ("", 12)],
    ids=["refuse", "allow", "local", "without-limits"],
)
async def test_with_redis_killed_who_was_active_goes_on_as_the_limit_s_setting_says(
    place: Place, away: str, passing: int
) -> None:
    nonce = f"killed-{away or 'without'}"
    active, legacy = place.speakers(nonce), place.speakers(f"legacy-{nonce}")[0]
    await place.rule("limits: []")
    for speaker in active:
        await speaker.call("up__echo", {"nonce": "before"})
    await legacy.initialize()
    if away:
        await place.rule(f"limits: [{{id: {nonce}, per: user, daily: {{calls: 4}}, away: {away}}}]")
    place.valkey.kill()
    try:
        answers = await calls(active, 6, nonce)
        assert passed(answers) == place.reached(nonce) == passing
        if away == "refuse":
            assert {decision(answer)["reason"] for answer in answers} == {"limits-unavailable"}
            assert {decision(answer)["retry_after_s"] for answer in answers} == {1}
            assert {answer.headers["retry-after"] for answer in answers} == {"1"}
        if away == "local":
            refused = [answer for answer in answers if is_limited(answer)]
            assert {decision(answer)["reason"] for answer in refused} == {"budget-exhausted"}
        unknown = [await speaker.call("up__echo", {"nonce": nonce}) for speaker in place.speakers(f"new-{nonce}")]
        unknown.append(await legacy.ask(legacy.legacy("tools/call", {"name": "up__echo", "arguments": {}})))
        assert {answer.status for answer in unknown} == {503}
        assert {answer.error["data"]["reason"] for answer in unknown} == {"sessions-unavailable"}
        assert place.reached(nonce) == passing, "whose session an edge has not seen, or may have ended, is refused"
        requested, _ = await place.edges[0].place.calls(nonce)
        assert len({one.session_id for one in requested}) == 1, "it is the session that it was"
    finally:
        place.valkey.start()
    await until(lambda: all(not edge.edge.sessions.awaiting for edge in place.edges), 20)
    await place.rule(f"limits: [{{id: {nonce}-again, per: user, daily: {{calls: 4}}, away: {away or 'refuse'}}}]")
    await until(lambda: _counts_again(place, nonce), 20)


async def _counts_again(place: Place, name: str) -> bool:
    nonce = f"again-{name}-{now_us()}"
    answers = await calls(place.speakers(nonce), 5, nonce)
    return passed(answers) == place.reached(nonce) == 4


async def test_a_refusal_reaches_clients_of_streams_batches_and_sessions_alike(place: Place) -> None:
    await place.rule("limits: [{id: shapes, per: user, tools: {up: [echo]}, daily: {calls: 1}}]")
    speaker = place.speakers("quinn")[0]
    await speaker.call("up__echo")
    streaming = speaker.modern(
        "tools/call", {"name": "up__echo", "arguments": {}}, headers={"Accept": "text/event-stream, application/json"}
    )
    assert is_limited(await speaker.ask(streaming))
    await speaker.initialize()
    legacy = await speaker.ask(speaker.legacy("tools/call", {"name": "up__echo", "arguments": {}}))
    assert is_limited(legacy)
    assert "retry-after" in legacy.headers
    prompts = await speaker.ask(speaker.modern("prompts/get", {"name": "none", "arguments": {}}))
    assert "error" in prompts.json, "what does not exist meets no limit"


async def test_one_person_s_calls_use_nothing_of_another_tenant_s_or_person_s(place: Place) -> None:
    await place.rule("limits: [{id: own, per: [user, agent], daily: {calls: 2}}]")
    odd = 'x"]}|*{acme}\\ä'
    for user, agent in (("rita", "a"), ("rita", odd), ("sam", "a")):
        assert passed(await calls(place.speakers(user, agent), 2, f"own-{user}")) == 2


async def test_what_one_edge_does_not_use_is_soon_there_at_the_other(place: Place) -> None:
    await place.rule("limits: [{id: soon, per: user, daily: {calls: 40}}]")
    a, b = place.speakers("tess")
    assert passed(await calls([a], 1, "soon")) == 1
    began = time.monotonic()
    answers = await calls([b], 41, "soon")
    is_slow = time.monotonic() - began > 1  # by then the other edge has given back what it had
    assert passed(answers) < 39 or is_slow, "some is on lease at the other edge"
    assert is_limited(answers[-1])
    assert decision(answers[-1])["retry_after_s"] <= 2 or is_slow
    await until(lambda: _all_used(place, b), 15)
    assert is_limited(await a.call("up__echo"))
    assert is_limited(await b.call("up__echo"))


async def _all_used(place: Place, speaker: Speaker) -> bool:
    await calls([speaker], 1, "soon")
    return place.reached("soon") == 40
