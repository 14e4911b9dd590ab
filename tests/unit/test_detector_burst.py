"""The burst rule: a principal against its own baseline."""

import pytest
from tests.parts.detector_events import SECOND, START_US, request

from tidegate.events import FindingRaised
from tidegate.settings import Burst
from tidegate_detector.burst import CALLS_NAMED_MAX, History, bound, observe

SETTINGS = Burst(window_s=10, calls_min=30, factor=5)
WINDOW_US = 10 * SECOND


def feed(history: History, number: int, window: int, spread: bool = True) -> list[FindingRaised]:
    """So many calls in the n-th window."""
    step = WINDOW_US // number if spread else 0
    found = [observe(history, request(START_US + window * WINDOW_US + n * step), SETTINGS) for n in range(number)]
    return [finding for finding in found if finding]


def test_a_burst_without_a_history_is_reported_once_at_the_bound() -> None:
    history = History()
    assert feed(history, 29, 0) == []
    (finding,) = feed(history, 40, 1)
    assert (finding.rule, finding.severity, finding.subject_id, finding.agent) == (
        "burst", "medium", "5ub", "claude-code",
    )  # fmt: skip
    assert finding.session_id == "se55ion"
    assert 0 < len(finding.call_ids) <= CALLS_NAMED_MAX
    assert "30 calls within 10 s" in finding.message


def test_what_is_usual_for_a_principal_is_no_burst_and_far_over_it_is_one() -> None:
    history = History()
    for window in range(60):
        assert feed(history, 25, window) == []
    assert history.mean == pytest.approx(25, rel=0.05)
    assert feed(history, 110, 60) == []
    (finding,) = feed(history, 130, 61)
    assert "against its usual 2" in finding.message


def test_a_burst_that_goes_on_is_one_finding_and_a_later_one_is_another() -> None:
    history = History()
    found = [finding for window in range(5) for finding in feed(history, 60, window)]
    assert len(found) == 1
    assert feed(history, 10, 5) == []
    (later,) = feed(history, 60, 6)
    assert later.id != found[0].id


def test_a_burst_does_not_become_normal_at_once() -> None:
    history = History()
    for window in range(10):
        feed(history, 10, window)
    feed(history, 5_000, 10)
    feed(history, 10, 30)
    assert bound(history.mean, SETTINGS) < 100


def test_nights_of_silence_do_not_lower_the_baseline() -> None:
    history = History()
    for window in range(60):
        feed(history, 25, window)
    assert feed(history, 100, 10_000) == []


def test_a_record_delivered_twice_counts_once() -> None:
    history = History()
    calls = [request(START_US + n) for n in range(29)]
    assert [observe(history, call, SETTINGS) for call in calls * 3] == [None] * 87


def test_writers_may_interleave_within_the_open_windows_and_late_calls_change_nothing() -> None:
    history = History()
    feed(history, 1, 100)
    assert len(feed(history, 30, 97)) == 1
    assert feed(history, 30, 98) == []
    assert feed(history, 60, 10) == []


def test_judging_the_same_calls_again_yields_the_same_id() -> None:
    calls = [request(START_US + n) for n in range(30)]
    first, second = History(), History()
    ids = [
        {finding.id for call in calls if (finding := observe(history, call, SETTINGS))} for history in (first, second)
    ]
    assert ids[0] == ids[1] != set()
