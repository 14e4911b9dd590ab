"""Two JSON documents made comparable at a bounded price: equal parts have equal numbers, references are followed within
each document, and every look costs of a budget. Deterministic: the same pair runs out of it at the same place.

Counterpart: `schema_changes.py` tells what differs. What cannot be followed is said, never passed over.
"""

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

WORK_MAX: Final = 200_000  # one to two microseconds each
TEXTS: Final = ("title", "description", "$comment")
_CHARS_FOR_ONE: Final = 64
_DEFINITIONS: Final = ("$defs", "definitions")
_DATA: Final = frozenset({"enum", "const", "default", "examples", "example"})
_NAMING: Final = ("$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor", "$recursiveAnchor")


class TooMuch(Exception):
    """The budget of a comparison is spent."""


class Unfollowable(Exception):
    """A reference that leads nowhere, out of the document, or where readers of JSON Schema disagree."""


class Work:
    """The budget of one comparison."""

    def __init__(self, units: int = WORK_MAX) -> None:
        self._left = units

    def spend(self, units: int) -> None:
        """Raises TooMuch where it is not there any more."""
        self._left -= units
        if self._left < 0:
            raise TooMuch

    def read(self, *texts: Any) -> None:
        """Looking at texts, by their length."""
        self.spend(sum(len(text) for text in texts if isinstance(text, str)) // _CHARS_FOR_ONE)


class Numbers:
    """Equal numbers for what is equal as JSON (1 is not true, nor 1.0), however often it is asked."""

    def __init__(self, work: Work, whole: "Numbers | None" = None) -> None:
        """With `whole`, the numbers of all, these are of what fits: titles and descriptions do not count."""
        self._work = work
        self._whole = whole
        self._numbers: dict[str, int] = {}
        self._known: dict[int, tuple[Any, int]] = {}  # by identity; what is held here keeps it
        self._refers: list[bool] = []

    def of(self, value: Any) -> int:
        if not isinstance(value, dict | list):
            self._work.read(value)
            return self._number(f"s{value}" if isinstance(value, str) else json.dumps(value), refers=False)
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        self._work.spend(1 + len(value))
        number = self._object(value) if isinstance(value, dict) else self._list(value)
        self._known[id(value)] = (value, number)
        return number

    def refers(self, value: Any) -> bool:
        """Whether there is a reference in it, at any depth."""
        return self._refers[self.of(value)]

    def _object(self, value: dict[str, Any]) -> int:
        whole = self._whole
        if whole is None:
            parts = [(json.dumps(key), self.of(value[key])) for key in sorted(value)]
            refers = "$ref" in value or any(self._refers[number] for _, number in parts)
            return self._number("{" + ",".join(f"{key}:{number}" for key, number in parts), refers=refers)
        told = [key for key in sorted(value) if key not in TEXTS or not isinstance(value[key], str)]
        of_data = [f"{json.dumps(key)}={whole.of(value[key])}" for key in told if key in _DATA]
        of_rest = [f"{json.dumps(key)}:{self.of(value[key])}" for key in told if key not in _DATA]
        return self._number("{" + ",".join(of_data + of_rest), refers=False)

    def _list(self, value: list[Any]) -> int:
        numbers = [self.of(one) for one in value]
        refers = any(self._refers[number] for number in numbers)
        return self._number("[" + ",".join(map(str, numbers)), refers=refers)

    def _number(self, key: str, *, refers: bool) -> int:
        number = self._numbers.setdefault(key, len(self._numbers))
        if number == len(self._refers):
            self._refers.append(refers)
        return number


class Document:
    """One of the two, within which references are followed."""

    def __init__(self, root: Any, work: Work) -> None:
        self._root = root
        self._work = work
        self._targets: dict[str, Any] = {}
        self._direct: dict[str, tuple[str, ...]] = {}

    def target(self, ref: Any) -> Any:
        """What a reference leads to. Raises Unfollowable."""
        self._work.spend(1)
        if not isinstance(ref, str):
            raise Unfollowable
        if ref not in self._targets:
            self._targets[ref] = self._found(ref)
        return self._targets[ref]

    def reached(self, value: Any) -> dict[str, Any]:
        """All that the references in a value lead to, and those in there, by reference. Raises Unfollowable."""
        found: dict[str, Any] = {}
        waiting = list(self._refs_in(value))
        while waiting:
            ref = waiting.pop()
            if ref not in found:
                found[ref] = self.target(ref)
                if ref not in self._direct:
                    self._direct[ref] = tuple(self._refs_in(found[ref]))
                waiting += self._direct[ref]
                self._work.spend(1 + len(self._direct[ref]))
        return found

    def naming(self) -> str:
        """A keyword by which references may lead elsewhere than to where they point; "" where there is none."""
        found: list[str] = []
        refers = False
        for value, is_root, is_data in self._objects(self._root):
            found += [key for key in _NAMING if isinstance(value.get(key), str | bool)]
            found += ["$id"] if not is_root and isinstance(value.get("$id"), str) else []
            found += ["id"] if not is_root and not is_data and isinstance(value.get("id"), str) else []
            refers = refers or "$ref" in value
        return next((key for key in found if key != "id" or refers), "")

    def definitions(self) -> list[Any]:
        """What is set aside for references, at any depth, as it comes."""
        return [
            [key, value[key]]
            for value, _, _ in self._objects(self._root)
            for key in _DEFINITIONS
            if isinstance(value.get(key), dict)
        ]

    def _objects(self, root: Any) -> Iterator[tuple[dict[str, Any], bool, bool]]:
        """(object, whether it is the whole document, whether it stands in data) at any depth, by name."""
        waiting: list[tuple[Any, bool]] = [(root, False)]
        while waiting:
            value, is_data = waiting.pop()
            if not isinstance(value, dict | list):
                continue
            self._work.spend(1 + len(value))
            if isinstance(value, dict):
                yield value, value is root, is_data
                waiting += [(value[key], is_data or key in _DATA) for key in sorted(value, reverse=True)]
            else:
                waiting += [(one, is_data) for one in reversed(value)]

    def _refs_in(self, value: Any) -> Iterator[str]:
        for one, _, _ in self._objects(value):
            if "$ref" in one and not isinstance(one["$ref"], dict):  # a property can have that name
                if not isinstance(one["$ref"], str):
                    raise Unfollowable
                yield one["$ref"]

    def _found(self, ref: str) -> Any:
        self._work.read(ref)
        here = self._root
        for name in _parts(ref):
            if isinstance(here, dict) and name in here:
                here = here[name]
            elif isinstance(here, list) and name.isdecimal() and name.isascii() and str(int(name[:9])) == name:
                here = here[int(name)] if int(name) < len(here) else None
            else:
                here = None
            if here is None:
                raise Unfollowable
        return here


def _parts(ref: str) -> list[str]:
    """The names on the way of a pointer within the document. Raises Unfollowable for what is none."""
    if ref == "#":
        return []
    if not ref.startswith("#/") or "%2f" in ref.lower():  # an escaped slash is read in two ways
        raise Unfollowable
    try:
        pointer = unquote(ref[2:], errors="strict")
    except UnicodeDecodeError as wrong:
        raise Unfollowable from wrong
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
