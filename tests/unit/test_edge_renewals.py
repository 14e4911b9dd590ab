"""When a session is due to be renewed."""

from tidegate_edge.renewals import Renewals


def test_a_session_is_due_at_first_use_and_then_once_per_period() -> None:
    now_s = [100.0]
    renewals = Renewals(10.0, clock=lambda: now_s[0])
    seen = []
    for at_s in (100.0, 100.1, 109.9, 110.0, 111.0, 125.0):
        now_s[0] = at_s
        seen.append(renewals.is_due("one"))
    assert seen == [True, False, False, True, False, True]
    assert renewals.is_due("another")
