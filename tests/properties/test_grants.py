"""Laws of grants: the compiled Cedar decides as the plain reading of the file does, and grants only ever add."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.policy.bundle import bundle_of
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.grants import read_grants
from tidegate.policy.grants_cedar import compile_grants

TOOLS = [ToolFacts("fs", "read", ("safe",)), ToolFacts("fs", "write"), ToolFacts("web", "get", ("safe", "out"))]
LABELS = {(facts.server, facts.tool): facts.labels for facts in TOOLS}
RANK = {"deny": 0, "ask": 1, "allow": 2}


@dataclass(frozen=True)
class Principal:
    user: str
    groups: tuple[str, ...]
    agent: str


some = st.sampled_from
uses = st.dictionaries(some(["fs", "web"]), some(["*", ["read"], ["get", "read"], {"labels": ["safe"]}]), min_size=1)
tools = st.one_of(uses, uses.map(lambda found: {**found, "*": {"labels": ["out"]}}))
limits = st.fixed_dictionaries(
    {},
    optional={
        "path": some(["a", ["a", "b"], {"like": "a*"}, {"below": "a"}, {"equals": "b", "optional": True}]),
        "n": some([1, {"at_most": 2}, {"at_least": 2}, {"at_most": 2, "optional": True}, {"absent": True}]),
    },
)
asks = st.one_of(st.just(True), some([{"n": {"at_least": 2}}, {"path": "a", "n": 1}]))
entry = st.fixed_dictionaries(
    {"team": some(["*", "eng", ["eng", "ops"]]), "tools": tools},
    optional={"user": some(["u1", ["u1", "u2"]]), "agent": some(["x", ["x", "y"]]), "limits": limits, "ask": asks},
)
files = st.lists(entry, max_size=4).map(lambda found: [{"id": f"g{n}", **grant} for n, grant in enumerate(found)])
principals = st.builds(Principal, some(["u1", "u3"]), some([(), ("eng",), ("ops",)]), some(["x", "z"]))
arguments = st.fixed_dictionaries(
    {}, optional={"path": some(["a", "b", "ax", "a/x", "a/../x"]), "n": st.integers(0, 3)}
)


def engine_of(grants: list[dict[str, Any]]) -> Engine:
    text = json.dumps({"v": 1, "grants": grants}).encode()
    return Engine.build(bundle_of({"manifest.json": b'{"v":1,"name":"g"}', "grants.yaml": text}), TOOLS, {})


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def holds(limit: Any, value: Any, *, absent: bool) -> bool:
    """A limit in its plain reading; `absent` is the answer where the argument is not there."""
    if isinstance(limit, dict) and limit.get("absent"):
        return value is None
    if value is None:
        return absent or (isinstance(limit, dict) and limit.get("optional", False))
    if not isinstance(limit, dict):
        return value in listed(limit)
    below = limit.get("below")
    return (
        ("equals" not in limit or value == limit["equals"])
        and ("like" not in limit or value.startswith(limit["like"].rstrip("*")))
        and (below is None or (".." not in value and (value == below or value.startswith(f"{below}/"))))
        and ("at_most" not in limit or value <= limit["at_most"])
        and ("at_least" not in limit or value >= limit["at_least"])
    )


def meant(grant: dict[str, Any], who: Principal, server: str, tool: str) -> bool:
    teams, users = listed(grant["team"]), listed(grant.get("user", []))
    if not ("*" in teams or set(teams) & set(who.groups) or who.user in users):
        return False
    if "agent" in grant and who.agent not in listed(grant["agent"]):
        return False
    chosen = [use for name, use in grant["tools"].items() if name in ("*", server)]
    return any(
        use == "*" or (set(use["labels"]) & set(LABELS[server, tool]) if isinstance(use, dict) else tool in use)
        for use in chosen
    )


def plain_reading(grants: list[dict[str, Any]], who: Principal, server: str, tool: str, args: dict[str, Any]) -> str:
    effect = "deny"
    for grant in grants:
        within = all(holds(limit, args.get(name), absent=False) for name, limit in grant.get("limits", {}).items())
        if not meant(grant, who, server, tool) or not within:
            continue
        ask = grant.get("ask")
        asked = ask is True or (
            ask is not None and all(holds(limit, args.get(name), absent=True) for name, limit in ask.items())
        )
        effect = max(effect, "ask" if asked else "allow", key=RANK.__getitem__)
    return effect


@settings(max_examples=150, deadline=None)
@given(files, principals, some(TOOLS), arguments)
def test_the_compiled_cedar_decides_as_the_file_reads(
    grants: list[dict[str, Any]], who: Principal, facts: ToolFacts, args: dict[str, Any]
) -> None:
    verdict = engine_of(grants).evaluate(who, facts.server, facts.tool, args)
    assert verdict.effect == plain_reading(grants, who, facts.server, facts.tool, args), verdict


@settings(max_examples=60, deadline=None)
@given(files, entry, principals, some(TOOLS), arguments)
def test_one_more_grant_never_takes_anything_away(
    grants: list[dict[str, Any]], more: dict[str, Any], who: Principal, facts: ToolFacts, args: dict[str, Any]
) -> None:
    before = engine_of(grants).evaluate(who, facts.server, facts.tool, args)
    after = engine_of([*grants, {"id": "more", **more}]).evaluate(who, facts.server, facts.tool, args)
    assert RANK[after.effect] >= RANK[before.effect]


@settings(max_examples=60, deadline=None)
@given(files)
def test_compiling_is_repeatable_and_each_rule_leads_to_its_line(grants: list[dict[str, Any]]) -> None:
    text = json.dumps({"v": 1, "grants": grants}, indent=1)
    compiled = compile_grants(text)
    assert compiled == compile_grants(text)
    assert not compiled.problems
    for rule, line in compiled.lines.items():
        assert f'"{rule.partition("/")[2].partition(":")[0] or "*"}":' in text.splitlines()[line - 1]
    assert len(compiled.lines) == compiled.cedar.count("@id(")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    _, problems = read_grants(text)
    assert bool(problems) != bool(compile_grants(text).cedar)
