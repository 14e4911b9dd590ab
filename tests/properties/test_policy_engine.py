"""Laws of the engine: slicing, narrowing and standing verdicts never change an answer; rules in shadow mode neither."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

import cedarpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.policy.arguments import NotRepresentable, encode_arguments
from tidegate.policy.bundle import bundle_of
from tidegate.policy.engine import Engine, ToolFacts, Verdict
from tidegate.policy.facts import Facts
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
    {"uid": {"type": "Agent", "id": "cursor"}, "attrs": {}, "parents": [{"type": "AgentClass", "id": "editors"}]},
    {
        "uid": {"type": "AgentClass", "id": "editors"},
        "attrs": {},
        "parents": [{"type": "AgentClass", "id": "attended"}],
    },
    {"uid": {"type": "ServiceAccount", "id": "dora"}, "attrs": {}, "parents": [{"type": "Group", "id": "ops"}]},
]
CLASSES = {"cursor": ["attended", "editors"], "other": []}
ZONE = "Asia/Kolkata"

PRINCIPAL_SCOPES = [
    "principal",
    'principal == User::"alice"',
    'principal in Group::"eng"',
    'principal is User in Group::"ops"',
    "principal is Group",
    "principal is ServiceAccount",
    'principal == ServiceAccount::"dora"',
    'principal is ServiceAccount in Group::"ops"',
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
    'context == {"agent": {"id": "cursor", "classes": ["attended", "editors"]}, "args": {"a": 1}, "taint": []}',
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
    'context.agent.classes.contains("attended")',
    'context.network.ip.isInRange(ip("10.0.0.0/8"))',
    'context has network && context.network.ip.isInRange(ip("10.0.0.0/8"))',
    "!(context has network)",
    "context has network.ip && context has now",
    "context.network.ip.isIpv6() || context.args.a == 1",
    "context.time.hour >= 9 && context.time.hour < 17 && context.time.weekday <= 5",
    'context has time && context.time.date == "2026-11-23"',
    'context.now < datetime("2026-11-23T12:00:00.500Z")',
    'context.now.toTime() > duration("4h") && !(context has protocol)',
    'context.taint.contains("sensitive")',
    'context.taint.containsAny(["read-private", "sensitive"]) && context.args has a',
    'context has taint && context has args && context has agent && context.protocol like "2025-*"',
    'context has protocol && context.protocol == "2025-11-25"',
]


@dataclass(frozen=True)
class Principal:
    user: str
    agent: str
    groups: tuple[str, ...]
    kind: Literal["user", "service"] = "user"


@st.composite
def policies(draw: st.DrawFn) -> str:
    rules = []
    for number in range(draw(st.integers(0, 6))):
        effect = draw(st.sampled_from(["permit", "permit", "forbid", '@effect("ask") forbid']))
        scope = ", ".join(
            draw(st.sampled_from(choices)) for choices in (PRINCIPAL_SCOPES, ACTION_SCOPES, RESOURCE_SCOPES)
        )
        kind = draw(st.sampled_from(["when", "unless"]))
        mode = draw(st.sampled_from(["", "", "", '@mode("shadow") ']))
        rules.append(f'@id("r{number}") {mode}{effect} ({scope}) {kind} {{ {draw(st.sampled_from(CONDITIONS))} }};')
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
    st.sampled_from(["user", "user", "service"]),
)
MOMENTS = [0, 1_795_400_000_123_456, 1_795_426_200_500_000, 1_795_260_000_000_000]
ADDRESSES = ["", "10.1.2.3", "::ffff:10.9.9.9", "192.0.2.1", "fe80::1%eth0", "2001:db8::1", "not an address"]
FACTS = st.builds(
    Facts,
    st.sampled_from(MOMENTS),
    st.sampled_from(ADDRESSES),
    st.sampled_from([(), ("sensitive",), ("read-private", "returns-untrusted")]),
    st.sampled_from(["", "2025-11-25", "2026-07-28"]),
)
CALLS = st.tuples(ARGUMENTS, FACTS)


def build(text: str) -> Engine:
    files = {
        "manifest.json": json.dumps({"v": 1, "name": "t", "timezone": ZONE}).encode(),
        "policies/p.cedar": text.encode(),
        "entities.json": json.dumps(ENTITIES).encode(),
    }
    return Engine.build(bundle_of(files), TOOLS, SERVERS)


def context_of(who: Principal, args: dict[str, object], facts: Facts) -> dict[str, object]:
    """Everything that is known, as docs/policy-encoding.md has it."""
    context: dict[str, object] = {
        "agent": {"id": who.agent, "classes": CLASSES[who.agent]},
        "args": args,
        "taint": sorted(facts.taint),
    }
    if facts.now_us:
        there = datetime.fromtimestamp(facts.now_us // 1000 / 1000, ZoneInfo(ZONE))
        utc = there.astimezone(ZoneInfo("UTC")).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        context["now"] = {"__extn": {"fn": "datetime", "arg": utc}}
        date = there.date().isoformat()
        context["time"] = {"hour": there.hour, "minute": there.minute, "weekday": there.weekday() + 1, "date": date}
    plain = {"::ffff:10.9.9.9": "10.9.9.9", "fe80::1%eth0": "fe80::1", "not an address": ""}
    if address := plain.get(facts.address, facts.address):
        context["network"] = {"ip": {"__extn": {"fn": "ip", "arg": address}}}
    return context | ({"protocol": facts.protocol} if facts.protocol else {})


def whole(
    text: str, engine: Engine, who: Principal, tool: ToolFacts, arguments: dict[str, object], facts: Facts
) -> Verdict | None:
    """Cedar's public interface, given every rule that counts, every entity, argument and circumstance. None: not
    representable.

    One thing is taken from the engine: which whole numbers are meant as decimals, since that follows from the rules.
    """
    user = ("ServiceAccount" if who.kind == "service" else "User", who.user)
    book = engine._content.book
    groups = [("Group", name) for name in who.groups]
    target = book.target(tool, SERVERS[tool.server])
    hints = Need(whole=True)
    ancestors = book.ancestors([*groups, *book.parents(user)])
    for rule in engine.rules:
        admitted = (
            rule.principal.admits(user, ancestors),
            rule.action.admits(target.action, target.action_ancestors),
            rule.resource.admits(target.server, target.server_ancestors),
        )
        if all(admitted) and not rule.shadow:
            hints |= rule.needs.parts.get("args", Need())
    try:
        args = encode_arguments(arguments, hints)
    except NotRepresentable:
        return None
    everything = target.with_user(user, groups, book.entities)
    entities = cedarpy.Entities(everything.entities)
    request = {
        "principal": {"type": user[0], "id": user[1]},
        "action": {"type": "Action", "id": f"{tool.server}/{tool.tool}"},
        "resource": {"type": "Server", "id": tool.server},
        "context": context_of(who, args, facts),
    }

    def ask_cedar(lines: list[str]) -> Verdict:
        result = cedarpy.is_authorized(request, "\n".join(lines), entities)
        by_id = {rule.id: rule for rule in engine.rules}
        places = {f"policy{place}": by_id[RULE_ID.search(line)[1]] for place, line in enumerate(lines)}  # type: ignore[index]
        return verdict_of(result.diagnostics.reasons, result.diagnostics.errors, places, tool.server, tool.tool)

    lines = [line for line in text.splitlines() if "@mode" not in line]
    verdict = ask_cedar(lines)
    if verdict.effect != "ask":
        return verdict
    granted = ask_cedar([line for line in lines if "@effect" not in line])
    return verdict if granted.effect == "allow" else granted


@settings(max_examples=250, deadline=None)
@given(policies(), PRINCIPALS, st.sampled_from(TOOLS), st.lists(CALLS, min_size=1, max_size=3))
def test_sliced_and_narrowed_decisions_are_the_whole_ones(
    text: str, who: Principal, tool: ToolFacts, calls: list[tuple[dict[str, object], Facts]]
) -> None:
    engine = build(text)
    for arguments, facts in calls:
        expected = whole(text, engine, who, tool, arguments, facts)
        if expected is not None:
            assert engine.evaluate(who, tool.server, tool.tool, arguments, facts) == expected


@settings(max_examples=250, deadline=None)
@given(policies(), PRINCIPALS, st.sampled_from(TOOLS), st.lists(CALLS, min_size=1, max_size=4))
def test_a_standing_verdict_holds_for_all_arguments_and_facts_and_a_hidden_tool_is_never_callable(
    text: str, who: Principal, tool: ToolFacts, calls: list[tuple[dict[str, object], Facts]]
) -> None:
    engine = build(text)
    standing = engine.standing(who, tool.server, tool.tool)
    for arguments, facts in calls:
        expected = whole(text, engine, who, tool, arguments, facts)
        if expected is None:
            continue
        if standing is not None:
            assert expected == standing
        if not engine.visible(who, tool.server, tool.tool):
            assert expected.effect == "deny"


@settings(max_examples=120, deadline=None)
@given(policies(), PRINCIPALS, st.sampled_from(TOOLS), ARGUMENTS, FACTS, FACTS)
def test_facts_that_the_rules_do_not_look_at_change_no_verdict(
    text: str, who: Principal, tool: ToolFacts, arguments: dict[str, object], facts: Facts, others: Facts
) -> None:
    engine = build(text)
    needs = engine.needs_facts(who, tool.server, tool.tool)
    held = {
        "now_us": bool(needs & {"now", "time"}),
        "address": "network" in needs,
        "taint": "taint" in needs,
        "protocol": "protocol" in needs,
    }
    mixed = Facts(**{name: getattr(facts if kept else others, name) for name, kept in held.items()})
    verdicts = [engine.evaluate(who, tool.server, tool.tool, arguments, each) for each in (facts, mixed)]
    assert verdicts[0] == verdicts[1]


@settings(max_examples=120, deadline=None)
@given(policies(), PRINCIPALS, st.sampled_from(TOOLS), ARGUMENTS, FACTS)
def test_rules_in_shadow_mode_change_no_verdict_and_unshadowed_decides_as_if_they_ruled(
    text: str, who: Principal, tool: ToolFacts, arguments: dict[str, object], facts: Facts
) -> None:
    engine = build(text)
    call = (who, tool.server, tool.tool, arguments, facts)
    without = build("\n".join(line for line in text.splitlines() if "@mode" not in line))
    assert engine.shadowing == ("@mode" in text)
    assert engine.evaluate(*call) == without.evaluate(*call)
    assert engine.visible(*call[:3]) == without.visible(*call[:3])
    live = build(text.replace('@mode("shadow") ', ""))
    assert engine.unshadowed().evaluate(*call) == live.evaluate(*call)
    assert not engine.unshadowed().shadowing


@settings(max_examples=120, deadline=None)
@given(policies(), PRINCIPALS, st.sampled_from(TOOLS), ARGUMENTS, FACTS)
def test_one_more_forbid_never_opens_anything_and_an_unconditional_one_wins(
    text: str, who: Principal, tool: ToolFacts, arguments: dict[str, object], facts: Facts
) -> None:
    call = (who, tool.server, tool.tool, arguments, facts)
    before = build(text).evaluate(*call)
    closed = build(f'{text}\n@id("no") forbid (principal, action, resource);')
    verdict = closed.evaluate(*call)
    assert (verdict.effect, closed.visible(*call[:3])) == ("deny", False)
    assert verdict.reason in ("forbidden-by-rule", before.reason)
    half = f'{text}\n@id("no") forbid (principal, action, resource) when {{ context.taint.contains("sensitive") }};'
    rank = {"deny": 0, "ask": 1, "allow": 2}
    assert rank[build(half).evaluate(*call).effect] <= rank[before.effect]


@settings(max_examples=120, deadline=None)
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
