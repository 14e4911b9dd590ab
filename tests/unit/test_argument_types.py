"""The JSON types that tools declare, and the arguments that rules look at: what is of another type is denied."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tidegate.policy.argument_types import Document, Expected, Unlike
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.cases import run_cases
from tidegate.policy.cedar_types import argument_types
from tidegate.policy.check import check_bundle
from tidegate.policy.engine import Engine, ToolFacts, Verdict
from tidegate.policy.facts import NO_FACTS
from tidegate.policy.rules import Need

UNLIKE = "arguments-unlike-schema"
WHOLE = Need(whole=True)
TREE = {"type": "object", "properties": {"force": {"type": "boolean"}, "below": {"$ref": "#/$defs/tree"}}}


@dataclass(frozen=True)
class Person:
    user: str = "alice"
    agent: str = "codex"
    groups: tuple[str, ...] = ()


def bundle(rules: str = "", **files: str) -> Bundle:
    named = {f"{name}.cedarschema" if name == "schema" else f"{name}.yaml": text for name, text in files.items()}
    manifest = {"manifest.json": b'{"v": 1, "name": "t"}', "policies/a.cedar": rules.encode()}
    return bundle_of(manifest | {path: text.encode() for path, text in named.items()})


def decided(made: Bundle, arguments: Mapping[str, object], properties: dict[str, Any] | None, **root: Any) -> Verdict:
    schema = None if properties is None else {"type": "object", "properties": properties, **root}
    takes = None if schema is None else Document.of_json(json.dumps(schema).encode())
    engine = Engine.build(made, [ToolFacts("up", "deploy", (), takes)], {"up": ()})
    return engine.evaluate(Person(), "up", "deploy", arguments)


def looked_at(schema: dict[str, Any], value: object) -> Unlike | None:
    """With the argument x of that schema, at which a rule looks."""
    root = {"type": "object", "properties": {"x": schema}, "$defs": {"tree": TREE, "text": {"type": "string"}}}
    declared = Document.of_json(json.dumps(root).encode())
    return Expected((declared,), Need(parts={"x": WHOLE})).unlike({"x": value})


FORBIDDEN = """
@id("all") permit (principal, action, resource);
@id("no-force") forbid (principal, action, resource) when { context.args has force && context.args.force == true };
"""
BOOLEAN: dict[str, Any] = {"force": {"type": "boolean"}}


@pytest.mark.parametrize("force", ["true", "yes", 1, 1.0, None, [True], {"value": True}])
def test_a_forbid_by_equality_is_not_passed_by_a_value_of_another_type(force: object) -> None:
    verdict = decided(bundle(FORBIDDEN), {"force": force}, BOOLEAN)
    assert (verdict.effect, verdict.reason, verdict.rules) == ("deny", UNLIKE, ("no-force",))
    assert "The argument 'force' of up/deploy is declared as a boolean (inputSchema)" in verdict.message
    assert "yes" not in verdict.message


def test_a_value_of_the_declared_type_is_decided_by_the_rules() -> None:
    assert decided(bundle(FORBIDDEN), {"force": False}, BOOLEAN).reason == "granted"
    assert decided(bundle(FORBIDDEN), {"force": True}, BOOLEAN).reason == "forbidden-by-rule"
    assert decided(bundle(FORBIDDEN), {}, BOOLEAN).reason == "granted"
    assert decided(bundle(FORBIDDEN), {"other": "true"}, BOOLEAN).reason == "granted"


def test_what_no_rule_looks_at_may_be_of_any_type() -> None:
    properties = {**BOOLEAN, "count": {"type": "integer"}}
    assert decided(bundle(FORBIDDEN), {"force": False, "count": "three"}, properties).reason == "granted"
    anything = '@id("all") permit (principal, action, resource);'
    assert decided(bundle(anything), {"force": "true"}, properties).reason == "granted"


def test_an_argument_of_no_declared_type_is_what_it_comes_as() -> None:
    every: list[dict[str, Any] | None] = [
        None,
        {},
        {"force": {}},
        {"force": {"description": "of any type"}},
        {"force": True},
    ]
    for properties in every:
        assert decided(bundle(FORBIDDEN), {"force": "true"}, properties).reason == "granted"
        assert decided(bundle(FORBIDDEN), {"force": True}, properties).reason == "forbidden-by-rule"


GRANTS = """
v: 1
grants:
  - id: g
    team: '*'
    tools: {up: [deploy]}
    ask: {force: true, mode: [fast, slow]}
    approver: other
"""


@pytest.mark.parametrize(
    ("arguments", "effect", "reason"),
    [
        ({"force": True, "mode": "fast"}, "ask", "approval-required"),
        ({"force": "true", "mode": "fast"}, "deny", UNLIKE),
        ({"force": 1, "mode": "fast"}, "deny", UNLIKE),
        ({"force": None}, "deny", UNLIKE),
        ({"force": False, "mode": "fast"}, "allow", "granted"),
        ({"force": True, "mode": True}, "deny", UNLIKE),
        ({"force": True, "mode": 7}, "deny", UNLIKE),
    ],
)
def test_a_grant_that_asks_by_an_argument_is_not_passed_either(
    arguments: dict[str, object], effect: str, reason: str
) -> None:
    properties: dict[str, Any] = {**BOOLEAN, "mode": {"enum": ["fast", "slow", "late"]}}
    verdict = decided(bundle(grants=GRANTS), arguments, properties)
    assert (verdict.effect, verdict.reason) == (effect, reason)


def test_what_must_be_left_out_is_not_there_as_null() -> None:
    grants = GRANTS[: GRANTS.index("    ask")] + "    limits: {force: {absent: true}}\n"
    assert decided(bundle(grants=grants), {"force": None}, BOOLEAN).reason == UNLIKE
    assert decided(bundle(grants=grants), {"force": None}, {"force": {"type": ["boolean", "null"]}}).effect == "allow"
    assert decided(bundle(grants=grants), {}, BOOLEAN).effect == "allow"


STRING_OR_TREE = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/tree"}]}


@pytest.mark.parametrize(
    ("schema", "value", "path"),
    [
        ({"type": "integer"}, 1, None),
        ({"type": "integer"}, 1.0, None),
        ({"type": "integer"}, 1e2, None),
        ({"type": "integer"}, 1.5, "x"),
        ({"type": "integer"}, "1", "x"),
        ({"type": "integer"}, True, "x"),
        ({"type": "number"}, 1, None),
        ({"type": "number"}, 1.5, None),
        ({"type": "number"}, False, "x"),
        ({"type": "string"}, "", None),
        ({"type": "string"}, 0, "x"),
        ({"type": "string"}, None, "x"),
        ({"type": ["string", "null"]}, None, None),
        ({"type": "string", "nullable": True}, None, None),
        ({"type": "string", "default": None}, None, None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "1", "x"),
        ({"oneOf": [{"type": "integer"}, {"description": "or else"}]}, "1", None),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "boolean"]}]}, "1", None),
        ({"allOf": [{"type": ["integer", "string"]}, {"type": ["string", "boolean"]}]}, 1, "x"),
        ({"$ref": "#/$defs/text"}, "a", None),
        ({"$ref": "#/$defs/text", "description": "a name"}, 1, "x"),
        ({"$ref": "#/$defs/text", "type": "string"}, 1, "x"),
        ({"$ref": "https://example.com/other.json"}, 1, None),
        ({"$ref": "#/$defs/nowhere"}, 1, None),
        ({"$ref": "#/properties/x"}, 1, None),
        ({"enum": ["a", "b"]}, "c", None),
        ({"enum": ["a", "b"]}, 1, "x"),
        ({"enum": [1.5, 2.5]}, 2, None),
        ({"const": True}, "true", "x"),
        ({"type": "any"}, "a", None),
        ({"type": "array", "items": {"type": "string"}}, ["a", "b"], None),
        ({"type": "array", "items": {"type": "string"}}, ["a", 1], "x[]"),
        ({"type": "array", "items": {"type": "string"}}, "a", "x"),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, ["a", 1], None),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, ["a", "b"], "x[]"),
        ({"type": "object"}, {"force": "true"}, None),
        ({"$ref": "#/$defs/tree"}, {"below": {"below": {"force": True}}}, None),
        ({"$ref": "#/$defs/tree"}, {"below": {"below": {"force": 1}}}, "x.below.below.force"),
        ({"$ref": "#/$defs/tree"}, {"below": "no"}, "x.below"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, {"any": "true"}, "x.any"),
        ({"type": "object", "patternProperties": {"^a": {"type": "boolean"}}}, {"any": "true"}, None),
        (STRING_OR_TREE, "true", None),
        (STRING_OR_TREE, {"force": True}, None),
        (STRING_OR_TREE, {"force": "true"}, "x.force"),
        (STRING_OR_TREE, 1, "x"),
        ({"anyOf": [STRING_OR_TREE, {"type": "null"}]}, {"force": "true"}, "x.force"),
    ],
)
def test_types_are_compared_as_json_schema_has_them(schema: dict[str, Any], value: object, path: str | None) -> None:
    found = looked_at(schema, value)
    assert (found.path if found else None) == path


def test_only_the_members_that_rules_look_at_are_compared() -> None:
    declared = Document.of_json(
        json.dumps({"type": "object", "properties": {"tree": TREE}, "$defs": {"tree": TREE}}).encode()
    )
    force = Expected((declared,), Need(parts={"tree": Need(parts={"force": WHOLE})}))
    assert force.unlike({"tree": {"force": True, "below": 1}}) is None
    assert force.unlike({"tree": {"force": "true"}}) == Unlike("tree.force", "a boolean", "a string", "inputSchema")
    there = Expected((declared,), Need(parts={"tree": Need(tested=True)}))
    assert there.unlike({"tree": {"force": "true"}}) is None
    assert there.unlike({"tree": None}) == Unlike("tree", "an object", "null", "inputSchema")
    everything = Expected((declared,), WHOLE)
    assert everything.unlike({"tree": {"below": {"force": 0}}, "more": 1}) is not None


def test_alternatives_of_the_whole_schema_count() -> None:
    root = {
        "type": "object",
        "anyOf": [{"properties": {"x": {"type": "string"}}}, {"properties": {"x": {"type": "null"}}}],
    }
    expected = Expected((Document.of_json(json.dumps(root).encode()),), Need(parts={"x": WHOLE}))
    assert [expected.unlike({"x": value}) is None for value in ("a", None, 1)] == [True, True, False]
    needed = {
        "type": "object",
        "properties": {"x": {"type": "string"}},
        "anyOf": [{"required": ["x"]}, {"required": ["y"]}],
    }
    expected = Expected((Document.of_json(json.dumps(needed).encode()),), Need(parts={"x": WHOLE}))
    assert [expected.unlike({"x": value}) is None for value in ("a", 1)] == [True, False]


def test_a_schema_that_leads_in_circles_costs_a_bounded_time_and_denies() -> None:
    node: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}
    node["anyOf"] += [{"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/n"}] * 8}}] * 8
    root = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": node}}
    expected = Expected((Document.of_json(json.dumps(root).encode()),), Need(parts={"x": WHOLE}))
    deep: object = 1
    for _ in range(30):
        deep = [deep]
    assert expected.unlike({"x": deep}) is not None
    chain = {f"d{number}": {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}]} for number in range(5_000)}
    root = {"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": chain}
    assert Expected((Document.of_json(json.dumps(root).encode()),), Need(parts={"x": WHOLE})).unlike({"x": 1}) is None
    circle = {"type": "object", "properties": {"x": {"$ref": "#/properties/y"}, "y": {"$ref": "#/properties/x"}}}
    assert Expected((Document.of_json(json.dumps(circle).encode()),), Need(parts={"x": WHOLE})).unlike({"x": 1}) is None


@pytest.mark.parametrize("broken", [b"", b"[]", b"null", b'{"properties": 1}', b'{"properties": {"x": 1}}', b"\xff"])
def test_a_schema_that_cannot_be_read_declares_nothing(broken: bytes) -> None:
    assert Expected((Document.of_json(broken),), Need(parts={"x": WHOLE})).unlike({"x": 1}) is None


def test_answers_are_not_kept_across_types() -> None:
    """null is absent to Cedar: what was answered for a call without the argument is no answer for one with null."""
    takes = Document.of_json(json.dumps({"type": "object", "properties": BOOLEAN}).encode())
    engine = Engine.build(bundle(FORBIDDEN), [ToolFacts("up", "deploy", (), takes)], {"up": ()})
    calls: list[dict[str, object]] = [{}, {"force": None}, {"force": False}, {"force": "false"}, {}]
    alone = [engine.evaluate(Person(), "up", "deploy", arguments).reason for arguments in calls]
    together = engine.evaluate_many(Person(), "up", "deploy", [(arguments, NO_FACTS) for arguments in calls])
    assert alone == ["granted", UNLIKE, "granted", UNLIKE, "granted"] == [verdict.reason for verdict in together]


def test_a_rule_in_circumstances_is_not_passed_and_a_list_is_asked_the_same() -> None:
    rules = FORBIDDEN.replace("context.args.force == true", "context.args.force == true && context.time.hour < 24")
    takes = Document.of_json(json.dumps({"type": "object", "properties": BOOLEAN}).encode())
    engine = Engine.build(bundle(rules), [ToolFacts("up", "deploy", (), takes)], {"up": ()})
    assert engine.evaluate(Person(), "up", "deploy", {"force": "true"}).reason == UNLIKE
    hopeless = engine.hopeless(Person(), "up", "deploy", {"force": "true"})
    assert hopeless is not None
    assert hopeless.reason == UNLIKE
    assert engine.visible(Person(), "up", "deploy")
    assert engine.hopeless(Person(), "up", "deploy", {}) is None


def test_arguments_of_a_prompt_are_texts() -> None:
    rules = FORBIDDEN.replace("context.args", "context.args.arguments").replace("== true", '== "true"')
    engine = Engine.build(bundle(rules), [ToolFacts("up", "prompts/get")], {"up": ()})
    for force, reason in ((True, UNLIKE), ("true", "forbidden-by-rule"), ("no", "granted")):
        asked = {"name": "p", "arguments": {"force": force}}
        assert engine.evaluate(Person(), "up", "prompts/get", asked).reason == reason


SCHEMA = """
entity User; entity Server;
type Options = { force?: Bool, "how often": Long };
@doc("all calls") action "call";
action "up/deploy", "up/undo" in ["call"] appliesTo {
  principal: [User], resource: [Server],
  context: { args: { // as the server has them
    force?: Bool, n?: Long, amount: decimal, @doc("some") tags?: Set<String>, options?: Options, odd: Kind, at: datetime
  }, protocol: String }
};
"""


def test_the_bundle_s_own_schema_counts_too() -> None:
    made = bundle(FORBIDDEN, schema=SCHEMA)
    assert decided(made, {"force": "true"}, {}).reason == UNLIKE
    assert "schema.cedarschema" in decided(made, {"force": "true"}, None).message
    assert decided(made, {"force": True}, None).reason == "forbidden-by-rule"
    assert decided(made, {"force": "true"}, BOOLEAN).reason == UNLIKE
    assert decided(made, {"force": None}, None).reason == "granted"
    assert decided(made, {"n": "x"}, None).reason == "granted"


def test_cedar_types_are_read_as_json_has_them() -> None:
    found = argument_types(SCHEMA)
    assert set(found) == {"up/deploy", "up/undo"}
    properties = found["up/deploy"]["properties"]
    assert properties["amount"] == {"type": ["number", "null"]}
    assert properties["tags"]["items"] == {"type": ["string", "null"]}
    assert properties["options"]["properties"]["how often"] == {"type": ["integer", "null"]}
    assert properties["odd"] == {} == properties["at"]


@pytest.mark.parametrize(
    "text", ["", "action", 'action "a" appliesTo { context: { args: {', "namespace N {}", "type A = A;"]
)
def test_a_schema_text_that_is_not_understood_declares_nothing(text: str) -> None:
    assert argument_types(text) == {}
    assert argument_types(text + " type B = " + "Set<" * 100 + "B" + ">" * 100 + ";") == {}


CASES = """
- {note: forced, user: alice, server: up, tool: deploy, arguments: {force: "true"}, expect: deny, rules: [no-force]}
- {note: not forced, user: alice, server: up, tool: deploy, arguments: {force: false}, expect: allow}
"""


def test_cases_are_decided_by_the_types_of_the_bundle_s_schema() -> None:
    results = run_cases(bundle(FORBIDDEN, schema=SCHEMA, cases=CASES))
    assert [(result.passed, result.verdict.reason) for result in results] == [(True, UNLIKE), (True, "granted")]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ('forbid (principal, action == Action::"up/deploy", resource) when { context.args.free == true };', "free"),
        ("forbid (principal, action, resource) when { context.args has free && true == context.args.free };", "free"),
        ("forbid (principal, action, resource) when { [1, 2].contains(context.args.free) };", "free"),
        ("forbid (principal, action, resource) when { !(context.args.free != true) };", "free"),
        ("forbid (principal, action, resource) unless { context.args.free != true };", "free"),
        ("permit (principal, action, resource) unless { context.args.free == true };", "free"),
        ("permit (principal, action, resource) when { context.args.free != true };", "free"),
        ("forbid (principal, action, resource) when { context.args.free.inner == 1 };", "free.inner"),
        ("permit (principal, action, resource) when { context.args.free == true };", ""),
        ("forbid (principal, action, resource) unless { context.args.free == true };", ""),
        ("forbid (principal, action, resource) when { context.args.free > 5 };", ""),
        ("forbid (principal, action, resource) when { context.args.force == true };", ""),
        ("forbid (principal, action, resource) when { context.args.elsewhere == true };", ""),
        ('forbid (principal, action == Action::"up/deploy", resource) when { context.args.more == true };', "more"),
        ('forbid (principal, action, resource == Server::"other") when { context.args.free == true };', ""),
        ("forbid (principal, action, resource) when { context.args.many == true };", ""),
    ],
)
def test_the_check_tells_of_equality_with_what_has_no_declared_type(rule: str, told: str) -> None:
    properties = {**BOOLEAN, "free": {}, "many": {"anyOf": [{"type": "boolean"}, {"type": "string"}]}}
    takes = Document.of_json(json.dumps({"type": "object", "properties": properties}).encode())
    made = bundle(f'@id("all") permit (principal, action, resource); @id("r") {rule}')
    found = check_bundle(made, [ToolFacts("up", "deploy", (), takes), ToolFacts("up", "plain")])
    assert [problem.sentence.split()[0] for problem in found] == ([f"'{told}'"] if told else [])
    assert not any(problem.fatal for problem in found)
    assert check_bundle(made) == []


def test_a_type_that_the_bundle_declares_and_a_grant_that_asks_are_told_as_they_are() -> None:
    takes = Document.of_json(b'{"type": "object"}')
    found = check_bundle(bundle(grants=GRANTS), [ToolFacts("up", "deploy", (), takes)])
    assert [(problem.path, problem.sentence.split()[0]) for problem in found] == [
        ("grants.yaml", "'force'"),
        ("grants.yaml", "'mode'"),
    ]
    typed = bundle(FORBIDDEN.replace("action,", 'action == Action::"up/deploy",'), schema=SCHEMA)
    hinted = [
        one for one in check_bundle(typed, [ToolFacts("up", "deploy", (), takes)]) if "declared type" in one.sentence
    ]
    assert hinted == []
