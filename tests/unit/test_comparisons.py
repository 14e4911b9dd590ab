"""What rules cannot tell apart is asked of Cedar once, and only that: every likeness against Cedar's own answers."""

import cedarpy
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.policy.arguments import Alike, NotRepresentable, encode_arguments
from tidegate.policy.bundle import bundle_of
from tidegate.policy.comparisons import LIKE_MAX, Likeness, comparison_in
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.facts import NO_FACTS
from tidegate.policy.rules import NOTHING, parse_rules

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1


class Alice:
    user, agent, groups = "alice", "a", ()


def policy(condition: str) -> str:
    return f'@id("r") permit (principal, action, resource) when {{ {condition} }};'


def alike(condition: str, *calls: dict[str, object]) -> bool:
    rules, problems = parse_rules({"p": policy(condition)})
    assert not problems
    need = rules[0].needs.parts.get("args", NOTHING)
    return len({Alike(need).of(call) for call in calls}) == 1


def engine_of(condition: str) -> Engine:
    bundle = bundle_of({"manifest.json": b'{"v": 1, "name": "t"}', "policies/p.cedar": policy(condition).encode()})
    return Engine.build(bundle, [ToolFacts("fs", "read")], {"fs": ()})


@pytest.mark.parametrize(
    ("condition", "one", "other", "same"),
    [
        ('context.args.a like "/srv/*"', "/srv/a", "/srv/b/c", True),
        ('context.args.a like "/srv/*"', "/srv/a", "/src/a", False),
        ('context.args.a like "*.md" || context.args.a like "/srv/*"', "/srv/a", "/x/a.md", False),
        ('context.args.a == "x"', "y", "z", True),
        ('context.args.a != "x"', "x", "z", False),
        ('["x", "y"].contains(context.args.a)', "p", "q", True),
        ('["x", "y"].contains(context.args.a)', "x", "y", False),
        ('["x", "y"].contains(context.args.a)', "x", "q", False),
        ("context.args.a <= 5", 4, 5, True),
        ("context.args.a <= 5", 5, 6, False),
        ("context.args.a < 5", 4, 5, False),
        ("context.args.a > 5", 5, 6, False),
        ("context.args.a >= 5", 4, 5, False),
        ("5 > context.args.a", 4, 5, False),
        ("5 <= context.args.a", 4, 5, False),
        ("5 == context.args.a", 4, 6, True),
        ("5 == context.args.a", 5, 6, False),
        ("context.args.a == 1", 1, True, False),
        ('context.args.a == "1"', "1", 1, False),
        ("context.args.a < 5", 1, "1", False),
        ("context.args.a < 5", [1], [2], False),
        ("context.args.a.b < 5", {"b": 1}, {"b": 2}, True),
        ("context.args.a.b < 5", {"b": 1}, {"b": 7}, False),
        ("context.args.a.b < 5 || context.args.a == 3", {"b": 1}, {"b": 2}, False),
        ("context.args has a", 1, "x", True),
    ],
)
def test_values_are_alike_where_no_rule_tells_apart(condition: str, one: object, other: object, same: bool) -> None:
    assert alike(condition, {"a": one}, {"a": other}) is same
    assert not alike(condition, {"a": one}, {})


@pytest.mark.parametrize(
    "condition",
    [
        'context.args.a.contains("x")',
        'context.args.a like "x*" && context.args.b == context.args.a',
        'context.args.a.lessThan(decimal("2.0"))',
        "context.args.a + 1 < 5",
        "-context.args.a < 5",
        '{"x": context.args.a} == {"x": 1}',
        '[context.args.a].contains("x")',
        'context.args == {"a": 1}',
        "[1, context.args.b].contains(context.args.a)",
        " || ".join(f'context.args.a like "{number}*"' for number in range(LIKE_MAX + 1)),
    ],
)
def test_any_other_use_of_a_value_counts_all_of_it(condition: str) -> None:
    assert not alike(condition, {"a": "p", "b": 1}, {"a": "q", "b": 1})


@pytest.mark.parametrize("at", [(), ("c",), ("c", "d")])
def test_a_reserved_name_is_told_with_its_place_by_one_decision_and_by_many(at: tuple[str, ...]) -> None:
    place = ".".join(("context.args", *at))
    arguments: dict[str, object] = {"__entity": "x"}
    for name in reversed(at):
        arguments = {name: arguments}
    engine = engine_of(f'{place} has __entity && {place}.__entity == "x"')
    one = engine.evaluate(Alice(), "fs", "read", arguments)
    assert engine.evaluate_many(Alice(), "fs", "read", [(arguments, NO_FACTS)]) == [one]
    assert (one.reason, one.rules) == ("argument-not-representable", ("r",))
    assert f"'{'.'.join((*at, '__entity'))}'" in one.message


def test_cedar_is_asked_once_for_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of('context.args.path like "/srv/*" && context.args.size <= 100')
    assert engine.evaluate(Alice(), "fs", "read", {"path": "/srv/0", "size": 0}).effect == "allow"
    assert engine.evaluate(Alice(), "fs", "read", {"path": "/etc/0", "size": 0}).effect == "deny"

    def unasked(*_: object) -> None:
        raise AssertionError("Cedar was asked again")

    monkeypatch.setattr("tidegate.policy.engine.authorize", unasked)
    for number in range(100):
        assert engine.evaluate(Alice(), "fs", "read", {"path": f"/srv/{number}", "size": number}).effect == "allow"
        assert engine.evaluate(Alice(), "fs", "read", {"path": f"/home/{number}", "size": 1}).effect == "deny"


TEXTS = st.text(st.sampled_from("ab*/.é😀\\"), max_size=8)
PATTERNS = st.lists(st.one_of(st.none(), st.text(st.sampled_from("ab*/.é😀"), min_size=1, max_size=3)), max_size=6)


@settings(max_examples=250, deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=4))
def test_like_matches_what_cedar_s_like_matches(parts: list[str | None], values: list[str]) -> None:
    pattern = "".join("*" if part is None else part.replace("*", "\\*") for part in parts)
    text = f'permit (principal, action, resource) when {{ context.args.a like "{pattern}" }};'
    est = msgspec.json.decode(cedarpy.policies_to_json_str(text))["staticPolicies"]["policy0"]["conditions"][0]["body"]
    found = comparison_in("like", est["like"])
    assert found is not None
    likeness = Likeness([found[1]])
    for value in values:
        request = {
            "principal": {"type": "User", "id": "a"},
            "action": {"type": "Action", "id": "b"},
            "resource": {"type": "Server", "id": "c"},
            "context": {"args": {"a": value}},
        }
        is_like = likeness.of(value) in ("~1", f"={value}")
        assert is_like is cedarpy.is_authorized(request, text, []).allowed


NUMBERS = st.sampled_from([LONG_MIN, -4, -3, 0, 1, 2, 3, LONG_MAX])
OPERATORS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
LITERALS = st.one_of(NUMBERS.map(str), st.sampled_from(['"x"', '"xy"', '""', "true"]))
AT = st.sampled_from(["context.args.a", "context.args.b", "context.args.c.d"])
CONDITIONS = st.recursive(
    st.one_of(
        st.builds("{} {} {}".format, AT, OPERATORS, LITERALS),
        st.builds("{} {} {}".format, LITERALS, OPERATORS, AT),
        st.builds("{} {} {}".format, AT, OPERATORS, AT),
        st.builds('{} like "{}"'.format, AT, st.sampled_from(["x*", "*y", "*x*y*", "x", "", "*"])),
        st.builds("[{}, {}].contains({})".format, LITERALS, LITERALS, AT),
        st.sampled_from(["context.args has a", "context.args has c.d", "context.args.a", "context.args.c == {}"]),
    ),
    lambda inner: st.one_of(
        st.builds("({} && {})".format, inner, inner),
        st.builds("({} || {})".format, inner, inner),
        st.builds("!({})".format, inner),
        st.builds("(if {} then {} else {})".format, inner, inner, inner),
    ),
    max_leaves=6,
)
LEAVES = st.one_of(NUMBERS, st.sampled_from(["x", "xy", "xay", "", "y", True, False, 1.5, 2.0, None]))
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=2), st.dictionaries(st.sampled_from("cd"), LEAVES, max_size=2))
CALLS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@settings(max_examples=150, deadline=None)
@given(CONDITIONS, st.lists(CALLS, min_size=2, max_size=12))
def test_what_is_kept_for_one_call_is_what_cedar_says_of_every_call_like_it(
    condition: str, calls: list[dict[str, object]]
) -> None:
    engine = engine_of(condition)
    for call in calls:
        (asked,) = engine.evaluate_many(Alice(), "fs", "read", [(call, NO_FACTS)])  # keeps nothing
        assert engine.evaluate(Alice(), "fs", "read", call) == asked


def test_a_whole_number_beyond_cedar_s_is_refused_wherever_a_rule_compares_it() -> None:
    rules, _ = parse_rules({"p": policy("context.args.a < 5")})
    with pytest.raises(NotRepresentable, match="64-bit"):
        encode_arguments({"a": 2**63}, rules[0].needs.parts["args"])
