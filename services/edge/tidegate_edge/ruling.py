"""decide: what the ruling bundle says. A `Ruling` is swapped whole when a release or the catalogue changes; calls read
it once.

Decisions that hold whatever the arguments and circumstances are, are kept per (principal facts, server, action); all
others are made each time.
"""

import copy
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tidegate.claims import Principal
from tidegate.events import Direction, Role
from tidegate.inspection.scanner import Scanner
from tidegate.policy.budgeting import NO_BUDGETING, Budgeting
from tidegate.policy.engine import Engine, Verdict
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate_edge.catalog import Catalog, Item
from tidegate_edge.cursors import Pages
from tidegate_edge.tallies import Shadow, Tally

STANDING_MAX: Final = 200_000
BY_ARGUMENTS: Final = frozenset({"evaluation-error", "argument-not-representable", "arguments-unlike-schema"})
NOTHING_LOOKED_AT: Final = frozenset[str]()

_encode: Final = msgspec.json.Encoder().encode
_decode_text: Final = msgspec.json.Decoder(str).decode


class Ruling:
    """One bundle over one catalogue."""

    def __init__(
        self,
        engine: Engine,
        scanner: Scanner,
        catalog: Catalog,
        *,
        number: int,
        digest: str,
        role: Role = "ruling",
        shadows: tuple[Shadow, ...] = (),
        tally: Tally | None = None,
        held: Mapping[tuple[str, str], str] = {},
        budgeting: Budgeting = NO_BUDGETING,
    ) -> None:
        self.engine = engine
        self.scanner = scanner
        self.catalog = catalog
        self.number = number
        self.digest = digest
        self.role = role
        self.shadows = shadows  # evaluated beside it
        self.tally = tally or Tally(0)
        self.compared_with: Ruling | None = None  # the release that a guard compares this one with
        self.held = held  # (server, action) → why the tool is held back because of its definition
        self.budgeting = budgeting
        self.looks_around = engine.looks_around
        self._standing: dict[tuple[str, str, str], Verdict | None] = {}
        self._needs: dict[tuple[str, str, str], frozenset[str]] = {}
        self._offers: dict[tuple[str, str, str, str], Verdict | None] = {}
        # Rendered lists, by principal facts, door, kind, era, whether a server is in trouble, and quarantines.
        self.lists: dict[tuple[str, str, str, bool, bool, frozenset[str]], Pages] = {}
        self.servers: dict[tuple[str, str], frozenset[str]] = {}  # those of use to a principal, by its facts and door
        self.looked: set[tuple[str, str]] = set()  # principals' facts and doors that all is known of

    def parts(self) -> list[list[Any]]:
        """See `Engine.parts`."""
        own: list[list[Any]] = [list(self._standing), list(self._needs), list(self._offers), list(self.lists.values())]
        beside = [part for shadow in self.shadows for part in shadow.engine.parts()]
        return [*own, *beside, *self.engine.parts()]

    def standing(self, principal: Principal, item: Item) -> Verdict | None:
        """The decision that holds for any arguments; None where they matter."""
        key = (principal.key, item.server, item.action)
        try:
            return self._standing[key]
        except KeyError:
            verdict = self.engine.standing(principal, item.server, item.action)
            if len(self._standing) >= STANDING_MAX:
                self._standing.clear()
            self._standing[key] = verdict
            return verdict

    def needs(self, principal: Principal, item: Item) -> frozenset[str]:
        """The circumstances that rules look at for this target: of "now", "time", "network", "taint", "protocol"."""
        if not self.looks_around:
            return NOTHING_LOOKED_AT
        key = (principal.key, item.server, item.action)
        try:
            return self._needs[key]
        except KeyError:
            needs = self.engine.needs_facts(principal, item.server, item.action)
            if len(self._needs) >= STANDING_MAX:
                self._needs.clear()
            self._needs[key] = needs
            return needs

    def decide(self, principal: Principal, item: Item, arguments: dict[str, Any], facts: Facts = NO_FACTS) -> Verdict:
        """allow, deny or ask. Total: an error in evaluation is a denial that says so. `facts`: what `needs` names."""
        return self.standing(principal, item) or self.engine.evaluate(
            principal, item.server, item.action, arguments, facts
        )

    def hopeless(self, principal: Principal, item: Item, arguments: dict[str, Any]) -> Verdict | None:
        """Why this call is denied whatever its circumstances are; None where some allow it."""
        return self.engine.hopeless(principal, item.server, item.action, arguments)

    def hopeless_offer(self, principal: Principal, item: Item) -> Verdict | None:
        """The same for a prompt or resource by its name or URI, kept: lists ask for many."""
        key = (principal.key, item.server, item.action, item.name)
        try:
            return self._offers[key]
        except KeyError:
            named = {"name" if item.kind == "prompt" else "uri": item.name}
            verdict = self.hopeless(principal, item, named)
            if len(self._offers) >= STANDING_MAX:
                self._offers.clear()
            self._offers[key] = verdict
            return verdict

    def is_visible(self, principal: Principal, item: Item) -> bool:
        """Listed, and by that callable, argument conditions aside."""
        if self.held and (item.server, item.action) in self.held:
            return False
        return self.engine.visible(principal, item.server, item.action)

    def takes_away(self, principal: Principal, item: Item) -> bool:
        """Of what is not visible here: whether the release that this one is compared with shows it."""
        return self.compared_with is not None and self.compared_with.is_visible(principal, item)

    def says_nothing_of_it(
        self, principal: Principal, item: Item, arguments: dict[str, Any], facts: Facts, verdict: Verdict
    ) -> bool:
        """Whether these arguments are refused for what they are, and would be by the release that this one is compared
        with, too: then the caller has brought it about, and neither is better.
        """
        other = self.compared_with
        if other is None or verdict.reason not in BY_ARGUMENTS:
            return False
        if not other.needs(principal, item) <= self.needs(principal, item):  # it would lack what was not looked up
            return False
        return other.decide(principal, item, arguments, facts).effect == "deny"

    def holding(self, held: Mapping[tuple[str, str], str]) -> "Ruling":
        """The same, with other tools held back. Decisions that are kept stay, lists are made anew."""
        other = copy.copy(self)
        other.held, other.lists, other.servers = held, {}, {}
        return other

    def told(self, text: str, direction: Direction) -> str:
        """A text that is shown or kept outside arguments and results (a name, a server's complaint): what the
        inspection finds in it is masked.
        """
        recorded = self.scanner.scan(_encode(text), direction).recorded
        return text if recorded is None else _decode_text(recorded)
