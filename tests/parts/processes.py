"""Child processes that never outlive their user: started with a death signal, stopped with a deadline, ready by a fact.

Rule: start a part from a thread that lives as long as the part is needed (the kernel's parent-death signal follows the
thread).
"""

import ctypes
import functools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

CACHE = Path(__file__).resolve().parents[2] / ".cache"
"""Survives runs: what was downloaded, never what was written by a server."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Process(Protocol):
    """What `subprocess.Popen` has, as far as a running part needs it."""

    args: Any
    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class PartMissing(RuntimeError):
    """A part cannot be started here; the message says what to install."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spawn(
    command: Sequence[str], *, cwd: Path, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child that the kernel kills when the calling thread ends; its output goes to `log` (appended)."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment} if environment else None,
            preexec_fn=functools.partial(with_parent, os.getpid()),
            start_new_session=True,  # a Ctrl-C for the tests is not one for the server
        )


def with_parent(parent: int) -> None:
    """In a child: end when the thread ends that started it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the signal was armed
        os._exit(1)


def stop(process: Process, deadline_s: float = 15.0) -> None:
    """SIGTERM, then SIGKILL at the deadline; returns when the process is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def freeze(process: Process, deadline_s: float = 15.0) -> None:
    """SIGSTOP; returns when every thread stands still, which takes a while where others have the processors."""
    process.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")
    until = time.monotonic() + deadline_s
    while not all(_stands_still(thread) for thread in threads.iterdir()):
        assert time.monotonic() < until, f"{process.args!r} does not stand still"
        time.sleep(0.001)


def _stands_still(thread: Path) -> bool:
    try:
        return (thread / "stat").read_text().rpartition(") ")[2].startswith("T")
    except FileNotFoundError:  # it has ended
        return True


def wait_ready(ready: Callable[[], bool], process: Process, log: Path, *, deadline_s: float) -> None:
    """Ask until `ready` says yes. Raises RuntimeError with the end of the log when the process ends or the deadline
    passes.

    `ready` makes one bounded round trip to the server and answers False when there is none yet.
    """
    until = time.monotonic() + deadline_s
    while not ready():
        ended = process.poll()
        if ended is not None or time.monotonic() > until:
            why = f"ended with status {ended}" if ended is not None else f"not ready within {deadline_s:.0f} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"{process.args!r} {why}; the end of {log}:\n{tail}")
        time.sleep(0.02)
