"""Records that cannot be read go to the `dead-letters` topic: bytes, key and headers untouched, headers added that say
why, and where the record was.

What a topic would not take is cut, and its length and SHA-256 stand in a header: nobody's record stops ingestion. A
dead letter is durable before the offset of its record is settled; after a crash in between it may be there twice,
told by its original position. Counterpart: `retrying.py` takes the record out again.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from tidegate.limits import LETTER_BYTES_MAX
from tidegate.log.commit import bytes_of
from tidegate.log.port import Delivered, EventLog, Record
from tidegate_audit_consumer.reading import Unreadable

TOPIC = "dead-letters"
MESSAGE_BYTES_MAX = 1_000
PARTITION_MAX = 2**31 - 1
BURIED_AT_ONCE = 1_000
KEPT_BYTES = 64 * 1024  # of the key, and of the headers, where a record does not fit: its value matters more
ADDED = frozenset(
    {
        "dlq.reason",
        "dlq.error.message",
        "dlq.original.topic",
        "dlq.original.partition",
        "dlq.original.offset",
        "dlq.original.time_us",
        "dlq.cut.bytes",
        "dlq.cut.sha256",
        "dlq.cut.key_bytes",
        "dlq.cut.headers",
    }
)


class Letter(NamedTuple):
    """A dead letter, opened: the record as it was delivered, and why it could not be read."""

    record: Delivered
    reason: str
    message: str
    buried_us: int
    whole_bytes: int = 0  # of a value that was cut; 0: the value is whole
    sha256: str = ""  # of such a value, hex

    @property
    def id(self) -> str:
        """The record's position, as "calls/3/1041": the same for a letter that is there twice."""
        return f"{self.record.topic}/{self.record.partition}/{self.record.offset}"


def dead_letter(one: Unreadable) -> Record:
    """The record to append."""
    record = one.record
    added = {
        "dlq.reason": one.reason,
        "dlq.error.message": one.message[:MESSAGE_BYTES_MAX],
        "dlq.original.topic": record.topic,
        "dlq.original.partition": str(record.partition),
        "dlq.original.offset": str(record.offset),
        "dlq.original.time_us": str(record.time_us),
    }
    whole = Record(TOPIC, record.key, record.value, (*record.headers, *_encoded(added)))
    return whole if bytes_of(whole) <= LETTER_BYTES_MAX else _cut(record, added)


def _cut(record: Delivered, added: dict[str, str]) -> Record:
    """As much as a topic takes. Numbers and digests are those of the record as it was."""
    key, headers = record.key[:KEPT_BYTES], record.headers
    if len(key) < len(record.key):
        added["dlq.cut.key_bytes"] = str(len(record.key))
    if bytes_of(Record(TOPIC, b"", None, headers)) > KEPT_BYTES:
        added["dlq.cut.headers"], headers = str(len(headers)), ()
    value = record.value or b""
    letter = Record(TOPIC, key, record.value, (*headers, *_encoded(added)))
    if bytes_of(letter) <= LETTER_BYTES_MAX:
        return letter
    added["dlq.cut.bytes"], added["dlq.cut.sha256"] = str(len(value)), hashlib.sha256(value).hexdigest()
    letter = Record(TOPIC, key, b"", (*headers, *_encoded(added)))
    return letter._replace(value=value[: LETTER_BYTES_MAX - bytes_of(letter)])


def _encoded(added: Mapping[str, str]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, text.encode(errors="replace")) for name, text in added.items())


def open_letter(found: Delivered) -> Letter | None:
    """The letter in a record of the topic; None where it does not say where it came from: somebody else's record.

    The record's own headers may bear the same names: ours are the last ones. Earlier versions added no time.
    """
    added: dict[str, str] = {}
    headers = list(found.headers)
    while headers and headers[-1][0] in ADDED and headers[-1][0] not in added:
        name, value = headers.pop()
        added[name] = value.decode(errors="replace")
        if name == "dlq.reason":  # the first that is ours
            break
    topic = added.get("dlq.original.topic", "")
    partition, offset = _number(added.get("dlq.original.partition")), _number(added.get("dlq.original.offset"))
    if not topic or partition is None or partition > PARTITION_MAX or offset is None:
        return None
    time_us = _number(added.get("dlq.original.time_us")) or found.time_us
    record = Delivered(topic, partition, offset, found.key, found.value, tuple(headers), time_us)
    whole_bytes, sha256 = _number(added.get("dlq.cut.bytes")) or 0, added.get("dlq.cut.sha256", "")
    message = added.get("dlq.error.message", "")
    if whole_bytes:
        message = f"{message} (cut: the value had {whole_bytes:,} bytes, SHA-256 {sha256[:64]})"
    return Letter(record, added.get("dlq.reason", ""), message, found.time_us, whole_bytes, sha256)


def _number(text: str | None) -> int | None:
    """None of what is no count, or none that a log has."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) <= 18 else None


async def bury(log: EventLog, unreadable: list[Unreadable]) -> None:
    """Durable on return. Raises LogUnavailable: then some may be buried."""
    for at in range(0, len(unreadable), BURIED_AT_ONCE):
        await log.append([dead_letter(one) for one in unreadable[at : at + BURIED_AT_ONCE]])
