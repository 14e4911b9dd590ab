"""The life of a batch: gather, skip what is stored, open, bury what cannot be read, store, settle. Offsets settle
last.

While ClickHouse or the log refuses, the batch in hand is tried again and nothing else is read: consumption pauses,
nothing is dropped. Counterparts: `progress.py` (what is stored), `rows.py` (columns), `store.py`, `dead_letters.py`.
"""

import asyncio
import logging
from collections.abc import Sequence

from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, LogUnavailable
from tidegate.log.port import Delivered
from tidegate_audit_consumer.batch import ends_of, gather
from tidegate_audit_consumer.dead_letters import bury
from tidegate_audit_consumer.parts import Parts
from tidegate_audit_consumer.reading import Unreadable
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

_log = logging.getLogger(__name__)

Faults = (AnalyticsUnavailable, AnalyticsRefused, LogUnavailable)


async def consume(parts: Parts) -> None:
    """Until stopping. What is in hand then is stored if the first try succeeds, else left for the next start."""
    while not parts.stopping.is_set():
        try:
            await gather(parts.subscription, parts.hand, parts.bounds, parts.stopping.is_set)
            parts.metrics.lag.set(await parts.subscription.lag())
            parts.resume()
        except LogUnavailable as fault:
            await parts.pause(fault)
        if parts.hand.records and await store_patiently(parts):
            await settle(parts)
            parts.hand.drop()


async def store_patiently(parts: Parts) -> bool:
    """True when every record in hand is in ClickHouse or buried; False when stopping came first."""
    buried: set[Delivered] = set()
    while True:
        try:
            await store_once(parts, list(parts.hand.records), buried)
            parts.resume()
            return True
        except Faults as fault:
            parts.progress.doubt(ends_of(parts.hand.records))
            if parts.stopping.is_set():
                return False
            await parts.pause(fault)


async def store_once(parts: Parts, records: Sequence[Delivered], buried: set[Delivered]) -> None:
    """One try. `buried` remembers the dead letters over several tries."""
    with parts.metrics.insert_seconds.time():
        fresh = await parts.progress.unstored(records)
        opened = await asyncio.to_thread(open_batch, fresh)
        await bury_once(parts, [one for one in opened.unreadable if one.record not in buried], buried)
        written = await store(parts.analytics, opened, fresh)
    parts.stored(written, skipped=len(records) - len(fresh))


async def bury_once(parts: Parts, unreadable: list[Unreadable], buried: set[Delivered]) -> None:
    await bury(parts.log, unreadable)
    for one in unreadable:
        buried.add(one.record)
        parts.dead_letter(one)


async def settle(parts: Parts) -> None:
    """A lost claim is no harm: whoever reads these records again finds them stored."""
    ends = ends_of(parts.hand.records)
    try:
        await parts.subscription.settle(ends)
    except LogUnavailable as fault:
        _log.warning("offsets not settled, they will be read again: %s", fault.sentence)
        parts.progress.doubt(ends)
    await parts.settled()
