"""A batch of records into whole columns for ClickHouse, and those that cannot be read apart. Pure.

Columns are built one at a time over the events of one kind, which costs a third of building rows. Counterparts:
`reading.py` (what may come in), the tables in `migrations/`.
"""

import binascii
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from tidegate.events import AnyEvent, CallAbandoned, CallCompleted, CallRequested, Finding, type_of
from tidegate.log.port import Delivered
from tidegate.ocsf.finding import RaisedFinding
from tidegate_audit_consumer.reading import CallEvent, Unreadable, read

Columns = Mapping[str, Sequence[Any]]
Getter = Callable[[Any], Any]

SLICE = (
    256  # records opened at a time: few enough to stay in the processor's cache and out of the garbage collector's way
)
BOX_BYTES_MIN = 28  # of a sealed part: nonce and tag


class Opened(NamedTuple):
    """A batch, readable part and rest. Columns are empty mappings where there are no rows."""

    events: Columns
    calls: Columns
    findings: Columns
    unreadable: list[Unreadable]


@dataclass
class _Kind:
    """Events of one kind, beside the records they came in."""

    events: list[Any] = field(default_factory=list)
    records: list[Delivered] = field(default_factory=list)


def open_batch(records: Sequence[Delivered]) -> Opened:
    """Columns for what can be read. Costs CPU: run it beside the event loop."""
    slices = [_open_slice(records[at : at + SLICE]) for at in range(0, len(records), SLICE)]
    return Opened(
        events=_joined([one.events for one in slices]),
        calls=_joined([one.calls for one in slices]),
        findings=_joined([one.findings for one in slices]),
        unreadable=[letter for one in slices for letter in one.unreadable],
    )


def _open_slice(records: Sequence[Delivered]) -> Opened:
    kinds: defaultdict[type, _Kind] = defaultdict(_Kind)
    unreadable: list[Unreadable] = []
    for record in records:
        event = read(record)
        if isinstance(event, Unreadable):
            unreadable.append(event)
            continue
        kind = kinds[type(event)]
        kind.events.append(event)
        kind.records.append(record)
    return Opened(
        events=_joined([_event_columns(kind) for kind in kinds.values()]),
        calls=_joined([_call_columns(kinds[of].events, said) for of, said in _SAID.items() if of in kinds]),
        findings=_finding_columns(kinds[RaisedFinding]) if RaisedFinding in kinds else {},
        unreadable=unreadable,
    )


def _joined(parts: Sequence[Columns]) -> Columns:
    filled = [part for part in parts if part]
    if len(filled) < 2:
        return filled[0] if filled else {}
    return {name: list(chain.from_iterable([part[name] for part in filled])) for name in filled[0]}


# The columns of `events_raw`.

_COMMON: dict[str, Getter] = {
    "event_id": attrgetter("id"),
    "tenant": attrgetter("tenant"),
    "region": attrgetter("region"),
    "time": attrgetter("time_us"),
    "writer": attrgetter("writer"),
    "seq": attrgetter("seq"),
    "prev": attrgetter("prev"),
}
_FILTERS = ("subject_id", "agent", "session_id", "call_id", "server", "target", "decision", "reason")
_INSTEAD = {"target": "tool", "reason": "rule"}
_POSITION: dict[str, Getter] = {
    "topic": attrgetter("topic"),
    "partition": attrgetter("partition"),
    "offset": attrgetter("offset"),
    "logged_at": attrgetter("time_us"),
    "raw": attrgetter("value"),
}


def _event_columns(kind: _Kind) -> Columns:
    """A field to filter by that this kind of event does not have is empty."""
    count, example = len(kind.events), kind.events[0]
    columns: dict[str, list[Any]] = {"type": [_type_of(example)] * count}
    columns |= {name: list(map(getter, kind.events)) for name, getter in _COMMON.items()}
    columns |= {name: list(map(getter, kind.records)) for name, getter in _POSITION.items()}
    columns["hash"] = [hashlib.sha256(raw).hexdigest() for raw in columns["raw"]]
    for name in _FILTERS:
        source = name if hasattr(example, name) else _INSTEAD.get(name, name)
        columns[name] = list(map(attrgetter(source), kind.events)) if hasattr(example, source) else [""] * count
    return columns


def _type_of(event: AnyEvent | RaisedFinding) -> str:
    return "finding.raised.v1" if isinstance(event, RaisedFinding) else type_of(event)


# The columns of `calls_raw`: what every event of a call repeats, and what each kind alone says.


def _json(part: msgspec.Raw) -> bytes:
    """What was captured; empty where nothing was, so that it never hides what another event of the call captured."""
    text = bytes(part)
    return b"" if text == b"null" else text


def _box(event: CallEvent) -> bytes:
    """The sealed personal part as bytes; empty where the event is plain, or has what no key could open."""
    text = event.sealed.box
    if not text:
        return b""
    try:
        box = binascii.a2b_base64(text)
    except ValueError:
        return b""
    return box if len(box) >= BOX_BYTES_MIN else b""


def _findings(findings: tuple[Finding, ...]) -> Sequence[tuple[str, str, str, str, int]]:
    return [(one.rule, one.severity, one.action, one.direction, one.count) for one in findings] if findings else ()


_DIMENSIONS: dict[str, Getter] = {
    **{
        name: attrgetter(name)
        for name in (
            *("tenant", "call_id", "root_call_id", "region", "edge", "subject_id", "agent", "session_id", "protocol"),
            *("protocol_session_id", "method", "server", "target", "decision", "bundle", "labels"),
        )
    },
    "requested_at": attrgetter("requested_us"),
    "issuer": attrgetter("sealed.issuer"),
    "subject": attrgetter("sealed.subject"),
    "login": attrgetter("sealed.login"),
    "claimed_client": attrgetter("sealed.claimed_client"),
    "arguments": lambda event: _json(event.sealed.arguments),
    "result": lambda event: _json(event.sealed.result),
    "inputs": lambda event: _json(event.sealed.inputs),
}
_SIDE = ("mode", "stage", "reason", "message", "rules")
_REQUESTED: dict[str, Getter] = {
    "version": lambda _: 1,
    "requested_event": attrgetter("id"),
    **{f"requested_{name}": attrgetter(name) for name in _SIDE},
    "release": attrgetter("inputs.release"),
    "catalog": attrgetter("inputs.catalog"),
    "groups": attrgetter("inputs.groups"),
    "control_epoch": attrgetter("inputs.control_epoch"),
    "arguments_kept": attrgetter("inputs.arguments_kept"),
    "arguments_capture": attrgetter("capture"),
    "arguments_digest": attrgetter("arguments_digest"),
    "arguments_fingerprints": attrgetter("fingerprints"),
    "arguments_findings": lambda event: _findings(event.findings),
    "arguments_bytes": attrgetter("arguments_bytes"),
    "request_kid": attrgetter("sealed.kid"),
    "request_box": _box,
}
_ABANDONED: dict[str, Getter] = {
    "version": lambda _: 2,
    "abandoned_event": attrgetter("id"),
    "abandoned_at": attrgetter("found_us"),
    **{f"requested_{name}": attrgetter(name) for name in _SIDE},
    "request_kid": attrgetter("sealed.kid"),
    "request_box": _box,
}
_COMPLETED: dict[str, Getter] = {
    "version": lambda _: 3,
    "completed_event": attrgetter("id"),
    "completed_at": attrgetter("completed_us"),
    **{f"completed_{name}": attrgetter(name) for name in _SIDE},
    "arguments_bytes": attrgetter("arguments_bytes"),
    "outcome": attrgetter("outcome"),
    "error_code": lambda event: event.error_code or None,
    "policy_us": attrgetter("policy_us"),
    "upstream_us": attrgetter("upstream_us"),
    "total_us": attrgetter("total_us"),
    "masked": attrgetter("masked"),
    "result_capture": attrgetter("capture"),
    "result_bytes": attrgetter("result_bytes"),
    "result_digest": attrgetter("result_digest"),
    "result_fingerprints": attrgetter("fingerprints"),
    "result_findings": lambda event: _findings(event.findings),
    "completion_kid": attrgetter("sealed.kid"),
    "completion_box": _box,
}


def _least(column: str) -> Any:
    """The value that a column has where nobody said anything: every other one is greater."""
    if column.endswith(("_rules", "_findings", "_fingerprints")) or column == "groups":
        return ()
    if column == "error_code":
        return None
    if column.endswith("_box"):
        return b""
    texts = ("_event", "_mode", "_stage", "_reason", "_message", "_capture", "_digest", "_kid")
    return "" if column.endswith(texts) or column in ("outcome", "catalog") else 0


_LEAST = {column: _least(column) for column in _REQUESTED | _ABANDONED | _COMPLETED}


_SAID = {CallRequested: _REQUESTED, CallAbandoned: _ABANDONED, CallCompleted: _COMPLETED}


def _call_columns(events: Sequence[CallEvent], said: Mapping[str, Getter]) -> Columns:
    columns: dict[str, list[Any]] = {name: list(map(getter, events)) for name, getter in _DIMENSIONS.items()}
    for name, least in _LEAST.items():
        columns[name] = list(map(said[name], events)) if name in said else [least] * len(events)
    return columns


# The columns of `findings_raw`.

_FINDING: dict[str, Getter] = {
    "finding_id": attrgetter("id"),
    "raised_at": attrgetter("time_us"),
    **{
        name: attrgetter(name)
        for name in (
            *(
                "tenant",
                "region",
                "rule",
                "severity",
                "title",
                "message",
                "subject_id",
                "agent",
                "session_id",
                "server",
            ),
            *("target", "call_ids"),
        )
    },
}


def _finding_columns(raised: _Kind) -> Columns:
    columns = {name: list(map(getter, raised.events)) for name, getter in _FINDING.items()}
    columns["ocsf"] = [record.value for record in raised.records]
    columns["offset"] = [record.offset for record in raised.records]
    return columns
