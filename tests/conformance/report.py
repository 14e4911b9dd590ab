"""What a run of the suite found, as tables: on the terminal, and in docs/conformance.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.conformance.fixtures import ABOUT
from tests.conformance.suite import Outcome, failed, lost, passed

INTRODUCTION: Final = """\
# Conformance

The official conformance suite, asked to test three servers: directly, and through Tidegate. Between the suite and
the server stand two edges on one Kafka and one Valkey, and in front of them a proxy that gives each request to the next
edge, so that no two requests of a session meet the same one. A cell tells checks passed/failed directly → through.

Written by `make conformance`. A check that succeeds directly and not through Tidegate is lost, and fails the run.
"""


@dataclass
class Measured:
    """One fixture in one version, asked both ways; a side that was not asked is None."""

    fixture: str
    version: str
    direct: Outcome | None = None
    through: Outcome | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys([*(self.direct or {}), *(self.through or {})]))

    def losses(self) -> Iterator[str]:
        """`scenario: check: why`, of each check lost."""
        if self.direct is None or self.through is None:
            return
        for scenario in self.scenarios:
            for loss in lost(self.direct.get(scenario, ()), self.through.get(scenario, ())):
                yield f"{scenario}: {loss}"

    def failures(self) -> Iterator[str]:
        """What failed where only one side was asked."""
        asked = self.through if self.direct is None else self.direct if self.through is None else {}
        yield from failures(asked or {})


def failures(outcome: Outcome) -> Iterator[str]:
    """`scenario: check: why`, of each check that failed."""
    for scenario, checks in outcome.items():
        for check in checks:
            if check.status == "FAILURE":
                yield f"{scenario}: {check.id}: {check.message}"


def score(outcome: Outcome | None, scenario: str = "") -> str:
    """`passed/failed`, of one scenario or of all; a dash for what was not asked."""
    if outcome is None or (scenario and scenario not in outcome):
        return "–"
    chosen = [outcome[scenario]] if scenario else list(outcome.values())
    return f"{sum(map(passed, chosen))}/{sum(map(failed, chosen))}"


def terminal(measured: Measured) -> str:
    """`scenario | direct | through`, and under it each check lost."""
    rows = [(name, score(measured.direct, name), score(measured.through, name)) for name in measured.scenarios]
    rows.append(("all", score(measured.direct), score(measured.through)))
    width = max(len(row[0]) for row in rows)
    lines = [f"\n{measured.fixture}, {measured.version}", f"{'scenario':{width}} | direct | through"]
    lines += [f"{name:{width}} | {direct:>6} | {through:>7}" for name, direct, through in rows]
    lines += [f"LOST {loss}" for loss in measured.losses()]
    lines += [f"FAILED {failure}" for failure in measured.failures()]
    return "\n".join(lines + [f"PROBLEM {problem}" for problem in measured.problems])


def markdown(runs: Sequence[Measured]) -> str:
    """The page docs/conformance.md."""
    parts = [INTRODUCTION, _summary(runs)]
    for fixture in dict.fromkeys(measured.fixture for measured in runs):
        parts.append(_details(fixture, {run.version: run for run in runs if run.fixture == fixture}))
    losses = [f"- {run.fixture}, {run.version}: {loss}" for run in runs for loss in run.losses()]
    parts.append("## Checks lost\n\n" + ("\n".join(losses) or "None."))
    return "\n".join(parts) + "\n"


def _summary(runs: Sequence[Measured]) -> str:
    lines = ["| server | suite or revision | direct | through |", "|---|---|---|---|"]
    lines += [f"| {ABOUT[run.fixture]} | {run.version} | {score(run.direct)} | {score(run.through)} |" for run in runs]
    return "\n".join([*lines, ""])


def _details(fixture: str, runs: Mapping[str, Measured]) -> str:
    scenarios = dict.fromkeys(scenario for run in runs.values() for scenario in run.scenarios)
    lines = [f"## {ABOUT[fixture]}\n", "| scenario | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for name in scenarios:
        cells = [f"{score(run.direct, name)} → {score(run.through, name)}" for run in runs.values()]
        lines.append(f"| {name} | " + " | ".join(cell.replace("– → –", "") for cell in cells) + " |")
    return "\n".join([*lines, ""])
