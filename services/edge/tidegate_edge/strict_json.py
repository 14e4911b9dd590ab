"""One reading of JSON: what is decided on and inspected is what is forwarded.

msgspec accepts duplicate keys, invalid UTF-8 and lone surrogates; two parsers could then read two things from the same
bytes. `read` refuses all three, and nesting deeper than JSON_DEPTH_MAX. The common case is proven by a round trip:
bytes that the encoder reproduces exactly cannot hold a duplicate key. Everything else (white space, escapes, odd
numbers) is read again, slowly.
"""

import json
from typing import Any, Final

import msgspec

from tidegate.limits import JSON_DEPTH_MAX

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


class NotStrictJson(ValueError):
    """Why the bytes are refused, in a sentence."""


def read(raw: bytes) -> Any:
    """The value of `raw`. Raises NotStrictJson."""
    try:
        text = raw.decode("utf-8")
        value = _decode(raw)
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
