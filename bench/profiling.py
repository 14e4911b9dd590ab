"""Where the edge's CPU goes under 16 callers: Python functions by a sampler inside it, machine code by `perf`."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.governed import running_governed
from bench.measure import load
from bench.processes import listening
from bench.systems import System

CALLERS: Final = 16
TOP: Final = 30
_PERF_HZ: Final = 499


def run(console: Console, directory: Path, seconds: float) -> None:
    """Sample an edge and print the top functions."""
    samples, recording = directory / "samples.txt", directory / "perf.data"

    def sampled(arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "bench.sampled", str(samples), *arguments]

    with (
        listening("bench.upstream", "--seen-max", "1000", directory=directory) as (_, at),
        running_governed(directory, at["url"], edge_command=sampled) as edge,
    ):
        system = System("tidegate", edge.url, "up__echo", edge.pid, edge.token_file, edge.wait_shipped)
        calls = load(system, CALLERS, seconds).calls
        perf = _perf(edge.pid, recording)
        load(system, CALLERS, seconds)
        machine_code = _perf_report(perf, recording)
    _show(console, samples.read_text().splitlines(), calls)
    console.print(machine_code or "perf is not available here: no view of machine code", markup=False, highlight=False)


def _perf(pid: int, recording: Path) -> "subprocess.Popen[bytes] | None":
    if shutil.which("perf") is None:
        return None
    command = ["perf", "record", "-q", "-F", str(_PERF_HZ), "-p", str(pid), "-o", str(recording)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _perf_report(perf: "subprocess.Popen[bytes] | None", recording: Path) -> str:
    if perf is None:
        return ""
    perf.terminate()
    perf.wait(20)
    command = ["perf", "report", "--stdio", "-q", "--percent-limit", "0.7", "--sort", "comm,dso,symbol"]
    command += ["-i", str(recording)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = [" ".join(line.split()).removesuffix("- -") for line in done.stdout.splitlines() if line.strip()]
    return "Machine code (perf): share, thread, library, symbol\n" + "\n".join(lines[:TOP]) if lines else ""


def _show(console: Console, stacks: Sequence[str], calls: int) -> None:
    """`stacks`: "outermost;…;innermost count" per line."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            inclusive[frame] += int(count)
    total = own.total() or 1
    table = Table(title=f"Python functions of the edge, {total:,} samples, {calls:,} calls a run", title_justify="left")
    for name in ("own %", "with callees %"):
        table.add_column(name, justify="right")
    table.add_column("function")
    for frame, samples in own.most_common(TOP):
        table.add_row(f"{samples / total:.1%}", f"{inclusive[frame] / total:.1%}", frame)
    console.print(table)
