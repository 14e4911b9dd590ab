"""The benchmark: what a governed call costs, next to the bare upstream and a passthrough that governs nothing.

`python -m bench.run` measures all systems at 1, 16 and 64 callers in interleaved rounds (A B C A B C …), so that noise
of the machine hits all alike. Counterparts: `systems.py` starts, `measure.py` measures, `report.py` takes medians and
shows.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import profiling, report
from bench.ledger import Unbalanced
from bench.measure import Failed, Window, load, measure
from bench.systems import NAMES, System, running_systems


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    systems: tuple[str, ...]
    callers: tuple[int, ...] = (1, 16, 64)
    rounds: int = 3
    seconds: float = 4.0
    warm_up_s: float = 2.0

    @property
    def steps(self) -> int:
        return len(self.systems) * (1 + len(self.callers) * self.rounds)


def run(plan: Plan, console: Console, directory: Path) -> list[Window]:
    """All measurements of a plan, with progress on the console."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=plan.steps)

        def say(words: str) -> None:
            progress.update(task, description=words)

        with running_systems(plan.systems, directory, say) as systems:
            for system in systems:
                say(f"warming up {system.name}")
                warm_up(system, plan.warm_up_s)
                progress.advance(task)
            windows = []
            for number, callers, system in product(range(1, plan.rounds + 1), plan.callers, systems):
                say(f"round {number} of {plan.rounds}: {system.name}, {callers} callers")
                windows.append(measure(system, round=number, callers=callers, seconds=plan.seconds))
                progress.advance(task)
            return windows


def warm_up(system: System, seconds: float) -> None:
    result = load(system, 16, seconds)
    system.settle()
    system.balance(result.calls)


def plan_of(options: argparse.Namespace) -> Plan:
    if options.quick:
        return Plan(options.systems, options.callers, rounds=options.rounds or 1, seconds=1.5, warm_up_s=0.5)
    return Plan(options.systems, options.callers, options.rounds or 3, options.seconds)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(NAMES):
        raise argparse.ArgumentTypeError(f"no system {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, about half a minute")
    parser.add_argument("--profile", action="store_true", help="sample the edge under 16 callers instead of comparing")
    parser.add_argument("--systems", type=_names, default=NAMES, help=f"some of {','.join(NAMES)} (default: all)")
    parser.add_argument("--callers", type=_numbers, default=(1, 16, 64), help="default: 1,16,64")
    parser.add_argument("--rounds", type=int, default=0, help="default: 3")
    parser.add_argument("--seconds", type=float, default=4.0, help="per measurement; default: 4")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    console = Console()
    load_before = os.getloadavg()[0]
    if load_before > 0.5:
        console.print(f"[yellow]The machine is busy (load {load_before:.1f}); calls/s and latencies will suffer.[/]")
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-bench-", ignore_cleanup_errors=True) as directory:
            if options.profile:
                profiling.run(console, Path(directory), options.seconds)
                return 0
            plan = plan_of(options)
            windows = run(plan, console, Path(directory))
    except (Failed, Unbalanced, RuntimeError, TimeoutError) as fault:
        console.print(f"[red]void:[/] {fault}", markup=True, highlight=False)
        return 1
    rows = report.rows_of(windows)
    report.show(console, rows)
    path = report.save(windows, rows, {"rounds": plan.rounds, "seconds": plan.seconds}, load_before)
    console.print(f"[dim]written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
