"""Arguments of another JSON type than their tool declares, at a real edge: denied at every door and in either era where
a rule looks at them, decided again alike, and no release's fault.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import RunningEdge, running_edge, until
from tests.parts.scripted import Scripted, scripted, tool

from tidegate.events import ToolDefined
from tidegate.policy.argument_types import Document
from tidegate.policy.bundle import bundle_of
from tidegate.policy.replaying import Replayer, differs, past_of
from tidegate.policy.signing import Guard, Stage
from tidegate.policy.verdict import Verdict

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNLIKE = "arguments-unlike-schema"
RULES = """
@id("all") permit (principal, action, resource);
@id("no-force") @reason("Nothing is forced.")
forbid (principal, action == Action::"up/deploy", resource)
when { context.args has force && context.args.force == true };
"""
GRANTS = """
v: 1
grants:
  - {id: plain, team: '*', tools: {up: [plain]}}
  - {id: g, team: '*', tools: {up: [deploy]}, ask: {force: true}, approver: other}
"""
FILES = {"manifest.json": '{"v": 1, "name": "types"}', "policies/p.cedar": RULES}
MORE = {**FILES, "policies/p.cedar": RULES + RULES[RULES.index('@id("no-f') :].replace("force", "dry")}
ASKING = {"manifest.json": '{"v": 1, "name": "asking"}', "grants.yaml": GRANTS}
PROPERTIES = {name: {"type": "boolean"} for name in ("force", "dry")} | {"env": {"type": "string"}, "free": {}}
DEPLOY = tool("deploy", inputSchema={"type": "object", "properties": PROPERTIES})
SETS = {"ops": {"tools": [{"server": "up", "tool": "deploy", "arguments": {"env": "test"}}]}}
ODD = ("true", 1, "yes", None, [True])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        server.tools = [DEPLOY, tool("plain")]
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    root = tmp_path_factory.mktemp("types")
    servers = {"up": {"url": up.url}}
    async with running_edge(
        root, servers, bundle=FILES, sets=SETS, rules=[{"server": "up", "capture": "full"}]
    ) as running:
        yield running


def told(answer: Any) -> tuple[str, str]:
    decision = answer.result.get("_meta", {}).get("tidegate/decision", {"decision": "allow", "reason": ""})
    return decision["decision"], decision["reason"]


@pytest.mark.parametrize(("path", "name"), [("/mcp", "up__deploy"), ("/mcp/up", "deploy"), ("/mcp/sets/ops", "deploy")])
async def test_no_door_lets_another_type_pass(edge: RunningEdge, up: Scripted, path: str, name: str) -> None:
    speaker = edge.place.speaker()
    before = len(up.calls("deploy"))
    for force in ODD:
        answer = await speaker.call(name, {"force": force}, path=path)
        assert told(answer) == ("deny", UNLIKE), force
        assert "'force'" in answer.result["content"][0]["text"]
    assert told(await speaker.call(name, {"force": True}, path=path)) == ("deny", "forbidden-by-rule")
    assert len(up.calls("deploy")) == before
    assert told(await speaker.call(name, {"force": False, "free": "true"}, path=path))[0] == "allow"
    assert len(up.calls("deploy")) == before + 1


async def test_a_legacy_client_is_told_the_same(edge: RunningEdge, up: Scripted) -> None:
    speaker = edge.place.speaker()
    await speaker.initialize()
    before = len(up.calls("deploy"))
    asked = speaker.legacy("tools/call", {"name": "up__deploy", "arguments": {"force": "true"}})
    assert told(await speaker.ask(asked)) == ("deny", UNLIKE)
    assert len(up.calls("deploy")) == before


async def test_it_is_listed_all_the_same(edge: RunningEdge) -> None:
    listed = (await edge.place.speaker().ask(edge.place.speaker().modern("tools/list"))).result["tools"]
    assert {one["name"] for one in listed} == {"up__deploy", "up__plain"}


async def test_each_decision_agrees_with_itself_from_its_event_and_the_catalogue(edge: RunningEdge) -> None:
    speaker = edge.place.speaker()
    for force in (*ODD, True, False):
        await speaker.call("up__deploy", {"force": force, "env": "again"})
    defined = [one for one in await edge.place.events("catalog") if isinstance(one, ToolDefined)]
    declared = {one.digest: Document.of_definition(one.definition) for one in defined}
    asked, _ = await edge.place.calls("again")
    assert sorted(one.reason for one in asked) == [UNLIKE] * 5 + ["forbidden-by-rule", "granted"]
    bundle = bundle_of({path: text.encode() for path, text in FILES.items()})
    more = bundle_of({path: text.encode() for path, text in MORE.items()})
    again, other, blind = Replayer(bundle, declared), Replayer(more, declared), Replayer(bundle, {})
    for one in asked:
        past = past_of(one, one.sealed)
        verdict = again.decide(past)
        assert isinstance(verdict, Verdict)
        assert differs(past, verdict) == ""
        candidate = other.decide(past)
        assert isinstance(candidate, Verdict)
        assert candidate.reason == one.reason
        assert blind.decide(past) == "not-kept", "what the tool declared is not known, so nothing is guessed"


async def test_a_release_is_not_blamed_for_what_the_other_one_refuses_too(edge: RunningEdge) -> None:
    """The canary's rules look at one more argument than those that rule."""
    tenant, everybody = edge.settings.tenant, Stage(groups=("eng",))
    await edge.log.append(edge.place.release(MORE, 2, role="canary", stage=everybody, guard=Guard(errors=0.0)))
    await until(lambda: edge.edge.rings[tenant].canary is not None)
    canary = edge.edge.rings[tenant].canary
    assert canary is not None
    for user in ("m1", "m2", "m3"):
        assert told(await edge.place.speaker(user=user).call("up__deploy", {"force": "true"})) == ("deny", UNLIKE)
    assert (canary.tally.sums().denied, canary.tally.sums().errors) == (0, 0)
    assert told(await edge.place.speaker(user="m4").call("up__deploy", {"dry": "true"})) == ("deny", UNLIKE)
    assert (canary.tally.sums().denied, canary.tally.sums().errors) == (1, 0), "which the ruling one would let pass"
    await edge.log.append(edge.place.release({}, 3, role="canary"))
    await until(lambda: edge.edge.rings[tenant].canary is None)


async def test_a_grant_that_asks_is_not_passed(edge: RunningEdge, up: Scripted) -> None:
    await edge.publish(ASKING, 4)
    speaker, before = edge.place.speaker(), len(up.calls("deploy"))
    for force in ODD:
        assert told(await speaker.call("up__deploy", {"force": force})) == ("deny", UNLIKE)
    assert told(await speaker.call("up__deploy", {"force": True})) == ("ask", "approval-required")
    assert len(up.calls("deploy")) == before
    assert told(await speaker.call("up__deploy", {"force": False}))[0] == "allow"
