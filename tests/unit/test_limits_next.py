"""When a used-up limit has some again: the next unit, which is long before all of it."""

import pytest

from tidegate.sessions.budgets import HELD_RETRY_MS, Kind, Standing
from tidegate_policy.limits_api import next_in_ms

HOUR_MS = 3_600_000


def standing(kind: Kind, used: int, full_ms: int, held: int = 0) -> Standing:
    """Of 20; a bucket gets 100 a minute."""
    return Standing("n", kind, 20, used, held, full_ms, 100, 60_000)


@pytest.mark.parametrize(
    ("found", "waits_ms"),
    [
        (standing("bucket", 20, 12_000), 600),
        (standing("bucket", 20, 11_500), 100),
        (standing("bucket", 19, 11_400), 0),
        (standing("day", 20, HOUR_MS), HOUR_MS),
        (standing("distinct", 19, HOUR_MS), 0),
        (standing("day", 20, HOUR_MS, held=5), HELD_RETRY_MS),
        (standing("bucket", 20, 12_000, held=5), 600),
        (standing("places", 20, 0, held=20), 0),
    ],
)
def test_the_next_unit_comes_as_soon_as_a_refused_caller_is_told(found: Standing, waits_ms: int) -> None:
    assert next_in_ms(found) == waits_ms
