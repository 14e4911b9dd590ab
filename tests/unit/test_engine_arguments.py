"""Arguments as Cedar sees them; docs/policy-encoding.md is the page of this table."""

import pytest

from tidegate.limits import POLICY_VALUES_MAX
from tidegate.policy.arguments import NotRepresentable, encode_arguments
from tidegate.policy.rules import NOTHING, Need, parse_rules

WHOLE = Need(whole=True)


def decimal(text: str) -> object:
    return {"__extn": {"fn": "decimal", "arg": text}}


def needs(condition: str) -> Need:
    rules, problems = parse_rules({"p": f'@id("r") permit (principal, action, resource) when {{ {condition} }};'})
    assert not problems
    return rules[0].needs.parts.get("args", NOTHING)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (True, True),
        (0, 0),
        (-(2**63), -(2**63)),
        (2**63 - 1, 2**63 - 1),
        ("", ""),
        ("\x00é😀", "\x00é😀"),
        (2.0, 2),
        (-0.0, 0),
        (0.1, decimal("0.1000")),
        (-1.2345, decimal("-1.2345")),
        ([1, "a", [True]], [1, "a", [True]]),
        ({"a": {"b": 1}, "n": None}, {"a": {"b": 1}}),
    ],
)
def test_values_and_their_encoding(value: object, encoded: object) -> None:
    assert encode_arguments({"x": value}, WHOLE) == {"x": encoded}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (2**63, "64-bit"),
        (-(2**63) - 1, "64-bit"),
        (0.00001, "four decimal places"),
        (1e300, "too large"),
        (float("nan"), "too large"),
        (float("inf"), "too large"),
        (2.0**53, "too large"),
        ([None], "null inside a list"),
        ("\ud800", "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ({"__entity": {"type": "User", "id": "admin"}}, "keeps for itself"),
        ([{"__extn": {"fn": "ip", "arg": "::1"}}], "keeps for itself"),
        ({"deep": {"__expr": "1"}}, "keeps for itself"),
        (list(range(POLICY_VALUES_MAX + 1)), "values"),
        (object(), "not a JSON value"),
    ],
)
def test_what_cannot_be_held_exactly_is_refused_by_name(value: object, why: str) -> None:
    with pytest.raises(NotRepresentable, match=why) as fault:
        encode_arguments({"x": value}, WHOLE)
    assert fault.value.path.startswith("x")


def test_nesting_is_bounded() -> None:
    value: object = 1
    for _ in range(1_000):
        value = [value]
    with pytest.raises(NotRepresentable, match="levels deep"):
        encode_arguments({"x": value}, WHOLE)


@pytest.mark.parametrize(
    ("condition", "arguments", "sent"),
    [
        ('context.args.a == "1"', {"a": "1", "b": 2}, {"a": "1"}),
        ("context.args has a", {"a": [1e300], "b": 2}, {"a": True}),
        ("context.args has a && context.args.a > 1", {"a": 2}, {"a": 2}),
        ("context.args.a.b > 1", {"a": {"b": 2, "c": 3}}, {"a": {"b": 2}}),
        ("context.args.a.b > 1", {"a": [3]}, {"a": [3]}),
        ("context.args.a has b.c", {"a": {"b": {"c": 1, "d": 2}, "e": 3}}, {"a": {"b": {"c": True}}}),
        ('context["args"]["a b"] == 1', {"a b": 1, "c": 1}, {"a b": 1}),
        ('context.args == {"a": 1}', {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        ('[{"has": context.args.a}].contains({"has": 1})', {"a": 1, "b": 2}, {"a": 1}),
        ('[{"Value": context.args.a}].contains({"Value": 1})', {"a": 1, "b": 2}, {"a": 1}),
        (
            'if context.args.a then true else context.args.b like "x"',
            {"a": True, "b": "x", "c": 1},
            {"a": True, "b": "x"},
        ),
        ('context.agent.id == "x"', {"a": 1}, {}),
        ("principal.args.a == 1", {"a": 1}, {}),
    ],
)
def test_only_what_rules_look_at_is_sent(condition: str, arguments: dict[str, object], sent: dict[str, object]) -> None:
    assert encode_arguments(arguments, needs(condition)) == sent


@pytest.mark.parametrize(
    "condition",
    [
        'context.args.n.lessThan(decimal("2.0"))',
        'decimal("2.0").greaterThan(context.args.n)',
        'context.args.n == decimal("1.0")',
    ],
)
def test_whole_numbers_are_decimals_where_a_rule_compares_decimals(condition: str) -> None:
    assert encode_arguments({"n": 1}, needs(condition)) == {"n": decimal("1.0000")}
    assert encode_arguments({"n": 922337203685477}, needs(condition)) == {"n": decimal("922337203685477.0000")}
    with pytest.raises(NotRepresentable, match="range of decimals"):
        encode_arguments({"n": 922337203685478}, needs(condition))
