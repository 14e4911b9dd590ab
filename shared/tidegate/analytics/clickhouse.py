"""Analytics through clickhouse-connect: a ClickHouse server, or the engine embedded in this process; the same code for
both.

The client is synchronous and serves one thread; that thread is its own, so the event loop never waits. Foreign
exceptions stop here. In local mode `open_reader` finds the process that owns the embedded engine by the address it
left in the data directory.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import msgspec
from clickhouse_connect import common
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError
from urllib3.exceptions import HTTPError

from tidegate.analytics.native import compressed, encoded, wire_type
from tidegate.analytics.port import DATABASE, Answer, Blocks, rows_of
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, ConfigFault
from tidegate.settings import Settings

T = TypeVar("T")

QUERY_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 5
ROWS_PER_BLOCK = 200_000  # one insert is one block, so that it is stored whole or not at all where a partition allows

INSERT_SETTINGS = {
    "async_insert": 0,  # on by default in recent releases: it would answer before the rows are stored as one block
    "insert_deduplicate": 1,
    "optimize_on_insert": 0,  # the views merge while reading; merging each block as well costs and changes nothing
    "max_partitions_per_insert_block": 0,  # a replay may span years; a refusal would stop ingestion for good
}

# Of ClickHouse's error codes those that pass by themselves: timeouts, overload, memory, network, read-only replica,
# unknown outcome of an insert, Keeper.
TRANSIENT = frozenset({159, 201, 202, 203, 209, 210, 225, 232, 236, 241, 242, 243, 252, 279, 319, 394, 425, 439, 999})


class Address(msgspec.Struct, frozen=True):
    """Where the process that owns the embedded engine answers; the content of `{data}/analytics.json`."""

    host: str
    port: int
    pid: int
    reader_token_file: str
    writer_token_file: str


class ClickHouseAnalytics:
    """The port over one client, driven from one thread of its own."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client: Any = None
        self._types: dict[str, dict[str, str]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="analytics")

    async def execute(self, sql: str) -> None:
        await self._run(lambda client: client.command(sql))

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        if rows_of(columns) == 0:
            return
        await self._run(lambda client: self._insert(client, table, columns, token))

    async def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        def ask(client: Any) -> Answer:
            result = client.query(sql, parameters=dict(parameters or {}))
            return Answer(tuple(result.column_names), [tuple(row) for row in result.result_rows])

        return await self._run(ask)

    async def close(self) -> None:
        """Ends after the statement in hand. Idempotent."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.close)

    async def _run(self, work: Callable[[Any], T]) -> T:
        def in_thread() -> T:
            try:
                if self._client is None:
                    self._client = self._connect()
                return work(self._client)
            except (ClickHouseError, HTTPError, OSError) as error:
                raise _fault(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_thread)

    def _insert(self, client: Any, table: str, columns: Mapping[str, Sequence[Any]], token: str) -> None:
        compression = client.write_compression
        client.raw_insert(
            table,
            list(columns),
            compressed(self._laid_out(client, table, columns), compression),
            settings=INSERT_SETTINGS | ({"insert_deduplication_token": token} if token else {}),
            fmt="Native",
            compression=compression,
        )

    def _laid_out(self, client: Any, table: str, columns: Mapping[str, Sequence[Any]]) -> Iterable[bytes]:
        if isinstance(columns, Blocks):
            return columns.laid_out
        types = self._types_of(client, table)
        if unknown := columns.keys() - types.keys():
            raise AnalyticsRefused(f"{table} has no column {', '.join(sorted(unknown))}")
        return encoded(columns, types, ROWS_PER_BLOCK)

    def _types_of(self, client: Any, table: str) -> dict[str, str]:
        if table not in self._types:
            rows = client.query(f"DESCRIBE TABLE {table}").result_rows
            self._types[table] = {str(row[0]): wire_type(str(row[1])) for row in rows}
        return self._types[table]


def _fault(error: Exception) -> AnalyticsUnavailable | AnalyticsRefused:
    code = getattr(error, "code", None)
    if isinstance(error, DatabaseError) and code is not None and code not in TRANSIENT:
        return AnalyticsRefused(f"ClickHouse refused the statement: {error}")
    return AnalyticsUnavailable(f"ClickHouse does not answer as it should: {error}")


def open_embedded(directory: Path) -> ClickHouseAnalytics:
    """The engine embedded in this process. The caller holds the directory's lock (see `chdb_server.py`)."""

    def connect() -> Any:
        common.set_setting("autogenerate_session_id", False)
        return clickhouse_connect.get_client(interface="chdb", path=str(directory))

    return ClickHouseAnalytics(connect)


def open_server(url: str, password: str) -> ClickHouseAnalytics:
    """A server at `clickhouse[s]://user@host:port/tidegate`. Connects at the first statement. Raises ConfigFault."""
    parts = urlsplit(url)
    if parts.password is not None:
        raise ConfigFault(
            "$.analytics: leave the password out of the address; put it into analytics_password, as ${VAR}"
        )
    if parts.path.strip("/") not in ("", DATABASE):
        raise ConfigFault(
            f"$.analytics: the database is always '{DATABASE}', not '{parts.path.strip('/')}'; leave it out"
        )
    if not parts.hostname:
        raise ConfigFault(f"$.analytics: expected clickhouse://user@host:port/{DATABASE}, got '{url}'")
    secure = parts.scheme == "clickhouses"

    def connect() -> Any:
        return clickhouse_connect.get_client(
            host=parts.hostname,
            port=parts.port or (8443 if secure else 8123),
            secure=secure,
            username=unquote(parts.username or "default"),
            password=password,
            connect_timeout=CONNECT_TIMEOUT_S,
            send_receive_timeout=QUERY_TIMEOUT_S,
            query_retries=0,
            autogenerate_session_id=False,
            dedicated_pool=True,
        )

    return ClickHouseAnalytics(connect)


def read_address(data_dir: Path) -> Address:
    """Where the owner of the embedded engine answers. Raises AnalyticsUnavailable with what to do."""
    file = data_dir / "analytics.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Address)
    except FileNotFoundError:
        raise AnalyticsUnavailable(f"{file} does not exist: start `tidegate up` first, it owns the analytics") from None
    except msgspec.DecodeError as error:
        raise AnalyticsUnavailable(
            f"{file} cannot be read ({error}): restart `tidegate up`, it writes the file anew"
        ) from None


def open_reader(settings: Settings) -> ClickHouseAnalytics:
    """For reading, from any process: the server, or the process that owns the embedded engine. Raises as above."""
    return _open_from_outside(settings, "reader")


def open_writer(settings: Settings) -> ClickHouseAnalytics:
    """For writing, from any process. Raises as above."""
    return _open_from_outside(settings, "writer")


def _open_from_outside(settings: Settings, account: Literal["reader", "writer"]) -> ClickHouseAnalytics:
    if settings.analytics != "chdb":
        return open_server(settings.analytics, settings.analytics_password)
    address = read_address(settings.data_dir)
    file = address.reader_token_file if account == "reader" else address.writer_token_file
    token = (settings.data_dir / file).read_text().strip()
    return open_server(f"clickhouse://{account}@{address.host}:{address.port}/{DATABASE}", token)
