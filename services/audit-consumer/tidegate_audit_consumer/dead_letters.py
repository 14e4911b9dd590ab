"""Records that cannot be read go to the `dead-letters` topic: bytes, key and headers untouched, headers added that say
why, and where the record was.

A dead letter is durable before the offset of its record is settled; after a crash in between it may be there twice,
told by its original position. Counterpart: `retrying.py` takes the record out again.
"""

from typing import NamedTuple

from tidegate.log.port import Delivered, EventLog, Record
from tidegate_audit_consumer.reading import Unreadable

TOPIC = "dead-letters"
MESSAGE_BYTES_MAX = 1_000
PARTITION_MAX = 2**31 - 1
ADDED = frozenset(
    {
        "dlq.reason",
        "dlq.error.message",
        "dlq.original.topic",
        "dlq.original.partition",
        "dlq.original.offset",
        "dlq.original.time_us",
    }
)


class Letter(NamedTuple):
    """A dead letter, opened: the record as it was delivered, and why it could not be read."""

    record: Delivered
    reason: str
    message: str
    buried_us: int

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
    headers = (*record.headers, *((name, text.encode(errors="replace")) for name, text in added.items()))
    return Record(TOPIC, record.key, record.value, headers)


def open_letter(found: Delivered) -> Letter | None:
    """The letter in a record of the topic; None where it does not say where it came from: somebody else's record.

    The record's own headers may bear the same names: ours are the last ones. Earlier versions added no time.
    """
    added: dict[str, str] = {}
    headers = list(found.headers)
    while headers and headers[-1][0] in ADDED and headers[-1][0] not in added:
        name, value = headers.pop()
        added[name] = value.decode(errors="replace")
    topic = added.get("dlq.original.topic", "")
    partition, offset = _number(added.get("dlq.original.partition")), _number(added.get("dlq.original.offset"))
    if not topic or partition is None or partition > PARTITION_MAX or offset is None:
        return None
    time_us = _number(added.get("dlq.original.time_us")) or found.time_us
    record = Delivered(topic, partition, offset, found.key, found.value, tuple(headers), time_us)
    return Letter(record, added.get("dlq.reason", ""), added.get("dlq.error.message", ""), found.time_us)


def _number(text: str | None) -> int | None:
    """None of what is no count, or none that a log has."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) <= 18 else None


async def bury(log: EventLog, unreadable: list[Unreadable]) -> None:
    """Durable on return. Raises LogUnavailable."""
    if unreadable:
        await log.append([dead_letter(one) for one in unreadable])
