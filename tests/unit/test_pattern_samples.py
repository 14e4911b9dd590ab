"""Texts that several patterns take at once, tried where bundles are compared."""

from hypothesis import given
from hypothesis import strategies as st

from tidegate.policy.comparisons import Comparison, Likeness
from tidegate.policy.pattern_samples import FOUND_MAX, PATTERNS_MAX, Pattern, shared_texts


def parts(pattern: str) -> Pattern:
    return tuple(pattern.split("*"))


def fills(patterns: list[Pattern]) -> list[str]:
    return ["x".join(one) for one in patterns]


def taken(patterns: list[Pattern], text: str) -> str:
    return str(Likeness(Comparison(like=one) for one in patterns).of(text))


wild = st.text("ab*", min_size=1, max_size=5).filter(lambda text: "*" in text).map(parts)
few = st.lists(wild, min_size=1, max_size=3, unique=True)


def test_every_choice_that_can_be_taken_has_a_text() -> None:
    patterns = [parts(one) for one in ("/srv/*", "*.txt", "*..*")]
    texts, whole = shared_texts(patterns, fills(patterns))
    assert whole
    assert {"~110", "~101", "~011", "~111"} <= {taken(patterns, text) for text in texts}


@given(few, st.text("ab", max_size=5))
def test_what_two_patterns_take_is_found_where_there_is_any(patterns: list[Pattern], text: str) -> None:
    texts, whole = shared_texts(patterns, fills(patterns))
    both = [number for number, mark in enumerate(taken(patterns, text)[1:]) if mark == "1"][:2]
    known = [taken(patterns, one)[1:] for one in (*texts, *fills(patterns))]
    assert not whole or any(all(marks[number] == "1" for number in both) for marks in known)


@given(few)
def test_no_text_says_what_another_says(patterns: list[Pattern]) -> None:
    texts, _ = shared_texts(patterns, fills(patterns))
    found = [taken(patterns, text) for text in texts]
    assert len({*found, *(taken(patterns, text) for text in fills(patterns))} - {"~"}) >= len(set(found)) == len(found)


def test_what_is_cut_short_says_so() -> None:
    many = [parts(f"*{number:x}*") for number in range(6)]
    texts, whole = shared_texts(many, fills(many))
    assert (len(texts), whole) == (FOUND_MAX, False)
    apart = [parts(f"{number:x}*") for number in range(PATTERNS_MAX + 1)]
    assert shared_texts(apart[:-1], fills(apart)) == ([], True)
    assert shared_texts(apart, fills(apart)) == ([], False)
    long, longer = ("a" * 200, ""), ("", "b" * 200)
    assert shared_texts([long], fills([long])) == ([], True)
    assert shared_texts([long, longer], fills([long, longer])) == ([], False)
