"""Gathers a batch: bounded by records, bytes and age, whichever comes first."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidegate.log.port import Delivered, Partition, Subscription

POLL_RECORDS = 256  # so that one poll cannot go far over bytes_max


@dataclass(frozen=True)
class Bounds:
    """Of one batch. Large batches are cheap for ClickHouse, small ones are soon there."""

    records_max: int = 20_000
    bytes_max: int = 32 * 1024 * 1024
    age_max_s: float = 0.5
    idle_s: float = 1.0  # how long one poll waits for a first record
    backoff_min_s: float = 0.1
    backoff_max_s: float = 10.0


async def gather(subscription: Subscription, bounds: Bounds, stopping: Callable[[], bool]) -> list[Delivered]:
    """[] after `idle_s` without any. Ends early when stopping. Raises what `poll` raises."""
    records = await subscription.poll(min(POLL_RECORDS, bounds.records_max), bounds.idle_s)
    if not records:
        return []
    now = asyncio.get_running_loop().time
    deadline = now() + bounds.age_max_s
    size = size_of(records)
    while len(records) < bounds.records_max and size < bounds.bytes_max and not stopping():
        if (left := deadline - now()) <= 0:
            break
        more = await subscription.poll(min(POLL_RECORDS, bounds.records_max - len(records)), left)
        records.extend(more)
        size += size_of(more)
    return records


def size_of(records: Sequence[Delivered]) -> int:
    """Bytes of the values."""
    return sum(len(record.value or b"") for record in records)


def ends_of(records: Sequence[Delivered]) -> dict[Partition, int]:
    """The offsets to settle: the next one to read of each partition."""
    ends: dict[Partition, int] = {}
    for record in records:
        at = Partition(record.topic, record.partition)
        ends[at] = max(ends.get(at, 0), record.offset + 1)
    return ends
