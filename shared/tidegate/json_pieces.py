"""A large JSON text in pieces that can be looked at one by one: each is read by itself, and together they are the text.

A piece ends at a comma outside of strings, so no string, key or number is cut. With what was open before it, and what
is open after it, in front and behind, a piece is a JSON text of its own: the text is well-formed exactly if all of
these are (`Piece.is_whole` says what they cannot). Of what is no JSON the pieces are arbitrary. Pure.
Counterparts: the edge's `strict_json.py` reads pieces, `inspection/scanner.py` searches them.
"""

import re
import secrets
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from tidegate.limits import JSON_DEPTH_MAX, LARGE_BYTES


class Sizes(NamedTuple):
    """What is cut, and where."""

    whole: int = LARGE_BYTES  # no text up to this is taken apart
    piece: int = 32 * 1024  # about so many bytes are a piece
    long: int = 64 * 1024  # a longer string token is listed in its piece's `long`: for its reader to take in parts


SIZES: Final = Sizes()
PATH: Final = f"path-{secrets.token_hex(8)}"
"""The key that leads from an object which was begun before the piece to what is open in it. Nobody can know it."""

_QUOTE, _COMMA, _BACKSLASH = 0x22, 0x2C, 0x5C
_OPENING: Final = b"[{"
_DELTA: Final[Any] = np.zeros(256, dtype=np.int8)
_DELTA[[ord("["), ord("{")]] = 1
_DELTA[[ord("]"), ord("}")]] = -1
_IS_MARK: Final[Any] = np.zeros(256, dtype=np.bool_)
_IS_MARK[[ord(one) for one in "[]{},"]] = True
_CLOSING: Final = bytes.maketrans(b"[{", b"]}")
_ESCAPE_BYTES: Final = 6
_CHARACTER_BYTES: Final = 4  # at most, in UTF-8
_PART_BYTES_MIN: Final = 4 * _ESCAPE_BYTES  # the end of a part goes back by three escapes at most: each part advances
_COLON: Final = re.compile(rb"[ \t\r\n]*:")
_HIGH: Final = frozenset(b"89abAB")  # \ud8.. to \udb..: the first half of a character
_decode_text: Final = msgspec.json.Decoder(str).decode


class TooDeep(ValueError):
    """More brackets within brackets than JSON_DEPTH_MAX."""


class Piece(NamedTuple):
    """Bytes `start` to `end`. `before` and `after` are the brackets that are open there, the outermost first."""

    start: int
    end: int
    before: bytes
    after: bytes
    kept: int  # of the brackets in `before`, how many are open to the end, too
    containers: int  # objects and lists that begin in it
    long: tuple[tuple[int, int], ...]  # long string tokens
    is_last: bool

    def text(self, raw: bytes) -> bytes:
        """As a JSON text of its own; of the last piece of an unfinished text, unfinished as well."""
        if not self.before and (self.is_last or not self.after):
            return raw[self.start : self.end]
        closed = b"" if self.is_last else self.after[::-1].translate(_CLOSING)
        return b"%b%b%b" % (opened(self.before), raw[self.start : self.end], closed)

    def is_whole(self, raw: bytes) -> bool:
        """Whether entries stand on both sides of the commas at which it was cut."""
        first, last = _first(raw, self.start, self.end), _last(raw, self.start, self.end)
        return (self.start == 0 or first not in b"]},") and (self.is_last or last not in b"[{")


def pieces(raw: bytes, sizes: Sizes = SIZES) -> Iterator[Piece | None]:
    """All pieces, in order; None now and then, while there is no end of one. Raises TooDeep."""
    begin, at, in_string, string_at = 0, 0, False, 0
    before = stack = b""
    kept = containers = 0
    long: list[tuple[int, int]] = []
    while at < len(raw):
        codes, marks, inside = _marks(raw[at : at + sizes.piece], in_string)
        commas = marks[codes[marks] == _COMMA] if marks.size else marks
        depths = len(stack) + np.cumsum(_DELTA[codes[marks]], dtype=np.int32)
        if depths.size and depths.max() > JSON_DEPTH_MAX:
            raise TooDeep
        cut = _last_comma(commas, marks, depths)
        used = len(codes) if cut < 0 else cut
        upto = int(np.searchsorted(marks, used))
        stack, lowest = _stack_after(stack, codes[marks[:upto]], depths[:upto])
        kept = min(kept, lowest)
        containers += int(np.count_nonzero(_DELTA[codes[marks[:upto]]] == 1))
        quotes = np.flatnonzero(codes[:used] == _QUOTE)
        if quotes.size:
            if in_string and at + int(quotes[0]) + 1 - string_at > sizes.long:
                long.append((string_at, at + int(quotes[0]) + 1))
            string_at = at + int(quotes[-1])
        if cut < 0:
            at, in_string = at + used, inside
            if at < len(raw):
                yield None
            continue
        yield Piece(begin, at + cut, before, stack, kept, containers, tuple(long), False)
        begin = at = at + cut + 1
        before, kept, in_string, containers, long = stack, len(stack), False, 0, []
    yield Piece(begin, len(raw), before, stack, kept, containers, tuple(long), True)


def _marks(window: bytes, in_string: bool) -> tuple[Any, Any, bool]:
    """(the window's bytes, where brackets and commas outside of strings are, whether it ends inside a string). Escaped
    quotes and backslashes are blotted out; a window ends before a backslash whose character is not in it.
    """
    if b"\\" in window:
        window = window.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        if window[-1] == _BACKSLASH and len(window) > 1:
            window = window[:-1]
    codes = np.frombuffer(window, dtype=np.uint8)
    if in_string and b'"' not in window:
        return codes, np.empty(0, dtype=np.int64), True
    inside = np.bitwise_and(np.cumsum(codes == _QUOTE, dtype=np.uint16), 1) ^ np.uint16(in_string)
    marks = np.flatnonzero(_IS_MARK[codes] & (inside == 0))
    return codes, marks, bool(inside[-1])


def _last_comma(commas: Any, marks: Any, depths: Any) -> int:
    """The last comma within brackets; -1 where there is none."""
    for comma in commas[:-3:-1].tolist():
        if depths[np.searchsorted(marks, comma)] > 0:
            return int(comma)
    return -1


def _stack_after(stack: bytes, kinds: Any, depths: Any) -> tuple[bytes, int]:
    """What is open after these marks, and how much of `stack` was open all the time."""
    if not kinds.size:
        return stack, len(stack)
    least = np.minimum.accumulate(depths[::-1])[::-1]
    lowest = max(0, min(len(stack), int(least[0])))
    left = kinds[(_DELTA[kinds] == 1) & (least == depths) & (depths > lowest)]
    return stack[:lowest] + left.tobytes(), lowest


def opened(before: bytes) -> bytes:
    """What is put in front of a piece."""
    path = b'{"%b":' % PATH.encode()
    outer = b"".join([b"[" if one == _OPENING[0] else path for one in before[:-1]])
    return outer + before[-1:]


def _first(raw: bytes, start: int, end: int) -> bytes:
    """The first byte that is no white space; a bracket that closes where there is none."""
    return raw[start:end].lstrip(b" \t\r\n")[:1] or b"]"


def _last(raw: bytes, start: int, end: int) -> bytes:
    return raw[start:end].rstrip(b" \t\r\n")[-1:] or b"["


def without_long(raw: bytes, piece: Piece) -> bytes:
    """The piece as a text of its own with an empty string in the place of each long one."""
    if not piece.long:
        return piece.text(raw)
    parts: list[bytes] = []
    at = piece.start
    for start, end in piece.long:
        parts += (raw[at:start], b'""')
        at = end
    parts.append(raw[at : piece.end])
    short = b"".join(parts)
    return piece._replace(start=0, end=len(short), long=()).text(short)


def is_key(raw: bytes, end: int) -> bool:
    """Whether the string token that ends here is a key."""
    return _COLON.match(raw, end) is not None


def parts_of_string(raw: bytes, start: int, end: int, sizes: Sizes = SIZES) -> Iterator[str]:
    """What a string token says, part by part. Raises msgspec.DecodeError, or UnicodeDecodeError."""
    at, last, size = start + 1, end - 1, max(sizes.long, _PART_BYTES_MIN)
    while at < last:
        upto = last if last - at <= size else _safe_end(raw, at, at + size)
        yield _decode_text(b'"%b"' % raw[at:upto])
        at = upto


def _safe_end(raw: bytes, at: int, upto: int) -> int:
    """A little before `upto`, by less than _PART_BYTES_MIN: where no character is cut, however it is written. What is
    no UTF-8 is cut anywhere: one of the two parts is none, either.
    """
    tail = raw[at:upto].replace(b"\\\\", b"__")
    escape = tail.rfind(b"\\", len(tail) - 2 * _ESCAPE_BYTES)
    if escape >= 0:
        upto = at + escape
        high = tail[escape - _ESCAPE_BYTES : escape]
        if high[:2] == b"\\u" and high[2:3] in b"dD" and high[3] in _HIGH:
            upto -= _ESCAPE_BYTES
        return upto
    for back in range(_CHARACTER_BYTES):
        if raw[upto - back] & 0xC0 != 0x80:
            return upto - back
    return upto
