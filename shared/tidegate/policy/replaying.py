"""Past decisions made again, from the facts that their events keep: by the bundle that made them, which must agree, or
by another one, to see what it would change. Pure.

An event keeps what Cedar saw: user, groups, agent, the tool and its labels, the circumstances that mattered, and the
arguments, where the capture policy kept them whole. What was stopped before or after the rules (a quarantine, a limit,
an inspection) is told apart: no bundle decided it. What came of a question for approval is none of the rules' either:
they asked. Counterparts: `engine.py` decides, `tidegate_cli.replaying` reads the events.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from tidegate.events import CallRequested, Decided, DecisionInputs, Sealed
from tidegate.policy.argument_types import Document
from tidegate.policy.bundle import Bundle
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate.policy.verdict import Verdict

ENGINES_MAX: Final = 20_000  # tools, each with the labels that it had; engines of a bundle share its parsed rules
PROMPTS_GET: Final = "prompts/get"
RESOURCES_READ: Final = "resources/read"
QUESTIONS_ASK: Final = "questions/ask"  # what a server asks its client outside of any call
QUESTIONS: Final = frozenset({"elicitation/create", "roots/list", "sampling/createMessage"})
_RULED_OUT: Final = frozenset(
    {"unknown-tool", "unknown-prompt", "unknown-resource", "definition-held", "facts-unavailable"}
)
_ASKED: Final = frozenset(
    {
        "approval-required",
        "approved",
        "approval-denied",
        "approval-used",
        "approvals-unknown",
        "approval-arguments-too-large",
        "question-needs-approval",
    }
)  # whatever came of it
_ALWAYS_KNOWN: Final = frozenset({"protocol"})
_TIMED: Final = frozenset({"protocol", "now", "time"})

Blank = Literal["erased", "not-kept", "elsewhere"]
"""Why a decision is not made again: who asked was erased; the arguments or circumstances matter and were not kept; it
was not made by rules.
"""

_decode_arguments: Final = msgspec.json.Decoder(dict[str, Any]).decode
_NO_ARGUMENTS: Final = frozenset({b"null", b""})


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded decision and its facts. `arguments` are as the rules saw them; None where they were not kept whole.
    `known` names the circumstances that `facts` tells: the others may have been anything.
    """

    call_id: str
    time_us: int
    subject_id: str
    login: str
    user: str  # Cedar's id; "" where the personal part is gone
    groups: tuple[str, ...]
    agent: str
    method: str
    server: str
    action: str
    labels: tuple[str, ...]
    server_labels: tuple[str, ...]
    arguments: dict[str, Any] | None
    decision: Decided
    stage: str
    reason: str
    rules: tuple[str, ...]
    bundle: str
    release: int
    kind: Literal["user", "service"] = "user"
    facts: Facts = NO_FACTS
    known: frozenset[str] = _ALWAYS_KNOWN
    definition: str = ""  # digest of the tool's; "": the edge of then did not say


def past_of(event: CallRequested, sealed: Sealed | None) -> Past:
    """`sealed` is the event's personal part, opened; None where its key is gone."""
    inputs = event.inputs
    action = action_of(event.method, event.target, event.labels)
    asked = event.reason in _ASKED
    return Past(
        call_id=event.call_id,
        time_us=event.requested_us,
        subject_id=event.subject_id,
        login=sealed.login or sealed.subject if sealed else "",
        user=sealed.user or sealed.subject if sealed else "",
        groups=inputs.groups,
        agent=event.agent,
        method=event.method,
        server=event.server,
        action=action,
        labels=event.labels,
        server_labels=inputs.server_labels,
        arguments=_decided_on(event, action, sealed),
        definition=inputs.definition,
        decision="ask" if asked else event.decision,
        stage=event.stage,
        reason="approval-required" if asked else event.reason,
        rules=event.rules,
        bundle=inputs.bundle or event.bundle,
        release=inputs.release,
        kind=inputs.kind,
        facts=Facts(inputs.now_us, sealed.address if sealed else "", inputs.taint, event.protocol),
        known=_known(inputs, sealed),
    )


def _known(inputs: DecisionInputs, sealed: Sealed | None) -> frozenset[str]:
    """What was told to the rules is known though it be empty; what was not, where it was kept all the same."""
    found = _TIMED if inputs.now_us else _ALWAYS_KNOWN
    if inputs.facts:
        found = found.union(inputs.facts)
    if inputs.taint:
        found |= {"taint"}
    if sealed is not None and sealed.address:
        found |= {"network"}
    return found


def action_of(method: str, target: str, labels: tuple[str, ...]) -> str:
    """What the rules were asked about: a tool by its name, all prompts of a server, all its resources, or all that it
    asks outside of calls. "": nothing; what a server asks within a call was permitted with that.
    """
    if method == "tools/call":
        return target
    if method in QUESTIONS:
        return "" if target else QUESTIONS_ASK
    if method == PROMPTS_GET:
        return PROMPTS_GET
    if method == "completion/complete":
        return PROMPTS_GET if "prompt" in labels else RESOURCES_READ
    return RESOURCES_READ


def _decided_on(event: CallRequested, action: str, sealed: Sealed | None) -> dict[str, Any] | None:
    """The arguments as the rules saw them: of a resource its URI, of a prompt its name and arguments, of a question its
    method.
    """
    if action == QUESTIONS_ASK:
        return {"method": event.method}
    if sealed is None or not event.inputs.arguments_kept:
        return None
    if event.method not in ("tools/call", PROMPTS_GET):
        return {"uri": event.target} if action == RESOURCES_READ else {"name": event.target, "arguments": {}}
    given = bytes(sealed.arguments)
    try:
        value = {} if given in _NO_ARGUMENTS else _decode_arguments(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if event.method == "tools/call" else {"name": event.target, "arguments": value}


class _Person(msgspec.Struct, frozen=True):
    user: str
    agent: str
    groups: tuple[str, ...]
    kind: str


class Replayer:
    """Decides by one bundle about tools as they were. One thread. Raises BundleFault where the bundle cannot decide.

    `definitions`: what tools declared of their arguments, by the digests of their definitions; None: the types of
    arguments are not looked at.
    """

    def __init__(self, bundle: Bundle, definitions: Mapping[str, Document] | None = None) -> None:
        self.digest = bundle.digest
        self._definitions = definitions
        self._base = Engine.build(bundle, (), {})
        self._engines: OrderedDict[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], Engine] = OrderedDict()

    def decide(self, past: Past) -> Verdict | Blank:
        """The verdict on that call, or why there is none."""
        return self.decide_all((past,))[0]

    def decide_all(self, pasts: Sequence[Past]) -> list[Verdict | Blank]:
        """The same of each, in their order; calls of one tool by one principal are decided together."""
        told: list[Verdict | Blank] = ["elsewhere"] * len(pasts)
        together: dict[tuple[object, ...], list[int]] = {}
        for place, past in enumerate(pasts):
            if past.stage != "policy" or past.reason in _RULED_OUT or past.method.startswith("tasks/"):
                continue
            if not past.action:
                continue
            if not past.user:
                told[place] = "erased"
                continue
            who = (past.user, past.agent, past.groups, past.kind)
            tool = (past.server, past.action, past.definition, past.labels, past.server_labels)
            together.setdefault((*tool, who), []).append(place)
        for places in together.values():
            for place, verdict in zip(places, self._decide_alike([pasts[place] for place in places]), strict=True):
                told[place] = verdict
        return told

    def _decide_alike(self, pasts: Sequence[Past]) -> list[Verdict | Blank]:
        """Of one principal and tool, as it was."""
        first = pasts[0]
        engine = self._engine(first)
        call = (_Person(first.user, first.agent, first.groups, first.kind), first.server, first.action)
        standing = engine.standing(*call)
        if standing is not None:
            return [standing] * len(pasts)
        by_arguments, needed = engine.needs_arguments(*call), engine.needs_facts(*call)
        if by_arguments and not self._knows(first.definition):
            return ["not-kept"] * len(pasts)
        enough = [needed <= past.known and not (by_arguments and past.arguments is None) for past in pasts]
        asked = [(past.arguments or {}, past.facts) for past, has in zip(pasts, enough, strict=True) if has]
        verdicts = iter(engine.evaluate_many(*call, asked))
        return [next(verdicts) if has else "not-kept" for has in enough]

    def _knows(self, definition: str) -> bool:
        return not definition or self._definitions is None or definition in self._definitions

    def _engine(self, past: Past) -> Engine:
        key = (past.server, past.action, past.definition, past.labels, past.server_labels)
        engine = self._engines.get(key)
        if engine is None:
            facts = ToolFacts(past.server, past.action, past.labels, (self._definitions or {}).get(past.definition))
            engine = self._engines[key] = self._base.with_tools([facts], {past.server: past.server_labels})
            if len(self._engines) > ENGINES_MAX:
                self._engines.popitem(last=False)
        return engine


def differs(past: Past, verdict: Verdict) -> str:
    """How the verdict contradicts the record; "" where they agree. Sentences are not compared, they are for people."""
    said: Mapping[str, tuple[object, object]] = {
        "decision": (past.decision, verdict.effect),
        "reason": (past.reason, verdict.reason),
        "rules": (past.rules, verdict.rules),
    }
    return "; ".join(f"{name}: recorded {was}, now {now}" for name, (was, now) in said.items() if was != now)
