"""The policy language beyond arguments: annotations, circumstances, shadow mode, and what is said where they are wrong.

The language itself is shown by tests/cases/language, a bundle whose cases run here.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tidegate.errors import BundleFault
from tidegate.policy.bundle import Bundle, bundle_of, load_bundle
from tidegate.policy.cases import CaseResult, run_cases
from tidegate.policy.check import check_bundle
from tidegate.policy.engine import Engine, ToolFacts, Verdict
from tidegate.policy.facts import Facts
from tidegate.policy.history import World, what_can_be_called
from tidegate.policy.labels import TAINTING
from tidegate.settings import Settings

LANGUAGE = Path(__file__).parent.parent / "cases" / "language"
TOOLS = [ToolFacts("fs", "read", ("read",)), ToolFacts("fs", "write", ())]
ALL = '@id("all") permit (principal, action, resource);'


@dataclass(frozen=True)
class Principal:
    user: str = "alice"
    agent: str = "claude-code"
    groups: tuple[str, ...] = ()


def bundle(policies: str, **files: str) -> Bundle:
    made = {"manifest.json": '{"v": 1, "name": "x"}', "policies/p.cedar": policies}
    more = {name.replace("_dot_", "."): text for name, text in files.items()}
    return bundle_of({name: text.encode() for name, text in (made | more).items()})


def engine(policies: str, **files: str) -> Engine:
    return Engine.build(bundle(policies, **files), TOOLS, {})


def evaluate(policies: str, facts: Facts, **files: str) -> Verdict:
    return engine(policies, **files).evaluate(Principal(), "fs", "read", {}, facts)


def problems(policies: str, **files: str) -> list[str]:
    return [str(problem) for problem in check_bundle(bundle(policies, **files))]


def forbid(condition: str, notes: str = "") -> str:
    return f'{ALL}\n@id("no") {notes} forbid (principal, action, resource) when {{ {condition} }};'


@pytest.mark.parametrize("result", run_cases(load_bundle(LANGUAGE)), ids=lambda found: found.case.note)
def test_the_language_means_what_its_cases_say(result: CaseResult) -> None:
    assert result.passed, result.sentence


def test_the_language_s_bundle_can_be_released() -> None:
    assert check_bundle(load_bundle(LANGUAGE)) == []


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ('@mode("live")', '@mode takes only "shadow"'),
        ('@mode("")', '@mode takes only "shadow"'),
        ("@mode", '@mode takes only "shadow"'),
        ('@approver("leads")', '@approver has a meaning only beside @effect("ask")'),
        ('@expires("1m")', '@expires has a meaning only beside @effect("ask")'),
        ('@effect("ask") @approver("")', "@approver takes"),
        ('@effect("ask") @approver(" leads")', "@approver takes"),
        ('@effect("ask") @expires("10")', "@expires takes a time such as"),
        ('@effect("ask") @expires("0s")', "@expires takes a time such as"),
        ('@effect("ask") @expires("8d")', "up to 7 days"),
        ('@effect("ask") @expires("99999999999d")', "@expires takes a time such as"),
        ('@effect("ask") @expires("1.5h")', "@expires takes a time such as"),
    ],
)
def test_an_annotation_with_a_wrong_value_is_a_problem_and_no_engine_is_built_of_it(notes: str, words: str) -> None:
    text = forbid("true", notes)
    assert [told for told in problems(text) if words in told and "policies/p.cedar:2" in told]
    with pytest.raises(BundleFault, match="@"):
        engine(text)


def test_an_annotation_that_is_nearly_one_of_ours_is_pointed_out_and_one_of_somebody_s_own_is_not() -> None:
    [told] = problems(forbid("true", '@resaon("x") @owner("team-a")'))
    assert "'@resaon' means nothing; did you mean '@reason'?" in told
    assert not [found for found in check_bundle(bundle(forbid("true", '@resaon("x")'))) if found.fatal]


@pytest.mark.parametrize("value", ["", '("then")'])
def test_what_marks_compiled_rules_hides_no_written_one_from_the_results_of_a_shadow(value: str) -> None:
    text = forbid("true", f"@until_shadow{value}")
    assert problems(text) == [
        'policies/p.cedar:2: @until_shadow is of compiled grants alone; to try a rule out write @mode("shadow")'
    ]
    with pytest.raises(BundleFault, match="until_shadow"):
        engine(text)
    watching = "v: 1\ngrants:\n- {id: a, team: x, tools: {fs: [read]}, limits: {a: b}}\n"
    watching += "- {id: b, team: x, tools: {fs: [read]}, limits: {a: c}, mode: shadow}\n"
    grants = bundle(ALL, grants_dot_yaml=watching).grants
    assert "@until_shadow" in grants.cedar
    assert problems(ALL, grants_dot_yaml=watching) == []


OPEN_WHERE_UNKNOWN = [
    "when { context has network && !context.network.ip.isInRange(OFFICE) }",
    "when { !context.network.ip.isInRange(OFFICE) && context has network }",
    'when { context.taint.contains("x") && (context has network && context.network.ip.isLoopback()) }',
    "when { context has network } unless { context.network.ip.isInRange(OFFICE) }",
    "unless { !(context has network) || context.network.ip.isInRange(OFFICE) }",
    "when { if context has network then context.network.ip.isLoopback() else false }",
    "when { (context has network && context.network.ip.isLoopback()) || (context has network && true) }",
    "when { context has network.ip && context.network.ip.isLoopback() }",
]
SHUT_WHERE_UNKNOWN = [
    "unless { context has network && context.network.ip.isInRange(OFFICE) }",
    "when { !(context has network) || !context.network.ip.isInRange(OFFICE) }",
    "when { !context.network.ip.isInRange(OFFICE) }",
    "when { if context has network then context.network.ip.isLoopback() else true }",
    'when { context.args has path && context.args.path == "x" }',
    "when { (context has network && context.network.ip.isLoopback()) || context.args has path }",
]


@pytest.mark.parametrize("condition", OPEN_WHERE_UNKNOWN)
@pytest.mark.parametrize("notes", ["", '@effect("ask")', '@mode("shadow")'])
def test_a_forbid_that_lets_calls_pass_where_the_address_is_unknown_is_pointed_out(condition: str, notes: str) -> None:
    text = f'{ALL}\n@id("no") {notes} forbid (principal, action, resource) {condition};'
    text = text.replace("OFFICE", 'ip("10.0.0.0/8")')
    found = check_bundle(bundle(text))
    assert [(one.path, one.line, one.rule, one.fatal) for one in found] == [("policies/p.cedar", 2, "no", False)]
    assert "where `network` is not known this rule lets the call pass" in found[0].sentence
    assert "`forbid … unless { context has network && context.network.ip.isInRange(…) }`" in found[0].sentence
    if not notes and condition.startswith(("when { context has", "unless", "when { if", "when { (")):
        assert evaluate(text, Facts()).effect == "allow"


@pytest.mark.parametrize("condition", SHUT_WHERE_UNKNOWN)
def test_a_forbid_that_may_hold_where_the_address_is_unknown_is_let_be(condition: str) -> None:
    text = f'{ALL}\n@id("no") forbid (principal, action, resource) {condition};'
    text = text.replace("OFFICE", 'ip("10.0.0.0/8")')
    assert problems(text) == []
    if "args" not in condition:
        assert evaluate(text, Facts()).effect == "deny"


def test_a_permit_asks_first_and_is_let_be() -> None:
    assert problems('@id("p") permit (principal, action, resource) when { context has network && true };') == []


OFFICE_IS = "context.network.ip.isInRange(OFFICE)"


@pytest.mark.parametrize(
    "condition",
    [
        f"unless {{ context has network && {OFFICE_IS} }}",
        f'unless {{ context has network && context.protocol like "2*" && {OFFICE_IS} }}',
        f'unless {{ context.protocol == "x" || (context has network && !{OFFICE_IS}) }}',
        f"when {{ !(context has network && {OFFICE_IS}) }}",
        f'when {{ context.protocol like "2*" && !(context has network && {OFFICE_IS}) }}',
        f'when {{ context.protocol == "x" || !(context has network && {OFFICE_IS}) }}',
        f'when {{ context.protocol like "2*" }} unless {{ context has network && {OFFICE_IS} }}',
    ],
)
def test_a_permit_that_holds_where_the_address_is_unknown_is_pointed_out(condition: str) -> None:
    text = f'@id("p") permit (principal, action, resource) {condition};'.replace("OFFICE", 'ip("10.0.0.0/8")')
    found = check_bundle(bundle(text))
    assert [(one.path, one.line, one.rule, one.fatal) for one in found] == [("policies/p.cedar", 1, "p", False)]
    assert "where `network` is not known this rule permits the call all the same" in found[0].sentence
    assert "`permit … when { context has network && context.network.ip.isInRange(…) }`" in found[0].sentence
    assert evaluate(text, Facts(protocol="2026-07-28")).effect == "allow"


@pytest.mark.parametrize(
    "condition",
    [
        f"when {{ context has network && {OFFICE_IS} }}",
        f"when {{ context has network && !{OFFICE_IS} }}",
        f"unless {{ !(context has network) || {OFFICE_IS} }}",
        f"when {{ context has network }} unless {{ context has network && {OFFICE_IS} }}",
        f"when {{ !(context has network) || {OFFICE_IS} }}",  # that is meant
        f"when {{ if context has network then {OFFICE_IS} else true }}",
        "unless { context has network }",
        'when { context.args has path } unless { context.args has path && context.args.path == "x" }',
    ],
)
def test_a_permit_that_says_what_holds_where_the_address_is_unknown_is_let_be(condition: str) -> None:
    text = f'@id("p") permit (principal, action, resource) {condition};'.replace("OFFICE", 'ip("10.0.0.0/8")')
    assert problems(text) == []


def test_every_circumstance_that_may_be_absent_is_pointed_out_once_in_a_rule() -> None:
    told = problems(forbid('context has protocol && context has time && context.protocol == "x"'))
    assert len(told) == 2
    assert {name for name in ("protocol", "time", "now") for one in told if f"where `{name}` is" in one} == {
        "protocol",
        "time",
    }


@pytest.mark.parametrize(
    ("condition", "schema", "told"),
    [
        ('context.taint.contains("sensitve")', "", "'sensitve', which is no label that is known; did you mean 'sens"),
        ('context.taint.containsAny(["sensitive",\n "read-privat"])', "", "did you mean 'read-private'?"),
        ('!context.taint.containsAll(["pci-cards"])', 'action "pci-card" in ["call"];', "did you mean 'pci-card'?"),
        ('context.taint.contains("other")', 'action "pci" in ["call"];', "known are pci, read-private, returns-"),
    ],
)
def test_a_taint_that_no_session_takes_on_is_pointed_out_in_its_line(condition: str, schema: str, told: str) -> None:
    declared = f'action "call"; {schema}' if schema else ""
    found = check_bundle(bundle(forbid(f"true\n && {condition}", '\n@mode("shadow")'), schema_dot_cedarschema=declared))
    [problem] = [one for one in found if not one.fatal]
    assert told in problem.sentence
    assert (problem.rule, problem.line) == ("no", 5 if "\n" in condition else 4)


@pytest.mark.parametrize("mark", ["sensitive", "read-private", "returns-untrusted", "pci", "quite-another"])
def test_a_taint_that_a_session_may_take_on_is_let_be(mark: str) -> None:
    schema = "" if mark == "quite-another" else 'action "call"; action "pci" in ["call"];'
    found = check_bundle(bundle(forbid(f'context.taint.contains("{mark}")'), schema_dot_cedarschema=schema))
    assert not [problem for problem in found if not problem.fatal]


def test_the_usual_taints_are_those_that_a_gateway_marks_sessions_with() -> None:
    assert Settings().taint_labels == TAINTING


def test_a_long_condition_is_looked_into() -> None:
    [told] = problems(forbid(" && ".join(["context has network", *['context.taint.contains("x")'] * 100])))
    assert "where `network` is not known" in told


def test_an_approver_that_is_other_in_capitals_is_pointed_out() -> None:
    for name in ("Other", "OTHER"):
        [told] = problems(ALL + asking("a", f'@approver("{name}")'))
        assert f"the group '{name}' approves; for anybody but the requester write 'other'" in told
    grant = "v: 1\ngrants:\n- {id: a, team: x, tools: {fs: [read]}, ask: true, approver: Other}\n"
    [told] = problems(ALL, grants_dot_yaml=grant)
    assert told.startswith("grants.yaml:3: the group 'Other' approves")
    assert problems(ALL + asking("a", '@approver("others")') + asking("b", '@approver("others")')) == []


def asking(name: str, notes: str, action: str = "action") -> str:
    return f'@id("{name}") @effect("ask") {notes} forbid (principal, {action}, resource);\n'


@pytest.mark.parametrize(
    ("notes", "approver", "expires_s"),
    [
        (("", ""), "", 0),
        (('@approver("other")', ""), "other", 0),
        (("", '@approver("leads")'), "leads", 0),
        (('@approver("other")', '@approver("leads")'), "leads", 0),
        (('@approver("leads")', '@approver("audit")'), "leads", 0),  # rule a before rule b
        (('@expires("2h")', '@expires("90s")'), "", 90),
        (('@expires("1d")', ""), "", 86_400),
    ],
)
def test_the_strictest_of_the_asking_rules_says_who_approves_and_for_how_long(
    notes: tuple[str, str], approver: str, expires_s: int
) -> None:
    text = ALL + asking("a", notes[0]) + asking("b", notes[1])
    verdict = evaluate(text, Facts())
    assert (verdict.effect, verdict.rules) == ("ask", ("a", "b"))
    assert (verdict.approver, verdict.expires_s) == (approver, expires_s)


def test_questions_to_two_groups_that_may_meet_are_pointed_out() -> None:
    one, other = '@approver("leads")', '@approver("audit")'
    [told] = problems(ALL + asking("a", one) + asking("b", other))
    assert "'a' and 'b' may ask about the same call" in told
    apart = asking("a", one, 'action == Action::"fs/read"') + asking("b", other, 'action == Action::"fs/write"')
    assert problems(ALL + apart) == []
    assert problems(ALL + asking("a", one) + asking("b", one)) == []
    assert problems(ALL + asking("a", one) + asking("b", f'@mode("shadow") {other}')) == []


@pytest.mark.parametrize(
    ("condition", "lacking"),
    [
        ("context.time.hour < 9", "time"),
        ('context.now < datetime("2026-01-01")', "now"),
        ("context.network.ip.isLoopback()", "network"),
        ('context.protocol == "2025-11-25"', "protocol"),
    ],
)
def test_a_rule_that_looks_at_what_is_not_known_denies_and_names_it(condition: str, lacking: str) -> None:
    verdict = evaluate(forbid(condition), Facts())
    assert (verdict.effect, verdict.reason, verdict.rules) == ("deny", "evaluation-error", ("no",))
    assert f"`{lacking}`" in verdict.message
    asked = evaluate(forbid(f"context has {lacking} && {condition}"), Facts())
    assert asked.effect == "allow"


def test_only_the_circumstances_that_matter_for_the_tool_are_needed() -> None:
    made = engine(
        f"{ALL}\n"
        '@id("t") forbid (principal, action == Action::"fs/write", resource) when { context.taint.contains("x") };\n'
        '@id("n") forbid (principal in Group::"eng", action == Action::"fs/write", resource)\n'
        "when { !(context has network) || context.time.hour < 6 };\n"
        '@id("s") @mode("shadow") forbid (principal, action, resource) when { context.protocol == "x" };'
    )
    eng = Principal(groups=("eng",))
    assert made.needs_facts(Principal(), "fs", "read") == frozenset()
    assert made.needs_facts(Principal(), "fs", "write") == {"taint"}
    assert made.needs_facts(eng, "fs", "write") == {"taint", "network", "time"}
    assert made.unshadowed().needs_facts(eng, "fs", "read") == {"protocol"}
    assert made.standing(Principal(), "fs", "read") is not None
    assert made.standing(Principal(), "fs", "write") is None


@pytest.mark.parametrize(
    "facts",
    [
        Facts(now_us=-5, address="::1%lo", protocol="\ud800"),
        Facts(now_us=2**62, address="10.0.0.0/8"),
        Facts(address="999.1.1.1", taint=('"}', "\\", "a\nb"), protocol='"],"args":{"x":1}'),
        Facts(taint=("\udfff",)),
    ],
)
def test_the_engine_takes_any_facts_and_none_of_them_becomes_anything_else(facts: Facts) -> None:
    needs_all = 'context has network && context has time && context has protocol && context.taint.contains("x")'
    assert evaluate(f'@id("p") permit (principal, action, resource) when {{ {needs_all} }};', facts).effect == "deny"
    smuggled = '@id("p") permit (principal, action, resource) when { context.args has x };'
    looks = '@id("no") forbid (principal, action, resource) when { context.protocol == "y" && context.taint == ["y"] };'
    assert evaluate(smuggled + looks, facts).effect == "deny"


def test_the_time_zone_of_the_manifest_is_that_of_the_clock() -> None:
    at_midnight = Facts(now_us=1_795_388_400_000_000)  # 2026-11-22T23:00:00Z
    kolkata = '{"v": 1, "name": "x", "timezone": "Asia/Kolkata"}'
    text = '@id("p") permit (principal, action, resource) when { context.time == %s };'
    here = text % '{"hour": 23, "minute": 0, "weekday": 7, "date": "2026-11-22"}'
    there = text % '{"hour": 4, "minute": 30, "weekday": 1, "date": "2026-11-23"}'
    assert evaluate(here, at_midnight).effect == "allow"
    assert evaluate(there, at_midnight, manifest_dot_json=kolkata).effect == "allow"


@pytest.mark.parametrize("zone", ["Europe/Berlln", "../../etc/passwd", "", "UTC+1", "/etc/localtime"])
def test_a_zone_that_nobody_knows_is_a_problem_and_no_engine_is_built_of_it(zone: str) -> None:
    manifest = msgspec.json.encode({"v": 1, "name": "x", "timezone": zone}).decode()
    assert "is not known" in problems(ALL, manifest_dot_json=manifest)[0]
    with pytest.raises(BundleFault, match="is not known"):
        engine(ALL, manifest_dot_json=manifest)


def test_what_unshadowed_shares_is_parsed_once() -> None:
    made = engine(forbid("context.args has x", '@mode("shadow")'))
    would = made.unshadowed()
    assert made.shadowing
    assert made.rules == would.rules
    assert would.evaluate(Principal(), "fs", "read", {"x": 1}).rules == ("no",)
    assert made.evaluate(Principal(), "fs", "read", {"x": 1}).rules == ("all",)
    assert made._index.slice(made.rules) is would._index.slice(would.rules)
    assert not engine(ALL).shadowing


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("expect: allow", "one of `user` and `service`"),
        ("user: a, service: b, expect: allow", "one of `user` and `service`"),
        ("user: a, address: nowhere, expect: allow", "nowhere"),
        ("user: a, at: yesterday, expect: allow", "$.at"),
        ("user: a, approver: other, expect: allow", "expects `ask`"),
        ("user: a, shadow: maybe, expect: allow", "`shadow` takes allow, deny, ask; not 'maybe'"),
        ("user: a, expect: permit", "`expect` takes allow, deny, ask; not 'permit'"),
        ("user: a, expect: allow, group: x", "'group' is not known in a case; did you mean 'groups'?"),
        ("user: a, expect: allow, at: 2026-13-45T10:00:00", "month must be in 1..12"),
        ("user: a, expect: allow, arguments: {a: " + "[" * 100_000, "nests too deep: more than 32 levels"),
    ],
)
def test_a_case_that_says_what_cannot_be_is_refused_with_its_line(case: str, words: str) -> None:
    [told] = problems(ALL, cases_dot_yaml=f"- {{note: n, server: fs, tool: read, {case}}}")
    assert words in told
    assert "cases.yaml:1" in told


def test_a_slip_in_a_case_is_told_at_the_line_of_its_key() -> None:
    case = "- note: n\n  user: u\n  server: fs\n  group: [eng]\n  tool: read\n  expect: permit\n"
    [told] = problems(ALL, cases_dot_yaml=case)
    assert told.startswith("cases.yaml:4: 'group' is not known in a case; did you mean 'groups'?")
    [told] = problems(ALL, cases_dot_yaml=case.replace("group:", "groups:"))
    assert told.startswith("cases.yaml:6: `expect` takes allow, deny, ask; not 'permit'")


CASE_SCHEMA = """
entity Group; entity User in [Group]; entity Server;
action call;
action "fs/read", "fs/write" in [call] appliesTo { principal: [User], resource: [Server], context: {} };
"""


@pytest.mark.parametrize(
    ("server", "tool", "words"),
    [
        ("fs", "raed", "cases.yaml:1: the schema has no tool 'fs/raed'; did you mean 'fs/read'?"),
        ("sf", "read", "cases.yaml:1: the schema has no server 'sf'; did you mean 'fs'?"),
        ("fs", "read", ""),
        ("fs", "prompts/get", ""),
    ],
)
def test_a_case_about_a_tool_that_the_schema_does_not_have_proves_nothing_and_is_refused(
    server: str, tool: str, words: str
) -> None:
    case = f"- {{note: n, user: u, server: {server}, tool: {tool}, expect: deny}}"
    rules = '@id("none") forbid (principal, action, resource);'
    assert problems(rules, cases_dot_yaml=case, schema_dot_cedarschema=CASE_SCHEMA) == ([words] if words else [])
    assert problems(rules, cases_dot_yaml=case) == []


LABELLED = """
entity Group; entity User in [Group]; entity Server { labels: Set<String> };
action call; action inner in [call]; action egress in [call];
action "mail/send", "mail/\\u{6f}wn" in [call, "inner", Action::"egress"]
  appliesTo { principal: [User], resource: [Server], context: {} };
action "mail/read" in ["call", "inner"] appliesTo { principal: [User], resource: [Server], context: {} };
"""
BY_LABEL = f"""{ALL}
@id("kept") forbid (principal, action in Action::"egress", resource);
@id("outside") forbid (principal, action, resource) unless {{ resource.labels.contains("inner") }};"""


@pytest.mark.parametrize(
    ("case", "schema", "told"),
    [
        ("tool: send, expect: deny, rules: [kept]", LABELLED, ""),
        ("tool: own, expect: deny, rules: [kept]", LABELLED, ""),
        ("tool: read, expect: allow", LABELLED, ""),
        ("tool: send, labels: [inner], expect: allow", LABELLED, ""),
        ("tool: send, labels: [], expect: deny, rules: [outside]", LABELLED, ""),
        ("tool: send, expect: deny, rules: [kept]", "", "no label of mail/send is known, and rules go by labels: say"),
        ("tool: send, expect: deny, rules: [outside]", "", ""),
        ("tool: send, labels: [], expect: deny, rules: [kept]", "", "deny by outside (forbidden-by-rule), expected"),
    ],
)
def test_a_case_is_about_the_tool_with_the_labels_that_the_schema_declares(case: str, schema: str, told: str) -> None:
    case = f"- {{note: n, user: u, server: mail, {case}}}"
    [result] = run_cases(bundle(BY_LABEL, cases_dot_yaml=case, schema_dot_cedarschema=schema))
    assert result.passed is not bool(told), result.sentence
    assert told in result.sentence
    assert ("labels: […]" in result.sentence) is ("labels: […]" in told or told.startswith("no label"))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "expect: allow, shadow: allow",
            "with the rules in shadow mode deny by no (forbidden-by-rule), expected allow",
        ),
        ("expect: deny, shadow: deny", "allow by all (granted), expected deny"),
        ("expect: ask, approver: leads", "allow by all (granted), expected ask for 'leads' to approve"),
    ],
)
def test_a_case_that_fails_says_what_was_found(case: str, words: str) -> None:
    text = forbid("true", '@mode("shadow")')
    [told] = problems(text, cases_dot_yaml=f"- {{note: n, user: a, server: fs, tool: read, {case}}}")
    assert words in told


def test_what_can_be_called_tells_what_it_depends_on() -> None:
    text = (
        '@id("r") permit (principal, action == Action::"fs/read", resource) when { context.time.hour > 8 };\n'
        '@id("w") permit (principal, action == Action::"fs/write", resource)\n'
        "when { context.args.n > 1 && context.taint == [] };"
    )
    world = World("acme", "main", 0)
    world.facts = lambda: TOOLS  # type: ignore[method-assign]
    found = {
        one.action: (one.answer, one.reason, one.message)
        for one in what_can_be_called(world, bundle(text), Principal(), "")
    }
    assert found == {
        "read": ("by-arguments", "depends-on-circumstances", "It depends on the time."),
        "write": ("by-arguments", "depends-on-arguments", "It depends on the arguments, what the session has read."),
    }


def test_what_depends_on_arguments_names_its_rules_and_says_where_a_person_is_asked_first() -> None:
    text = (
        '@id("r") permit (principal, action == Action::"fs/read", resource) when { context.args.n > 1 };\n'
        '@id("ask") @effect("ask") forbid (principal, action == Action::"fs/read", resource);\n'
        '@id("w") permit (principal, action == Action::"fs/write", resource);\n'
        '@id("big") @effect("ask") forbid (principal, action == Action::"fs/write", resource)\n'
        "when { context.args.n > 1 };"
    )
    world = World("acme", "main", 0)
    world.facts = lambda: TOOLS  # type: ignore[method-assign]
    found = {one.action: one for one in what_can_be_called(world, bundle(text), Principal(), "")}
    read, write = found["read"], found["write"]
    assert (read.answer, read.asks, read.rules) == ("by-arguments", "all", ("ask", "r"))
    assert read.message == "It depends on the arguments. A person is asked first of every call that is not denied."
    assert (write.answer, write.asks, write.rules) == ("by-arguments", "some", ("big", "w"))
    assert write.message == "It depends on the arguments. Of some calls a person is asked first."
