"""What holds for every call of one tool by one principal, found out once: which rules can matter, what they look at,
and the verdict where it depends on neither arguments nor circumstances. Pure.

Counterpart: `engine.py` keeps what is prepared here and decides by it. Cedar's partial evaluation takes what is not
known as an unknown, which is there; what may be absent, and is asked after, is therefore tried both ways.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from cedarpy import _internal as cedar

from tidegate.policy.argument_types import Document, Expected
from tidegate.policy.arguments import Alike
from tidegate.policy.circumstances import asked_after, looked_at, unknown_facts
from tidegate.policy.entities import EntityBook, Reach, Target
from tidegate.policy.rules import NOTHING, Need, Rule, Uid
from tidegate.policy.slices import RuleIndex, Slice
from tidegate.policy.verdict import Verdict, verdict_of

_UNKNOWN_ARGS = '{"__extn":{"fn":"unknown","arg":"args"}}'
_NOTHING_REACHED = Reach(cedar.Entities.from_json_str("[]"), 0)
_encode = msgspec.json.Encoder().encode

Asks = Literal["none", "some", "all"]


class PolicyPrincipal(Protocol):
    """Who asks: the Cedar id of the user, the agent that acts, and the groups of the token. An attribute `kind` of
    "service" makes it a ServiceAccount; without it, it is a User.
    """

    @property
    def user(self) -> str: ...
    @property
    def agent(self) -> str: ...
    @property
    def groups(self) -> tuple[str, ...]: ...


class Diagnostics(msgspec.Struct, frozen=True):
    """Cedar's, of a whole or partial evaluation. Rules go by their places in the set."""

    reason: list[str] = []
    errors: list[str] = []
    nontrivial_residuals: list[str] = []
    may_be_determining: list[str] = []


class _Response(msgspec.Struct, frozen=True):
    diagnostics: Diagnostics
    decision: str | None = None


_decode = msgspec.json.Decoder(_Response).decode


@dataclass(frozen=True)
class Route:
    """Everything about (principal, agent, tool) that holds for every call: `standing` alone where it decides."""

    standing: Verdict | None
    hidden: Verdict | None  # None: some call of the tool may be allowed
    slice: Slice
    reach: Reach
    request: dict[str, Any] = field(default_factory=dict)
    args: Need = NOTHING
    circumstances: tuple[str, ...] = ()  # those that the rules look at
    context_opening: str = ""
    declared: tuple[Document, ...] = ()  # what says of which types arguments are
    verdicts: dict[tuple[str, ...], Verdict] = field(default_factory=dict)  # by the rules that were satisfied
    answers: dict[tuple[object, ...], Verdict] = field(default_factory=dict)  # by what is `alike`

    @cached_property
    def alike(self) -> Alike:
        return Alike(self.args)

    @cached_property
    def expected(self) -> Expected | None:
        """The types of what the rules look at."""
        return Expected(self.declared, self.args) if self.declared else None

    @property
    def looked_at(self) -> frozenset[str]:
        return frozenset() if self.standing is not None else frozenset(self.circumstances)


class _Preview(NamedTuple):
    """What is known before a call: `matter` holds Cedar's names of the rules that are open (None: all may be)."""

    standing: Verdict | None = None
    hidden: Verdict | None = None
    matter: frozenset[str] | None = None


def prepare(
    principal: PolicyPrincipal, target: Target, candidates: Iterable[Rule], index: RuleIndex, book: EntityBook
) -> Route:
    """`candidates` are the rules that can match the target."""
    server, tool = target.server[1], target.tool
    user: Uid = (principal_type(principal), principal.user)
    groups: list[Uid] = [("Group", name) for name in principal.groups]
    ancestors = book.ancestors([*groups, *book.parents(user)])
    chosen = index.slice(rule for rule in candidates if rule.principal.admits(user, ancestors))
    if not chosen.rules:
        return _denying(verdict_of([], [], {}, server, tool), chosen)
    try:
        reach = target.with_user(user, groups, chosen.mentions)
    except ValueError as fault:  # a lone surrogate in an id, a cycle of groups: nothing can be decided for this one
        return _denying(verdict_of([], [str(fault)], chosen.by_name, server, tool), chosen)
    agent = _agent(principal.agent, book)
    found = _previewed(user, target, chosen, reach.entities, agent)
    if found.matter is not None and len(found.matter) < len(chosen.rules):
        chosen = index.slice(rule for name, rule in chosen.by_name.items() if name in found.matter)
    request = {
        "principal": _entity_uid(user),
        "action": _entity_uid(target.action),
        "resource": _entity_uid(target.server),
    }
    args = chosen.needs.parts.get("args", NOTHING)
    if chosen.needs.whole:
        args = Need(True, args.decimal, args.parts)
    opening = f'{{"agent":{agent},"args":' if chosen.needs.whole or "agent" in chosen.needs.parts else '{"args":'
    return Route(
        found.standing, found.hidden, chosen, reach, request, args, looked_at(chosen.needs), context_opening=opening
    )


def principal_type(principal: PolicyPrincipal) -> str:
    """Cedar's type of it."""
    return "ServiceAccount" if getattr(principal, "kind", "user") == "service" else "User"


def authorize(request: dict[str, Any], rules: cedar.PolicySet, entities: cedar.Entities) -> Diagnostics:
    """A whole evaluation. Never raises: what Cedar does not take is an error, which denies."""
    try:
        return _decode(cedar.is_authorized_batch([request], rules, entities, None, False)[0]).diagnostics
    except ValueError as fault:
        return Diagnostics(errors=[str(fault)])


def authorize_all(
    requests: list[dict[str, Any]], rules: cedar.PolicySet, entities: cedar.Entities
) -> list[Diagnostics]:
    """The same for many at once, each by itself: an error is that of its own request. Never raises."""
    try:
        answers = cedar.is_authorized_batch(requests, rules, entities, None, False)
    except ValueError:  # one that is no request spoils the batch
        return [authorize(request, rules, entities) for request in requests]
    return [_decode(answer).diagnostics for answer in answers]


def _denying(verdict: Verdict, rules: Slice) -> Route:
    return Route(verdict, verdict, rules, _NOTHING_REACHED)


def _agent(name: str, book: EntityBook) -> str:
    """`context.agent`: its id, and the classes that entities.json puts it in, over all their parents."""
    above = book.ancestors(book.parents(("Agent", name)))
    classes = sorted(uid[1] for uid in above if uid[0] == "AgentClass")
    return _encode({"id": name, "classes": classes}).decode()


def hopeless(
    principal: PolicyPrincipal, target: Target, route: Route, book: EntityBook, arguments: str
) -> Verdict | None:
    """Why a call with these arguments (as Cedar's JSON) is denied in any circumstances; None where some allow it."""
    user: Uid = (principal_type(principal), principal.user)
    agent, needs = _agent(principal.agent, book), route.slice.needs
    hidden: Verdict | None = None
    for there in _presences(looked_at(needs), asked_after(needs)):
        request = _partial_request(user, target, agent, arguments, there)
        hidden = _preview(request, route.slice, route.reach.entities, target).hidden
        if hidden is None:
            break
    return hidden


def asks(principal: PolicyPrincipal, target: Target, route: Route, book: EntityBook) -> Asks:
    """Whether rules ask about calls, whatever their arguments and circumstances."""
    asking = Slice(tuple(rule for rule in route.slice.rules if rule.ask))
    if not asking.rules:
        return "none"
    user: Uid = (principal_type(principal), principal.user)
    agent, needs = _agent(principal.agent, book), asking.needs
    found = [
        _authorize_partial(_partial_request(user, target, agent, _UNKNOWN_ARGS, there), asking, route.reach.entities)
        for there in _presences(looked_at(needs), asked_after(needs))
    ]
    if all(one is not None and one.reason for one in found):
        return "all"
    return "some" if any(one is None or one.reason or one.nontrivial_residuals for one in found) else "none"


def _previewed(user: Uid, target: Target, rules: Slice, entities: cedar.Entities, agent: str) -> _Preview:
    """For every way in which circumstances may be there or not: only what they agree about holds."""
    names = looked_at(rules.needs)
    found = [
        _preview(_partial_request(user, target, agent, _UNKNOWN_ARGS, there), rules, entities, target)
        for there in _presences(names, asked_after(rules.needs))
    ]
    first = found[0]
    if len(found) == 1:
        return first
    matters = [one.matter for one in found]
    return _Preview(
        first.standing if all(one.standing == first.standing for one in found) else None,
        first.hidden if all(one.hidden is not None for one in found) else None,
        None if None in matters else frozenset().union(*(matter for matter in matters if matter is not None)),
    )


def _presences(names: Sequence[str], asked: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """`names` without none, some and all of those that are asked after."""
    for number in range(len(asked) + 1):
        for absent in combinations(asked, number):
            yield tuple(name for name in names if name not in absent)


def _partial_request(
    user: Uid, target: Target, agent: str, args: str, circumstances: Iterable[str]
) -> dict[str, str | None]:
    return {
        "principal": f'{user[0]}::"{_escaped(user[1])}"',
        "action": f'Action::"{_escaped(target.action[1])}"',
        "resource": f'Server::"{_escaped(target.server[1])}"',
        "context": f'{{"agent":{agent},"args":{args}{unknown_facts(circumstances)}}}',
    }


def _preview(request: dict[str, str | None], rules: Slice, entities: cedar.Entities, target: Target) -> _Preview:
    """With arguments and circumstances unknown: the verdict, where no rule is left open; why none can be allowed, where
    none can; and which rules can still matter, for nothing makes the others true.
    """
    server, tool = target.server[1], target.tool
    rest = rules.without_asks if rules.asks else rules
    plain = _authorize_partial(request, rest, entities)
    found = _authorize_partial(request, rules, entities) if rules.asks else plain
    if found is None or plain is None:
        return _Preview()
    granted = verdict_of(plain.reason, plain.errors, rest.by_name, server, tool)
    if plain.nontrivial_residuals:
        possible = [rest.by_name[name].effect for name in (*plain.reason, *plain.nontrivial_residuals)]
        hopeless = granted.reason in ("forbidden-by-rule", "evaluation-error")
        simple = not rules.asks and not plain.errors
        matter = frozenset((*plain.may_be_determining, *plain.nontrivial_residuals)) if simple else None
        return _Preview(None, granted if hopeless or "permit" not in possible else None, matter)
    if found.nontrivial_residuals:
        return _Preview(None, granted if granted.effect != "allow" else None)
    verdict = verdict_of(found.reason, found.errors, rules.by_name, server, tool)
    standing = granted if verdict.effect == "ask" and granted.effect != "allow" else verdict
    return _Preview(standing, standing if standing.effect == "deny" else None)


def _authorize_partial(request: dict[str, str | None], rules: Slice, entities: cedar.Entities) -> Diagnostics | None:
    """None where the request has no textual form (an id with characters that Cedar's syntax does not take)."""
    try:
        response = _decode(cedar.is_authorized_partial(request, rules.parsed, entities, None, False))
    except ValueError:
        return None
    if response.decision == "NoDecision":
        return None
    return response.diagnostics


def _entity_uid(uid: Uid) -> dict[str, str]:
    return {"type": uid[0], "id": uid[1]}


def _escaped(text: str) -> str:
    """A Cedar string literal's inside."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
