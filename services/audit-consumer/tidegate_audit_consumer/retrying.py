"""Dead letters once more: the original bytes at their original position, through the steps that every record takes.

Idempotent, as every delivery is: what is stored is skipped, and of two rows with one id one stays. Whatever cannot be
read still stays a dead letter and is not buried again. Counterparts: `spine.py` (the same steps), `dead_letters.py`.
"""

import asyncio
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tidegate.analytics.port import Analytics
from tidegate_audit_consumer.dead_letters import Letter
from tidegate_audit_consumer.progress import Progress
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store


class Retried(NamedTuple):
    """What became of a letter. Of one that is still unreadable, why."""

    letter: Letter
    outcome: Literal["stored", "stored-before", "unreadable"]
    reason: str = ""
    message: str = ""


async def retry(analytics: Analytics, letters: Sequence[Letter]) -> list[Retried]:
    """In the order given; no two of the same position. Raises AnalyticsUnavailable or AnalyticsRefused: then some may
    be stored, and the same again does no harm.
    """
    fresh = {one.id for one in await unstored(analytics, letters)}
    records = [letter.record for letter in letters if letter.id in fresh and not letter.whole_bytes]
    opened = await asyncio.to_thread(open_batch, records)
    await store(analytics, opened, records)
    unreadable = {(one.record.topic, one.record.partition, one.record.offset): one for one in opened.unreadable}
    results = []
    for letter in letters:
        at = (letter.record.topic, letter.record.partition, letter.record.offset)
        if letter.id not in fresh:
            results.append(Retried(letter, "stored-before"))
        elif letter.whole_bytes:
            results.append(Retried(letter, "unreadable", "cut", "the log could not keep all of its value"))
        elif at in unreadable:
            results.append(Retried(letter, "unreadable", unreadable[at].reason, unreadable[at].message))
        else:
            results.append(Retried(letter, "stored"))
    return results


async def unstored(analytics: Analytics, letters: Sequence[Letter]) -> list[Letter]:
    """Those whose record is not in ClickHouse. Raises AnalyticsUnavailable or AnalyticsRefused."""
    left = await Progress(analytics).unstored([letter.record for letter in letters])
    positions = {(record.topic, record.partition, record.offset) for record in left}
    return [one for one in letters if (one.record.topic, one.record.partition, one.record.offset) in positions]
