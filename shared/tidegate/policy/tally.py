"""What a candidate bundle would have changed: past decisions beside those made again, counted and grouped. Pure.

Counterparts: `replaying.py` decides again; the command line shows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from tidegate.policy.replaying import Blank, Past, Replayer
from tidegate.policy.verdict import Verdict

ChangeKind = Literal["newly-allowed", "newly-asked", "newly-denied"]
KINDS: Final[tuple[ChangeKind, ...]] = ("newly-allowed", "newly-asked", "newly-denied")
GROUPS_MAX: Final = 5_000  # what is past them is counted together, under no tool
PEOPLE_MAX: Final = 1_000  # of one group
EXAMPLES_MAX: Final = 3
PEOPLE_TOLD: Final = 10

_NEW: Final[dict[str, ChangeKind]] = {"allow": "newly-allowed", "ask": "newly-asked", "deny": "newly-denied"}


class Example(msgspec.Struct, frozen=True):
    """One of the calls; `tidegate why` tells its story."""

    decision_id: str
    time_us: int
    person: str
    agent: str


class Change(msgspec.Struct, frozen=True):
    """Calls of one tool whose decision would have been another, for the same reasons. `people`: most calls first."""

    kind: ChangeKind
    server: str
    tool: str
    before: str
    after: str
    rules_before: tuple[str, ...]
    rules_after: tuple[str, ...]
    message: str
    calls: int
    people: tuple[tuple[str, int], ...]
    people_total: int
    examples: tuple[Example, ...]


class Replayed(msgspec.Struct, frozen=True):
    """The sums. calls = same + changed + not_kept + erased + elsewhere. `other_rules`: of the same, those that other
    rules decide now.
    """

    bundle: str
    calls: int
    same: int
    other_rules: int
    changed: int
    not_kept: int
    erased: int
    elsewhere: int
    changes: tuple[Change, ...]
    not_kept_tools: tuple[tuple[str, int], ...]

    def of(self, kind: ChangeKind) -> list[Change]:
        return [change for change in self.changes if change.kind == kind]


@dataclass
class _Group:
    past: Past
    verdict: Verdict
    calls: int = 0
    people: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    def add(self, past: Past) -> None:
        self.calls += 1
        person = past.login or past.subject_id
        if person in self.people or len(self.people) < PEOPLE_MAX:
            self.people[person] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(Example(past.call_id, past.time_us, person, past.agent))


class Tally:
    """Of one candidate, call by call."""

    def __init__(self, replayer: Replayer) -> None:
        self._replayer = replayer
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._blank: Counter[Blank] = Counter()
        self._not_kept: Counter[str] = Counter()
        self.calls = self.changed = self._same = self._other_rules = 0

    def add_all(self, calls: Sequence[Past]) -> None:
        for past, verdict in zip(calls, self._replayer.decide_all(calls), strict=True):
            self._add(past, verdict)

    def add(self, past: Past) -> None:
        self.add_all((past,))

    def _add(self, past: Past, verdict: Verdict | Blank) -> None:
        self.calls += 1
        if isinstance(verdict, str):
            self._blank[verdict] += 1
            if verdict == "not-kept":
                self._not_kept[f"{past.server}/{past.action}"] += 1
        elif verdict.effect == past.decision:
            self._same += 1
            self._other_rules += verdict.rules != past.rules
        else:
            self.changed += 1
            self._note(past, verdict)

    def _note(self, past: Past, verdict: Verdict) -> None:
        key = (past.server, past.action, past.decision, verdict.effect, past.rules, verdict.rules, verdict.reason)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS_MAX:
                return
            group = self._groups[key] = _Group(past, verdict)
        group.add(past)

    def replayed(self) -> Replayed:
        changes = sorted(map(_change, self._groups.values()), key=lambda one: (KINDS.index(one.kind), -one.calls))
        return Replayed(
            bundle=self._replayer.digest,
            calls=self.calls,
            same=self._same,
            other_rules=self._other_rules,
            changed=self.changed,
            not_kept=self._blank["not-kept"],
            erased=self._blank["erased"],
            elsewhere=self._blank["elsewhere"],
            changes=tuple(changes),
            not_kept_tools=tuple(self._not_kept.most_common(PEOPLE_TOLD)),
        )


def _change(group: _Group) -> Change:
    past, verdict = group.past, group.verdict
    return Change(
        kind=_NEW[verdict.effect],
        server=past.server,
        tool=past.action,
        before=past.decision,
        after=verdict.effect,
        rules_before=past.rules,
        rules_after=verdict.rules,
        message=verdict.told,
        calls=group.calls,
        people=tuple(group.people.most_common(PEOPLE_TOLD)),
        people_total=len(group.people),
        examples=tuple(group.examples),
    )
