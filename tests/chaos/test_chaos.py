"""A short chaos: every fault once, in an order from a seed, and the books balance. `make chaos` runs the long one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tests.chaos.faults import BY_NAME
from tests.chaos.report import Outcome, show
from tests.chaos.run import chaos
from tests.chaos.stage import Stage, running_stage

SEED = 7
RATE = 20.0
PACE = 0.3


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with running_stage(tmp_path / "chaos") as found:
        yield found


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.timeout(420)
def test_after_every_fault_the_books_balance_in_both_directions(stage: Stage) -> None:
    outcome = Outcome(SEED, 0.0, RATE)
    console = Console(force_terminal=False, width=160)
    chaos(stage, outcome, list(BY_NAME), console, rounds=1, pace=PACE)
    show(outcome, console)
    assert outcome.wrong == []
    possible = {name for name, fault in BY_NAME.items() if fault.is_possible(stage)}
    assert {one.name for one in outcome.faults} == possible
    assert outcome.tally.well() > 100
    assert {"ok", "tool-error", "denied"} <= set(outcome.tally.heard())
