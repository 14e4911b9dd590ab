"""Content fingerprints: whether two texts share a passage can be told from them, what the texts say cannot.

Winnowing (Schleimer, Wilkerson, Aiken 2003) over k-grams of the document's letters and digits. Each selected gram is
hashed with BLAKE2s under a key derived from the tenant's: without it a fingerprint can neither be computed nor tested.
Detectors join fingerprints and never see content. What does not count: case, white space, punctuation, JSON's syntax,
its escapes, and whether a value stood in a string or in a structure. Pure.
"""

import hashlib
import hmac
import re
import unicodedata
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from tidegate import json_values
from tidegate.json_pieces import TooDeep, opened, pieces
from tidegate.limits import FINGERPRINTS_PER_CALL_MAX, LARGE_BYTES
from tidegate.turns import Turns, at_once

GRAM: Final = 24
WINDOW: Final = 25
SHARED_RUN: Final = GRAM + WINDOW - 1
"""Two documents that share this many normalised bytes in a row share a fingerprint, if both keep the bounds below."""

RAW_BYTES_MAX: Final = 1024 * 1024
NORMALISED_BYTES_MAX: Final = 256 * 1024
"""A document beyond the first of these, and text beyond the second, is not looked at."""

FOLDED_AT_ONCE: Final = 2_048  # characters
COMBINED_MAX: Final = 256
_FREE: Final = re.compile("[\x00-\x7f\u00c0-\u024f\u0400-\u045f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3]")

_POSITION_BITS: Final = 18  # positions fit NORMALISED_BYTES_MAX
_POSITION: Final = np.uint64((1 << _POSITION_BITS) - 1)
_DROPPED: Final = bytes(byte for byte in range(128) if not chr(byte).isalnum())
_LOWERED: Final = bytes(range(256)).lower()
_BACKSLASH: Final = 0x5C


def fingerprints(raw: bytes, key: bytes) -> tuple[str, ...]:
    """Fingerprints of JSON bytes, sorted, 64 bits in hex each; at most FINGERPRINTS_PER_CALL_MAX. Never raises.

    Up to some 3,300 normalised bytes all winnowed grams fit and the promise of `SHARED_RUN` holds. Of a longer text
    those with the least hashes are kept, the same ones wherever they occur: a copy of the whole is still recognised by
    nearly all of them, but the passage that is likely to be seen grows with the text (about its length / 70 for two).
    """
    return at_once(fingerprinting(raw, key))


def fingerprinting(raw: bytes, key: bytes) -> Turns[tuple[str, ...]]:
    """As `fingerprints`, in turns."""
    text = yield from _normalising(raw)
    if len(text) < GRAM:
        return ()
    scheme = _scheme(key)
    digest, secret = hashlib.blake2s, scheme.key
    selecting = partial(_selected, text, scheme)
    selected = selecting() if len(text) <= LARGE_BYTES else (yield selecting)
    grams = {text[at : at + GRAM] for at in selected}
    return tuple(sorted([digest(gram, key=secret, digest_size=8).hexdigest() for gram in grams]))


def normalised(raw: bytes) -> bytes:
    """The letters and digits of a JSON document in order, lower case, UTF-8, at most NORMALISED_BYTES_MAX.

    What follows a backslash is dropped with it, at every level of quoting alike: `\\n` is white space, however often it
    was escaped on its way. Escaped and non-ASCII characters are decoded, compatibility-folded and case-folded.
    """
    return at_once(_normalising(raw))


def _normalising(raw: bytes) -> Turns[bytes]:
    is_whole, raw = len(raw) <= RAW_BYTES_MAX, raw[:RAW_BYTES_MAX]
    if b"\\u" in raw and is_whole:
        raw = yield from _decoding(raw)
    yield None
    if not raw.isascii():
        raw = yield from _folding(raw)
    if b"\\" in raw:
        raw = _without_escapes(raw)
        yield None
    return raw.translate(_LOWERED, _DROPPED)[:NORMALISED_BYTES_MAX]


def _folding(raw: bytes) -> Turns[bytes]:
    """Part by part, each of which begins with a character that combines with none before it. A run without such a
    character is cut all the same: no language has one so long, and ordering it takes the square of its length.
    """
    text = raw.decode("utf-8", "replace")
    parts: list[bytes] = []
    at = 0
    while at < len(text):
        free = _FREE.search(text, at + FOLDED_AT_ONCE, at + FOLDED_AT_ONCE + COMBINED_MAX)
        end = free.start() if free else at + FOLDED_AT_ONCE + COMBINED_MAX
        folded = unicodedata.normalize("NFKC", text[at:end]).casefold()
        parts.append("".join([char if char < "\x80" or char.isalnum() else " " for char in folded]).encode())
        at = end
        yield None
    return b"".join(parts)


def _decoding(raw: bytes) -> Turns[bytes]:
    """The document written again without \\u escapes; as it is where it cannot be read."""
    parts: list[bytes] = []
    try:
        for piece in pieces(raw):
            if piece is not None:
                parts.append(msgspec.json.encode(json_values.decode(piece.text(raw)))[len(opened(piece.before)) :])
            yield None
    except (TooDeep, msgspec.DecodeError, msgspec.EncodeError, RecursionError, ValueError, OverflowError):
        return raw
    return b",".join(parts)


def _without_escapes(raw: bytes) -> bytes:
    codes = np.frombuffer(raw, dtype=np.uint8)
    kept = codes != _BACKSLASH
    kept[1:] &= kept[:-1].copy()
    return bytes(codes[kept])


class _Scheme(NamedTuple):
    """What is derived from a key: gram hashing, and the secret order in which grams compete for selection."""

    key: bytes
    letters: Any  # uint64 by byte
    powers: tuple[Any, ...]  # base ** 1, 2, 4, 8


@lru_cache(maxsize=256)
def _scheme(key: bytes) -> _Scheme:
    def derived(purpose: bytes) -> bytes:
        return hmac.digest(key, b"tidegate fingerprints v1 " + purpose, "sha512")

    blocks = b"".join(derived(b"letters %d" % n) for n in range(32))
    base = np.frombuffer(derived(b"base")[:8], dtype="<u8") | np.uint64(1)
    powers = [base]
    for _ in range(3):
        powers.append(powers[-1] * powers[-1])
    return _Scheme(derived(b"grams")[:32], np.frombuffer(blocks, dtype="<u8"), tuple(powers))


def _selected(text: bytes, scheme: _Scheme) -> list[int]:
    """Positions of the winnowed grams: the least of each window, then the least of all, up to the bound."""
    ranks = _ranks(text, scheme)
    least = _window_minima(ranks)
    least = least[np.append(True, least[1:] != least[:-1])]  # neighbouring windows mostly agree
    least.sort()
    grams = least >> np.uint64(_POSITION_BITS)
    distinct = least[np.append(True, grams[1:] != grams[:-1])]
    positions: list[int] = (distinct[:FINGERPRINTS_PER_CALL_MAX] & _POSITION).tolist()
    return positions


def _ranks(text: bytes, scheme: _Scheme) -> Any:
    """For each gram its keyed polynomial hash (mod 2**64, built by doubling), the position in the low bits."""
    one, two, four, eight = scheme.powers
    grams1 = scheme.letters[np.frombuffer(text, dtype=np.uint8)]
    grams2 = grams1[:-1] * one + grams1[1:]
    grams4 = grams2[:-2] * two + grams2[2:]
    grams8 = grams4[:-4] * four + grams4[4:]
    grams16 = grams8[:-8] * eight + grams8[8:]
    grams24 = grams16[:-8] * eight + grams8[16:]
    grams24 ^= grams24 >> np.uint64(32)
    grams24 *= np.uint64(0x9E3779B97F4A7C15)
    return grams24 & ~_POSITION | np.arange(len(grams24), dtype=np.uint64)


def _window_minima(ranks: Any) -> Any:
    if len(ranks) <= WINDOW:
        return ranks.min(keepdims=True)
    width = 1
    while width * 2 <= WINDOW:
        ranks = np.minimum(ranks[:-width], ranks[width:])
        width *= 2
    rest = WINDOW - width
    return np.minimum(ranks[:-rest], ranks[rest:])
