"""The guard: what is too bad, what chance explains, and what is too little to tell."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.policy.signing import Guard
from tidegate_policy.guard import Counts, awaited, is_judged_by, judge

DENIALS = Guard(denials=0.05)
ERRORS = Guard(errors=0.0)
SLOW = Guard(slow=0.01)


@pytest.mark.parametrize(
    ("guard", "own", "other", "fails"),
    [
        (DENIALS, Counts(100, denied=100), Counts(1000, denied=10), True),
        (DENIALS, Counts(100, denied=3), Counts(1000, denied=10), False),
        (DENIALS, Counts(100, denied=60), Counts(1000, denied=600), False),  # both deny as much
        (DENIALS, Counts(50, denied=5), Counts(1000, denied=0), False),  # 10 % of fifty may be chance
        (DENIALS, Counts(5000, denied=500), Counts(5000, denied=0), True),  # 10 % of five thousand is not
        (DENIALS, Counts(100, denied=100), Counts(), False),  # nothing to compare with
        (DENIALS, Counts(100, denied=100), Counts(49), False),  # too little to compare with
        (DENIALS, Counts(100, errors=100, denied=0), Counts(1000), False),  # not what it looks at
        (ERRORS, Counts(50, denied=1, errors=1), Counts(1000), True),
        (ERRORS, Counts(50, denied=1, errors=1), Counts(), True),
        (ERRORS, Counts(50, denied=9), Counts(1000), False),
        (ERRORS, Counts(100, errors=2), Counts(100, errors=2), False),
        (Guard(errors=0.02), Counts(1000, errors=20), Counts(), False),
        (Guard(errors=0.02), Counts(1000, errors=40), Counts(), True),
        (SLOW, Counts(100, slow=60), Counts(1000, slow=900), True),  # whatever the other one does
        (SLOW, Counts(100, slow=1), Counts(), False),
        (Guard(slow=0.0), Counts(100, slow=1), Counts(), True),
        (Guard(denials=1.0), Counts(100, denied=100), Counts(100), False),
    ],
)
def test_a_release_is_taken_back_for_what_is_over_the_bound(
    guard: Guard, own: Counts, other: Counts, fails: bool
) -> None:
    assert bool(judge(guard, own, other)) == fails


@pytest.mark.parametrize("guard", [DENIALS, ERRORS, SLOW, Guard(denials=0.0, errors=0.0, slow=0.0, calls_min=50)])
def test_nothing_is_concluded_from_too_few_calls(guard: Guard) -> None:
    worst = Counts(49, denied=49, errors=49, slow=49)
    assert judge(guard, worst, Counts(1_000_000)) == ""
    assert judge(guard, Counts(50, denied=50, errors=50, slow=50), Counts(1_000_000)) != ""


def test_the_sentence_says_what_was_counted() -> None:
    told = judge(DENIALS, Counts(200, denied=150), Counts(1000, denied=10))
    assert told == (
        "150 of 200 calls (75.0%) were denied, 10 of 1000 (1.0%) by the release that it is compared with; "
        "the guard allows 5.0% more"
    )
    told = judge(Guard(slow=0.1, slow_us=2_500), Counts(100, slow=50), Counts())
    assert told == "50 of 100 calls (50.0%) took longer than 2.5 ms to decide; the guard allows 10.0%"


def by(own: Counts, callers: int, *most: int) -> Counts:
    """The same from so many callers, those with most of the denials and errors named."""
    one, two = sum(most[:1]), sum(most[:2])
    return own._replace(
        callers=callers,
        denied_one=one,
        denied_two=two,
        errors_one=min(one, own.errors),
        errors_two=min(two, own.errors),
    )


@pytest.mark.parametrize(
    ("guard", "own", "fails"),
    [
        (DENIALS, by(Counts(1_020, denied=32), 40, 20, 1), False),  # one who is refused again and again
        (DENIALS, by(Counts(1_200, denied=212), 40, 100, 100), False),  # two of them
        (DENIALS, by(Counts(1_300, denied=312), 40, 100, 100), True),  # a third
        (DENIALS, by(Counts(100, denied=100), 1, 100), True),  # nobody else has called
        (DENIALS, by(Counts(100, denied=50), 2, 50), False),  # one of two
        (DENIALS, by(Counts(100, denied=100), 2, 50, 50), True),  # both
        (DENIALS, by(Counts(240, denied=100), 20, 5, 5), True),  # many, some calls each
        (ERRORS, by(Counts(1_000, denied=40, errors=40), 40, 20, 20), False),
        (ERRORS, by(Counts(1_000, denied=3, errors=3), 40, 1, 1), True),
        (Guard(slow=0.0), Counts(1_000, slow=9, callers=40, slow_one=5, slow_two=9), False),
        (Guard(slow=0.0), Counts(1_000, slow=10, callers=40, slow_one=5, slow_two=9), True),
    ],
)
def test_it_takes_three_callers_or_all_to_have_a_release_taken_back(guard: Guard, own: Counts, fails: bool) -> None:
    assert bool(judge(guard, own, Counts(20_000, denied=200, callers=50))) == fails


@pytest.mark.parametrize(
    ("guard", "own", "callers", "needed"),
    [
        (DENIALS, by(Counts(100, denied=50), 2, 50), 1, 2),
        (DENIALS, by(Counts(100, denied=55), 2, 50, 5), 2, 2),  # the other one too rarely
        (DENIALS, by(Counts(1_020, denied=220), 40, 220), 1, 3),
        (DENIALS, by(Counts(1_200, denied=212), 40, 106, 106), 2, 3),
        (DENIALS, by(Counts(1_200, denied=212), 40, 100, 100), 3, 3),
        (ERRORS, by(Counts(1_000, denied=40, errors=40), 40, 20, 20), 2, 3),
    ],
)
def test_what_is_over_a_bound_by_too_few_callers_is_told(guard: Guard, own: Counts, callers: int, needed: int) -> None:
    other = Counts(20_000, denied=200, callers=50)
    assert judge(guard, own, other) == ""
    found = awaited(guard, own, other)
    assert found is not None
    assert (found.callers, found.needed) == (callers, needed)
    assert found.reason == judge(guard, own._replace(callers=1), other)


@pytest.mark.parametrize(
    "own",
    [
        by(Counts(100, denied=3), 2, 3),  # within the bound
        by(Counts(100, denied=100), 2, 50, 50),  # taken back
        Counts(100, denied=100),  # no edge says who called: taken back
        by(Counts(49, denied=49), 2, 49),  # too few calls to say
    ],
)
def test_nobody_is_waited_for_where_more_callers_would_change_nothing(own: Counts) -> None:
    assert awaited(DENIALS, own, Counts(20_000, denied=200, callers=50)) is None


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=20),
    st.lists(st.integers(0, 500), max_size=2),
    st.integers(0, 300),
)
def test_no_two_callers_have_a_release_taken_back_that_would_have_stayed(
    honest: list[tuple[int, int, int]], flood: list[int], beside: int
) -> None:
    guard, other = Guard(denials=0.05, errors=0.0, calls_min=1), Counts(1_000, denied=beside)
    each = [
        Counts(decided, min(denied, decided), errors=min(errors, denied, decided)) for decided, denied, errors in honest
    ]
    quiet = Counts(
        sum(one.decided for one in each), sum(one.denied for one in each), errors=sum(one.errors for one in each)
    )
    if judge(guard, quiet, other):
        return
    loud = [*each, *(Counts(count, count, errors=count) for count in flood)]
    whole = Counts()
    for one in loud:
        whole = whole.plus(one)
    denied = sorted((one.denied for one in loud), reverse=True)
    errors = sorted((one.errors for one in loud), reverse=True)
    told = whole._replace(
        callers=len(loud),
        denied_one=denied[0],
        denied_two=sum(denied[:2]),
        errors_one=errors[0],
        errors_two=sum(errors[:2]),
    )
    if len(loud) > len(flood):
        assert judge(guard, told, other) == ""


counts = st.integers(0, 10_000).flatmap(
    lambda n: st.tuples(st.just(n), *(st.integers(0, n) for _ in range(4))).map(lambda five: Counts(*five))
)
bounds = st.none() | st.floats(0, 1)


@given(st.builds(Guard, denials=bounds, errors=bounds, slow=bounds, calls_min=st.integers(1, 500)), counts, counts)
def test_a_release_that_fares_as_the_other_or_better_is_never_taken_back(
    guard: Guard, own: Counts, other: Counts
) -> None:
    better = own._replace(denied=0, errors=0, slow=0)
    assert judge(guard, better, other) == ""
    assert judge(Guard(denials=guard.denials, calls_min=guard.calls_min), own, own) == ""


@given(counts, counts, st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_wider_bound_takes_back_no_more(own: Counts, other: Counts, bound: float, more: float) -> None:
    if judge(Guard(denials=bound + more), own, other):
        assert judge(Guard(denials=bound), own, other)


def test_chance_takes_back_few_that_are_no_worse_and_spares_few_that_are() -> None:
    dice = random.Random(5)

    def verdicts(rate: float) -> int:
        """How many of 200 canaries at this rate, looked at every 20 calls up to 1,000, are taken back."""
        taken = 0
        for _ in range(200):
            own = other = Counts()
            for _ in range(50):
                own = own.plus(Counts(20, denied=sum(dice.random() < rate for _ in range(20))))
                other = other.plus(Counts(60, denied=sum(dice.random() < 0.2 for _ in range(60))))
                if judge(DENIALS, own, other):
                    taken += 1
                    break
        return taken

    assert verdicts(0.20) <= 4
    assert verdicts(0.40) >= 190


def test_a_guard_without_any_bound_guards_nothing() -> None:
    assert not is_judged_by(Guard())
    assert is_judged_by(Guard(errors=0.0))
