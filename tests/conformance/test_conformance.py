"""The official conformance suite loses no check on its way through two edges that share every session.

`make conformance` runs the same and writes docs/conformance.md.
"""

from pathlib import Path

import pytest
from tests.conformance.fixtures import FIXTURES, running_fixture
from tests.conformance.gateway import through
from tests.conformance.report import Measured, failures, score, terminal
from tests.conformance.run import ask_all
from tests.parts.kafka import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.timeout(300)]

FULL = {"0.1.16": "44/0", "2025-06-18": "56/0", "2025-11-25": "84/0", "2026-07-28": "152/0"}


@pytest.mark.parametrize("name", FIXTURES)
def test_the_suite_loses_no_check_on_its_way_through_two_edges(
    name: str, tmp_path: Path, kafka: Kafka, valkey_url: str
) -> None:
    versions = FIXTURES[name]
    with running_fixture(name, tmp_path) as url:
        direct = ask_all(url, versions, "", tmp_path / "direct")
        with through(url, tmp_path / "cluster", kafka.bootstrap, valkey_url) as door:
            passed_on = ask_all(door, versions, "", tmp_path / "through")
    runs = [
        Measured(name, version.name, asked, passed)
        for version, asked, passed in zip(versions, direct, passed_on, strict=True)
    ]
    print(*map(terminal, runs), sep="\n")
    assert {run.version: score(run.direct) for run in runs} == {run.version: FULL[run.version] for run in runs}
    assert [loss for run in runs for loss in run.losses()] == []
    assert [failure for passed in passed_on for failure in failures(passed)] == []
