"""The breaker: a model of its promise, whatever happens in whatever order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate_edge.upstream.breaker import WAIT_S_FIRST, WAIT_S_MAX, Breaker

steps = st.lists(st.tuples(st.sampled_from(["ok", "fail", "leave"]), st.floats(0, 40)), max_size=60)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 5), steps)
def test_a_server_is_left_alone_only_after_failures_in_a_row_and_never_for_long(
    failures_max: int, outcomes: list[tuple[str, float]]
) -> None:
    breaker, now_s, in_a_row = Breaker(failures_max), 0.0, 0
    for outcome, later_s in outcomes:
        now_s += later_s
        wait_s = breaker.admit(now_s)
        assert 0 <= wait_s <= WAIT_S_MAX
        if wait_s:
            assert in_a_row >= failures_max
            assert breaker.admit(now_s + wait_s) == 0  # as soon as it said
            now_s += wait_s
        if breaker.is_open:
            assert breaker.admit(now_s) > 0  # one tries, the others are refused
        if outcome == "ok":
            breaker.succeeded()
            in_a_row = 0
            assert not breaker.is_open
        elif outcome == "fail":
            breaker.failed(now_s)
            in_a_row += 1
            assert breaker.is_open == (in_a_row >= failures_max)
        else:
            breaker.abandoned()
        assert breaker.failures == in_a_row


def test_the_wait_doubles_to_its_bound_and_a_success_forgets_it() -> None:
    breaker, now_s = Breaker(1), 0.0
    waits = []
    for _ in range(8):
        assert breaker.admit(now_s) == 0
        breaker.failed(now_s)
        waits.append(breaker.admit(now_s))
        now_s += waits[-1]
    assert waits == [WAIT_S_FIRST, 2.0, 4.0, 8.0, 16.0, WAIT_S_MAX, WAIT_S_MAX, WAIT_S_MAX]
    assert breaker.admit(now_s) == 0
    breaker.succeeded()
    breaker.failed(now_s)
    assert breaker.admit(now_s) == WAIT_S_FIRST
