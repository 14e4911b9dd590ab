"""What a run is told as: tables on the console, a page in the documentation, a picture of calls and faults over time.

Counterpart: `run.py`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table
from tests.chaos.balance import Books
from tests.chaos.faults import BY_NAME
from tests.chaos.load import Tally

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "chaos.md"
_MARKED: Final = re.compile(r"(<!-- chaos -->\n).*(<!-- /chaos -->)", re.DOTALL)
PLACES_MAX: Final = 4


class Harmed(NamedTuple):
    """A fault as it was done."""

    name: str
    whom: str
    began_s: float  # since the load began
    ended_s: float  # healed


@dataclass
class Outcome:
    """Of a whole run."""

    seed: int
    seconds: float  # under load
    rate: float
    faults: list[Harmed] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # kinds that cannot be done here, and why
    ended: list[str] = field(default_factory=list)  # processes that ended by themselves
    healed_s: float = 0.0  # from the end of the load until everything had arrived
    books: Books = field(default_factory=Books)
    tally: Tally = field(default_factory=Tally)

    @property
    def wrong(self) -> list[str]:
        """Everything that makes it fail, as sentences."""
        return [*self.books.faults, *self.ended]


def fault_rows(outcome: Outcome) -> list[tuple[str, str, str, str, str]]:
    """Kind, what it is, how often, seconds in force, whom it met."""
    by_kind: defaultdict[str, list[Harmed]] = defaultdict(list)
    for one in outcome.faults:
        by_kind[one.name].append(one)
    rows = []
    for name, fault in BY_NAME.items():
        if done := by_kind.get(name):
            met = Counter(re.sub(r"( by [+-]\d+ s|, \d+ ms)$", "", one.whom) for one in done)
            whom = ", ".join(f"{place} {times}×" for place, times in met.most_common(PLACES_MAX))
            more = len(met) - PLACES_MAX
            seconds = sum(one.ended_s - one.began_s for one in done)
            rows.append(
                (name, fault.words, str(len(done)), f"{seconds:.0f}", whom + (f", {more} more" if more > 0 else ""))
            )
    return rows


def show(outcome: Outcome, console: Console) -> None:
    """Tables of faults, of checks, and of what else is worth knowing."""
    faults = Table("fault", "", "times", "seconds", "met", title=f"Faults (seed {outcome.seed})")
    for row in fault_rows(outcome):
        faults.add_row(*row)
    checks = Table("must be 0", "count", "", title="Books")
    for one in outcome.books.checks:
        checks.add_row(one.what, str(one.found), "[red]" + "; ".join(one.examples) if one.found else "[green]holds[/]")
    told = Table("", "count", title="Also")
    for what, count in outcome.books.told.items():
        told.add_row(what, f"{count:,}")
    for table in (faults, checks, told):
        console.print(table)
    for line in (*outcome.skipped, *outcome.ended):
        console.print(line, highlight=False)
    verdict = "[red]do not balance[/]" if outcome.wrong else "[green]balance[/]"
    console.print(
        f"{outcome.seconds:.0f} s of load, {len(outcome.faults)} faults; everything had arrived "
        f"{outcome.healed_s:.0f} s after it. Books: {verdict}"
    )


def page(outcome: Outcome) -> str:
    """The part of the documentation that a run writes."""
    heard = outcome.tally.heard()
    lines = [
        f"Seed {outcome.seed}, {outcome.seconds / 60:.0f} minutes under about {outcome.rate:g} calls a second, "
        f"{len(outcome.faults)} faults. {len(outcome.tally.calls):,} calls: {heard['ok'] + heard['tool-error']:,} "
        f"answered, {heard['denied']:,} denied, {heard['refused']:,} refused because they could not be recorded or "
        f"served, {heard['no answer']:,} without an answer. Everything had arrived {outcome.healed_s:.0f} s after the "
        "last call.",
        "",
        "| fault | | times | seconds in force | met |",
        "|---|---|---|---|---|",
        *("| `{}` | {} | {} | {} | {} |".format(*row) for row in fault_rows(outcome)),
        "",
        "| must be 0 | |",
        "|---|---|",
        *(f"| {one.what} | {one.found} |" for one in outcome.books.checks),
        "",
        "| also | |",
        "|---|---|",
        *(f"| {what} | {count:,} |" for what, count in outcome.books.told.items()),
        "",
        *(f"{line}\n" for line in (*outcome.skipped, *outcome.ended)),
    ]
    return "\n".join(lines)


def write_page(outcome: Outcome, file: Path = PAGE) -> None:
    """Into the marked part of the page; what stands around it is written by hand."""
    text = file.read_text()
    assert _MARKED.search(text), f"{file} has no part between <!-- chaos --> and <!-- /chaos -->"
    file.write_text(_MARKED.sub(lambda found: f"{found[1]}{page(outcome)}{found[2]}", text))


def plotted(outcome: Outcome) -> str:
    """Calls a second over time as an SVG, the faults below as bars."""
    names = [name for name in BY_NAME if any(one.name == name for one in outcome.faults)]
    width, height, left, row = 900, 220, 150, 16
    last_s = max([outcome.seconds, *(one.ended_s for one in outcome.faults)], default=1.0) or 1.0
    well, other = _per_second(outcome.tally, last_s)
    most = max([*well, *other, 1])

    def x(at_s: float) -> float:
        return left + (width - left - 20) * at_s / last_s

    def line(counts: Sequence[int], colour: str) -> str:
        points = " ".join(f"{x(s):.1f},{height - 20 - (height - 40) * n / most:.1f}" for s, n in enumerate(counts))
        return f'<polyline points="{points}" fill="none" stroke="{colour}"/>'

    parts = [line(well, "#0a7"), line(other, "#c33"), f'<text x="8" y="24">{most} calls/s</text>']
    parts += ['<text x="8" y="44" fill="#0a7">answered</text>', '<text x="8" y="62" fill="#c33">refused or lost</text>']
    for number, name in enumerate(names):
        top = height + number * row
        parts.append(f'<text x="8" y="{top + 11}">{name}</text>')
        parts += [
            f'<rect x="{x(one.began_s):.1f}" y="{top}" width="{max(2.0, x(one.ended_s) - x(one.began_s)):.1f}" '
            f'height="{row - 4}" fill="#557"/>'
            for one in outcome.faults
            if one.name == name
        ]
    whole = height + len(names) * row + 30
    parts.append(f'<text x="{width - 80}" y="{whole - 8}">{last_s:.0f} s</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{whole}" font-family="sans-serif" '
    head += 'font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{whole}" fill="#fff"/>', *parts, "</svg>\n"])


def _per_second(tally: Tally, last_s: float) -> tuple[list[int], list[int]]:
    well, other = [0] * (int(last_s) + 1), [0] * (int(last_s) + 1)
    for call in tally.calls.values():
        counts = well if call.heard in ("ok", "tool-error", "denied") else other
        counts[min(int(call.at_s), len(counts) - 1)] += 1
    return well, other
