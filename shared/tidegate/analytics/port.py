"""Analytics, as every service sees it: ClickHouse's SQL, whole columns in, rows out.

Adapter: `clickhouse.py` (a server, or the embedded engine). Counterpart for other processes in local mode:
`chdb_server.py`. Every table is named with its database (`tidegate.calls`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

DATABASE = "tidegate"


class Answer(NamedTuple):
    """A query's result. `names` is empty when there are no rows and the engine sent no header."""

    names: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Analytics(Protocol):
    """An open connection. All methods raise AnalyticsUnavailable (try again) or AnalyticsRefused (the statement is
    wrong).
    """

    async def execute(self, sql: str) -> None:
        """One statement without a result."""
        ...

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        """Whole columns of equal length. Times are integer microseconds. The same `token` again, soon after, inserts
        nothing.
        """
        ...

    async def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        """Rows of a SELECT. Parameters are bound by ClickHouse: `{name:Type}`."""
        ...

    async def close(self) -> None: ...
