"""What differs between two JSON Schemas, from the side of who is called: wider where more may be said than before,
narrower where less. Pure; total on any JSON.

Read as what a schema declares: a property that it does not name is not used. Every keyword is a condition for itself,
and the sum is the gravest; what cannot be told (a `not`, a pattern that became another, an unknown keyword) is wider.
`$ref` is followed within the document. Counterpart: `definitions.py`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from tidegate.policy.instructing import visible

Direction = Literal["cosmetic", "described", "narrowed", "widened"]

NODES_MAX: Final = 20_000  # pairs of schemas that are compared; more cannot be told
REFS_MAX: Final = 16  # that lead to one another
NAME_CHARS_MAX: Final = 80
TEXTS: Final = ("title", "description", "$comment")
_TYPES: Final = frozenset({"null", "boolean", "integer", "fraction", "string", "array", "object"})
_SILENT: Final = frozenset(
    {*TEXTS, "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$defs", "definitions"}
)
_LOWER: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains"})
_UPPER: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains"})
_CONDITIONS: Final = frozenset({"pattern", "format", "multipleOf", "contentEncoding", "contentMediaType"})
_OPAQUE: Final = frozenset(
    {"not", "if", "then", "else", "oneOf", "contains", "patternProperties", "propertyNames", "dependentSchemas"}
    | {"dependentRequired", "dependencies", "unevaluatedProperties", "unevaluatedItems", "contentSchema"}
)
_JOINT: Final = frozenset(
    {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems", "uniqueItems"}
    | {"anyOf", "allOf", "$ref"}
)
_REFERS: Final = '"$ref"'
_ABSENT: Final = object()
_NOTHING: Final[dict[str, Any]] = {}


class Step(NamedTuple):
    """One difference. `path` leads to it as in `filter.author[]`; `sentence` completes "PATH …"."""

    rank: Direction
    path: str
    before: Any
    after: Any
    sentence: str


def schema_changes(before: Any, after: Any) -> list[Step]:
    """In the order of the schemas; [] where they mean the same. At most one step for a keyword of a place."""
    return list(_Walk(before, after).pair(before, after, "", 0))


def same(before: Any, after: Any) -> bool:
    """As JSON: 1 is not true."""
    return before is after or canonical(before) == canonical(after)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def text_rank(before: Any, after: Any) -> Direction:
    """Of one text in place of another: cosmetic where only spaces, case or punctuation differ."""
    if isinstance(before, str) and isinstance(after, str) and _words(before) == _words(after):
        return "cosmetic"
    return "described"


def _words(text: str) -> list[str]:
    return "".join(sign if sign.isalnum() or ord(sign) > 0x2FF else " " for sign in text.casefold()).split()


class _Walk:
    """Two whole documents, within which `$ref` is followed."""

    def __init__(self, before: Any, after: Any) -> None:
        self._roots = (before, after)
        self._seen: set[tuple[str, str]] = set()  # pairs with references that were compared, as JSON
        self._nodes = 0
        self._defs_differ = not same(_definitions(before), _definitions(after))

    def pair(self, before: Any, after: Any, path: str, depth: int) -> Iterator[Step]:
        """What differs between two schemas that stand at one place."""
        self._nodes += 1
        if self._nodes > NODES_MAX or depth > 100:
            if self._nodes == NODES_MAX + 1 or depth > 100:
                yield Step("widened", path, None, None, "is too large to compare")
            return
        texts = (canonical(before), canonical(after))
        if texts[0] == texts[1] and _REFERS not in texts[0]:
            return
        if _refers(before) or _refers(after):
            if texts in self._seen:
                return
            self._seen.add(texts)
        old, new = self._expanded(before, 0), self._expanded(after, 1)
        if old is None or new is None:
            if not same(before, after):
                yield Step("widened", path, before, after, "has a reference that cannot be followed")
            return
        yield from _texts(old, new, path)
        if old is _NOTHING or new is _NOTHING:
            if old is not new:
                yield _opened("takes", path, before, after, widened=old is _NOTHING)
            return
        yield from self._keywords(old, new, path, depth + 1)

    def _expanded(self, schema: Any, side: int) -> dict[str, Any] | None:
        """The schema as an object, references followed; _NOTHING is what nothing fits. None: it cannot be told."""
        if isinstance(schema, bool):
            return {} if schema else _NOTHING
        for _ in range(REFS_MAX):
            if not isinstance(schema, dict):
                return None
            if "$ref" not in schema:
                return schema
            target = _target(self._roots[side], schema["$ref"])
            if isinstance(target, bool):
                return {} if target else _NOTHING
            if not isinstance(target, dict):
                return None
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            if beside.keys() - _SILENT:
                more = beside.get("allOf")
                beside["allOf"] = [*(more if isinstance(more, list) else []), {"$ref": schema["$ref"]}]
                return beside
            schema = {**target, **{key: value for key, value in beside.items() if key not in ("$defs", "definitions")}}
        return None

    def _keywords(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        yield from _types(old, new, path)
        yield from _values(old, new, path)
        yield from self._object(old, new, path, depth)
        yield from self._array(old, new, path, depth)
        yield from self._alternatives(old, new, path, depth)
        yield from self._all(old, new, path, depth)
        for key in sorted((old.keys() | new.keys()) - _JOINT - _SILENT):
            yield from self._keyword(key, old.get(key, _ABSENT), new.get(key, _ABSENT), path)

    def _keyword(self, key: str, old: Any, new: Any, path: str) -> Iterator[Step]:
        if (old is _ABSENT and new is _ABSENT) or (old is not _ABSENT and new is not _ABSENT and same(old, new)):
            if key in _OPAQUE and self._defs_differ and _REFERS in canonical(old):
                yield Step("widened", path, None, None, f"refers within `{key}` to what has changed")
            return
        was, now = _shown(old), _shown(new)
        name = visible(key, NAME_CHARS_MAX)
        if key in _OPAQUE and old is not _ABSENT and new is not _ABSENT and same(_mute(old), _mute(new)):
            yield Step("described", path, was, now, f"is described otherwise within `{name}`")
        elif key in _LOWER | _UPPER | _CONDITIONS and (old is _ABSENT or new is _ABSENT):
            verb = "is bound by" if old is _ABSENT else "is no longer bound by"
            yield Step("narrowed" if old is _ABSENT else "widened", path, was, now, f"{verb} `{name}`")
        elif key in _LOWER | _UPPER and _is_number(old) and _is_number(new):
            tighter = (new > old) is (key in _LOWER)
            yield Step("narrowed" if tighter else "widened", path, was, now, f"has another `{name}`: {was} → {now}")
        else:
            yield Step("widened", path, was, now, f"has another `{name}`: what it lets in cannot be told")

    def _object(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        was, now = _mapping(old, "properties"), _mapping(new, "properties")
        needed_was, needed_now = _names(old, "required"), _names(new, "required")
        if was is None or now is None or needed_was is None or needed_now is None:
            if any(not same(old.get(key), new.get(key)) for key in ("properties", "required")):
                yield Step("widened", path, None, None, "has `properties` or `required` that cannot be read")
            return
        rest_was, rest_now = old.get("additionalProperties", True), new.get("additionalProperties", True)
        for name in sorted(now.keys() - was.keys()):
            how = "required" if name in needed_now else "optional"
            yield Step("widened", _below(path, name), None, now[name], f"is new, and {how}")
        for name in sorted(was.keys() - now.keys()):
            yield Step("narrowed", _below(path, name), was[name], None, "is gone")
            if isinstance(rest_now, dict):
                yield from self.pair(was[name], rest_now, _below(path, name), depth)
            elif "patternProperties" in new or "patternProperties" in old:
                yield Step("widened", _below(path, name), was[name], None, "may now be whatever a pattern lets in")
        for name in sorted(was.keys() & now.keys()):
            yield from self.pair(was[name], now[name], _below(path, name), depth)
        here = (was.keys() & now.keys()) | ((needed_was | needed_now) - was.keys() - now.keys())
        for name in sorted((needed_now - needed_was) & here):
            yield Step("narrowed", _below(path, name), "optional", "required", "is required now")
        for name in sorted((needed_was - needed_now) & here):
            yield Step("widened", _below(path, name), "required", "optional", "is optional now")
        yield from self._rest(rest_was, rest_now, _below(path, "*"), depth)

    def _rest(self, old: Any, new: Any, path: str, depth: int) -> Iterator[Step]:
        """`additionalProperties`; open where it is left out."""
        if not same(old, new) or isinstance(old, dict):
            yield from self.pair(old, new, path, depth)

    def _array(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        was, now = old.get("uniqueItems", False), new.get("uniqueItems", False)
        if not same(was, now):
            yield _opened("may repeat items", path, was, now, widened=now is not True)
        first = (_heads(old), _heads(new))
        if len(first[0]) != len(first[1]):
            yield Step("widened", path, len(first[0]), len(first[1]), "names another number of first items")
            return
        for number, (one, other) in enumerate(zip(*first, strict=True)):
            yield from self.pair(one, other, f"{path}[{number}]", depth)
        rests = [
            schema.get("items", True) if not isinstance(schema.get("items"), list) else True for schema in (old, new)
        ]
        yield from self.pair(rests[0], rests[1], f"{path}[]", depth)

    def _alternatives(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        was, now = old.get("anyOf", _ABSENT), new.get("anyOf", _ABSENT)
        if was is _ABSENT and now is _ABSENT:
            return
        if not isinstance(was, list) or not isinstance(now, list):
            if was is now or (was is not _ABSENT and now is not _ABSENT):
                yield Step("widened", path, None, None, "has an `anyOf` that cannot be read")
            else:
                verb = "has alternatives that bind it no longer" if now is _ABSENT else "must be one of alternatives"
                yield Step("widened" if now is _ABSENT else "narrowed", path, _shown(was), _shown(now), verb)
            return
        pairs, gone, come = _matched(was, now)
        for one, other in pairs:
            yield from self.pair(one, other, path, depth)
        for schema in come:
            yield Step("widened", path, None, schema, "has one more alternative")
        for schema in gone:
            yield Step("narrowed", path, schema, None, "has one alternative less")

    def _all(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        was, now = old.get("allOf", []), new.get("allOf", [])
        if not isinstance(was, list) or not isinstance(now, list):
            if not same(was, now):
                yield Step("widened", path, None, None, "has an `allOf` that cannot be read")
            return
        pairs, gone, come = _matched(was, now)
        for one, other in pairs:
            yield from self.pair(one, other, path, depth)
        for schema in come:
            yield Step("narrowed", path, None, schema, "has one more condition")
        for schema in gone:
            yield Step("widened", path, schema, None, "has one condition less")


def _texts(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Step]:
    for key in TEXTS:
        was, now = old.get(key), new.get(key)
        if not same(was, now):
            yield Step(text_rank(was, now), path, was, now, f"has another {key.strip('$')}")
    for key in sorted(_SILENT - {*TEXTS, "$defs", "definitions"}):
        was, now = old.get(key), new.get(key)
        if not same(was, now):
            yield Step("cosmetic" if key.startswith("$") else "described", path, was, now, f"has another `{key}`")


def _types(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Step]:
    was, now = _type_set(old.get("type", _ABSENT)), _type_set(new.get("type", _ABSENT))
    if was is None or now is None:
        if not same(old.get("type"), new.get("type")):
            yield Step("widened", path, old.get("type"), new.get("type"), "has a type that cannot be read")
        return
    told = f"{_typed(old)} → {_typed(new)}"
    if now - was:
        yield Step("widened", path, old.get("type"), new.get("type"), f"may be of another type: {told}")
    elif was - now:
        yield Step("narrowed", path, old.get("type"), new.get("type"), f"may be of fewer types: {told}")


def _type_set(value: Any) -> frozenset[str] | None:
    if value is _ABSENT:
        return _TYPES
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    wide = {one for name in names for one in (("integer", "fraction") if name == "number" else (name,))}
    return frozenset(wide) if "fraction" not in names and wide <= _TYPES else None


def _typed(schema: Mapping[str, Any]) -> str:
    value = schema.get("type", "any")
    return visible(value if isinstance(value, str) else " or ".join(map(str, value)), NAME_CHARS_MAX)


def _values(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Step]:
    """`enum` and `const`, each a set of values."""
    for key in ("enum", "const"):
        was, now = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if key == "const":
            was, now = (value if value is _ABSENT else [value] for value in (was, now))
        if was is _ABSENT and now is _ABSENT:
            continue
        if was is _ABSENT or now is _ABSENT:
            verb = "is no longer one of given values" if now is _ABSENT else "must be one of given values"
            yield Step("widened" if now is _ABSENT else "narrowed", path, _shown(was), _shown(now), verb)
            continue
        if not isinstance(was, list) or not isinstance(now, list):
            if not same(was, now):
                yield Step("widened", path, was, now, "has an `enum` that cannot be read")
            continue
        olds, news = {canonical(value) for value in was}, {canonical(value) for value in now}
        if come := sorted(news - olds):
            yield Step("widened", path, was, now, f"may also be {_few(come)}")
        if gone := sorted(olds - news):
            yield Step("narrowed", path, was, now, f"may not be {_few(gone)} any more")


def _few(values: list[str]) -> str:
    told = ", ".join(visible(value, 40) for value in values[:5])
    return told if len(values) <= 5 else f"{told} and {len(values) - 5} more"


def _matched(was: list[Any], now: list[Any]) -> tuple[list[tuple[Any, Any]], list[Any], list[Any]]:
    """(pairs to compare, those that went, those that came): equal ones first, then by their order."""
    left = [canonical(schema) for schema in now]
    pairs: list[tuple[Any, Any]] = []
    olds: list[Any] = []
    taken: set[int] = set()
    for schema in was:
        text = canonical(schema)
        at = next((index for index, other in enumerate(left) if other == text and index not in taken), None)
        if at is None:
            olds.append(schema)
        else:
            taken.add(at)
            pairs.append((schema, now[at]))
    news = [schema for index, schema in enumerate(now) if index not in taken]
    if len(olds) == len(news):
        return [*pairs, *zip(olds, news, strict=True)], [], []
    return pairs, olds, news


def _opened(what: str, path: str, before: Any, after: Any, *, widened: bool) -> Step:
    sentence = f"{what} what it did not before" if widened else f"{what} less than before"
    return Step("widened" if widened else "narrowed", path, before, after, sentence)


def _mute(value: Any) -> Any:
    """Without texts, at any depth."""
    if isinstance(value, dict):
        return {key: _mute(one) for key, one in value.items() if key not in TEXTS or not isinstance(one, str)}
    return [_mute(one) for one in value] if isinstance(value, list) else value


def _refers(schema: Any) -> bool:
    return isinstance(schema, dict) and "$ref" in schema


def _target(root: Any, ref: Any) -> Any:
    """What a reference within the document leads to; None where it leads nowhere, or out."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return None
    here = root
    for part in ref[2:].split("/") if ref != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(here, dict) or name not in here:
            return None
        here = here[name]
    return here


def _definitions(schema: Any) -> Any:
    return [schema.get("$defs"), schema.get("definitions")] if isinstance(schema, dict) else None


def _mapping(schema: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = schema.get(key, {})
    return value if isinstance(value, dict) else None


def _names(schema: dict[str, Any], key: str) -> set[str] | None:
    value = schema.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return set(value)


def _heads(schema: dict[str, Any]) -> list[Any]:
    value = schema["prefixItems"] if "prefixItems" in schema else schema.get("items")
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _below(path: str, name: str) -> str:
    shown = visible(name, NAME_CHARS_MAX)
    return f"{path}.{shown}" if path else shown


def _shown(value: Any) -> Any:
    return None if value is _ABSENT else value
