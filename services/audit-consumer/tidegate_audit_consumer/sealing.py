"""Seals what the log took: reads every history, and puts all records since the last root under a signed one.

Of all audit consumers one seals: who holds the one partition of `integrity` in the group of holders, fenced by the name
of its writer. It knows nothing but the log: the last root is on `integrity-state`, and says up to which offsets it
goes. So a sealer that was killed anywhere is continued by the next, and whatever fails, it begins again from there.
Counterparts: `checking.py` compares ClickHouse with the roots, `tidegate.audit.runs` makes the leaves.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidegate.audit.links import link_of
from tidegate.audit.roots import LEAVES_MAX, AuditKey, Root, digest_of, entry_of, tree_of
from tidegate.audit.runs import Link, leaves_of
from tidegate.chain import open_event
from tidegate.errors import LogUnavailable
from tidegate.events import Leaf, RootSealed
from tidegate.lifecycle import background
from tidegate.log.port import Delivered, EventLog, Partition, Subscription
from tidegate.settings import Settings
from tidegate_audit_consumer.journal import Journal
from tidegate_audit_consumer.metrics import IntegrityMetrics
from tidegate_audit_consumer.roots_file import RootsFile

HISTORIES = ("calls", "sessions", "detections", "policy", "control", "catalog", "integrity")
HOLDERS, READERS = "audit-roots-holder", "audit-roots"
LINKS_MAX = 100_000  # records between two roots; then the next root comes early
LEAVES_BYTES_MAX = 500_000
POLL_RECORDS = 1_000
TICK_S = 0.5
RETRY_S = 1.0
RETRY_MAX_S = 10.0  # what failed may have sealed a part, which is sealed again: not in a tight loop

OpenWriter = Callable[[], AbstractAsyncContextManager[EventLog]]
"""The log under the sealer's writer id: opening it fences whoever had it before."""

Watch = Callable[[Journal], Coroutine[Any, Any, None]]
"""What runs beside the sealing, and may write to the same journal."""

_log = logging.getLogger(__name__)


@dataclass
class Last:
    """The root that the next one follows."""

    number: int = 0
    digest: str = ""
    positions: dict[str, int] = field(default_factory=dict)
    value: bytes = b""


@dataclass
class Taken:
    """Read since the last root."""

    positions: dict[str, int]
    links: list[Link] = field(default_factory=list)
    ends: dict[Partition, int] = field(default_factory=dict)  # to settle
    unchained: list[str] = field(default_factory=list)  # positions of what is no record of a chain

    def take(self, records: Sequence[Delivered]) -> None:
        """What the last root covers is passed over; what is no record of a chain is covered by nothing."""
        for record in records:
            at = f"{record.topic}/{record.partition}"
            if record.offset < self.positions.get(at, 0):
                continue
            self.positions[at] = self.ends[Partition(record.topic, record.partition)] = record.offset + 1
            if record.value is not None and (link := link_of(record.value)) is not None:
                self.links.append(link)
            else:
                self.unchained.append(f"{at}/{record.offset}")


class Sealer:
    """One process's. `held` says whether it is the one that seals."""

    def __init__(
        self,
        settings: Settings,
        key: AuditKey,
        log: EventLog,
        open_writer: OpenWriter,
        clock: Callable[[], int],
        metrics: IntegrityMetrics,
        file: RootsFile,
        watch: Watch,
    ) -> None:
        self.name = sealer_name(settings)
        self.held = False
        self.sealed = 0  # roots since the start
        self._failures = 0  # since positions moved on
        self.changed = asyncio.Condition()
        self.stopping = asyncio.Event()
        self._settings = settings
        self._every_s = settings.audit.roots.every_s
        self._key = key
        self._log = log
        self._open_writer = open_writer
        self._clock = clock
        self._metrics = metrics
        self._file = file
        self._watch = watch

    async def run(self) -> None:
        """Until stopping. The log's faults are waited out."""
        while not self.stopping.is_set():
            try:
                await self._take_part()
            except* LogUnavailable as faults:
                _log.warning("sealing pauses: %s", "; ".join(_sentences(faults)))
                self._metrics.faults.inc()
                await _sleep_unless(self.stopping, min(RETRY_MAX_S, RETRY_S * 2 ** min(self._failures, 16)))
                self._failures += 1

    async def _take_part(self) -> None:
        holding = await self._log.follow(
            ("integrity",), group=HOLDERS, on_assigned=self._assigned, on_revoked=self._revoked
        )
        try:
            while not self.stopping.is_set():
                await holding.poll(POLL_RECORDS, TICK_S)
                if self.held:
                    await self._hold(holding)
        finally:
            self.held = False
            await holding.close()

    async def _assigned(self, partitions: frozenset[Partition]) -> None:
        self.held = self.held or bool(partitions)

    async def _revoked(self, partitions: frozenset[Partition]) -> None:
        if partitions:
            self.held = False

    async def _hold(self, holding: Subscription) -> None:
        """Read and seal while this process is the one."""
        async with self._open_writer() as writer:
            last = await last_root(self._log, self._settings.tenant, self.name)
            journal = Journal(self._settings, writer, self.name, self._clock)
            await self._publish_missing(last)
            reading = await self._log.follow(HISTORIES, group=READERS)
            self._metrics.holds.set(1)
            _log.info("sealing as '%s' after root %d", self.name, last.number)
            try:
                async with background() as tasks:
                    tasks.start(self._watch(journal), "integrity: compare ClickHouse with the roots")
                    await self._read_and_seal(holding, reading, journal, last)
            finally:
                self._metrics.holds.set(0)
                await reading.close()

    async def _read_and_seal(self, holding: Subscription, reading: Subscription, journal: Journal, last: Last) -> None:
        now = asyncio.get_running_loop().time
        taken, due = Taken(dict(last.positions)), now() + self._every_s
        while self.held and not self.stopping.is_set():
            taken.take(await reading.poll(POLL_RECORDS, max(0.0, min(TICK_S, due - now()))))
            await holding.poll(POLL_RECORDS, 0.0)
            if now() >= due or len(taken.links) + len(taken.unchained) >= LINKS_MAX:
                last = await self._seal(journal, last, taken)
                await _settle(reading, taken.ends)
                taken, due = Taken(dict(last.positions)), now() + self._every_s

    async def _seal(self, journal: Journal, last: Last, taken: Taken) -> Last:
        """One root, or several where there are very many leaves; only the last of them moves the positions on."""
        gathered = await asyncio.to_thread(leaves_of, taken.links)
        portions = list(portions_of(gathered.leaves))
        for index, leaves in enumerate(portions):
            positions = taken.positions if index == len(portions) - 1 else last.positions
            last = await self._seal_one(journal, last, leaves, dict(positions))
        self._failures = 0
        self._tell_unchained(taken.unchained)
        if gathered.breaches:
            self._metrics.breaches.inc(len(gathered.breaches))
            _log.error("%d breaches of chains on the log: %s", len(gathered.breaches), gathered.breaches[0].sentence)
            await journal.report(gathered.breaches)
        async with self.changed:
            self.changed.notify_all()
        return last

    def _tell_unchained(self, positions: Sequence[str]) -> None:
        """Whoever appends past the edges is seen: the writers of ours append nothing else than chains."""
        if positions:
            self._metrics.unchained.inc(len(positions))
            _log.error(
                "%d records on the log are no records of a chain and under no root, the first at %s",
                len(positions),
                positions[0],
            )

    async def _seal_one(self, journal: Journal, last: Last, leaves: Sequence[Leaf], positions: dict[str, int]) -> Last:
        root = Root(
            sealer=self.name,
            number=last.number + 1,
            previous=last.digest,
            tree=tree_of(leaves),
            leaves=len(leaves),
            events=sum(leaf.last - leaf.first + 1 for leaf in leaves),
            sealed_us=self._clock(),
            positions=positions,
        )
        signed = self._key.sign(root)
        event = RootSealed(
            **journal.common(),
            sealer=self.name,
            number=root.number,
            root=msgspec.Raw(signed.root),
            signature=signed.signature,
            key_id=signed.key_id,
            leaves=tuple(leaves),
        )
        record = await journal.add(event, state=True)
        value = record.value or b""
        await self._publish(value)
        self.sealed += 1
        self._metrics.roots.inc()
        self._metrics.events.inc(root.events)
        self._metrics.sealed_at.set(root.sealed_us / 1e6)
        return Last(root.number, digest_of(signed.root), positions, value)

    async def _publish(self, value: bytes) -> None:
        """The log has the root; a file that cannot take it now gets it when sealing begins anew."""
        try:
            await asyncio.to_thread(self._file.append, value)
        except OSError as error:
            self._metrics.faults.inc()
            _log.warning("%s: a root could not be appended (%s); it is on the log", self._file.path, error.strerror)

    async def _publish_missing(self, last: Last) -> None:
        """Roots that were sealed elsewhere, or just before a crash, into this process's file."""
        there = await asyncio.to_thread(self._file.numbers, self.name)
        if len(there) >= last.number:
            return
        if len(there) == last.number - 1 and last.number not in there:
            await self._publish(last.value)
            return
        async for value, event in roots_on(self._log):
            if event.sealer == self.name and event.number not in there:
                there.add(event.number)
                await self._publish(value)


def sealer_name(settings: Settings) -> str:
    return settings.audit.roots.sealer or settings.region


async def last_root(log: EventLog, tenant: str, sealer: str) -> Last:
    """As `integrity-state` has it."""
    key, last = f"{tenant}|{sealer}".encode(), Last()
    async for record in _all(log, "integrity-state"):
        if record.key == key and record.value is not None:
            event = open_event(record.value)
            if isinstance(event, RootSealed):
                root = msgspec.json.decode(event.root, type=Root)
                last = Last(root.number, digest_of(bytes(event.root)), dict(root.positions), record.value)
    return last


async def roots_on(log: EventLog) -> AsyncIterator[tuple[bytes, RootSealed]]:
    """Every root that the log holds, of every sealer, oldest first."""
    async for record in _all(log, "integrity"):
        if record.value is None or b'"root.sealed.' not in record.value[:512]:
            continue
        try:
            event = open_event(record.value)
        except msgspec.DecodeError:
            continue
        if isinstance(event, RootSealed):
            yield record.value, event


async def _all(log: EventLog, topic: str) -> AsyncIterator[Delivered]:
    """What the topic holds now."""
    subscription = await log.follow((topic,))
    try:
        while True:
            for record in await subscription.poll(POLL_RECORDS, TICK_S):
                yield record
            if subscription.caught_up:
                return
    finally:
        await subscription.close()


def portions_of(leaves: Sequence[Leaf]) -> Iterator[list[Leaf]]:
    """At least one, each small enough for one root."""
    portion: list[Leaf] = []
    size = 0
    for leaf in leaves:
        more = len(entry_of(leaf))
        if portion and (len(portion) >= LEAVES_MAX or size + more > LEAVES_BYTES_MAX):
            yield portion
            portion, size = [], 0
        portion.append(leaf)
        size += more
    yield portion


async def _settle(reading: Subscription, ends: dict[Partition, int]) -> None:
    """The root has the positions; the group's offsets only save reading again."""
    try:
        await reading.settle(ends)
    except LogUnavailable as fault:
        _log.warning("offsets of the sealer not settled: %s", fault.sentence)


async def _sleep_unless(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return


def _sentences(group: BaseExceptionGroup[LogUnavailable]) -> list[str]:
    return [
        sentence
        for one in group.exceptions
        for sentence in (_sentences(one) if isinstance(one, BaseExceptionGroup) else [one.sentence])
    ]
