"""limits.yaml: what it means, whom it meets, and what is said of a slip."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tidegate.errors import BundleFault
from tidegate.policy.budget_records import marks_in, records_in
from tidegate.policy.budgeting import Budgeting, Plan
from tidegate.policy.budgets import Measure, read_limits
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.check import check_bundle
from tidegate.policy.differences import compare

SCHEMA = """
entity Group in [Group];
entity User in [Group];
entity Server { labels: Set<String> };
action call, read;
action "git/git_log" in [call, read] appliesTo { principal: [User], resource: [Server], context: {} };
"""


@dataclass(frozen=True)
class Caller:
    user: str = "alice"
    groups: tuple[str, ...] = ("eng",)
    agent: str = "claude-code"
    tenant: str = "acme"
    kind: str = "user"

    @property
    def key(self) -> str:
        return repr(self)

    @property
    def subject_id(self) -> str:
        return f"s-{self.user}"


def bundle(limits: str, **more: str) -> Bundle:
    files = {
        "manifest.json": '{"v": 1, "name": "limits", "timezone": "Europe/Berlin"}',
        "policies/p.cedar": '@id("all") permit (principal, action, resource);',
        "limits.yaml": f"v: 1\n{limits}",
        **{name.replace("_dot_", "."): content for name, content in more.items()},
    }
    return bundle_of({path: text.encode() for path, text in files.items()})


def plan(limits: str, who: Caller | None = None, server: str = "git", tool: str = "git_log", **more: str) -> Plan:
    return Budgeting.of(bundle(limits, **more)).plan(who or Caller(), server, tool, ("read",))


def ids(found: Plan) -> list[str]:
    return [meter.limit.id for meter in found.meters]


def test_every_measure_is_read_with_its_units() -> None:
    read = read_limits(
        """
v: 1
limits:
  - id: all-of-them
    per: [tool, user]
    calls: 100/30 seconds
    burst: 20
    daily: {calls: 5000, bytes: 50MB, records: 10, cost: 12.5}
    concurrent: 5
prices: [{per_call: 0.0001}]
records: {git/git_log: "commits[].hash"}
"""
    )
    assert read.problems == ()
    assert read.limits[0].measures == (
        Measure("calls", 20, 100, 30_000),
        Measure("daily-calls", 5_000),
        Measure("daily-bytes", 50_000_000),
        Measure("daily-records", 10),
        Measure("daily-cost", 12_500_000),
        Measure("concurrent", 5),
    )
    assert read.limits[0].per == ("user", "tool")
    assert read.prices[0].per_call == 100


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("limits: [{per: user, calls: 1/minute}]", 2, "no `id`"),
        ("limits:\n- {id: a, calls: 1/minute}", 3, "add `per: user`"),
        ("limits:\n- {id: a, per: usr, calls: 1/minute}", 3, "'usr' is none of them"),
        ("limits:\n- {id: a, per: user}", 3, "bounds nothing"),
        ("limits:\n- id: a\n  per: user\n  calls: 100\n", 5, "written as 100/minute"),
        ("limits:\n- {id: a, per: user, calls: 0/minute}", 3, "to permit none, write a rule"),
        ("limits:\n- {id: a, per: user, calls: 1/fortnight}", 3, "written as 100/minute"),
        ("limits:\n- {id: a, per: user, burst: 3, concurrent: 1}", 3, "`burst` goes with `calls"),
        ("limits:\n- {id: a, per: user, dialy: {calls: 1}}", 3, "did you mean 'daily'?"),
        ("limits:\n- {id: a, per: user, daily: {byte: 1}}", 3, "did you mean 'bytes'?"),
        ("limits:\n- {id: a, per: user, daily: {bytes: 50 MegaBytes}}", 3, "written as 50MB"),
        ("limits:\n- {id: a, per: user, daily: {}}", 3, "bounds nothing"),
        ("limits:\n- {id: a, per: user, daily: {records: 2000000}}", 3, "from 1 to 1000000"),
        ("limits:\n- {id: a, per: user, daily: {cost: 1.00}}", 3, "nothing has a price"),
        ("limits:\n- {id: a, per: user, daily: {records: 5}}", 3, "to say where"),
        ("limits:\n- {id: a, per: user, concurrent: 1, away: ignore}", 3, "refuse, allow, local"),
        ("limits:\n- {id: a, per: user, concurrent: -1}", 3, "whole number from 1"),
        ("limits:\n- {id: a, user: '*', per: user, concurrent: 1}", 3, "'*' is for `team`"),
        ("limits:\n- {id: a, per: user, concurrent: 1}\n- {id: a, per: user, concurrent: 1}", 4, "taken in line 3"),
        ("limits:\n- {id: a, per: user, concurrent: 1, tools: git}", 3, "takes servers with their tools"),
        ("prices:\n- {tools: {git: '*'}}", 3, "names no amount"),
        ("prices:\n- {per_call: 0.00001}", 3, "four places"),
        ("records: {git: 'a[]'}", 2, "write server/tool"),
        ("records: {git/x: 'a.b'}", 2, "with [] for a list"),
        ("records: {git/x: 'a..b[]'}", 2, "leads to no records"),
        ("limit: []", 2, "did you mean 'limits'?"),
        ("limits: *x", 2, "alias"),
        ("limits: {", 2, "not YAML"),
    ],
)
def test_a_slip_is_told_with_its_line_and_what_was_meant(text: str, line: int, words: str) -> None:
    problems = read_limits(f"v: 1\n{text}").problems
    assert len(problems) == 1, problems
    assert problems[0].path == "limits.yaml"
    assert words in problems[0].sentence
    assert problems[0].line == line


@pytest.mark.parametrize("text", ["", "limits: []", "v: 2", "[1]", "v: 1\nlimits: 5", "\x00", "v: 1\n" + "[" * 3_000])
def test_no_text_is_taken_for_what_it_is_not(text: str) -> None:
    assert read_limits(text).problems


def test_a_limit_meets_whom_and_what_it_names() -> None:
    text = """
limits:
  - {id: everybody, per: user, concurrent: 9}
  - {id: team, team: [eng, ops], per: user, concurrent: 9}
  - {id: person, user: bob, per: user, concurrent: 9}
  - {id: service, service: bob, per: user, concurrent: 9}
  - {id: agent, agent: cursor, per: user, concurrent: 9}
  - {id: tool, tools: {git: [git_log]}, per: user, concurrent: 9}
  - {id: label, tools: {'*': {labels: [read]}}, per: user, concurrent: 9}
  - {id: server, tools: {time: '*'}, per: user, concurrent: 9}
"""
    assert ids(plan(text)) == ["everybody", "team", "tool", "label"]
    assert ids(plan(text, Caller("bob", ("x",), "cursor"))) == ["everybody", "person", "agent", "tool", "label"]
    assert ids(plan(text, Caller("bob", ("x",), kind="service"))) == ["everybody", "service", "tool", "label"]
    assert ids(plan(text, Caller(groups=()), "time", "now")) == ["everybody", "label", "server"]


def test_a_team_is_also_who_the_bundle_puts_into_it() -> None:
    def entity(kind: str, name: str, *groups: str) -> dict[str, Any]:
        parents = [{"type": "Group", "id": group} for group in groups]
        return {"uid": {"type": kind, "id": name}, "attrs": {}, "parents": parents}

    entities = json.dumps([entity("User", "alice", "night-shift"), entity("Group", "night-shift", "ops")])
    text = "limits: [{id: team, team: ops, per: user, concurrent: 9}]"
    assert ids(plan(text, Caller(groups=()), entities_dot_json=entities)) == ["team"]
    assert ids(plan(text, Caller("bob", ("night-shift",)), entities_dot_json=entities)) == ["team"]
    assert ids(plan(text, Caller("bob", ("eng",)), entities_dot_json=entities)) == []


def test_a_counter_is_of_the_combination_that_it_is_kept_per() -> None:
    def names(per: str) -> set[str]:
        text = f"limits: [{{id: x, per: {per}, daily: {{calls: 1}}}}]"
        callers = [Caller(user, agent=agent) for user in ("a", "b") for agent in ("x", "y")]
        tools = [("git", "log"), ("git", "show"), ("time", "log")]
        return {plan(text, who, *target).meters[0].counter.name for who in callers for target in tools}

    sizes = {"tenant": 1, "user": 2, "agent": 2, "server": 2, "tool": 3, "[user, agent]": 4, "[user, tool]": 6}
    assert {per: len(names(per)) for per in sizes} == sizes
    assert len(names("[tenant, user, agent, server, tool]")) == 12


def test_the_day_is_that_of_the_manifest_s_zone() -> None:
    assert plan("limits: [{id: x, per: user, daily: {calls: 1}}]").meters[0].counter.zone == "Europe/Berlin"


def test_the_first_price_that_covers_a_tool_counts() -> None:
    text = """
limits: [{id: x, per: user, daily: {cost: 1}}]
prices: [{tools: {git: [git_log]}, per_call: 0.01, per_mb: 1.5}, {tools: {git: '*'}, per_call: 0.5}]
"""
    assert plan(text).cost(2_000_000) == 3_010_000
    assert plan(text).cost(1) == 10_002, "a part of a millionth is a whole one"
    assert plan(text, tool="git_show").cost(10**9) == 500_000
    assert plan(text).meters[0].amount == 10_000
    assert not plan(text, server="time"), "what costs nothing meets no budget of cost"


def test_without_limits_there_is_nothing_to_meet() -> None:
    assert not plan("limits: []")
    assert not Budgeting.of(
        bundle_of({"manifest.json": b'{"v":1,"name":"x"}', "grants.yaml": b"v: 1\ngrants: []"})
    ).plan(Caller(), "git", "git_log", ())


@pytest.mark.parametrize(
    ("path", "result", "expected"),
    [
        ("items[].id", {"structuredContent": {"items": [{"id": 1}, {"id": 2}, {"id": 1}, {"x": 3}, 4]}}, 2),
        ("[].id", {"content": [{"type": "text", "text": '[{"id": "a"}, {"id": "b"}]'}]}, 2),
        ("rows[][]", {"structuredContent": {"rows": [[1, 2], [2, 3]]}}, 3),
        ("items[]", {"structuredContent": {"items": [{"a": 1}, {"a": 1}, {"a": 2}]}}, 2),
        ("items[].id", {"content": [{"type": "text", "text": "no JSON"}, {"type": "image"}]}, 0),
        ("items[].id", {"structuredContent": {"items": "none"}}, 0),
        ("items[].id", {}, 0),
    ],
)
def test_records_are_found_where_the_path_leads(path: str, result: dict[str, Any], expected: int) -> None:
    (counted,) = read_limits(f"v: 1\nrecords: {{git/x: '{path}'}}").records
    marks = records_in(counted, json.dumps(result).encode(), b"k" * 32)
    assert len(marks) == expected
    assert not marks & records_in(counted, json.dumps(result).encode(), b"j" * 32), "another tenant's are others"


@pytest.mark.parametrize("is_text", [False, True], ids=["structured", "text"])
@pytest.mark.parametrize("indent", [None, 1])
def test_records_of_a_large_result_are_those_of_its_parts(is_text: bool, indent: int | None) -> None:
    names = ["plain", 'a "quoted], [name', "back\\", "{", "é", "x" * 9_000, "y" * 40_000]
    items: list[Any] = [{"id": number % 2_900, "of": [names[number % 5], {"id": "no"}]} for number in range(3_000)]
    items += [{"id": name, "of": [[]] * 3_000} for name in names] + [4, None, [], {"x": 1}, {"id": names}]
    text = json.dumps({"before": items[:50], "items": items}, indent=indent)
    result = {"content": [{"type": "text", "text": text}]} if is_text else {"structuredContent": json.loads(text)}
    (counted,) = read_limits("v: 1\nrecords: {git/x: 'items[].id'}").records
    marks = records_in(counted, json.dumps(result, indent=indent).encode(), b"k" * 32)
    alone = [{"structuredContent": {"items": [item]}} for item in items[:2_900] + items[3_000:]]
    small = [records_in(counted, json.dumps(one).encode(), b"k" * 32) for one in alone]
    assert len(marks) == 2_900 + len(names) + 1
    assert len(marks & set().union(*small)) >= 2_900 + len(names) - 1, "but for what is too large to be read at once"


@pytest.mark.parametrize("entry", ["[]", '{"id":1}', "1", '{"id":[[],[],[]]}', '"x"'])
def test_of_a_result_that_is_all_entries_little_is_done_at_a_stretch_and_no_more_than_so_many_are_looked_at(
    entry: str,
) -> None:
    result = f'{{"structuredContent":{{"items":[{",".join([entry] * 200_000)}]}}}}'.encode()
    (counted,) = read_limits("v: 1\nrecords: {git/x: 'items[].id'}").records
    assert sum(1 for _ in marks_in(counted, result, b"k" * 32)) <= 50_000


@pytest.mark.parametrize(
    "result",
    [b"", b"[1]", b"{", b'{"structuredContent": 4}', b'{"content": [{"text": 4}, 4, {"text": "["}]}', b"[" * 100_000],
)
def test_what_is_no_result_holds_no_records(result: bytes) -> None:
    (counted,) = read_limits("v: 1\nrecords: {git/x: '[]'}").records
    assert records_in(counted, result, b"k" * 32) == set()


def test_check_tells_of_slips_and_of_what_the_schema_does_not_have() -> None:
    text = """
limits:
  - {id: a, per: user, concurrent: 1, tools: {git: [git_lag, git_log]}}
  - {id: b, per: user, concurrent: 1, tools: {'*': {labels: [raed]}}}
prices: [{tools: {git: [git_pull]}, per_call: 1}]
records: {git/other: "x[]"}
"""
    text = text.replace("prices:", "  - {id: c, per: user, concurrent: 1, tools: {gti: '*'}}\nprices:")
    problems = check_bundle(bundle(text, schema_dot_cedarschema=SCHEMA))
    told = [(problem.line, problem.sentence.split(";")[0]) for problem in problems if problem.path == "limits.yaml"]
    assert told == [
        (4, "the schema has no tool 'git/git_lag'"),
        (5, "the schema has no label 'raed'"),
        (6, "the schema has no server 'gti'"),
        (7, "the schema has no tool 'git/git_pull'"),
        (8, "the schema has no tool 'git/other'"),
    ]
    assert problems[2].sentence.endswith("did you mean 'git'?")
    assert all(problem.fatal for problem in problems)


@pytest.mark.parametrize(
    "more",
    [
        {"grants.yaml": "v: 1\ngrants: [{id: g, team: eng, tools: {git: '*'}}]"},
        {"policies/q.cedar": '@id("q") permit (principal in Group::"eng", action, resource);'},
        {"policies/q.cedar": '@id("q") forbid (principal, action, resource) when { principal in Group::"eng" };'},
        {"cases.yaml": "- {note: n, user: u, groups: [eng], server: git, tool: git_log, expect: allow}"},
        {"entities.json": '[{"uid": {"type": "Group", "id": "eng"}, "attrs": {}, "parents": []}]'},
        {
            "entities.json": '[{"uid": {"type": "User", "id": "u"}, "attrs": {},'
            ' "parents": [{"type": "Group", "id": "eng"}]}]'
        },
    ],
)
def test_a_team_that_nothing_else_has_heard_of_is_pointed_out(more: dict[str, str]) -> None:
    text = "limits:\n  - {id: a, per: user, concurrent: 1, team: [eng, '*']}\n"
    text += "  - {id: b, per: user, concurrent: 1, team: %s}"
    assert check_bundle(bundle(text % "eng", **more)) == []
    [told] = check_bundle(bundle(text % "enf", **more))
    sentence = "no grant, rule, case or entity names the group 'enf'; did you mean 'eng'?"
    assert (told.path, told.line, told.sentence, told.fatal) == ("limits.yaml", 4, sentence, False)
    assert check_bundle(bundle(text % "'*'", **more)) == []


def test_a_file_that_nests_deep_is_refused_at_once_and_with_its_line() -> None:
    for opening in ("[", "{a: ", "- "):
        [told] = read_limits("v: 1\nlimits: " * (opening != "- ") + opening * 50_000).problems
        assert "nests too deep: more than 32 levels" in told.sentence
        assert told.line == (1 if opening == "- " else 2)


def test_a_bundle_with_a_slip_cannot_rule() -> None:
    with pytest.raises(BundleFault, match=r"limits.yaml"):
        Budgeting.of(bundle("limits: [{id: x}]"))
    assert check_bundle(bundle("limits: [{id: x}]"))


def test_a_comparison_tells_which_limits_are_stricter_and_which_are_not() -> None:
    old = """
limits:
  - {id: pace, per: user, calls: 10/minute}
  - {id: day, per: user, daily: {calls: 100}, away: refuse}
  - {id: gone, per: user, concurrent: 1}
prices: [{per_call: 0.5}]
"""
    new = """

limits:
  - {id: pace, per: tool, calls: 5/minute}
  - {id: day, per: user, daily: {calls: 200, bytes: 1MB}, away: allow}
  - {id: new, team: x, per: user, concurrent: 2}
prices: [{per_call: 0.5}]
"""
    found = compare(bundle(old), bundle(new)).limits
    assert [(one.direction, one.limit, one.sentence) for one in found] == [
        ("stricter", "pace", "10 calls in 60 s → 5 calls in 60 s"),
        ("other", "pace", "counts per user → per tool"),
        ("more-permissive", "day", "100 calls a day → 200 calls a day"),
        ("stricter", "day", "now bounds 1000000 bytes a day"),
        ("more-permissive", "day", "while Redis is away: refuse → allow"),
        ("stricter", "new", "new: 2 calls at a time per user"),
        ("more-permissive", "gone", "gone: 1 calls at a time per user"),
    ]
    assert compare(bundle(new), bundle(new)).limits == ()


def test_the_example_of_the_page_is_a_limits_file_without_a_slip() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "limits.md").read_text()
    read = read_limits(page.split("```yaml\n")[1].split("```")[0])
    assert read.problems == ()
    assert [limit.id for limit in read.limits] == ["interns-pace", "research-budget", "customers", "slow-reports"]
