"""The life of a batch: poll, judge, publish with the mark, settle. Offsets settle last, and a memory's length behind.

A finding, the quarantine that follows from it and the mark that says "judged" are one append: after a crash they are
all there or none is, and then the same calls lead to the same ids. Counterparts: `state.py` (the rules), `marks.py`,
`shares.py`.
"""

import logging
import time
from collections.abc import Sequence

import msgspec

from tidegate.errors import LogUnavailable
from tidegate.events import FindingRaised
from tidegate.log.port import Delivered, Partition, Record, Subscription
from tidegate.upcast import open_any
from tidegate_detector import burst, exfiltration
from tidegate_detector.marks import seal_mark
from tidegate_detector.ocsf import seal_finding
from tidegate_detector.parts import Parts
from tidegate_detector.quarantine import quarantine_for, seal_quarantine
from tidegate_detector.shares import Share, Shares
from tidegate_detector.state import observe

GROUP = "detector"
TOPIC = "calls"
BATCH_MAX = 500
POLL_S = 0.5
MARK_S = 10.0  # how often the place of judging is stored and the lag measured, while there is nothing to publish

_log = logging.getLogger(__name__)


async def detect(parts: Parts) -> None:
    """Until stopping. A log that went away is opened again, and what the rules need is read again."""
    while not parts.stopping.is_set():
        try:
            await follow(parts)
        except LogUnavailable as fault:
            parts.begin_chain()
            await parts.pause(fault)


async def follow(parts: Parts) -> None:
    """Judge what comes until stopping. Raises LogUnavailable."""
    shares = Shares(lambda leaving: hand_over(parts, subscriptions, leaving))
    subscriptions: list[Subscription] = []
    subscription = await parts.log.follow((TOPIC,), group=GROUP, on_assigned=shares.assigned, on_revoked=shares.revoked)
    subscriptions.append(subscription)
    marked_at = time.monotonic()
    try:
        while not parts.stopping.is_set():
            records = await subscription.poll(BATCH_MAX, POLL_S)
            owners = [shares.held.get(Partition(record.topic, record.partition)) for record in records]
            await shares.read_places(parts.log)
            async with shares.turn:
                await judge(parts, subscription, shares, records, owners)
                if time.monotonic() - marked_at >= MARK_S:
                    marked_at = time.monotonic()
                    await mark(parts, subscription, shares.held)
                    parts.metrics.lag.set(await subscription.lag())
            await report(parts, subscription, shares)
    except BaseException:
        shares.drop()  # what was judged may not be published: nothing may be marked
        raise
    finally:
        await subscription.close()


async def judge(
    parts: Parts, subscription: Subscription, shares: Shares, records: Sequence[Delivered], owners: list[Share | None]
) -> None:
    """Fold the records in and publish what the rules conclude, before anything of it can be settled."""
    found: list[FindingRaised] = []
    touched: dict[Partition, Share] = {}
    for record, share in zip(records, owners, strict=True):
        partition = Partition(record.topic, record.partition)
        if share is None or shares.held.get(partition) is not share:
            continue  # taken away since: its next holder reads it
        findings = fold(parts, share, record)
        if findings:
            found += findings
            touched[partition] = share
    if found:
        await publish(parts, subscription, found, touched)


def fold(parts: Parts, share: Share, record: Delivered) -> list[FindingRaised]:
    """What is new to conclude from one record: nothing from one that an earlier run has judged."""
    judged_before = share.place.is_judged(record)
    share.place.advance(record)
    try:
        event = open_any(record.value or b"")
    except msgspec.DecodeError:
        parts.counts.unreadable += 1  # the audit consumer keeps it as a dead letter
        parts.metrics.records.labels("unreadable").inc()
        return []
    findings = observe(share.state, event, parts.settings.detector)
    if judged_before:
        parts.counts.remembered += 1
        parts.metrics.records.labels("remembered").inc()
        return []
    parts.counts.judged += 1
    parts.metrics.records.labels("judged").inc()
    parts.metrics.delay_seconds.set(max(0.0, (parts.clock() - record.time_us) / 1e6))
    return findings


async def publish(
    parts: Parts, subscription: Subscription, found: list[FindingRaised], touched: dict[Partition, Share]
) -> None:
    """One append. Settling first asks whether the partitions are still ours. Raises LogUnavailable."""
    await settle(parts, subscription, touched)
    quarantines = [one for each in found if (one := quarantine_for(each, parts.settings.detector, parts.clock()))]
    records: list[Record] = [seal_finding(parts.chain, finding) for finding in found]
    for quarantine in quarantines:
        records += seal_quarantine(parts.chain, quarantine)
    await append_with_marks(parts, records, touched)
    await parts.published(found, quarantines)


async def mark(parts: Parts, subscription: Subscription, held: dict[Partition, Share]) -> None:
    """Store how far judging is. Raises LogUnavailable."""
    moved = {partition: share for partition, share in held.items() if share.place.judged != share.place.mark}
    if moved:
        await append_with_marks(parts, [], moved)
        await settle(parts, subscription, moved)


async def append_with_marks(parts: Parts, records: list[Record], held: dict[Partition, Share]) -> None:
    marks = [seal_mark(partition, share.place.judged) for partition, share in held.items()]
    await parts.log.append([*records, *marks])
    for share in held.values():
        share.place.mark = share.place.judged


async def settle(parts: Parts, subscription: Subscription, held: dict[Partition, Share]) -> None:
    offsets = {partition: share.place.resume_at(memory_us(parts)) for partition, share in held.items()}
    await subscription.settle({partition: offset for partition, offset in offsets.items() if offset is not None})


async def hand_over(parts: Parts, subscriptions: list[Subscription], leaving: dict[Partition, Share]) -> None:
    """Mark and settle partitions that are taken away. A failure costs their next holder some reading, nothing else."""
    try:
        for subscription in subscriptions:
            await mark(parts, subscription, leaving)
    except LogUnavailable as fault:
        parts.begin_chain()
        _log.warning("partitions left without a mark: %s", fault.sentence)


def memory_us(parts: Parts) -> int:
    """How far back a restart must read."""
    detector = parts.settings.detector
    windows_s = (burst.WINDOWS_OPEN + 1) * detector.burst.window_s
    return int(max(detector.exfiltration.memory_s, windows_s) * 1e6) + exfiltration.CLOCK_SKEW_US


async def report(parts: Parts, subscription: Subscription, shares: Shares) -> None:
    """Gauges and readiness after a batch."""
    if subscription.caught_up:
        parts.awaited.discard("log")
    states = [share.state for share in shares.held.values()]
    parts.metrics.principals.set(sum(len(state.principals) for state in states))
    for state in states:
        parts.metrics.evicted.labels("principal").inc(state.evicted_principals)
        parts.metrics.evicted.labels("call").inc(state.evicted_calls)
        state.evicted_principals = state.evicted_calls = 0
    await parts.tell()
