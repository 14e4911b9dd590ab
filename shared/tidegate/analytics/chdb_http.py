"""ClickHouse's HTTP interface over the embedded engine, as much of it as ClickHouse's clients use. An ASGI
application.

Each request is one statement on an engine handle of its own, so settings never outlive it. A reader's handle is
`readonly = 1`: no writes, no settings, no files, no URLs. Bounded: body size before and after decompression,
concurrent statements, time.
Counterpart: `chdb_server.py`, which owns the engine's directory.
"""

import asyncio
import base64
import contextlib
import hmac
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from tidegate.analytics.bodies import BodyFault, receive_body
from tidegate.analytics.forms import fields_of, is_form
from tidegate.analytics.port import DATABASE
from tidegate.analytics.statements import fault_of_reading, is_single

CONCURRENT_STATEMENTS = 4  # of readers, and as many of writers: dashboards do not keep records waiting
READER_MEMORY_BYTES_MAX = 4 * 1024**3
READER_SQL_BYTES_MAX = 256 * 1024
WRITER_BODY_BYTES_MAX = 512 * 1024 * 1024
RESULT_BYTES_MAX = 256 * 1024 * 1024
READER_TIMEOUT_S = 60
WRITER_TIMEOUT_S = 300

# Parameters of the transport, consumed here; every other parameter but `param_…` is a setting.
TRANSPORT = frozenset(
    {
        *("query", "database", "default_format", "query_id", "quota_key", "role", "session_id", "session_timeout"),
        *("session_check", "compress", "decompress", "buffer_size", "wait_end_of_query", "client_protocol_version"),
        *("send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression"),
        "cancel_http_readonly_queries_on_client_close",
    }
)
SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
INSERT_WITH_DATA = re.compile(rb"\s*INSERT\s+INTO\s[^;]{1,65536}?\sFORMAT\s+\w+[ \t]*\n", re.IGNORECASE)
ERROR_CODE = re.compile(r"Code: (\d+)")


@dataclass(frozen=True)
class Tokens:
    """What is sent as the password or X-ClickHouse-Key."""

    reader: str
    writer: str


class Statement(NamedTuple):
    """What one request asks for."""

    sql: str
    data: Path | None  # what follows an INSERT … FORMAT x
    parameters: dict[str, str]
    settings: dict[str, str]
    database: str  # "": Tidegate's, if it exists
    default_format: str
    writes: bool


class Refused(Exception):
    """The request ends with this status and ClickHouse error code."""

    def __init__(self, status: int, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code


class ChdbHttp:
    """The ASGI application."""

    def __init__(self, directory: Path, tokens: Tokens) -> None:
        self._directory = directory
        self._tokens = tokens
        self._threads = {
            writes: ThreadPoolExecutor(CONCURRENT_STATEMENTS, thread_name_prefix=f"analytics-{name}")
            for writes, name in ((True, "writers"), (False, "readers"))
        }

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/ping":
            await _answer(send, 200, b"Ok.\n")
            return
        try:
            body = await self._serve(scope, receive)
        except Refused as refusal:
            text = f"Code: {refusal.code}. DB::Exception: {refusal}\n".encode()
            await _answer(send, refusal.status, text, (b"x-clickhouse-exception-code", str(refusal.code).encode()))
            return
        result_format = (b"x-clickhouse-format", b"Native"), (b"x-clickhouse-timezone", b"UTC")
        await _answer(send, 200, body, *(result_format if body else ()))

    async def _serve(self, scope: dict[str, Any], receive: Any) -> bytes:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        is_writer = self._authenticate(headers)
        with tempfile.NamedTemporaryFile(prefix="tidegate-analytics-") as spooled:
            try:
                bound = WRITER_BODY_BYTES_MAX if is_writer else READER_SQL_BYTES_MAX
                head = await receive_body(receive, spooled, headers.get("content-encoding", ""), bound)
                if is_form(kind := headers.get("content-type", "")):
                    query |= _whole_form(kind, head, Path(spooled.name))
                    head = b""
            except BodyFault as fault:
                raise Refused(413 if fault.too_large else 400, 36, str(fault)) from None
            statement = _statement(query, head, Path(spooled.name), is_writer and scope["method"] == "POST")
            return await asyncio.get_running_loop().run_in_executor(self._threads[is_writer], self._run, statement)

    def _authenticate(self, headers: dict[str, str]) -> bool:
        """True for the writer, False for the reader."""
        given = headers.get("x-clickhouse-key", "")
        if headers.get("authorization", "").startswith("Basic "):
            try:
                given = base64.b64decode(headers["authorization"][6:]).decode().partition(":")[2]
            except ValueError:
                given = ""
        if hmac.compare_digest(given.encode(), self._tokens.writer.encode()):
            return True
        if hmac.compare_digest(given.encode(), self._tokens.reader.encode()):
            return False
        raise Refused(403, 516, "Authentication failed: send a token of the data directory as the password")

    def _run(self, statement: Statement) -> bytes:
        import chdb  # the engine: only the process that owns a directory loads it

        handle = chdb.connect(str(self._directory))
        try:
            handle.query(_preamble(statement))
            if statement.database:
                handle.query(f"USE `{statement.database}`")
            else:
                with contextlib.suppress(RuntimeError):  # before the first migration it does not exist
                    handle.query(f"USE {DATABASE}")
            result = handle.query(statement.sql, statement.default_format, params=statement.parameters)
            return bytes(result.bytes() or b"")
        except RuntimeError as error:
            text = str(error)
            code = ERROR_CODE.search(text)
            message = text.partition("DB::Exception: ")[2] or text
            raise Refused(500, int(code[1]) if code else 1001, message.strip()) from None
        finally:
            handle.close()


def _whole_form(content_type: str, head: bytes, spooled: Path) -> dict[str, str]:
    """Its fields; the file is empty afterwards, for a form carries no data of an insert. Raises BodyFault."""
    if spooled.stat().st_size > len(head):
        raise BodyFault(f"a form has {len(head)} bytes at most", too_large=True)
    os.truncate(spooled, 0)
    return fields_of(content_type, head)


def _statement(query: dict[str, str], head: bytes, spooled: Path, writes: bool) -> Statement:
    """Raises Refused. `head` is the body's beginning, or all of it where it is short."""
    settings = {name: value for name, value in query.items() if name not in TRANSPORT and not name.startswith("param_")}
    for name in settings:
        if not SETTING.fullmatch(name) or name in ("user", "password"):
            raise Refused(400, 115, f"'{name}' is not a setting; credentials go into the headers")
        if not writes:
            raise Refused(500, 164, f"Cannot modify '{name}' setting in readonly mode")
    database = query.get("database", "")
    if not SETTING.fullmatch(database or DATABASE):
        raise Refused(400, 36, "the database's name is not an identifier")
    sql, data = _sql_of(query.get("query", ""), head, spooled)
    if not writes and (why := fault_of_reading(sql)):
        raise Refused(500, 164, f"Cannot execute query in readonly mode: {why}")
    if not is_single(sql):
        raise Refused(400, 62, "Multi-statements are not allowed: send one statement in a request")
    parameters = {name.removeprefix("param_"): value for name, value in query.items() if name.startswith("param_")}
    default_format = query.get("default_format", "TabSeparated")
    if not SETTING.fullmatch(default_format):
        raise Refused(400, 73, "default_format is not a format's name")
    return Statement(sql, data, parameters, settings, database, default_format, writes)


def _sql_of(in_url: str, head: bytes, spooled: Path) -> tuple[str, Path | None]:
    """The statement, and the file of the data that it inserts, its own text cut off in front."""
    size = spooled.stat().st_size
    if match := (re.match(rb"\s*INSERT\s", in_url.encode(), re.IGNORECASE) and size):
        return _from_file(in_url, spooled), spooled if match else None
    if inline := (not in_url and INSERT_WITH_DATA.match(head)):
        _cut_front(spooled, inline.end())
        return _from_file(inline.group().decode(), spooled), spooled
    if size > len(head):
        raise Refused(413, 36, f"a statement has {len(head)} bytes at most")
    try:
        return f"{in_url}\n{head.decode()}" if in_url else head.decode(), None
    except UnicodeDecodeError:
        raise Refused(400, 36, "the statement is not UTF-8") from None


def _from_file(insert: str, spooled: Path) -> str:
    statement, _, fmt = insert.strip().rpartition(" ")
    statement = re.sub(r"\sFORMAT$", "", statement.rstrip(), flags=re.IGNORECASE)
    return f"{statement} FROM INFILE '{spooled}' FORMAT {fmt}"


def _cut_front(file: Path, length: int) -> None:
    with file.open("r+b") as stream:
        at = 0
        while chunk := _pread(stream, length + at):
            stream.seek(at)
            stream.write(chunk)
            at += len(chunk)
        stream.truncate(at)


def _pread(stream: Any, position: int) -> bytes:
    stream.seek(position)
    return bytes(stream.read(1 << 20))


def _preamble(statement: Statement) -> str:
    """The handle's settings; a reader gives none of its own."""
    given = {name: _quote(value) for name, value in statement.settings.items()}
    limit = WRITER_TIMEOUT_S if statement.writes else READER_TIMEOUT_S
    own = {
        "max_execution_time": str(limit),
        "max_result_bytes": str(RESULT_BYTES_MAX),
        "result_overflow_mode": "'throw'",
    }
    own |= {} if statement.writes else {"readonly": "1", "max_memory_usage": str(READER_MEMORY_BYTES_MAX)}
    return "SET " + ", ".join(f"{name} = {value}" for name, value in (own | given).items())


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


async def _answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    plain = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *headers]})
    await send({"type": "http.response.body", "body": body})
