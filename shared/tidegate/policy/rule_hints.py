"""What is allowed in rules and seldom meant: annotations that mean nothing, questions whose approvers differ, forbids
that do not hold where something is not known, permits that do, and marks that no session takes on. Pure.

Counterpart: `check.py` tells them beside what is wrong; none of them keeps a bundle from ruling.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import Problem
from tidegate.policy.absences import passed_without, permitted_without
from tidegate.policy.annotations import ANYBODY_ELSE, KNOWN
from tidegate.policy.comparisons import Comparison
from tidegate.policy.labels import TAINTING
from tidegate.policy.resource_uris import RESOURCES_READ, inside, unlike_any
from tidegate.policy.rules import NOTHING, Rule, Scope

PAIRS_MAX = 20_000
_ON_RESOURCES = frozenset({"call", "resource"})
_CONTAINS = frozenset({"contains", "containsAll", "containsAny"})
_TAINT = {".": {"left": {"Var": "context"}, "attr": "taint"}}
_EXAMPLES = {"network": "context.network.ip.isInRange(…)"}


def hints_on(rules: Sequence[Rule], labels: Collection[str] = ()) -> list[Problem]:
    """None of them fatal. `labels`: those that the bundle's schema declares."""
    found = [*_misspelt(rules), *_slips(rules), *_rivals(rules), *_open(rules), *_misspelt_uris(rules)]
    return [*found, *_unknown_marks(rules, labels)]


def _misspelt(rules: Iterable[Rule]) -> Iterator[Problem]:
    """Annotations of somebody's own are let be; those that resemble one of ours are told."""
    for rule in rules:
        for name in rule.unread:
            if close := difflib.get_close_matches(name.lower(), sorted(KNOWN), 1, 0.7):
                sentence = f"the annotation '@{name}' means nothing; did you mean '@{close[0]}'?"
                yield Problem(rule.path, sentence, rule.line, rule.id, False)


def _slips(rules: Iterable[Rule]) -> Iterator[Problem]:
    for rule in rules:
        if rule.approver.lower() == ANYBODY_ELSE != rule.approver:
            sentence = (
                f"the group '{rule.approver}' approves; for anybody but the requester write '{ANYBODY_ELSE}' in small "
                "letters"
            )
            yield Problem(rule.path, sentence, rule.line, rule.id, False)


def _open(rules: Iterable[Rule]) -> Iterator[Problem]:
    """A caller can bring about that its address is not known; what is forbidden should be so then, too."""
    for rule in rules:
        for name in passed_without(rule):
            there = f"context has {name} && {_EXAMPLES.get(name, '…')}"
            sentence = (
                f"where `{name}` is not known this rule lets the call pass; write `forbid … unless {{ {there} }}` with "
                f"what must hold, or `when {{ !(context has {name}) || … }}`"
            )
            yield Problem(rule.path, sentence, rule.line, rule.id, False)
        for name in permitted_without(rule):
            there = f"context has {name} && {_EXAMPLES.get(name, '…')}"
            sentence = (
                f"where `{name}` is not known this rule permits the call all the same; write `permit … when {{ {there} "
                f"}}` with what must hold or, where that is meant, `when {{ !(context has {name}) || … }}`"
            )
            yield Problem(rule.path, sentence, rule.line, rule.id, False)


def _unknown_marks(rules: Iterable[Rule], labels: Collection[str]) -> Iterator[Problem]:
    """Marks of a session that are no label. Where no label is declared, only what is nearly a usual one is told."""
    known = sorted({*TAINTING, *labels})
    for rule in rules:
        for mark in dict.fromkeys(_marks(rule)):
            close = difflib.get_close_matches(mark, known, 1, 0.7)
            if mark in known or not (close or labels):
                continue
            meant = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)[:200]}"
            sentence = f"'{rule.id}' asks for the taint '{mark}', which is no label that is known; {meant}"
            yield Problem(rule.path, sentence, rule.line_at(rule.text.find(f'"{mark}"')), rule.id, False)


def _marks(rule: Rule) -> Iterator[str]:
    """What it looks for in `context.taint`."""
    if "taint" not in rule.needs.parts:
        return
    (parsed,) = msgspec.json.decode(cedar.policies_to_json_str(rule.text))["staticPolicies"].values()
    waiting: list[Any] = [parsed["conditions"]]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            for op, operand in node.items():
                if op in _CONTAINS and operand["left"] == _TAINT:
                    right = operand["right"]
                    yield from (part["Value"] for part in right.get("Set", [right]) if _is_text(part))
            waiting += node.values()


def _is_text(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("Value"), str)


def _misspelt_uris(rules: Iterable[Rule]) -> Iterator[Problem]:
    """What rules compare a resource's URI with, where no URI that they see is like it."""
    for rule in rules:
        named = [name for _, name in rule.action.entities]
        if named and not any(name in _ON_RESOURCES or name.endswith(f"/{RESOURCES_READ}") for name in named):
            continue
        args = rule.needs.parts.get("args", NOTHING)
        for compared in sorted(args.parts.get("uri", NOTHING).compared, key=repr):
            for text, written in _unlike(compared):
                sentence = (
                    f"no resource's URI is like '{text}': rules see URIs in one spelling, scheme and host in small "
                    f"letters; write '{written}'"
                )
                yield Problem(rule.path, sentence, rule.line, rule.id, False)


def _unlike(compared: Comparison) -> Iterator[tuple[str, str]]:
    """(what is written, how to write it)."""
    texts = [value for value in compared.among if isinstance(value, str)]
    found = [(text, unlike_any(text, is_whole=True)) for text in texts]
    head, *others = compared.like or ("",)
    found += [(head, unlike_any(head, is_whole=False)), *((text, inside(text)) for text in others)]
    yield from ((text, written) for text, written in found if written)


def _rivals(rules: Iterable[Rule]) -> Iterator[Problem]:
    """Of two groups that would both have to approve one call, one is asked."""
    asking = [rule for rule in rules if rule.approver not in ("", ANYBODY_ELSE) and not rule.shadow]
    asking.sort(key=lambda rule: rule.id)
    for number, (one, other) in enumerate(combinations(asking, 2)):
        if number >= PAIRS_MAX:
            return
        if one.approver != other.approver and _may_meet(one, other):
            sentence = (
                f"'{one.id}' and '{other.id}' may ask about the same call, and name different groups; "
                f"'{one.approver}' approves then, for its rule comes first by id"
            )
            yield Problem(other.path, sentence, other.line, other.id, False)


def _may_meet(one: Rule, other: Rule) -> bool:
    """On the wide side."""
    return _meet(one.action, other.action) and _meet(one.resource, other.resource)


def _meet(one: Scope, other: Scope) -> bool:
    exact = all(scope.entities and (scope.exact or _are_tools(scope)) for scope in (one, other))
    return not exact or not set(one.entities).isdisjoint(other.entities)


def _are_tools(scope: Scope) -> bool:
    return all(kind == "Action" and "/" in name for kind, name in scope.entities)
