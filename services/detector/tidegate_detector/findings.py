"""What the rules hand back, and the ids made from causes: judging the same calls again yields the same ids. Pure."""

import hashlib
from typing import Literal, NamedTuple

from tidegate.events import CallCompleted, CallRequested, FindingRaised
from tidegate.limits import CLAIM_CHARS_MAX

CALLS_NAMED_MAX = 20
MESSAGE_CHARS_MAX = 4_096

Severity = Literal["info", "low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")

CallEvent = CallRequested | CallCompleted


class Principal(NamedTuple):
    """Who a rule looks at: the key of the log, so that all its calls are in one partition."""

    tenant: str
    subject_id: str
    agent: str


def principal_of(event: CallEvent) -> Principal:
    return Principal(event.tenant, event.subject_id, event.agent)


def derived_id(*causes: str) -> str:
    """A UUIDv8 (RFC 9562 §5.8) from SHA-256 over the causes, each with its length in front."""
    digest = hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in map(str.encode, causes))).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def raised(
    rule: str,
    event: CallEvent,
    causes: tuple[str, ...],
    *,
    severity: Severity,
    title: str,
    message: str,
    call_ids: tuple[str, ...],
) -> FindingRaised:
    """A finding about the calls of this event's principal. `causes` name it: equal causes, equal id.

    Texts longer than any that an edge records are clipped: a finding repeats them, and must fit into the log.
    """
    return FindingRaised(
        id=derived_id("tidegate finding v1", rule, *principal_of(event), *causes),
        time_us=event.time_us,
        tenant=event.tenant[:CLAIM_CHARS_MAX],
        region=event.region[:CLAIM_CHARS_MAX],
        rule=rule,
        severity=severity,
        title=title,
        message=message[:MESSAGE_CHARS_MAX],
        subject_id=event.subject_id[:CLAIM_CHARS_MAX],
        agent=event.agent[:CLAIM_CHARS_MAX],
        session_id=event.session_id[:CLAIM_CHARS_MAX],
        server=event.server[:CLAIM_CHARS_MAX],
        target=event.target[:MESSAGE_CHARS_MAX],
        call_ids=tuple([one[:CLAIM_CHARS_MAX] for one in call_ids[:CALLS_NAMED_MAX]]),
    )
