"""Which rules can matter: by the target's action and resource, then by the principal; those, parsed as a set.

Counterpart: `engine.py`. Choosing errs on the wide side only: a rule that can match is never left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cedarpy import _internal as cedar

from tidegate.limits import POLICY_ROUTES_MAX
from tidegate.policy.entities import Target
from tidegate.policy.rules import NOTHING, Need, Rule, Uid


@dataclass(frozen=True)
class Slice:
    """Some rules, parsed together; Cedar names them by their place (`policy0`, …), `by_name` tells which is which."""

    rules: tuple[Rule, ...]

    @cached_property
    def parsed(self) -> cedar.PolicySet:
        return cedar.PolicySet.from_str("\n".join(rule.text for rule in self.rules))

    @cached_property
    def by_name(self) -> Mapping[str, Rule]:
        return {f"policy{number}": rule for number, rule in enumerate(self.rules)}

    @cached_property
    def needs(self) -> Need:
        need = NOTHING
        for rule in self.rules:
            need |= rule.needs
        return need

    @cached_property
    def mentions(self) -> frozenset[Uid]:
        return frozenset().union(*(rule.mentions for rule in self.rules))

    @cached_property
    def asks(self) -> bool:
        """Whether some rule may ask for approval."""
        return any(rule.ask for rule in self.rules)

    @cached_property
    def without_asks(self) -> "Slice":
        return Slice(tuple(rule for rule in self.rules if not rule.ask))


class RuleIndex:
    """All rules of a bundle, by the action that they name. Slices are kept: many principals and tools share one."""

    def __init__(self, rules: Iterable[Rule], shared: "RuleIndex | None" = None) -> None:
        """`shared`: an index of rules of the same bundle, whose slices are shared."""
        self.rules = tuple(rules)
        self._by_action: dict[Uid, list[int]] = {}
        self._any_action: list[int] = []
        self._slices: dict[tuple[str, ...], Slice] = {} if shared is None else shared._slices
        for number, rule in enumerate(self.rules):
            if not rule.action.entities:
                self._any_action.append(number)
            for uid in rule.action.entities:
                self._by_action.setdefault(uid, []).append(number)

    def candidates(self, target: Target) -> tuple[Rule, ...]:
        """The rules that can match some principal's call of this tool, in the order of the bundle."""
        numbers = set(self._any_action)
        for uid in (target.action, *target.action_ancestors):
            numbers.update(self._by_action.get(uid, ()))
        found = (self.rules[number] for number in sorted(numbers))
        return tuple(
            rule
            for rule in found
            if rule.action.admits(target.action, target.action_ancestors)
            and rule.resource.admits(target.server, target.server_ancestors)
        )

    @property
    def slices(self) -> list[Slice]:
        """All that are kept now."""
        return list(self._slices.values())

    def slice(self, rules: Iterable[Rule]) -> Slice:
        """These rules as a set, parsed at first use."""
        chosen = tuple(rules)
        key = tuple(rule.id for rule in chosen)
        if key not in self._slices:
            if len(self._slices) >= POLICY_ROUTES_MAX:
                self._slices.clear()
            self._slices[key] = Slice(chosen)
        return self._slices[key]
