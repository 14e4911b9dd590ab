"""What differs between two JSON Schemas, from the side of who is called: wider where more may be said than before,
narrower where less. Pure; total on any JSON.

Read as what a schema declares: a property that it does not name is not used. Every keyword is a condition for itself,
and the sum is the gravest; what cannot be told (a `not`, a pattern that became another, an unknown keyword, a reference
that cannot be followed, more than a budget of work) is wider. `$ref` is followed within the document, and what is
reached from within a keyword that is not looked into counts as part of it. Counterparts: `definitions.py`,
`schema_references.py`.
"""

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from tidegate.policy.instructing import visible
from tidegate.policy.schema_references import TEXTS, Document, Numbers, TooMuch, Unfollowable, Work

Direction = Literal["cosmetic", "described", "narrowed", "widened"]

DEPTH_MAX: Final = 100  # of places within one another, references followed
REFS_MAX: Final = 16  # that lead to one another
NAME_CHARS_MAX: Final = 80
_PLACE_COSTS: Final = 20  # of the budget, as does a step that is told
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
_ABSENT: Final = object()
_NOTHING: Final[dict[str, Any]] = {}
_UNFOLLOWED: Final = "has a reference that cannot be followed, so what it takes cannot be told"
_TOO_MUCH: Final = "is too large to compare in full, so what else differs cannot be told"


class Step(NamedTuple):
    """One difference. `path` leads to it as in `filter.author[]`; `sentence` completes "PATH …"."""

    rank: Direction
    path: str
    before: Any
    after: Any
    sentence: str


def schema_changes(before: Any, after: Any) -> list[Step]:
    """In the order of the schemas; [] where they mean the same. At most one step for a keyword of a place."""
    if same(before, after):
        return []
    work = Work()
    steps: list[Step] = []
    try:
        for step in _Walk(before, after, work).steps():
            work.spend(_PLACE_COSTS)
            steps.append(step)
    except TooMuch:
        steps.append(Step("widened", "", None, None, _TOO_MUCH))
    return steps


def same(before: Any, after: Any) -> bool:
    """As JSON: 1 is not true."""
    return before is after or canonical(before) == canonical(after)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def text_rank(before: Any, after: Any) -> Direction:
    """Of one text in place of another: cosmetic where only runs of spaces, case or what ends it differ."""
    if isinstance(before, str) and isinstance(after, str) and _plain(before) == _plain(after):
        return "cosmetic"
    return "described"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .!…。")


class _Walk:
    """Two whole documents, within which `$ref` is followed."""

    def __init__(self, before: Any, after: Any, work: Work) -> None:
        self._roots = (before, after)
        self._work = work
        self._documents = (Document(before, work), Document(after, work))
        self._numbers = Numbers(work)
        self._fitting = Numbers(work, self._numbers)
        self._seen: set[tuple[int, int]] = set()  # pairs with references that were compared

    def steps(self) -> Iterator[Step]:
        """Of the documents, which differ."""
        told = False
        if name := self._documents[0].naming() or self._documents[1].naming():
            told = True
            sentence = f"has `{name}`, by which references lead where it cannot be told"
            yield Step("widened", "", None, None, sentence)
        for step in self.pair(*self._roots, "", 0):
            told = told or step.rank != "cosmetic"
            yield step
        was, now = (document.definitions() for document in self._documents)
        if not told and not self._same(was, now):
            yield Step("described", "", None, None, "sets other definitions aside (`$defs`)")

    def pair(self, before: Any, after: Any, path: str, depth: int) -> Iterator[Step]:
        """What differs between two schemas that stand at one place."""
        self._work.spend(_PLACE_COSTS)
        if self._is_settled(before, after):
            return
        if depth > DEPTH_MAX:
            yield Step("widened", path, None, None, "nests too deep to compare")
            return
        if _refers(before) or _refers(after):
            both = (self._numbers.of(before), self._numbers.of(after))
            if both in self._seen:
                return
            self._seen.add(both)
        try:
            old, new = self._expanded(before, 0), self._expanded(after, 1)
        except Unfollowable:
            yield Step("widened", path, before, after, _UNFOLLOWED)
            return
        if old is None or new is None:
            if not self._same(before, after):
                yield Step("widened", path, before, after, "is no schema that can be read")
            yield from self._within(before, after, path, "")
            return
        yield from self._texts(old, new, path)
        if old is _NOTHING or new is _NOTHING:
            if old is not new:
                yield _opened("takes", path, before, after, widened=old is _NOTHING)
            return
        yield from self._keywords(old, new, path, depth + 1)

    def _same(self, before: Any, after: Any) -> bool:
        if before is _ABSENT or after is _ABSENT:
            return before is after
        return self._numbers.of(before) == self._numbers.of(after)

    def _is_settled(self, before: Any, after: Any) -> bool:
        """The same, and nothing in it refers to what may have changed."""
        return self._same(before, after) and (before is _ABSENT or not self._numbers.refers(before))

    def _expanded(self, schema: Any, side: int) -> dict[str, Any] | None:
        """The schema as an object, references followed; _NOTHING is what nothing fits. None: it is no schema.
        Raises Unfollowable.
        """
        if isinstance(schema, bool):
            return {} if schema else _NOTHING
        if not isinstance(schema, dict):
            return None
        here: dict[str, Any] = schema
        for _ in range(REFS_MAX):
            if "$ref" not in here:
                return here
            target = self._documents[side].target(here["$ref"])
            if not isinstance(target, bool | dict):
                raise Unfollowable
            self._work.spend(len(here) + (len(target) if isinstance(target, dict) else 0))
            beside = {key: value for key, value in here.items() if key != "$ref"}
            if beside.keys() - _SILENT:
                more = beside.get("allOf")
                beside["allOf"] = [*(more if isinstance(more, list) else []), {"$ref": here["$ref"]}]
                return beside
            if target is False:
                return _NOTHING
            kept = {key: value for key, value in beside.items() if key not in ("$defs", "definitions")}
            here = {**({} if target is True else target), **kept}
        raise Unfollowable

    def _keywords(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        yield from self._types(old, new, path)
        yield from self._values(old, new, path)
        yield from self._object(old, new, path, depth)
        yield from self._array(old, new, path, depth)
        yield from self._alternatives(old, new, path, depth)
        yield from self._all(old, new, path, depth)
        for key in sorted((old.keys() | new.keys()) - _JOINT - _SILENT):
            yield from self._keyword(key, old.get(key, _ABSENT), new.get(key, _ABSENT), path)

    def _keyword(self, key: str, old: Any, new: Any, path: str) -> Iterator[Step]:
        if self._is_settled(old, new):
            return
        if self._same(old, new):
            yield from self._within(old, new, path, key)
            return
        was, now = _shown(old), _shown(new)
        name = visible(key, NAME_CHARS_MAX)
        if key in _OPAQUE and self._fits_same(old, new):
            yield Step("described", path, was, now, f"is described otherwise within `{name}`")
            yield from self._within(old, new, path, key)
        elif key in _LOWER | _UPPER | _CONDITIONS and (old is _ABSENT or new is _ABSENT):
            verb = "is bound by" if old is _ABSENT else "is no longer bound by"
            yield Step("narrowed" if old is _ABSENT else "widened", path, was, now, f"{verb} `{name}`")
        elif key in _LOWER | _UPPER and _is_number(old) and _is_number(new):
            tighter = (new > old) is (key in _LOWER)
            yield Step("narrowed" if tighter else "widened", path, was, now, f"has another `{name}`: {was} → {now}")
        else:
            yield Step("widened", path, was, now, f"has another `{name}`: what it lets in cannot be told")

    def _fits_same(self, old: Any, new: Any) -> bool:
        if old is _ABSENT or new is _ABSENT:
            return False
        return self._fitting.of(old) == self._fitting.of(new)

    def _within(self, old: Any, new: Any, path: str, key: str) -> Iterator[Step]:
        """Two values that fit the same and are not looked into: what their references lead to, taken together."""
        where = f" within `{visible(key, NAME_CHARS_MAX)}`" if key else ""
        try:
            was, now = (document.reached(one) for document, one in zip(self._documents, (old, new), strict=True))
        except Unfollowable:
            yield Step("widened", path, None, None, f"has a reference{where} that cannot be followed")
            return
        if was.keys() != now.keys() or not all(self._fits_same(was[ref], now[ref]) for ref in was):
            yield Step("widened", path, None, None, f"refers{where} to what has changed")
        elif not all(self._same(was[ref], now[ref]) for ref in was):
            yield Step("described", path, None, None, f"refers{where} to what is described otherwise")

    def _object(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        was, now = _mapping(old, "properties"), _mapping(new, "properties")
        needed_was, needed_now = _names(old, "required"), _names(new, "required")
        if was is None or now is None or needed_was is None or needed_now is None:
            if any(not self._is_settled(old.get(key), new.get(key)) for key in ("properties", "required")):
                yield Step("widened", path, None, None, "has `properties` or `required` that cannot be read")
            return
        self._work.spend(len(was) + len(now) + len(needed_was) + len(needed_now))
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
        if not self._same(old, new) or isinstance(old, dict):
            yield from self.pair(old, new, path, depth)

    def _array(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        was, now = old.get("uniqueItems", False), new.get("uniqueItems", False)
        if not self._same(was, now):
            yield _opened("may repeat items", path, was, now, widened=now is not True)
        if any(map(_is_unclear_list, (old, new))) or _turned(old, new):
            if any(not self._is_settled(old.get(key), new.get(key)) for key in ("prefixItems", "items")):
                yield Step("widened", path, None, None, "has lists of items that are read in several ways")
            return
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
        pairs, gone, come = self._matched(was, now)
        for one, other in pairs:
            yield from self.pair(one, other, path, depth)
        for schema in come:
            yield Step("widened", path, None, schema, "has one more alternative")
        for schema in gone:
            yield Step("narrowed", path, schema, None, "has one alternative less")

    def _all(self, old: dict[str, Any], new: dict[str, Any], path: str, depth: int) -> Iterator[Step]:
        was, now = old.get("allOf", []), new.get("allOf", [])
        if not isinstance(was, list) or not isinstance(now, list):
            if not self._is_settled(was, now):
                yield Step("widened", path, None, None, "has an `allOf` that cannot be read")
            return
        pairs, gone, come = self._matched(was, now)
        for one, other in pairs:
            yield from self.pair(one, other, path, depth)
        for schema in come:
            yield Step("narrowed", path, None, schema, "has one more condition")
        for schema in gone:
            yield Step("widened", path, schema, None, "has one condition less")

    def _texts(self, old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Step]:
        for key in TEXTS:
            was, now = old.get(key), new.get(key)
            if not self._same(was, now):
                self._work.read(was, now)
                yield Step(text_rank(was, now), path, was, now, f"has another {key.strip('$')}")
        for key in sorted(_SILENT - {*TEXTS, "$defs", "definitions"}):
            was, now = old.get(key), new.get(key)
            if not self._same(was, now):
                yield Step("described", path, was, now, f"has another `{key}`")

    def _types(self, old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Step]:
        if self._same(old.get("type", _ABSENT), new.get("type", _ABSENT)):
            return
        self._work.spend(sum(len(one["type"]) for one in (old, new) if isinstance(one.get("type"), list)))
        was, now = _type_set(old.get("type", _ABSENT)), _type_set(new.get("type", _ABSENT))
        if was is None or now is None:
            yield Step("widened", path, old.get("type"), new.get("type"), "has a type that cannot be read")
            return
        told = f"{_typed(old)} → {_typed(new)}"
        if now - was:
            yield Step("widened", path, old.get("type"), new.get("type"), f"may be of another type: {told}")
        elif was - now:
            yield Step("narrowed", path, old.get("type"), new.get("type"), f"may be of fewer types: {told}")

    def _values(self, old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[Step]:
        """`enum` and `const`, each a set of values."""
        for key in ("enum", "const"):
            was, now = old.get(key, _ABSENT), new.get(key, _ABSENT)
            if self._same(was, now):
                continue
            if was is _ABSENT or now is _ABSENT:
                verb = "is no longer one of given values" if now is _ABSENT else "must be one of given values"
                yield Step("widened" if now is _ABSENT else "narrowed", path, _shown(was), _shown(now), verb)
                continue
            olds, news = ([was], [now]) if key == "const" else (was, now)
            if not isinstance(olds, list) or not isinstance(news, list):
                yield Step("widened", path, was, now, "has an `enum` that cannot be read")
                continue
            if come := self._lacking(news, olds):
                yield Step("widened", path, was, now, f"may also be {self._few(come)}")
            if gone := self._lacking(olds, news):
                yield Step("narrowed", path, was, now, f"may not be {self._few(gone)} any more")

    def _lacking(self, values: list[Any], others: list[Any]) -> list[Any]:
        """Those that are not among the others, once each."""
        self._work.spend(len(values) + len(others))
        there = {self._numbers.of(value) for value in others}
        found = {self._numbers.of(value): value for value in values}
        return [value for number, value in found.items() if number not in there]

    def _few(self, values: list[Any]) -> str:
        texts = [canonical(value) for value in values[:5]]
        self._work.read(*texts)
        told = ", ".join(visible(text, 40) for text in texts)
        return told if len(values) <= 5 else f"{told} and {len(values) - 5} more"

    def _matched(self, was: list[Any], now: list[Any]) -> tuple[list[tuple[Any, Any]], list[Any], list[Any]]:
        """(pairs to compare, those that went, those that came): equal ones first, then by their order."""
        self._work.spend(len(was) + len(now))
        left: defaultdict[int, deque[int]] = defaultdict(deque)
        for index, schema in enumerate(now):
            left[self._numbers.of(schema)].append(index)
        pairs: list[tuple[Any, Any]] = []
        olds: list[Any] = []
        taken: set[int] = set()
        for schema in was:
            at = left[self._numbers.of(schema)]
            if at:
                taken.add(at[0])
                pairs.append((schema, now[at.popleft()]))
            else:
                olds.append(schema)
        news = [schema for index, schema in enumerate(now) if index not in taken]
        if len(olds) == len(news):
            return [*pairs, *zip(olds, news, strict=True)], [], []
        return pairs, olds, news


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


def _opened(what: str, path: str, before: Any, after: Any, *, widened: bool) -> Step:
    sentence = f"{what} what it did not before" if widened else f"{what} less than before"
    return Step("widened" if widened else "narrowed", path, before, after, sentence)


def _refers(schema: Any) -> bool:
    return isinstance(schema, dict) and "$ref" in schema


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


def _is_unclear_list(schema: dict[str, Any]) -> bool:
    """A list of `items` beside `prefixItems` was never a schema; neither was a `prefixItems` that is no list."""
    given = "prefixItems" in schema
    return given and (isinstance(schema.get("items"), list) or not isinstance(schema["prefixItems"], list))


def _turned(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """The older way to tell first items in place of the newer, or the other way round."""
    ways = [isinstance(schema.get("items"), list) for schema in (old, new)]
    return ways[0] is not ways[1] and bool(_heads(old)) and bool(_heads(new))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _below(path: str, name: str) -> str:
    shown = visible(name, NAME_CHARS_MAX)
    return f"{path}.{shown}" if path else shown


def _shown(value: Any) -> Any:
    return None if value is _ABSENT else value
