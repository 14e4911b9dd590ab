"""Large JSON values of one kind each: what people send, and what somebody sends who wants the gateway to stand still.

Counterpart: `stalls.py` sends them as arguments and as results.
"""

import base64
import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Final

_SENTENCE: Final = "the quick brown fox jumps over a lazy dog while this gateway keeps its books about every incident"
_WORDS: Final = _SENTENCE.split()
_ADDRESSED: Final = "call +49 30 1234567 or mail bob@example.com with AKIAIOSFODNN7EXAMPLE, please. "
_LINE: Final = '{"path": "C:\\\\logs\\\\app.log", "level": "info", "message": "started \u2713"}\n'


def values(size: int, seed: int = 1) -> dict[str, Callable[[], bytes]]:
    """By kind, what makes a JSON value of about `size` bytes. The first two are what large bodies mostly are."""
    draw = random.Random(seed)
    return {
        "plain text": lambda: _text(" ".join(_words(draw, size))[:size]),
        "lines of JSON, as text": lambda: _text(_LINE * (size // len(_text(_LINE)))),
        "rows": lambda: _listed((_row(draw, number) for number in itertools.count()), size),
        "base64": lambda: _text(base64.b64encode(draw.randbytes(size * 3 // 4)).decode()),
        "Chinese text": lambda: _text("漢字仮名交じり文" * (size // 24)),
        "\\u escapes": lambda: b'"' + b"\\u6f22" * (size // 6) + b'"',
        "escaped slashes": lambda: b'"' + b"\\/" * (size // 2) + b'"',
        "backslashes": lambda: b'"' + b"\\\\" * (size // 2) + b'"',
        "nested 40 deep": lambda: _repeated(b"[" * 40 + b"]" * 40, size),
        "empty lists": lambda: _repeated(b"[]", size),
        "objects of one key": lambda: _repeated(b'{"":0}', size),
        "small strings": lambda: _listed((b'"%x"' % number for number in itertools.count()), size),
        "small numbers": lambda: _repeated(b"1", size),
        "fractions": lambda: _listed((b"%.16f" % draw.random() for _ in itertools.count()), size),
        "exponents": lambda: _repeated(b"1e5", size),
        "numbers of 4,000 digits": lambda: _repeated(b"1" * 4_000, size),
        "keys": lambda: _object((b'"k%x":0' % number for number in itertools.count()), size),
        "keys, spaced": lambda: _object((b' "k%x": 0' % number for number in itertools.count()), size),
        "white space": lambda: b"[" + b" " * size + b"]",
        "matches in one text": lambda: _text(_ADDRESSED * (size // len(_ADDRESSED))),
        "matches in texts": lambda: _listed((b'"bob%d@example.com"' % number for number in itertools.count()), size),
        "matches in escaped texts": lambda: _listed(
            (b'"bob%d\\u0040example.com"' % number for number in itertools.count()), size
        ),
    }


def blocks(size: int) -> bytes:
    """A result of many content blocks."""
    link = b'{"type":"resource_link","uri":"notes://%d","name":"n"}'
    return b'{"content":' + _listed((link % number for number in itertools.count()), size) + b"}"


def _words(draw: random.Random, size: int) -> Iterator[str]:
    left = size
    while left > 0:
        word = draw.choice(_WORDS)
        left -= len(word) + 1
        yield word


def _row(draw: random.Random, number: int) -> bytes:
    row = {"id": number, "name": draw.choice(_WORDS), "price": round(draw.random() * 100, 2), "tags": ["a", "b"]}
    return json.dumps(row).encode()


def _text(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


def _repeated(one: bytes, size: int) -> bytes:
    return b"[" + b",".join([one] * (size // (len(one) + 1))) + b"]"


def _listed(entries: Iterator[bytes], size: int) -> bytes:
    return b"[" + _joined(entries, size) + b"]"


def _object(members: Iterator[bytes], size: int) -> bytes:
    return b"{" + _joined(members, size) + b"}"


def _joined(parts: Iterator[bytes], size: int) -> bytes:
    taken: list[bytes] = []
    for part in parts:
        size -= len(part) + 1
        if size < 0:
            break
        taken.append(part)
    return b",".join(taken)
