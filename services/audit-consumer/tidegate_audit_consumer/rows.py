"""A batch of records into whole columns for ClickHouse, and those that cannot be read apart. Pure.

Columns are built one at a time over the events of one kind, which costs a third of building rows. Counterparts:
`reading.py` (what may come in), the tables in `migrations/`.
"""

import binascii
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from tidegate.analytics.native import Made, block
from tidegate.analytics.port import Blocks, rows_of
from tidegate.events import CallAbandoned, CallCompleted, CallRequested, Finding, Shadowed, type_of
from tidegate.log.port import Delivered
from tidegate.ocsf.finding import RaisedFinding
from tidegate_audit_consumer.reading import Unreadable, read

Columns = Mapping[str, Sequence[Any]]
Getter = Callable[[Any], Any]

SLICE = 256  # records opened at a time: what is made of them stays in the processor's cache
BOX_BYTES_MIN = 28  # of a sealed part: nonce and tag


class _Within(NamedTuple):
    """A part of the values of another column, which is made once for all that look into it."""

    whole: "Source"
    part: Getter


Source = Getter | _Within


class Opened(NamedTuple):
    """A batch, readable part and rest. Without any names where there are no rows."""

    events: Blocks
    calls: Blocks
    findings: Columns
    unreadable: list[Unreadable]


class _Slice:
    """Events of one kind out of few records, column by column. A column that two tables share is made once."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.events: list[Any] = []
        self.records: list[Delivered] = []
        self._made: dict[Source, list[Any]] = {}

    def event_columns(self) -> dict[str, list[Any]]:
        columns = {name: self._column(getter) for name, getter in _event_getters(self.kind).items()}
        columns |= {name: list(map(getter, self.records)) for name, getter in _POSITION.items()}
        columns["type"] = [_type_of(self.kind)] * len(self.events)
        columns["hash"] = [hashlib.sha256(record.value or b"").hexdigest() for record in self.records]
        return columns

    def call_columns(self) -> dict[str, list[Any]]:
        """Those with something in them; nothing is the least value of each. Empty for other events."""
        columns = {name: self._column(getter) for name, getter in _CALL_GETTERS.get(self.kind, {}).items()}
        return {name: column for name, column in columns.items() if any(column)}

    def finding_columns(self) -> dict[str, list[Any]]:
        if self.kind is not RaisedFinding:
            return {}
        columns = {name: self._column(getter) for name, getter in _FINDING.items()}
        return columns | {"ocsf": [one.value for one in self.records], "offset": [one.offset for one in self.records]}

    def _column(self, source: Source) -> list[Any]:
        made = self._made.get(source)
        if made is None:
            if isinstance(source, _Within):
                made = list(map(source.part, self._column(source.whole)))
            else:
                made = list(map(source, self.events))
            self._made[source] = made
        return made


def open_batch(records: Sequence[Delivered]) -> Opened:
    """Columns for what can be read. Costs CPU: run it beside the event loop.

    Each slice is laid out for ClickHouse at once: its values are dropped before they leave the processor's cache.
    """
    unreadable: list[Unreadable] = []
    events: list[bytes] = []
    calls: list[bytes] = []
    findings: list[Columns] = []
    counts = Counter[str]()
    for one in _slices(records, unreadable):
        made = Made()
        events.append(block(one.event_columns(), EVENT_TYPES, made))
        if said := one.call_columns():
            calls.append(block(said, CALL_TYPES, made))
            counts["calls"] += len(one.events)
        if raised := one.finding_columns():
            findings.append(raised)
        counts["events"] += len(one.events)
    return Opened(
        events=Blocks(counts["events"], tuple(EVENT_TYPES), events, partial(_plain, records, _Slice.event_columns, {})),
        calls=Blocks(counts["calls"], tuple(CALL_TYPES), calls, partial(_plain, records, _Slice.call_columns, _LEAST)),
        findings=_joined(findings, {}),
        unreadable=unreadable,
    )


def _slices(records: Sequence[Delivered], unreadable: list[Unreadable]) -> Iterator[_Slice]:
    for at in range(0, len(records), SLICE):
        kinds: dict[type, _Slice] = {}
        for record in records[at : at + SLICE]:
            event = read(record)
            if isinstance(event, Unreadable):
                unreadable.append(event)
                continue
            of = kinds.get(type(event)) or kinds.setdefault(type(event), _Slice(type(event)))
            of.events.append(event)
            of.records.append(record)
        yield from kinds.values()


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


_of = cache(attrgetter)  # one getter a field: a column that stands under two names is made once

# The columns of `events_raw`.

_COMMON: dict[str, Getter] = {
    "event_id": _of("id"),
    "tenant": _of("tenant"),
    "region": _of("region"),
    "time": _of("time_us"),
    "writer": _of("writer"),
    "seq": _of("seq"),
    "prev": _of("prev"),
}
_FILTERS = ("subject_id", "agent", "session_id", "call_id", "server", "target", "decision", "reason")
_INSTEAD = {"target": "tool", "reason": "rule"}
_POSITION: dict[str, Getter] = {
    "topic": _of("topic"),
    "partition": _of("partition"),
    "offset": _of("offset"),
    "logged_at": _of("time_us"),
    "raw": _of("value"),
}


@cache
def _event_getters(kind: type) -> Mapping[str, Getter]:
    """A field to filter by that this kind of event does not have is empty."""
    getters, fields = dict(_COMMON), kind.__struct_fields__  # type: ignore[attr-defined]
    for name in _FILTERS:
        source = name if name in fields else _INSTEAD.get(name, name)
        getters[name] = _of(source) if source in fields else _nothing
    return getters


def _nothing(_: Any) -> str:
    return ""


@cache
def _type_of(kind: type) -> str:
    return "finding.raised.v1" if kind is RaisedFinding else type_of(kind)


# The columns of `calls_raw`: what every event of a call repeats, and what each kind alone says.


def _sealed(name: str) -> _Within:
    return _Within(_of("sealed"), _of(name))


def _input(name: str) -> _Within:
    return _Within(_of("inputs"), _of(name))


def _captured(raw: msgspec.Raw) -> bytes:
    """What was captured; empty where nothing was, so that it never hides what another event of the call captured."""
    text = bytes(raw)
    return b"" if text == b"null" else text


def _box(text: str) -> bytes:
    """The sealed personal part as bytes; empty where the event is plain, or has what no key could open."""
    if not text:
        return b""
    try:
        box = binascii.a2b_base64(text)
    except ValueError:
        return b""
    return box if len(box) >= BOX_BYTES_MIN else b""


def _findings(findings: tuple[Finding, ...]) -> Sequence[tuple[str, str, str, str, int]]:
    return [(one.rule, one.severity, one.action, one.direction, one.count) for one in findings] if findings else ()


_DIMENSIONS: dict[str, Source] = {
    **{
        name: _of(name)
        for name in (
            *("tenant", "call_id", "root_call_id", "region", "edge", "subject_id", "agent", "session_id", "protocol"),
            *("protocol_session_id", "method", "server", "target", "decision", "bundle", "labels"),
        )
    },
    "requested_at": _of("requested_us"),
    "issuer": _sealed("issuer"),
    "subject": _sealed("subject"),
    "login": _sealed("login"),
    "claimed_client": _sealed("claimed_client"),
    "address": _sealed("address"),
    "arguments": _Within(_sealed("arguments"), _captured),
    "result": _Within(_sealed("result"), _captured),
    "inputs": _Within(_sealed("inputs"), _captured),
}


def _shadows(shadows: tuple[Shadowed, ...]) -> Sequence[tuple[str, int, str, str, tuple[str, ...]]]:
    return [(one.bundle, one.release, one.decision, one.reason, one.rules) for one in shadows] if shadows else ()


_SIDE = ("mode", "stage", "reason", "message", "rules")
_REQUESTED: dict[str, Source] = {
    "version": lambda _: 1,
    "requested_event": _of("id"),
    **{f"requested_{name}": _of(name) for name in _SIDE},
    "release": _input("release"),
    "role": _Within(_input("role"), {"ruling": "", "canary": "canary", "shadow": "shadow"}.__getitem__),
    "principal_kind": _Within(_input("kind"), {"user": "", "service": "service"}.__getitem__),
    "taint": _input("taint"),
    "facts": _input("facts"),
    "approval_id": _of("approval_id"),
    "shadows": _Within(_of("shadows"), _shadows),
    "retry_after_ms": _of("retry_after_ms"),
    "catalog": _input("catalog"),
    "groups": _input("groups"),
    "control_epoch": _input("control_epoch"),
    "arguments_kept": _input("arguments_kept"),
    "arguments_capture": _of("capture"),
    "arguments_digest": _of("arguments_digest"),
    "arguments_fingerprints": _of("fingerprints"),
    "arguments_findings": _Within(_of("findings"), _findings),
    "arguments_bytes": _of("arguments_bytes"),
    "request_kid": _sealed("kid"),
    "request_box": _Within(_sealed("box"), _box),
}
_ABANDONED: dict[str, Source] = {
    "version": lambda _: 2,
    "abandoned_event": _of("id"),
    "abandoned_at": _of("found_us"),
    **{f"requested_{name}": _of(name) for name in _SIDE},
    "request_kid": _sealed("kid"),
    "request_box": _Within(_sealed("box"), _box),
}
_COMPLETED: dict[str, Source] = {
    "version": lambda _: 3,
    "completed_event": _of("id"),
    "completed_at": _of("completed_us"),
    **{f"completed_{name}": _of(name) for name in _SIDE},
    "arguments_bytes": _of("arguments_bytes"),
    "outcome": _of("outcome"),
    "error_code": lambda event: event.error_code or None,
    "policy_us": _of("policy_us"),
    "upstream_us": _of("upstream_us"),
    "total_us": _of("total_us"),
    "masked": _of("masked"),
    "records": _of("records"),
    "cost_micros": _of("cost_micros"),
    "result_capture": _of("capture"),
    "result_bytes": _of("result_bytes"),
    "result_digest": _of("result_digest"),
    "result_fingerprints": _of("fingerprints"),
    "result_findings": _Within(_of("findings"), _findings),
    "completion_kid": _sealed("kid"),
    "completion_box": _Within(_sealed("box"), _box),
}


_CALL_GETTERS: Mapping[type, Mapping[str, Source]] = {
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
CALL_TYPES: Mapping[str, str] = dict.fromkeys((*_DIMENSIONS, *_REQUESTED, *_ABANDONED, *_COMPLETED), "String") | {
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
_FINDING: dict[str, Getter] = {
    "finding_id": _of("id"),
    "raised_at": _of("time_us"),
    **{name: _of(name) for name in _OF_FINDING},
}
