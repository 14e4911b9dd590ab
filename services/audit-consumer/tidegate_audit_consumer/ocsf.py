"""Findings as they stand on the detections topic: OCSF Detection Finding objects (class 2004), read for their columns.

What is Tidegate's own is under `unmapped.tidegate`; times are milliseconds (OCSF timestamp_t). Counterpart: the
detector.
"""

import msgspec

DETECTION_FINDING = 2004
SEVERITIES = {1: "info", 2: "low", 3: "medium", 4: "high", 5: "critical", 6: "critical"}


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


class _Metadata(msgspec.Struct, frozen=True):
    uid: str


class _FindingInfo(msgspec.Struct, frozen=True):
    title: str = ""
    desc: str = ""


class _Own(msgspec.Struct, frozen=True):
    """`unmapped.tidegate`."""

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


class _Unmapped(msgspec.Struct, frozen=True):
    tidegate: _Own


class _Object(msgspec.Struct, frozen=True):
    class_uid: int
    time: int
    metadata: _Metadata
    unmapped: _Unmapped
    severity_id: int = 0
    message: str = ""
    finding_info: _FindingInfo = _FindingInfo()


_decoder = msgspec.json.Decoder(_Object)


def open_finding(value: bytes) -> RaisedFinding:
    """Raises msgspec.DecodeError (ValidationError included)."""
    found = _decoder.decode(value)
    if found.class_uid != DETECTION_FINDING:
        raise msgspec.ValidationError(f"class_uid is {found.class_uid}; findings are class {DETECTION_FINDING}")
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
        severity=own.severity or SEVERITIES.get(found.severity_id, "info"),
        title=info.title,
        message=found.message or info.desc,
        subject_id=own.subject_id,
        agent=own.agent,
        session_id=own.session_id,
        server=own.server,
        target=own.target,
        call_ids=own.call_ids,
    )
