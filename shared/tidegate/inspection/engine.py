"""The pattern engine: Hyperscan behind two functions. Foreign types and exceptions stop here.

A database is compiled once and only read; it owns one scratch, so a database serves one thread at a time.
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

try:
    import hyperscan
except ImportError as error:  # pragma: no cover - depends on the platform
    raise ImportError(
        "content inspection needs the 'hyperscan' package, which has no wheel for this platform "
        "(wheels exist for Linux and macOS on x86-64 and arm64); run Tidegate on one of those"
    ) from error

MATCHES_MAX = 20_000
"""Match ends taken from one text. Beyond that, callers fall back to `Database.which`."""


COMPILED_KEPT = 32


class Hit(NamedTuple):
    """A match end of expression `number`; `start` is the leftmost for that end, or 0 where no spans are compiled."""

    number: int
    start: int
    end: int


class Expression(NamedTuple):
    """What is compiled. Plain patterns work on bytes; those with a character outside ASCII on UTF-8 characters."""

    pattern: str
    ignore_case: bool
    spans: bool  # whether starts are wanted (costs time)


class Uncompilable(ValueError):
    """An expression is refused by the engine; `number` tells which."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number
        self.reason = reason


class Database:
    """Some expressions, compiled together. `single` reports each expression at most once and never its start."""

    def __init__(self, expressions: Sequence[Expression], *, single: bool) -> None:
        patterns = [expression.pattern.encode() for expression in expressions]
        flags = [_flags(expression, single) for expression in expressions]
        try:
            self._database = _compiled(tuple(patterns), tuple(flags))
        except hyperscan.error as error:
            raise _culprit(patterns, flags, str(error)) from error
        self._scratch = hyperscan.Scratch(self._database)
        self._aside: Database | None = None

    @property
    def aside(self) -> "Database":
        """The same for one other thread, with a scratch of its own: while it scans it holds no interpreter lock."""
        if self._aside is None:
            self._aside = copy.copy(self)
            self._aside._scratch = hyperscan.Scratch(self._database)
        return self._aside

    def which(self, text: bytes) -> list[int]:
        """The expressions that match, by number and without order. For a `single` database, where that is bounded."""
        found: list[int] = []
        self._database.scan(text, _note_index, 0, found, self._scratch)
        return found

    def hits(self, text: bytes, hits_max: int = MATCHES_MAX) -> list[Hit]:
        """Match ends, in order for each expression, at most `hits_max`: a full list means that there may be more."""
        found: list[Hit] = []
        if hits_max <= 0:
            return found

        def note(index: int, start: int, end: int, _flags: int, _context: Any) -> bool | None:
            found.append(Hit(index, start, end))
            return True if len(found) >= hits_max else None

        with suppress(hyperscan.ScanTerminated):
            self._database.scan(text, note, 0, None, self._scratch)
        return found


def _note_index(index: int, _start: int, _end: int, _flags: int, found: list[int]) -> None:
    found.append(index)


def _flags(expression: Expression, single: bool) -> int:
    flags = 0
    if expression.ignore_case:
        flags |= hyperscan.HS_FLAG_CASELESS
    if not expression.pattern.isascii():
        flags |= hyperscan.HS_FLAG_UTF8 | hyperscan.HS_FLAG_UCP
    if single:
        flags |= hyperscan.HS_FLAG_SINGLEMATCH
    elif expression.spans:
        flags |= hyperscan.HS_FLAG_SOM_LEFTMOST
    return flags


@lru_cache(maxsize=COMPILED_KEPT)
def _compiled(patterns: tuple[bytes, ...], flags: tuple[int, ...]) -> Any:
    """Compiling takes a second for the built-in packs, and a bundle is read several times before it rules."""
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(
        expressions=list(patterns), ids=list(range(len(patterns))), elements=len(patterns), flags=list(flags)
    )
    return database


def _culprit(patterns: list[bytes], flags: list[int], message: str) -> Uncompilable:
    for index, (pattern, flag) in enumerate(zip(patterns, flags, strict=True)):
        try:
            _compiled((pattern,), (flag,))
        except hyperscan.error as error:
            return Uncompilable(index, str(error))
    return Uncompilable(0, f"too complex together: {message}")
