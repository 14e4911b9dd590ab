"""Columns in ClickHouse's Native format: bytes as the format says, and values that no type holds refused by name."""

from typing import Any

import pytest

from tidegate.analytics.native import Block, Made, encoded, wire_type
from tidegate.errors import AnalyticsRefused
from tidegate_audit_consumer.rows import CALL_TYPES, EVENT_TYPES


def laid_out(kind: str, column: list[Any]) -> bytes:
    """The column's own bytes, after the block's head: one column, that many rows, name and type."""
    head = bytes([1, len(column), 1]) + b"c" + bytes([len(kind)]) + kind.encode()
    made = b"".join(encoded({"c": column}, {"c": kind}, 1_000))
    assert made.startswith(head)
    return made.removeprefix(head)


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("String", ["ab", "cd"], b"\x02ab\x02cd"),
        ("String", ["", "ü", b"\xff"], b"\x00\x02\xc3\xbc\x01\xff"),
        ("String", ["ü", "é"], b"\x02\xc3\xbc\x02\xc3\xa9"),
        ("String", ["x" * 300, "y"], b"\xac\x02" + b"x" * 300 + b"\x01y"),
        ("String", ["x" * 128] * 2, (b"\x80\x01" + b"x" * 128) * 2),
        ("String", [b"", b"x" * 16_384], b"\x00\x80\x80\x01" + b"x" * 16_384),
        ("String", ["\ud800"], b"\x01?"),
        ("String", ["same"] * 20, b"\x04same" * 20),
        ("String", ["a" * n for n in range(20)], b"".join(bytes([n]) + b"a" * n for n in range(20))),
        ("String", ["é" * n for n in range(1, 20)], b"".join(bytes([2 * n]) + "é".encode() * n for n in range(1, 20))),
        ("String", ["x", "yy"] * 20, b"\x01x\x02yy" * 20),
        ("UInt8", [True, 2], b"\x01\x02"),
        ("DateTime64(6, 'UTC')", [1, -1], b"\x01" + bytes(7) + b"\xff" * 8),
        ("Nullable(Int64)", [None, 1], b"\x01\x00" + bytes(8) + b"\x01" + bytes(7)),
        ("Array(String)", [(), ("a", "b")], bytes(8) + b"\x02" + bytes(7) + b"\x01a\x01b"),
        ("Array(Tuple(rule String, count UInt8))", [[("a", 7)], ()], (b"\x01" + bytes(7)) * 2 + b"\x01a\x07"),
    ],
)
def test_a_column_is_laid_out_as_the_format_says(kind: str, column: list[Any], expected: bytes) -> None:
    assert laid_out(kind, column) == expected


@pytest.mark.parametrize(
    ("kind", "value"), [("UInt64", -1), ("UInt64", 2**64), ("UInt8", 256), ("String", 3), ("UInt64", "1")]
)
def test_a_value_that_its_type_cannot_hold_is_refused_with_the_column_s_name(kind: str, value: Any) -> None:
    with pytest.raises(AnalyticsRefused, match=f"column c .* no {kind}"):
        laid_out(kind, [value])


def test_a_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(AnalyticsRefused, match=r"no column of type JSON"):
        laid_out("JSON", ["{}"])


def test_a_list_that_two_blocks_share_is_never_mistaken_for_another() -> None:
    made = Made()
    for number in range(200):  # each list is gone after its block: its address may be another's next
        block = Block({"c": "String"})
        block.add({"c": [f"{number:03}"]}, made)
        assert block.laid_out()[-1].endswith(f"{number:03}".encode())


def test_a_block_of_several_slices_is_that_of_all_their_rows_and_what_a_slice_has_not_is_least() -> None:
    types = {"a": "String", "b": "Array(String)", "c": "UInt64", "d": "Nullable(Int64)", "e": "String"}
    block, whole = Block(types), Block(types)
    block.add({"a": ["x", "y"], "b": [("m",), ()]}, Made())
    block.add({"c": [7], "d": [None], "a": [b"z" * 200]}, Made())
    block.add({"b": [("n", "o")], "d": [-1]}, Made())
    whole.add(
        {
            "a": ["x", "y", "z" * 200, ""],
            "b": [("m",), (), (), ("n", "o")],
            "c": [0, 0, 7, 0],
            "d": [None, None, None, -1],
        },
        Made(),
    )
    assert b"".join(block.laid_out()) == b"".join(whole.laid_out())
    assert (block.rows, Block(types).laid_out()) == (4, [])


def test_every_column_that_ingestion_sends_has_a_type_that_can_be_sent() -> None:
    for kind in (*EVENT_TYPES.values(), *CALL_TYPES.values()):
        least = (
            () if kind.startswith("Array") else None if kind.startswith("Nullable") else "" if kind == "String" else 0
        )
        assert not any(laid_out(kind, [least]).removeprefix(b"\x01" if least is None else b""))
        assert wire_type(f"SimpleAggregateFunction(max, {kind})") == kind
