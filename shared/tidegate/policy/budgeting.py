"""Which limits a call meets, in which counters, and what it costs. Pure; made of a bundle, kept with its ruling.

Counterparts: `budgets.py` reads limits.yaml, `tidegate.sessions.budgets` says what a counter is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Protocol

import msgspec

from tidegate.errors import BundleFault, Problem
from tidegate.policy.budgets import LIMITS, BudgetLimit, Counted, LimitsFile, Measure, Measured, Price, read_limits
from tidegate.policy.bundle import ENTITIES, Bundle
from tidegate.policy.grants import ANY, Use
from tidegate.policy.grants_schema import declared_actions, unknown_in, unknown_tool
from tidegate.policy.zones import zone_of
from tidegate.sessions.budgets import Counter, Kind, counter_name

PLANS_MAX: Final = 200_000
MB: Final = 1_000_000
_OF_ANSWERS: Final[frozenset[Measured]] = frozenset({"daily-bytes", "daily-records", "daily-cost"})
_KINDS: Final[Mapping[Measured, Kind]] = {"calls": "bucket", "concurrent": "places", "daily-records": "distinct"}


class Caller(Protocol):
    """What limits look at of a principal. `key`: equal keys, equal answers."""

    @property
    def tenant(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def subject_id(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def agent(self) -> str: ...
    @property
    def groups(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Meter:
    """One measure of one limit, for one combination of what it is kept per."""

    limit: BudgetLimit
    measure: Measure
    counter: Counter
    amount: int  # that a call takes before it is forwarded; 0: looks whether something is left, and is charged after


@dataclass(frozen=True)
class Plan:
    """What calls of one target by one principal meet. Falsy: nothing."""

    meters: tuple[Meter, ...] = ()
    per_call: int = 0  # millionths
    per_mb: int = 0
    counted: Counted | None = None

    def __bool__(self) -> bool:
        return bool(self.meters or self.per_call or self.per_mb or self.counted)

    @cached_property
    def of_task(self) -> "Plan":
        """What a question about a task meets that such a call has begun: what it moves counts, the call is counted."""
        meters = tuple(replace(meter, amount=0) for meter in self.meters if meter.measure.of in _OF_ANSWERS)
        return Plan(meters, 0, self.per_mb, self.counted)

    def cost(self, size: int) -> int:
        """Millionths, of a call that moved so many bytes."""
        return self.per_call + -(-self.per_mb * size // MB)


NO_PLAN: Final = Plan()


@dataclass
class Budgeting:
    """The limits of one bundle."""

    limits: tuple[BudgetLimit, ...] = ()
    prices: tuple[Price, ...] = ()
    records: Mapping[tuple[str, str], Counted] = field(default_factory=dict)
    zone: str = "UTC"
    parents: Mapping[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict)
    _plans: dict[tuple[str, str, str, str], Plan] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(bundle: Bundle) -> "Budgeting":
        """Raises BundleFault where limits.yaml has problems."""
        if LIMITS not in bundle.files:
            return Budgeting()
        read = read_limits(bundle.text(LIMITS))
        if read.problems:
            raise BundleFault(str(read.problems[0]), problems=list(read.problems))
        teams = any(limit.teams for limit in read.limits)
        return Budgeting(
            read.limits,
            read.prices,
            {(one.server, one.tool): one for one in read.records},
            str(zone_of(bundle)),
            _parents(bundle.text(ENTITIES)) if teams else {},
        )

    def plan(self, who: Caller, server: str, action: str, labels: Iterable[str]) -> Plan:
        """For one target of one principal; kept, for it is the same each time."""
        if not self.limits and not self.prices and not self.records:
            return NO_PLAN
        key = (who.tenant, who.key, server, action)
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            found = self._plans[key] = self._made(who, server, action, frozenset(labels))
        return found

    def _made(self, who: Caller, server: str, action: str, labels: frozenset[str]) -> Plan:
        price = next((one for one in self.prices if _covers(one.uses, server, action, labels)), None)
        per_call = price.per_call if price else 0
        groups = self._groups(who)
        counted = self.records.get((server, action))
        nothing = {*(() if price else ("daily-cost",)), *(() if counted else ("daily-records",))}
        met = [one for one in self.limits if _is_about(one, who, groups) and _covers(one.uses, server, action, labels)]
        meters = tuple(
            Meter(limit, measure, self._counter(limit, measure, who, server, action), _amount(measure, per_call))
            for limit in met
            for measure in limit.measures
            if measure.of not in nothing  # what costs nothing, or holds no records, uses none of a budget
        )
        return Plan(meters, per_call, price.per_mb if price else 0, counted)

    def _groups(self, who: Caller) -> frozenset[str]:
        """The principal's own, and those that the bundle puts it or them in."""
        kind = "ServiceAccount" if getattr(who, "kind", "user") == "service" else "User"
        waiting = [(kind, who.user), *(("Group", name) for name in who.groups)]
        seen: set[tuple[str, str]] = set()
        while waiting:
            uid = waiting.pop()
            if uid not in seen:
                seen.add(uid)
                waiting += self.parents.get(uid, ())
        return frozenset(name for kind, name in seen if kind == "Group")

    def _counter(self, limit: BudgetLimit, measure: Measure, who: Caller, server: str, action: str) -> Counter:
        values = {
            "tenant": who.tenant,
            "user": who.subject_id,
            "agent": who.agent,
            "server": server,
            "tool": f"{server}/{action}",
        }
        name = counter_name(limit.id, measure.of, {one: values[one] for one in limit.per})
        kind = _KINDS.get(measure.of, "day")
        return Counter(who.tenant, name, kind, measure.most, measure.refill, measure.every_ms, self.zone)


NO_BUDGETING: Final = Budgeting()


def _amount(measure: Measure, per_call: int) -> int:
    if measure.of == "daily-cost":
        return per_call
    return 0 if measure.of in ("daily-bytes", "daily-records") else 1


def _is_about(limit: BudgetLimit, who: Caller, groups: frozenset[str]) -> bool:
    if limit.agents and who.agent not in limit.agents:
        return False
    if not (limit.teams or limit.users or limit.services):
        return True
    named = limit.services if getattr(who, "kind", "user") == "service" else limit.users
    return who.user in named or not groups.isdisjoint(limit.teams)


def _covers(uses: tuple[Use, ...], server: str, action: str, labels: frozenset[str]) -> bool:
    return not uses or any(
        use.server in (ANY, server)
        and (not use.tools or action in use.tools)
        and (not use.labels or not labels.isdisjoint(use.labels))
        for use in uses
    )


def _parents(text: str) -> dict[tuple[str, str], tuple[tuple[str, str], ...]]:
    """Who is in which group; read here, where Cedar's own check of the entities is not needed."""
    found: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    for entity in msgspec.json.decode(text or "[]"):
        parents = tuple(_uid(parent) for parent in entity.get("parents", ()))
        if parents:
            found[_uid(entity["uid"])] = parents
    return found


def _uid(given: Mapping[str, Any]) -> tuple[str, str]:
    inner = given.get("__entity", given)
    return str(inner["type"]), str(inner["id"])


def check_limits(bundle: Bundle) -> list[Problem]:
    """What is wrong in a bundle's limits.yaml, by itself and against its schema. Never raises."""
    if LIMITS not in bundle.files:
        return []
    read = read_limits(bundle.text(LIMITS))
    schema = bundle.text("schema.cedarschema")
    return [*read.problems, *(_unknown(read, schema) if schema else [])]


def _unknown(read: LimitsFile, schema: str) -> list[Problem]:
    actions = declared_actions(schema)
    uses = [use for uses in (*(one.uses for one in read.limits), *(one.uses for one in read.prices)) for use in uses]
    problems = [Problem(LIMITS, sentence, use.line) for use in uses for sentence in unknown_in(use, actions)]
    for one in read.records:
        if sentence := unknown_tool(one.server, one.tool, actions):
            problems.append(Problem(LIMITS, sentence, one.line))
    return problems
