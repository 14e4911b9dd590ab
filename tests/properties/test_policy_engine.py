"""Laws of the engine: slicing, narrowing and standing verdicts never change an answer."""

import json
import re
from dataclasses import dataclass

import cedarpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.policy.arguments import NotRepresentable, encode_arguments
from tidegate.policy.bundle import bundle_of
from tidegate.policy.engine import Engine, ToolFacts, Verdict
from tidegate.policy.rules import Need
from tidegate.policy.verdict import verdict_of

RULE_ID = re.compile(r'@id\("([^"]+)"\)')
TOOLS = [ToolFacts("fs", "read", ("read",)), ToolFacts("fs", "write", ()), ToolFacts("web", "get", ("egress", "read"))]
SERVERS = {"fs": ("sensitive",), "web": ()}
ENTITIES = [
    {"uid": {"type": "Group", "id": "platform"}, "attrs": {}, "parents": [{"type": "Group", "id": "eng"}]},
    {"uid": {"type": "User", "id": "dora"}, "attrs": {"level": 3}, "parents": [{"type": "Group", "id": "platform"}]},
    {
        "uid": {"type": "User", "id": "alice"},
        "attrs": {
            "boss": {"__entity": {"type": "User", "id": "dora"}},
            "peers": [{"__entity": {"type": "User", "id": "kim"}}],
        },
        "parents": [],
    },
    {"uid": {"type": "User", "id": "kim"}, "attrs": {"level": 1}, "parents": [{"type": "Group", "id": "platform"}]},
    {
        "uid": {"type": "Server", "id": "web"},
        "attrs": {"owner": {"__entity": {"type": "User", "id": "kim"}}},
        "parents": [{"type": "Zone", "id": "outside"}],
        "tags": {"risk": 7, "keeper": {"__entity": {"type": "User", "id": "dora"}}},
    },
]

PRINCIPAL_SCOPES = [
    "principal",
    'principal == User::"alice"',
    'principal in Group::"eng"',
    'principal is User in Group::"ops"',
    "principal is Group",
]
ACTION_SCOPES = [
    "action",
    'action == Action::"fs/read"',
    'action in Action::"read"',
    'action in [Action::"fs/write", Action::"egress"]',
    'action in Action::"call"',
]
RESOURCE_SCOPES = ["resource", 'resource == Server::"fs"', 'resource in Zone::"outside"', "resource is Server"]
CONDITIONS = [
    "true",
    'context.agent.id == "cursor"',
    "context.args.a == 1",
    "context.args has a",
    "context.args has b.c && context.args.b.c > 2",
    'context.args.a like "x*"',
    'context.args.b.lessThan(decimal("2.5"))',
    'context.args == {"a": 1}',
    'context == {"agent": {"id": "cursor"}, "args": {"a": 1}}',
    'context.agent.id == "cursor" && context.args.b == "x"',
    "principal has level && principal.level > context.args.a",
    'resource.labels.contains("sensitive")',
    '[{"has": context.args.a}].contains({"has": 1})',
    "context.args.b.contains(1) || context.args has d",
    'principal in Group::"eng" && !(context.args has a)',
    'User::"nobody".x == 1',
    "principal has boss && principal.boss.level > 2",
    'principal has boss && principal.boss in Group::"eng"',
    'principal has peers && principal.peers.contains(User::"kim") && User::"kim".level == 1',
    'User::"kim" in Group::"eng"',
    'resource.hasTag("risk") && resource.getTag("risk") == 7',
    'resource.hasTag("keeper") && resource.getTag("keeper") in Group::"eng"',
    "resource has owner && resource.owner.level == 1",
    'resource in Zone::"outside" || User::"kim" == User::"dora"',
]


@dataclass(frozen=True)
class Principal:
    user: str
    agent: str
    groups: tuple[str, ...]


@st.composite
def policies(draw: st.DrawFn) -> str:
    rules = []
    for number in range(draw(st.integers(0, 6))):
        effect = draw(st.sampled_from(["permit", "permit", "forbid", '@effect("ask") forbid']))
        scope = ", ".join(
            draw(st.sampled_from(choices)) for choices in (PRINCIPAL_SCOPES, ACTION_SCOPES, RESOURCE_SCOPES)
        )
        kind = draw(st.sampled_from(["when", "unless"]))
        rules.append(f'@id("r{number}") {effect} ({scope}) {kind} {{ {draw(st.sampled_from(CONDITIONS))} }};')
    return "\n".join(rules)


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from(["x", "xy", ""]), st.sampled_from([1.5, 2.5])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)
PRINCIPALS = st.builds(
    Principal,
    st.sampled_from(["alice", "dora", "eve"]),
    st.sampled_from(["cursor", "other"]),
    st.sampled_from([(), ("eng",), ("platform",), ("ops", "eng")]),
)


def build(text: str) -> Engine:
    files = {
        "manifest.json": b'{"v":1,"name":"t"}',
        "policies/p.cedar": text.encode(),
        "entities.json": json.dumps(ENTITIES).encode(),
    }
    return Engine.build(bundle_of(files), TOOLS, SERVERS)


def whole(text: str, engine: Engine, who: Principal, facts: ToolFacts, arguments: dict[str, object]) -> Verdict | None:
    """Cedar's public interface, given every rule, every entity and every argument. None: not representable.

    One thing is taken from the engine: which whole numbers are meant as decimals, since that follows from the rules.
    """
    groups = [("Group", name) for name in who.groups]
    target = engine._book.target(facts, SERVERS[facts.server])
    hints = Need(whole=True)
    ancestors = engine._book.ancestors([*groups, *engine._book.parents(("User", who.user))])
    for rule in engine.rules:
        admitted = (
            rule.principal.admits(("User", who.user), ancestors),
            rule.action.admits(target.action, target.action_ancestors),
            rule.resource.admits(target.server, target.server_ancestors),
        )
        if all(admitted):
            hints |= rule.needs.parts.get("args", Need())
    try:
        args = encode_arguments(arguments, hints)
    except NotRepresentable:
        return None
    everything = target.with_user(("User", who.user), groups, engine._book.entities)
    entities = cedarpy.Entities(everything.entities)
    request = {
        "principal": {"type": "User", "id": who.user},
        "action": {"type": "Action", "id": f"{facts.server}/{facts.tool}"},
        "resource": {"type": "Server", "id": facts.server},
        "context": {"agent": {"id": who.agent}, "args": args},
    }

    def ask_cedar(lines: list[str]) -> Verdict:
        result = cedarpy.is_authorized(request, "\n".join(lines), entities)
        by_id = {rule.id: rule for rule in engine.rules}
        places = {f"policy{place}": by_id[RULE_ID.search(line)[1]] for place, line in enumerate(lines)}  # type: ignore[index]
        return verdict_of(result.diagnostics.reasons, result.diagnostics.errors, places, facts.server, facts.tool)

    lines = text.splitlines()
    verdict = ask_cedar(lines)
    if verdict.effect != "ask":
        return verdict
    granted = ask_cedar([line for line in lines if "@effect" not in line])
    return verdict if granted.effect == "allow" else granted


@settings(max_examples=400, deadline=None)
@given(policies(), PRINCIPALS, st.sampled_from(TOOLS), st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_sliced_and_narrowed_decisions_are_the_whole_ones(
    text: str, who: Principal, facts: ToolFacts, calls: list[dict[str, object]]
) -> None:
    engine = build(text)
    for arguments in calls:
        expected = whole(text, engine, who, facts, arguments)
        if expected is not None:
            assert engine.evaluate(who, facts.server, facts.tool, arguments) == expected


@settings(max_examples=300, deadline=None)
@given(policies(), PRINCIPALS, st.sampled_from(TOOLS), st.lists(ARGUMENTS, min_size=1, max_size=4))
def test_a_standing_verdict_holds_for_all_arguments_and_a_hidden_tool_is_never_callable(
    text: str, who: Principal, facts: ToolFacts, calls: list[dict[str, object]]
) -> None:
    engine = build(text)
    standing = engine.standing(who, facts.server, facts.tool)
    for arguments in calls:
        expected = whole(text, engine, who, facts, arguments)
        if expected is None:
            continue
        if standing is not None:
            assert expected == standing
        if not engine.visible(who, facts.server, facts.tool):
            assert expected.effect == "deny"


@settings(max_examples=200, deadline=None)
@given(
    PRINCIPALS,
    st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["__entity", "__extn", "a"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=4) | st.just("__entity"), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=5,
    ),
)
def test_the_engine_denies_by_default_and_never_raises_on_any_arguments(
    who: Principal, arguments: dict[str, object]
) -> None:
    engine = build(
        '@id("r") permit (principal == User::"nobody", action, resource);'
        '@id("w") forbid (principal, action, resource) when { context.args == {} };'
    )
    assert engine.evaluate(who, "fs", "read", arguments).effect == "deny"
