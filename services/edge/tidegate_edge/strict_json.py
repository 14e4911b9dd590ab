"""One reading of JSON: what is decided on and inspected is what is forwarded.

msgspec accepts duplicate keys, invalid UTF-8 and lone surrogates; two parsers could then read two things from the same
bytes. `read` refuses all three, and nesting deeper than JSON_DEPTH_MAX. The common case is proven by a round trip:
bytes that the encoder reproduces exactly cannot hold a duplicate key. Everything else (white space, escapes, odd
numbers) is read again, slowly. `reading` does the same piece by piece, for texts so large that others must have their
turn meanwhile.
"""

import json
from collections.abc import Generator
from typing import Any, Final

import msgspec

from tidegate.json_pieces import PATH, SIZES, Piece, Sizes, TooDeep, is_key, parts_of_string, pieces, without_long
from tidegate.json_values import decode
from tidegate.limits import CONTAINERS_PER_BODY_MAX, JSON_DEPTH_MAX

_encode: Final = msgspec.json.Encoder().encode


class NotStrictJson(ValueError):
    """Why the bytes are refused, in a sentence."""


def read(raw: bytes) -> Any:
    """The value of `raw`. Raises NotStrictJson."""
    try:
        text = raw.decode("utf-8")
        value = decode(raw)
    except UnicodeDecodeError as error:
        raise NotStrictJson(f"not valid UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise NotStrictJson(f"nested deeper than {JSON_DEPTH_MAX}") from error
    except msgspec.DecodeError as error:
        raise NotStrictJson(f"not valid JSON: {error}") from error
    if raw.count(b"{") + raw.count(b"[") > JSON_DEPTH_MAX and _is_deeper(value, JSON_DEPTH_MAX):
        raise NotStrictJson(f"nested deeper than {JSON_DEPTH_MAX}")
    if (b"\\" in raw and b"\\u" in raw) or _encode(value) != raw:  # one character is found faster than two
        _read_slowly(text)
    return value


def reading_any(raw: bytes, *, keep: bool) -> Generator[None, None, Any]:
    """`read` or `reading`, whichever is for a text of this size."""
    return (yield from reading(raw, keep=keep)) if len(raw) > SIZES.whole else read(raw)


def reading(raw: bytes, *, keep: bool, sizes: Sizes = SIZES) -> Generator[None, None, Any]:
    """As `read`, in parts. Without `keep`, None for any value: then a text may hold any number of objects and lists."""
    whole = _Whole(keep=keep)
    containers = 0
    try:
        for piece in pieces(raw, sizes):
            if piece is not None:
                containers += piece.containers
                if keep and containers > CONTAINERS_PER_BODY_MAX:
                    raise NotStrictJson(f"more than {CONTAINERS_PER_BODY_MAX} objects and lists")
                whole.add(piece, (yield from _piece_read(raw, piece, sizes, keep=keep)))
            yield
    except TooDeep as error:
        raise NotStrictJson(f"nested deeper than {JSON_DEPTH_MAX}") from error
    return whole.value


def _piece_read(raw: bytes, piece: Piece, sizes: Sizes, *, keep: bool) -> Generator[None, None, Any]:
    if not piece.is_whole(raw):
        raise NotStrictJson(f"not valid JSON: an entry is missing at byte {piece.start} or {piece.end}")
    if any(is_key(raw, end) for _, end in piece.long):
        raise NotStrictJson(f"a key is longer than {sizes.long} bytes")
    value = read(without_long(raw, piece))
    if not piece.long:
        return value
    for start, end in piece.long:
        yield from _check_string(raw, start, end, sizes)
    return decode(piece.text(raw)) if keep else value


def _check_string(raw: bytes, start: int, end: int, sizes: Sizes) -> Generator[None]:
    try:
        for part in parts_of_string(raw, start, end, sizes):
            part.encode()
            yield
    except UnicodeEncodeError as error:
        raise NotStrictJson("a lone surrogate is not text") from error
    except UnicodeDecodeError as error:
        raise NotStrictJson(f"not valid UTF-8 in the text at byte {start}") from error
    except msgspec.DecodeError as error:
        raise NotStrictJson(f"not valid JSON in the text at byte {start}: {error}") from error


class _Whole:
    """Puts values of pieces together, as far as they are kept, and sees that no key of theirs comes twice."""

    def __init__(self, *, keep: bool) -> None:
        self.value: Any = None
        self._keep = keep
        self._begun = False
        self._open: list[tuple[Any, set[str]]] = []  # what goes on past the pieces so far, and its keys

    def add(self, piece: Piece, value: Any) -> None:
        ends = _last_children(value, len(piece.after))
        if not self._begun:
            self.value, self._begun = value if self._keep else None, True
        own = value
        for level, (container, keys) in enumerate(self._open):
            inner = None
            if isinstance(own, dict):
                inner = own.pop(PATH, None)
                self._take_keys(own, keys)
                if self._keep:
                    container.update(own)
            else:
                inner = own[0] if level + 1 < len(self._open) else None
                if self._keep:
                    container.extend(own if inner is None else own[1:])
            own = inner
        begun = [(one, set(one) if isinstance(one, dict) else set()) for one in ends[piece.kept :]]
        self._open[piece.kept :] = begun if self._keep else [(None, keys) for _, keys in begun]

    @staticmethod
    def _take_keys(fresh: dict[str, Any], known: set[str]) -> None:
        if not known.isdisjoint(fresh):
            twice = next(key for key in fresh if key in known)
            raise NotStrictJson(f"the key {twice[:64]!r} appears twice in one object")
        known.update(fresh)


def _last_children(value: Any, depth: int) -> list[Any]:
    """What is open at a piece's end, the outermost first."""
    found: list[Any] = []
    while len(found) < depth:
        found.append(value)
        if len(found) < depth:
            value = value[-1] if isinstance(value, list) else next(reversed(value.values()))
    return found


def is_strict(raw: bytes) -> bool:
    """Whether the bytes read in one way, and only in one."""
    try:
        read(raw)
    except NotStrictJson:
        return False
    return True


def _read_slowly(text: str) -> None:
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise NotStrictJson(f"nested deeper than {JSON_DEPTH_MAX}") from error
    except NotStrictJson:
        raise
    except ValueError as error:  # digits past Python's limit for integers, among others
        raise NotStrictJson(f"not valid JSON: {error}") from error
    if "\\u" in text or "\\U" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise NotStrictJson("a lone surrogate is not text") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotStrictJson(f"the key {key[:64]!r} appears twice in one object")
            seen.add(key)
    return value


def _refuse_constant(name: str) -> Any:
    raise NotStrictJson(f"{name} is not JSON")


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
        if not below:
            return False
        level = [node for node in below if isinstance(node, dict | list)]
    return bool(level)
