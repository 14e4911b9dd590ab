"""What goes to the terminal: JSON for programs, rich text for people. Stdout is for answers alone."""

import sys
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

FILE_COLUMNS = 160
DECISION_STYLES = {"allow": "green", "deny": "red", "ask": "yellow", "limited": "magenta"}
_LINE_ENDS = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})
SEVERITY_STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}


@cache
def console() -> "Console":
    """Rich on stdout; plain where that is a file, and not wrapped there: a line stays a line."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, soft_wrap=True, width=FILE_COLUMNS)


def print_document(value: Any) -> None:
    """One JSON document, for people to read as well."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()


def print_line(value: Any) -> None:
    """One JSON value on a line of its own; bytes are JSON already."""
    sys.stdout.write((value if isinstance(value, bytes) else msgspec.json.encode(value)).decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line with rich markup."""
    console().print(text)


def plain(text: object) -> str:
    """Foreign text, safe inside markup and on a terminal, and on one line: no markup, no control characters, nothing
    that is unseen; what would begin a line of its own is written as an escape.
    """
    return lines(str(text).translate(_LINE_ENDS))


def lines(text: str) -> str:
    """The same of a text that has lines by right: a file, what a tool answers."""
    from rich.markup import escape

    return escape(seen(text))


def seen(text: str) -> str:
    """Without what steers a terminal or hides; the lines stay, and so does what looks like markup."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in "\n\t" or _is_seen(char) else "\N{REPLACEMENT CHARACTER}" for char in text)


@lru_cache(4_096)
def _is_seen(char: str) -> bool:
    from tidegate.policy.instructing import visible

    return char != "\N{BRAILLE PATTERN BLANK}" and char.isprintable() and visible(char) == char


def soon(seconds: float) -> str:
    """`in 12 s`, `in 40 min`, `in 9.4 h`; "" where that is no time at all."""
    whole = round(seconds)
    if whole <= 0:
        return ""
    if whole < 120:
        return f"in {whole} s"
    return f"in {whole // 60} min" if whole < 7200 else f"in {whole // 360 / 10} h"
