"""Tasks at one edge: what goes to a server and comes from it by a task is decided as the call that began the task would
be decided now, is inspected, marked and counted as calls are, and a task can be stopped whatever the rules say.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.parts.edge import BLOCKED, BUNDLE, MODERN, SECRET, Answer, RunningEdge, Speaker, running_edge
from tests.parts.scripted import Scripted, Seen, http, refusal, result, scripted, text, tool

from tidegate.events import CallCompleted, CallRequested, SessionTainted
from tidegate_edge import tasks
from tidegate_edge.targets import TASKS, Handle

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABLE: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}, "elicitation": {"form": {}}}
RULES = """
@id("all") permit (principal, action in Action::"call", resource);
@id("no-leak") @reason("Private data stays.")
forbid (principal, action in Action::"egress", resource) when { context.taint.contains("read-private") };
@id("ask-pay") @effect("ask") @reason("Somebody has to look.") forbid (principal, action == Action::"up/pay", resource);
@id("no-payroll") forbid (principal, action == Action::"up/query", resource)
when { context.args has table && context.args.table == "payroll" };
"""
LIMITS = """
limits:
  - {id: pace, per: user, tools: {up: [search]}, calls: 4/hour}
  - {id: few, per: user, tools: {up: [search]}, daily: {records: 12, bytes: 5000}}
  - {id: purse, per: user, tools: {up: [render]}, daily: {cost: 6}}
prices: [{tools: {up: [render]}, per_call: 1, per_mb: 1000}]
records: {up/search: 'items[].id'}
"""
FILES = {"manifest.json": '{"v": 1, "name": "tasks"}', "policies/p.cedar": RULES, "limits.yaml": f"v: 1{LIMITS}"}
FILES["inspection.yaml"] = BUNDLE["inspection.yaml"]
TOOLS = [tool(name) for name in ("send", "secret", "query", "pay", "search", "render")]
_ROWS = iter(range(10_000))
_RELEASES = itertools.count(2)


async def begin(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Each call is a task; its arguments say, under `comes`, what comes of it."""
    task = f"task-{len(up.seen)}"
    comes = (seen.params.get("arguments") or {}).get("comes", "PAYROLL")
    up.behaviours[task] = _telling(task, comes)
    writer.write(http(result(seen, {"resultType": "task", "taskId": task, "status": "working"})))


def _telling(task: str, comes: Any) -> Any:
    value = text(comes) if isinstance(comes, str) else {**text(""), "structuredContent": {"items": comes}}

    async def tell(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(
            http(result(seen, {"resultType": "complete", "taskId": task, "status": "completed", "result": value}))
        )

    return tell


async def by_task(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    await up.behaviours[seen.params["taskId"]](up, seen, writer)


async def read(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(http(result(seen, text("PRIVATE-4711"))))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    behaviours = {"tools/call": begin, "secret": read}
    async with scripted(tools=TOOLS, behaviours={**behaviours, **dict.fromkeys(sorted(TASKS), by_task)}) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    labels = [("send", "egress"), ("secret", "read-private")]
    rules = [{"server": "up", "tool": name, "labels": [label]} for name, label in labels]
    sets = {"fixed": {"tools": [{"server": "up", "tool": "query", "arguments": {"table": "payroll"}}]}}
    root = tmp_path_factory.mktemp("tasks")
    async with running_edge(root, {"up": {"url": up.url}}, bundle=FILES, rules=rules, sets=sets) as one:
        yield one


class Client:
    """Of one session, that of its agent."""

    def __init__(self, edge: RunningEdge, agent: str, path: str = "/mcp") -> None:
        audience = f"{edge.settings.url}{path}" if path != "/mcp" else ""
        token = edge.place.token(user=f"{agent}@example.com", agent=agent, audience=audience)
        self._speaker, self._path = Speaker(edge.place.listen, token), path

    async def ask(self, method: str, params: dict[str, Any], name: str, meta: dict[str, Any] | None = None) -> Answer:
        full = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": ABLE,
            "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
            **(meta or {}),
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": full}}
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Mcp-Name": name}
        return await self._speaker.ask(self._speaker.request(json.dumps(body).encode(), self._path, headers=headers))

    async def call(self, name: str, **arguments: Any) -> Answer:
        shown = name if self._path != "/mcp" else f"up__{name}"
        return await self.ask("tools/call", {"name": shown, "arguments": arguments}, shown)

    async def begin(self, name: str, **arguments: Any) -> str:
        return str((await self.call(name, **arguments)).result["taskId"])

    async def get(self, task: str) -> Answer:
        return await self.ask("tasks/get", {"taskId": task}, task)

    async def update(self, task: str, said: str) -> Answer:
        responses = {"q": {"action": "accept", "content": {"body": said}}}
        return await self.ask("tasks/update", {"taskId": task, "inputResponses": responses}, task)

    async def cancel(self, task: str, **more: Any) -> Answer:
        return await self.ask(
            "tasks/cancel", {"taskId": task, **more}, task, {"leak": "PRIVATE-4711", "progressToken": 7}
        )


def reason(answer: Answer) -> str:
    found = answer.error["data"] if "error" in answer.json else answer.result["_meta"]
    return str(found["tidegate/decision"]["reason"])


def came(up: Scripted, method: str) -> list[dict[str, Any]]:
    return [one.params for one in up.seen if one.method == method]


async def recorded(edge: RunningEdge, agent: str, method: str) -> tuple[list[CallRequested], list[CallCompleted]]:
    events = [one for one in await edge.place.events("calls") if isinstance(one, CallRequested | CallCompleted)]
    mine = [one for one in events if one.agent == agent and one.method == method]
    requests = [one for one in mine if isinstance(one, CallRequested)]
    return requests, [one for one in mine if isinstance(one, CallCompleted)]


async def test_nothing_leaves_by_a_task_once_the_session_has_read_private_data(edge: RunningEdge, up: Scripted) -> None:
    client = Client(edge, "leaking")
    task = await client.begin("send")
    assert "error" not in (await client.update(task, "before")).json
    assert "PRIVATE-4711" in (await client.call("secret")).text
    before = len(up.seen)
    for answer in (await client.update(task, "PRIVATE-4711"), await client.get(task)):
        assert answer.error["message"] == "Private data stays."
        assert reason(answer) == "forbidden-by-rule"
    assert len(up.seen) == before
    (_, refused), _ = await recorded(edge, "leaking", "tasks/update")
    assert (refused.decision, refused.rules, refused.target) == ("deny", ("no-leak",), "send")
    assert (refused.inputs.facts, refused.inputs.taint) == (("taint",), ("read-private",))
    assert not refused.inputs.arguments_kept


async def test_a_task_can_be_stopped_whatever_the_rules_say_and_nothing_goes_along(
    edge: RunningEdge, up: Scripted
) -> None:
    client = Client(edge, "stopping")
    task = await client.begin("send")
    await client.call("secret")
    answer = await client.cancel(task, inputResponses={"q": {"content": "PRIVATE-4711"}}, note="PRIVATE-4711")
    assert answer.result == {"resultType": "complete"}, "though the server tells the task's result"
    sent = came(up, "tasks/cancel")[-1]
    assert sent["taskId"].startswith("task-")
    assert "PRIVATE-4711" not in json.dumps(sent)
    assert set(sent) == {"taskId", "_meta"}
    assert sent["_meta"]["io.modelcontextprotocol/clientInfo"]["name"] == "tidegate"
    assert set(sent["_meta"]) == {
        f"io.modelcontextprotocol/{name}" for name in ("clientInfo", "clientCapabilities", "protocolVersion")
    }
    (asked,), (done,) = await recorded(edge, "stopping", "tasks/cancel")
    assert (asked.decision, done.outcome) == ("allow", "ok")


async def test_what_a_server_says_where_it_does_not_stop_stays_there(edge: RunningEdge, up: Scripted) -> None:
    client = Client(edge, "refusing")
    task = await client.begin("send")

    async def refuse(up: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(refusal(seen, -32602, "PAYROLL")))

    up.behaviours[f"task-{len(up.seen)}"] = refuse
    answer = await client.cancel(task)
    assert answer.error == {"code": -32602, "message": "up did not take the cancellation"}


async def test_a_result_is_not_handed_out_once_a_release_forbids_its_call(edge: RunningEdge) -> None:
    client = Client(edge, "querying")
    salaries, staff = await client.begin("query", table="salaries"), await client.begin("query", table="staff")
    assert "PAYROLL" in json.dumps((await client.get(salaries)).result)
    when = 'when { context.args has table && context.args.table == "salaries" };'
    rule = f'@id("no-more") forbid (principal, action, resource) {when}'
    await edge.publish({**FILES, "policies/q.cedar": rule}, next(_RELEASES))
    try:
        refused = await client.get(salaries)
        assert (reason(refused), refused.error["data"]["tidegate/decision"]["rules"]) == (
            "forbidden-by-rule",
            ["no-more"],
        )
        assert "PAYROLL" in json.dumps((await client.get(staff)).result), "by its own arguments"
        assert (await client.cancel(salaries)).result == {"resultType": "complete"}
        gone = '@id("all") permit (principal, action == Action::"up/send", resource);'
        await edge.publish({**FILES, "policies/p.cedar": gone}, next(_RELEASES))
        assert (await client.get(staff)).error["message"] == "Unknown task"
        assert (await client.cancel(staff)).result == {"resultType": "complete"}
    finally:
        await edge.publish(FILES, next(_RELEASES))


async def test_the_arguments_that_a_set_has_fixed_are_a_task_s_too(edge: RunningEdge) -> None:
    await edge.publish({**FILES, "policies/p.cedar": RULES.replace('== "payroll"', '== "other"')}, next(_RELEASES))
    try:
        client = Client(edge, "fixed", "/mcp/sets/fixed")
        task = await client.begin("query", table="staff")
        assert "PAYROLL" in json.dumps((await client.get(task)).result)
        await edge.publish(FILES, next(_RELEASES))
        assert reason(await client.get(task)) == "forbidden-by-rule"
    finally:
        await edge.publish(FILES, next(_RELEASES))


async def test_what_is_too_large_to_travel_matters_where_a_rule_looks_at_it(edge: RunningEdge) -> None:
    client = Client(edge, "large")
    beside = await client.begin("query", table="staff", body="x" * 100_000)
    assert len(beside) < 4_096
    assert "PAYROLL" in json.dumps((await client.get(beside)).result)
    itself = await client.begin("query", table="x" * 100_000)
    many = await client.begin("query", **{f"name-{number}": number for number in range(500)})
    for task in (itself, many):
        refused = await client.get(task)
        assert reason(refused) == "task-arguments-not-kept"
        assert "can still be cancelled" in refused.error["message"]
        assert (await client.cancel(task)).result == {"resultType": "complete"}
    free = await client.begin("send", **{f"name-{number}": number for number in range(500)})
    assert "PAYROLL" in json.dumps((await client.get(free)).result), "no rule looks at them"


async def test_a_handle_of_before_is_decided_on_by_its_tool_alone(edge: RunningEdge, up: Scripted) -> None:
    client = Client(edge, "older")
    opened: list[Handle] = []
    for name in ("send", "query"):
        task = await client.begin(name, table="staff")
        binding = f"acme|{(await recorded(edge, 'older', 'tools/call'))[0][0].subject_id}|older".encode()
        raw = edge.edge.sealer.unseal(tasks.PURPOSE, task, binding)
        assert raw is not None
        kept = msgspec.json.decode(raw)
        assert kept["arguments"] == {"table": "staff"}
        old = {key: kept[key] for key in ("server", "tool", "task", "root")}
        handle = edge.edge.sealer.seal(tasks.PURPOSE, msgspec.json.encode(old), binding)
        opened.append(msgspec.json.decode(raw, type=Handle))
        answer = await client.get(handle)
        assert ("PAYROLL" in json.dumps(answer.json)) is (name == "send")
        assert name == "send" or reason(answer) == "task-arguments-not-kept"
    assert opened[1].known == {"table": "staff"}


async def test_a_task_of_a_call_that_was_approved_goes_on_by_that_and_another_does_not(edge: RunningEdge) -> None:
    client = Client(edge, "paying")
    name = {"name": "up__pay", "arguments": {"amount": 5}}
    asked = (await client.ask("tools/call", name, "up__pay")).result
    assert asked["resultType"] == "input_required"
    said = {"approval": {"action": "accept", "content": {"approve": True}}}
    more = {"requestState": asked["requestState"], "inputResponses": said}
    task = (await client.ask("tools/call", {**name, **more}, "up__pay")).result["taskId"]
    assert "PAYROLL" in json.dumps((await client.get(task)).result)
    (got,), _ = await recorded(edge, "paying", "tasks/get")
    assert (got.reason, got.rules) == ("approved", ("ask-pay",))
    assert got.approval_id
    unasked = await client.begin("query", table="staff")
    rule = '@id("ask-query") @effect("ask") forbid (principal, action in Action::"call", resource);'
    await edge.publish({**FILES, "policies/q.cedar": rule}, next(_RELEASES))
    try:
        for one in (unasked, task):
            assert reason(await client.get(one)) == "approval-required"
    finally:
        await edge.publish(FILES, next(_RELEASES))


async def test_input_for_a_task_is_inspected_and_known_by_its_fingerprints(edge: RunningEdge, up: Scripted) -> None:
    client = Client(edge, "inspected")
    task = await client.begin("send")
    passage = "the quick brown fox jumps over the lazy dog and does so again for as long as it takes"
    assert "error" not in (await client.update(task, f"{passage} {SECRET}")).json
    assert SECRET not in json.dumps(came(up, "tasks/update")[-1])
    assert passage in json.dumps(came(up, "tasks/update")[-1])
    assert reason(await client.update(task, BLOCKED)) == "arguments-blocked"
    (sent, blocked), _ = await recorded(edge, "inspected", "tasks/update")
    assert sent.fingerprints
    assert (sent.decision, blocked.decision) == ("allow", "deny")
    assert SECRET not in msgspec.json.encode(sent.sealed).decode()


async def test_what_comes_of_a_task_is_inspected_and_recorded_as_it_may_be_known(
    edge: RunningEdge, up: Scripted
) -> None:
    client = Client(edge, "inspecting")
    masked, blocked = await client.begin("query"), await client.begin("query")
    for name, said in zip(
        [one for one in up.behaviours if one.startswith("task-")][-2:], (SECRET, BLOCKED), strict=True
    ):
        up.behaviours[name] = _telling(name, f"it is {said}")
    answer = await client.get(masked)
    assert answer.result["taskId"] == masked
    assert "it is" in json.dumps(answer.result)
    assert SECRET not in answer.body.decode()
    refused = await client.get(blocked)
    assert reason(refused) == "result-blocked"
    assert BLOCKED not in refused.body.decode()
    _, (seen, hidden) = await recorded(edge, "inspecting", "tasks/get")
    assert (seen.outcome, seen.masked, hidden.outcome) == ("ok", 1, "blocked")
    assert SECRET not in msgspec.json.encode(seen.sealed).decode()


async def test_what_a_task_brings_marks_its_session(edge: RunningEdge, up: Scripted) -> None:
    client = Client(edge, "reading")
    open_task = await client.begin("send")
    up.behaviours["secret"] = begin
    try:
        task = await client.begin("secret", comes="PRIVATE-4711")
    finally:
        up.behaviours["secret"] = read
    assert "PRIVATE-4711" in json.dumps((await client.get(task)).result)
    tainted = [one for one in await edge.place.events("sessions") if isinstance(one, SessionTainted)]
    assert [one.labels for one in tainted if one.agent == "reading"] == [("read-private",)]
    assert reason(await client.update(open_task, "PRIVATE-4711")) == "forbidden-by-rule"


async def test_what_comes_by_tasks_counts_as_what_comes_by_calls_and_asking_again_is_no_call(edge: RunningEdge) -> None:
    client = Client(edge, "searching")
    ten = [{"id": next(_ROWS)} for _ in range(10)]
    first, second = await client.begin("search", comes=ten), await client.begin("search", comes=ten[:2])
    third = await client.begin("search", comes=[{"id": next(_ROWS)} for _ in range(10)])
    for task in (first, second, first, third):
        assert "items" in json.dumps((await client.get(task)).result), "twenty of twelve: what is left is known after"
    refused = await client.get(third)
    assert reason(refused) == "budget-exhausted"
    assert refused.headers["retry-after"]
    assert (await client.cancel(third)).result == {"resultType": "complete"}
    _, done = await recorded(edge, "searching", "tasks/get")
    assert [one.records for one in done] == [10, 2, 10, 10]


async def test_input_for_a_task_counts_as_a_round_of_a_call(edge: RunningEdge) -> None:
    client = Client(edge, "moving")
    task = await client.begin("search", comes=[])
    for said in ("x", "y" * 4_900):
        assert "error" not in (await client.update(task, said)).json
    assert reason(await client.update(task, "x")) == "budget-exhausted", "of bytes"
    quick = Client(edge, "updating")
    task = await quick.begin("search", comes=[])
    for _ in range(3):
        assert "error" not in (await quick.update(task, "x")).json
    assert reason(await quick.update(task, "x")) == "rate-limited"
    assert (await quick.get(task)).result["status"] == "completed"
    assert (await quick.cancel(task)).result == {"resultType": "complete"}


async def test_a_task_costs_by_what_it_moves_and_its_call_once(edge: RunningEdge) -> None:
    client = Client(edge, "rendering")
    task = await client.begin("render", comes="x" * 3_000)
    assert (await client.get(task)).result["status"] == "completed"
    assert reason(await client.get(task)) == "budget-exhausted"
    _, (begun,) = await recorded(edge, "rendering", "tools/call")
    _, (got,) = await recorded(edge, "rendering", "tasks/get")
    assert 4_000_000 < begun.cost_micros < 4_300_000
    assert 3_000_000 < got.cost_micros < 3_300_000
