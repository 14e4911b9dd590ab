"""Processes without the start of Python: one process that has imported all of Tidegate, and forks for each command.

`start(["…/tidegate", …] or [python, "-m", module, …], cwd=…, log=…)` is `processes.spawn` for those, and
`prelude()` goes before a shell script so that its `tidegate` is answered here. What runs is a process of its own as
ever: arguments, directory, environment, standard streams, session and exit status are its own, and it can be killed.
What is spared is two seconds of imports for each. Rules: one such process for each that runs tests, from its main
thread; it ends with it, and what it forked ends with it as well. ClickHouse's engine is left to those who open it.
"""

import array
import atexit
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.parts.processes import spawn, wait_ready, with_parent

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("tidegate_cli", "tidegate_edge", "tidegate_policy", "tidegate_audit_consumer", "tidegate_detector")
REQUEST_BYTES_MAX: Final = 256 * 1024
NUMBER_BYTES: Final = 4

ASK: Final = """
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as way:
    way.connect(sys.argv[1])
    told = json.dumps([["tidegate", *sys.argv[2:]], os.getcwd(), dict(os.environ), False]).encode()
    fds = array.array("i", [0, 1, 2])
    way.sendmsg([len(told).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    way.sendall(told)
    said = b""
    while len(said) < 8 and (more := way.recv(8)):
        said += more
status = int.from_bytes(said[4:], "big", signed=True) if len(said) == 8 else 1
sys.exit(status if status >= 0 else 128 - status)
"""


class Forked:
    """A process that another one forked, with what `subprocess.Popen` has for those that one started oneself."""

    def __init__(self, args: Any, way: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._way = way
        self.pid = self._number()

    def poll(self) -> int | None:
        if self.returncode is None and self._has_said(0):
            self.returncode = self._number()
            self._way.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not self._has_said(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _has_said(self, timeout_s: float | None) -> bool:
        waiting = select.poll()  # not `select`, which knows no descriptor beyond 1,023
        waiting.register(self._way, select.POLLIN)
        return bool(waiting.poll(None if timeout_s is None else timeout_s * 1_000))

    def _number(self) -> int:
        said = b""
        while len(said) < NUMBER_BYTES:
            more = self._way.recv(NUMBER_BYTES - len(said))
            assert more, "the warm process is gone"
            said += more
        return int.from_bytes(said, "big", signed=True)


def start(command: Sequence[str], *, cwd: Path, log: Path, environment: Mapping[str, str] | None = None) -> Forked:
    """As `processes.spawn`."""
    way = socket.socket(socket.AF_UNIX)
    way.connect(str(_address()))
    told = json.dumps([list(command), str(cwd), {**os.environ, **(environment or {})}, True]).encode()
    with open(os.devnull, "rb") as nothing, log.open("ab") as output:
        fds = array.array("i", [nothing.fileno(), output.fileno(), output.fileno()])
        way.sendmsg([len(told).to_bytes(NUMBER_BYTES, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        way.sendall(told)
        return Forked(command, way)


def prelude() -> str:
    """What a shell is told first, so that `tidegate` is answered here."""
    ask = shlex.join([sys.executable, "-I", "-S", "-c", ASK, str(_address())])
    return f'tidegate() {{ {ask} "$@"; }}\n'


@functools.cache
def _address() -> Path:
    """Of the warm process, started when it is first needed."""
    directory = Path(tempfile.mkdtemp(prefix="tidegate-warm-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path, log = directory / "socket", directory / "log"
    process = spawn([sys.executable, "-m", "tests.parts.warm", str(path)], cwd=ROOT, log=log)
    wait_ready(path.exists, process, log, deadline_s=120)
    return path


class _Warm:
    """The process that forks: it answers with the pid, and with the status when that process has ended."""

    def __init__(self, path: Path) -> None:
        self._ways: dict[int, socket.socket] = {}
        self._ended, wake = socket.socketpair()
        wake.setblocking(False)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{path}.new")
        self._listener.listen(64)
        os.rename(f"{path}.new", path)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno())
        self._own = (self._ended, wake, self._listener)

    def serve(self) -> list[str]:
        """For ever, here; in each child it returns the words to be carried out."""
        while True:
            ready = select.select([self._listener, self._ended], [], [])[0]
            if self._ended in ready:
                self._ended.recv(4096)
                self._reap()
            if self._listener in ready:
                way, _ = self._listener.accept()
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    with_parent(parent)
                    return self._become(way)
                self._ways[pid] = way
                _say(way, pid)

    def _reap(self) -> None:
        for pid in list(self._ways):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                way = self._ways.pop(pid)
                _say(way, os.waitstatus_to_exitcode(status))
                way.close()

    def _become(self, way: socket.socket) -> list[str]:
        """The process that was asked for."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for own in (*self._own, *self._ways.values()):
            own.close()
        with way:
            size, rights, _, _ = way.recvmsg(NUMBER_BYTES, socket.CMSG_SPACE(3 * array.array("i").itemsize))
            wanted = min(int.from_bytes(size, "big"), REQUEST_BYTES_MAX)
            told = b""
            while len(told) < wanted:
                told += way.recv(wanted - len(told))
            streams = array.array("i", rights[0][2])
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        words, directory, environment, has_session = json.loads(told)
        if has_session:
            os.setsid()
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        return list(words)


def _say(way: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked is gone
        way.sendall(number.to_bytes(NUMBER_BYTES, "big", signed=True))


def _import_all() -> None:
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def _carry_out(words: list[str]) -> None:
    """Ends as the command does, with its status."""
    if "-m" in words[1:2]:
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        return
    from tidegate_cli.main import main

    sys.argv = words
    sys.modules["__main__"].__package__ = None  # by which a usage line would name this module
    main()


if __name__ == "__main__":
    _import_all()
    _carry_out(_Warm(Path(sys.argv[1])).serve())
