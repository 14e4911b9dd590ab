"""A finding as it stands on the detections topic: an OCSF 1.8 Detection Finding (class 2004), that object alone.

What is Tidegate's own is under `unmapped.tidegate`: the dimensions, and the place in the detector's chain of stored
bytes. Times are milliseconds (OCSF timestamp_t). Pure. Counterpart: the audit consumer reads it into columns.
"""

import hashlib
from typing import Any

import msgspec

from tidegate import __version__
from tidegate.chain import Chain
from tidegate.events import FindingRaised, key_of
from tidegate.log.port import Record
from tidegate_detector.findings import SEVERITIES

SCHEMA = "1.8.0"
CATEGORY, CLASS, ACTIVITY = 2, 2004, 1  # Findings, Detection Finding, Create


def seal_finding(chain: Chain, finding: FindingRaised) -> Record:
    """The record to append; the next link of the writer's chain."""
    chain.seq += 1
    value = msgspec.json.encode(detection_finding(finding, chain.writer, chain.seq, chain.prev))
    chain.prev = hashlib.sha256(value).hexdigest()
    return Record("detections", key_of(finding), value)


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
        "severity_id": SEVERITIES.index(finding.severity) + 1,
        "severity": "Informational" if finding.severity == "info" else finding.severity.capitalize(),
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
            "log_name": "tidegate.detections",
            "tenant_uid": finding.tenant,
            "product": {"name": "Tidegate", "vendor_name": "Tidegate", "version": __version__},
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
