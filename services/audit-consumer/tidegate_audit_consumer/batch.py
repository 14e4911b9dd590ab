"""Gathers a batch: bounded by records, bytes and age, whichever comes first."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidegate.log.port import Delivered, Partition, Subscription
from tidegate_audit_consumer.hand import Hand

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


async def gather(subscription: Subscription, hand: Hand, bounds: Bounds, stopping: Callable[[], bool]) -> None:
    """Into the hand; nothing after `idle_s` without any. Ends early when stopping. Raises what `poll` raises."""
    hand.take(await subscription.poll(min(POLL_RECORDS, bounds.records_max), bounds.idle_s))
    now = asyncio.get_running_loop().time
    deadline = now() + bounds.age_max_s
    while hand.records and not stopping() and (left := deadline - now()) > 0:
        room = bounds.records_max - len(hand.records)
        if room <= 0 or hand.bytes >= bounds.bytes_max:
            break
        hand.take(await subscription.poll(min(POLL_RECORDS, room), left))


def ends_of(records: Sequence[Delivered]) -> dict[Partition, int]:
    """The offsets to settle: the next one to read of each partition."""
    ends: dict[tuple[str, int], int] = {}
    for topic, partition, offset, *_ in records:
        at = (topic, partition)
        if offset >= ends.get(at, 0):
            ends[at] = offset + 1
    return {Partition(*at): end for at, end in ends.items()}
