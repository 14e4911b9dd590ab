"""The engine: one bundle, ready to decide. Immutable; swapped whole when the bundle or the catalogue changes.

A decision evaluates only the rules whose scope can match (a slice, parsed once) over only the argument attributes
and circumstances that they mention; tests/properties/test_policy_engine.py shows that this changes no verdict. An
error in a rule denies. Rules in shadow mode rule nothing: `unshadowed` decides as if they did. Counterparts:
`preparing.py` finds out what holds for every call, `arguments.py` and `circumstances.py` encode, `verdict.py` words the
answers.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from tidegate.errors import BundleFault
from tidegate.limits import POLICY_ROUTES_MAX
from tidegate.policy.argument_types import PROMPTS, PROMPTS_GET, Document
from tidegate.policy.arguments import NotRepresentable, encode_arguments
from tidegate.policy.bundle import ENTITIES, SCHEMA, Bundle
from tidegate.policy.cedar_types import declared_types
from tidegate.policy.circumstances import encode_facts, looked_at
from tidegate.policy.entities import EntityBook, Target, ToolFacts, check_label, open_entities
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate.policy.labels import plain_labels
from tidegate.policy.preparing import (
    Asks,
    Diagnostics,
    PolicyPrincipal,
    Route,
    asks,
    authorize,
    authorize_all,
    hopeless,
    prepare,
)
from tidegate.policy.resource_uris import RESOURCES_READ, ruled
from tidegate.policy.rules import NOTHING, Rule, parse_rules
from tidegate.policy.slices import RuleIndex
from tidegate.policy.verdict import Verdict, unlike_schema, unrepresentable, verdict_of
from tidegate.policy.zones import Zone, zone_of

__all__ = ["Engine", "PolicyPrincipal", "ToolFacts", "Verdict"]

VERDICTS_PER_ROUTE_MAX = 64
ANSWERS_PER_ROUTE_MAX = 32
BATCH_MAX = 64  # requests that Cedar is asked at once
REACHED_MAX = 4_000_000  # entities that all routes hold, past the least number of routes
ROUTES_MIN = 256
_NONE: frozenset[str] = frozenset()
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class _Content:
    """What the engines of one bundle share."""

    digest: str
    rules: tuple[Rule, ...]
    book: EntityBook
    zone: Zone
    declared: Mapping[str, Document]  # by action: what the bundle's own schema says of arguments

    @cached_property
    def shadowing(self) -> bool:
        return any(rule.shadow for rule in self.rules)

    @cached_property
    def looks_around(self) -> bool:
        """Whether any rule looks at circumstances."""
        return any(looked_at(rule.needs) for rule in self.rules)


class Engine:
    """Decides by one bundle. Make it with `Engine.build`."""

    def __init__(self, content: _Content, index: RuleIndex) -> None:
        self.digest = content.digest
        self._content = content
        self._index = index  # of the rules that count
        self._tools: dict[tuple[str, str], ToolFacts] = {}
        self._servers: dict[str, tuple[str, ...]] = {}
        self._targets: dict[tuple[str, str], tuple[Target, tuple[Rule, ...]]] = {}
        self._routes: OrderedDict[tuple[object, ...], Route] = OrderedDict()
        self._reached = 0  # entities that the routes hold

    @staticmethod
    def build(bundle: Bundle, tools: Iterable[ToolFacts], servers: Mapping[str, Iterable[str]]) -> "Engine":
        """An engine for these tools and servers (name to labels). Raises BundleFault and as `with_tools` does.

        Thousands of rules take half a second: build in a thread, where other threads run between rules.
        """
        rules, problems = parse_rules(bundle.policies)
        if problems:
            raise BundleFault(str(problems[0]), problems=problems)
        book, declared = open_entities(bundle.text(ENTITIES)), declared_types(bundle.text(SCHEMA))
        content = _Content(bundle.digest, tuple(rules), book, zone_of(bundle), declared)
        index = RuleIndex(rule for rule in content.rules if not rule.shadow)
        return Engine(content, index).with_tools(tools, servers)

    def with_tools(self, tools: Iterable[ToolFacts], servers: Mapping[str, Iterable[str]]) -> "Engine":
        """The same rules, shared as parsed, for another catalogue. Raises ConfigFault on a label with a slash."""
        engine = Engine(self._content, self._index)
        engine._servers = {name: plain_labels(labels) for name, labels in servers.items()}
        engine._tools = {(facts.server, facts.tool): facts for facts in tools}
        for label in {label for labels in engine._servers.values() for label in labels}:
            check_label(label)
        for label in {label for facts in engine._tools.values() for label in facts.labels}:
            check_label(label)
        return engine

    def unshadowed(self) -> "Engine":
        """The same rules with those in shadow mode counted, over the same catalogue."""
        return self._counting(lambda rule: not rule.until_shadow)

    def without_asks(self) -> "Engine":
        """The same rules except those that ask, over the same catalogue."""
        counted = {rule.id for rule in self._index.rules}
        return self._counting(lambda rule: rule.id in counted and not rule.ask)

    def _counting(self, counts: Callable[[Rule], bool]) -> "Engine":
        index = RuleIndex((rule for rule in self._content.rules if counts(rule)), shared=self._index)
        engine = Engine(self._content, index)
        engine._tools, engine._servers = self._tools, self._servers
        return engine

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules of the bundle, those in shadow mode too, in order of file and line."""
        return self._content.rules

    @property
    def looks_around(self) -> bool:
        """Whether any rule of the bundle looks at circumstances."""
        return self._content.looks_around

    @property
    def shadowing(self) -> bool:
        """Whether there are rules in shadow mode: `unshadowed` may decide otherwise."""
        return self._content.shadowing and not any(rule.shadow for rule in self._index.rules)

    def parts(self) -> list[list[Any]]:
        """What it is made of, in lists. Python lets no other thread run while it clears a thing and all that it alone
        holds; whoever has no more use for a large engine holds its parts, and lets go of them one by one.
        """
        own: list[list[Any]] = [list(self._routes.values()), list(self._targets.values())]
        return [*own, self._index.slices, list(self.rules), list(self._content.book.entities.values())]

    def standing(self, principal: PolicyPrincipal, server: str, tool: str) -> Verdict | None:
        """The verdict on every call of this tool; None where that depends on arguments or circumstances."""
        return self._route(principal, server, tool).standing

    def visible(self, principal: PolicyPrincipal, server: str, tool: str) -> bool:
        """Whether some call of this tool may be allowed in some circumstances, at least after approval."""
        return self._route(principal, server, tool).hidden is None

    def hidden(self, principal: PolicyPrincipal, server: str, tool: str) -> Verdict | None:
        """Why no call of this tool may be allowed, whatever its arguments; None where it is visible."""
        return self._route(principal, server, tool).hidden

    def needs_facts(self, principal: PolicyPrincipal, server: str, tool: str) -> frozenset[str]:
        """The circumstances that matter for calls of this tool: of "now", "time", "network", "taint", "protocol"."""
        return self._route(principal, server, tool).looked_at if self._content.looks_around else _NONE

    def needs_arguments(self, principal: PolicyPrincipal, server: str, tool: str) -> bool:
        """Whether the verdict on calls of this tool depends on their arguments."""
        route = self._route(principal, server, tool)
        return route.standing is None and (route.args.whole or bool(route.args.parts))

    def may_decide(self, principal: PolicyPrincipal, server: str, tool: str) -> tuple[str, ...]:
        """The rules that may decide calls of this tool; where some ask, those that cannot are not left out."""
        return tuple(sorted(rule.id for rule in self._route(principal, server, tool).slice.rules))

    def asks(self, principal: PolicyPrincipal, server: str, tool: str) -> Asks:
        """Which of the calls that are not denied a person has to approve first."""
        route = self._route(principal, server, tool)
        return asks(principal, self._target(server, tool)[0], route, self._content.book)

    def hopeless(
        self, principal: PolicyPrincipal, server: str, tool: str, arguments: Mapping[str, object]
    ) -> Verdict | None:
        """Why this call is denied whatever its circumstances are; None where some allow it, at least after approval.
        Never raises.
        """
        route = self._route(principal, server, tool)
        if route.hidden is not None:
            return route.hidden
        if not route.circumstances:
            verdict = self.evaluate(principal, server, tool, arguments)
            return verdict if verdict.effect == "deny" else None
        try:
            args = _encode(encode_arguments(_seen(tool, arguments), route.args)).decode()
        except NotRepresentable as fault:
            return unrepresentable(fault, server, tool, [])
        if (unlike := _unlike(route, arguments, server, tool)) is not None:
            return unlike
        return hopeless(principal, self._target(server, tool)[0], route, self._content.book, args)

    def evaluate(
        self,
        principal: PolicyPrincipal,
        server: str,
        tool: str,
        arguments: Mapping[str, object],
        facts: Facts = NO_FACTS,
    ) -> Verdict:
        """The verdict on this call. Never raises: what cannot be evaluated is denied. The last answers are kept: agents
        ask again and again for what rules cannot tell apart.
        """
        route = self._route(principal, server, tool)
        if route.standing is not None:
            return route.standing
        arguments = _seen(tool, arguments)
        if route.circumstances:
            context = self._context(route, arguments, facts, server, tool)
            return _asked(route, context, server, tool) if isinstance(context, str) else context
        try:
            alike = route.alike.of(arguments)
        except NotRepresentable as fault:
            return _not_encoded(fault, route, server, tool)
        if (unlike := _unlike(route, arguments, server, tool)) is not None:
            return unlike
        answers = route.answers
        verdict = answers.get(alike)
        if verdict is None:
            context = self._context(route, arguments, facts, server, tool)
            if isinstance(context, Verdict):
                return context
            if len(answers) >= ANSWERS_PER_ROUTE_MAX:
                answers.clear()
            verdict = answers[alike] = _asked(route, context, server, tool)
        return verdict

    def evaluate_many(
        self, principal: PolicyPrincipal, server: str, tool: str, calls: Sequence[tuple[Mapping[str, object], Facts]]
    ) -> list[Verdict]:
        """`evaluate` of each, in their order, with few questions to Cedar in place of one a call. Keeps no answers."""
        route = self._route(principal, server, tool)
        if route.standing is not None:
            return [route.standing] * len(calls)
        contexts = [self._context(route, _seen(tool, args), facts, server, tool) for args, facts in calls]
        asked = list({context: None for context in contexts if isinstance(context, str)})
        found: dict[str | Verdict, Verdict] = {}
        for start in range(0, len(asked), BATCH_MAX):
            batch = asked[start : start + BATCH_MAX]
            found.update(zip(batch, _all_asked(route, batch, server, tool), strict=True))
        return [found[context] if isinstance(context, str) else context for context in contexts]

    def _context(
        self, route: Route, arguments: Mapping[str, object], facts: Facts, server: str, tool: str
    ) -> str | Verdict:
        """Cedar's, as JSON; the denial where there is none."""
        try:
            args = _encode(encode_arguments(arguments, route.args)).decode()
        except NotRepresentable as fault:
            return _not_encoded(fault, route, server, tool)
        if (unlike := _unlike(route, arguments, server, tool)) is not None:
            return unlike
        around = encode_facts(route.circumstances, facts, self._content.zone) if route.circumstances else ""
        return f"{route.context_opening}{args}{around}}}"

    def _route(self, principal: PolicyPrincipal, server: str, tool: str) -> Route:
        key = (principal.user, principal.agent, principal.groups, server, tool, getattr(principal, "kind", "user"))
        route = self._routes.get(key)
        if route is not None:
            return route
        target, candidates = self._target(server, tool)
        route = prepare(principal, target, candidates, self._index, self._content.book)
        if route.standing is None and route.args != NOTHING:
            route = replace(route, declared=self._declared(server, tool))
        self._routes[key] = route
        self._reached += route.reach.size
        while len(self._routes) > POLICY_ROUTES_MAX or (self._reached > REACHED_MAX and len(self._routes) > ROUTES_MIN):
            self._reached -= self._routes.popitem(last=False)[1].reach.size
        return route

    def _declared(self, server: str, tool: str) -> tuple[Document, ...]:
        """The types of arguments, as the tool declares them and as the bundle does: both count."""
        facts = self._tools.get((server, tool))
        own = PROMPTS if tool == PROMPTS_GET else facts.takes if facts is not None else None
        return tuple(filter(None, (own, self._content.declared.get(f"{server}/{tool}"))))

    def _target(self, server: str, tool: str) -> tuple[Target, tuple[Rule, ...]]:
        known = self._targets.get((server, tool))
        if known is not None:
            return known
        facts = self._tools.get((server, tool)) or ToolFacts(server, tool)
        target = self._content.book.target(facts, self._servers.get(server, ()))
        candidates = self._index.candidates(target)
        if (server, tool) in self._tools:  # only the catalogue bounds this cache
            self._targets[server, tool] = (target, candidates)
        return target, candidates


def _seen(tool: str, arguments: Mapping[str, object]) -> Mapping[str, object]:
    """The arguments as rules see them: a resource has one spelling."""
    uri = arguments.get("uri") if tool == RESOURCES_READ else None
    return {**arguments, "uri": ruled(uri)} if isinstance(uri, str) else arguments


def _unlike(route: Route, arguments: Mapping[str, object], server: str, tool: str) -> Verdict | None:
    """The denial of what a rule would be told as another value than its server may take it for."""
    odd = None if route.expected is None else route.expected.unlike(arguments)
    return None if odd is None else unlike_schema(odd, server, tool, _looking_at(route, odd.path))


def _asked(route: Route, context: str, server: str, tool: str) -> Verdict:
    """Cedar's answer, in words."""
    request = {**route.request, "context": context}
    return _told(authorize(request, route.slice.parsed, route.reach.entities), request, route, server, tool)


def _all_asked(route: Route, contexts: Sequence[str], server: str, tool: str) -> list[Verdict]:
    requests = [{**route.request, "context": context} for context in contexts]
    found = authorize_all(requests, route.slice.parsed, route.reach.entities)
    return [_told(*one, route, server, tool) for one in zip(found, requests, strict=True)]


def _told(found: Diagnostics, request: dict[str, Any], route: Route, server: str, tool: str) -> Verdict:
    key = tuple(found.reason)
    verdict = None if found.errors else route.verdicts.get(key)
    if verdict is None:
        verdict = verdict_of(found.reason, found.errors, route.slice.by_name, server, tool)
        if not found.errors and len(route.verdicts) < VERDICTS_PER_ROUTE_MAX:
            route.verdicts[key] = verdict
    return verdict if verdict.effect != "ask" else _unless_denied(verdict, request, route, server, tool)


def _unless_denied(ask: Verdict, request: dict[str, Any], route: Route, server: str, tool: str) -> Verdict:
    """Approval cannot grant what no rule permits: without the asking rules, the call must be allowed."""
    rest = route.slice.without_asks
    found = authorize(request, rest.parsed, route.reach.entities)
    verdict = verdict_of(found.reason, found.errors, rest.by_name, server, tool)
    return ask if verdict.effect == "allow" else verdict


def _not_encoded(fault: NotRepresentable, route: Route, server: str, tool: str) -> Verdict:
    return unrepresentable(fault, server, tool, _looking_at(route, fault.path))


def _looking_at(route: Route, path: str) -> list[str]:
    return [rule.id for rule in route.slice.rules if _looks_at(rule, path)]


def _looks_at(rule: Rule, path: str) -> bool:
    args = rule.needs.parts.get("args", NOTHING)
    return (
        rule.needs.whole
        or args.whole
        or any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in args.parts)
    )
