"""What changes between two bundles: calls that become easier or harder, and rules that no call reaches any more.

Decided, not guessed: both engines answer every call of a bounded set (`situations.py`), made of the principals, tools
and argument values that the bundles' rules and cases mention. What nobody mentions is not looked at. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tidegate.limits import APPROVAL_TTL_S
from tidegate.policy.annotations import ANYBODY_ELSE
from tidegate.policy.bundle import Bundle
from tidegate.policy.engine import Engine
from tidegate.policy.entities import ToolFacts
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate.policy.file_differences import FileChange, file_changes
from tidegate.policy.grants import GRANTS
from tidegate.policy.grants_cedar import COMPILED
from tidegate.policy.limit_differences import LimitChange, limit_changes
from tidegate.policy.situations import Person, Situation, situations_of
from tidegate.policy.verdict import Effect, Verdict

DECISIONS_MAX = 40_000
DIFFERENCES_MAX = 500
_RANK: Mapping[Effect, int] = {"deny": 0, "ask": 1, "allow": 2}
_UNDECIDED = ("evaluation-error", "argument-not-representable")
Direction = Literal["more-permissive", "stricter"]


class Example(msgspec.Struct, frozen=True):
    """One call that shows it."""

    user: str
    groups: tuple[str, ...]
    agent: str
    server: str
    tool: str
    labels: tuple[str, ...]
    arguments: dict[str, Any]
    kind: Literal["user", "service"] = "user"
    facts: Facts = NO_FACTS  # the circumstances, where a rule looks at them


class Asked(msgspec.Struct, frozen=True):
    """Of a question: who approves, as in a `Verdict`, and for how long it stands."""

    approver: str
    expires_s: int


class Change(msgspec.Struct, frozen=True):
    """Calls of one tool whose decision goes from `before` to `after` for the same reasons; `calls` of those tried.
    Where both are "ask", another may approve, or for another time.
    """

    direction: Direction
    server: str
    tool: str
    before: Effect
    after: Effect
    rules_before: tuple[str, ...]
    rules_after: tuple[str, ...]
    message: str
    calls: int
    example: Example
    asked_before: Asked | None = None  # where before, or after, is "ask"
    asked_after: Asked | None = None


class Unreached(msgspec.Struct, frozen=True):
    """A rule of the new bundle that determines none of the decisions. `newly`: it did in the old one, for `example`,
    which the rules `now` determine.
    """

    rule: str
    path: str
    line: int
    newly: bool
    example: Example | None = None
    now: tuple[str, ...] = ()


class Differences(msgspec.Struct, frozen=True):
    """`decisions`: calls that both decided. `whole` is false where there were more than are tried."""

    old: str
    new: str
    changes: tuple[Change, ...]
    unreachable: tuple[Unreached, ...]
    decisions: int
    whole: bool
    limits: tuple[LimitChange, ...] = ()
    files: tuple[FileChange, ...] = ()  # of definitions.yaml and inspection.yaml

    def of(self, direction: Direction) -> list[Change]:
        return [change for change in self.changes if change.direction == direction]


def compare(old: Bundle, new: Bundle) -> Differences:
    """Raises BundleFault where one of them cannot decide."""
    found = _Comparison(old, new).run()
    return msgspec.structs.replace(found, limits=limit_changes(old, new), files=file_changes(old, new))


@dataclass
class _Group:
    verdicts: tuple[Verdict, Verdict]
    example: Example
    calls: int = 0


class _Comparison:
    def __init__(self, old: Bundle, new: Bundle) -> None:
        self._old, self._new = old, new
        self._engines = (Engine.build(old, (), {}), Engine.build(new, (), {}))
        self._unasked = tuple(engine.without_asks() for engine in self._engines)
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._reached: tuple[dict[str, tuple[Example, Verdict]], dict[str, tuple[Example, Verdict]]] = ({}, {})
        self._decisions = 0
        self._whole = True

    def run(self) -> Differences:
        found = situations_of(self._old, self._new)
        self._whole = found.whole
        for situation in found.situations:
            facts = [situation.facts]
            servers = {situation.facts.server: situation.facts.labels}
            before, after = (engine.with_tools(facts, servers) for engine in self._engines)
            for person in found.people:
                if self._decisions >= DECISIONS_MAX:
                    self._whole = False
                    return self._told()
                self._ask(before, after, person, situation)
        return self._told()

    def _ask(self, before: Engine, after: Engine, person: Person, situation: Situation) -> None:
        server, tool = situation.facts.server, situation.facts.tool
        standing = before.standing(person, server, tool), after.standing(person, server, tool)
        for arguments, facts in situation.calls[:1] if None not in standing else situation.calls:
            verdicts = (
                standing[0] or before.evaluate(person, server, tool, arguments, facts),
                standing[1] or after.evaluate(person, server, tool, arguments, facts),
            )
            self._decisions += 1
            example = _example(person, situation, arguments, facts)
            self._reach(verdicts, example, person)
            self._note(verdicts, example)

    def _reach(self, verdicts: tuple[Verdict, Verdict], example: Example, person: Person) -> None:
        """Which rules determined it. Of what is asked about, also those that would allow it without asking."""
        for verdict, reached, unasked in zip(verdicts, self._reached, self._unasked, strict=True):
            rules = () if verdict.reason in _UNDECIDED else verdict.rules
            if verdict.effect == "ask":
                facts = ToolFacts(example.server, example.tool, example.labels)
                engine = unasked.with_tools([facts], {example.server: example.labels})
                call = (person, example.server, example.tool, example.arguments, example.facts)
                rules += engine.evaluate(*call).rules
            for rule in rules:
                reached.setdefault(rule, (example, verdicts[1]))

    def _note(self, verdicts: tuple[Verdict, Verdict], example: Example) -> None:
        before, after = verdicts
        asked = _asked(before), _asked(after)
        if before.effect != after.effect or asked[0] != asked[1]:
            key = (example.server, example.tool, before.effect, after.effect, before.rules, after.rules, asked)
            self._groups.setdefault(key, _Group(verdicts, example)).calls += 1

    def _told(self) -> Differences:
        changes = [_change(group) for group in self._groups.values()]
        changes.sort(key=lambda change: (change.direction, change.server, change.tool, change.rules_after))
        return Differences(
            self._old.digest,
            self._new.digest,
            tuple(changes[:DIFFERENCES_MAX]),
            tuple(self._unreached()),
            self._decisions,
            self._whole and len(changes) <= DIFFERENCES_MAX,
        )

    def _unreached(self) -> list[Unreached]:
        before, after = self._reached
        found: list[Unreached] = []
        for rule in self._engines[1].rules:
            if rule.id not in after and not rule.shadow:
                example, verdict = before.get(rule.id, (None, None))
                now = verdict.rules if verdict else ()
                made = rule.path == COMPILED
                path, line = (GRANTS, self._new.grants.lines.get(rule.id, 0)) if made else (rule.path, rule.line)
                found.append(Unreached(rule.id, path, line, example is not None, example, now))
        return found


def _example(person: Person, situation: Situation, arguments: dict[str, Any], facts: Facts) -> Example:
    about = (situation.facts.server, situation.facts.tool, situation.facts.labels)
    return Example(person.user, person.groups, person.agent, *about, arguments, person.kind, facts)


def _asked(verdict: Verdict) -> Asked | None:
    return Asked(verdict.approver, verdict.expires_s or APPROVAL_TTL_S) if verdict.effect == "ask" else None


def _is_easier(before: Asked, after: Asked) -> bool:
    """Another group may be a larger one: it counts as easier, both ways."""
    is_other_group = before.approver != after.approver and _hardness(before) == _hardness(after)
    return is_other_group or _hardness(after) < _hardness(before) or after.expires_s > before.expires_s


def _hardness(asked: Asked) -> int:
    return {"": 0, ANYBODY_ELSE: 1}.get(asked.approver, 2)


def _change(group: _Group) -> Change:
    before, after = group.verdicts
    asked = _asked(before), _asked(after)
    easier = _RANK[after.effect] > _RANK[before.effect]
    if asked[0] and asked[1]:
        easier = _is_easier(asked[0], asked[1])
    return Change(
        "more-permissive" if easier else "stricter",
        group.example.server,
        group.example.tool,
        before.effect,
        after.effect,
        before.rules,
        after.rules,
        after.told,
        group.calls,
        group.example,
        *asked,
    )
