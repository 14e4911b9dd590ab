"""From a finding to the quarantine that follows from it, or none. Pure; ids derive from the finding's.

Counterpart: the edges obey what stands on `control-state`; the policy service removes it there once it has expired.
"""

from tidegate.chain import Chain
from tidegate.events import FindingRaised, QuarantineImposed
from tidegate.log.port import Record
from tidegate.settings import Detector
from tidegate_detector.findings import SEVERITIES, derived_id

ACTOR = "detector"
STATE_TOPIC = "control-state"


def quarantine_for(finding: FindingRaised, settings: Detector, now_us: int) -> QuarantineImposed | None:
    """None below the configured severity, and for a finding so old that its quarantine would be over."""
    if settings.quarantine_from == "never":
        return None
    if SEVERITIES.index(finding.severity) < SEVERITIES.index(settings.quarantine_from):
        return None
    expires_us = finding.time_us + int(settings.quarantine_s * 1e6) if settings.quarantine_s else 0
    if expires_us and expires_us <= now_us:
        return None
    by_session = settings.quarantine_scope == "session" and finding.session_id != ""
    return QuarantineImposed(
        id=derived_id("tidegate quarantine event v1", finding.id),
        time_us=now_us,
        tenant=finding.tenant,
        region=finding.region,
        quarantine_id=derived_id("tidegate quarantine v1", finding.id),
        scope="session" if by_session else "subject",
        value=finding.session_id if by_session else finding.subject_id,
        reason=f"{finding.rule}: {finding.message}",
        actor=ACTOR,
        expires_us=expires_us,
        finding_id=finding.id,
    )


def seal_quarantine(chain: Chain, event: QuarantineImposed) -> list[Record]:
    """The history's record and its state twin with the same bytes; they are appended together."""
    record = chain.seal(event)
    return [record, Record(STATE_TOPIC, record.key, record.value)]
