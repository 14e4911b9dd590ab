"""A call on its way through the spine: the facts gathered so far, and the two events made from them. No I/O here."""

import hashlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tidegate.events import (
    CallCompleted,
    CallRequested,
    Capture,
    Channel,
    Decided,
    DecisionInputs,
    Finding,
    Mode,
    Outcome,
    Sealed,
    Shadowed,
    Stage,
)
from tidegate.ids import now_us, uuid7
from tidegate.policy.approvals import ANYBODY, Approval
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate_edge.abilities import NONE, Abilities
from tidegate_edge.accept import Request
from tidegate_edge.catalog import Item
from tidegate_edge.ruling import Ruling
from tidegate_edge.upstream.port import Asked
from tidegate_edge.visit import Visit

if TYPE_CHECKING:
    from tidegate.policy.budgeting import Plan
    from tidegate_edge.purses import Hold, Shortage
    from tidegate_edge.tainting import Tainting
    from tidegate_edge.targets import Handle

NULL: Final = msgspec.Raw(b"null")
EMPTY_OBJECT: Final = b"{}"
_CLAIMED_CHARS_MAX: Final = 128
TARGET_CHARS_MAX: Final = 1_024  # as an event keeps it


class Place(msgspec.Struct, frozen=True):
    """Where this happens; the same for all calls of an edge."""

    tenant: str
    region: str
    edge: str

    def stamp(self, tenant: str, at_us: int | None = None) -> dict[str, Any]:
        """What every event carries: its id, time, tenant and region."""
        time_us = now_us() if at_us is None else at_us
        return {"id": uuid7(time_us), "time_us": time_us, "tenant": tenant, "region": self.region}


class Terms(msgspec.Struct, frozen=True):
    """How a tool's calls are recorded: configured per tenant, server or tool."""

    mode: Mode = "spool"
    capture: Capture = "masked"


class Approved(msgspec.Struct, frozen=True, omit_defaults=True):
    """Under which approval a call goes on, and what that was asked for. It travels in sealed states."""

    approval_id: str
    approver: str = ""
    rules: tuple[str, ...] = ()
    binding: str = ""  # what it was for, to the last digit; "": an edge of a version before has sealed it

    def serves(self, approver: str, rules: Iterable[str]) -> bool:
        """Whether who must be asked now was asked, and about every rule that asks now."""
        return approver in (ANYBODY, self.approver) and set(rules) <= set(self.rules)


class Inputs(msgspec.Struct, frozen=True):
    """What a further round of a logical call brings along: the client's answers, and what they answer."""

    root: str  # call_id of the first round
    rounds: int  # that went before
    state: str | None = None  # the modern upstream's own requestState
    responses: dict[str, msgspec.Raw] = {}
    asked: dict[str, Asked] = {}  # what a paused legacy upstream waits for
    ticket: bytes = b""  # of the pause
    held_by: str = ""  # the bus address of the edge that holds it; "": any
    approval: str = ""  # the gateway's own question
    asked_by: Channel = "form"
    answer: msgspec.Raw | None = None  # to that question: for the gateway alone, no server sees it
    approved: Approved | None = None  # the rounds before went on by this approval

    @property
    def is_unasked(self) -> bool:
        """The client brings answers along and no state that came with questions."""
        return not self.rounds and not self.approval


class Ongoing:
    """The facts of one call: one round of it, where input is asked for. Steps of the spine add theirs; events read
    them.
    """

    __slots__ = (
        "abilities",
        "approval",
        "approved",
        "approver",
        "arguments",
        "arguments_captured",
        "arguments_masked",
        "asked_about",
        "asked_for_s",
        "begun_ns",
        "bundle",
        "call_id",
        "catalog",
        "control_epoch",
        "cost_micros",
        "decision",
        "dimensions",
        "dismissed",
        "facts",
        "findings",
        "fingerprints",
        "forwarded_us",
        "held",
        "hidden",
        "inputs",
        "inputs_captured",
        "item",
        "log_level",
        "members",
        "message",
        "method",
        "plan",
        "policy_us",
        "principal",
        "reason",
        "records",
        "release",
        "request",
        "requested_us",
        "result_type",
        "retry_after_ms",
        "root",
        "rules",
        "ruling",
        "server",
        "shadows",
        "short",
        "stage",
        "taint",
        "tainting",
        "target",
        "target_captured",
        "task",
        "terms",
        "upstream_modern",
        "visit",
    )

    def __init__(
        self, visit: Visit, request: Request, item: Item | None, target: str, terms: Terms, at_us: int
    ) -> None:
        self.call_id = self.root = uuid7(at_us)
        self.requested_us = at_us
        self.begun_ns = time.monotonic_ns()
        self.request = request
        self.method = request.method
        self.visit = visit
        self.principal = visit.principal
        self.item = item
        self.server = item.server if item else visit.door[:64]
        self.target = target  # whole: what is decided on is what is sent
        self.target_captured = ""  # the same without what the inspection found; "": nothing was
        self.terms = terms
        self.inputs: Inputs | None = None
        self.inputs_captured: bytes | None = None  # the client's answers without what the inspection found
        self.task: Handle | None = None  # that the request is about: it is decided as the call which began that
        self.abilities: Abilities = NONE
        self.log_level = ""
        self.members: dict[str, msgspec.Raw] = {}  # of the params, byte for byte
        self.arguments = EMPTY_OBJECT  # as they will be forwarded
        self.arguments_captured = EMPTY_OBJECT  # without what the inspection found
        self.arguments_masked = False  # they are not those that were decided on
        self.hidden = False  # the principal may not know that the target exists
        self.decision: Decided = "deny"
        self.stage: Stage = "admission"
        self.reason = ""
        self.message = ""
        self.rules: tuple[str, ...] = ()
        self.approver = ""  # of an ask, as the rules say
        self.asked_about = EMPTY_OBJECT  # of an ask: the arguments that were decided on, before any masking
        self.asked_for_s = 0  # of an ask: how long it may stand; 0: as long as any
        self.approval: Approval | None = None  # that waits for a person, or lets the call pass
        self.approved: Approved | None = None  # the call has taken it: nobody else goes on by it
        self.dismissed = False  # the question was put, and put away
        self.bundle = ""
        self.release = 0
        self.shadows: tuple[Shadowed, ...] = ()  # what rules that do not rule would have said otherwise
        self.ruling: Ruling | None = None  # read once: what decides also inspects, whatever is released meanwhile
        self.catalog = ""
        self.control_epoch = 0
        self.facts: Facts = NO_FACTS  # the circumstances that the rules were told
        self.taint: frozenset[str] | None = None  # what the session has read, where rules or shadows look at it
        self.tainting: Tainting | None = None  # what must be noted before the client hears of the content
        self.plan: Plan | None = None  # the limits that the call meets; None for the common one
        self.held: list[Hold] = []  # what it has taken of them
        self.short: Shortage | None = None  # what it lacked
        self.retry_after_ms = 0
        self.records = 0
        self.cost_micros = 0
        self.findings: tuple[Finding, ...] = ()
        self.fingerprints: tuple[str, ...] = ()
        self.dimensions: dict[str, Any] = {}  # what both events of the call say; fixed with the first
        self.policy_us = 0
        self.forwarded_us = 0
        self.upstream_modern = False  # known once it is forwarded
        self.result_type = "complete"  # of the answer

    def now_us(self) -> int:
        """The time of its request and what has passed since: a wall clock that is set meanwhile changes no duration."""
        return self.requested_us + (time.monotonic_ns() - self.begun_ns) // 1000

    @property
    def labels(self) -> tuple[str, ...]:
        return self.item.labels if self.item else ()

    @property
    def server_labels(self) -> tuple[str, ...]:
        shelf = self.ruling.catalog.shelves.get(self.server) if self.ruling and self.item else None
        return shelf.labels if shelf else ()

    @property
    def approval_held(self) -> Approved | None:
        """By which its further rounds go on."""
        return self.approved or (self.inputs.approved if self.inputs else None)

    @property
    def is_tool_call(self) -> bool:
        return self.request.method == "tools/call"

    def refuse(self, stage: Stage, reason: str, message: str, decision: Decided = "deny") -> None:
        self.decision, self.stage, self.reason, self.message = decision, stage, reason, message


def requested_event(call: Ongoing, place: Place, capture_bytes_max: int) -> CallRequested:
    """The record that must be durable before anything is forwarded. Fixes the dimensions that both records share."""
    principal, capture = call.principal, call.terms.capture
    arguments = captured(call.arguments, call.arguments_captured, capture, capture_bytes_max)
    call.dimensions = _dimensions(call, place)
    return CallRequested(
        id=call.call_id,  # the pair's name is its first event's
        time_us=call.requested_us,
        tenant=principal.tenant,
        region=place.region,
        **call.dimensions,
        reason=call.reason,
        message=call.message,
        inputs=DecisionInputs(
            bundle=call.bundle,
            release=call.release,
            catalog=call.catalog,
            definition=call.item.digest if call.item is not None and call.item.kind == "tool" else "",
            groups=principal.groups,
            labels=call.labels,
            server_labels=call.server_labels,
            now_us=call.requested_us,
            control_epoch=call.control_epoch,
            role=call.ruling.role if call.ruling is not None else "ruling",
            kind=principal.kind,
            taint=call.facts.taint,
            facts=_told(call),
            arguments_kept=_are_kept(call, arguments),
        ),
        findings=call.findings,
        arguments_digest=digest(call.arguments, capture),
        fingerprints=call.fingerprints,
        shadows=call.shadows,
        retry_after_ms=call.retry_after_ms,
        approval_id=_approval_id(call),
        sealed=Sealed(
            issuer=principal.issuer,
            subject=principal.subject,
            user="" if principal.user == principal.subject else principal.user,
            login=principal.login,
            claimed_client=_claimed_client(call),
            address=call.facts.address,
            arguments=arguments,
            inputs=_answers(call, bytes_max=capture_bytes_max),
        ),
    )


def _told(call: Ongoing) -> tuple[str, ...]:
    """The circumstances that the rules were told."""
    if call.ruling is None or call.item is None or not call.ruling.looks_around:
        return ()
    return tuple(sorted(call.ruling.needs(call.principal, call.item)))


def _approval_id(call: Ongoing) -> str:
    if call.approved is not None:
        return call.approved.approval_id
    return call.approval.approval_id if call.approval is not None else ""


def _are_kept(call: Ongoing, arguments: msgspec.Raw) -> bool:
    """Whether the record has what the rules saw."""
    if call.task is not None:
        return False  # that is in the record of the call which began the task
    is_whole = arguments is not NULL and not call.target_captured and not call.arguments_masked
    return is_whole and call.arguments_captured == call.arguments


def _answers(call: Ongoing, bytes_max: int) -> msgspec.Raw:
    """What a client brought along for the server, where that was inspected and goes on."""
    given = call.members.get("inputResponses") if call.decision == "allow" else None
    if given is None:
        return NULL
    return captured(bytes(given), call.inputs_captured or bytes(given), call.terms.capture, bytes_max)


def _dimensions(call: Ongoing, place: Place) -> dict[str, Any]:
    principal = call.principal
    return {
        "call_id": call.call_id,
        "root_call_id": call.root,
        "requested_us": call.requested_us,
        "subject_id": principal.subject_id,
        "agent": principal.agent,
        "session_id": call.visit.session_id,
        "protocol_session_id": call.visit.protocol_session,
        "protocol": call.visit.protocol,
        "edge": place.edge,
        "method": call.method,
        "server": call.server,
        "target": (call.target_captured or call.target)[:TARGET_CHARS_MAX],
        "mode": call.terms.mode,
        "decision": call.decision,
        "stage": call.stage,
        "rules": call.rules,
        "bundle": call.bundle,
        "arguments_bytes": len(call.arguments),
        "capture": call.terms.capture,
        "labels": call.labels,
    }


class Ended(msgspec.Struct, frozen=True):
    """How a forwarded call ended."""

    outcome: Outcome
    completed_us: int
    upstream_us: int = 0
    error_code: int = 0
    reason: str = ""
    message: str = ""
    result: bytes = b""  # as the upstream sent it
    result_captured: bytes = b""
    findings: tuple[Finding, ...] = ()
    masked: int = 0
    fingerprints: tuple[str, ...] = ()


def completed_event(call: Ongoing, ended: Ended, place: Place, capture_bytes_max: int) -> CallCompleted:
    """The record of the answer; repeats the dimensions of its request."""
    result = NULL
    if ended.result:
        result = captured(ended.result, ended.result_captured, call.terms.capture, capture_bytes_max)
    return CallCompleted(
        **place.stamp(call.principal.tenant, ended.completed_us),
        **call.dimensions,
        reason=ended.reason or call.reason,
        message=ended.message,
        outcome=ended.outcome,
        error_code=ended.error_code,
        completed_us=ended.completed_us,
        policy_us=call.policy_us,
        upstream_us=ended.upstream_us,
        total_us=ended.completed_us - call.requested_us,
        findings=ended.findings,
        masked=ended.masked,
        result_bytes=len(ended.result),
        result_digest=digest(ended.result, call.terms.capture) if ended.result else "",
        fingerprints=ended.fingerprints,
        records=call.records,
        cost_micros=call.cost_micros,
        sealed=Sealed(login=call.principal.login, result=result),
    )


def digest(whole: bytes, capture: Capture) -> str:
    """SHA-256, hex, of what went over the wire; "" under `none`: of a short text a digest gives away the text."""
    return "" if capture == "none" else hashlib.sha256(whole).hexdigest()


def captured(whole: bytes, masked: bytes, capture: Capture, bytes_max: int) -> msgspec.Raw:
    """What an event keeps of arguments or a result under a capture policy; null where nothing is kept."""
    if capture in ("digest", "none"):
        return NULL
    kept = whole if capture == "full" else masked
    return msgspec.Raw(kept) if len(kept) <= bytes_max else NULL


def _claimed_client(call: Ongoing) -> str:
    """What the client says of itself, as carefully as all else that it sends."""
    info = call.request.client_info
    if not isinstance(info, dict):
        return ""
    told = f"{info.get('name', '')!s:.{_CLAIMED_CHARS_MAX}}/{info.get('version', '')!s:.{_CLAIMED_CHARS_MAX}}"
    if call.ruling is None:
        return ""
    if call.findings or call.decision != "allow":  # else its params were found to be clean
        told = call.ruling.told(told, "arguments")
    return told[:_CLAIMED_CHARS_MAX]
