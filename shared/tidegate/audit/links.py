"""What a chain needs to know of stored bytes: an event's opening, or the same of a finding's OCSF object. Pure."""

import hashlib

import msgspec

from tidegate.audit.runs import Link


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
    """None where the bytes are no record of a chain: unreadable ones are dead letters, chained by nobody."""
    try:
        opening = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    own, record_id = (opening.unmapped.tidegate, opening.metadata.uid) if opening.class_uid else (opening, opening.id)
    if not own.writer or own.seq < 1:
        return None
    return Link(own.writer, own.seq, own.prev, hashlib.sha256(value).hexdigest(), record_id, own.time_us)
