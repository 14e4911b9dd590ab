"""What edges say that releases have decided, added up over edges and their restarts. A fold; twice is once.

An edge counts from its start, and says the sum so far: the highest one of each start counts. Order holds per edge, so
what the ruling release had decided there before a canary came is known, and left out of the comparison.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from tidegate.events import BundleActivated, BundleObserved, Role
from tidegate_policy.guard import Counts

RELEASES_MAX = 4  # by ring and role, the newest
STARTS_MAX = 10_000  # by release
Start = tuple[str, int]  # an edge, and since when it counts
Key = tuple[str, Role]


@dataclass
class Observations:
    """Of one tenant."""

    _latest: dict[Key, dict[int, dict[Start, BundleObserved]]] = field(default_factory=dict)  # by ring, role; number
    _canaries: dict[tuple[str, str], int] = field(default_factory=dict)  # by ring, edge: the canary activated last
    _before: dict[tuple[str, str], dict[tuple[int, int], Counts]] = field(default_factory=dict)
    """By ring and edge; by ruling release and start: what was first heard of it after that edge's canary came."""

    def activated(self, event: BundleActivated) -> None:
        place = (event.ring, event.edge)
        if event.role == "canary" and event.number > self._canaries.get(place, 0):
            self._canaries[place] = event.number
            self._before[place] = {}
            _forget_oldest(self._canaries, STARTS_MAX)
            _forget_oldest(self._before, STARTS_MAX)

    def observed(self, event: BundleObserved) -> None:
        numbers = self._latest.setdefault((event.ring, event.role), {})
        starts = numbers.setdefault(event.number, {})
        start = (event.edge, event.since_us)
        if (known := starts.get(start)) is None or event.decided >= known.decided:
            starts[start] = event
        _forget_oldest(starts, STARTS_MAX)
        for number in sorted(numbers)[:-RELEASES_MAX]:
            del numbers[number]
        marks = self._before.get((event.ring, event.edge))
        if event.role == "ruling" and marks is not None:
            marks.setdefault((event.number, event.since_us), counts_of(event))
            _forget_oldest(marks, RELEASES_MAX)

    def total(self, ring: str, role: Role, number: int, until_us: int = 0) -> Counts:
        """All that a release has decided; heard by `until_us` (0: whenever)."""
        heard = self._heard(ring, role, number)
        return _sum(counts_of(event) for event in heard if not until_us or event.time_us <= until_us)

    def beside(self, ring: str, canary: int, ruling: int) -> Counts:
        """What the ruling release has decided on the canary's edges since the canary came."""
        found = Counts()
        for event in self._heard(ring, "ruling", ruling):
            if self._canaries.get((ring, event.edge)) == canary:
                before = self._before[ring, event.edge].get((event.number, event.since_us), Counts())
                found = found.plus(counts_of(event).minus(before))
        return found

    def _heard(self, ring: str, role: Role, number: int) -> Iterable[BundleObserved]:
        return self._latest.get((ring, role), {}).get(number, {}).values()


def counts_of(event: BundleObserved) -> Counts:
    """Nothing is counted more often than calls were decided, whatever an edge says."""
    decided = max(0, event.decided)
    parts = (event.denied, event.asked, event.errors, event.slow, event.differed, event.callers)
    most = [_one_and_two(event.most_denied), _one_and_two(event.most_errors), _one_and_two(event.most_slow)]
    return Counts(decided, *(min(max(0, part), decided) for part in (*parts, *chain.from_iterable(most))))


def _one_and_two(most: Sequence[int]) -> tuple[int, int]:
    """What one caller has at most, and what two have together."""
    ordered = sorted((max(0, count) for count in most), reverse=True)
    return sum(ordered[:1]), sum(ordered[:2])


def _sum(parts: Iterable[Counts]) -> Counts:
    found = Counts()
    for part in parts:
        found = found.plus(part)
    return found


def _forget_oldest(kept: dict, most: int) -> None:  # type: ignore[type-arg]
    while len(kept) > most:
        del kept[next(iter(kept))]
