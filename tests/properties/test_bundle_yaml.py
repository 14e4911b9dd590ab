"""Every YAML file of a bundle: whatever is written there is read or refused with a place and a sentence, in a time and
memory that grow with its length and no faster.
"""

import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import BundleFault, Problem
from tidegate.inspection.rules import load_inspection
from tidegate.policy.budgets import read_limits
from tidegate.policy.cases import CASES_BYTES_MAX, load_cases
from tidegate.policy.definition_rules import load_definition_rules, read_definition_rules
from tidegate.policy.grants import read_grants

CPU_S_MAX = 20.0  # with PyYAML in Python and coverage of slow machines; what is refused here would take hours
MEMORY_MAX = 200 * 1024 * 1024


def of_cases(text: str) -> list[Problem]:
    try:
        load_cases(text)
    except BundleFault as fault:
        return list(fault.problems)
    return []


def of_inspection(text: str) -> list[Problem]:
    try:
        load_inspection(text.encode("utf-8", "surrogatepass"))
    except BundleFault as fault:
        return [Problem("inspection.yaml", fault.sentence)]
    return []


READERS: dict[str, Callable[[str], list[Problem]]] = {
    "grants": lambda text: read_grants(text)[1],
    "limits": lambda text: list(read_limits(text).problems),
    "definitions": lambda text: read_definition_rules(text)[1],
    "cases": of_cases,
    "inspection": of_inspection,
}
every_file = pytest.mark.parametrize("name", READERS)
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@every_file
@pytest.mark.parametrize(
    ("hostile", "told"),
    [
        (LAUGHS, "uses a YAML alias"),
        ("a: &a {b: 1}\nc: {<<: *a}", "uses a YAML alias"),
        ("&a [*a]", "uses a YAML alias"),
        ("a: " + "[" * 20_000, "nests too deep"),
        ("- " * 20_000, "nests too deep"),
        ("? " * 20_000, "nests too deep"),
        ("a: [1" + ":1" * 20_000 + "]", ""),  # a number of base 60
        ("a: [1" + ":1" * 20_000 + ".5]", ""),
        ("a: [" + "9" * 60_000 + "]", ""),
        ("{" + ", ".join(f"{number * (2**61 - 1)}: 1" for number in range(1, 700)) + "}", ""),  # keys of one hash
        ("a: [" + "{<<: " * 28 + "{b: 1}" + "}" * 28 + "]", ""),
        ("a: !!bool perhaps", ""),
        ("a: !!timestamp x", ""),
        ("a: !!int []", ""),
        ("a: !!float {}", ""),
        ("!!map x", ""),
        ("a: 2026-13-45", ""),
        ("{[a]: 1}", ""),
        ("{? {a: 1} : 1}", ""),
        ("a: !!binary '*'", ""),
        ("a: !!python/object/apply:os.system [x]", ""),
        ("--- a\n" * 5_000, ""),
        ("%TAG ! tag:x,2000:\n" * 500 + "--- a", ""),
        ("\ud800", ""),
        ("a: \x00", ""),
    ],
)
def test_what_would_grow_without_bounds_is_refused_with_a_sentence(name: str, hostile: str, told: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        problems = READERS[name](hostile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < CPU_S_MAX
    assert peak < MEMORY_MAX
    assert problems
    assert all(0 < len(problem.sentence) < 1_000 for problem in problems)
    assert any(told in problem.sentence for problem in problems)


def test_each_alias_is_told_by_its_line() -> None:
    text = "- note: a\n  user: &who carol\n- note: b\n  user: *who\n"
    assert [(problem.line, problem.sentence[:19]) for problem in of_cases(text)] == [(4, "uses a YAML alias (")]
    [inspected] = of_inspection("packs: &all [secrets]\nother: *all")
    assert inspected.sentence.startswith("inspection.yaml: line 2: uses a YAML alias (*name)")


def test_a_number_and_a_key_that_are_not_plain_are_told_by_their_lines() -> None:
    case = "- {note: n, user: u, server: s, tool: t, expect: deny,\n   arguments: {%s}}"
    for written, told in (
        ("a: 1" + ":1" * 500, "a number of more than 400 characters"),
        ("on: 1", "a key that is no text: put it in quotes"),
        ("a: {1: b}", "a key that is no text: put it in quotes"),
        ("a: 2026-13-45", "'2026-13-45' is no timestamp"),
    ):
        [problem] = of_cases(case % written)
        assert problem.line == 2
        assert told in problem.sentence
    assert of_cases(case % "'on': 1, a: 1:30, b: 1e300, c: .inf") == []


def test_cases_have_a_size() -> None:
    [problem] = of_cases("#" * (CASES_BYTES_MAX + 1))
    assert problem.sentence == f"has more than {CASES_BYTES_MAX} bytes"


ODD = [
    "1",
    "0x_",
    "1:2",
    "1:2.5",
    ".inf",
    "~",
    "yes",
    "-",
    "''",
    "'a'",
    "*a",
    "<<",
    "=",
    "2001-01-01",
    "2001-99-01",
    "0001-01-01T00:00:00",
    "%",
    "@",
    "`",
    "...",
    "|",
    '"\\ud800"',
    "2026-11-23T10:00:00+99:99",
]
TAGGED = [
    "&a 1",
    "!!int x",
    "!!bool x",
    "!!timestamp x",
    "!!null x",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!binary x",
    "!x y",
]
KEYS = [
    "v",
    "grants",
    "limits",
    "prices",
    "servers",
    "changed",
    "id",
    "tools",
    "calls",
    "team",
    "packs",
    "patterns",
    "overrides",
    "note",
    "user",
    "groups",
    "server",
    "tool",
    "arguments",
    "expect",
    "at",
    "address",
    "taint",
    "<<",
]
scalars = st.sampled_from([*ODD, *TAGGED, "# c", "\t"])
words = st.sampled_from(KEYS)
written = st.recursive(
    scalars | words,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]"),
        st.lists(st.tuples(words | scalars, inner), max_size=4).map(
            lambda found: "{" + ", ".join(f"{key}: {value}" for key, value in found) + "}"
        ),
        st.tuples(st.sampled_from(["&a ", "!!map ", "!!seq ", "!!set ", "? "]), inner).map("".join),
    ),
    max_leaves=12,
)
CASE = "- {note: n, user: u, server: s, tool: t, expect: deny, arguments: {a: %s}, at: %s}"


@given(text=written | st.text(max_size=60), more=written)
def test_whatever_is_written_is_read_or_refused_and_never_raises(text: str, more: str) -> None:
    for wrapped in (text, f"v: 1\ngrants: [{text}]\n", f"packs: {text}\npatterns: [{more}]\n", CASE % (text, more)):
        for name, problems_of in READERS.items():
            assert all(problem.sentence for problem in problems_of(wrapped)), name


def test_what_edges_load_raises_a_fault_and_nothing_else() -> None:
    with pytest.raises(BundleFault, match="uses a YAML alias"):
        load_definition_rules(LAUGHS.encode())
