"""The moments around which a condition on `context.now` changes its answer, read off its constants: through `offset`,
`toTime`, `toDate`, `durationSince` and the units of a duration. Pure, over Cedar's JSON of conditions.

Counterparts: `situations.py` asks; `occasions.py` tries them, and finds those of `context.time` itself.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

SECOND: Final = 1_000_000  # everything here is in microseconds
DAY: Final = 86_400 * SECOND
SOME_DAY: Final = round(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * SECOND  # a Monday
LATEST: Final = round(datetime(9999, 1, 1, tzinfo=UTC).timestamp()) * SECOND
_COMPARING: Final = ("<", "<=", ">", ">=", "==", "!=", "contains", "containsAll", "containsAny")
_UNITS: Final[Mapping[str, int]] = {
    "toMilliseconds": 1_000,
    "toSeconds": SECOND,
    "toMinutes": 60 * SECOND,
    "toHours": 3_600 * SECOND,
    "toDays": DAY,
}
_DURATION: Final = re.compile(r"(-?)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")
_PARTS: Final = (DAY, 3_600 * SECOND, 60 * SECOND, SECOND, 1_000)
_NOW: Final = {".": {"left": {"Var": "context"}, "attr": "now"}}
_TIME: Final = {".": {"left": {"Var": "context"}, "attr": "time"}}


def moments_of(bodies: list[Any]) -> tuple[list[int], bool]:
    """On both sides of each constant and at it; and whether every look at the time could be read so."""
    found: dict[int, None] = {}
    looks = sum(_is_look(node) for node in nodes_of(bodies))
    for node in nodes_of(bodies):
        for left, right in _compared(node):
            for side, other in ((left, right), (right, left)):
                constants = list(_constants(other))
                if constants and _is_look(side) and side != _NOW:
                    looks -= 1  # a part of `context.time`, as it is
                elif constants and (around := _around(side, constants)) is not None:
                    looks -= 1
                    found.update(dict.fromkeys(moment for moment in around if 0 < moment < LATEST))
    return list(found), looks <= 0


def nodes_of(bodies: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Every expression of conditions in Cedar's JSON, outer ones first."""
    waiting: list[Any] = list(reversed(bodies))
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            yield node
            waiting += reversed(list(node.values()))
        elif isinstance(node, list):
            waiting += reversed(node)


def _is_look(node: Any) -> bool:
    """`context.now`, `context.time.hour`."""
    at = node.get(".") if isinstance(node, Mapping) else None
    return node == _NOW or (isinstance(at, Mapping) and at["left"] == _TIME)


def _compared(node: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    for op in _COMPARING:
        sides = node.get(op)
        if isinstance(sides, Mapping) and "left" in sides and "right" in sides:
            yield sides["left"], sides["right"]
    like = node.get("like")
    if isinstance(like, Mapping):
        yield like["left"], {"Value": ""}


def _around(node: Any, constants: list[int]) -> list[int] | None:
    """Moments at which this expression over `context.now` has these values, or just not; None: it cannot be read."""
    if node == _NOW:
        return _beside(constants)
    match node:
        case {"offset": [inner, by]} if shift := list(_constants(by)):
            return _around(inner, [value - shift[0] for value in constants])
        case {"toTime": [inner]}:
            return _around(inner, [SOME_DAY + value % DAY for value in constants])
        case {"toDate": [inner]}:
            return _around(inner, [edge for value in constants for edge in (value, value + DAY)])
        case {"durationSince": [inner, since]} if start := list(_constants(since)):
            return _around(inner, [start[0] + value for value in constants])
        case {"durationSince": [until, inner]} if end := list(_constants(until)):
            return _around(inner, [end[0] - value for value in constants])
    for name, unit in _UNITS.items():
        if isinstance(node, Mapping) and name in node:
            return _around(node[name][0], [edge * unit for value in constants for edge in (value, value + 1)])
    return None


def _beside(values: Iterable[int]) -> list[int]:
    return [near for value in values for near in (value - SECOND, value, value + SECOND)]


def _constants(node: Any) -> Iterator[int]:
    """A moment, a duration or a whole number; texts as 0, for what is compared with them is found elsewhere."""
    match node:
        case {"datetime": [{"Value": str(text)}]}:
            yield from _moment(text)
        case {"duration": [{"Value": str(text)}]}:
            yield from _duration(text)
        case {"Value": int(value)}:
            yield value
        case {"Value": str()}:
            yield 0
        case {"Set": [*parts]}:
            for part in parts:
                yield from _constants(part)


def _moment(text: str) -> Iterator[int]:
    try:
        at = datetime.fromisoformat(text)
        yield round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000) * 1_000
    except (ValueError, OverflowError):
        return


def _duration(text: str) -> Iterator[int]:
    """`1d2h3m4s5ms`, with a sign or without."""
    if (found := _DURATION.fullmatch(text)) is not None:
        sign, *parts = found.groups()
        whole = sum(int(part or 0) * unit for part, unit in zip(parts, _PARTS, strict=True))
        yield -whole if sign else whole
