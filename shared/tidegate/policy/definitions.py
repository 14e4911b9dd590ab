"""Two definitions of a tool compared: what differs, gravest first, and the rank of the gravest. Pure, total on any
bytes, bounded in what it returns.

    cosmetic < described < narrowed < widened < instructing        (`new`: there is nothing to compare with)

A definition comes from outside and is read by models: every string in it counts as text. What cannot be told is
`widened`. Counterparts: `schema_changes.py` for schemas, `instructing.py` for text, `trusting.py` for what is trusted.
docs/definitions.md tells what each rank means.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from tidegate import json_values
from tidegate.events import Rank
from tidegate.limits import JSON_DEPTH_MAX
from tidegate.policy.instructing import Told, instructions_in, visible
from tidegate.policy.schema_changes import Step, canonical, same, schema_changes, text_rank

RANKS: Final[tuple[Rank, ...]] = ("new", "cosmetic", "described", "narrowed", "widened", "instructing")
CHANGES_MAX: Final = 100
VALUE_CHARS_MAX: Final = 2_000
SENTENCE_CHARS_MAX: Final = 300
BYTES_MAX: Final = 1024 * 1024  # of a definition; a larger one is not read (the edge leaves out what is larger)

_SCHEMAS: Final = ("inputSchema", "outputSchema")
_TEXTS: Final = ("title", "description")
_PICTURES: Final = frozenset({"icons"})
_HINTS: Final = {
    # hint: (its default, the value that lets less happen), 2026-07-28 ToolAnnotations
    "readOnlyHint": (False, True),
    "destructiveHint": (True, False),
    "idempotentHint": (False, True),
    "openWorldHint": (True, False),
}
_KNOWN: Final = frozenset({"name", *_SCHEMAS, *_TEXTS, *_PICTURES, "annotations", "_meta", "execution"})


class Change(msgspec.Struct, frozen=True):
    """One difference. `before` and `after` are JSON as text, bounded; "" where there is nothing on that side.

    `sentence` is whole, on one line, with hidden characters made visible.
    """

    rank: Rank
    path: str
    before: str
    after: str
    sentence: str


class Comparison(msgspec.Struct, frozen=True):
    """`rank` None: they mean the same, to the letter. `left_out`: changes beyond CHANGES_MAX."""

    rank: Rank | None
    changes: tuple[Change, ...] = ()
    left_out: int = 0


def compare(trusted: bytes | None, now: bytes) -> Comparison:
    """`trusted` None: nothing to compare with; then `new`, or `instructing` where the text speaks to a model."""
    after = _read(now)
    if trusted is None:
        changes = [_unreadable()] if after is None else list(_instructing({}, after))
        return _ranked(changes, "new")
    before = _read(trusted)
    if before is None or after is None:
        return Comparison(None) if trusted == now else _ranked([_unreadable()], "widened")
    if same(before, after):
        return Comparison(None)
    try:
        changes = [*_members(before, after), *_instructing(before, after)]
    except RecursionError:
        changes = [_unreadable()]
    if not changes:
        changes = [Change("cosmetic", "", "", "", "It is written differently and means the same.")]
    return _ranked(changes, "cosmetic")


def graver(one: Rank, other: Rank) -> Rank:
    return max(one, other, key=RANKS.index)


def _ranked(changes: list[Change], least: Rank) -> Comparison:
    found = sorted(dict.fromkeys(changes), key=lambda change: (-RANKS.index(change.rank), change.path, change.sentence))
    rank = found[0].rank if found else least
    return Comparison(rank, tuple(found[:CHANGES_MAX]), max(0, len(found) - CHANGES_MAX))


def _read(raw: bytes) -> dict[str, Any] | None:
    """None where it is no object, too large, or nests too deep to be looked at."""
    if len(raw) > BYTES_MAX:
        return None
    try:
        value = json_values.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value) else None


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(JSON_DEPTH_MAX + 1):
        level = [one for outer in level for one in _inner(outer)]
        if not level:
            return True
    return False


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unreadable() -> Change:
    return Change("widened", "", "", "", "The definition cannot be read, so it cannot be told what differs.")


def _members(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    if not same(before.get("name"), after.get("name")):
        yield _change("widened", "name", before.get("name"), after.get("name"), "is another tool's")
    for key in _TEXTS:
        if not same(before.get(key), after.get(key)):
            was, now = before.get(key), after.get(key)
            yield _change(text_rank(was, now), key, was, now, _text_sentence(was, now))
    for key in _SCHEMAS:
        yield from _schema(key, before.get(key), after.get(key))
    yield from _annotations(before.get("annotations"), after.get("annotations"))
    for key in sorted((before.keys() | after.keys()) - {"name", "annotations", *_TEXTS, *_SCHEMAS}):
        was, now = before.get(key), after.get(key)
        if (key in before) is (key in after) and same(was, now):
            continue
        rank: Rank = "cosmetic" if key in _PICTURES else "described" if key in _KNOWN else "widened"
        told = "differs" if key in _KNOWN else "differs, and it cannot be told what it does"
        yield _change(rank, visible(key, 80), was, now, told)


def _text_sentence(was: Any, now: Any) -> str:
    if was is None:
        return "is new"
    return "is gone" if now is None else "differs"


def _schema(key: str, before: Any, after: Any) -> Iterator[Change]:
    if key == "outputSchema" and (before is None) is not (after is None):
        rank: Rank = "widened" if after is None else "narrowed"
        verb = "is gone: results may be of any shape" if after is None else "is new: results have a shape"
        yield _change(rank, key, before, after, verb)
        return
    told: dict[int, tuple[Any, str]] = {}  # by identity: what many places refer to is written once
    for step in schema_changes(before, after):
        yield _stepped(key, step, told)


def _stepped(key: str, step: Step, told: dict[int, tuple[Any, str]]) -> Change:
    path = f"{key}.{step.path}" if step.path and not step.path.startswith("[") else f"{key}{step.path}"
    for value in (step.before, step.after):
        if id(value) not in told:
            told[id(value)] = (value, _value(value))
    sentence = visible(f"{path} {step.sentence}.", SENTENCE_CHARS_MAX)
    before, after = (told[id(value)][1] for value in (step.before, step.after))
    return Change(step.rank, path[:SENTENCE_CHARS_MAX], before, after, sentence)


def _annotations(before: Any, after: Any) -> Iterator[Change]:
    if same(before, after):
        return
    was, now = before or {}, after or {}
    if not isinstance(was, dict) or not isinstance(now, dict):
        yield _change("widened", "annotations", before, after, "cannot be read")
        return
    for key in sorted(was.keys() | now.keys()):
        if (key in was) is (key in now) and same(was.get(key), now.get(key)):
            continue
        path = f"annotations.{visible(key, 80)}"
        one, other = was.get(key), now.get(key)
        if key == "title":
            yield _change(text_rank(one, other), path, one, other, _text_sentence(one, other))
        elif key not in _HINTS:
            yield _change("widened", path, one, other, "differs, and it cannot be told what it means")
        else:
            yield _hint(key, path, one, other)


def _hint(key: str, path: str, was: Any, now: Any) -> Change:
    default, careful = _HINTS[key]
    old, new = (default if value is None else value for value in (was, now))
    if not isinstance(old, bool) or not isinstance(new, bool):
        return _change("widened", path, was, now, "is neither true nor false")
    if old is new:
        return _change("cosmetic", path, was, now, "says what holds without it")
    told = f"was {str(old).lower()}, and is {str(new).lower()}"
    return _change("narrowed" if new is careful else "widened", path, was, now, told)


def _change(rank: Rank, path: str, before: Any, after: Any, told: str) -> Change:
    sentence = visible(f"{path} {told}.", SENTENCE_CHARS_MAX)
    return Change(rank, path[:SENTENCE_CHARS_MAX], _value(before), _value(after), sentence)


def _value(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"


def _instructing(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """What speaks to a model now and did not before: by text, then by what was found in it."""
    known = {text for _, text in _strings(before)} if before else set()
    fresh: list[tuple[_Way, str, Told]] = []
    for way, text in _strings(after):
        if text not in known and (found := instructions_in(text)):
            fresh += [(way, text, told) for told in found]
    old = {(told.name, told.words) for text in known for told in instructions_in(text)} if fresh else set()
    for way, text, told in fresh:
        if (told.name, told.words) not in old:
            path = _path(way)
            sentence = f"{path} {told.what} ({told.name}): {told.words}"
            yield Change("instructing", path, "", _value(text), visible(sentence, SENTENCE_CHARS_MAX))


_Way = tuple[Any, ...]
"""(where the member stands, its name): nested from the inside, so that nothing is joined that nobody reads."""


def _strings(definition: dict[str, Any]) -> Iterator[tuple[_Way, str]]:
    """(way, text) of every string, names of members included. Pictures are not text."""
    waiting: list[tuple[_Way, Any]] = [
        (((), key), value) for key, value in sorted(definition.items(), reverse=True) if key not in _PICTURES
    ]
    while waiting:
        way, value = waiting.pop()
        if isinstance(value, str):
            yield way, value
        elif isinstance(value, dict):
            for key in sorted(value):
                yield way, key
            waiting += [((way, key), value[key]) for key in sorted(value, reverse=True)]
        elif isinstance(value, list):
            waiting += [((way, "[]"), one) for one in reversed(value)]


def _path(way: _Way) -> str:
    parts: list[str] = []
    while way:
        way, name = way
        parts.append(visible(name, 80))
    return ".".join(reversed(parts)).replace(".[]", "[]")[:SENTENCE_CHARS_MAX]
