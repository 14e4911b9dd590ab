"""Analytics, as every service sees it: ClickHouse's SQL, whole columns in, rows out.

Adapter: `clickhouse.py` (a server, or the embedded engine). Counterpart for other processes in local mode:
`chdb_server.py`. Every table is named with its database (`tidegate.calls`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

DATABASE = "tidegate"


class Answer(NamedTuple):
    """A query's result. `names` is empty when there are no rows and the engine sent no header."""

    names: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Blocks(Mapping[str, Sequence[Any]]):
    """Rows of one table, laid out for the wire already (`native.py`). As a mapping: its plain columns, made on demand.

    A block may lack columns of `names`: ClickHouse fills them with the least value of their type.
    """

    def __init__(
        self,
        rows: int,
        names: Sequence[str],
        laid_out: Sequence[bytes],
        plain: Callable[[], Mapping[str, Sequence[Any]]],
    ) -> None:
        self.rows = rows
        self.laid_out = laid_out
        self._names = names if rows else ()
        self._plain = plain
        self._columns: Mapping[str, Sequence[Any]] | None = None

    def __getitem__(self, name: str) -> Sequence[Any]:
        if self._columns is None:
            self._columns = self._plain()
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def rows_of(columns: Mapping[str, Sequence[Any]]) -> int:
    """How many rows the columns have."""
    return columns.rows if isinstance(columns, Blocks) else len(next(iter(columns.values()), ()))


class Analytics(Protocol):
    """An open connection. All methods raise AnalyticsUnavailable (try again) or AnalyticsRefused (the statement is
    wrong).
    """

    async def execute(self, sql: str) -> None:
        """One statement without a result."""
        ...

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        """Whole columns of equal length, or `Blocks`. Times are integer microseconds. The same `token` again, soon
        after, inserts nothing.
        """
        ...

    async def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        """Rows of a SELECT. Parameters are bound by ClickHouse: `{name:Type}`."""
        ...

    async def close(self) -> None: ...
