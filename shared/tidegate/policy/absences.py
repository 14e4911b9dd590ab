"""Of which circumstances a rule asks whether they are known, and is the more open where they are not. Pure.

`forbid … when { context has network && … }` forbids nothing to a caller of whom no address is known, and
`permit … unless { context has network && … }` permits them what it is about. Counterparts:
`circumstances.py` says what may be absent, `rule_hints.py` what to write instead. Arguments are left alone: a caller
chooses whether to send them, and a forbid about one that is not sent is often about nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from cedarpy import _internal as cedar

from tidegate.policy.circumstances import asked_after
from tidegate.policy.moments import nodes_of
from tidegate.policy.rules import Rule

_DEPTH_MAX = 400  # operators within operators that are looked into; what lies deeper may be anything


def passed_without(rule: Rule) -> tuple[str, ...]:
    """Circumstances without which a forbid certainly does not hold, and that it asks after."""
    names = asked_after(rule.needs) if rule.effect == "forbid" else ()
    conditions = _conditions(rule) if names else []
    return tuple(name for name in names if _holds(conditions, name) is False)


def permitted_without(rule: Rule) -> tuple[str, ...]:
    """Circumstances that a permit has exceptions by, where it may hold without them: then the exceptions do not.

    Whoever writes `!(context has network) || …` has said so, and is not meant.
    """
    names = asked_after(rule.needs) if rule.effect == "permit" else ()
    conditions = _conditions(rule) if names else []
    excepted = {name for one in conditions for name in _exceptions(one["body"], one["kind"] == "unless", _DEPTH_MAX)}
    return tuple(name for name in names if name in excepted and _holds(conditions, name) is not False)


def _conditions(rule: Rule) -> list[dict[str, Any]]:
    (parsed,) = msgspec.json.decode(cedar.policies_to_json_str(rule.text))["staticPolicies"].values()
    return list(parsed["conditions"])


def _exceptions(node: Any, negated: bool, depth: int) -> Iterator[str]:
    """What a conjunction that must not hold asks after, and then looks at."""
    if depth == 0:
        return
    match node:
        case {"!": {"arg": arg}}:
            yield from _exceptions(arg, not negated, depth - 1)
        case {"&&": {"left": left, "right": right}}:
            if negated:
                yield from _asked_then_looked_at(left, right)
            yield from _exceptions(left, negated, depth - 1)
            yield from _exceptions(right, negated, depth - 1)
        case {"||": {"left": left, "right": right}} | {"if-then-else": {"then": left, "else": right}}:
            yield from _exceptions(left, negated, depth - 1)
            yield from _exceptions(right, negated, depth - 1)


def _asked_then_looked_at(left: Any, right: Any) -> Iterator[str]:
    """`context has network && … context.network …`: Cedar binds to the left, so what is asked may stand deep there."""
    for _ in range(_DEPTH_MAX):
        test, left = (left["&&"]["right"], left["&&"]["left"]) if "&&" in left else (left, None)
        match test:
            case {"has": {"left": {"Var": "context"}, "attr": str(name)}}:
                look = {".": {"left": {"Var": "context"}, "attr": name}}
                if any(each == look for each in nodes_of([right])):
                    yield name
        if left is None:
            return


def _holds(conditions: list[dict[str, Any]], absent: str) -> bool | None:
    held = [_value(one["body"], absent, _DEPTH_MAX) for one in conditions]
    return _all(_not(value) if one["kind"] == "unless" else value for one, value in zip(conditions, held, strict=True))


def _value(node: Any, absent: str, depth: int) -> bool | None:
    """Of an expression where the circumstance is absent; None: it depends on something else, or cannot be told (which
    denies).
    """
    if depth == 0:
        return None
    match node:
        case {"Value": bool(value)}:
            return value
        case {"has": {"left": {"Var": "context"}, "attr": attr}}:
            return False if attr == absent else None
        case {"!": {"arg": arg}}:
            return _not(_value(arg, absent, depth - 1))
        case {"&&": {"left": left, "right": right}}:
            return _all([_value(left, absent, depth - 1), _value(right, absent, depth - 1)])
        case {"||": {"left": left, "right": right}}:
            return _not(_all([_not(_value(left, absent, depth - 1)), _not(_value(right, absent, depth - 1))]))
        case {"if-then-else": {"if": test, "then": then, "else": other}}:
            tested = _value(test, absent, depth - 1)
            one, two = _value(then, absent, depth - 1), _value(other, absent, depth - 1)
            return (one if one == two else None) if tested is None else one if tested else two
        case _:
            return None


def _all(values: Iterable[bool | None]) -> bool | None:
    found = list(values)
    return False if False in found else None if None in found else True


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value
