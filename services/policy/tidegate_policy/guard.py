"""Whether a release is so much worse than another one that it must be taken back. Pure: counts in, a sentence out.

Rules: nothing is concluded from fewer calls than the guard asks for; a share must be above its bound by more than
chance explains, so that a release that is as good as the other one stays; and it must be so without the two callers
who have most of what is counted, so that no two of them can vote a release away. Where fewer than three have called,
all of them have to have met it. Counterpart: `guarding.py` acts on it.
"""

import math
from typing import Final, NamedTuple

from tidegate.policy.signing import Guard

CHANCE: Final = 3.0
"""Standard deviations: that many above its bound a share must lie. A bound of nothing is passed by the first call."""


class Counts(NamedTuple):
    """Calls that a release has decided, over all edges; of one caller only so many count.

    `callers`: at least so many people and services called; 0 where no edge says. `denied_one`, `denied_two`: no caller
    has more of the denials, no two have; with errors and slow decisions alike.
    """

    decided: int = 0
    denied: int = 0
    asked: int = 0
    errors: int = 0
    slow: int = 0
    differed: int = 0
    callers: int = 0
    denied_one: int = 0
    denied_two: int = 0
    errors_one: int = 0
    errors_two: int = 0
    slow_one: int = 0
    slow_two: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Who has called here may be who has called there."""
        both = Counts(*(one + more for one, more in zip(self, other, strict=True)))
        return both._replace(callers=max(self.callers, other.callers))

    def minus(self, other: "Counts") -> "Counts":
        """Never less than nothing, nor more of a part than of the whole."""
        decided = max(0, self.decided - other.decided)
        parts = (max(0, one - less) for one, less in zip(self[1:], other[1:], strict=True))
        return Counts(decided, *(min(part, decided) for part in parts))


def judge(guard: Guard, own: Counts, other: Counts) -> str:
    """Why the release must be taken back, for people; "" where it may stay.

    `other` is what ruled before, or rules beside it; where that has decided too few calls to compare with, denials are
    not judged, and any error counts.
    """
    if own.decided < guard.calls_min:
        return ""
    known = other if other.decided >= guard.calls_min else Counts()
    denied, errors, slow = _of_few(own)
    if (
        known.decided
        and guard.denials is not None
        and _is_above(own.denied, own, denied, known.denied, known, guard.denials)
    ):
        return _told("were denied", own.denied, own, known.denied, known, guard.denials)
    if guard.errors is not None and _is_above(own.errors, own, errors, known.errors, known, guard.errors):
        return _told("met a rule that cannot be evaluated", own.errors, own, known.errors, known, guard.errors)
    if guard.slow is not None and _is_above(own.slow, own, slow, 0, Counts(), guard.slow):
        return _told(f"took longer than {guard.slow_us / 1e3:g} ms to decide", own.slow, own, 0, Counts(), guard.slow)
    return ""


def is_judged_by(guard: Guard) -> bool:
    """Whether the guard has any bound at all."""
    return (guard.denials, guard.errors, guard.slow) != (None, None, None)


def _of_few(own: Counts) -> tuple[int, int, int]:
    """Denials, errors and slow decisions of those who do not suffice to take a release back: of two callers, of one
    where only two have called, of none where one has.
    """
    if own.callers < 2:
        return 0, 0, 0
    if own.callers == 2:
        return own.denied_one, own.errors_one, own.slow_one
    return own.denied_two, own.errors_two, own.slow_two


def _is_above(count: int, own: Counts, few: int, beside: int, known: Counts, bound: float) -> bool:
    """Whether the share, without those `few` calls, is above the other's by more than the bound and what chance gives,
    were it just at the bound.

    The two-sample test of proportions at the edge of the hypothesis that the bound is kept.
    """
    count, decided = count - few, own.decided - few
    if count <= 0:
        return False
    floor = beside / known.decided if known.decided else 0.0
    allowed = min(1.0, floor + bound)
    variance = allowed * (1 - allowed) / decided
    if known.decided:
        variance += floor * (1 - floor) / known.decided
    return count / decided > allowed + CHANCE * math.sqrt(variance)


def _told(what: str, count: int, own: Counts, beside: int, known: Counts, bound: float) -> str:
    share = f"{count} of {own.decided} calls ({count / own.decided:.1%}) {what}"
    if not known.decided:
        return f"{share}; the guard allows {bound:.1%}"
    compared = f"{beside} of {known.decided} ({beside / known.decided:.1%})"
    return f"{share}, {compared} by the release that it is compared with; the guard allows {bound:.1%} more"
