"""The strict reading of what people write in a bundle: whatever stands there, it is read or refused with its line."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import Problem
from tidegate.policy.budgets import read_limits
from tidegate.policy.definition_rules import read_definition_rules
from tidegate.policy.grants import read_grants

READERS: list[Callable[[str], list[Problem]]] = [
    lambda text: read_grants(text)[1],
    lambda text: list(read_limits(text).problems),
    lambda text: read_definition_rules(text)[1],
]
files = pytest.mark.parametrize("problems_of", READERS, ids=["grants", "limits", "definitions"])


@files
@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("", 1, "is empty"),
        ("\nv: [", 2, "is not YAML"),
        ("- v: 1", 1, "must have keys and values"),
        ("v: 1\nw: 2", 2, "'w' is not known in the file"),
        ("v: 1\nv: 1", 2, "has 'v' twice"),
        ("# first\nv: 2", 2, "needs `v: 1`"),
        ("v:", 1, "`v` has no value"),
        ("a: &a 1\nb: *a", 2, "uses a YAML alias"),
        ("v: 0x_", 1, "`v`: 0x_ is no whole number"),
        ("v: !!int x", 1, "`v`: x is no whole number"),
        ("v: !!int ''", 1, "is no whole number"),
        ("v: " + "1" * 5_000, 1, "is no whole number"),
        ("v: 99999999999999999999", 1, "outside the 64-bit range"),
    ],
)
def test_a_slip_is_a_problem_with_its_line_in_every_file(
    problems_of: Callable[[str], list[Problem]], text: str, line: int, told: str
) -> None:
    (problem,) = problems_of(text)
    assert problem.line == line
    assert told in problem.sentence
    assert len(problem.sentence) < 200


@files
@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("team: *", "put '*' in quotes where it stands for itself"),
        ("team: [ops, *]", "put '*' in quotes"),
        ("- {git: *}", "put '*' in quotes"),
        ("agent: @robot", "put '@robot' in quotes"),
        ("reason: Refunds: are", "put the text in quotes: 'Refunds: are'"),
        ("reason: " + "long " * 20 + ": " + "very", "put the text in quotes: 'long long"),
        ("reason: it's: so", "put the text in quotes"),
        ("reason: 'a' b", "expected <block end>"),
        ("[", "could not find expected"),
    ],
)
def test_what_yaml_takes_for_a_sign_is_to_be_put_in_quotes(
    problems_of: Callable[[str], list[Problem]], written: str, told: str
) -> None:
    (problem,) = problems_of(f"v: 1\n{written}\n")
    assert told in problem.sentence
    assert ("in quotes" in problem.sentence) is ("in quotes" in told)
    assert len(problem.sentence) < 200


@files
def test_a_file_with_its_version_alone_is_well(problems_of: Callable[[str], list[Problem]]) -> None:
    assert problems_of("v: 1") == []


scalars = st.sampled_from(
    ["1", "0x_", "0b_", "-", "~", "yes", "1.5", ".inf", "!!int x", "!!float ''", "!!null x", "'a'", "2001-01-01", "<<"]
)
words = st.sampled_from(["v", "grants", "limits", "prices", "records", "servers", "changed", "id", "tools", "calls"])


@files
@given(
    text=st.recursive(
        scalars | words,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]"),
            st.lists(st.tuples(words | scalars, inner), max_size=4).map(
                lambda found: "{" + ", ".join(f"{key}: {value}" for key, value in found) + "}"
            ),
        ),
        max_leaves=12,
    )
)
def test_whatever_is_written_is_read_or_refused_and_never_raises(
    problems_of: Callable[[str], list[Problem]], text: str
) -> None:
    assert all(problem.line is None or problem.line >= 1 for problem in problems_of(text))
    problems_of(f"v: 1\ngrants: [{text}]\n")
    problems_of(f"v: 1\nlimits: [{{id: a, per: user, calls: {text}, daily: {text}}}]\n")
    problems_of(f"v: 1\nservers: {{git: {text}}}\n")
