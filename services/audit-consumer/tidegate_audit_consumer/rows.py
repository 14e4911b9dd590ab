"""Delivered records into whole columns for ClickHouse, and those that cannot be read apart. Pure.

Whatever is in the columns can be inserted: values that ClickHouse could not hold make a record unreadable here,
because an insert that can never succeed would stop ingestion for good. Counterpart: the tables in `migrations/`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tidegate.events import AnyEvent, CallAbandoned, CallCompleted, CallRequested, Finding, type_of
from tidegate.log.port import Delivered
from tidegate.upcast import UnknownType, open_any
from tidegate_audit_consumer.ocsf import RaisedFinding, open_finding

Columns = Mapping[str, Sequence[Any]]

TIME_MIN_US = 946_684_800_000_000  # 2000-01-01
TIME_MAX_US = 4_102_444_800_000_000  # 2100-01-01
INT_MAX = 2**63 - 1

EVENT_COLUMNS = (
    *(
        "event_id",
        "type",
        "tenant",
        "region",
        "time",
        "writer",
        "seq",
        "prev",
        "hash",
        "subject_id",
        "agent",
        "session_id",
    ),
    *("call_id", "server", "target", "decision", "reason", "topic", "partition", "offset", "logged_at", "raw"),
)

# What every event of a call repeats, then what the request or the abandonment says, then what the completion says.
CALL_COLUMNS = (
    *("tenant", "requested_at", "call_id", "root_call_id", "region", "edge", "subject_id", "agent", "session_id"),
    *("protocol_session_id", "protocol", "method", "server", "target", "decision", "bundle", "version", "labels"),
    *("issuer", "subject", "login", "claimed_client", "arguments", "result"),
    *("requested_event", "abandoned_event", "completed_event", "abandoned_at", "completed_at"),
    *("requested_mode", "requested_stage", "requested_reason", "requested_message", "requested_rules"),
    *("completed_mode", "completed_stage", "completed_reason", "completed_message", "completed_rules"),
    *("release", "catalog", "groups", "control_epoch", "arguments_kept", "arguments_capture", "arguments_digest"),
    *("arguments_fingerprints", "arguments_findings", "arguments_bytes"),
    *("outcome", "error_code", "policy_us", "upstream_us", "total_us", "masked", "result_capture", "result_bytes"),
    *("result_digest", "result_fingerprints", "result_findings"),
)

FINDING_COLUMNS = (
    *("finding_id", "tenant", "region", "raised_at", "rule", "severity", "title", "message", "subject_id", "agent"),
    *("session_id", "server", "target", "call_ids", "ocsf", "offset"),
)

_NO_SIDE = ("", "", "", "", ())  # mode, stage, reason, message, rules
_NOT_REQUESTED = (0, "", (), 0, 0, "", "", (), (), 0)  # from `release` to `arguments_bytes`
_NOT_COMPLETED = ("", None, 0, 0, 0, 0, "", 0, "", (), ())  # from `outcome` on


class Unreadable(NamedTuple):
    """A dead letter: the record, a reason in kebab case and what was wrong with it."""

    record: Delivered
    reason: str
    message: str


class Opened(NamedTuple):
    """A batch, readable part and rest. Columns are empty mappings where there are no rows."""

    events: Columns
    calls: Columns
    findings: Columns
    unreadable: list[Unreadable]


def open_batch(records: Sequence[Delivered]) -> Opened:
    """Columns for what can be read. Costs CPU: run it beside the event loop."""
    events: list[tuple[Any, ...]] = []
    calls: list[tuple[Any, ...]] = []
    findings: list[tuple[Any, ...]] = []
    unreadable: list[Unreadable] = []
    for record in records:
        event = _read(record)
        match event:
            case Unreadable():
                unreadable.append(event)
                continue
            case RaisedFinding():
                events.append(_row_of_raised(event, record))
                findings.append(_row_of_finding(event, record))
            case CallRequested() | CallCompleted() | CallAbandoned():
                events.append(_row_of_call_event(event, record))
                calls.append(_row_of_call(event))
            case _:
                events.append(_row_of_event(event, record))
    return Opened(
        _columns(EVENT_COLUMNS, events), _columns(CALL_COLUMNS, calls), _columns(FINDING_COLUMNS, findings), unreadable
    )


def _columns(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Columns:
    return dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}


def _read(record: Delivered) -> AnyEvent | RaisedFinding | Unreadable:
    if record.value is None:
        return Unreadable(record, "no-value", "the record has no value; histories hold no deletions")
    try:
        event = open_finding(record.value) if record.topic == "detections" else open_any(record.value)
    except UnknownType as error:
        return Unreadable(record, "unknown-type", str(error))
    except msgspec.ValidationError as error:
        return Unreadable(record, "wrong-shape", str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(record, "not-json", str(error))
    if fault := _out_of_range(event):
        return Unreadable(record, "out-of-range", fault)
    return event


def _out_of_range(event: AnyEvent | RaisedFinding) -> str:
    """What ClickHouse's columns could not hold; "" if nothing."""
    if not TIME_MIN_US <= event.time_us < TIME_MAX_US:
        return f"time_us {event.time_us} is not between the years 2000 and 2100"
    if not 0 <= event.seq <= INT_MAX:
        return f"seq {event.seq} is not a count"
    if not event.id or not event.tenant:
        return "id and tenant must not be empty"
    if isinstance(event, CallRequested | CallCompleted | CallAbandoned):
        return _call_out_of_range(event)
    return ""


def _call_out_of_range(event: CallRequested | CallCompleted | CallAbandoned) -> str:
    times: list[int] = [event.requested_us]
    counts: list[int] = []
    match event:
        case CallRequested():
            counts += (event.arguments_bytes, event.inputs.release, event.inputs.control_epoch)
            counts += [finding.count for finding in event.findings]
        case CallCompleted():
            times.append(event.completed_us)
            counts += (event.policy_us, event.upstream_us, event.total_us, event.masked, event.arguments_bytes)
            counts += (event.result_bytes, abs(event.error_code), *[finding.count for finding in event.findings])
        case CallAbandoned():
            times.append(event.found_us)
    if min(times) < TIME_MIN_US or max(times) >= TIME_MAX_US:
        return f"a time in {times} is not between the years 2000 and 2100"
    if counts and (min(counts) < 0 or max(counts) > INT_MAX):
        return f"a number in {counts} is not a count"
    return ""


def _row_of_call_event(event: CallRequested | CallCompleted | CallAbandoned, record: Delivered) -> tuple[Any, ...]:
    raw = record.value or b""
    return (
        *(event.id, type_of(event), event.tenant, event.region, event.time_us, event.writer, event.seq, event.prev),
        *(hashlib.sha256(raw).hexdigest(), event.subject_id, event.agent, event.session_id),
        *(event.call_id, event.server, event.target, event.decision, event.reason),
        *(record.topic, record.partition, record.offset, record.time_us, raw),
    )


def _row_of_event(event: AnyEvent, record: Delivered) -> tuple[Any, ...]:
    raw = record.value or b""
    return (
        *(event.id, type_of(event), event.tenant, event.region, event.time_us, event.writer, event.seq, event.prev),
        hashlib.sha256(raw).hexdigest(),
        *(getattr(event, name, "") for name in ("subject_id", "agent", "session_id", "call_id", "server")),
        getattr(event, "target", "") or getattr(event, "tool", ""),
        *("", getattr(event, "reason", "")),
        *(record.topic, record.partition, record.offset, record.time_us, raw),
    )


def _row_of_raised(finding: RaisedFinding, record: Delivered) -> tuple[Any, ...]:
    raw = record.value or b""
    return (
        *(finding.id, "finding.raised.v1", finding.tenant, finding.region, finding.time_us),
        *(finding.writer, finding.seq, finding.prev, hashlib.sha256(raw).hexdigest()),
        *(finding.subject_id, finding.agent, finding.session_id, "", finding.server, finding.target, "", finding.rule),
        *(record.topic, record.partition, record.offset, record.time_us, raw),
    )


def _row_of_finding(finding: RaisedFinding, record: Delivered) -> tuple[Any, ...]:
    return (
        *(finding.id, finding.tenant, finding.region, finding.time_us, finding.rule, finding.severity, finding.title),
        *(finding.message, finding.subject_id, finding.agent, finding.session_id, finding.server, finding.target),
        *(finding.call_ids, record.value, record.offset),
    )


def _row_of_call(event: CallRequested | CallCompleted | CallAbandoned) -> tuple[Any, ...]:
    sealed = event.sealed
    side = (event.mode, event.stage, event.reason, event.message, event.rules)
    dimensions = (
        *(event.tenant, event.requested_us, event.call_id, event.root_call_id, event.region, event.edge),
        *(event.subject_id, event.agent, event.session_id, event.protocol_session_id, event.protocol),
        *(event.method, event.server, event.target, event.decision, event.bundle),
    )
    personal = (
        sealed.issuer,
        sealed.subject,
        sealed.login,
        sealed.claimed_client,
        _json(sealed.arguments),
        _json(sealed.result),
    )
    match event:
        case CallRequested():
            inputs = event.inputs
            return (
                *(*dimensions, 1, event.labels, *personal, event.id, "", "", 0, 0, *side, *_NO_SIDE),
                *(inputs.release, inputs.catalog, inputs.groups, inputs.control_epoch, inputs.arguments_kept),
                *(
                    event.capture,
                    event.arguments_digest,
                    event.fingerprints,
                    _findings(event.findings),
                    event.arguments_bytes,
                ),
                *_NOT_COMPLETED,
            )
        case CallAbandoned():
            return (
                *(*dimensions, 2, event.labels, *personal, "", event.id, "", event.found_us, 0, *side, *_NO_SIDE),
                *(*_NOT_REQUESTED, *_NOT_COMPLETED),
            )
        case CallCompleted():
            return (
                *(*dimensions, 3, event.labels, *personal, "", "", event.id, 0, event.completed_us, *_NO_SIDE, *side),
                *(*_NOT_REQUESTED[:-1], event.arguments_bytes),
                *(
                    event.outcome,
                    event.error_code or None,
                    event.policy_us,
                    event.upstream_us,
                    event.total_us,
                    event.masked,
                ),
                *(
                    event.capture,
                    event.result_bytes,
                    event.result_digest,
                    event.fingerprints,
                    _findings(event.findings),
                ),
            )


def _json(part: msgspec.Raw) -> bytes:
    """What was captured; empty where nothing was, so that it never hides what another event of the call captured."""
    text = bytes(part)
    return b"" if text == b"null" else text


def _findings(findings: tuple[Finding, ...]) -> Sequence[tuple[str, str, str, str, int]]:
    return [(one.rule, one.severity, one.action, one.direction, one.count) for one in findings] if findings else ()
