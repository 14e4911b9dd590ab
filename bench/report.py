"""What was measured, for people (a table and bars) and for machines (results/latest.json)."""

import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.measure import Window
from bench.processes import ROOT

RESULTS: Final = ROOT / "bench" / "results"
BASELINE: Final = "passthrough"
GOAL: Final = "no more CPU per call than the passthrough at 16 callers"
_BAR: Final = 46
_COLOURS: Final = {"direct": "bright_black", "passthrough": "yellow", "tidegate": "cyan"}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the rounds. `ratio` is CPU per call over the passthrough's; 0 where that was not measured."""

    system: str
    callers: int
    rounds: int
    calls: int
    events: int
    cpu_ms_per_call: float
    cpu_ms_least: float
    cpu_ms_most: float
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    load_cpu_ms_per_call: float
    ratio: float = 0.0


def rows_of(windows: Sequence[Window]) -> list[Row]:
    """One row per (callers, system), in the order of measuring."""
    groups = dict.fromkeys((window.callers, window.system) for window in windows)
    rows = [_row([window for window in windows if (window.callers, window.system) == group]) for group in groups]
    base = {row.callers: row.cpu_ms_per_call for row in rows if row.system == BASELINE}
    return [
        msgspec.structs.replace(row, ratio=row.cpu_ms_per_call / base[row.callers]) if base.get(row.callers) else row
        for row in rows
    ]


def _row(windows: Sequence[Window]) -> Row:
    cpu = [window.cpu_ms_per_call for window in windows]
    return Row(
        system=windows[0].system,
        callers=windows[0].callers,
        rounds=len(windows),
        calls=sum(window.calls for window in windows),
        events=sum(window.events for window in windows),
        cpu_ms_per_call=median(cpu),
        cpu_ms_least=min(cpu),
        cpu_ms_most=max(cpu),
        calls_per_s=median(window.calls_per_s for window in windows),
        p50_ms=median(window.p50_ms for window in windows),
        p99_ms=median(window.p99_ms for window in windows),
        load_cpu_ms_per_call=median(window.load_cpu_ms_per_call for window in windows),
    )


def show(console: Console, rows: Sequence[Row]) -> None:
    table = Table(
        title="CPU of the system under test per call; ratio to the passthrough",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    table.add_column("callers", justify="right", no_wrap=True)
    table.add_column("system", no_wrap=True)
    for name in ("CPU ms", "±%", "ratio", "calls/s", "p50 ms", "p99 ms", "in Kafka"):
        table.add_column(name, justify="right", no_wrap=True)
    callers = 0
    for row in rows:
        if callers and row.callers != callers:
            table.add_section()
        callers = row.callers
        table.add_row(str(callers), *_cells(row), style=_COLOURS.get(row.system, ""))
    console.print(table)
    _bars(console, rows)
    _verdict(console, rows)


def _cells(row: Row) -> list[str]:
    return [
        row.system,
        f"{row.cpu_ms_per_call:.4f}",
        f"{(row.cpu_ms_most - row.cpu_ms_least) / 2 / row.cpu_ms_per_call:.0%}".rstrip("%"),
        f"{row.ratio:.2f}" if row.ratio else "–",
        f"{row.calls_per_s:,.0f}",
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        f"{row.events:,}" if row.events else "–",
    ]


def _bars(console: Console, rows: Sequence[Row]) -> None:
    most = max((row.cpu_ms_per_call for row in rows), default=0.0) or 1.0
    console.print("\nCPU ms per call")
    for row in rows:
        bar = "█" * max(1, round(row.cpu_ms_per_call / most * _BAR))
        colour = _COLOURS.get(row.system, "white")
        label = f"{row.callers:>3} callers  {row.system:<11} "
        console.print(f"{label}[{colour}]{bar}[/] {row.cpu_ms_per_call:.3f}", highlight=False)


def _verdict(console: Console, rows: Sequence[Row]) -> None:
    console.print("\n[dim]direct: the upstream's own CPU. The load generator and the broker are not in any figure.[/]")
    measured = next((row for row in rows if row.system == "tidegate" and row.callers == 16 and row.ratio), None)
    if measured is not None:
        word = "[green]met[/]" if measured.ratio <= 1 else "[red]missed[/]"
        console.print(f"Goal, {GOAL}: {word} ({measured.ratio:.2f}×).")


def save(windows: Iterable[Window], rows: Iterable[Row], settings: dict[str, Any], load_before: float) -> Path:
    """Write results/latest.json; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latest.json"
    found = {
        "taken_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "machine": machine() | {"load_before": load_before},
        "versions": {name: version(name) for name in ("tidegate", "uvicorn", "uvloop", "httptools", "aiohttp", "mcp")},
        "rows": list(rows),
        "windows": list(windows),
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return path


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
