"""Where batches are written, judged from what syncs took."""

from tidegate.log.pace import PENALTY_S, Pace


def test_a_fast_medium_is_written_to_on_the_loop() -> None:
    pace = Pace(0.001)
    for step in range(1_000):
        assert pace.is_inline(step * 0.001)
        pace.took(0.0002, step * 0.001)


def test_a_slow_medium_goes_to_the_thread_and_is_tried_again_later() -> None:
    pace = Pace(0.001)
    at_s = 0.0
    while pace.is_inline(at_s):
        pace.took(0.004, at_s)
        at_s += 0.004
    assert at_s < 0.1
    assert not pace.is_inline(at_s + PENALTY_S - 0.1)
    assert pace.is_inline(at_s + PENALTY_S)


def test_one_stall_is_reason_enough() -> None:
    pace = Pace(0.001)
    pace.took(0.0002, 1.0)
    pace.took(0.1, 1.1)
    assert not pace.is_inline(1.2)


def test_without_a_bound_the_loop_never_waits() -> None:
    assert not Pace(0.0).is_inline(5.0)
