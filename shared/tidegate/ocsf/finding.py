"""A finding as it stands on the detections topic: an OCSF Detection Finding (class 2004), that object alone; written
by the detector, read by the audit consumer.

What is Tidegate's own is under `unmapped.tidegate`: the dimensions, and the place in the detector's chain of stored
bytes. Pure.
"""

from typing import Any, Final

import msgspec

from tidegate.events import FindingRaised
from tidegate.ocsf.terms import PRODUCT, SCHEMA, SEVERITY_OF_ID, severity_caption, severity_id

CATEGORY, CLASS, ACTIVITY = 2, 2004, 1  # Findings, Detection Finding, Create
LOG_NAME: Final = "tidegate.detections"


def detection_finding(finding: FindingRaised, writer: str = "", seq: int = 0, prev: str = "") -> dict[str, Any]:
    """The OCSF object."""
    time_ms = finding.time_us // 1000
    return {
        "activity_id": ACTIVITY,
        "activity_name": "Create",
        "category_uid": CATEGORY,
        "category_name": "Findings",
        "class_uid": CLASS,
        "class_name": "Detection Finding",
        "type_uid": CLASS * 100 + ACTIVITY,
        "type_name": "Detection Finding: Create",
        "time": time_ms,
        "severity_id": severity_id(finding.severity),
        "severity": severity_caption(finding.severity),
        "status_id": 1,
        "status": "New",
        "message": finding.message,
        "finding_info": {
            "uid": finding.id,
            "title": finding.title,
            "desc": finding.message,
            "created_time": time_ms,
            "analytic": {"uid": f"tidegate.{finding.rule}", "name": finding.rule, "type_id": 1, "type": "Rule"},
        },
        "metadata": {
            "uid": finding.id,
            "version": SCHEMA,
            "log_name": LOG_NAME,
            "tenant_uid": finding.tenant,
            "product": PRODUCT,
        },
        "evidences": [_evidence(finding, call_id) for call_id in finding.call_ids],
        "unmapped": {"tidegate": _own(finding, writer, seq, prev)},
    }


def _evidence(finding: FindingRaised, call_id: str) -> dict[str, Any]:
    """One call: `data` is free form (json_t), `actor` names who made it."""
    return {
        "data": {"call_id": call_id},
        "actor": {
            "app_name": finding.agent,
            "user": {"uid": finding.subject_id},
            "session": {"uid": finding.session_id},
        },
    }


def _own(finding: FindingRaised, writer: str, seq: int, prev: str) -> dict[str, Any]:
    return {
        "tenant": finding.tenant,
        "region": finding.region,
        "time_us": finding.time_us,
        "writer": writer,
        "seq": seq,
        "prev": prev,
        "rule": finding.rule,
        "severity": finding.severity,
        "subject_id": finding.subject_id,
        "agent": finding.agent,
        "session_id": finding.session_id,
        "server": finding.server,
        "target": finding.target,
        "call_ids": finding.call_ids,
    }


class RaisedFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A finding's plain columns."""

    id: str
    time_us: int
    tenant: str
    region: str
    writer: str
    seq: int
    prev: str
    rule: str
    severity: str
    title: str
    message: str
    subject_id: str
    agent: str
    session_id: str
    server: str
    target: str
    call_ids: tuple[str, ...]


class Metadata(msgspec.Struct, frozen=True):
    """`uid` is the finding's id."""

    uid: str


class FindingInfo(msgspec.Struct, frozen=True):
    title: str = ""
    desc: str = ""


class Own(msgspec.Struct, frozen=True):
    """Tidegate's own dimensions of a finding, and its place in the detector's chain."""

    tenant: str
    region: str = ""
    time_us: int = 0
    writer: str = ""
    seq: int = 0
    prev: str = ""
    rule: str = ""
    severity: str = ""
    subject_id: str = ""
    agent: str = ""
    session_id: str = ""
    server: str = ""
    target: str = ""
    call_ids: tuple[str, ...] = ()


class Unmapped(msgspec.Struct, frozen=True):
    tidegate: Own


class StoredFinding(msgspec.Struct, frozen=True):
    """The part of the OCSF object that is read back; the whole follows OCSF's published schema."""

    class_uid: int
    time: int
    metadata: Metadata
    unmapped: Unmapped
    severity_id: int = 0
    message: str = ""
    finding_info: FindingInfo = FindingInfo()


_decoder = msgspec.json.Decoder(StoredFinding)


def open_finding(value: bytes) -> RaisedFinding:
    """Raises msgspec.DecodeError (ValidationError included)."""
    found = _decoder.decode(value)
    if found.class_uid != CLASS:
        raise msgspec.ValidationError(f"class_uid is {found.class_uid}; findings are class {CLASS}")
    own, info = found.unmapped.tidegate, found.finding_info
    return RaisedFinding(
        id=found.metadata.uid,
        time_us=own.time_us or found.time * 1000,
        tenant=own.tenant,
        region=own.region,
        writer=own.writer,
        seq=own.seq,
        prev=own.prev,
        rule=own.rule,
        severity=own.severity or SEVERITY_OF_ID.get(found.severity_id, "info"),
        title=info.title,
        message=found.message or info.desc,
        subject_id=own.subject_id,
        agent=own.agent,
        session_id=own.session_id,
        server=own.server,
        target=own.target,
        call_ids=own.call_ids,
    )
