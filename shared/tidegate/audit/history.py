"""A series of roots, verified as a whole, and what its leaves say of each writer. Pure.

Several sealers (one a region) have a series each; their leaves lie side by side, and may overlap where a record came
twice. Counterparts: `roots.py` (one root), `holdings.py` (what a store has of a leaf).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tidegate.audit.holdings import Wrong
from tidegate.audit.roots import Opened, RootFault, Trust, follows, open_root
from tidegate.events import Leaf, RootSealed

Interval = tuple[int, int]


class RootProblem(NamedTuple):
    """A root, or the place of one, that is not what it must be."""

    code: str
    sealer: str
    number: int
    sentence: str


@dataclass
class History:
    """Roots that can be believed, by sealer and number; their leaves by writer, in order, each once."""

    roots: list[Opened] = field(default_factory=list)
    problems: list[RootProblem] = field(default_factory=list)
    leaves: dict[str, list[Leaf]] = field(default_factory=dict)

    def latest(self) -> dict[str, Opened]:
        """The last root of each sealer."""
        return {one.root.sealer: one for one in self.roots}

    def covers(self, writer: str) -> list[Interval]:
        return merged((leaf.first, leaf.last) for leaf in self.leaves.get(writer, ()))


def open_history(events: Iterable[RootSealed], trust: Trust) -> History:
    """From any number of sources at once: the same root again is no news. Never raises."""
    history = History()
    series: dict[str, dict[int, dict[str, Opened]]] = {}
    for event in events:
        try:
            opened = open_root(event, trust)
        except RootFault as fault:
            sentence = f"root {event.number} of '{event.sealer}': {fault.sentence}"
            history.problems.append(RootProblem(fault.code, event.sealer, event.number, sentence))
            continue
        series.setdefault(opened.root.sealer, {}).setdefault(opened.root.number, {})[opened.digest] = opened
    for sealer in sorted(series):
        _check_series(sealer, series[sealer], history)
    writers: dict[str, dict[tuple[int, int, str], Leaf]] = {}
    for one in history.roots:
        for leaf in one.leaves:
            writers.setdefault(leaf.writer, {})[(leaf.first, leaf.last, leaf.tree)] = leaf
    history.leaves = {writer: [leaf for _, leaf in sorted(found.items())] for writer, found in sorted(writers.items())}
    return history


def _check_series(sealer: str, numbered: dict[int, dict[str, Opened]], history: History) -> None:
    before: Opened | None = None
    for number in sorted(numbered):
        same = list(numbered[number].values())
        if len(same) > 1:
            sentence = f"the audit key signed {len(same)} different roots {number} of '{sealer}'"
            history.problems.append(RootProblem("root-forked", sealer, number, sentence))
        if before is not None and (why := follows(same[0].root, before)):
            history.problems.append(RootProblem("root-missing", sealer, number, why))
        history.roots += same
        before = same[0]


def seams(leaves: Sequence[Leaf]) -> list[Wrong]:
    """What does not fit between the leaves of one writer: numbers that no root has, forks, and links that break."""
    wrong: list[Wrong] = []
    for before, leaf in pairwise(leaves):
        if leaf.first > before.last + 1 and not _reached(leaf.first - 1, leaves):
            numbers = f"{before.last + 1} to {leaf.first - 1}" if leaf.first > before.last + 2 else str(leaf.first - 1)
            sentence = f"the log never held the numbers {numbers} of this writer"
            wrong.append(Wrong("gap", leaf.writer, before.last + 1, "", sentence))
        elif leaf.first == before.last + 1 and leaf.prev != before.head:
            sentence = f"record {leaf.first} continues another history than the one sealed up to {before.last}"
            wrong.append(Wrong("broken-link", leaf.writer, leaf.first, "", sentence))
    if leaves and leaves[0].first == 1 and leaves[0].prev:
        wrong.append(Wrong("broken-link", leaves[0].writer, 1, "", "the first record names one before it"))
    return wrong


def _reached(seq: int, leaves: Sequence[Leaf]) -> bool:
    return any(leaf.first <= seq <= leaf.last for leaf in leaves)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Closed intervals of numbers, joined where they touch or overlap."""
    joined: list[Interval] = []
    for first, last in sorted(intervals):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined
