"""Texts that several patterns of `like` take at once: under `/srv/*` and with `..` in them. Pure.

Counterpart: `situations.py` tries them as arguments, beside a text for each pattern by itself. Rules: a pattern is the
texts between its wildcards, as `comparisons.py` reads it; bounded, and what is cut short says so.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from tidegate.policy.comparisons import Comparison, Likeness

PATTERNS_MAX: Final = 12
FOUND_MAX: Final = 12  # texts, of one argument
STATES_MAX: Final = 10_000  # length by length of two patterns that are brought together
_WILD: Final = ""
_FILL: Final = "x"

Pattern = tuple[str, ...]
_Place = tuple[int, int]


def shared_texts(patterns: Sequence[Pattern], known: Iterable[str]) -> tuple[list[str], bool]:
    """One text for each choice of patterns that takes it, where none of the known texts is taken by just those. And
    whether all choices were looked at.
    """
    likeness = Likeness(Comparison(like=one) for one in patterns[:PATTERNS_MAX])
    seen = {likeness.of(text) for text in known}
    texts: list[str] = []
    whole = len(patterns) <= PATTERNS_MAX
    waiting = deque(patterns[:PATTERNS_MAX])
    while waiting:
        one = waiting.popleft()
        for other in patterns[:PATTERNS_MAX]:
            if one == other or not _may_meet(one, other):
                continue
            if _is_large(one, other):
                whole = False
                continue
            both = _both(one, other)
            if both is None or likeness.of(text := _FILL.join(both)) in seen:
                continue
            if len(texts) >= FOUND_MAX:
                return texts, False
            seen.add(likeness.of(text))
            texts.append(text)
            waiting.append(both)
    return texts, whole


def _is_large(one: Pattern, other: Pattern) -> bool:
    sizes = [sum(map(len, pattern)) + len(pattern) for pattern in (one, other)]
    return sizes[0] * sizes[1] > STATES_MAX


@lru_cache(maxsize=2048)
def _both(one: Pattern, other: Pattern) -> Pattern | None:
    """A pattern that takes only what both take, with as many of their wildcards as can be; None where nothing is."""
    first, second = _marks(one), _marks(other)
    end = (len(first), len(second))
    came: dict[_Place, tuple[_Place, str | None]] = {}
    waiting: deque[tuple[_Place, _Place, str | None]] = deque([((0, 0), (0, 0), None)])
    while waiting and end not in came:
        at, before, took = waiting.popleft()
        if at in came:
            continue
        came[at] = (before, took)
        for step, mark in _steps(first[at[0] : at[0] + 1], second[at[1] : at[1] + 1]):
            push = waiting.append if mark is None else waiting.appendleft  # a wildcard is given up last
            push(((at[0] + step[0], at[1] + step[1]), at, mark))
    return _pattern(_way(came, end)) if end in came else None


def _may_meet(one: Pattern, other: Pattern) -> bool:
    heads, tails = (one[0], other[0]), (one[-1], other[-1])
    starts = heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])
    return starts and (tails[0].endswith(tails[1]) or tails[1].endswith(tails[0]))


def _steps(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[_Place, str | None]]:
    """How far to go on in each of them, and what both then take (None: nothing)."""
    if first == second == [_WILD]:
        yield from (((1, 0), _WILD), ((0, 1), _WILD))
        return
    if first and first == second:
        yield (1, 1), first[0]
    for one, other, own, others in ((first, second, (1, 0), (0, 1)), (second, first, (0, 1), (1, 0))):
        if one == [_WILD]:
            yield own, None  # it stands for no more
            if other:
                yield others, other[0]


def _marks(pattern: Pattern) -> list[str]:
    """Its characters and wildcards."""
    return [mark for number, text in enumerate(pattern) for mark in ([_WILD] if number else []) + list(text)]


def _way(came: dict[_Place, tuple[_Place, str | None]], end: _Place) -> list[str]:
    marks = []
    while end != (0, 0):
        end, mark = came[end]
        if mark is not None:
            marks.append(mark)
    return marks[::-1]


def _pattern(marks: list[str]) -> Pattern:
    texts, was = [""], ""
    for number, mark in enumerate(marks):
        if mark != _WILD:
            texts[-1] += mark
        elif number == 0 or was != _WILD:
            texts.append("")
        was = mark
    return tuple(texts)
