"""Rows on stdout: a table for people, CSV and JSON for programs. Times are ISO 8601 in UTC; foreign text is made safe
for the terminal in tables alone.
"""

import csv
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import msgspec

from tidegate.analytics.port import Answer
from tidegate_cli.output import console, plain, print_line

CELL_CHARS_MAX = 200


def print_table(answer: Answer) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    if not answer.rows:
        console().print("[dim]no rows[/]")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(answer.names):
        is_number = all(isinstance(row[position], int | float | Decimal) for row in answer.rows)
        table.add_column(plain(name), justify="right" if is_number else "left", overflow="fold")
    for row in answer.rows:
        table.add_row(*[plain(_cut(_text(value))) for value in row])
    console().print(table)


def print_csv(answer: Answer) -> None:
    """RFC 4180, with a header."""
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow(answer.names)
    for row in answer.rows:
        writer.writerow([_text(value) for value in row])


def print_json(answer: Answer) -> None:
    """One list of objects."""
    rows = [_object(answer.names, row) for row in answer.rows]
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n")


def print_lines(answer: Answer) -> None:
    """An object a line."""
    for row in answer.rows:
        print_line(_object(answer.names, row))


PRINTERS: dict[str, Callable[[Answer], None]] = {
    "table": print_table,
    "csv": print_csv,
    "json": print_json,
    "jsonl": print_lines,
}


def _object(names: tuple[str, ...], row: tuple[Any, ...]) -> dict[str, Any]:
    return {name: _value(value) for name, value in zip(names, row, strict=True)}


def _value(value: Any) -> Any:
    """As JSON has it."""
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return value.value
        case datetime():
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case bytes():
            return value.decode(errors="replace")
        case dict():
            return {str(name): _value(one) for name, one in value.items()}
        case list() | tuple():
            return [_value(one) for one in value]
    return str(value)


def _text(value: Any) -> str:
    made = _value(value)
    if made is None:
        return ""
    return made if isinstance(made, str) else msgspec.json.encode(made).decode()


def _cut(text: str) -> str:
    return text if len(text) <= CELL_CHARS_MAX else f"{text[:CELL_CHARS_MAX]}…"
