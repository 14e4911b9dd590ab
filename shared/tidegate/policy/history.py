"""What a tenant's edges decided with at a moment: release, tools and their labels, quarantines. A fold of the
histories `policy`, `control` and `catalog` up to then; and what somebody could call with it. Pure.

Times are those of the writers. An edge obeys within a second: a call in that second may have met what ruled before.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal

import msgspec

from tidegate.chain import open_event
from tidegate.events import (
    BundleReleased,
    OfferDefined,
    OfferWithdrawn,
    QuarantineImposed,
    QuarantineLifted,
    ServerRegistered,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.policy.argument_types import Document
from tidegate.policy.bundle import Bundle
from tidegate.policy.control import Quarantines, scope_word
from tidegate.policy.definition_rules import DEFINITIONS, DefinitionRules, load_definition_rules
from tidegate.policy.engine import Engine, PolicyPrincipal, ToolFacts
from tidegate.policy.labels import tool_labels
from tidegate.policy.preparing import Asks
from tidegate.policy.replaying import PROMPTS_GET, RESOURCES_READ
from tidegate.policy.signing import Release, SignedRelease, Stage
from tidegate.policy.trusting import Judge, Trusting

HISTORIES: Final = ("policy", "control", "catalog")
_IN_WORDS: Final = {
    "now": "the time",
    "time": "the time",
    "network": "the caller's address",
    "taint": "what the session has read",
    "protocol": "the revision of MCP",
}
_ASKING: Final = {
    "none": "",
    "some": "Of some calls a person is asked first.",
    "all": "A person is asked first of every call that is not denied.",
}
Answer = Literal["allow", "by-arguments", "ask", "deny"]
_decode_definition: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Can(msgspec.Struct, frozen=True):
    """Whether something may be called. `by-arguments`: some calls may, others not, by arguments or circumstances;
    `rules` are then those that may decide, and `asks` says of which calls that are not denied a person is asked first.
    """

    server: str
    action: str  # a tool's own name; `prompts/get`, `resources/read`: all prompts, all resources of the server
    labels: tuple[str, ...]
    answer: Answer
    reason: str
    rules: tuple[str, ...] = ()
    message: str = ""
    asks: Asks = "none"


class World:
    """Of one tenant and ring, as it stood at `at_us`. Events in the order of each history."""

    def __init__(self, tenant: str, ring: str, at_us: int) -> None:
        self.at_us = at_us
        self.release: BundleReleased | None = None
        self.canary: BundleReleased | None = None  # that rules beside it
        self.stage: Stage | None = None  # of the canary; None: everybody
        self.quarantines = Quarantines()
        self.rings: set[str] = set()  # that were released to
        self._tenant = tenant
        self._ring = ring
        self._staged_number = 0
        self._trust = Trusting(tenant)
        self._servers: dict[str, ServerRegistered] = {}
        self._tools: dict[tuple[str, str], ToolDefined] = {}
        self._suggested: dict[tuple[str, str], tuple[str, ...] | None] = {}  # None: the edge of then does not say
        self._offers: dict[tuple[str, str, str], None] = {}

    def apply(self, value: bytes) -> None:
        """Fold one stored event in. What cannot be read is a newer version's and changes nothing here."""
        try:
            event = open_event(value)
        except msgspec.DecodeError:
            return
        if event.tenant != self._tenant or event.time_us > self.at_us:
            return
        self._trust.apply(event)
        if isinstance(event, BundleReleased):
            self.rings.add(event.ring)
        match event:
            case BundleReleased(role="ruling"):
                if event.ring == self._ring and (self.release is None or event.number > self.release.number):
                    self.release = event
            case BundleReleased(role="canary"):
                self._staged(event)
            case QuarantineImposed() | QuarantineLifted():
                self.quarantines.apply(event)
            case ServerRegistered():
                self._registered(event)
            case ToolDefined():
                self._tools[event.server, event.tool] = event
                self._suggested[event.server, event.tool] = event.suggested if event.suggested_known else None
            case ToolWithdrawn():
                self._tools.pop((event.server, event.tool), None)
            case OfferDefined():
                self._offers[event.server, event.kind, event.target] = None
            case OfferWithdrawn():
                self._offers.pop((event.server, event.kind, event.target), None)

    def _registered(self, event: ServerRegistered) -> None:
        """By an edge that starts: what annotations suggest is for its version to say, also of tools known before."""
        self._servers[event.server] = event
        for server, tool in self._suggested:
            if server == event.server:
                given = event.suggested.get(tool, ())
                self._suggested[server, tool] = given if event.suggested_known else None

    def _staged(self, event: BundleReleased) -> None:
        """One that came later, or ended."""
        if event.ring != self._ring or event.number <= self._staged_number:
            return
        try:
            signed = msgspec.json.decode(bytes(event.release), type=SignedRelease)
            stage = msgspec.json.decode(bytes(signed.release), type=Release).stage
        except msgspec.DecodeError:
            return
        self._staged_number = event.number
        self.canary, self.stage = (event, stage) if event.digest else (None, None)

    @property
    def server_labels(self) -> dict[str, tuple[str, ...]]:
        return {name: event.labels for name, event in self._servers.items()}

    def facts(self) -> list[ToolFacts]:
        """Everything that rules decide about, by server and name."""
        return sorted([*self._tool_facts(), *self._other_facts()], key=lambda one: (one.server, one.tool))

    def held(self, rules: DefinitionRules) -> dict[tuple[str, str], str]:
        """(server, tool) → why it was held back because of its definition."""
        found: dict[tuple[str, str], str] = {}
        judge = Judge()
        for (server, tool), event in self._tools.items():
            known, definition = self._trust.of(server, tool), partial(bytes, event.definition)
            stranger = self._trust.is_full(server)
            judged = judge.judge(rules.of(server), known, server, tool, event.digest, definition, stranger=stranger)
            if judged.action == "hold":
                found[server, tool] = judged.sentence
        return found

    def _tool_facts(self) -> Iterator[ToolFacts]:
        for (server, tool), event in self._tools.items():
            registered = self._servers.get(server)
            own, given = (registered.labels, registered.tool_labels) if registered else ((), {})
            try:
                definition = _decode_definition(bytes(event.definition))
            except msgspec.DecodeError:
                definition = {}
            suggested = self._suggested[server, tool]
            labels = tool_labels(definition, own, given.get(tool, ()), suggested)
            yield ToolFacts(server, tool, labels, Document.of_definition(event.definition))

    def _other_facts(self) -> Iterator[ToolFacts]:
        labels = self.server_labels
        kinds = {(server, "prompt" if kind == "prompt" else "resource") for server, kind, _ in self._offers}
        for server, kind in kinds:
            action = PROMPTS_GET if kind == "prompt" else RESOURCES_READ
            yield ToolFacts(server, action, tuple(sorted({*labels.get(server, ()), kind})))


def what_can_be_called(world: World, bundle: Bundle, principal: PolicyPrincipal, subject_id: str) -> list[Can]:
    """By this principal, with the bundle that ruled then; `subject_id` "": quarantines of the person are not known."""
    facts = world.facts()
    engine = Engine.build(bundle, facts, world.server_labels)
    held = world.held(load_definition_rules(bundle.files.get(DEFINITIONS)))
    return [_can(world, held, engine, principal, subject_id, one) for one in facts]


def _can(
    world: World,
    held: Mapping[tuple[str, str], str],
    engine: Engine,
    principal: PolicyPrincipal,
    subject_id: str,
    facts: ToolFacts,
) -> Can:
    server, tool = facts.server, facts.tool
    stopped = world.quarantines.match("", subject_id, principal.agent, server, tool, world.at_us)
    if stopped is not None:
        told = f"This {scope_word(stopped.scope)} was in quarantine: {stopped.reason}"
        return Can(server, tool, facts.labels, "deny", "quarantined", (stopped.quarantine_id,), told)
    if (why := held.get((server, tool))) is not None:
        return Can(server, tool, facts.labels, "deny", "definition-held", (), why)
    verdict = engine.hidden(principal, server, tool) or engine.standing(principal, server, tool)
    if verdict is not None:
        asks: Asks = "all" if verdict.effect == "ask" else "none"
        return Can(server, tool, facts.labels, verdict.effect, verdict.reason, verdict.rules, verdict.told, asks)
    return _depends(engine, principal, facts)


def _depends(engine: Engine, principal: PolicyPrincipal, facts: ToolFacts) -> Can:
    call = (principal, facts.server, facts.tool)
    by_arguments, looked_at = engine.needs_arguments(*call), engine.needs_facts(*call)
    what = [*(["the arguments"] if by_arguments else []), *(_IN_WORDS[name] for name in sorted(looked_at))]
    reason = "depends-on-arguments" if by_arguments or not looked_at else "depends-on-circumstances"
    told = f"It depends on {', '.join(dict.fromkeys(what))}." if what else ""
    asks, rules = engine.asks(*call), engine.may_decide(*call)
    message = f"{told} {_ASKING[asks]}".strip()
    return Can(facts.server, facts.tool, facts.labels, "by-arguments", reason, rules, message, asks)
