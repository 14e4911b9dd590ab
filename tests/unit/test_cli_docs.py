"""docs/configuration.md and the settings say the same: every key is there, and no key that does not exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tidegate.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
OF_THE_PROGRAM = {"root"}  # not a key: set from the file's place


def keys(node: msgspec.inspect.Type) -> Iterator[str]:
    """Every key of a structure and of what it holds, by its own name."""
    match node:
        case msgspec.inspect.StructType():
            for field in node.fields:
                yield field.encode_name
                yield from keys(field.type)
        case msgspec.inspect.UnionType():
            for part in node.types:
                yield from keys(part)
        case msgspec.inspect.VarTupleType():
            yield from keys(node.item_type)
        case msgspec.inspect.DictType():
            yield from keys(node.value_type)


KEYS = sorted(set(keys(msgspec.inspect.type_info(Settings))) - OF_THE_PROGRAM)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_documented(key: str) -> None:
    assert re.search(rf"`([\w-]+\.)*{re.escape(key)}[.`]", PAGE.read_text()), (
        f"docs/configuration.md does not have {key}"
    )


def test_every_documented_key_exists() -> None:
    documented = {part for row in ROW.findall(PAGE.read_text()) for part in row.split(".")}
    assert documented - set(KEYS) == set()


def test_every_default_of_the_limits_is_the_documented_one() -> None:
    from tidegate.limits import Limits

    text = PAGE.read_text()
    for field in msgspec.structs.fields(Limits):
        row = re.search(rf"^\| `{field.name}` \|[^|]*\| `([^`]+)`", text, re.MULTILINE)
        assert row is not None, field.name
        assert float(row[1]) == field.default, field.name
