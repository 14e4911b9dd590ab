"""Whether a release is so much worse than another one that it must be taken back. Pure: counts in, a sentence out.

Rules: nothing is concluded from fewer calls than the guard asks for; a share must be above its bound by more than
chance explains, so that a release that is as good as the other one stays; and it must be so without the two callers
who have most of what is counted, so that no two of them can vote a release away. Where fewer than three have called,
all of them have to have met it. Counterpart: `guarding.py` acts on it.
"""

import math
from collections.abc import Iterator
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


class Awaited(NamedTuple):
    """Why a release that is over a bound may stay so far: `callers` have met it, and it takes `needed` of them.

    Where as many have met it, those beyond the one or two who have most of it have met it too rarely.
    """

    reason: str
    callers: int
    needed: int


def judge(guard: Guard, own: Counts, other: Counts) -> str:
    """Why the release must be taken back, for people; "" where it may stay.

    `other` is what ruled before, or rules beside it; where that has decided too few calls to compare with, denials are
    not judged, and any error counts.
    """
    return next((found.told for found in _found(guard, own, other) if found.fails(_voters_apart(own))), "")


def awaited(guard: Guard, own: Counts, other: Counts) -> Awaited | None:
    """Why a release that may stay would be taken back, had more callers met what is wrong with it."""
    apart = _voters_apart(own)
    found = next((one for one in _found(guard, own, other) if one.fails(0)), None)
    if found is None or not apart or judge(guard, own, other):
        return None
    return Awaited(found.told, found.callers, apart + 1)


def is_judged_by(guard: Guard) -> bool:
    """Whether the guard has any bound at all."""
    return (guard.denials, guard.errors, guard.slow) != (None, None, None)


class _Finding(NamedTuple):
    """Calls of one kind beside their bound. `one`, `two`: those of the caller, of the two callers with most."""

    what: str
    met: int
    one: int
    two: int
    decided: int
    beside: int
    known: int  # calls of the other release; 0 where it is not compared with
    bound: float

    @property
    def callers(self) -> int:
        """At least so many have met it; 3 are three or more."""
        return 1 if self.one >= self.met else 2 if self.two >= self.met else 3

    def fails(self, apart: int) -> bool:
        """Whether the share, without the `apart` (0 to 2) callers who have most of it, is above the other's by more
        than the bound and what chance gives, were it just at the bound.

        The two-sample test of proportions at the edge of the hypothesis that the bound is kept.
        """
        few = (0, self.one, self.two)[apart]
        met, decided = self.met - few, self.decided - few
        if met <= 0:
            return False
        floor = self.beside / self.known if self.known else 0.0
        allowed = min(1.0, floor + self.bound)
        variance = allowed * (1 - allowed) / decided
        if self.known:
            variance += floor * (1 - floor) / self.known
        return met / decided > allowed + CHANCE * math.sqrt(variance)

    @property
    def told(self) -> str:
        share = f"{self.met} of {self.decided} calls ({self.met / self.decided:.1%}) {self.what}"
        if not self.known:
            return f"{share}; the guard allows {self.bound:.1%}"
        compared = f"{self.beside} of {self.known} ({self.beside / self.known:.1%})"
        return f"{share}, {compared} by the release that it is compared with; the guard allows {self.bound:.1%} more"


def _voters_apart(own: Counts) -> int:
    """How many callers do not suffice to take a release back: two, one where only two have called, none where one has
    or no edge says.
    """
    return min(2, max(0, own.callers - 1))


def _found(guard: Guard, own: Counts, other: Counts) -> Iterator[_Finding]:
    """What the guard bounds, worst first to tell; nothing where too few calls were decided."""
    if own.decided < guard.calls_min:
        return
    known = other if other.decided >= guard.calls_min else Counts()
    beside, decided = known.decided, own.decided
    if beside and guard.denials is not None:
        most = (own.denied_one, own.denied_two)
        yield _Finding("were denied", own.denied, *most, decided, known.denied, beside, guard.denials)
    if guard.errors is not None:
        most, what = (own.errors_one, own.errors_two), "met a rule that cannot be evaluated"
        yield _Finding(what, own.errors, *most, decided, known.errors, beside, guard.errors)
    if guard.slow is not None:
        most, what = (own.slow_one, own.slow_two), f"took longer than {guard.slow_us / 1e3:g} ms to decide"
        yield _Finding(what, own.slow, *most, decided, 0, 0, guard.slow)
