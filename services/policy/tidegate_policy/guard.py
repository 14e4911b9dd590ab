"""Whether a release is so much worse than another one that it must be taken back. Pure: counts in, a sentence out.

Rules: nothing is concluded from fewer calls than the guard asks for; a share must be above its bound by more than
chance explains, so that a release that is as good as the other one stays. Counterpart: `guarding.py` acts on it.
"""

import math
from typing import Final, NamedTuple

from tidegate.policy.signing import Guard

CHANCE: Final = 3.0
"""Standard deviations: that many above its bound a share must lie. A bound of nothing is passed by the first call."""


class Counts(NamedTuple):
    """Calls that a release has decided, over all edges."""

    decided: int = 0
    denied: int = 0
    asked: int = 0
    errors: int = 0
    slow: int = 0
    differed: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*(one + more for one, more in zip(self, other, strict=True)))

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
    if known.decided and guard.denials is not None and _is_above(own.denied, own, known.denied, known, guard.denials):
        return _told("were denied", own.denied, own, known.denied, known, guard.denials)
    if guard.errors is not None and _is_above(own.errors, own, known.errors, known, guard.errors):
        return _told("met a rule that cannot be evaluated", own.errors, own, known.errors, known, guard.errors)
    if guard.slow is not None and _is_above(own.slow, own, 0, Counts(), guard.slow):
        return _told(f"took longer than {guard.slow_us / 1e3:g} ms to decide", own.slow, own, 0, Counts(), guard.slow)
    return ""


def is_judged_by(guard: Guard) -> bool:
    """Whether the guard has any bound at all."""
    return (guard.denials, guard.errors, guard.slow) != (None, None, None)


def _is_above(count: int, own: Counts, beside: int, known: Counts, bound: float) -> bool:
    """Whether the share is above the other's by more than the bound and what chance gives, were it just at the bound.

    The two-sample test of proportions at the edge of the hypothesis that the bound is kept.
    """
    floor = beside / known.decided if known.decided else 0.0
    allowed = min(1.0, floor + bound)
    variance = allowed * (1 - allowed) / own.decided
    if known.decided:
        variance += floor * (1 - floor) / known.decided
    return count / own.decided > allowed + CHANCE * math.sqrt(variance)


def _told(what: str, count: int, own: Counts, beside: int, known: Counts, bound: float) -> str:
    share = f"{count} of {own.decided} calls ({count / own.decided:.1%}) {what}"
    if not known.decided:
        return f"{share}; the guard allows {bound:.1%}"
    compared = f"{beside} of {known.decided} ({beside / known.decided:.1%})"
    return f"{share}, {compared} by the release that it is compared with; the guard allows {bound:.1%} more"
