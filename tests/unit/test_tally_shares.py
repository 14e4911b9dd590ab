"""What of one caller's calls counts for a release: its share, however often it calls, and whoever else does."""

import random
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.events import BundleObserved
from tidegate.policy.signing import Guard
from tidegate.policy.verdict import Verdict
from tidegate_edge import tallies
from tidegate_edge.tallies import FIRST_US, SHARE, Sums, Tally
from tidegate_policy.guard import Counts, judge
from tidegate_policy.observed import counts_of

NOW = 1_700_000_000_000_000
ALLOWED, DENIED = Verdict("allow", "granted"), Verdict("deny", "forbidden-by-rule")
UNGRANTED, ERRED = Verdict("deny", "tool-not-granted"), Verdict("deny", "evaluation-error")
UNREPRESENTABLE = Verdict("deny", "argument-not-representable")


def calls(
    tally: Tally, caller: str, verdict: Verdict, count: int = 1, *, at_us: int = NOW, hidden: bool = False
) -> Tally:
    for _ in range(count):
        tally.add_share(caller, at_us, verdict, 1.0, hidden=hidden)
    return tally


def test_one_caller_counts_up_to_its_share_and_everybody_else_goes_on_counting() -> None:
    tally = calls(Tally(NOW), "mallory", DENIED, 1_000)
    assert tally.sums() == Sums(decided=SHARE, denied=SHARE, callers=1, most_denied=(SHARE,))
    calls(calls(tally, "alice", ALLOWED, 7), "bob", DENIED, 2)
    assert tally.sums() == Sums(decided=SHARE + 9, denied=SHARE + 2, callers=3, most_denied=(SHARE, 2))


def test_calls_that_are_allowed_dilute_nothing_either() -> None:
    assert calls(Tally(NOW), "mallory", ALLOWED, 1_000).sums() == Sums(decided=SHARE, callers=1)


def test_a_share_begins_anew_each_time_the_age_has_doubled() -> None:
    tally, counted = Tally(NOW), []
    for second in range(1, 601):
        calls(tally, "mallory", DENIED, 100, at_us=NOW + second * 1_000_000)
        if second in (1, 2, 4, 8, 600):
            counted.append(tally.decided)
    assert counted[:4] == [SHARE, 2 * SHARE, 3 * SHARE, 4 * SHARE]
    assert counted[4] == 10 * SHARE, "of sixty thousand in ten minutes"


def test_what_is_compared_from_now_on_counts_as_the_one_that_it_is_compared_with() -> None:
    day_us = 24 * 3600 * 1_000_000
    ruling, later_us = calls(Tally(NOW), "alice", ALLOWED, 100, at_us=NOW + day_us), NOW + day_us + 1
    calls(ruling, "alice", ALLOWED, 100, at_us=later_us)
    assert ruling.decided == SHARE
    ruling.compare_from(later_us)
    canary, before = Tally(later_us), ruling.decided
    for at_us in (later_us, later_us + FIRST_US, later_us + 2 * FIRST_US):
        calls(canary, "bob", ALLOWED, 100, at_us=at_us)
        calls(ruling, "alice", ALLOWED, 100, at_us=at_us)
        assert ruling.decided - before == canary.decided


def test_of_what_a_caller_may_not_see_one_call_counts() -> None:
    tally = calls(Tally(NOW), "mallory", UNGRANTED, 50, hidden=True)
    assert tally.sums() == Sums(decided=1, denied=1, callers=1, most_denied=(1,))
    calls(tally, "mallory", ALLOWED, 3)
    for number in range(40):
        calls(tally, f"locked-out-{number}", UNGRANTED, 5, hidden=True)
    assert (tally.decided, tally.denied) == (44, 41), "a release that takes a tool from everybody shows"


def test_an_argument_without_an_exact_form_is_no_error_of_the_rules() -> None:
    tally = calls(calls(Tally(NOW), "mallory", UNREPRESENTABLE, 2), "mallory", ERRED)
    assert tally.sums() == Sums(decided=3, denied=3, errors=1, callers=1, most_denied=(3,), most_errors=(1,))


def test_whoever_comes_when_many_are_known_counts_too_and_no_more_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "CALLERS_MAX", 10)
    tally = Tally(NOW)
    for number in range(10):
        calls(tally, f"u{number}", ALLOWED)
    calls(tally, "late", DENIED, 100)
    assert tally.sums() == Sums(decided=10 + SHARE, denied=SHARE, callers=11, most_denied=(SHARE,))
    for number in range(20_000):
        calls(tally, f"v{number}", ALLOWED)
    assert tally.sums().callers <= 10 + tallies.BUCKETS


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.booleans(), st.integers(0, 9_000_000)), max_size=300)
)
def test_what_counts_is_the_sum_of_shares_and_two_have_no_more_than_is_told(
    made: list[tuple[str, bool, bool, int]],
) -> None:
    tally, at_us, own = Tally(NOW), NOW, dict.fromkeys("abcde", 0)
    for caller, denied, hidden, step_us in made:
        at_us += step_us
        before = tally.denied
        tally.add_share(caller, at_us, DENIED if denied else ALLOWED, 1.0, hidden=denied and hidden)
        own[caller] += tally.denied - before
    sums = tally.sums()
    assert sums.denied == sum(own.values()) <= sums.decided <= len(made)
    assert sum(sums.most_denied) == sum(sorted(own.values())[-2:])
    assert sums.callers == len({caller for caller, *_ in made})


@pytest.mark.parametrize(
    ("bad", "verdict", "flood", "fails"),
    [
        (0.012, DENIED, 0, False),
        (0.012, DENIED, 1, False),
        (0.012, DENIED, 500, False),
        (0.012, UNREPRESENTABLE, 1, False),
        (0.012, ERRED, 1, False),
        (0.2, ALLOWED, 500, True),
        (0.2, DENIED, 500, True),
    ],
)
def test_one_caller_neither_ends_a_good_release_nor_saves_a_bad_one(
    bad: float, verdict: Verdict, flood: int, fails: bool
) -> None:
    """Two minutes of sixty people at nine calls a second, and one more at its own pace."""
    dice, tally = random.Random(1), Tally(NOW)
    for second in range(120):
        at_us = NOW + second * 1_000_000
        for _ in range(9):
            calls(tally, f"u{dice.randrange(60)}", DENIED if dice.random() < bad else ALLOWED, at_us=at_us)
        calls(tally, "mallory", verdict, flood, at_us=at_us)
    said = BundleObserved(
        id="i", time_us=1, tenant="t", region="r", edge="e", ring="main", number=2, digest="d", since_us=NOW,
        **msgspec.structs.asdict(tally.sums()),
    )  # fmt: skip
    guard = Guard(denials=0.05, errors=0.0, calls_min=50)
    assert bool(judge(guard, counts_of(said), Counts(20_000, denied=200, callers=60))) == fails


def test_a_share_costs_a_call_next_to_nothing() -> None:
    tally, callers = Tally(NOW), [f"subject-{number}" for number in range(200)]
    for _ in range(3):
        began_ns = time.perf_counter_ns()
        for number in range(20_000):
            tally.add_share(callers[number % 200], NOW, ALLOWED, 1.0, hidden=False)
        took_us = (time.perf_counter_ns() - began_ns) / 20_000 / 1_000
        if took_us < 2:
            return
    pytest.fail(f"{took_us:.2f} µs for each call")
