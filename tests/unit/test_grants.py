"""grants.yaml: what it means, the Cedar that one can see, and what is said of a slip."""

from dataclasses import dataclass
from typing import Any

import pytest

from tidegate.errors import BundleFault
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.check import check_bundle
from tidegate.policy.engine import Engine, ToolFacts, Verdict
from tidegate.policy.grants_cedar import compile_grants

MANIFEST = b'{"v": 1, "name": "grants"}'
TOOLS = [
    ToolFacts("git", "git_log", ("read",)),
    ToolFacts("git", "git_show", ("read",)),
    ToolFacts("git", "git_reset"),
    ToolFacts("bank", "pay"),
    ToolFacts("time", "now", ("read",)),
]
SERVERS: dict[str, tuple[str, ...]] = {"git": (), "bank": (), "time": ()}
SCHEMA = b"""
entity Group in [Group];
entity User in [Group];
entity Server { labels: Set<String> };
type Agent = { id: String };
action call, read;
action "git/git_log" in [call, read] appliesTo { principal: [User], resource: [Server],
  context: { agent: Agent, args: { repo_path: String, max_count?: Long, filter?: { author?: String } } } };
action "git/git_show" in [call, read] appliesTo { principal: [User], resource: [Server],
  context: { agent: Agent, args: { repo_path: String } } };
action "bank/pay" in [call] appliesTo { principal: [User], resource: [Server],
  context: { agent: Agent, args: { amount: decimal } } };
"""


@dataclass(frozen=True)
class Principal:
    user: str = "alice"
    groups: tuple[str, ...] = ("eng",)
    agent: str = "claude-code"
    kind: str = "user"


def bundle(grants: str, **more: bytes) -> Bundle:
    """`grants` are the entries; `more` other files, "__" for "/" and "_dot_" for "."."""
    files = {name.replace("__", "/").replace("_dot_", "."): content for name, content in more.items()}
    return bundle_of({"manifest.json": MANIFEST, "grants.yaml": f"v: 1\ngrants:\n{grants}".encode(), **files})


def decide(
    grants: str, server: str, tool: str, arguments: dict[str, Any], who: Principal | None = None, **more: bytes
) -> Verdict:
    engine = Engine.build(bundle(grants, **more), TOOLS, SERVERS)
    return engine.evaluate(who or Principal(), server, tool, arguments)


def problems(grants: str, **more: bytes) -> list[str]:
    return [str(problem) for problem in check_bundle(bundle(grants, **more))]


READS = "- {id: reads, team: eng, tools: {git: [git_log, git_show]}, limits: {repo_path: data/shop}}\n"


def test_a_grant_allows_its_team_its_tools_and_nothing_else() -> None:
    here = {"repo_path": "data/shop"}
    assert decide(READS, "git", "git_log", here).rules == ("reads/git",)
    assert decide(READS, "git", "git_reset", here).reason == "tool-not-granted"
    assert decide(READS, "git", "git_log", here, Principal(groups=("sales",))).reason == "tool-not-granted"


def test_a_refusal_by_a_limit_names_the_rule_and_says_what_is_allowed() -> None:
    verdict = decide(READS, "git", "git_log", {"repo_path": "/srv/payroll"})
    assert (verdict.effect, verdict.rules) == ("deny", ("reads/git:limits",))
    assert verdict.told == "The grant 'reads' allows this only where repo_path is data/shop."


def test_a_grant_may_say_the_refusal_in_its_own_words() -> None:
    own = READS.replace("}}\n", '}, reason: "Only \\"the shop\\" is read.", advice: Ask ops.}\n')
    assert decide(own, "git", "git_log", {}).told == 'Only "the shop" is read. Ask ops.'


def test_the_cedar_is_the_same_each_time_and_does_not_depend_on_how_the_yaml_is_laid_out() -> None:
    spread = """v: 1
# a comment
grants:
  - id: "reads"
    limits:
      repo_path: "data/shop"
    tools:
      git:
        - git_log
        - git_show
    team: [eng]
"""
    assert compile_grants(spread).cedar == bundle(READS).grants.cedar != ""


def test_the_cedar_can_be_read() -> None:
    assert bundle("- {id: clock, team: eng, agent: [a, b], tools: {time: '*'}}").grants.cedar == (
        "// Made from grants.yaml, which is the source: change it there.\n\n"
        '@id("clock/time")\npermit (\n  principal in Group::"eng",\n  action,\n  resource == Server::"time"\n)\n'
        'when { (context.agent.id == "a" || context.agent.id == "b") };\n'
    )


def test_the_digest_covers_the_source_and_the_compiled_rules_are_among_the_policies() -> None:
    one, other = bundle(READS), bundle(READS + "# a remark\n")
    assert one.digest != other.digest
    assert one.policies == other.policies
    assert Bundle.from_bytes(one.canonical) == one


LIMITS = [
    ("repo_path: [a, b]", {"repo_path": "b"}, {"repo_path": "c"}),
    ("repo_path: {like: 'docs/*'}", {"repo_path": "docs/x"}, {"repo_path": "src/docs/x"}),
    ("repo_path: {like: ['a*', '*b']}", {"repo_path": "xb"}, {"repo_path": "x"}),
    ("repo_path: {below: docs}", {"repo_path": "docs/a/b"}, {"repo_path": "docs/../etc"}),
    ("repo_path: {below: docs/}", {"repo_path": "docs"}, {"repo_path": "docsx"}),
    ("repo_path: {below: 'a*'}", {"repo_path": "a*/x"}, {"repo_path": "ab/x"}),
    ("max_count: {at_most: 50}", {"max_count": 50}, {"max_count": 51}),
    ("max_count: {at_most: 50}", {"max_count": 1.0}, {}),
    ("max_count: {at_most: 50, at_least: 2}", {"max_count": 2}, {"max_count": 1}),
    ("max_count: {at_most: 50, optional: true}", {}, {"max_count": 51}),
    ("amount: {at_most: 99.95}", {"amount": 99}, {"amount": 99.96}),
    ("amount: [1.5, 2]", {"amount": 2}, {"amount": 2.5}),
    ("force: false", {"force": False}, {"force": True}),
    ("force: {absent: true}", {}, {"force": False}),
    ("force: {equals: true}", {"force": True}, {"force": None}),
    ("tags: {only: [a, b]}", {"tags": ["a"]}, {"tags": ["a", "c"]}),
    ("filter.author: alice", {"filter": {"author": "alice"}}, {"filter": {}}),
    ("filter.author: {equals: alice, optional: true}", {}, {"filter": {"author": "bob"}}),
    ("'x-y.if': 3", {"x-y": {"if": 3}}, {"x-y": {"if": 4}}),
    ("filter.author: {absent: true}", {"filter": {}}, {"filter": {"author": "x"}}),
    ('repo_path: "a\\"b\\\\c\\nd"', {"repo_path": 'a"b\\c\nd'}, {"repo_path": "a"}),
]


@pytest.mark.parametrize(("limit", "allowed", "denied"), LIMITS, ids=[limit for limit, _, _ in LIMITS])
def test_a_limit_allows_what_it_says_and_no_more(limit: str, allowed: dict[str, Any], denied: dict[str, Any]) -> None:
    grants = f"- {{id: g, team: eng, tools: {{git: [git_log]}}, limits: {{{limit}}}}}\n"
    assert decide(grants, "git", "git_log", allowed).effect == "allow"
    refused = decide(grants, "git", "git_log", denied)
    assert (refused.effect, refused.rules) == ("deny", ("g/git:limits",))


def test_grants_add_up_also_where_one_of_them_has_limits() -> None:
    both = READS + "- {id: lead, user: bob, tools: {git: '*'}}\n"
    bob = Principal("bob", ("eng",))
    assert decide(both, "git", "git_log", {"repo_path": "/srv"}, bob).rules == ("lead/git",)
    assert decide(both, "git", "git_log", {"repo_path": "/srv"}).rules == ("reads/git:limits",)


def test_whole_numbers_and_fractions_of_one_argument_may_be_mixed() -> None:
    grants = (
        "- {id: small, team: eng, tools: {bank: [pay]}, limits: {amount: {at_most: 9.50}}}\n"
        "- {id: large, team: cfo, tools: {bank: [pay]}, limits: {amount: {at_most: 1000}}}\n"
    )
    both = Principal(groups=("eng", "cfo"))
    assert decide(grants, "bank", "pay", {"amount": 9.5}).effect == "allow"
    assert decide(grants, "bank", "pay", {"amount": 10}).effect == "deny"
    assert decide(grants, "bank", "pay", {"amount": 10}, both).rules == ("large/bank",)


def test_everybody_labels_and_users_choose_as_they_say() -> None:
    grants = (
        "- {id: all-read, team: '*', tools: {'*': {labels: [read]}}}\n"
        "- {id: some, team: ops, user: [eve, 'Dan \"D\"'], tools: {git: {labels: [read]}, bank: [pay]}}\n"
    )
    stranger, eve, dan = Principal("zoe", ()), Principal("eve", ()), Principal('Dan "D"', ())
    assert decide(grants, "time", "now", {}, stranger).rules == ("all-read",)
    assert decide(grants, "bank", "pay", {}, stranger).effect == "deny"
    assert decide(grants, "git", "git_show", {}, eve).rules == ("all-read", "some/git")
    assert decide(grants, "bank", "pay", {}, dan).rules == ("some/bank",)
    assert decide(grants, "bank", "pay", {}, Principal("x", ("ops",))).effect == "allow"


def test_an_agent_is_part_of_who() -> None:
    grants = "- {id: g, team: eng, agent: claude-code, tools: {time: '*'}}\n"
    assert decide(grants, "time", "now", {}).effect == "allow"
    assert decide(grants, "time", "now", {}, Principal(agent="other")).effect == "deny"


ASKS = """- id: pays
  team: finance
  tools: {bank: [pay]}
  limits: {amount: {at_most: 100.0, optional: true}}
  ask: {amount: {at_least: 50}}
"""


@pytest.mark.parametrize(
    ("arguments", "effect"),
    [({"amount": 49}, "allow"), ({"amount": 50}, "ask"), ({}, "ask"), ({"amount": 101}, "deny")],
)
def test_asking_begins_where_it_says_and_where_the_argument_is_left_out(arguments: Any, effect: str) -> None:
    assert decide(ASKS, "bank", "pay", arguments, Principal(groups=("finance",))).effect == effect


def test_who_is_granted_a_call_without_asking_is_not_asked() -> None:
    grants = ASKS + "- {id: cfo, user: carol, tools: {bank: '*'}}\n"
    assert decide(grants, "bank", "pay", {"amount": 60}, Principal("carol", ("finance",))).effect == "allow"
    always = ASKS.replace("ask: {amount: {at_least: 50}}", "ask: true")
    assert decide(always, "bank", "pay", {"amount": 1}, Principal("x", ("finance",))).rules == ("pays/bank:ask",)


def test_a_hand_written_forbid_rules_over_grants() -> None:
    forbid = b'@id("freeze") @reason("Frozen.") forbid (principal, action, resource == Server::"git");'
    assert decide(READS, "git", "git_log", {"repo_path": "data/shop"}, policies__x_dot_cedar=forbid).told == "Frozen."


SLIPS = [
    ("- {team: eng, tools: {git: '*'}}", 3, "has no `id`"),
    ("- {id: a b, team: eng, tools: {git: '*'}}", 3, "is not 1 to 64"),
    ("- {id: a, tools: {git: '*'}}", 3, "says not who"),
    ("- {id: a, team: eng}", 3, "has no `tools`"),
    ("- {id: a, teams: eng, tools: {git: '*'}}", 3, "'teams' is not known in a grant; did you mean 'team'?"),
    ("- id: a\n  team: eng\n  limit: {}\n  tools: {git: '*'}", 5, "did you mean 'limits'?"),
    ("- id: a\n  team: eng\n  tools:\n    Git: '*'", 6, "'Git' is no server's name"),
    ("- id: a\n  team: eng\n  tools: [git_log]", 5, "`tools` takes servers with their tools"),
    ("- id: a\n  team: eng\n  tools: {git: []}", 5, "is an empty list"),
    ("- id: a\n  team: eng\n  tools: {git: ['*', x]}", 5, "'*' is all of git"),
    ("- id: a\n  team: eng\n  tools: {'*': '*'}", 5, "choose by label"),
    ("- id: a\n  team: eng\n  tools: {git: {label: x}}", 5, "did you mean 'labels'?"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: {atmost: 3}", 7, "did you mean 'at_most'?"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: {at_most: x}", 7, "`at_most` takes one number"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: 1.23456", 7, "at most four places"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: 99999999999999999999", 7, "64-bit"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n:", 7, "{absent: true}"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: [1, x]", 7, "different kinds"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: {below: ../x}", 7, "without '..'"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: 1\n    n: 2", 8, "has 'n' twice"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  limits:\n    n: {optional: true}", 7, "says nothing"),
    ("- id: a\n  team: eng\n  tools: {git: '*'}\n  ask: maybe", 6, "takes true or false"),
    ("- id: a\n  team: 7\n  tools: {git: '*'}", 4, "in quotes"),
    ("- &x {id: a, team: eng, tools: {git: '*'}}\n- *x", 4, "alias"),
    ("- {id: a, team: eng, tools: {git: '*'}}\n- {id: a, team: ops, tools: {git: '*'}}", 4, "is taken in line 3"),
    ("- [", 3, "is not YAML"),
]


@pytest.mark.parametrize(("grants", "line", "words"), SLIPS, ids=[words for _, _, words in SLIPS])
def test_a_slip_is_named_with_its_line_and_no_engine_is_built_of_it(grants: str, line: int, words: str) -> None:
    found = problems(grants)
    assert len(found) == 1, found
    assert found[0].startswith(f"grants.yaml:{line}: ")
    assert words in found[0]
    with pytest.raises(BundleFault, match=r"grants\.yaml"):
        Engine.build(bundle(grants), (), {})


def test_every_wrong_grant_is_named_at_once() -> None:
    assert len(problems("- {id: a}\n- {team: b}\n- 3\n")) == 3


@pytest.mark.parametrize("text", ["", "3", "grants: []", "v: 2\ngrants: []", "v: 1\ngrant: []", "[" * 5_000])
def test_a_file_that_is_no_list_of_grants_is_a_problem_not_a_crash(text: str) -> None:
    found = check_bundle(bundle_of({"manifest.json": MANIFEST, "grants.yaml": text.encode()}))
    assert [problem.path for problem in found] == ["grants.yaml"]


def test_more_limited_grants_on_one_tool_than_can_be_weighed_against_each_other_are_a_problem_in_words() -> None:
    grants = [f"- {{id: g{n}, team: t{n}, tools: {{git: [git_log]}}, limits: {{n: {n}}}}}\n" for n in range(66)]
    assert problems("".join(grants[:65])) == []
    assert "name the teams that share limits in one grant" in problems("".join(grants))[0]


def test_more_grants_on_servers_than_are_compiled_are_a_problem() -> None:
    servers = ", ".join(f"s{number}: '*'" for number in range(400))
    [problem] = problems("".join(f"- {{id: {name}, team: x, tools: {{{servers}}}}}\n" for name in "abc"))
    assert "at most 1000 are compiled" in problem


def schema_problems(grants: str) -> list[str]:
    return problems(grants, schema_dot_cedarschema=SCHEMA)


def test_a_schema_that_names_no_server_says_nothing_against_one() -> None:
    found = problems("- {id: a, team: x, tools: {mail: '*'}}\n", schema_dot_cedarschema=b"action call, read;")
    assert not [told for told in found if "no server" in told]


def test_what_the_schema_knows_is_fine() -> None:
    assert schema_problems(READS + ASKS + "- {id: l, team: x, tools: {'*': {labels: [read]}}}\n") == []
    nested = "- {id: n, team: x, tools: {git: [git_log]}, limits: {filter.author: a, max_count: {absent: true}}}\n"
    assert schema_problems(nested) == []


@pytest.mark.parametrize(
    ("grants", "words"),
    [
        (
            "- id: a\n  team: x\n  tools: {git: [git_lgo]}",
            "5: the schema has no tool 'git/git_lgo'; did you mean 'git/git_log'?",
        ),
        (
            "- id: a\n  team: x\n  tools:\n    bank: [pay]\n    gti: '*'",
            "7: the schema has no server 'gti'; did you mean 'git'?",
        ),
        (
            "- id: a\n  team: x\n  tools: {bnk: {labels: [read]}}",
            "5: the schema has no server 'bnk'; did you mean 'bank'?",
        ),
        ("- id: a\n  team: x\n  tools: {mail: '*'}", "5: the schema has no server 'mail'; schema.cedarschema names"),
        (
            "- id: a\n  team: x\n  tools: {git: {labels: [raed]}}",
            "5: the schema has no label 'raed'; did you mean 'read'?",
        ),
        (
            "- id: a\n  team: x\n  tools: {git: [git_log]}\n  limits:\n    repo_pth: x",
            "7: git/git_log has no argument 'repo_pth'; did you mean 'repo_path'?",
        ),
        (
            "- id: a\n  team: x\n  tools: {git: [git_log, git_show]}\n  limits: {max_count: {at_most: 3}}",
            "6: git/git_show has no argument 'max_count'",
        ),
        (
            "- id: a\n  team: x\n  tools: {git: [git_log]}\n  limits: {filter.autor: x}",
            "6: git/git_log has no argument 'filter.autor'; did you mean 'author'?",
        ),
        ("- id: a\n  team: x\n  tools: {bank: [pay]}\n  limits: {amount: {at_most: 3}}", "`at_most: 3`: write 3.0"),
        ("- id: a\n  team: x\n  tools: {git: [git_log]}\n  limits: {max_count: {at_most: 3.5}}", "whole number"),
    ],
)
def test_a_misspelt_tool_label_or_argument_is_an_error_at_check(grants: str, words: str) -> None:
    found = schema_problems(grants)
    assert found
    assert any(problem.startswith("grants.yaml:") and words in problem for problem in found), found


def test_a_tool_that_no_server_has_now_is_pointed_out_at_its_line() -> None:
    [problem] = check_bundle(bundle(READS), [ToolFacts("git", "git_log")])
    assert (problem.path, problem.line, problem.fatal) == ("grants.yaml", 3, False)


def test_an_id_that_a_written_rule_has_is_refused() -> None:
    rule = b'@id("reads/git") permit (principal, action, resource);'
    assert any("is taken by" in problem for problem in problems(READS, policies__x_dot_cedar=rule))


def test_cases_run_over_grants() -> None:
    case = b"- {note: n, user: u, groups: [eng], server: git, tool: git_log, expect: allow}\n"
    [problem] = problems(READS, cases_dot_yaml=case)
    assert "deny by reads/git:limits (forbidden-by-rule), expected allow" in problem


def test_a_service_account_is_granted_by_its_own_name_and_by_its_team() -> None:
    named = "- {id: nightly, service: alice, tools: {git: [git_log]}}\n"
    robot = Principal(groups=(), kind="service")
    assert decide(named, "git", "git_log", {}, robot).rules == ("nightly/git",)
    assert decide(named, "git", "git_log", {}, Principal(groups=())).effect == "deny"
    both = "- {id: nightly, service: [alice, bob], user: carol, tools: {git: [git_log]}}\n"
    assert [
        decide(both, "git", "git_log", {}, who).effect
        for who in (robot, Principal("carol", ()), Principal("carol", (), kind="service"), Principal("bob", ()))
    ] == ["allow", "allow", "deny", "deny"]
    assert decide(READS, "git", "git_log", {"repo_path": "data/shop"}, Principal(kind="service")).effect == "allow"


def test_who_approves_and_for_how_long_a_question_stands_is_said_beside_ask() -> None:
    asks = "- {id: pays, team: eng, tools: {bank: [pay]}, ask: true, approver: leads, expires: 10m}\n"
    verdict = decide(asks, "bank", "pay", {})
    assert (verdict.effect, verdict.approver, verdict.expires_s) == ("ask", "leads", 600)
    plain = "- {id: pays, team: eng, tools: {bank: [pay]}, ask: true}\n"
    verdict = decide(plain, "bank", "pay", {})
    assert (verdict.effect, verdict.approver, verdict.expires_s) == ("ask", "", 0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("ask: true, expires: 10", "takes a time such as"),
        ("ask: true, expires: 8d", "up to 7 days"),
        ("expires: 10m", "only beside `ask`"),
        ("ask: false, approver: other", "only beside `ask`"),
        ("ask: true, approver: [a, b]", "single value"),
        ("mode: live", "only `shadow`"),
        ("services: x", "did you mean 'service'?"),
        ("service: '*'", "'*' is for `team`"),
    ],
)
def test_a_slip_in_who_approves_or_watches_is_named(entry: str, words: str) -> None:
    assert words in problems(f"- {{id: x, team: eng, tools: {{git: [git_log]}}, {entry}}}\n")[0]


LIMITED = "- {id: small, team: eng, tools: {git: [git_log]}, limits: {max_count: {at_most: 5}}}\n"
ASKED = "- {id: asked, team: eng, tools: {git: [git_log]}, ask: {max_count: {at_least: 3}}}\n"
WATCHED = "- {id: large, team: eng, tools: {git: [git_log]}, limits: {max_count: {at_most: 50}}, mode: shadow}\n"


@pytest.mark.parametrize("grants", [LIMITED, ASKED, LIMITED + ASKED, ""])
@pytest.mark.parametrize("count", [1, 4, 7, 70])
def test_a_grant_in_shadow_mode_changes_no_answer_and_would_add_up_as_any_other(grants: str, count: int) -> None:
    with_it = Engine.build(bundle(grants + WATCHED), TOOLS, SERVERS)
    call = (Principal(), "git", "git_log", {"max_count": count})
    if grants:
        assert with_it.evaluate(*call) == Engine.build(bundle(grants), TOOLS, SERVERS).evaluate(*call)
    else:
        assert with_it.evaluate(*call).reason == "tool-not-granted"
    live = Engine.build(bundle((grants + WATCHED).replace(", mode: shadow", "")), TOOLS, SERVERS)
    would, then = live.evaluate(*call), with_it.unshadowed().evaluate(*call)
    assert (then.effect, then.reason, then.told) == (would.effect, would.reason, would.told)
    assert tuple(rule.removesuffix(":then") for rule in then.rules) == would.rules
