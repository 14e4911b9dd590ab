"""A batch of records into whole columns for ClickHouse, and those that cannot be read apart. Pure.

Columns are built one at a time over the events of one kind, which costs a third of building rows. Counterparts:
`reading.py` (what may come in), the tables in `migrations/`.
"""

import binascii
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import msgspec

from tidegate.analytics.native import Block, Made
from tidegate.analytics.port import Blocks, rows_of
from tidegate.chain import open_events
from tidegate.events import CallAbandoned, CallCompleted, CallRequested, Finding, Shadowed, type_of
from tidegate.log.port import Delivered
from tidegate.ocsf.finding import RaisedFinding
from tidegate_audit_consumer.reading import Unreadable, are_in_range, read

Column = Sequence[Any]
Columns = Mapping[str, Column]

SLICE = 256  # records opened at a time: what is made of them stays in the processor's cache
BOX_BYTES_MIN = 28  # of a sealed part: nonce and tag


class _Source(NamedTuple):
    """Where a column comes from: a field of the events, or of a part of them, and what is made of it where any is."""

    field: str
    part: str = ""
    made: Callable[[Column], Column] = tuple


class Opened(NamedTuple):
    """A batch, readable part and rest. Without any names where there are no rows."""

    events: Blocks
    calls: Blocks
    findings: Columns
    unreadable: list[Unreadable]


class _Slice:
    """Events of one kind out of few records, column by column."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.events: list[Any] = []
        self.records: list[Delivered] = []
        self._parts: dict[str, Columns] = {}

    def part(self, name: str) -> Columns:
        """The fields of all the events by name, or those of one part of the events."""
        if name not in self._parts:
            self._parts[name] = fields_of(self.part("")[name] if name else self.events)
        return self._parts[name]

    def event_columns(self) -> dict[str, Column]:
        fields, rows = self.part(""), len(self.events)
        columns = {name: fields[field] if field else [""] * rows for name, field in _event_fields(self.kind).items()}
        positions = dict(zip(Delivered._fields, zip(*self.records, strict=True), strict=True))
        columns |= {name: positions[field] for name, field in _POSITION.items()}
        columns["type"] = [_type_of(self.kind)] * rows
        columns["hash"] = [hashlib.sha256(value or b"").hexdigest() for value in positions["value"]]
        return columns

    def call_columns(self) -> dict[str, Column]:
        """Those with something in them; nothing is the least value of each. Empty for other events."""
        if self.kind not in _CALL_SOURCES:
            return {}
        columns: dict[str, Column] = {"version": [_VERSIONS[self.kind]] * len(self.events)}
        for name, (field, part, made) in _CALL_SOURCES[self.kind].items():
            column = self.part(part)[field]
            if not any(column):
                continue
            if made is not tuple:
                column = made(column)
                if not any(column):
                    continue
            columns[name] = column
        return columns

    def finding_columns(self) -> dict[str, Column]:
        if self.kind is not RaisedFinding:
            return {}
        columns = {name: self.part("")[field] for name, field in _FINDING.items()}
        return columns | {"ocsf": [one.value for one in self.records], "offset": [one.offset for one in self.records]}


def fields_of(structs: Sequence[Any]) -> Columns:
    """The fields of structs of one kind, a column each."""
    columns = zip(*map(msgspec.structs.astuple, structs), strict=True)
    return dict(zip(structs[0].__struct_fields__, columns, strict=True))


def open_batch(records: Sequence[Delivered]) -> Opened:
    """Columns for what can be read. Costs CPU: run it beside the event loop.

    Each slice is laid out for ClickHouse at once: its values are dropped before they leave the processor's cache. What
    is sent is few large blocks all the same: ClickHouse takes twice as long for many small ones.
    """
    unreadable: list[Unreadable] = []
    events, calls, findings = Block(EVENT_TYPES), dict[type, Block](), list[Columns]()
    for one in _slices(records, unreadable):
        made = Made()
        events.add(one.event_columns(), made)
        if said := one.call_columns():
            calls.setdefault(one.kind, Block(CALL_TYPES)).add(said, made)
        if raised := one.finding_columns():
            findings.append(raised)
    plain = partial(_plain, records)
    call_rows = sum(one.rows for one in calls.values())
    call_pieces = [piece for one in calls.values() for piece in one.laid_out()]
    return Opened(
        events=Blocks(events.rows, tuple(EVENT_TYPES), events.laid_out(), partial(plain, _Slice.event_columns, {})),
        calls=Blocks(call_rows, tuple(CALL_TYPES), call_pieces, partial(plain, _Slice.call_columns, _LEAST)),
        findings=_joined(findings, {}),
        unreadable=unreadable,
    )


def _slices(records: Sequence[Delivered], unreadable: list[Unreadable]) -> Iterator[_Slice]:
    for at in range(0, len(records), SLICE):
        some = records[at : at + SLICE]
        yield from _opened_together(some) or _opened_singly(some, unreadable)


def _opened_together(some: Sequence[Delivered]) -> list[_Slice]:
    """None of them where one has to be looked at by itself."""
    values = [record.value for record in some if record.value is not None and record.topic != "detections"]
    if len(values) < len(some):
        return []
    try:
        slices = _by_kind(some, open_events(values))
    except msgspec.DecodeError:
        return []
    return slices if all(are_in_range(one.kind, one.part) for one in slices) else []


def _opened_singly(some: Sequence[Delivered], unreadable: list[Unreadable]) -> list[_Slice]:
    events = list(map(read, some))
    unreadable += [event for event in events if isinstance(event, Unreadable)]
    return [one for one in _by_kind(some, events) if one.kind is not Unreadable]


def _by_kind(records: Sequence[Delivered], events: Sequence[Any]) -> list[_Slice]:
    kinds: dict[type, _Slice] = {}
    for record, event in zip(records, events, strict=True):
        of = kinds.get(type(event)) or kinds.setdefault(type(event), _Slice(type(event)))
        of.events.append(event)
        of.records.append(record)
    return list(kinds.values())


def _plain(records: Sequence[Delivered], columns_of: Callable[[_Slice], Columns], least: Mapping[str, Any]) -> Columns:
    """The same rows as values, for who wants to look at them."""
    return _joined([columns for one in _slices(records, []) if (columns := columns_of(one))], least)


def _joined(parts: Sequence[Columns], least: Mapping[str, Any]) -> Columns:
    joined: dict[str, list[Any]] = {}
    for part in parts:
        rows = rows_of(part)
        for name in (part.keys() | least.keys()) if parts else ():
            joined.setdefault(name, []).extend(part[name] if name in part else [least[name]] * rows)
    return joined


# The columns of `events_raw`.

_COMMON = {
    "event_id": "id",
    "tenant": "tenant",
    "region": "region",
    "time": "time_us",
    "writer": "writer",
    "seq": "seq",
    "prev": "prev",
}
_FILTERS = ("subject_id", "agent", "session_id", "call_id", "server", "target", "decision", "reason")
_INSTEAD = {"target": "tool", "reason": "rule"}
_POSITION = {
    "topic": "topic",
    "partition": "partition",
    "offset": "offset",
    "logged_at": "time_us",
    "raw": "value",
}


@cache
def _event_fields(kind: type) -> Mapping[str, str]:
    """The field of each column; "" for one to filter by that this kind of event does not have."""
    found, fields = dict(_COMMON), kind.__struct_fields__  # type: ignore[attr-defined]
    for name in _FILTERS:
        field = name if name in fields else _INSTEAD.get(name, name)
        found[name] = field if field in fields else ""
    return found


@cache
def _type_of(kind: type) -> str:
    return "finding.raised.v1" if kind is RaisedFinding else type_of(kind)


# The columns of `calls_raw`: what every event of a call repeats, and what each kind alone says.


def _captured(column: Column) -> Column:
    """What was captured; empty where nothing was, so that it never hides what another event of the call captured."""
    texts = list(map(bytes, column))
    return [b"" if text == b"null" else text for text in texts] if b"null" in texts else texts


def _boxes(column: Column) -> Column:
    return list(map(_box, column))


def _box(text: str) -> bytes:
    """The sealed personal part as bytes; empty where the event is plain, or has what no key could open."""
    if not text:
        return b""
    try:
        box = binascii.a2b_base64(text)
    except ValueError:
        return b""
    return box if len(box) >= BOX_BYTES_MIN else b""


def _findings(column: Sequence[tuple[Finding, ...]]) -> Column:
    return [
        [(one.rule, one.severity, one.action, one.direction, one.count) for one in found] if found else ()
        for found in column
    ]


def _shadows(column: Sequence[tuple[Shadowed, ...]]) -> Column:
    return [
        [(one.bundle, one.release, one.decision, one.reason, one.rules) for one in said] if said else ()
        for said in column
    ]


def _least_empty(column: Column) -> Column:
    """What goes without saying is the least value."""
    return ["" if text in ("ruling", "user") else text for text in column]


def _codes(column: Column) -> Column:
    return [code or None for code in column]


_DIMENSIONS = {
    **{
        name: _Source(name)
        for name in (
            *("tenant", "call_id", "root_call_id", "region", "edge", "subject_id", "agent", "session_id", "protocol"),
            *("protocol_session_id", "method", "server", "target", "decision", "bundle", "labels"),
        )
    },
    "requested_at": _Source("requested_us"),
    **{name: _Source(name, "sealed") for name in ("issuer", "subject", "login", "claimed_client", "address")},
    **{name: _Source(name, "sealed", _captured) for name in ("arguments", "result", "inputs")},
}
_SIDE = ("mode", "stage", "reason", "message", "rules")
_REQUESTED = {
    "requested_event": _Source("id"),
    **{f"requested_{name}": _Source(name) for name in _SIDE},
    **{
        name: _Source(name, "inputs")
        for name in ("release", "taint", "facts", "catalog", "groups", "control_epoch", "arguments_kept")
    },
    "role": _Source("role", "inputs", _least_empty),
    "principal_kind": _Source("kind", "inputs", _least_empty),
    "approval_id": _Source("approval_id"),
    "shadows": _Source("shadows", "", _shadows),
    "retry_after_ms": _Source("retry_after_ms"),
    "arguments_capture": _Source("capture"),
    "arguments_digest": _Source("arguments_digest"),
    "arguments_fingerprints": _Source("fingerprints"),
    "arguments_findings": _Source("findings", "", _findings),
    "arguments_bytes": _Source("arguments_bytes"),
    "request_kid": _Source("kid", "sealed"),
    "request_box": _Source("box", "sealed", _boxes),
}
_ABANDONED = {
    "abandoned_event": _Source("id"),
    "abandoned_at": _Source("found_us"),
    **{f"requested_{name}": _Source(name) for name in _SIDE},
    "request_kid": _Source("kid", "sealed"),
    "request_box": _Source("box", "sealed", _boxes),
}
_COMPLETED = {
    "completed_event": _Source("id"),
    "completed_at": _Source("completed_us"),
    **{f"completed_{name}": _Source(name) for name in _SIDE},
    **{name: _Source(name) for name in ("arguments_bytes", "outcome", "policy_us", "upstream_us", "total_us")},
    **{name: _Source(name) for name in ("masked", "records", "cost_micros", "result_bytes", "result_digest")},
    "error_code": _Source("error_code", "", _codes),
    "result_capture": _Source("capture"),
    "result_fingerprints": _Source("fingerprints"),
    "result_findings": _Source("findings", "", _findings),
    "completion_kid": _Source("kid", "sealed"),
    "completion_box": _Source("box", "sealed", _boxes),
}
_VERSIONS: Mapping[type, int] = {CallRequested: 1, CallAbandoned: 2, CallCompleted: 3}
_CALL_SOURCES: Mapping[type, Mapping[str, _Source]] = {
    CallRequested: _DIMENSIONS | _REQUESTED,
    CallAbandoned: _DIMENSIONS | _ABANDONED,
    CallCompleted: _DIMENSIONS | _COMPLETED,
}

# What the columns are sent as: ClickHouse casts texts to what the table has.

_TIME, _COUNT, _LIST = "DateTime64(6, 'UTC')", "UInt64", "Array(String)"
_MATCHES = "Array(Tuple(rule String, severity String, action String, direction String, count UInt64))"
EVENT_TYPES: Mapping[str, str] = dict.fromkeys((*_COMMON, *_FILTERS, *_POSITION, "type", "hash"), "String") | {
    **dict.fromkeys(("time", "logged_at"), _TIME),
    **dict.fromkeys(("seq", "offset"), _COUNT),
    "partition": "UInt32",
}
CALL_TYPES: Mapping[str, str] = dict.fromkeys(
    ("version", *_DIMENSIONS, *_REQUESTED, *_ABANDONED, *_COMPLETED), "String"
) | {
    **dict.fromkeys(("requested_at", "abandoned_at", "completed_at"), _TIME),
    **dict.fromkeys(("release", "control_epoch", "arguments_bytes", "result_bytes"), _COUNT),
    **dict.fromkeys(("policy_us", "upstream_us", "total_us", "masked"), _COUNT),
    **dict.fromkeys(("retry_after_ms", "records", "cost_micros"), _COUNT),
    **dict.fromkeys(("version", "arguments_kept"), "UInt8"),
    **dict.fromkeys(("labels", "groups", "taint", "facts", "requested_rules", "completed_rules"), _LIST),
    **dict.fromkeys(("arguments_fingerprints", "result_fingerprints"), _LIST),
    **dict.fromkeys(("arguments_findings", "result_findings"), _MATCHES),
    "shadows": "Array(Tuple(bundle String, release UInt64, decision String, reason String, rules Array(String)))",
    "error_code": "Nullable(Int64)",
}


def _least(kind: str) -> Any:
    """The value that a column has where nobody said anything: every other one is greater."""
    if kind.startswith("Array"):
        return ()
    return None if kind.startswith("Nullable") else "" if kind == "String" else 0


_LEAST = {name: _least(kind) for name, kind in CALL_TYPES.items()}

# The columns of `findings_raw`.

_OF_FINDING = (
    *("tenant", "region", "rule", "severity", "title", "message", "subject_id", "agent", "session_id", "server"),
    *("target", "call_ids"),
)
_FINDING = {"finding_id": "id", "raised_at": "time_us", **{name: name for name in _OF_FINDING}}
