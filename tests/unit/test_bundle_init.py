"""A first bundle from what servers offer: typed, commented, and releasable whatever they call things."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tidegate.policy.bundle import Bundle, bundle_of, load_bundle
from tidegate.policy.cases import run_cases
from tidegate.policy.check import check_bundle
from tidegate.policy.schema_writing import MARK, Offer, OfferedTool, record_type, write_schema
from tidegate.policy.starting import first_bundle
from tidegate_cli.main import app

HOSTILE = 'x"\\\n}; permit (principal, action, resource); // \u2028 \x00'
TIME = Path(sys.executable).with_name("mcp-server-time")


def obj(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def started(*offers: Offer, team: str = "eng") -> Bundle:
    return bundle_of({path: text.encode() for path, text in first_bundle(offers, team, "first").items()})


def tool(name: str, schema: dict[str, Any] | None = None, *, reads: bool = True, about: str = "") -> OfferedTool:
    return OfferedTool(name, schema or obj({}), (), about, reads)


FILES = Offer(
    "files",
    ("sensitive",),
    (
        tool("read", obj({"path": {"type": "string"}, "limit": {"type": "integer"}}, "path"), about="Reads\na file."),
        tool("write", obj({"path": {"type": "string"}, "price": {"type": "number"}}, "path"), reads=False),
    ),
    prompts=("topic", "odd name"),
    resources=True,
)
CLOCK = Offer("clock", (), (tool("set", reads=False),))

TYPES = [
    ({"type": "string"}, "String"),
    ({"type": "boolean"}, "Bool"),
    ({"type": "integer"}, "Long"),
    ({"type": "number"}, "decimal"),
    ({"type": ["integer", "number"]}, "decimal"),
    ({"enum": ["a", "b"]}, "String"),
    ({"const": 3}, "Long"),
    ({"type": "array", "items": {"type": "string"}}, "Set<String>"),
    ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, "Set<Set<Long>>"),
    (obj({"b": {"type": "string"}, "a": {"type": "integer"}}, "a"), "{ b?: String, a: Long }"),
    ({"$ref": "#/$defs/d"}, "String"),
    ({"allOf": [{"$ref": "#/$defs/d"}]}, "String"),
    ({"anyOf": [{"type": "string"}, {"const": "x"}]}, "String"),
]


@pytest.mark.parametrize(("schema", "cedar"), TYPES)
def test_arguments_have_the_types_that_calls_are_encoded_with(schema: dict[str, Any], cedar: str) -> None:
    root = obj({"x": schema}, "x", **{"$defs": {"d": {"type": "string"}}})
    assert record_type(root) == (f"{{ x: {cedar} }}", [])


@pytest.mark.parametrize("schema", [{"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}])
def test_null_is_as_absent_so_a_required_argument_that_may_be_null_is_optional(schema: dict[str, Any]) -> None:
    assert record_type(obj({"x": schema}, "x")) == ("{ x?: String }", [])


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(40):
    DEEP = obj({"x": DEEP})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "any type"),
        (True, "any type"),
        ({"type": ["string", "integer"]}, "several types (Long, String)"),
        ({"type": "object"}, "an object of any keys"),
        ({"type": "array"}, "any type"),
        ({"type": "array", "items": {"type": "number"}}, "numbers in a list"),
        ({"$ref": "https://example.com/x"}, "another document"),
        ({"$ref": "#/properties/x"}, "any type"),
        ({"type": "strnig"}, "does not know"),
        (DEEP, "levels deep"),
    ],
)
def test_what_has_no_single_type_is_left_out_and_named(schema: Any, words: str) -> None:
    type_, left_out = record_type(obj({"x": schema, "y": {"type": "string"}}))
    assert "y?: String" in type_
    assert any(words in sentence for sentence in left_out), left_out


def test_the_schema_has_every_tool_with_its_labels_prompts_and_resources() -> None:
    schema = write_schema([FILES])
    assert 'action "files/write" in ["call", "sensitive"]' in schema
    assert (
        'context: { agent: Acting, args: { name: String, arguments?: { "odd name"?: String, topic?: String } }, '
        "now: datetime, time: Clock, network?: Network, taint: Set<String>, protocol: String }" in schema
    )
    assert 'action "files/resources/read" in ["call", "resource", "sensitive"]' in schema


def test_the_same_offer_makes_the_same_schema_in_any_order() -> None:
    assert write_schema([FILES, CLOCK]) == write_schema([CLOCK, FILES])


def test_what_stands_above_the_mark_is_kept_when_the_schema_is_written_anew() -> None:
    mine = write_schema([FILES]).replace("entity User in [Group];", "entity User in [Group] { level: Long };")
    renewed = write_schema([CLOCK], mine)
    assert "level: Long" in renewed
    assert '"clock/set"' in renewed
    assert "files/" not in renewed
    assert renewed.count(MARK) == 1


def test_a_first_bundle_can_be_released_and_its_cases_hold() -> None:
    bundle = started(FILES, CLOCK)
    assert check_bundle(bundle) == []
    results = run_cases(bundle)
    assert {result.verdict.effect for result in results} == {"allow", "deny"}
    assert [grant.uses[0].tools for grant in bundle.grants.grants] == [("read",)]
    assert "      # clock:\n      #   - set\n" in bundle.text("grants.yaml")


def test_taking_out_the_comment_signs_grants_what_they_stood_before() -> None:
    text = started(CLOCK, FILES).text("grants.yaml").replace("# -", "-").replace("      # clock", "      clock")
    text = text.replace("      #   - set", "        - set").partition("# More")[0]
    assert yaml.safe_load(text)["grants"][0]["tools"] == {"files": ["read", "write"], "clock": ["set"]}


def test_where_nothing_only_reads_nothing_is_granted_and_the_bundle_still_stands() -> None:
    bundle = started(CLOCK)
    assert check_bundle(bundle) == []
    assert bundle.grants.grants == ()


def test_a_misspelt_argument_of_a_rule_is_an_error_at_check() -> None:
    files = dict(started(FILES).files)
    files["grants.yaml"] += b""
    files["grants.yaml"] = files["grants.yaml"].replace(b"    # reason:", b"    limits: {pth: x}\n    # reason:", 1)
    rule = b'@id("r") permit (principal, action == Action::"files/read", resource) when { context.args.pth == "x" };'
    files["policies/rules.cedar"] = rule
    found = [str(problem) for problem in check_bundle(bundle_of(files))]
    assert any("files/read has no argument 'pth'; did you mean 'path'?" in problem for problem in found)
    assert any(problem.startswith("policies/rules.cedar:1:") and "args.pth" in problem for problem in found)


text = st.one_of(
    st.just(HOSTILE), st.text(min_size=1, max_size=12), st.sampled_from(["null", "on", "a b", "*", "- x", "#"])
)
leaf = st.sampled_from([{"type": "string"}, {"type": "number"}, {"type": ["integer", "null"]}, {}, {"enum": [1, 2]}])
schemas = st.dictionaries(text, leaf, max_size=3).map(lambda found: obj(found, *found))
tools = st.builds(OfferedTool, text, schemas, st.just(()), text, st.booleans())
hostile_offers = st.builds(
    Offer,
    st.just("srv"),
    st.just(("a b", 'l"\n')),
    st.lists(tools, max_size=4, unique_by=lambda tool: tool.name).map(tuple),
    text.map(lambda name: (name,)),
    st.booleans(),
)


@settings(max_examples=120, deadline=None)
@given(hostile_offers)
def test_whatever_a_server_says_the_bundle_can_be_released_and_grants_only_what_reads(offer: Offer) -> None:
    bundle = started(offer)
    assert [str(problem) for problem in check_bundle(bundle)] == []
    granted = {name for grant in bundle.grants.grants for use in grant.uses for name in use.tools}
    assert granted <= {tool.name for tool in offer.tools if tool.reads_only}


@pytest.mark.skipif(not TIME.is_file(), reason="mcp-server-time is not installed")
def test_a_bundle_is_begun_for_a_live_server_and_its_schema_renewed(tmp_path: Path) -> None:
    config, home = tmp_path / "tidegate.yaml", tmp_path / "policy"
    server = {"command": [str(TIME), "--local-timezone", "Etc/UTC"], "labels": ["read-only"]}
    gone = {"url": "http://127.0.0.1:9/mcp"}
    config.write_text(json.dumps({"data": "data", "tenant": "t", "servers": {"time": server, "gone": gone}}))
    made = CliRunner().invoke(app, ["bundle", "init", str(home), "-c", str(config), "--team", "ops", "--json"])
    shown = json.loads(made.stdout)
    assert (made.exit_code, shown["releasable"], shown["servers"]) == (0, True, {"time": 2})
    assert "127.0.0.1:9" in shown["missing"]["gone"]
    assert not (tmp_path / "data").exists()
    assert '"time/get_current_time" in ["call", "read-only"]' in load_bundle(home).text("schema.cedarschema")
    told = CliRunner().invoke(app, ["bundle", "init", str(tmp_path / "told"), "-c", str(config), "--team", "ops"])
    assert "next: edit" in told.stdout
    assert "may also have limits.yaml (how much) and definitions.yaml" in told.stdout
    config.write_text(json.dumps({"data": "data", "tenant": "t", "servers": {"gone": gone}}))
    failed = CliRunner().invoke(app, ["bundle", "init", str(tmp_path / "none"), "-c", str(config)])
    assert "nothing was written" in str(failed.exception)
    assert not (tmp_path / "none").exists()
    again = CliRunner().invoke(app, ["bundle", "init", str(home), "-c", str(config)])
    assert "not empty" in str(again.exception)
    config.write_text(json.dumps({"data": "data", "tenant": "t", "servers": {"time": server}}))
    (home / "schema.cedarschema").write_text("")
    renewed = CliRunner().invoke(app, ["bundle", "init", str(home), "-c", str(config), "--schema-only", "--json"])
    assert json.loads(renewed.stdout)["files"] == ["schema.cedarschema"]
    assert check_bundle(load_bundle(home)) == []


OLD_HEAD = """\
entity Group in [Group];
entity User in [Group] { level?: Long };
entity Server { labels: Set<String> };

type Agent = { id: String };
"""


@pytest.mark.parametrize("before", ["", f'{OLD_HEAD}\n{MARK}\naction "call";\n'])
def test_the_schema_types_the_circumstances_whatever_stood_above_the_mark(before: str) -> None:
    schema = write_schema([FILES], before)
    files = {
        "manifest.json": b'{"v":1,"name":"t"}',
        "schema.cedarschema": schema.encode(),
        "entities.json": b'[{"uid": {"type": "Agent", "id": "ci"}, "attrs": {}, "parents": '
        b'[{"type": "AgentClass", "id": "robots"}]}]',
    }

    def problems(condition: str, principal: str = "principal") -> list[str]:
        rule = f'@id("r") forbid ({principal}, action == Action::"files/write", resource) when {{ {condition} }};'
        return [found.sentence for found in check_bundle(bundle_of({**files, "policies/p.cedar": rule.encode()}))]

    for fine in (
        "context.time.hour >= 9 && context.time.weekday < 6",
        'context.now > datetime("2026-11-01")',
        '!(context has network && context.network.ip.isInRange(ip("10.0.0.0/8")))',
        'context.taint.contains("sensitive") && context.protocol == "2025-11-25"',
        'context.agent.classes.contains("robots")',
    ):
        assert problems(fine) == []
    assert problems("true", "principal is ServiceAccount") == []
    assert "`tim`" in problems("context.tim.hour > 9")[0]
    [told] = problems('context.network.ip.isInRange(ip("10.0.0.0/8"))')
    assert "`forbid … unless { context has network && … }`" in told
    assert "String and ipaddr" in problems('!(context has network && context.network.ip == "10.0.0.1")')[0]


def test_a_schema_of_before_is_told_how_to_learn_the_circumstances() -> None:
    old = 'action "call"; action "files/write" in ["call"] appliesTo { principal: [User], resource: [Server],'
    schema = f"{OLD_HEAD}{old} context: {{ agent: Agent, args: {{}} }} }};"
    files = {
        "manifest.json": b'{"v":1,"name":"t"}',
        "schema.cedarschema": schema.encode(),
        "policies/p.cedar": b'@id("r") forbid (principal, action, resource) when { context.time.hour > 9 };',
    }
    assert "--schema-only" in check_bundle(bundle_of(files))[0].sentence
    robots = b'@id("r") forbid (principal == ServiceAccount::"ci", action, resource);'
    assert "--schema-only" in check_bundle(bundle_of({**files, "policies/p.cedar": robots}))[0].sentence
