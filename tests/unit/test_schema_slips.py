"""What does not fit a bundle's schema is told once, with rule or grant, argument, line, and what to write."""

import json

import pytest

from tidegate.policy.argument_types import Document
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.check import check_bundle
from tidegate.policy.entities import ToolFacts

ALL = '@id("all") permit (principal, action, resource);'
SHOP = """
entity Group; entity User in [Group]; entity Server; type Acting = { id: String };
action "call"; action "egress" in ["call"];
action "mail/send" in ["call", "egress"] appliesTo { principal: [User], resource: [Server], context: {
  agent: Acting,
  args: {
    to: String, count: Long, note?: String, price: decimal, urgent: Bool,
    tags: Set<String>, filter?: { author?: String }
  }
} };
action "mail/get" in ["call"]
  appliesTo { principal: [User], resource: [Server], context: { agent: Acting, args: { to: String } } };
"""


def shop(rules: str, grants: str = "v: 1") -> Bundle:
    made = {"manifest.json": '{"v": 1, "name": "x"}', "policies/p.cedar": rules}
    made |= {"grants.yaml": grants, "schema.cedarschema": SHOP}
    return bundle_of({name: text.encode() for name, text in made.items()})


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (
            'context.args.count == "5"',
            '`context.args.count`, which mail/send declares as a whole number (Long), with "5"; write 5',
        ),
        ('"x" == context.args["count"]', 'with "x"'),
        ("context.args.to == 5", 'declares as text (String), with 5; write "5"'),
        ("context.args.price < 50", 'with 50; write `context.args.price.lessThan(decimal("50.0"))`'),
        ("context.args.price == 5", 'with 5; write decimal("5.0")'),
        ('context.args.count.greaterThan(decimal("5.0"))', 'with decimal("5.0"); write `context.args.count > 5`'),
        ('context.args.urgent == "true"', 'declares as true or false (Bool), with "true"; write true'),
        ('context.args.count like "5*"', "with a pattern"),
        ("context.args.tags.contains(5)", 'with 5; write "5"'),
        ('["a", "b"].contains(context.args.count)', 'with "a"'),
        (
            'context.args.notes == "x"',
            "looks at `context.args.notes`, which mail/send does not have; did you mean 'note'?",
        ),
        ('context.args has filter && context.args.filter.autor == "x"', "did you mean 'author'?"),
        ("context.args.count == context.args.to", "'no': the types Long and String are not compatible"),
    ],
)
def test_a_rule_that_does_not_fit_the_schema_is_told_once_by_its_name_argument_and_line(
    condition: str, told: str
) -> None:
    text = (
        f'@id("no")\nforbid (principal, action == Action::"mail/send", resource) when {{\n  true &&\n  {condition} }};'
    )
    found = [one for one in check_bundle(shop(text)) if one.fatal]
    assert told in found[0].sentence
    assert "'no'" in found[0].sentence
    same = '"b"' if "contains(context" in condition else told
    assert [one.sentence for one in found[1:] if same not in one.sentence] == []
    assert len(found) == (2 if "contains(context" in condition else 1)
    assert found[0].line == (1 if "== context.args.to" in condition else 4)


def test_an_action_that_is_not_declared_is_told_once_with_what_was_meant() -> None:
    text = (
        '@id("no")\nforbid (\n  principal,\n  action == Action::"mail/sned", resource) when { context.args.count > 1 };'
    )
    [told] = check_bundle(shop(text))
    assert str(told) == (
        "policies/p.cedar:4: against the schema: 'no' names the action 'mail/sned', which is not declared; "
        "did you mean 'mail/send'?"
    )


@pytest.mark.parametrize(
    ("scope", "path", "told"),
    [
        ('action == Action::"mail/send"', "notes", "which mail/send does not have; did you mean 'note'?"),
        ('action in Action::"egress"', "cuont", "which mail/send does not have; did you mean 'count'?"),
        ("action", "qqq", "which none of 2 tools has"),
        ("action", "note", ""),
        ('action == Action::"mail/get"', "note", "which mail/get does not have"),
    ],
)
def test_an_argument_that_a_rule_only_asks_for_and_no_tool_has_is_pointed_out(scope: str, path: str, told: str) -> None:
    condition = f'context.args has {path} && context.args.{path} == "x"'
    text = f'@id("no") forbid (principal, {scope}, resource)\nwhen {{ {condition} }};'
    found = check_bundle(shop(text))
    assert [(one.line, one.fatal) for one in found] == ([(2, False)] if told else [])
    assert all(told in one.sentence for one in found)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("to: 5", "`to` of mail/send is text (String), not a whole number (Long) as in `5`: write '5'"),
        (
            "count: five",
            "`count` of mail/send is a whole number (Long), not text (String) as in `five`: it takes a whole",
        ),
        ("price: {at_most: 200}", "not a whole number (Long) as in `at_most: 200`: write 200.0"),
        ("count: {at_least: 2.0}", "as in `at_least: 2.0`: write 2"),
        (
            "tags: {only: [1, 2]}",
            "`tags` of mail/send is text (String), not a whole number (Long) as in `only: 1`: write '1'",
        ),
        ("urgent: 'true'", "is true or false (Bool), not text (String) as in `true`: write true"),
    ],
)
def test_a_limit_of_another_type_than_the_tool_declares_is_told_once_at_its_line(limit: str, told: str) -> None:
    grants = f"v: 1\ngrants:\n- id: a\n  team: x\n  tools: {{mail: [send]}}\n  limits:\n    {limit}\n"
    grants += "- {id: b, team: y, tools: {mail: [send]}, limits: {note: x}, ask: true}\n"
    [problem] = check_bundle(shop(ALL, grants))
    assert (problem.path, problem.line, problem.rule, problem.fatal) == ("grants.yaml", 7, "a/mail", True)
    assert told in problem.sentence


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ('context.args.currency == "EURO"', "no value of 'currency' of shop/pay is 'EURO'; did you mean 'EUR'?"),
        ('context.args.currency like "E*O"', "no value of 'currency' of shop/pay is 'E*O'"),
        ('["EUR", "usd"].contains(context.args.currency)', "is 'usd'; did you mean 'USD'?"),
        ('context.args has kind && context.args.kind == "c"', "is 'c'; those are a, b"),
        ('context.args.currency != "EUR"', ""),
        ('context.args.currency like "U*"', ""),
        ('context.args.free == "x"', ""),
    ],
)
def test_a_comparison_with_none_of_a_tool_s_values_is_pointed_out_where_the_tool_is_known(
    condition: str, told: str
) -> None:
    currency = {"type": "string", "enum": ["EUR", "USD"]}
    kind = {"anyOf": [{"type": "string", "enum": ["a", "b"]}, {"type": "null"}]}
    properties = {"currency": currency, "kind": kind, "free": {"anyOf": [currency, {"type": "string"}]}}
    takes = Document.of_json(json.dumps({"type": "object", "properties": properties}).encode())
    text = f'@id("p") permit (principal, action == Action::"shop/pay", resource)\nwhen {{ {condition} }};'
    files = {"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": text.encode()}
    found = check_bundle(bundle_of(files), [ToolFacts("shop", "pay", (), takes)])
    assert [problem.fatal for problem in found] == ([False] if told else [])
    assert all(told in problem.sentence for problem in found)
