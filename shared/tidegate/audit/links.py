"""What a chain needs to know of stored bytes: an event's opening, or the same of a finding's OCSF object. Pure.

What a chain names is bounded, because it goes into roots: one record must not make a root that the log refuses.
"""

import hashlib

import msgspec

from tidegate.audit.runs import Link
from tidegate.limits import RECORD_ID_CHARS_MAX, WRITER_CHARS_MAX

PREV_CHARS = 64  # SHA-256, hex
INT_MAX = 2**63 - 1


class _Metadata(msgspec.Struct, frozen=True):
    uid: str = ""


class _Own(msgspec.Struct, frozen=True):
    time_us: int = 0
    writer: str = ""
    seq: int = 0
    prev: str = ""


class _Unmapped(msgspec.Struct, frozen=True):
    tidegate: _Own = _Own()


class _Opening(msgspec.Struct, frozen=True):
    """Of an event; findings have `class_uid`, and their own fields one level down."""

    id: str = ""
    time_us: int = 0
    writer: str = ""
    seq: int = 0
    prev: str = ""
    class_uid: int = 0
    metadata: _Metadata = _Metadata()
    unmapped: _Unmapped = _Unmapped()


_decoder = msgspec.json.Decoder(_Opening)


def link_of(value: bytes) -> Link | None:
    """None where the bytes are no record of a chain: unreadable ones are dead letters, chained by nobody.

    So are those whose writer, id, number or time is beyond what any writer of ours has (`is_bounded`).
    """
    try:
        opening = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    own, record_id = (opening.unmapped.tidegate, opening.metadata.uid) if opening.class_uid else (opening, opening.id)
    if not own.writer or own.seq < 1 or not is_bounded(own.writer, own.seq, own.prev, record_id, own.time_us):
        return None
    return Link(own.writer, own.seq, own.prev, hashlib.sha256(value).hexdigest(), record_id, own.time_us)


def is_bounded(writer: str, seq: int, prev: str, record_id: str, time_us: int) -> bool:
    """Whether a leaf can hold such a place in a chain."""
    return (
        len(writer) <= WRITER_CHARS_MAX
        and len(record_id) <= RECORD_ID_CHARS_MAX
        and len(prev) <= PREV_CHARS
        and seq <= INT_MAX
        and -INT_MAX <= time_us <= INT_MAX
    )
