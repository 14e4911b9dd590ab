"""What is told of one call to security tools, whatever the format: made from an event here, from a row of
`tidegate.calls` by the command line. Pure.

It names the subject by pseudonym alone, unless whoever makes it adds the login. Arguments and results are never in it:
their sizes and digests are.
"""

from typing import Any

import msgspec

from tidegate.events import CallAbandoned, CallCompleted, CallRequested, Finding, RequestRefused
from tidegate.ocsf.terms import SEVERITIES

Told = CallRequested | CallCompleted | CallAbandoned | RequestRefused

NOT_FORWARDED = {"deny": "denied", "ask": "asked", "limited": "limited"}
OPEN = frozenset({"pending", "unknown"})
"""How a call shows that was forwarded, perhaps, and has no end."""


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """One call, or one request that never became a call. Times and durations are microseconds."""

    uid: str  # the id of the event that says how it ended: the same in every format and delivery
    call_id: str
    tenant: str
    region: str
    requested_us: int
    status: str  # as in the view `calls`; or "refused": never became a call
    subject_id: str
    agent: str
    session_id: str
    edge: str
    method: str
    root_call_id: str = ""
    ended_us: int = 0  # 0: it has no end, or none of its own
    login: str = ""
    issuer: str = ""
    is_erased: bool = False  # who it was cannot be known any more, where that would be told
    protocol: str = ""
    server: str = ""
    target: str = ""
    mode: str = ""
    decision: str = "deny"
    stage: str = ""
    reason: str = ""
    message: str = ""
    rules: tuple[str, ...] = ()
    bundle: str = ""
    release: int = 0
    groups: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    masked: int = 0
    error_code: int = 0
    policy_us: int = 0
    upstream_us: int = 0
    total_us: int = 0
    arguments_bytes: int = 0
    arguments_digest: str = ""
    result_bytes: int = 0
    result_digest: str = ""
    writer: str = ""
    seq: int = 0

    @property
    def severity(self) -> str:
        """That of the gravest thing inspection found; at least low where the call was not let through."""
        found = [SEVERITIES.index(finding.severity) for finding in self.findings]
        refused = self.decision != "allow" or self.status == "blocked"
        return SEVERITIES[max([*found, int(refused)])]

    @property
    def is_alert(self) -> bool:
        """Whether inspection acted, or a quarantine stopped the call."""
        return self.stage == "quarantine" or any(finding.action != "allow" for finding in self.findings)


def activity_of(event: Told) -> Activity | None:
    """None of a request that was forwarded: how the call ended is told by another event."""
    match event:
        case RequestRefused():
            return _refused(event)
        case CallRequested() if event.decision == "allow":
            return None
        case CallRequested():
            return _call(
                event,
                status=NOT_FORWARDED[event.decision],
                findings=event.findings,
                arguments_bytes=event.arguments_bytes,
                arguments_digest=event.arguments_digest,
                groups=event.inputs.groups,
                release=event.inputs.release,
            )
        case CallAbandoned():
            return _call(event, status="unknown")
        case CallCompleted():
            return _call(
                event,
                status=event.outcome,
                ended_us=event.completed_us,
                findings=event.findings,
                masked=event.masked,
                error_code=event.error_code,
                policy_us=event.policy_us,
                upstream_us=event.upstream_us,
                total_us=event.total_us,
                arguments_bytes=event.arguments_bytes,
                result_bytes=event.result_bytes,
                result_digest=event.result_digest,
            )


_OF_CALLS = (
    *("call_id", "root_call_id", "tenant", "region", "requested_us", "subject_id", "agent", "session_id", "protocol"),
    *("edge", "method", "server", "target", "mode", "decision", "stage", "reason", "message", "rules", "bundle"),
    *("labels", "writer", "seq"),
)


def _call(event: CallRequested | CallCompleted | CallAbandoned, **told: Any) -> Activity:
    repeated = {name: getattr(event, name) for name in _OF_CALLS}
    return Activity(uid=event.id, **repeated, **told)


def _refused(event: RequestRefused) -> Activity:
    return Activity(
        uid=event.id,
        call_id=event.id,
        tenant=event.tenant,
        region=event.region,
        requested_us=event.time_us,
        status="refused",
        subject_id=event.subject_id,
        agent=event.agent,
        session_id=event.session_id,
        edge=event.edge,
        method=event.method,
        stage="admission",
        reason=event.reason,
        message=event.message,
        error_code=event.status,
        writer=event.writer,
        seq=event.seq,
    )
