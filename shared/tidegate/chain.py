"""Stored form of events: encoding with the writer's hash chain, CloudEvents headers, decoding.

The chain: an event embeds SHA-256 over the exact stored bytes of its writer's previous event, and a gap-free number,
so that a gap, a fork or a rewrite is provable. Counterpart: `upcast.py` reads what older versions wrote.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from tidegate.events import AnyEvent, key_of, topic_of
from tidegate.log.port import Record

SCHEMAS_URI: Final = "https://tidegate.example/schemas"
"""Names the schemas in docs/schemas; an identifier, from which nothing has to be fetched."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class Head(msgspec.Struct, frozen=True):
    """The part of a stored event that routing needs; decoding it skips the rest."""

    type: str
    id: str
    time_us: int
    tenant: str
    writer: str = ""
    seq: int = 0
    prev: str = ""


_head_decoder = msgspec.json.Decoder(Head)


class Chain:
    """One writer's chain. Not shared between threads: the order of `seal` is the order of the chain."""

    def __init__(self, writer: str, *, seq: int = 0, prev: str = "") -> None:
        self.writer = writer
        self.seq = seq
        self.prev = prev
        self._opening = b'{"writer":%b,"seq":' % _encoder.encode(writer)

    def seal(self, event: AnyEvent) -> Record:
        """The record to append. The event's own `writer`, `seq`, `prev` must be unset: they are written here.

        An event that cannot be encoded raises and takes no number: the chain goes on without a gap.
        """
        seq = self.seq + 1
        value = b'%b%d,"prev":"%b",%b' % (self._opening, seq, self.prev.encode(), _encoder.encode(event)[1:])
        record = Record(topic_of(event), key_of(event), value)
        self.seq, self.prev = seq, hashlib.sha256(value).hexdigest()
        return record


def open_event(value: bytes) -> AnyEvent:
    """The event in stored bytes. Raises msgspec.DecodeError (or ValidationError): such bytes are a dead letter."""
    try:
        return _decoder.decode(value)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def open_events(values: Sequence[bytes]) -> list[AnyEvent]:
    """The events in many stored bytes. Raises msgspec.DecodeError where one cannot be read, without saying which."""
    try:
        return list(map(_decoder.decode, values))
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def open_head(value: bytes) -> Head:
    """Type, id, time, tenant and chain position of stored bytes. Raises msgspec.DecodeError."""
    try:
        return _head_decoder.decode(value)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def cloud_event_headers(value: bytes) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes in Kafka binary mode for stored bytes (Kafka protocol binding §3.2)."""
    head = open_head(value)
    return [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", b"tidegate." + head.type.encode()),
        ("ce_source", b"/tidegate/" + head.writer.encode()),
        ("ce_dataschema", schema_uri(head.type.encode())),
        ("ce_id", head.id.encode()),
        ("ce_time", datetime.fromtimestamp(head.time_us / 1e6, UTC).isoformat().encode()),
        ("ce_sequence", b"%d" % head.seq),
    ]


def schema_uri(kind: bytes) -> bytes:
    """The `$id` of the published JSON Schema of an event type: the same for as long as the type is read."""
    return b"%b/%b.json" % (SCHEMAS_URI.encode(), kind)
