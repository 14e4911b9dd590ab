"""Rows on stdout: a table for people, or a block a row where a table would not fit; CSV and JSON for programs. Times
are ISO 8601 in UTC; foreign text is made safe for the terminal in tables and blocks alone.
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
from tidegate_cli.output import console, lines, plain, print_line

CELL_CHARS_MAX = 200
FOLDED_MIN = 40  # a UUID is 36 characters, a subject id 32


def print_table(answer: Answer) -> None:
    """Every column, whole: `name: value` lines where the columns do not fit beside each other."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    if not answer.rows:
        console().print("[dim]no rows[/]")
        return
    rows = [[lines(_cut(_text(value))) for value in row] for row in answer.rows]
    if not _fits(answer.names, rows, console().width):
        _print_blocks(answer.names, rows)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(answer.names):
        is_number = all(isinstance(row[position], int | float | Decimal) for row in answer.rows)
        table.add_column(plain(name), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _fits(names: tuple[str, ...], rows: list[list[str]], columns: int) -> bool:
    """Beside each other, none folded to less than what holds an id; each has a space on either side and one between."""
    if len(names) == 1:
        return True
    widths = [max(map(_width, (names[at], *(row[at] for row in rows)))) for at in range(len(names))]
    return sum(min(width, FOLDED_MIN) + 3 for width in widths) <= columns


def _width(cell: str) -> int:
    from rich.cells import cell_len

    return max(cell_len(line.expandtabs()) for line in cell.split("\n"))


def _print_blocks(names: tuple[str, ...], rows: list[list[str]]) -> None:
    longest = max(map(_width, names))
    for number, row in enumerate(rows, 1):
        console().print(f"[dim]row {number}[/]")
        for name, cell in zip(names, row, strict=True):
            value = cell.replace("\n", "\n" + " " * (longest + 2))
            margin = " " * (longest - _width(name))
            console().print(f"{margin}[bold]{plain(name)}[/]: {value}", soft_wrap=True)


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
