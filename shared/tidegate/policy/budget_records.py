"""Which records a tool's result holds: digests of the values to which a path leads, bit by bit, so that who counts a
large result can let others have their turn.

Counterparts: `budgets.py` reads the paths, the edge's `budgets.py` counts. Rules: only what the path leads to is made
into objects, however large the rest is; between two entries little is done; of a result `ENTRIES_MAX` are looked at.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from tidegate import json_values
from tidegate.policy.budgets import Counted

ENTRIES_MAX: Final = 50_000
READ_BYTES_MAX: Final = 16 * 1024  # that are read at once; of what is larger, parts. A larger record is its bytes
PART_BYTES_MAX: Final = READ_BYTES_MAX // 2  # of entries of a large list that are read together
FEW: Final = 50_000  # commas of a list that is taken apart at once, into bytes
_TOKENS_AT_ONCE: Final = 500
_MARK_BYTES: Final = 12
_NONE: Final = Raw(b"")
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_NEXT: Final = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+([\[\]{},])", re.DOTALL)
_NEXT_WITHIN: Final = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+([\[\]{}])", re.DOTALL)

T = TypeVar("T")
Text = bytes | memoryview
"""JSON that has been found to be well-formed."""


class _Result(msgspec.Struct):
    structured: Raw = msgspec.field(name="structuredContent", default=_NONE)
    content: Raw = _NONE


class _Content(msgspec.Struct):
    text: str = ""


_RESULT: Final = msgspec.json.Decoder(_Result)
_CONTENT: Final = msgspec.json.Decoder(_Content)
_LIST: Final = msgspec.json.Decoder(list[Raw])
_OBJECTS: Final = json_values.DECODER  # far exponents as fast as other numbers
_ANY: Final = msgspec.json.Decoder(Raw)


def marks_in(counted: Counted, result: bytes, key: bytes) -> Iterator[bytes | None]:
    """Keyed digests of the records in a tool's result: in its structured content, else in its first text that is JSON.
    None for what was looked at and is none. `key` is the tenant's: what Redis holds tells nobody what was read.
    """
    prefix = f"{counted.server}|".encode()
    for value in islice(_values(result, counted.steps), ENTRIES_MAX):
        yield (
            None
            if value is None
            else hashlib.blake2b(
                prefix + value, digest_size=_MARK_BYTES, key=key[:64], person=b"limits-records"
            ).digest()
        )


def records_in(counted: Counted, result: bytes, key: bytes) -> set[bytes]:
    """All of them, at once."""
    return {mark for mark in marks_in(counted, result, key) if mark is not None}


def _values(result: bytes, steps: tuple[str | None, ...]) -> Iterator[bytes | None]:
    read = _read(_RESULT, result)
    if read is None:
        return
    if len(result) > READ_BYTES_MAX:
        yield None  # each reading of a large text is a turn of its own
    if _is_there(read.structured):
        yield from _at(memoryview(read.structured), steps)
        return
    for entry in _read(_LIST, memoryview(read.content)) or ():
        content = _read(_CONTENT, memoryview(entry))
        value = _read(_ANY, content.text) if content is not None and content.text else None
        if value is not None and _is_there(value):
            yield from _at(memoryview(value), steps)
            return
        yield None


def _at(value: Text, steps: tuple[str | None, ...]) -> Iterator[bytes | None]:
    """All values to which the steps lead, the same for equal ones; None for what leads nowhere."""
    if len(value) <= READ_BYTES_MAX:
        yield from _within(_read(_OBJECTS, value), steps)
    elif not steps:
        yield bytes(value)
    elif (step := steps[0]) is not None:
        found = _field(step, value)
        yield None
        if found is not None:
            yield from _at(found, steps[1:])
    elif value[:1] == b"[":
        yield from _split(bytes(value), steps)
    else:
        yield None


def _within(value: Any, steps: tuple[str | None, ...]) -> Iterator[bytes | None]:
    found = [value]
    for step in steps:
        if step is None:
            found = [item for one in found if isinstance(one, list) for item in one]
        else:
            found = [one[step] for one in found if isinstance(one, dict) and step in one]
    yield from map(msgspec.json.encode, found) if found else (None,)


def _split(value: bytes, steps: tuple[str | None, ...]) -> Iterator[bytes | None]:
    """Of a large list: a few entries at a time; None now and then, where one is long."""
    rest = steps[1:]
    if value.count(b",") <= FEW:
        part, size = list[memoryview](), 0
        for one in (memoryview(raw) for raw in _read(_LIST, value) or ()):
            if len(one) > PART_BYTES_MAX:
                yield from _at(one, rest)
                continue
            if size + len(one) >= PART_BYTES_MAX:
                yield from _at(b"[" + b",".join(part) + b"]", steps)
                part, size = [], 0
            part.append(one)
            size += len(one) + 1
        if part:
            yield from _at(b"[" + b",".join(part) + b"]", steps)
        return
    start = last = 1  # of what was not looked at yet; of its last entry
    for end in _ends(value):
        if end is None:
            yield None
            continue
        if end - start > PART_BYTES_MAX and last > start:
            yield from _at(b"[" + value[start : last - 1] + b"]", steps)
            start = last
        if end - start > PART_BYTES_MAX:
            yield from _at(value[start:end].strip(), rest)
            start = end + 1
        last = end + 1
    if start < last:
        yield from _at(b"[" + value[start : last - 1] + b"]", steps)


def _ends(value: bytes) -> Iterator[int | None]:
    """Where the entries of a list end."""
    depth, tokens, at = 1, 0, 1
    while depth and (found := (_NEXT if depth == 1 else _NEXT_WITHIN).match(value, at)) is not None:
        at, token, tokens = found.end(), found[1], tokens + 1
        if token in b"[{":
            depth += 1
        elif token != b",":
            depth -= 1
        if depth == 0 or (depth == 1 and token == b","):
            yield at - 1
            tokens = 0
        elif tokens % _TOKENS_AT_ONCE == 0:
            yield None


def _is_there(value: Raw) -> bool:
    return bytes(memoryview(value)[:5]) not in (b"", b"null")


def _field(name: str, value: Text) -> Text | None:
    found: Any = _read(_named(name), value)
    if found is None:
        return None
    one = memoryview(found.get(name, _NONE) if isinstance(found, dict) else found.value)
    return one if len(one) else None


@lru_cache(maxsize=1_000)
def _named(name: str) -> "msgspec.json.Decoder[Any]":
    """Keeps this one field, or all of them where a struct cannot have one of this name."""
    try:
        kind = msgspec.defstruct("Named", [("value", Raw, _NONE)], rename={"value": name})
    except ValueError:
        return msgspec.json.Decoder(dict[str, Raw])
    return msgspec.json.Decoder(kind)


def _read(decoder: "msgspec.json.Decoder[T]", text: Text | str) -> T | None:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
