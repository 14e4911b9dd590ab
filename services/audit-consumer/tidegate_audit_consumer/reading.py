"""One delivered record into the event it holds, or why it cannot be read. Pure.

Whatever is read here can be inserted: values that ClickHouse could not hold make a record unreadable, because an
insert that can never succeed would stop ingestion for good. Counterpart: `rows.py`, which makes columns of what was
read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tidegate.audit.links import PREV_CHARS, is_bounded
from tidegate.events import AnyEvent, CallAbandoned, CallCompleted, CallRequested
from tidegate.limits import RECORD_ID_CHARS_MAX, WRITER_CHARS_MAX
from tidegate.log.port import Delivered
from tidegate.ocsf.finding import RaisedFinding, open_finding
from tidegate.upcast import UnknownType, open_any

TIME_MIN_US = 946_684_800_000_000  # 2000-01-01
TIME_MAX_US = 4_102_444_800_000_000  # 2100-01-01
INT_MAX = 2**63 - 1

CallEvent = CallRequested | CallCompleted | CallAbandoned


class Unreadable(NamedTuple):
    """A dead letter: the record, a reason in kebab case and what was wrong with it."""

    record: Delivered
    reason: str
    message: str


def read(record: Delivered) -> AnyEvent | RaisedFinding | Unreadable:
    """Of any schema version that this one knows. Never raises."""
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


_TIMES: Final[Mapping[type, Sequence[str]]] = {
    CallRequested: ("time_us", "requested_us"),
    CallCompleted: ("time_us", "requested_us", "completed_us"),
    CallAbandoned: ("time_us", "requested_us", "found_us"),
}
_COUNTS: Final[Mapping[type, Sequence[str]]] = {
    CallRequested: ("seq", "arguments_bytes", "retry_after_ms"),
    CallCompleted: (
        *("seq", "arguments_bytes", "result_bytes", "policy_us", "upstream_us", "total_us", "masked"),
        *("records", "cost_micros"),
    ),
}


def are_in_range(kind: type, part: Callable[[str], Mapping[str, Sequence[Any]]]) -> bool:
    """Whether `read` takes all of some events, given as columns. Where not, it says of which and why.

    `part("")`: their fields; `part("inputs")`: the fields of these.
    """
    fields = part("")
    times = [fields[name] for name in _TIMES.get(kind, ("time_us",))]
    counts = [fields[name] for name in _COUNTS.get(kind, ("seq",))]
    if kind is CallRequested:
        counts += [part("inputs")["release"], part("inputs")["control_epoch"]]
    codes = fields["error_code"] if kind is CallCompleted else (0,)
    return (
        min(map(min, times)) >= TIME_MIN_US
        and max(map(max, times)) < TIME_MAX_US
        and min(map(min, counts)) >= 0
        and max(map(max, counts)) <= INT_MAX
        and -INT_MAX <= min(codes) <= max(codes) <= INT_MAX
        and all(0 <= one.count <= INT_MAX for found in fields.get("findings", ()) if found for one in found)
        and all(0 <= one.release <= INT_MAX for said in fields.get("shadows", ()) if said for one in said)
        and all(fields["id"])
        and all(fields["tenant"])
        and max(map(len, fields["id"])) <= RECORD_ID_CHARS_MAX
        and max(map(len, fields["writer"])) <= WRITER_CHARS_MAX
        and max(map(len, fields["prev"])) <= PREV_CHARS
    )


def _out_of_range(event: AnyEvent | RaisedFinding) -> str:
    """What ClickHouse's columns could not hold; "" if nothing."""
    if not TIME_MIN_US <= event.time_us < TIME_MAX_US:
        return f"time_us {event.time_us} is not between the years 2000 and 2100"
    if not is_bounded(event.writer, event.seq, event.prev, event.id, event.time_us):
        return "writer, id, seq or prev is larger than any chain's"
    if not 0 <= event.seq <= INT_MAX:
        return f"seq {event.seq} is not a count"
    if not event.id or not event.tenant:
        return "id and tenant must not be empty"
    if isinstance(event, CallEvent):
        return _call_out_of_range(event)
    return ""


def _call_out_of_range(event: CallEvent) -> str:
    match event:
        case CallRequested():
            ended_us, inputs = event.requested_us, event.inputs
            is_counts = 0 <= event.arguments_bytes <= INT_MAX and 0 <= inputs.release <= INT_MAX
            is_counts = is_counts and 0 <= inputs.control_epoch <= INT_MAX and 0 <= event.retry_after_ms <= INT_MAX
            is_counts = is_counts and all(0 <= one.release <= INT_MAX for one in event.shadows)
        case CallCompleted():
            ended_us = event.completed_us
            is_counts = (
                0 <= event.arguments_bytes <= INT_MAX
                and 0 <= event.result_bytes <= INT_MAX
                and 0 <= event.policy_us <= INT_MAX
                and 0 <= event.upstream_us <= INT_MAX
                and 0 <= event.total_us <= INT_MAX
                and 0 <= event.masked <= INT_MAX
                and 0 <= event.records <= INT_MAX
                and 0 <= event.cost_micros <= INT_MAX
                and -INT_MAX <= event.error_code <= INT_MAX
            )
        case CallAbandoned():
            ended_us, is_counts = event.found_us, True
    if not (TIME_MIN_US <= event.requested_us < TIME_MAX_US and TIME_MIN_US <= ended_us < TIME_MAX_US):
        return f"requested at {event.requested_us}, ended at {ended_us}: not between the years 2000 and 2100"
    if not is_counts:
        return "a size, a duration, a release or an epoch is negative or too large"
    if not isinstance(event, CallAbandoned) and any(not 0 <= one.count <= INT_MAX for one in event.findings):
        return "a finding's count is negative or too large"
    return ""
