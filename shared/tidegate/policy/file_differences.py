"""What changes between `definitions.yaml` and `inspection.yaml` of two bundles, in words. Pure.

Counterparts: `differences.py` compares decisions, `limit_differences.py` limits.
"""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from tidegate.errors import BundleFault
from tidegate.inspection.patterns import ACTIONS as INSPECTING
from tidegate.inspection.patterns import Pattern
from tidegate.inspection.rules import load_inspection
from tidegate.policy.bundle import INSPECTION, Bundle
from tidegate.policy.definition_rules import ACTIONS, DEFINITIONS, Action, DefinitionRules, read_definition_rules

Direction = Literal["more-permissive", "stricter", "other"]
SERVERS_TOLD_MAX: Final = 5
_HELD: Final = {
    "first": "tools of a server's first list",
    "new": "tools that come later",
    "cosmetic": "cosmetic changes of a definition",
    "described": "changed descriptions",
    "narrowed": "narrowed definitions",
    "widened": "widened definitions",
    "instructing": "definitions that begin to instruct",
}
_LOOKED_AT: Final = ("arguments", "result")
_DETAILS: Final = {
    "pattern": "looks for something else",
    "ignore_case": "takes case otherwise",
    "validator": "is validated otherwise",
}


class FileChange(msgspec.Struct, frozen=True):
    """One thing that a file says otherwise."""

    direction: Direction
    file: str
    sentence: str


def file_changes(old: Bundle, new: Bundle) -> tuple[FileChange, ...]:
    """A file that cannot be read counts as not there: `check` says what is wrong with it."""
    return (*_definition_changes(_rules(old), _rules(new)), *_inspection_changes(_patterns(old), _patterns(new)))


def _definition_changes(old: DefinitionRules, new: DefinitionRules) -> Iterator[FileChange]:
    """Of the servers that either file names, each by what holds for it; and of all others at once."""
    named = sorted({*old.servers, *new.servers})
    for rank, words in _HELD.items():
        found: dict[tuple[Action, Action], list[str]] = {}
        rest = "every other server" if named else "every server"
        for server, before, after in [
            (rest, old.every, new.every),
            *((one, old.of(one), new.of(one)) for one in named),
        ]:
            change: tuple[Action, Action] = getattr(before, rank), getattr(after, rank)
            if change[0] != change[1]:
                found.setdefault(change, []).append(server)
        for (was, now), servers in found.items():
            direction: Direction = "more-permissive" if ACTIONS.index(now) < ACTIONS.index(was) else "stricter"
            told = ("trust" if rank == "first" and action == "allow" else action for action in (was, now))
            yield FileChange(direction, DEFINITIONS, f"{words} of {_listed(servers)}: {' → '.join(told)}")


def _listed(servers: list[str]) -> str:
    more = len(servers) - SERVERS_TOLD_MAX
    return ", ".join(servers[:SERVERS_TOLD_MAX]) + (f" and {more} more" if more > 0 else "")


def _inspection_changes(old: dict[str, Pattern], new: dict[str, Pattern]) -> Iterator[FileChange]:
    for name, pattern in new.items():
        was = old.get(name)
        if was is None:
            yield FileChange("stricter", INSPECTION, f"new pattern {name}: {_doing(pattern)}")
        else:
            yield from _pattern_changes(was, pattern)
    for name, pattern in old.items():
        if name not in new:
            yield FileChange("more-permissive", INSPECTION, f"pattern {name} is gone: {_doing(pattern)}")


def _pattern_changes(was: Pattern, now: Pattern) -> Iterator[FileChange]:
    for direction in _LOOKED_AT:
        before, after = getattr(was, direction), getattr(now, direction)
        if before != after:
            laxer = INSPECTING.index(after) < INSPECTING.index(before)
            sentence = f"pattern {now.id} in {_where(direction)}: {before} → {after}"
            yield FileChange("more-permissive" if laxer else "stricter", INSPECTION, sentence)
    if was.record != now.record:
        kept: Direction = "more-permissive" if now.record == "keep" else "stricter"
        yield FileChange(kept, INSPECTION, f"what pattern {now.id} finds, in events: {was.record} → {now.record}")
    if was.severity != now.severity:
        yield FileChange("other", INSPECTION, f"pattern {now.id} is {now.severity}, was {was.severity}")
    for name, words in _DETAILS.items():
        if getattr(was, name) != getattr(now, name):
            yield FileChange("other", INSPECTION, f"pattern {now.id} {words}")


def _doing(pattern: Pattern) -> str:
    return ", ".join(f"{getattr(pattern, direction)} in {_where(direction)}" for direction in _LOOKED_AT)


def _where(direction: str) -> str:
    return "results" if direction == "result" else direction


def _rules(bundle: Bundle) -> DefinitionRules:
    """Without the file, what holds without it."""
    return read_definition_rules(bundle.text(DEFINITIONS))[0] if DEFINITIONS in bundle.files else DefinitionRules()


def _patterns(bundle: Bundle) -> dict[str, Pattern]:
    try:
        found = load_inspection(bundle.files.get(INSPECTION, b"")).patterns
    except BundleFault:
        return {}
    return {pattern.id: pattern for pattern in found}
