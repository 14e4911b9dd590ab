"""What a system under test costs: CPU time of a process tree from /proc, and children that say when they listen.

Rule: the clock reads user and system time of all threads of the process and of its descendants, reaped ones included.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.parts.processes import spawn, stop, wait_ready

ROOT: Final = Path(__file__).resolve().parents[1]
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """user + sys of `pid` and its descendants, in seconds, the reaped ones included (proc(5): utime to cstime)."""
    ticks, children = _all()
    members = [pid]
    for member in members:  # grows while it is walked
        members += children[member]
    return sum(ticks.get(member, 0) for member in members) * _TICK_S


def _all() -> tuple[dict[int, int], defaultdict[int, list[int]]]:
    """Ticks and children of every process."""
    ticks: dict[int, int] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile: its time is in its parent's counters
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            ticks[int(entry.name)] = sum(int(field) for field in fields[11:15])
            children[int(fields[1])].append(int(entry.name))
    return ticks, children


@contextlib.contextmanager
def listening(module: str, *arguments: str, directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run `python -m module …` until the block ends: its pid and the line of JSON that it prints once it listens."""
    log = directory / f"{module}.log"
    process = spawn([sys.executable, "-m", module, *arguments], cwd=ROOT, log=log)
    try:
        wait_ready(lambda: bool(_announced(log)), process, log, deadline_s=20)
        yield process.pid, _announced(log)
    finally:
        stop(process)


@contextlib.contextmanager
def running(command: list[str], *, log: Path, deadline_s: float = 25.0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends (SIGTERM, then SIGKILL at the deadline)."""
    process = spawn(command, cwd=ROOT, log=log)
    try:
        yield process
    finally:
        stop(process, deadline_s)


def _announced(log: Path) -> dict[str, Any]:
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict) and "url" in found:
                return found
    return {}
