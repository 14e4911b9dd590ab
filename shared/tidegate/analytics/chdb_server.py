"""The embedded ClickHouse engine's owner: one process holds the directory and serves ClickHouse's HTTP interface on
loopback.

Everybody else (CLI, dashboards, further consumers) connects with `clickhouse://` and a token: the writer's may do
everything, the reader's only read. Address and token files are in the data directory, readable by its owner alone.
Counterparts: `clickhouse.py` (clients), `chdb_http.py` (the requests).
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import uvicorn

from tidegate.analytics.chdb_http import ChdbHttp, Tokens
from tidegate.analytics.clickhouse import Address, ClickHouseAnalytics, open_embedded
from tidegate.errors import ConfigFault

READER_TOKEN_FILE = "analytics-reader.token"  # noqa: S105  a file's name
WRITER_TOKEN_FILE = "analytics-writer.token"  # noqa: S105  a file's name
STOP_TIMEOUT_S = 5.0


class AnalyticsOwned(ConfigFault):
    """Another process owns the embedded engine's directory; the sentence names it."""

    code = "analytics-owned"


class EmbeddedEngine:
    """`async with EmbeddedEngine(data_dir) as engine`: owns `{data_dir}/analytics` until the end of the scope."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._lock = -1
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.analytics: ClickHouseAnalytics
        self.address: Address

    async def __aenter__(self) -> Self:
        """Raises AnalyticsOwned, or AnalyticsUnavailable when the engine cannot open the directory."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _own(self._data_dir / "analytics.lock")
        directory = self._data_dir / "analytics"
        self.analytics = open_embedded(directory)
        try:
            await self.analytics.query("SELECT 1")
            listening = _listen(_port_before(self._data_dir))
            tokens = Tokens(
                reader=_token(self._data_dir / READER_TOKEN_FILE), writer=_token(self._data_dir / WRITER_TOKEN_FILE)
            )
            app = ChdbHttp(directory, tokens)
            config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False, limit_concurrency=64)
            self._server = _Server(config)
            self._serving = asyncio.create_task(self._server.serve([listening]), name="analytics-http")
            host, port = listening.getsockname()[:2]
            self.address = Address(host, port, os.getpid(), READER_TOKEN_FILE, WRITER_TOKEN_FILE)
            _write_private(self._data_dir / "analytics.json", msgspec.json.encode(self.address))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait([self._serving], timeout=STOP_TIMEOUT_S)
            self._serving.cancel()
        await self.analytics.close()
        os.close(self._lock)  # gives the lock up


class _Server(uvicorn.Server):
    """Signals belong to the process's host."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _own(file: Path) -> int:
    """The lock file's descriptor, locked; it holds the owner's pid. Raises AnalyticsOwned."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise AnalyticsOwned(
            f"the process with pid {owner} owns {file.parent / 'analytics'}: connect to it (its address is in "
            f"{file.parent / 'analytics.json'}), stop it, or choose another `data` directory"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _listen(port: int) -> socket.socket:
    """On loopback; at the port of the last time where that is free, so that dashboards keep working."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError:
        listening.bind(("127.0.0.1", 0))
    listening.listen(128)  # from here on connections wait for the server instead of being refused
    listening.setblocking(False)
    return listening


def _port_before(data_dir: Path) -> int:
    try:
        return msgspec.json.decode((data_dir / "analytics.json").read_bytes(), type=Address).port
    except (OSError, msgspec.DecodeError):
        return 0


def _token(file: Path) -> str:
    """Kept over restarts; removing the file makes a new one."""
    if file.exists():
        file.chmod(0o600)
        if len(token := file.read_text().strip()) >= 32:
            return token
    token = secrets.token_urlsafe(32)
    _write_private(file, token.encode())
    return token


def _write_private(file: Path, content: bytes) -> None:
    """Whole or not at all, mode 0600."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    fresh.replace(file)
