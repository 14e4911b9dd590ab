"""strict_json against a slow reference reader: the same bytes are refused, and what is accepted means the same."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.limits import JSON_DEPTH_MAX
from tidegate_edge import strict_json


class Refused(Exception):
    pass


def reference(raw: bytes) -> Any:
    """json.loads with every strictness spelled out."""

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in members}) != len(members):
            raise Refused("duplicate")
        return dict(members)

    def constant(name: str) -> Any:
        raise Refused(name)

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Refused(str(error)) from error
    walk(value, 0)
    return value


def walk(value: Any, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth >= JSON_DEPTH_MAX:
            raise Refused("deep")
        for key in value if isinstance(value, dict) else ():
            walk(key, depth)
        for inner in value.values() if isinstance(value, dict) else value:
            walk(inner, depth + 1)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused("surrogate") from error
    elif isinstance(value, float) and not math.isfinite(value):
        raise Refused("infinite")


def read(raw: bytes) -> tuple[bool, Any]:
    try:
        return True, strict_json.read(raw)
    except strict_json.NotStrictJson:
        return False, None


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


space = st.sampled_from(["", "", "", " ", "\n\t "])
string_parts = st.sampled_from(
    [
        "a",
        "b",
        "k",
        "\\u0061",
        "\\ud800",
        "\\udc00",
        "\\ud83d\\ude00",
        "é",
        "\\n",
        "\\\\",
        '\\"',
        "\\/",
        "\x7f",
        "\\u0000",
        "😀",
        "\\U0061",
        "\x01",
    ]
)
strings = st.lists(string_parts, max_size=3).map(lambda parts: '"' + "".join(parts) + '"')
number_texts = st.sampled_from(
    [
        "0",
        "-0",
        "1",
        "-1",
        "1.0",
        "1.50",
        "1e5",
        "1E+5",
        "1e999",
        "-1e999",
        "1e-999",
        "01",
        "1.",
        ".5",
        "+1",
        "0x1",
        "NaN",
        "Infinity",
        "-Infinity",
        "9007199254740993",
        "18446744073709551616",
        "123456789012345678901234567890",
        "0.1",
        "3.141592653589793238462643",
        "5e-324",
        "1.7976931348623157e308",
        "true",
        "false",
        "null",
        "nul",
    ]
)


def composed(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arrays = st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]")
    members = st.tuples(strings, space, inner).map(lambda parts: f"{parts[0]}{parts[1]}:{parts[2]}")
    return arrays | st.lists(members, max_size=3).map(lambda items: "{" + ",".join(items) + "}")


documents = st.recursive(strings | number_texts, composed, max_leaves=12)


@settings(max_examples=600, deadline=None)
@given(st.tuples(space, documents, space).map("".join))
def test_the_reference_reader_agrees(text: str) -> None:
    agree(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(documents, st.binary(max_size=3), st.integers(0, 60))
def test_it_agrees_on_broken_bytes(text: str, broken: bytes, at: int) -> None:
    raw = text.encode()
    agree(raw[:at] + broken + raw[at:])


@pytest.mark.parametrize("depth", [1, JSON_DEPTH_MAX - 1, JSON_DEPTH_MAX, JSON_DEPTH_MAX + 1, 500, 900, 5000, 100_000])
@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]"), (b'[1, {"\\u0061" : ', b"}]")]
)
def test_the_depth_is_bounded(depth: int, opening: bytes, closing: bytes) -> None:
    count = depth // (2 if opening.startswith(b"[") and len(opening) > 1 else 1)
    raw = opening * count + b"1" + closing * count
    if depth <= 900:
        agree(raw)
    else:
        assert read(raw) == (False, None)


def agree(raw: bytes) -> None:
    accepted, value = read(raw)
    try:
        expected = reference(raw)
    except Refused:
        assert not accepted, raw
    else:
        assert accepted, raw
        assert same(value, expected), raw


BIG = 400_000
HOSTILE = {
    "nested": b"[" * BIG,
    "nested-objects": b'{"a":' * (BIG // 5),
    "escapes": b'"' + b"\\u0061" * (BIG // 6) + b'"',
    "surrogates": b'"' + b"\\ud800" * (BIG // 6) + b'"',
    "backslashes": b'"' + b"\\\\" * (BIG // 2) + b'"',
    "numbers": b"[" + b"1e999," * (BIG // 6) + b"1]",
    "floats": b"[" + b"1.50," * (BIG // 5) + b"1]",
    "digits": b"9" * BIG,
    "fraction": b"0." + b"3" * BIG,
    "exponent": b"1e" + b"9" * BIG,
    "many-long-integers": b"[" + (b"9" * 4000 + b",") * (BIG // 4000) + b"1]",
    "empty-arrays": b"[" + b"[]," * (BIG // 3) + b"1 ]",
    "keys": b"{" + b",".join(b'"k%d" :1' % number for number in range(BIG // 12)) + b"}",
    "one-key-again": b"{" + b",".join([b'"k":1'] * (BIG // 6)) + b"}",
    "spaces": b" " * BIG + b"1",
    "colliding-integers": b"{" + b",".join(b'"%d":1 ' % (number * (2**61 - 1)) for number in range(BIG // 25)) + b"}",
    "quote": b'"' * BIG,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_costs_time_in_proportion_to_its_size(name: str) -> None:
    raw = HOSTILE[name]
    began = time.process_time()
    read(raw)
    assert time.process_time() - began < 3.0  # a quadratic reader of 400 kB needs minutes
