"""`bundle diff`: what became easier, harder or unreachable, each with a call that shows it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tidegate.errors import CallerFault
from tidegate.policy.bundle import Bundle, bundle_of, load_bundle
from tidegate.policy.differences import Differences, compare
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.situations import Person
from tidegate_cli.bundle_comparing import say_wider
from tidegate_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
BANK = ROOT / "tests" / "cases" / "bank"
EXAMPLE = ROOT / "examples" / "01-first-call" / "policy"


def bundle(rules: str = "", grants: str = "") -> Bundle:
    files = {"manifest.json": b'{"v": 1, "name": "x"}', "policies/x.cedar": rules.encode()}
    return bundle_of(files | ({"grants.yaml": f"v: 1\ngrants: [{grants}]".encode()} if grants else {}))


def permit(condition: str = "true", name: str = "p", group: str = "eng", tool: str = "read") -> str:
    head = f'@id("{name}") permit (principal in Group::"{group}", action == Action::"fs/{tool}", resource)'
    return f"{head} when {{ {condition} }};\n"


FORBID = '@id("f") forbid (principal, action == Action::"fs/read", resource);\n'


@pytest.mark.parametrize("directory", [BANK, EXAMPLE])
def test_a_bundle_does_not_differ_from_itself(directory: Path) -> None:
    found = compare(load_bundle(directory), load_bundle(directory))
    assert found.changes == ()
    assert found.decisions > 50
    assert found.whole
    assert not any(rule.newly for rule in found.unreachable)


def test_a_new_permit_is_more_permissive_and_a_new_forbid_stricter() -> None:
    [easier] = compare(bundle(permit()), bundle(permit() + permit(name="q", group="ops"))).changes
    assert (easier.direction, easier.before, easier.after, easier.rules_after) == (
        "more-permissive",
        "deny",
        "allow",
        ("q",),
    )
    assert easier.example.groups == ("ops",)
    [harder] = compare(bundle(permit()), bundle(permit() + FORBID)).changes
    assert (harder.direction, harder.before, harder.after, harder.rules_after) == ("stricter", "allow", "deny", ("f",))
    assert harder.message == "The rule 'f' forbids this call of fs/read."


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        ("context.args.n <= 10", "context.args.n <= 11", {11}),
        ('context.args.n.lessThan(decimal("9.5"))', 'context.args.n.lessThan(decimal("10.5"))', {9.5}),
        ('context.args.n == "a"', '["a", "b"].contains(context.args.n)', {"b"}),
        ('context.args.n like "a*"', 'context.args.n like "a*" || context.args.n like "*b"', {"xb"}),
        ("context.args has n && context.args.n > 2", "!(context.args has n) || context.args.n > 2", {None}),
        ('context.args has n && !(context.args.n like "a*")', "context.args has n", {"ax"}),
        ("context.args has n && context.args.n", "context.args has n", {False}),
    ],
)
def test_a_limit_that_moves_is_shown_by_a_value_between(before: str, after: str, between: set[object]) -> None:
    old, new = bundle(permit(before)), bundle(permit(after))
    found = compare(old, new)
    assert {change.example.arguments.get("n") for change in found.changes} == between
    assert {change.direction for change in found.changes} == {"more-permissive"}


def decide(side: Bundle, change: object) -> str:
    """The effect of a change's example, decided anew."""
    example = change.example  # type: ignore[attr-defined]
    facts = ToolFacts(example.server, example.tool, example.labels)
    engine = Engine.build(side, [facts], {example.server: example.labels})
    who = Person(example.user, example.groups, example.agent, example.kind)
    return engine.evaluate(who, example.server, example.tool, example.arguments, example.facts).effect


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("context.time.hour >= 9", "context.time.hour >= 8"),
        ("context.time.weekday <= 5", "context.time.weekday <= 6"),
        ("context.time.hour < 18 && context.time.weekday < 6", "context.time.weekday < 6"),
        ('context.time.date == "2026-12-24"', "context.time.hour >= 0"),
        ('context.now < datetime("2026-12-01")', 'context.now < datetime("2026-12-02T00:00:00Z")'),
        ('context.now.toTime() < duration("17h")', 'context.now.toTime() < duration("17h30m")'),
        ('context.now.toTime() >= duration("9h")', 'context.now.offset(duration("1h")).toTime() >= duration("9h")'),
        ('context.now.offset(duration("-30d")) < datetime("2026-12-01")', 'context.now < datetime("2026-12-01")'),
        ('context.now.toDate() == datetime("2026-12-24")', 'context.now.toDate() == datetime("2026-12-25")'),
        (
            'context.now.durationSince(datetime("2026-01-01")) < duration("30d")',
            'context.now.durationSince(datetime("2026-01-01")).toDays() <= 30',
        ),
        (
            'datetime("2026-12-01").durationSince(context.now) > duration("1d12h")',
            'datetime("2026-12-01").durationSince(context.now) > duration("1d")',
        ),
        (
            'context.time.weekday > 5 && context.now.toTime() < duration("17h")',
            'context.time.weekday > 5 && context.now.toTime() < duration("18h")',
        ),
        ('context.network.ip.isInRange(ip("10.0.0.0/8"))', "context.network.ip.isIpv4()"),
        ('context has network && context.network.ip == ip("10.1.1.1")', "!(context has network)"),
        ('!context.taint.contains("sensitive")', "true"),
        ('!context.taint.containsAny(["a", "b"])', 'context.taint.contains("a") || context.taint == []'),
        ('context.protocol == "2026-07-28"', 'context.protocol == "2026-07-28" || context.protocol == "2025-11-25"'),
        ('context.agent.id == "a" && context.args.n < 9', "context.args.n < 9 && context.time.hour == 3"),
    ],
)
def test_a_circumstance_that_is_looked_at_otherwise_is_shown_by_an_occasion(before: str, after: str) -> None:
    old, new = bundle(permit(before)), bundle(permit(after))
    found = compare(old, new)
    assert found.changes
    for change in found.changes:
        assert (decide(old, change), decide(new, change)) == (change.before, change.after)


@pytest.mark.parametrize("seen", ["context.taint", "context.args.tags"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SET.isEmpty()", "true"),
        ("!SET.isEmpty()", "SET.isEmpty()"),
        ("SET == []", "SET != []"),
        ('SET == ["a"]', 'SET == ["a", "b"]'),
        ('SET.contains("a")', 'SET.contains("a") || SET.contains("b")'),
        ('SET.containsAny(["a"])', 'SET.containsAny(["a", "b"])'),
        ('SET.containsAll(["a", "b"])', 'SET.containsAll(["b"])'),
        ('["a", "b"].containsAll(SET)', '["a"].containsAll(SET)'),
    ],
)
def test_a_condition_on_a_set_is_tried_with_and_without_its_elements(seen: str, before: str, after: str) -> None:
    old, new = (bundle(permit(side.replace("SET", seen))) for side in (before, after))
    found = compare(old, new)
    assert found.changes
    assert found.whole
    for change in found.changes:
        assert (decide(old, change), decide(new, change)) == (change.before, change.after)


def test_a_session_that_has_read_something_and_one_that_has_not_are_both_tried() -> None:
    rule = '@id("f") forbid (principal, action == Action::"fs/read", resource) unless { context.taint.isEmpty() };'
    [harder] = compare(bundle(permit()), bundle(permit() + rule)).changes
    assert (harder.direction, harder.after, bool(harder.example.facts.taint)) == ("stricter", "deny", True)
    [easier] = compare(bundle(permit() + rule), bundle(permit())).changes
    assert (easier.direction, bool(easier.example.facts.taint)) == ("more-permissive", True)


@pytest.mark.parametrize(
    ("condition", "whole"),
    [
        ('context.now.offset(duration("1h")).toTime() < duration("17h")', True),
        ('context.time.hour >= 9 && context.time.date like "2026-*"', True),
        ("context has now && [9, 10].contains(context.time.hour)", True),
        ("context.time.hour * 60 + context.time.minute < 570", False),
        ('context.now.toTime() < context.now.durationSince(datetime("2026-01-01"))', False),
        ('context.now < datetime("2026-12-01").offset(duration("1d"))', False),
    ],
)
def test_a_condition_whose_moments_cannot_be_read_off_is_said_not_to_be_tried_whole(
    condition: str, whole: bool
) -> None:
    assert compare(bundle(), bundle(permit(condition))).whole is whole


def test_a_rule_about_service_accounts_or_classes_of_agents_is_tried_with_some() -> None:
    machines = '@id("m") permit (principal is ServiceAccount in Group::"eng", action == Action::"fs/read", resource);'
    [change] = compare(bundle(), bundle(machines)).changes
    assert (change.example.kind, change.example.groups) == ("service", ("eng",))
    named = '@id("n") permit (principal == ServiceAccount::"ci", action == Action::"fs/read", resource);'
    [change] = compare(bundle(), bundle(named)).changes
    assert (change.example.kind, change.example.user) == ("service", "ci")


def test_a_rule_that_begins_to_rule_is_a_change_and_one_that_only_watches_is_none() -> None:
    watching = f'@mode("shadow") {FORBID}'
    assert compare(bundle(permit()), bundle(permit() + watching)).changes == ()
    assert compare(bundle(permit()), bundle(permit() + watching)).unreachable == ()
    [change] = compare(bundle(permit() + watching), bundle(permit() + FORBID)).changes
    assert (change.direction, change.rules_after) == ("stricter", ("f",))


def test_an_agent_a_label_and_a_server_that_only_conditions_or_scopes_name_are_tried() -> None:
    agent = permit('context.agent.id == "cursor"')
    [change] = compare(bundle(), bundle(agent)).changes
    assert change.example.agent == "cursor"
    label = '@id("l") permit (principal in Group::"eng", action in Action::"egress", resource);'
    [change] = compare(bundle(), bundle(label)).changes
    assert change.example.labels == ("egress",)
    server = '@id("s") permit (principal == User::"eve", action, resource == Server::"web");'
    assert {change.example.server for change in compare(bundle(), bundle(server)).changes} == {"web"}
    assert {change.example.user for change in compare(bundle(), bundle(server)).changes} == {"eve"}


def test_a_rule_that_a_forbid_now_covers_is_unreachable_and_says_by_what() -> None:
    found = compare(bundle(permit()), bundle(permit() + FORBID))
    [rule] = found.unreachable
    assert (rule.rule, rule.path, rule.line, rule.newly, rule.now) == ("p", "policies/x.cedar", 1, True, ("f",))
    assert rule.example is not None
    assert rule.example.groups == ("eng",)


def test_a_new_rule_that_never_decides_is_unreachable_but_not_newly() -> None:
    never = permit("context.args.a == 1 && context.args.a == 2", name="never")
    [rule] = compare(bundle(permit()), bundle(permit() + never)).unreachable
    assert (rule.rule, rule.newly) == ("never", False)


def test_what_is_asked_about_lies_between() -> None:
    ask = '@id("a") @effect("ask") forbid (principal, action == Action::"fs/read", resource);'
    found = compare(bundle(permit()), bundle(permit() + ask))
    assert found.unreachable == ()  # the permit still decides what is asked about
    [change] = found.changes
    assert (change.direction, change.after) == ("stricter", "ask")
    [change] = compare(bundle(permit() + ask), bundle(permit())).changes
    assert (change.direction, change.before) == ("more-permissive", "ask")


ASKS = ["", '@approver("other")', '@approver("security")', '@approver("leads")', '@expires("1m")', '@expires("10m")']


def asking(notes: str) -> Bundle:
    ask = f'@id("a") @effect("ask") {notes} forbid (principal, action == Action::"fs/read", resource);'
    return bundle(permit() + ask)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('@approver("security")', "", "approver security → requester"),
        ('@approver("other")', "", "approver other → requester"),
        ('@approver("security")', '@approver("other")', "approver security → other"),
        ('@approver("security")', '@approver("eng")', "approver security → eng"),
        ('@expires("1m")', '@expires("7d")', "expires 1m → 7d"),
        ('@expires("90s")', "", "expires 90s → 10m"),
        ('@expires("1m")', '@approver("other")', "approver requester → other, expires 1m → 10m"),
    ],
)
def test_a_question_that_is_easier_to_have_answered_is_more_permissive(
    before: str, after: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(asking(before), asking(after))
    [change] = found.changes
    assert (change.direction, change.before, change.after) == ("more-permissive", "ask", "ask")
    say_wider(found)
    assert f"more permissive fs/read ask: {told}, by a" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '@approver("other")'),
        ('@approver("other")', '@approver("security")'),
        ('@expires("11m")', ""),
        ('@expires("1h")', '@approver("security")'),
    ],
)
def test_a_question_that_is_harder_to_have_answered_is_stricter(before: str, after: str) -> None:
    [change] = compare(asking(before), asking(after)).changes
    assert change.direction == "stricter"
    assert change.asked_before != change.asked_after


def test_a_time_that_is_the_usual_one_is_no_other() -> None:
    assert compare(asking(""), asking('@expires("10m")')).changes == ()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ASKS), st.sampled_from(ASKS))
def test_what_is_not_easier_one_way_is_easier_the_other(one: str, other: str) -> None:
    there, back = compare(asking(one), asking(other)), compare(asking(other), asking(one))
    assert bool(there.changes) is bool(back.changes)
    directions = {change.direction for change in (*there.changes, *back.changes)}
    assert not directions or "more-permissive" in directions


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('A like "/srv/*" && !(A like "*..*")', 'A like "/srv/*"'),
        ('A like "/srv/*" && !(A like "*.key")', 'A like "/srv/*"'),
        ('A like "/srv/*" && A like "*.txt" && !(A like "*..*")', 'A like "/srv/*" && A like "*.txt"'),
        ('A like "/srv/a*" && !(A like "/srv/*b")', 'A like "/srv/a*"'),
        ('A like "ab*" && !(A like "*bc")', 'A like "ab*"'),
    ],
)
def test_an_exception_from_a_pattern_that_goes_is_shown_by_a_text_that_both_take(before: str, after: str) -> None:
    old, new = (bundle(permit(side.replace("A", "context.args.path"))) for side in (before, after))
    found = compare(old, new)
    assert {change.direction for change in found.changes} == {"more-permissive"}
    assert found.whole
    for change in found.changes:
        assert (decide(old, change), decide(new, change)) == (change.before, change.after)


def test_grants_are_compared_and_named_by_their_lines() -> None:
    grant = "{id: g, team: eng, tools: {fs: [read]}, limits: {n: {at_most: 5}}}"
    found = compare(bundle(grants=grant), bundle(FORBID, grants=grant.replace("5", "6")))
    assert {change.direction for change in found.changes} == {"stricter"}
    assert ("g/fs", "grants.yaml", 2) in [(rule.rule, rule.path, rule.line) for rule in found.unreachable]


CONDITIONS = [
    "true",
    "context.args.n <= 2",
    'context.args has s && context.args.s like "a*"',
    'context.agent.id == "x"',
]
rules = st.lists(
    st.tuples(
        st.sampled_from(["permit", "permit", "forbid"]), st.sampled_from(["eng", "ops"]), st.sampled_from(CONDITIONS)
    ),
    max_size=3,
).map(
    lambda found: "".join(
        f'@id("r{number}") {effect} (principal in Group::"{group}", action == Action::"fs/read", resource)'
        f" when {{ {condition} }};\n"
        for number, (effect, group, condition) in enumerate(found)
    )
)


@settings(max_examples=60, deadline=None)
@given(rules, rules)
def test_every_example_is_decided_as_it_says_and_the_way_back_is_the_mirror_image(one: str, other: str) -> None:
    old, new = bundle(one), bundle(other)
    there, back = compare(old, new), compare(new, old)
    for change in there.changes:
        assert (decide(old, change), decide(new, change)) == (change.before, change.after)
    assert mirrored(there, "more-permissive") == mirrored(back, "stricter")
    assert mirrored(there, "stricter") == mirrored(back, "more-permissive")


def mirrored(found: Differences, direction: str) -> set[tuple[str, frozenset[str]]]:
    return {
        (change.tool, frozenset((change.before, change.after)))
        for change in found.changes
        if change.direction == direction
    }


def test_the_command_tells_people_and_programs(tmp_path: Path) -> None:
    changed = tmp_path / "policy"
    for path, content in load_bundle(EXAMPLE).files.items():
        (changed / path).parent.mkdir(parents=True, exist_ok=True)
        (changed / path).write_bytes(content)
    off = '\n@id("off") @reason("Closed.") forbid (principal, action, resource == Server::"time");\n'
    (changed / "policies" / "off.cedar").write_text(off)
    shown = CliRunner().invoke(app, ["bundle", "diff", str(EXAMPLE), str(changed)])
    assert shown.exit_code == 0
    assert "stricter  time/get_current_time  allow → deny, by off" in shown.stdout
    assert "unreachable  eng-time (policies/engineering.cedar:4) decides nothing any more" in shown.stdout
    same = CliRunner().invoke(app, ["bundle", "diff", str(EXAMPLE), str(EXAMPLE)])
    assert "no decision differs" in same.stdout
    told = json.loads(CliRunner().invoke(app, ["bundle", "diff", str(EXAMPLE), str(changed), "--json"]).stdout)
    assert {change["rules_after"][0] for change in told["changes"]} == {"off"}
    nothing = CliRunner().invoke(app, ["bundle", "diff", "no-such-place", str(EXAMPLE)])
    assert isinstance(nothing.exception, CallerFault)


def test_a_search_that_a_bound_cuts_short_says_so() -> None:
    few = bundle(permit('context.args.n == "a"'))
    assert compare(few, few).whole
    many_values = bundle(permit(" || ".join(f'context.args.n == "v{number}"' for number in range(13))))
    assert not compare(few, many_values).whole, "more values of one argument than are tried"
    every = " && ".join(f"context.args has a{number} && context.args.a{number} > 2" for number in range(5))
    assert not compare(few, bundle(permit(every))).whole, "more combinations than are tried"
    for sums in ("context.args.n + context.args.m == 77", "-context.args.n > 7", "context.args.n * 3 < 7"):
        assert not compare(few, bundle(permit(sums))).whole, "values that cannot be read off"
    assert compare(few, bundle(permit("context.args.n > -7"))).whole
