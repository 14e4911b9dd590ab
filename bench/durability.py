"""What each durability mode costs: `python -m bench.durability`, one edge, a real broker, the same calls in each mode.

For each mode and number of callers: latency as the callers see it, CPU of the edge per call (shipping included, as in
`run.py`), and how often per call something had to become durable: syncs of the spool's disk, acknowledgements of Kafka.
Rounds are interleaved and medians shown. What each mode can lose: docs/durability.md.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.governed import BUNDLE, Governed, running_governed
from bench.measure import load
from bench.processes import cpu_s, listening
from bench.systems import System

MODES: Final = {"async": "lazy", "spool": "up", "strict-or-spool": "either", "strict": "firm"}
"""Mode → the server whose calls are recorded in it: all are the same upstream."""
WARM_S: Final = 0.7
RULES: Final = """@id("eng-echoes")
permit (principal in Group::"eng", action in Action::"call", resource)
when { context.args has path && context.args.path like "/srv/*" };
"""


class Figures(msgspec.Struct, frozen=True):
    mode: str
    callers: int
    calls: int
    p50_ms: float
    p99_ms: float
    calls_per_s: float
    cpu_ms: float
    syncs: float
    acknowledgements: float


def settings_of(upstream: str) -> dict[str, Any]:
    """Over those of `governed.py`: four names of one upstream, each under its mode."""
    rules: list[dict[str, Any]] = [
        {"server": server, "durability": mode} for mode, server in MODES.items() if mode not in ("spool", "async")
    ]
    rules.append({"server": "lazy", "tool": "echo", "durability": "async", "labels": ["read-only"]})
    return {"servers": {server: {"url": upstream} for server in MODES.values()}, "rules": rules}


def bundle_in(directory: Path) -> Path:
    """An argument rule for all four servers, and every built-in pattern, as in `policy/`."""
    made = directory / "bundle"
    (made / "policies").mkdir(parents=True)
    (made / "manifest.json").write_text('{"v": 1, "name": "durability"}')
    (made / "policies" / "all.cedar").write_text(RULES)
    shutil.copy(BUNDLE / "inspection.yaml", made)
    return made


def one(edge: Governed, mode: str, callers: int, seconds: float) -> Figures:
    """Raises Failed where a call failed."""
    system = System(mode, edge.url, f"{MODES[mode]}__echo", edge.pid, edge.token_file, edge.wait_shipped)
    edge.wait_shipped()
    before, syncs, acknowledged = cpu_s(edge.pid), *_counts(edge)
    result = load(system, callers, seconds)
    edge.wait_shipped()
    used, (syncs_after, acknowledged_after) = cpu_s(edge.pid) - before, _counts(edge)
    return Figures(
        mode,
        callers,
        result.calls,
        result.p50_ms,
        result.p99_ms,
        result.calls_per_s,
        used * 1e3 / result.calls,
        (syncs_after - syncs) / result.calls,
        (acknowledged_after - acknowledged) / result.calls,
    )


def _counts(edge: Governed) -> tuple[float, float]:
    return edge.metric("tidegate_spool_syncs"), edge.metric("tidegate_strict_batches")


def medians(figures: Sequence[Figures]) -> list[Figures]:
    """One for each mode and number of callers, in the order of first appearance."""
    groups: dict[tuple[str, int], list[Figures]] = {}
    for figure in figures:
        groups.setdefault((figure.mode, figure.callers), []).append(figure)
    numbers = [field for field in Figures.__struct_fields__ if field not in ("mode", "callers")]
    return [
        Figures(mode, callers, **{name: statistics.median(getattr(each, name) for each in group) for name in numbers})
        for (mode, callers), group in groups.items()
    ]


def show(figures: Sequence[Figures], console: Console) -> None:
    table = Table(
        title="Durability modes; CPU, syncs and acknowledgements per call", title_justify="left", box=SIMPLE_HEAD
    )
    for column in ("mode", "callers", "p50 ms", "p99 ms", "calls/s", "CPU ms", "syncs", "Kafka acks"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for each in figures:
        cells = (f"{each.p50_ms:.2f}", f"{each.p99_ms:.2f}", f"{each.calls_per_s:.0f}", f"{each.cpu_ms:.3f}")
        table.add_row(each.mode, str(each.callers), *cells, f"{each.syncs:.2f}", f"{each.acknowledgements:.2f}")
    console.print(table)


def run(callers: Sequence[int], seconds: float, rounds: int, console: Console) -> list[Figures]:
    """Raises Failed, TimeoutError or RuntimeError with what went wrong."""
    found: list[Figures] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-durability-")))
        console.print("starting an upstream, Kafka, the policy service and an edge")
        quiet = ("--seen-max", "1000")
        _, at = stack.enter_context(listening("bench.upstream", *quiet, directory=directory))
        keys = settings_of(at["url"])
        edge = stack.enter_context(running_governed(directory, at["url"], bundle=bundle_in(directory), settings=keys))
        for mode in MODES:
            one(edge, mode, 4, WARM_S)
        for number in range(rounds):
            for count in callers:
                for mode in MODES:
                    found.append(one(edge, mode, count, seconds))
            console.print(f"round {number + 1} of {rounds}")
    return medians(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", default="1,16", help="numbers of callers (default: 1,16)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="of all modes, of which medians are shown (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round of a second each")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    seconds, rounds = (1.0, 1) if options.quick else (options.seconds, options.rounds)
    console = Console()
    started_s = time.monotonic()
    figures = run([int(each) for each in options.callers.split(",")], seconds, rounds, console)
    show(figures, console)
    console.print(f"took {time.monotonic() - started_s:.0f} s")
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")


if __name__ == "__main__":
    main()
