"""How rules compare an argument with what is written in them, and which values therefore make no difference: a path
outside `/srv/*` is like any other path outside it. Pure.

Counterparts: `rules.py` finds the comparisons, `engine.py` keeps Cedar's answers by what is `alike` here. Nothing is
decided here: Cedar is asked once for each combination of likenesses. Rules: only a comparison whose outcome follows
from a value's type and from what is computed here is read as one; any other use of a value counts the whole value.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

LIKE_MAX: Final = 32  # patterns on one argument; with more, its values are told apart one by one
_BOUNDS: Final = {"<=": 0, ">": 0, "<": -1, ">=": -1}
_MIRRORED: Final = {"<=": ">=", ">=": "<=", "<": ">", ">": "<"}


class Comparison(NamedTuple):
    """One of: with a `like` (the texts between its wildcards), with values, with the largest whole number that is at
    most the bound.
    """

    like: tuple[str, ...] = ()
    among: tuple[str | int, ...] = ()
    bound: int | None = None


def comparison_in(op: str, operand: Any) -> tuple[Any, Comparison] | None:
    """The expression that Cedar's JSON compares with literals, and with what; None where it does anything else."""
    if op == "like":
        texts = list(_texts(operand["pattern"]))
        wild = len(texts) > 1
        return operand["left"], Comparison(like=tuple(texts)) if wild else Comparison(among=tuple(texts))
    if op == "contains" and isinstance(operand["left"], Mapping) and isinstance(operand["left"].get("Set"), list):
        listed = [_literal(part) for part in operand["left"]["Set"]]
        known = tuple(value for value in listed if value is not None)
        return (operand["right"], Comparison(among=known)) if known and len(known) == len(listed) else None
    if op not in ("==", "!=") and op not in _BOUNDS:
        return None
    other, literal = operand["left"], _literal(operand["right"])
    if literal is None:
        other, literal, op = operand["right"], _literal(operand["left"]), _MIRRORED.get(op, op)
    if literal is None:
        return None
    if op in ("==", "!="):
        return other, Comparison(among=(literal,))
    return (other, Comparison(bound=literal + _BOUNDS[op])) if isinstance(literal, int) else None


def is_few(comparisons: Iterable[Comparison]) -> bool:
    """Whether to look for likenesses costs less than to ask."""
    return sum(bool(one.like) for one in comparisons) <= LIKE_MAX


def _literal(node: Any) -> str | int | None:
    value = node.get("Value") if isinstance(node, Mapping) else None
    return value if type(value) in (str, int) else None


def _texts(pattern: Iterable[Any]) -> Iterator[str]:
    """What stands between its wildcards; one text more than there are wildcards."""
    text = ""
    for part in pattern:
        if isinstance(part, Mapping):
            text += part["Literal"]
        else:
            yield text
            text = ""
    yield text


class Likeness:
    """What is left of the values of one argument when all that the comparisons cannot see is taken away."""

    __slots__ = ("_bounds", "_literals", "_numbers", "_patterns")

    def __init__(self, comparisons: Iterable[Comparison]) -> None:
        known = list(comparisons)
        literals = {value for one in known for value in one.among}
        self._literals = frozenset(value for value in literals if isinstance(value, str))
        self._numbers = frozenset(value for value in literals if isinstance(value, int))
        self._bounds = sorted({one.bound for one in known if one.bound is not None})
        self._patterns = [_Pattern.of(one.like) for one in known if one.like]

    def of(self, value: object) -> object:
        """A text for a text and a whole number; what is neither is alike to itself alone."""
        if type(value) is str:
            if value in self._literals:
                return f"={value}"
            return "~" + "".join(["1" if pattern.matches(value) else "0" for pattern in self._patterns])
        if type(value) is int:
            return f"#{value}" if value in self._numbers else f"<{bisect_left(self._bounds, value)}"
        return value


class _Pattern(NamedTuple):
    head: str
    between: tuple[str, ...]
    tail: str
    least: int  # characters

    @staticmethod
    def of(like: tuple[str, ...]) -> "_Pattern":
        head, *between, tail = like
        return _Pattern(head, tuple(filter(None, between)), tail, len(head) + len(tail))

    def matches(self, value: str) -> bool:
        """As Cedar's `like`: a wildcard stands for any characters, or none."""
        if len(value) < self.least or not (value.startswith(self.head) and value.endswith(self.tail)):
            return False
        at, end = len(self.head), len(value) - len(self.tail)
        for text in self.between:  # the first place for each leaves most room for the next
            at = value.find(text, at, end)
            if at < 0:
                return False
            at += len(text)
        return True
