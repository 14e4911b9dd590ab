"""Events: frozen facts in the past tense, one struct per type and version.

On disk an event is one JSON object whose `type` names it (never a class path). A field is only ever added, with a
default; a change of meaning is a new type version with an upcaster in `upcast.py`. Times are integer microseconds since
the epoch. Personal fields live in `sealed` alone. Counterpart: `chain.py` adds `writer`, `seq` and `prev` while
encoding.
"""

from typing import Literal, get_args

import msgspec

Decided = Literal["allow", "deny", "ask", "limited"]
Stage = Literal["policy", "limit", "quarantine", "inspection", "admission", "log"]
Mode = Literal["spool", "strict", "strict-or-spool", "async"]
Capture = Literal["full", "masked", "digest", "none"]
Outcome = Literal[
    "ok", "tool-error", "rpc-error", "upstream-failed", "timeout", "cancelled", "blocked", "input-required"
]
Direction = Literal["arguments", "result"]
Offer = Literal["prompt", "resource", "template"]
Role = Literal["ruling", "canary", "shadow"]
Rank = Literal["new", "cosmetic", "described", "narrowed", "widened", "instructing"]
Channel = Literal["form", "url", "api"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What every event carries. `writer`, `seq`, `prev` are filled in by the chain when it is recorded."""

    id: str  # UUIDv7; a finding's is derived from its cause
    time_us: int
    tenant: str
    region: str
    writer: str = ""  # who chains it: "<edge id>.<spool id>.<epoch>"
    seq: int = 0  # gap-free per writer, from 1
    prev: str = ""  # SHA-256, hex, of the writer's previous event as stored; "" before the first


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A pattern that matched while inspecting; never carries what matched."""

    rule: str
    severity: Literal["info", "low", "medium", "high", "critical"]
    action: Literal["allow", "alert", "mask", "block"]
    direction: Direction
    count: int


class Sealed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The personal part. Sealed under a key of its subject it has `kid` and `box` alone; without `kid` it is plain."""

    v: int = 1
    kid: str = ""  # names the data key, 32 hex digits; the key itself is on the topic subject-keys, until it is erased
    box: str = ""  # base64 of nonce (12) | AES-256-GCM ciphertext | tag (16); inside: this object, plain, as JSON
    issuer: str = ""
    subject: str = ""
    user: str = ""  # Cedar's id of the user; "" where it is `subject`
    login: str = ""
    claimed_client: str = ""  # clientInfo, self-reported: a hint, never an identity
    address: str = ""  # the caller's network address, where rules may look at it
    arguments: msgspec.Raw = msgspec.Raw(b"null")  # as captured
    result: msgspec.Raw = msgspec.Raw(b"null")  # as captured
    inputs: msgspec.Raw = msgspec.Raw(b"null")  # what the client answered to a server's questions, as captured


class Shadowed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What rules that do not rule would have said, where that differs from what was decided by rules."""

    bundle: str  # digest: the ruling bundle's own where its rules in shadow mode are meant
    release: int = 0
    decision: Decided
    reason: str = ""
    rules: tuple[str, ...] = ()


class DecisionInputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a decision was made from, so that it can be made again."""

    bundle: str = ""  # digest
    release: int = 0
    catalog: str = ""  # digest of the server's definitions
    definition: str = ""  # of a tool: the digest of its own, which declares the types of its arguments
    groups: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    server_labels: tuple[str, ...] = ()  # those of `labels` that are the server's own
    now_us: int = 0
    control_epoch: int = 0
    kind: Literal["user", "service"] = "user"  # what the principal is to the rules
    role: Role = "ruling"  # of the release among those of its ring
    taint: tuple[str, ...] = ()  # of the session, as the rules were told
    facts: tuple[str, ...] = ()  # circumstances that mattered ("network", "taint", ...), sorted; others may be absent
    arguments_kept: bool = False  # the values decided on are in `sealed.arguments`, unmasked and whole


class Call(Event, frozen=True, kw_only=True):
    """The dimensions that every event of a call repeats."""

    call_id: str
    root_call_id: str
    requested_us: int
    subject_id: str
    agent: str  # from the token, never from clientInfo
    session_id: str  # the governance session
    protocol_session_id: str = ""
    protocol: str = ""
    edge: str = ""
    method: str  # "tools/call", ...
    server: str
    target: str  # the upstream's own name of the tool; never the exposed one
    mode: Mode  # the durability under which this record was written
    decision: Decided
    stage: Stage = "policy"
    reason: str = ""  # kebab case: "tool-not-granted", "forbidden-by-rule", ...
    message: str = ""  # the decision's sentence, which the caller is given unless the tool is hidden from it
    rules: tuple[str, ...] = ()  # ids of the determining rules
    bundle: str = ""


class CallRequested(Call, frozen=True, kw_only=True, tag="call.requested.v1"):
    """A call was decided; durable before anything is forwarded. Not forwarded when decision is not `allow`."""

    inputs: DecisionInputs = DecisionInputs()
    findings: tuple[Finding, ...] = ()
    arguments_bytes: int = 0
    arguments_digest: str = ""  # SHA-256, hex, of the bytes as forwarded
    capture: Capture = "masked"
    fingerprints: tuple[str, ...] = ()  # keyed, winnowed; of the arguments
    labels: tuple[str, ...] = ()  # of server and tool: "sensitive", "egress", "read-only", ...
    approval_id: str = ""  # the approval that was waited for (decision ask) or used (allow)
    shadows: tuple[Shadowed, ...] = ()
    retry_after_ms: int = 0  # of a limited call: when there is room again; 0: that cannot be told
    sealed: Sealed = Sealed()


class CallCompleted(Call, frozen=True, kw_only=True, tag="call.completed.v1"):
    """A forwarded call ended, well or not; durable before the answer leaves the edge."""

    outcome: Outcome
    error_code: int = 0  # JSON-RPC code where outcome is rpc-error
    completed_us: int
    policy_us: int = 0
    upstream_us: int = 0
    total_us: int = 0
    findings: tuple[Finding, ...] = ()
    masked: int = 0  # values masked in the answer
    arguments_bytes: int = 0
    result_bytes: int = 0
    result_digest: str = ""  # SHA-256, hex, of the bytes as the upstream sent them
    capture: Capture = "masked"
    fingerprints: tuple[str, ...] = ()  # of the result
    records: int = 0  # in the result, where a budget counts them
    cost_micros: int = 0  # millionths of the unit in which budgets price calls
    labels: tuple[str, ...] = ()
    sealed: Sealed = Sealed()


class CallAbandoned(Call, frozen=True, kw_only=True, tag="call.abandoned.v1"):
    """Written by the edge that recovers its own spool for a call without completion. A completion always wins."""

    found_us: int
    labels: tuple[str, ...] = ()
    sealed: Sealed = Sealed()


class SessionOpened(Event, frozen=True, kw_only=True, tag="session.opened.v1"):
    session_id: str
    subject_id: str
    agent: str
    protocol: str
    edge: str
    sealed: Sealed = Sealed()


class SessionTainted(Event, frozen=True, kw_only=True, tag="session.tainted.v1"):
    """A governance session has read what later decisions may look at; a taint never leaves its session."""

    session_id: str
    subject_id: str
    agent: str
    labels: tuple[str, ...]  # those that are new to the session
    call_id: str  # of the call whose answer brought them; "": the server said something outside of calls
    server: str
    target: str


class SessionClosed(Event, frozen=True, kw_only=True, tag="session.closed.v1"):
    session_id: str
    subject_id: str
    agent: str
    cause: Literal["deleted", "expired", "revoked"]


class RequestRefused(Event, frozen=True, kw_only=True, tag="request.refused.v1"):
    """A request of a known principal that never became a call: malformed, not permitted, or over a limit."""

    subject_id: str
    agent: str
    session_id: str
    edge: str
    method: str
    reason: str
    message: str
    status: int
    count: int = 1  # how many requests it stands for: past some in a second, those of one method and reason are summed


class ToolDefined(Event, frozen=True, kw_only=True, tag="tool.defined.v1"):
    """A tool's definition was seen for the first time, or differs from the last one seen (`previous` not empty)."""

    server: str
    tool: str
    digest: str  # SHA-256 of the canonical definition
    previous: str = ""
    definition: msgspec.Raw = msgspec.Raw(b"null")
    suggested: tuple[str, ...] = ()  # labels that its annotations suggested
    suggested_known: bool = False  # whether the edge says what they suggested


class ToolWithdrawn(Event, frozen=True, kw_only=True, tag="tool.withdrawn.v1"):
    server: str
    tool: str
    previous: str


class ToolApproved(Event, frozen=True, kw_only=True, tag="tool.approved.v1"):
    """A definition was looked at and is trusted: it is what later ones are compared with."""

    server: str
    tool: str
    digest: str  # of the definition that is trusted
    actor: str
    reason: str = ""


class ToolHeld(Event, frozen=True, kw_only=True, tag="tool.held.v1"):
    """A definition differs from the trusted one so much that the policy has it held back, or alerts."""

    server: str
    tool: str
    digest: str
    trusted: str = ""  # digest of the trusted definition; "": there is none
    action: Literal["hold", "alert"]
    rank: Rank
    changes: tuple[str, ...] = ()  # sentences, gravest first
    edge: str = ""


class OfferDefined(Event, frozen=True, kw_only=True, tag="offer.defined.v1"):
    """A prompt, resource or resource template was seen for the first time, or differs from the last one seen
    (`previous` not empty).
    """

    server: str
    kind: Offer
    target: str  # a prompt's name, a resource's URI, a template's URI template
    digest: str  # SHA-256 of the canonical definition
    previous: str = ""
    definition: msgspec.Raw = msgspec.Raw(b"null")


class OfferWithdrawn(Event, frozen=True, kw_only=True, tag="offer.withdrawn.v1"):
    server: str
    kind: Offer
    target: str  # a prompt's name, a resource's URI, a template's URI template
    previous: str


class ServerRegistered(Event, frozen=True, kw_only=True, tag="server.registered.v1"):
    server: str
    transport: Literal["http", "stdio"]
    labels: tuple[str, ...] = ()
    tool_labels: dict[str, tuple[str, ...]] = {}  # the operator's, by tool
    suggested: dict[str, tuple[str, ...]] = {}  # labels that annotations suggested, by tool, where there were any
    suggested_known: bool = False  # whether the edge says what they suggested


class BundleReleased(Event, frozen=True, kw_only=True, tag="bundle.released.v1"):
    """A signed release points a role of a ring at a digest, or at none (""). `release`: the signed struct as stored."""

    ring: str
    number: int
    digest: str
    previous: str
    cause: Literal["published", "rolled-back", "promoted", "withdrawn"]
    actor: str  # the subject id of a person, or "guard"
    release: msgspec.Raw
    role: Role = "ruling"
    reason: str = ""  # a sentence


class BundleActivated(Event, frozen=True, kw_only=True, tag="bundle.activated.v1"):
    edge: str
    ring: str
    number: int
    digest: str
    role: Role = "ruling"


class BundleRejected(Event, frozen=True, kw_only=True, tag="bundle.rejected.v1"):
    edge: str
    ring: str
    number: int
    digest: str
    reason: str
    role: Role = "ruling"


class BundleObserved(Event, frozen=True, kw_only=True, tag="bundle.observed.v1"):
    """What an edge has counted of one release's decisions since it activated it; while a guard watches."""

    edge: str
    ring: str
    role: Role = "ruling"
    number: int
    digest: str
    since_us: int
    decided: int  # calls, those below included
    denied: int = 0
    asked: int = 0
    errors: int = 0  # denials because a rule could not be evaluated
    slow: int = 0  # decisions that took longer than the guard allows
    differed: int = 0  # calls that a shadow would have decided otherwise
    callers: int = 0  # people and services whose calls these are; 0: the edge does not say
    most_denied: tuple[int, ...] = ()  # of the denials, those of the two callers with most
    most_errors: tuple[int, ...] = ()  # of the errors, the same
    most_slow: tuple[int, ...] = ()  # of the slow decisions, the same


class ApprovalRequested(Event, frozen=True, kw_only=True, tag="approval.requested.v1"):
    """A rule wants a person to approve a call; it waits until somebody does, or it expires."""

    approval_id: str
    binding: str  # keyed digest of principal, agent, method, target and arguments: what the approval is for
    subject_id: str
    agent: str
    session_id: str
    method: str
    server: str
    target: str
    call_id: str
    root_call_id: str
    rules: tuple[str, ...] = ()
    message: str = ""
    bundle: str = ""
    approver: str = ""  # "": the requester may, too; "other": anybody else who may approve; else a group's name
    expires_us: int
    edge: str
    masked: bool = False  # what is kept of the arguments is masked in places that are sent in full
    sealed: Sealed = Sealed()  # login, arguments


class ApprovalGranted(Event, frozen=True, kw_only=True, tag="approval.granted.v1"):
    approval_id: str
    actor: str  # the approver's subject id
    channel: Channel
    reason: str = ""
    expires_us: int  # it must be used before


class ApprovalDenied(Event, frozen=True, kw_only=True, tag="approval.denied.v1"):
    approval_id: str
    actor: str
    channel: Channel
    reason: str = ""


class ApprovalExpired(Event, frozen=True, kw_only=True, tag="approval.expired.v1"):
    """Nobody decided, or nobody used it, in time."""

    approval_id: str


class ApprovalConsumed(Event, frozen=True, kw_only=True, tag="approval.consumed.v1"):
    """The one call that it was for goes on; durable before it is forwarded."""

    approval_id: str
    call_id: str
    edge: str


class QuarantineImposed(Event, frozen=True, kw_only=True, tag="quarantine.imposed.v1"):
    """From now on the edges refuse what matches. `scope` names the field, `value` what it must equal."""

    quarantine_id: str
    scope: Literal["session", "subject", "agent", "server", "tool"]
    value: str  # session id, subject id, agent, server, or "server/tool"
    reason: str
    actor: str  # "detector" or the subject id of a person
    expires_us: int = 0  # 0: until lifted
    finding_id: str = ""


class QuarantineLifted(Event, frozen=True, kw_only=True, tag="quarantine.lifted.v1"):
    quarantine_id: str
    actor: str
    reason: str = ""


class SubjectErased(Event, frozen=True, kw_only=True, tag="subject.erased.v1"):
    """Every data key of a subject up to `erased_us` is to be destroyed: what they sealed can never be read again."""

    subject_id: str
    erasure_id: str  # of one request to erase; the events and answers of it repeat it
    actor: str  # the subject id of a person
    reason: str
    erased_us: int  # keys made up to here are destroyed, named below or not
    keys: tuple[str, ...] = ()  # the kids that were published then; 10,000 at most


class SpoolDamaged(Event, frozen=True, kw_only=True, tag="spool.damaged.v1"):
    """Bytes of an edge's spool could not be read: what they held is not in the log, and where that was is said here."""

    edge: str
    spool: str  # the id of the damaged spool, as it stands in its writers' names
    file: str  # the segment
    aside: str = ""  # the file on that disk in which the bytes are kept; "": there are none
    damage: Literal["damaged", "torn-end", "missing", "unreadable"]  # torn-end: perhaps a write never acknowledged
    bytes: int = 0  # that could not be read, kept in `aside`
    records: int = 0  # how many were lost; 0: that cannot be told
    of_writer: str = ""  # whose chain has the gap; "": that cannot be told
    first_seq: int = 0  # the first lost number of that chain; 0: that cannot be told
    last_seq: int = 0  # the last; 0: all that followed, or that cannot be told
    message: str = ""  # a sentence


class FindingRaised(Event, frozen=True, kw_only=True, tag="finding.raised.v1"):
    """The detector's conclusion. On the detections topic the value is the OCSF 2004 object alone, made from this."""

    rule: str
    severity: Literal["info", "low", "medium", "high", "critical"]
    title: str
    message: str
    subject_id: str
    agent: str
    session_id: str
    server: str = ""
    target: str = ""
    call_ids: tuple[str, ...] = ()


class Repeatable(msgspec.Struct, frozen=True, kw_only=True):
    """A record whose id is derived from its cause: another record may have said the same, and stands for both."""

    seq: int
    id: str
    hash: str


class Leaf(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Records of one writer, numbered without a gap and each linked to the one before; an entry of a root's tree."""

    writer: str
    first: int
    last: int
    prev: str = ""  # what the first record says of the one before it
    head: str  # SHA-256, hex, of the last record as stored
    tree: str  # root, hex, of the Merkle tree over the records' SHA-256
    first_us: int  # least and greatest time of the records
    last_us: int
    repeatable: tuple[Repeatable, ...] = ()


class RootSealed(Event, frozen=True, kw_only=True, tag="root.sealed.v1"):
    """What the log took since the root before, sealed. `root` is the signed struct, byte for byte."""

    sealer: str
    number: int
    root: msgspec.Raw
    signature: str  # Ed25519, base64
    key_id: str
    leaves: tuple[Leaf, ...] = ()


class RootChecked(Event, frozen=True, kw_only=True, tag="root.checked.v1"):
    """ClickHouse was compared with a root soon after its sealing. `of_writer`, `of_seq`: the first wrong record."""

    sealer: str
    number: int
    digest: str  # SHA-256, hex, of the signed struct
    verdict: Literal["whole", "broken"]
    events: int
    wrong: int = 0
    problem: str = ""
    of_writer: str = ""
    of_seq: int = 0
    message: str = ""


AnyEvent = (
    CallRequested
    | CallCompleted
    | CallAbandoned
    | SessionOpened
    | SessionTainted
    | SessionClosed
    | RequestRefused
    | ToolDefined
    | ToolWithdrawn
    | ToolApproved
    | ToolHeld
    | OfferDefined
    | OfferWithdrawn
    | ServerRegistered
    | BundleReleased
    | BundleActivated
    | BundleRejected
    | BundleObserved
    | ApprovalRequested
    | ApprovalGranted
    | ApprovalDenied
    | ApprovalExpired
    | ApprovalConsumed
    | QuarantineImposed
    | QuarantineLifted
    | SubjectErased
    | FindingRaised
    | RootSealed
    | RootChecked
    | SpoolDamaged
)

TOPIC_OF: dict[str, str] = {
    "call": "calls",
    "session": "sessions",
    "request": "sessions",
    "tool": "catalog",
    "offer": "catalog",
    "server": "catalog",
    "bundle": "policy",
    "quarantine": "control",
    "approval": "control",
    "subject": "control",
    "finding": "detections",
    "root": "integrity",
    "spool": "integrity",
}
"""The topic of an event, by the first word of its type."""


def type_of(event: Event | type[Event]) -> str:
    """The name on disk: "call.requested.v1"."""
    return str(event.__struct_config__.tag)


def topic_of(event: Event) -> str:
    """The topic (without prefix) that this event belongs to."""
    return _TOPICS[type(event)]


_TOPICS: dict[type[Event], str] = {kind: TOPIC_OF[type_of(kind).split(".", 1)[0]] for kind in get_args(AnyEvent)}


def key_of(event: AnyEvent) -> bytes:
    """The log key: order holds per (writer, key). Calls and sessions: tenant | subject_id | agent."""
    match event:
        case (
            CallRequested()
            | CallCompleted()
            | CallAbandoned()
            | SessionOpened()
            | SessionTainted()
            | SessionClosed()
            | RequestRefused()
            | FindingRaised()
        ):
            return f"{event.tenant}|{event.subject_id}|{event.agent}".encode()
        case ToolDefined() | ToolWithdrawn() | ToolApproved() | ToolHeld():
            return f"{event.tenant}|{event.server}|{event.tool}".encode()
        case OfferDefined() | OfferWithdrawn():
            return f"{event.tenant}|{event.server}|{event.kind}|{event.target}".encode()
        case ServerRegistered():
            return f"{event.tenant}|{event.server}".encode()
        case BundleReleased():
            return f"{event.tenant}|{event.ring}".encode()
        case BundleActivated() | BundleRejected() | BundleObserved():
            return f"{event.tenant}|edge|{event.edge}".encode()
        case ApprovalRequested() | ApprovalGranted() | ApprovalDenied() | ApprovalExpired() | ApprovalConsumed():
            return f"{event.tenant}|{event.approval_id}".encode()
        case QuarantineImposed() | QuarantineLifted():
            return f"{event.tenant}|{event.quarantine_id}".encode()
        case SubjectErased():
            return f"{event.tenant}|{event.subject_id}".encode()
        case RootSealed() | RootChecked():
            return f"{event.tenant}|{event.sealer}".encode()
        case SpoolDamaged():
            return f"{event.tenant}|edge|{event.edge}".encode()
