"""Records that cannot be read go to the `dead-letters` topic: bytes, key and headers untouched, headers added that say
why.

A dead letter is durable before the offset of its record is settled; after a crash in between it may be there twice,
told by its original position.
"""

from tidegate.log.port import EventLog, Record
from tidegate_audit_consumer.reading import Unreadable

MESSAGE_BYTES_MAX = 1_000


def dead_letter(one: Unreadable) -> Record:
    """The record to append."""
    record = one.record
    added = {
        "dlq.reason": one.reason,
        "dlq.error.message": one.message[:MESSAGE_BYTES_MAX],
        "dlq.original.topic": record.topic,
        "dlq.original.partition": str(record.partition),
        "dlq.original.offset": str(record.offset),
    }
    headers = (*record.headers, *((name, text.encode(errors="replace")) for name, text in added.items()))
    return Record("dead-letters", record.key, record.value, headers)


async def bury(log: EventLog, unreadable: list[Unreadable]) -> None:
    """Durable on return. Raises LogUnavailable."""
    if unreadable:
        await log.append([dead_letter(one) for one in unreadable])
