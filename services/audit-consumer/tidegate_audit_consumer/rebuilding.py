"""Builds ClickHouse anew from the log, beside the tables that people query, and lets the new ones take their place.

Nobody is stopped: consumers go on, because whatever they store is stored again from the log afterwards, and every
table's key makes the repeated rows one. In order: build beside what the log has, catch up until little is left, take
over partition by partition, then fill in what the log took meanwhile, roots last. Killed anywhere, the same command
goes on: what was read is in `positions`, and every step may be done twice. Nothing is written to the log; a record
that cannot be read was buried by the consumer that met it first.
One at a time: `claim.py`.
Counterparts: `beside.py` (the tables), `spine.py` (the same steps for records as they come).
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from tidegate.analytics.port import DATABASE, Analytics
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, ConfigFault
from tidegate.log.extents import Extent, Extents
from tidegate.log.port import Delivered, EventLog, Partition, Subscription
from tidegate_audit_consumer import beside
from tidegate_audit_consumer.claim import Claim
from tidegate_audit_consumer.consumer import TOPICS
from tidegate_audit_consumer.migrate import migrations
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

BATCH_RECORDS: Final = 20_000
HELD_AT_ONCE: Final = 100  # records out of ClickHouse in one answer: each may have a megabyte
BATCH_BYTES: Final = 32 * 1024 * 1024
POLL_RECORDS: Final = 1_000
IDLE_S: Final = 0.5
CATCHING_UP_MAX: Final = 5  # rounds before taking over
NEAR_RECORDS: Final = 5_000  # so few that taking over need not wait
LATE_MAX: Final = 50_000  # records of `integrity` that are kept until the end
NOTED_S: Final = 5.0  # how often the phase is noted
PROBE_S: Final = 2.0  # how often the ends of partitions at rest are looked at while others go on

Phase = Literal["building", "replacing", "filling", "done"]


class Loss(NamedTuple):
    """Rows whose records the log no longer has."""

    at: Partition
    rows: int
    from_us: int
    to_us: int
    log_begins: int  # the first offset that the log has


class Found(NamedTuple):
    """What there is before anything is touched."""

    extents: Mapping[Partition, Extent]
    positions: Mapping[Partition, int]  # read by an earlier run that did not end
    losses: Sequence[Loss]
    leftover: str = ""  # why tables that stand beside cannot be continued: they are cleared. Empty: none do

    @property
    def records(self) -> int:
        """To be read still."""
        return sum(max(0, one.next - max(one.first, self.positions.get(at, 0))) for at, one in self.extents.items())


class _Run(NamedTuple):
    """What an earlier run noted last."""

    phase: str
    groups: list[str]
    digest: str


@dataclass
class Result:
    """What a rebuild did."""

    records: int = 0
    unreadable: int = 0
    compared: list[beside.Compared] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not any(one.missing or one.strange for one in self.compared)


Tell = Callable[[Phase, int], None]
"""Called with the phase, and how many records were read more."""


class Rebuild:
    """One rebuild of the given groups. `find`, then `run`, or `leave`. Raises what the ports raise; the same again
    goes on.

    With `keep`, what the log no longer has is taken from the table `events` itself, bytes as they are; without, it is
    gone afterwards.
    """

    def __init__(
        self, log: EventLog, extents: Extents, analytics: Analytics, only: Sequence[str] = (), *, keep: bool = False
    ) -> None:
        self._log = log
        self._extents = extents
        self._analytics = analytics
        self._groups = [group for group in beside.GROUPS if not only or group in only]
        self._keep = keep
        self._topics = self._topics_read()
        self._claim = Claim(analytics)
        self._made_by = _digest() + ("+keep" if keep else "")
        self._noted = 0.0
        self._late: list[Delivered] = []
        self._positions: dict[Partition, int] = {}
        self.result = Result()

    async def find(self) -> Found:
        """Claims what stands beside, and keeps it until `run` ends or `leave`. Raises ConfigFault where another rebuild
        is at work, or one of other tables has to be finished first.
        """
        await self._claim.take()
        try:
            return await self._find()
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Gives the claim back; what was read stays. After `run` there is none any more."""
        await self._claim.leave()

    async def _find(self) -> Found:
        leftover = await self._leftover()
        positions = await beside.positions(self._analytics) if leftover is None else {}
        extents = await self._extents.now(self._topics)
        losses = (
            []
            if self._keep
            else [loss for at, one in extents.items() if (loss := await self._loss(at, one, positions.get(at, 0)))]
        )
        return Found(extents, positions, losses, leftover or "")

    async def run(self, found: Found, tell: Tell) -> Result:
        """To the end. `find` was just asked."""
        try:
            async with self._claim.kept():
                await self._run(found, tell)
        finally:
            await self.leave()
        return self.result

    async def _run(self, found: Found, tell: Tell) -> None:
        if not found.positions:
            await beside.clear(self._analytics)
        await beside.lay_out(self._analytics, self._tables())
        await self._note("building")
        self._positions = dict(found.positions)
        if self._topics:
            await self._from_log(found, tell)
        if "calls" in self._groups or "rollups" in self._groups:
            await beside.mark_rollups(self._analytics)
        if "events" in self._groups:
            self.result.compared = await beside.compare(self._analytics, self._positions)
        self.result.records = sum(one.records for one in self.result.compared) or self.result.records
        await self._note("done")
        await beside.clear(self._analytics)

    def _tables(self) -> list[str]:
        return [name for group in self._groups for name in beside.GROUPS[group]]

    async def _from_log(self, found: Found, tell: Tell) -> None:
        if self._keep:
            await self._carry(found, tell)
        subscription = await self._log.follow(self._topics)
        try:
            targets = found.extents
            for _ in range(CATCHING_UP_MAX):
                await self._read_up_to(subscription, targets, tell, "building")
                targets = await self._extents.now(self._topics)
                if sum(max(0, one.next - self._positions.get(at, 0)) for at, one in targets.items()) < NEAR_RECORDS:
                    break
            await self._note_losses(found.losses)
            await self._take_over(tell)
            await self._read_up_to(subscription, await self._extents.now(self._topics), tell, "filling")
            await self._store(self._late, "filling")
            self._late = []
        finally:
            await subscription.close()

    async def _note_losses(self, losses: Sequence[Loss]) -> None:
        """Before the rows go: for whoever verifies afterwards, they are forgotten by the log, and not lost here."""
        if losses:
            begins_us = float(max(loss.to_us for loss in losses) + 1)
            await self._analytics.insert(f"{DATABASE}.parameters", {"name": ["log_begins_us"], "value": [begins_us]})

    async def _take_over(self, tell: Tell) -> None:
        await self._claim.beat()  # whoever was taken over replaces nothing
        await self._refuse_incomplete()
        await self._note("replacing")
        tell("replacing", 0)
        names = list(await beside.tables(self._analytics))
        for group in self._groups:
            tables = await beside.swappable(self._analytics, group, names)
            await beside.take_over(self._analytics, tables)
            self.result.tables += tables
        await self._note("filling")

    async def _refuse_incomplete(self) -> None:
        """What stands beside takes the place of everything, so it must hold all that was read. Raises
        AnalyticsUnavailable.
        """
        held = await beside.positions(self._analytics)
        if any(held.get(at, 0) < position for at, position in self._positions.items()):
            raise AnalyticsUnavailable(
                f"{beside.BESIDE} does not hold all that was read into it: somebody cleared it meanwhile; nothing was "
                "replaced, give the command again"
            )

    async def _carry(self, found: Found, tell: Tell) -> None:
        """Records that the log no longer has, from the table, in the log's order."""
        for at, extent in found.extents.items():
            async for records in held_records(self._analytics, at, self._positions.get(at, 0), extent.first):
                await self._store(records, "building")
                tell("building", len(records))

    async def _read_up_to(
        self, subscription: Subscription, targets: Mapping[Partition, Extent], tell: Tell, phase: Phase
    ) -> None:
        reached, probed = {at: self._positions.get(at, 0) for at in targets}, time.monotonic()
        while True:
            records = await _gather(subscription)
            for one in records:
                at = Partition(one.topic, one.partition)
                reached[at] = max(reached.get(at, 0), one.offset + 1)
            fresh = [
                one for one in records if one.offset >= self._positions.get(Partition(one.topic, one.partition), 0)
            ]
            if phase == "filling":
                fresh = self._without_late(fresh)
            await self._store(fresh, phase)
            tell(phase, len(fresh))
            left = {at: (reached[at], one) for at, one in targets.items() if reached[at] < one.next}
            if not left:
                return
            if (not records or time.monotonic() > probed + PROBE_S) and await self._are_bare(left):
                return
            probed = time.monotonic() if records else probed

    async def _are_bare(self, left: Mapping[Partition, tuple[int, Extent]]) -> bool:
        for at, (reached, one) in left.items():
            if not await self._extents.is_bare(at, max(reached, one.first), one.next):
                return False
        return True

    def _without_late(self, records: Sequence[Delivered]) -> list[Delivered]:
        """Roots wait for the records that they cover, unless there are very many."""
        if len(self._late) < LATE_MAX:
            self._late += [one for one in records if one.topic == "integrity"]
            return [one for one in records if one.topic != "integrity"]
        return list(records)

    async def _store(self, records: Sequence[Delivered], phase: Phase) -> None:
        """As the consumer stores them; then progress."""
        for begin in range(0, len(records), BATCH_RECORDS):
            batch = records[begin : begin + BATCH_RECORDS]
            opened = await asyncio.to_thread(open_batch, batch)
            filling = beside.Filling(self._analytics, self._wanted(), both=phase == "filling")
            await store(filling, opened, batch)
            await beside.note(self._analytics, batch, opened.unreadable)
            self.result.records += len(batch)
            self.result.unreadable += len(opened.unreadable)
            for one in batch:
                at = Partition(one.topic, one.partition)
                self._positions[at] = max(self._positions.get(at, 0), one.offset + 1)
            if time.monotonic() - self._noted > NOTED_S:
                await self._note(phase)

    def _wanted(self) -> frozenset[str]:
        """The tables that the consumer's step writes; empty: all of them."""
        if "events" in self._groups:
            return frozenset()
        wanted = {name for group in self._groups for name in beside.GROUPS[group]}
        return frozenset(wanted | ({"events_raw"} if "integrity" in self._groups else set()))

    def _topics_read(self) -> tuple[str, ...]:
        if "events" in self._groups:
            return TOPICS
        return tuple(
            dict.fromkeys(topic for group in self._groups for topic in beside.TOPICS_OF[group] if group != "rollups")
        )

    async def _loss(self, at: Partition, extent: Extent, position: int) -> Loss | None:
        if extent.first <= position:
            return None
        answer = await self._analytics.query(
            "SELECT count(), toUnixTimestamp64Micro(min(logged_at)), toUnixTimestamp64Micro(max(logged_at)) "
            "FROM tidegate.events WHERE topic = {topic:String} AND partition = {partition:UInt32} "
            "AND offset >= {position:UInt64} AND offset < {first:UInt64}",
            {"topic": at.topic, "partition": at.partition, "position": position, "first": extent.first},
        )
        rows, from_us, to_us = answer.rows[0]
        return Loss(at, rows, from_us, to_us, extent.first) if rows else None

    async def _leftover(self) -> str | None:
        """None where an earlier run can be continued; else why what stands beside cannot, empty if nothing does."""
        if not await beside.tables(self._analytics):
            return ""
        last = await self._last_run()
        if last is None:
            return "nothing tells how far that came"
        self._refuse_other(last)
        phase, groups, digest = last
        if phase == "done":
            return "that rebuild had ended"
        if groups != self._groups:
            return f"that was a rebuild of {', '.join(groups)}"
        if digest != self._made_by:
            same = digest.partition("+")[0] == _digest()
            return "that rebuild gave up what this one keeps, or kept it" if same else "another version made them"
        return None if await beside.is_complete(self._analytics, self._tables()) else "some are missing"

    async def _last_run(self) -> _Run | None:
        """None where there is no such record that this version can read, whatever else stands there."""
        try:
            answer = await self._analytics.query(
                "SELECT toString(phase), toString(only), toString(digest) "  # noqa: S608
                f"FROM {beside.BESIDE}.runs ORDER BY at DESC LIMIT 1"
            )
        except AnalyticsRefused:
            return None
        return next((_Run(phase, only.split(","), digest) for phase, only, digest in answer.rows), None)

    def _refuse_other(self, last: _Run) -> None:
        """Tables that were half exchanged are finished by whoever rebuilds at least these."""
        if last.phase in ("replacing", "filling") and not set(last.groups) <= set(self._groups):
            raise ConfigFault(
                f"a rebuild of {', '.join(last.groups)} was cut off while its tables took over: finish it first, with "
                f"--only {','.join(last.groups)}"
            )

    async def _note(self, phase: Phase) -> None:
        """How far: for whoever goes on after this one."""
        await self._analytics.insert(
            f"{beside.BESIDE}.runs", {"phase": [phase], "only": [",".join(self._groups)], "digest": [self._made_by]}
        )
        self._noted = time.monotonic()


async def held_records(analytics: Analytics, at: Partition, first: int, end: int) -> AsyncIterator[list[Delivered]]:
    """What the table `events` has of a partition, as the log delivered it; keys and headers are not kept there."""
    while first < end:
        answer = await analytics.query(
            f"SELECT offset, hex(raw), toUnixTimestamp64Micro(logged_at) FROM {DATABASE}.events "  # noqa: S608
            "WHERE topic = {topic:String} AND partition = {partition:UInt32} AND offset >= {first:UInt64} "
            "AND offset < {end:UInt64} ORDER BY offset LIMIT {limit:UInt32}",
            {"topic": at.topic, "partition": at.partition, "first": first, "end": end, "limit": HELD_AT_ONCE},
        )
        if not answer.rows:
            return
        yield [
            Delivered(at.topic, at.partition, offset, b"", bytes.fromhex(raw), (), time_us)
            for offset, raw, time_us in answer.rows
        ]
        first = answer.rows[-1][0] + 1


async def _gather(subscription: Subscription) -> list[Delivered]:
    records = list(await subscription.poll(POLL_RECORDS, IDLE_S))
    size = sum(len(one.value or b"") for one in records)
    while records and len(records) <= BATCH_RECORDS - POLL_RECORDS and size < BATCH_BYTES:
        more = await subscription.poll(POLL_RECORDS, 0.0)
        if not more:
            break
        records += more
        size += sum(len(one.value or b"") for one in more)
    return records


def _digest() -> str:
    """Of the tables' definitions: what another version began is begun anew."""
    own = (*(one.digest for one in migrations()), *beside.OWN.values())
    return hashlib.sha256("".join(own).encode()).hexdigest()
