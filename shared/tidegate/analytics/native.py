"""Columns into blocks of ClickHouse's Native format: a column is laid out as a whole, at C speed, never value by value.

Times are integers, texts `str` or `bytes`. A block may leave columns out: ClickHouse fills them with the least value of
their type. Counterpart: `clickhouse.py`, which sends what this makes. Pure.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain
from struct import calcsize, pack
from struct import error as StructError
from typing import Any, Final

from tidegate.errors import AnalyticsRefused

Column = Sequence[Any]
Layout = Callable[[Column], bytes]

_NUMBERS: Final = {
    "UInt8": "B",
    "UInt16": "H",
    "UInt32": "I",
    "UInt64": "Q",
    "Int8": "b",
    "Int16": "h",
    "Int32": "i",
    "Int64": "q",
    "Float32": "f",
    "Float64": "d",
    "Bool": "B",
    "DateTime": "I",
    "DateTime64": "q",
}
_TYPE: Final = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)
_SHORT: Final = 128  # lengths below take one byte
_CHARACTERS: Final = "".join(map(chr, range(_SHORT)))
_KEPT_MAX: Final = 65_536
_SEEN: Final = 16  # texts of a column from which it is told whether they repeat


def encoded(columns: Mapping[str, Column], types: Mapping[str, str], rows_max: int) -> Iterator[bytes]:
    """Blocks of up to `rows_max` rows. `types`: each column's, as `wire_type` gives it. Raises AnalyticsRefused."""
    rows = len(next(iter(columns.values()), ()))
    for at in range(0, rows, rows_max):
        some = {name: column[at : at + rows_max] for name, column in columns.items()} if rows > rows_max else columns
        block = Block(types)
        block.add(some, Made())
        yield from block.laid_out()


class Made:
    """Columns that were laid out, and the values they were made of: another block with the same list takes it here."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[Column, bytes]] = {}  # the column itself keeps its identity taken

    def of(self, name: str, kind: str, column: Column) -> bytes:
        """Raises AnalyticsRefused."""
        kept = self._kept.get((id(column), kind))
        if kept is None:
            kept = self._kept[id(column), kind] = (column, _laid_out(name, kind, column))
        return kept[1]


class Block:
    """A block that grows by slices of rows. A column that a slice has not is the least value of its type there; one
    that no slice has is left out.
    """

    def __init__(self, types: Mapping[str, str]) -> None:
        self._types = types
        self._parts: dict[str, list[Any]] = {}  # laid out where parts can be put together, else values
        self.rows = 0

    def add(self, columns: Mapping[str, Column], made: Made) -> None:
        """Columns of equal length. Raises AnalyticsRefused."""
        rows = len(next(iter(columns.values()), ()))
        for name in self._parts.keys() - columns.keys():
            self._leave_out(name, rows)
        for name, column in columns.items():
            if name not in self._parts:
                self._parts[name] = []
                self._leave_out(name, self.rows)
            if _width(kind := self._types[name]):
                self._parts[name].append(made.of(name, kind, column))
            else:
                self._parts[name] += column
        self.rows += rows

    def laid_out(self) -> list[bytes]:
        """To be called once, at the end. Raises AnalyticsRefused."""
        pieces = [_varint(len(self._parts)) + _varint(self.rows)] if self._parts else []
        for name, parts in self._parts.items():
            kind = self._types[name]
            pieces += (_named(name, kind), b"".join(parts) if _width(kind) else _laid_out(name, kind, parts))
            parts.clear()
        return pieces

    def _leave_out(self, name: str, rows: int) -> None:
        if width := _width(kind := self._types[name]):
            self._parts[name].append(bytes(width * rows))
        else:
            self._parts[name] += [None if kind.startswith("Nullable") else ()] * rows


@cache
def _width(kind: str) -> int:
    """Bytes of the least value, where a column's slices laid out are the column laid out; else 0."""
    name = kind.partition("(")[0]
    return 1 if name == "String" else calcsize("=" + _NUMBERS[name]) if name in _NUMBERS else 0


@cache
def _named(name: str, kind: str) -> bytes:
    return _text(name) + _text(kind)


def wire_type(declared: str) -> str:
    """What a column is sent as: ClickHouse builds dictionaries faster than Python does, and casts while it inserts."""
    if match := re.fullmatch(r"SimpleAggregateFunction\(\w+, (.*)\)", declared, re.DOTALL):
        declared = match[1]
    if match := re.fullmatch(r"LowCardinality\((.*)\)", declared, re.DOTALL):
        declared = match[1]
    return declared


def _laid_out(name: str, kind: str, column: Column) -> bytes:
    if kind not in _layouts:
        _layouts[kind] = _layout(kind)
    try:
        return _layouts[kind](column)
    except (TypeError, ValueError, OverflowError, StructError) as error:
        raise AnalyticsRefused(f"column {name} has a value that is no {kind}: {error}") from error


def _layout(kind: str) -> Layout:
    """Raises AnalyticsRefused for a type that nothing here sends."""
    match = _TYPE.fullmatch(kind)
    name, inner = (match[1], match[2] or "") if match else (kind, "")
    if name == "String":
        return texts
    if name in _NUMBERS:
        code = _NUMBERS[name]
        return lambda column: pack(f"={len(column)}{code}", *column)
    if name == "Array":
        return _arrays(_layout(inner))
    if name == "Nullable":
        return _nullable(_layout(inner), "" if inner == "String" else 0)
    if name == "Tuple":
        return _tuples([_layout(_without_name(part)) for part in _split(inner, ",")])
    if name == "LowCardinality":
        return _layout(inner)
    raise AnalyticsRefused(f"no column of type {kind} can be sent")


_layouts: dict[str, Layout] = {}


def texts(column: Column) -> bytes:
    """A column of String."""
    if not column:
        return b""
    if column[0] == column[-1] and column.count(column[0]) == len(column):
        return _text(column[0]) * len(column)
    kinds = set(map(type, column))
    if kinds == {str}:
        return _strings(column)
    if kinds != {bytes}:
        column = [_raw(text) for text in column]
    return b"".join(_headed(column, _heads, b""))


def _strings(column: Sequence[str]) -> bytes:
    if len(set(column[:_SEEN])) < _SEEN / 2:  # names: few, each many times
        return b"".join(map(_texts.__getitem__, column))
    if not "".join(column).isascii():
        return b"".join(map(_text, column))
    lengths = set(map(len, column))
    if max(lengths) >= _SHORT:
        return b"".join(_headed(list(map(str.encode, column)), _heads, b""))
    if len(lengths) == 1:  # ids, digests
        head = chr(lengths.pop())
        return (head + head.join(column)).encode()
    return "".join(_headed(column, _CHARACTERS, "")).encode()


def _headed(column: Column, heads: Any, empty: Any) -> list[Any]:
    """Each text after its head."""
    parts = [empty] * (2 * len(column))
    parts[::2] = map(heads.__getitem__, map(len, column))
    parts[1::2] = column
    return parts


class _Texts(dict[str, bytes]):
    """Texts as they are laid out, the first that come made once."""

    def __missing__(self, text: str) -> bytes:
        made = _text(text)
        if len(made) < _SHORT and len(self) < _KEPT_MAX:
            self[text] = made
        return made


_texts = _Texts()


class _Heads(dict[int, bytes]):
    """Lengths as they are laid out, the common ones made once."""

    def __missing__(self, length: int) -> bytes:
        made = _varint(length)
        if len(self) < _KEPT_MAX:
            self[length] = made
        return made


_heads = _Heads()


def _arrays(inner: Layout) -> Layout:
    def arrays(column: Column) -> bytes:
        lengths = list(map(len, column))
        if not any(lengths):
            return bytes(8 * len(lengths))
        return pack(f"={len(lengths)}Q", *accumulate(lengths)) + inner(list(chain.from_iterable(column)))

    return arrays


def _nullable(inner: Layout, instead: Any) -> Layout:
    def nullable(column: Column) -> bytes:
        absent = bytes([value is None for value in column])
        return absent + inner([instead if value is None else value for value in column])

    return nullable


def _tuples(inner: Sequence[Layout]) -> Layout:
    def tuples(column: Column) -> bytes:
        if not column:
            return b""
        return b"".join(layout(part) for layout, part in zip(inner, zip(*column, strict=True), strict=True))

    return tuples


def _split(text: str, at: str) -> list[str]:
    """At each separator that no parenthesis encloses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == at and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _without_name(element: str) -> str:
    return _split(element, " ")[-1]


def _text(text: str) -> bytes:
    raw = _raw(text)
    return _varint(len(raw)) + raw


def _raw(text: Any) -> bytes:
    """Half a surrogate pair is no text and becomes `?`: a value must never stop an insert for good."""
    return text.encode(errors="replace") if isinstance(text, str) else bytes(memoryview(text))


def _varint(number: int) -> bytes:
    made = bytearray()
    while number >= _SHORT:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def compressed(chunks: Iterable[bytes], name: str | None) -> Iterator[bytes]:
    """One frame of what the server takes: lz4, or as it is."""
    if name != "lz4":
        yield from chunks
        return
    import lz4.frame  # type: ignore[import-untyped]  # only where a server is far away

    frame = lz4.frame.LZ4FrameCompressor()
    yield frame.begin()
    for chunk in chunks:
        yield frame.compress(chunk)
    yield frame.flush()
