"""A check is lost whenever it succeeds less often through the gateway than directly, whatever was said instead."""

import pytest
from tests.conformance.report import Measured, score, terminal
from tests.conformance.suite import Check, lost


def said(*statuses: str, id: str = "echo", message: str = "") -> tuple[Check, ...]:
    return tuple(Check(id, "Echo", status, message) for status in statuses)


@pytest.mark.parametrize(
    ("direct", "through", "losses"),
    [
        (said("SUCCESS"), said("SUCCESS"), 0),
        (said("SUCCESS"), said("FAILURE"), 1),
        (said("SUCCESS"), said("WARNING"), 1),
        (said("SUCCESS"), said("INFO"), 1),
        (said("SUCCESS"), said("SKIPPED"), 1),
        (said("SUCCESS"), (), 1),
        (said("SUCCESS", "SUCCESS", "SUCCESS"), said("SUCCESS", "SUCCESS"), 1),
        (said("SUCCESS"), said("SUCCESS", id="other"), 1),
        (said("FAILURE"), said("FAILURE"), 0),
        (said("WARNING"), said("SUCCESS"), 0),
    ],
)
def test_what_succeeded_directly_must_succeed_as_often_through(
    direct: tuple[Check, ...], through: tuple[Check, ...], losses: int
) -> None:
    assert len(lost(direct, through)) == losses


def test_a_loss_is_told_with_its_scenario_its_check_and_its_message() -> None:
    run = Measured("py", "2026-07-28", {"ping": said("SUCCESS")}, {"ping": said("FAILURE", message="HTTP 500")})
    assert list(run.losses()) == ["ping: echo (Echo): FAILURE: HTTP 500"]
    assert "LOST ping: echo (Echo): FAILURE: HTTP 500" in terminal(run)


def test_a_scenario_that_left_no_results_is_lost_with_all_its_checks() -> None:
    run = Measured("py", "2026-07-28", {"ping": said("SUCCESS"), "tools": said("SUCCESS", id="list")}, {})
    assert len(list(run.losses())) == 2
    assert (score(run.direct), score(run.through)) == ("2/0", "0/0")


def test_a_failure_is_told_where_only_one_side_was_asked() -> None:
    run = Measured("py", "2026-07-28", through={"ping": said("SUCCESS", "FAILURE", message="HTTP 500")})
    assert list(run.losses()) == []
    assert list(run.failures()) == ["ping: echo: HTTP 500"]
