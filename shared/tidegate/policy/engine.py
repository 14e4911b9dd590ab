"""The engine: one bundle, ready to decide. Immutable; swapped whole when the bundle or the catalogue changes.

A decision evaluates only the rules whose scope can match (a slice, parsed once) over only the argument attributes
that they mention; tests/properties/test_policy_engine.py shows that this changes no verdict. An error in a rule
denies. Counterparts: `rules.py` and `entities.py` prepare, `arguments.py` encodes, `verdict.py` words the answers.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from cedarpy import _internal as cedar

from tidegate.errors import BundleFault
from tidegate.limits import POLICY_ROUTES_MAX
from tidegate.policy.arguments import NotRepresentable, encode_arguments
from tidegate.policy.bundle import ENTITIES, Bundle
from tidegate.policy.entities import EntityBook, Reach, Target, ToolFacts, check_label, open_entities
from tidegate.policy.rules import NOTHING, Need, Rule, Uid, parse_rules
from tidegate.policy.slices import RuleIndex, Slice
from tidegate.policy.verdict import Verdict, unrepresentable, verdict_of

__all__ = ["Engine", "PolicyPrincipal", "ToolFacts", "Verdict"]

_UNKNOWN_ARGS = '{"__extn":{"fn":"unknown","arg":"args"}}'
VERDICTS_PER_ROUTE_MAX = 64
REACHED_MAX = 4_000_000  # entities that all routes hold, past the least number of routes
ROUTES_MIN = 256
_NOTHING_REACHED = Reach(cedar.Entities.from_json_str("[]"), 0)
_encode = msgspec.json.Encoder().encode


class PolicyPrincipal(Protocol):
    """Who asks: the Cedar id of the user, the agent that acts, and the groups of the token."""

    @property
    def user(self) -> str: ...
    @property
    def agent(self) -> str: ...
    @property
    def groups(self) -> tuple[str, ...]: ...


class _Diagnostics(msgspec.Struct, frozen=True):
    reason: list[str] = []
    errors: list[str] = []
    nontrivial_residuals: list[str] = []
    may_be_determining: list[str] = []


class _Response(msgspec.Struct, frozen=True):
    diagnostics: _Diagnostics
    decision: str | None = None


_decode = msgspec.json.Decoder(_Response).decode


@dataclass(frozen=True)
class _Route:
    """Everything about (principal, agent, tool) that holds for every call: `standing` alone where it decides."""

    standing: Verdict | None
    hidden: Verdict | None  # None: some call of the tool may be allowed
    slice: Slice
    reach: Reach
    request: dict[str, Any] = field(default_factory=dict)
    args: Need = NOTHING
    context_opening: str = ""
    verdicts: dict[tuple[str, ...], Verdict] = field(default_factory=dict)  # by the rules that were satisfied


class Engine:
    """Decides by one bundle. Make it with `Engine.build`."""

    def __init__(self, digest: str, index: RuleIndex, book: EntityBook) -> None:
        self.digest = digest
        self._index = index
        self._book = book
        self._tools: dict[tuple[str, str], ToolFacts] = {}
        self._servers: dict[str, tuple[str, ...]] = {}
        self._targets: dict[tuple[str, str], tuple[Target, tuple[Rule, ...]]] = {}
        self._routes: OrderedDict[tuple[object, ...], _Route] = OrderedDict()
        self._reached = 0  # entities that the routes hold

    @staticmethod
    def build(bundle: Bundle, tools: Iterable[ToolFacts], servers: Mapping[str, Iterable[str]]) -> "Engine":
        """An engine for these tools and servers (name to labels). Raises BundleFault and as `with_tools` does.

        Thousands of rules take half a second: build in a thread, where other threads run between rules.
        """
        rules, problems = parse_rules(bundle.policies)
        if problems:
            raise BundleFault(str(problems[0]), problems=problems)
        return Engine(bundle.digest, RuleIndex(rules), open_entities(bundle.text(ENTITIES))).with_tools(tools, servers)

    def with_tools(self, tools: Iterable[ToolFacts], servers: Mapping[str, Iterable[str]]) -> "Engine":
        """The same rules, shared as parsed, for another catalogue. Raises ConfigFault on a label with a slash."""
        engine = Engine(self.digest, self._index, self._book)
        engine._servers = {name: tuple(labels) for name, labels in servers.items()}
        engine._tools = {(facts.server, facts.tool): facts for facts in tools}
        for label in {label for labels in engine._servers.values() for label in labels}:
            check_label(label)
        for label in {label for facts in engine._tools.values() for label in facts.labels}:
            check_label(label)
        return engine

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules of the bundle, in order of file and line."""
        return self._index.rules

    def standing(self, principal: PolicyPrincipal, server: str, tool: str) -> Verdict | None:
        """The verdict on every call of this tool, whatever its arguments; None where that depends on them."""
        return self._route(principal, server, tool).standing

    def visible(self, principal: PolicyPrincipal, server: str, tool: str) -> bool:
        """Whether some call of this tool may be allowed, at least after approval."""
        return self._route(principal, server, tool).hidden is None

    def hidden(self, principal: PolicyPrincipal, server: str, tool: str) -> Verdict | None:
        """Why no call of this tool may be allowed, whatever its arguments; None where it is visible."""
        return self._route(principal, server, tool).hidden

    def evaluate(self, principal: PolicyPrincipal, server: str, tool: str, arguments: Mapping[str, object]) -> Verdict:
        """The verdict on this call. Never raises: what cannot be evaluated is denied."""
        route = self._route(principal, server, tool)
        if route.standing is not None:
            return route.standing
        try:
            args = _encode(encode_arguments(arguments, route.args)).decode()
        except NotRepresentable as fault:
            return unrepresentable(
                fault, server, tool, [rule.id for rule in route.slice.rules if _looks_at(rule, fault.path)]
            )
        request = {**route.request, "context": f"{route.context_opening}{args}}}"}
        found = _authorize(request, route.slice.parsed, route.reach.entities)
        key = tuple(found.reason)
        verdict = None if found.errors else route.verdicts.get(key)
        if verdict is None:
            verdict = verdict_of(found.reason, found.errors, route.slice.by_name, server, tool)
            if not found.errors and len(route.verdicts) < VERDICTS_PER_ROUTE_MAX:
                route.verdicts[key] = verdict
        return verdict if verdict.effect != "ask" else _unless_denied(verdict, request, route, server, tool)

    def _route(self, principal: PolicyPrincipal, server: str, tool: str) -> _Route:
        key = (principal.user, principal.agent, principal.groups, server, tool)
        route = self._routes.get(key)
        if route is not None:
            return route
        route = self._prepare(principal, server, tool)
        self._routes[key] = route
        self._reached += route.reach.size
        while len(self._routes) > POLICY_ROUTES_MAX or (self._reached > REACHED_MAX and len(self._routes) > ROUTES_MIN):
            self._reached -= self._routes.popitem(last=False)[1].reach.size
        return route

    def _prepare(self, principal: PolicyPrincipal, server: str, tool: str) -> _Route:
        target, candidates = self._target(server, tool)
        user: Uid = ("User", principal.user)
        groups: list[Uid] = [("Group", name) for name in principal.groups]
        ancestors = self._book.ancestors([*groups, *self._book.parents(user)])
        chosen = self._index.slice(rule for rule in candidates if rule.principal.admits(user, ancestors))
        if not chosen.rules:
            return _denying(verdict_of([], [], {}, server, tool), chosen)
        try:
            reach = target.with_user(user, groups, chosen.mentions)
        except (
            ValueError
        ) as fault:  # a lone surrogate in an id, a cycle of groups: nothing can be decided for this principal
            return _denying(verdict_of([], [str(fault)], chosen.by_name, server, tool), chosen)
        standing, hidden, open_rules = _preview(principal, target, chosen, reach.entities, server, tool)
        if open_rules is not None and len(open_rules) < len(chosen.rules):
            chosen = self._index.slice(rule for name, rule in chosen.by_name.items() if name in open_rules)
        request = {
            "principal": _entity_uid(user),
            "action": _entity_uid(target.action),
            "resource": _entity_uid(target.server),
        }
        opening = _context_opening(principal.agent, chosen.needs)
        args = chosen.needs.parts.get("args", NOTHING)
        if chosen.needs.whole:
            args = Need(True, args.decimal, args.parts)
        return _Route(standing, hidden, chosen, reach, request, args, opening)

    def _target(self, server: str, tool: str) -> tuple[Target, tuple[Rule, ...]]:
        known = self._targets.get((server, tool))
        if known is not None:
            return known
        facts = self._tools.get((server, tool)) or ToolFacts(server, tool)
        target = self._book.target(facts, self._servers.get(server, ()))
        candidates = self._index.candidates(target)
        if (server, tool) in self._tools:  # only the catalogue bounds this cache
            self._targets[server, tool] = (target, candidates)
        return target, candidates


def _denying(verdict: Verdict, rules: Slice) -> _Route:
    return _Route(verdict, verdict, rules, _NOTHING_REACHED)


def _authorize(request: dict[str, Any], rules: cedar.PolicySet, entities: cedar.Entities) -> _Diagnostics:
    try:
        return _decode(cedar.is_authorized_batch([request], rules, entities, None, False)[0]).diagnostics
    except ValueError as fault:
        return _Diagnostics(errors=[str(fault)])


def _unless_denied(ask: Verdict, request: dict[str, Any], route: _Route, server: str, tool: str) -> Verdict:
    """Approval cannot grant what no rule permits: without the asking rules, the call must be allowed."""
    rest = route.slice.without_asks
    found = _authorize(request, rest.parsed, route.reach.entities)
    verdict = verdict_of(found.reason, found.errors, rest.by_name, server, tool)
    return ask if verdict.effect == "allow" else verdict


def _looks_at(rule: Rule, path: str) -> bool:
    args = rule.needs.parts.get("args", NOTHING)
    return (
        rule.needs.whole
        or args.whole
        or any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in args.parts)
    )


def _preview(
    principal: PolicyPrincipal, target: Target, rules: Slice, entities: cedar.Entities, server: str, tool: str
) -> tuple[Verdict | None, Verdict | None, frozenset[str] | None]:
    """With the arguments unknown: the verdict, where no rule is left open; why none can be allowed, where none can; and
    the names of the rules that can still matter (None: all of them), for no argument makes the others true.
    """
    request: dict[str, str | None] = {
        "principal": f'User::"{_escaped(principal.user)}"',
        "action": f'Action::"{_escaped(target.action[1])}"',
        "resource": f'Server::"{_escaped(server)}"',
        "context": f'{{"agent":{{"id":{_encode(principal.agent).decode()}}},"args":{_UNKNOWN_ARGS}}}',
    }
    rest = rules.without_asks if rules.asks else rules
    plain = _authorize_partial(request, rest, entities)
    found = _authorize_partial(request, rules, entities) if rules.asks else plain
    if found is None or plain is None:
        return None, None, None
    granted = verdict_of(plain.reason, plain.errors, rest.by_name, server, tool)
    if plain.nontrivial_residuals:
        possible = [rest.by_name[name].effect for name in (*plain.reason, *plain.nontrivial_residuals)]
        hopeless = granted.reason in ("forbidden-by-rule", "evaluation-error")
        simple = not rules.asks and not plain.errors
        matter = frozenset((*plain.may_be_determining, *plain.nontrivial_residuals)) if simple else None
        return None, granted if hopeless or "permit" not in possible else None, matter
    if found.nontrivial_residuals:
        return None, granted if granted.effect != "allow" else None, None
    verdict = verdict_of(found.reason, found.errors, rules.by_name, server, tool)
    standing = granted if verdict.effect == "ask" and granted.effect != "allow" else verdict
    return standing, standing if standing.effect == "deny" else None, None


def _authorize_partial(request: dict[str, str | None], rules: Slice, entities: cedar.Entities) -> _Diagnostics | None:
    """None where the request has no textual form (an id with characters that Cedar's syntax does not take)."""
    try:
        response = _decode(cedar.is_authorized_partial(request, rules.parsed, entities, None, False))
    except ValueError:
        return None
    if response.decision == "NoDecision":
        return None
    return response.diagnostics


def _context_opening(agent: str, needs: Need) -> str:
    if not needs.whole and "agent" not in needs.parts:
        return '{"args":'
    return f'{{"agent":{{"id":{_encode(agent).decode()}}},"args":'


def _entity_uid(uid: Uid) -> dict[str, str]:
    return {"type": uid[0], "id": uid[1]}


def _escaped(text: str) -> str:
    """A Cedar string literal's inside."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
