"""Chaos: two edges and two audit consumers under steady calls, while all that they rest on fails; then the books.

  make chaos                                              10 minutes, an order from a new seed
  python -m tests.chaos.run --minutes 3 --seed 7          the same faults in the same order again
  python -m tests.chaos.run --faults kafka-killed,disk-full --rate 60
  python -m tests.chaos.run --list                        the faults, and what each does

Real Kafka, Valkey and ClickHouse's engine; every process is one of its own, every connection goes over a link that can
be cut. Faults come in rounds, each round every kind once in an order of its own; some overlap. When the time is over,
all is healed, and when everything has arrived the books are balanced: what the servers saw, by their own record,
against ClickHouse, in both directions; chains, order, counts, and `tidegate verify`. It ends with 1 where they do not.
"""

import argparse
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from tests.chaos.balance import balance, healed
from tests.chaos.faults import BY_NAME, FAULTS, Fault, Harm, drawn, revive
from tests.chaos.load import Load, running_load
from tests.chaos.report import Harmed, Outcome, plotted, show, write_page
from tests.chaos.stage import AUDITS, EDGES, Stage, running_stage
from tests.parts.cluster import logs
from tests.parts.processes import PartMissing

MINUTES: Final = 10.0
RATE: Final = 30.0
OVERLAPPING: Final = 0.3  # of the faults begin while another is in force
QUIET_S: Final = (0.2, 2.0)  # between two


class InForce:
    """A fault that has been done and not been healed."""

    def __init__(self, chaos: "Chaos", fault: Fault) -> None:
        self.fault = fault
        self._chaos = chaos
        self._began_s = chaos.elapsed_s
        self._harm: Harm = fault.harm(chaos.stage, chaos.order)
        self.whom = next(self._harm)
        chaos.say(f"{fault.name}: {self.whom}")

    def heal(self) -> None:
        for _ in self._harm:
            pass
        self._chaos.outcome.faults.append(Harmed(self.fault.name, self.whom, self._began_s, self._chaos.elapsed_s))


class Chaos:
    """One run over a stage. `pace`: how long faults are left in force, as a part of what is usual."""

    def __init__(self, stage: Stage, load: Load, outcome: Outcome, console: Console, pace: float = 1.0) -> None:
        self.stage = stage
        self.load = load
        self.outcome = outcome
        self.order = random.Random(outcome.seed)
        self._console = console
        self._pace = pace

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.load.began_s

    def say(self, words: str) -> None:
        self._console.print(f"{self.elapsed_s:6.1f} s  {words}", highlight=False)

    def run(self, names: list[str], until_s: float, rounds: int = 0) -> None:
        """Fault after fault until so many seconds have passed, or so many rounds are done; healed on return."""
        held: InForce | None = None
        for number, fault in enumerate(drawn(names, self.order)):
            if (rounds and number >= rounds * len(names)) or (not rounds and self.elapsed_s >= until_s):
                break
            if held is not None and fault.touches & (held.fault.touches | held.fault.needs):
                self._end(held)
                held = None
            begun = InForce(self, fault)
            if held is not None:
                self._end(held, begun.whom)
            self._wait(self.order.uniform(*fault.lasts_s))
            if self.order.random() < OVERLAPPING:
                held = begun
            else:
                held = None
                self._end(begun)
                self._wait(self.order.uniform(*QUIET_S))
        if held is not None:
            self._end(held)
        self.stage.links.heal()
        self._look()

    def _end(self, held: InForce, still_met: str = "") -> None:
        """Healed. `still_met`: whom a fault has met that is in force beside it."""
        held.heal()
        self._look(still_met)

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds * self._pace)

    def _look(self, met: str = "") -> None:
        """Nobody ends but who was `met` by a fault. Who did is told, and started again."""
        for name in (*EDGES, *AUDITS):
            service = self.stage.service(name)
            if not service.is_running and not met.startswith(name):
                said = service.news().strip().splitlines()[-3:]
                status = service.wait_gone()
                self.outcome.ended.append(f"{name} ended by itself with status {status}: {' | '.join(said)}")
                self.say(self.outcome.ended[-1])
                revive(service)


def possible(stage: Stage, names: Sequence[str], outcome: Outcome) -> list[str]:
    """Those that can be done on this machine; the others are named in the outcome."""
    found = [name for name in names if BY_NAME[name].is_possible(stage)]
    outcome.skipped += [f"{name}: not done, no C compiler is installed" for name in names if name not in found]
    return found


def chaos(
    stage: Stage, outcome: Outcome, names: Sequence[str], console: Console, *, rounds: int = 0, pace: float = 1.0
) -> None:
    """A whole run, its outcome filled in. `rounds` instead of the outcome's seconds, where it is not 0."""
    with running_load(stage.cluster, f"chaos {outcome.seed}", outcome.rate, outcome.seed) as load:
        outcome.tally = load.tally
        running = Chaos(stage, load, outcome, console, pace)
        running.run(possible(stage, names, outcome), outcome.seconds, rounds)
        outcome.seconds = running.elapsed_s
    running.say("healed; waiting until everything has arrived")
    outcome.healed_s = healed(stage)
    running.say("balancing the books")
    outcome.books = balance(stage, outcome.tally)


def listed(console: Console) -> None:
    shown = Table("fault", "does", "in force for")
    for fault in FAULTS:
        shown.add_row(fault.name, fault.words, f"{fault.lasts_s[0]:g} to {fault.lasts_s[1]:g} s")
    console.print(shown)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="under load (default: %(default)g)")
    parser.add_argument("--seed", type=int, help="of the order of faults and calls (default: a new one, printed)")
    parser.add_argument("--faults", default="", metavar="NAME,…", help="these alone (default: all, see --list)")
    parser.add_argument("--rate", type=float, default=RATE, help="calls a second, about (default: %(default)g)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write calls and faults over time to this SVG file")
    parser.add_argument("--docs", action="store_true", help="write the outcome into docs/chaos.md")
    parser.add_argument("--logs", type=Path, metavar="FILE", help="write what every process said to this file")
    parser.add_argument("--clear", action="store_true", help="do not seal personal fields")
    parser.add_argument("--list", action="store_true", help="show the faults, and end")
    options = parser.parse_args(arguments)
    console = Console()
    if options.list:
        listed(console)
        return 0
    names = [name for name in options.faults.split(",") if name] or list(BY_NAME)
    if unknown := [name for name in names if name not in BY_NAME]:
        parser.error(f"no fault '{unknown[0]}'; there are {', '.join(BY_NAME)}")
    seed = options.seed if options.seed is not None else secrets.randbelow(100_000)
    console.print(f"seed {seed}")
    outcome = Outcome(seed, options.minutes * 60, options.rate)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tidegate-chaos-", ignore_cleanup_errors=True) as directory,
            running_stage(Path(directory), sealed=not options.clear) as stage,
        ):
            try:
                chaos(stage, outcome, names, console)
            finally:
                if options.logs:
                    options.logs.write_text(logs(stage.cluster))
    except PartMissing as missing:
        print(missing, file=sys.stderr)
        return 2
    show(outcome, console)
    if options.plot:
        options.plot.write_text(plotted(outcome))
    if options.docs:
        write_page(outcome)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
