"""A short soak: after clients that vanish, everything is back to the start. `make soak` runs the long one."""

import asyncio
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.parts.kafka import Kafka
from tests.parts.valkey import running_valkey
from tests.soak.holdings import BOUNDS, Held, excess, plotted, table
from tests.soak.run import report, soak, stage

CALLS = 1_400
SESSIONS = 56


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.timeout(240)
def test_after_clients_that_vanish_everything_is_back_to_the_start(tmp_path: Path, kafka: Kafka) -> None:
    with running_valkey() as sessions, stage(tmp_path / "soak", kafka.bootstrap, sessions) as parts:
        outcome = asyncio.run(soak(parts, CALLS, SESSIONS, 1, Console(force_terminal=False, quiet=True)))
    report(outcome, Console(force_terminal=False, width=160))
    assert outcome.faults == []
    assert outcome.tally.calls >= CALLS
    assert len(outcome.tally.left) >= SESSIONS // 2
    assert max(one.server_sessions for one in outcome.samples) > outcome.end.server_sessions
    assert max(one.children for one in outcome.samples) > outcome.end.children


NOTHING = Held(0.0, 100.0, 10, 5, 0, 0, 0, 3, 2, 1, 1)


@pytest.mark.parametrize("name", BOUNDS)
def test_what_grows_past_its_bound_is_told_by_name(name: str) -> None:
    within = NOTHING._replace(**{name: getattr(NOTHING, name) + BOUNDS[name]})
    past = NOTHING._replace(**{name: getattr(NOTHING, name) + BOUNDS[name] + 1})
    assert excess(NOTHING, within) == {}
    assert excess(NOTHING, past) == {name: BOUNDS[name] + 1}
    assert [row[-1] for row in table(NOTHING, [], past)].count(False) == 1


def test_the_plot_is_a_picture_of_every_sample() -> None:
    samples = [NOTHING._replace(at_s=float(second), memory_mib=100.0 + second) for second in range(30)]
    picture = ElementTree.fromstring(plotted(samples, (5.0, 20.0)))
    (line,) = [one for one in picture if one.tag.endswith("polyline")]
    assert len(line.attrib["points"].split()) == 30
