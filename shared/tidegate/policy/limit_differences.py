"""What changes between the limits of two bundles. Pure. Counterpart: `differences.py`, which compares decisions."""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from tidegate.policy.budgets import AWAY, LIMITS, BudgetLimit, LimitsFile, Measure, read_limits
from tidegate.policy.bundle import Bundle

Direction = Literal["more-permissive", "stricter", "other"]
_LAX: Final = {"refuse": 0, "local": 1, "allow": 2}


class LimitChange(msgspec.Struct, frozen=True):
    """One thing about one limit; `limit` "" where it is about prices or records."""

    direction: Direction
    limit: str
    sentence: str


def limit_changes(old: Bundle, new: Bundle) -> tuple[LimitChange, ...]:
    """In the order of the new file, then what is gone. What has problems counts as not there."""
    before, after = _read(old), _read(new)
    earlier = {limit.id: limit for limit in before.limits}
    found: list[LimitChange] = []
    for limit in after.limits:
        was = earlier.pop(limit.id, None)
        found += [LimitChange("stricter", limit.id, f"new: {_words(limit)}")] if was is None else _between(was, limit)
    found += [LimitChange("more-permissive", limit.id, f"gone: {_words(limit)}") for limit in earlier.values()]
    if _unplaced(before.prices) != _unplaced(after.prices):
        found.append(LimitChange("other", "", "calls have other prices"))
    if _unplaced(before.records) != _unplaced(after.records):
        found.append(LimitChange("other", "", "records are counted in other places"))
    return tuple(found)


def _read(bundle: Bundle) -> LimitsFile:
    return read_limits(bundle.text(LIMITS)) if LIMITS in bundle.files else LimitsFile()


def _between(was: BudgetLimit, now: BudgetLimit) -> Iterator[LimitChange]:
    old, new = ({measure.of: measure for measure in limit.measures} for limit in (was, now))
    for name, measure in new.items():
        before = old.pop(name, None)
        if before is None:
            yield LimitChange("stricter", now.id, f"now bounds {_amount(measure)}")
        elif before != measure:
            yield LimitChange(_compared(before, measure), now.id, f"{_amount(before)} → {_amount(measure)}")
    for measure in old.values():
        yield LimitChange("more-permissive", now.id, f"no longer bounds {_amount(measure)}")
    if was.away != now.away:
        assert set(_LAX) == set(AWAY)
        laxer = _LAX[now.away] > _LAX[was.away]
        sentence = f"while Redis is away: {was.away} → {now.away}"
        yield LimitChange("more-permissive" if laxer else "stricter", now.id, sentence)
    if was.per != now.per:
        yield LimitChange("other", now.id, f"counts per {', '.join(was.per)} → per {', '.join(now.per)}")
    if _scope(was) != _scope(now):
        yield LimitChange("other", now.id, "is about other people, agents or tools")


def _compared(before: Measure, after: Measure) -> Direction:
    rates = [measure.refill / measure.every_ms if measure.every_ms else 0.0 for measure in (before, after)]
    more = (after.most >= before.most, rates[1] >= rates[0])
    less = (after.most <= before.most, rates[1] <= rates[0])
    return "more-permissive" if all(more) else "stricter" if all(less) else "other"


def _scope(limit: BudgetLimit) -> tuple[object, ...]:
    uses = tuple((use.server, use.tools, use.labels) for use in limit.uses)
    return limit.teams, limit.users, limit.services, limit.agents, uses


def _words(limit: BudgetLimit) -> str:
    return f"{', '.join(map(_amount, limit.measures))} per {', '.join(limit.per)}"


def _amount(measure: Measure) -> str:
    if measure.of == "calls":
        burst = f" (burst {measure.most})" if measure.most != measure.refill else ""
        return f"{measure.refill} calls in {measure.every_ms // 1000} s{burst}"
    if measure.of == "concurrent":
        return f"{measure.most} calls at a time"
    most = f"{measure.most / 1e6:.4f}" if measure.of == "daily-cost" else f"{measure.most}"
    return f"{most} {measure.of.removeprefix('daily-')} a day"


def _unplaced(entries: tuple[object, ...]) -> list[str]:
    """Without the lines that they stand in."""
    return [_without_lines(msgspec.to_builtins(entry)) for entry in entries]


def _without_lines(value: object) -> str:
    if isinstance(value, dict):
        return repr({key: _without_lines(inner) for key, inner in value.items() if key != "line"})
    return repr([_without_lines(one) for one in value]) if isinstance(value, list | tuple) else repr(value)
