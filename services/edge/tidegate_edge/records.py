"""How this edge's records become durable: the local log itself, or a spool that is shipped to Kafka. Made once, in
`wiring.py`.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tidegate.chain import Chain, open_event, open_head
from tidegate.errors import LogUnavailable
from tidegate.events import Call, CallAbandoned, CallCompleted, CallRequested, SpoolDamaged
from tidegate.ids import uuid7
from tidegate.limits import Limits
from tidegate.log.commit import GroupCommit
from tidegate.log.damage import Damage, Gap
from tidegate.log.port import BlockingAppender, EventLog, Record
from tidegate.log.shipper import Shipper
from tidegate.log.spool import Backlog, Spool
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_edge.calls import Place
from tidegate_edge.recorder import Recorder, Submitter, Writer
from tidegate_edge.vault import Vault

READ_AT_ONCE: Final = 2_000
RETRY_S: Final = 1.0
TOLD_AT_ONCE: Final = 8
INLINE_BELOW_S: Final = 0.001  # a mean sync above this goes to a thread

_REPEATED: Final = frozenset(Call.__struct_fields__) - {"writer", "seq", "prev"}

_log = logging.getLogger(__name__)


@dataclass
class Records:
    """The recorder and what can be read about its backlog."""

    recorder: Recorder
    submitter: Submitter
    spool: Spool | None = None
    shipper: Shipper | None = None
    strict: GroupCommit | None = None

    @property
    def pending(self) -> int:
        """Records handed over and not yet durable."""
        return self.submitter.backlog

    @property
    def backlog(self) -> Backlog:
        """Durable here and not yet in the log."""
        return self.spool.backlog() if self.spool else Backlog(0, 0, 0.0)

    def gauges(self) -> dict[str, float]:
        """For metrics: what waits, for how long, and what became of the spool's disk."""
        backlog, spool, shipper = self.backlog, self.spool, self.shipper
        return {
            "tidegate_pending_records": self.pending,
            "tidegate_spool_backlog_records": backlog.records,
            "tidegate_spool_backlog_bytes": backlog.bytes,
            "tidegate_spool_backlog_age_seconds": backlog.oldest_age_s,
            "tidegate_spool_fault": shipper is not None and shipper.fault is not None,
            "tidegate_spool_full": spool is not None and not spool.takes_permits,
            "tidegate_spool_damaged": spool.damaged if spool else 0,
            "tidegate_spool_set_aside_files": spool.set_aside if spool else 0,
            "tidegate_spool_syncs": spool.syncs if spool else 0,
            "tidegate_strict_batches": self.strict.batches if self.strict else 0,
        }


@contextlib.asynccontextmanager
async def open_records(
    settings: Settings, log: EventLog, place: Place, vault: Vault | None = None
) -> AsyncIterator[Records]:
    """Leaving it makes everything durable and, with Kafka, empties the spool within limits.drain_timeout_s."""
    if isinstance(log, SqliteLog):
        writer = Writer(lambda: Chain(f"{place.edge}.{uuid7()}"), log)
        log.when_failed(lambda _fault: writer.failed(None))
        recorder = Recorder(writer, vault=vault)
        with _unclean_start(settings.data_dir / "edge.open") as unclean:
            if unclean:
                await recorder.record_all([abandoned(request, place) for request in await _left_open(log)])
            yield Records(recorder, log)
        return
    async with _kafka_records(settings, place, vault) as records:
        yield records


@contextlib.contextmanager
def _unclean_start(marker: Path) -> Iterator[bool]:
    """True when the edge before this one did not close: the marker that it removes at its end is still there."""
    unclean = marker.exists()
    marker.touch()
    yield unclean
    marker.unlink(missing_ok=True)


async def _left_open(log: EventLog) -> list[CallRequested]:
    """Calls that were allowed and have no end in the local log, oldest first."""
    subscription = await log.follow(["calls"])
    left: dict[str, CallRequested] = {}
    try:
        while not subscription.caught_up:
            for record in await subscription.poll(READ_AT_ONCE, 1.0):
                _note_call(left, record.value)
    finally:
        await subscription.close()
    return list(left.values())


def _note_call(left: dict[str, CallRequested], value: bytes | None) -> None:
    try:
        event = open_event(value or b"")
    except msgspec.DecodeError:
        return  # whatever it is, it is no call of this version
    if isinstance(event, CallRequested) and event.decision == "allow":
        left[event.call_id] = event
    elif isinstance(event, CallCompleted | CallAbandoned):
        left.pop(event.call_id, None)


@contextlib.asynccontextmanager
async def _kafka_records(settings: Settings, place: Place, vault: Vault | None) -> AsyncIterator[Records]:
    from tidegate.log.kafka_appender import KafkaAppender  # a local edge has no use for Kafka's client

    limits = settings.limits
    spool = Spool(settings.data_dir / "spool", limits.spool_bytes_max, edge=place.edge)
    for report in spool.reports:
        _log.error("spool: %s", report)
    async with contextlib.AsyncExitStack() as stack:
        spooled, spool_writer = _spooled(spool, limits)
        stack.push_async_callback(spooled.close)
        shipper = Shipper(spool, KafkaAppender(settings, 10.0))
        stack.push_async_callback(_drain, shipper, spool, limits.drain_timeout_s)
        strict, strict_writer = _strict(KafkaAppender(settings, 5.0), limits, place.edge)
        stack.push_async_callback(strict.close)
        recorder = Recorder(
            spool_writer,
            strict_writer,
            vault=vault,
            refusal=lambda: None if spool.takes_permits else spool.full(),
        )
        shipper.start()  # first of all: a full spool takes nothing until it has shipped
        telling = asyncio.create_task(Leftovers(recorder, spool, place).run(), name="tell what the spool lost")
        stack.push_async_callback(_ended, telling)
        yield Records(recorder, spooled, spool, shipper, strict)


def _spooled(spool: Spool, limits: Limits) -> tuple[GroupCommit, Writer]:
    """The spool under a group commit. A refused batch was not stored: the chain goes on from what is durable."""

    def on_fault(fault: LogUnavailable) -> None:
        writer.failed(None if fault.code == "spool-broken" else _after(commit.durable, spool.writer))

    commit = GroupCommit(
        spool,
        records_max=limits.pending_records_max,
        name="spool",
        on_fault=on_fault,
        inline_below_s=INLINE_BELOW_S,
    )
    writer = Writer(_epochs(spool), commit)
    return commit, writer


def _strict(appender: BlockingAppender, limits: Limits, edge: str) -> tuple[GroupCommit, Writer]:
    """Kafka under a group commit. What it had taken of a failed batch is unknown: a new chain begins."""

    def on_fault(_fault: LogUnavailable) -> None:
        writer.failed(None)

    commit = GroupCommit(appender, records_max=limits.pending_records_max, name="strict", on_fault=on_fault)
    writer = Writer(lambda: Chain(f"{edge}.strict.{uuid7()}"), commit)
    return commit, writer


def _after(record: Record | None, writer: str) -> Chain:
    """The chain whose last stored record this is."""
    head = open_head(record.value) if record is not None and record.value is not None else None
    if record is None or record.value is None or head is None or head.writer != writer:
        return Chain(writer)
    return Chain(writer, seq=head.seq, prev=hashlib.sha256(record.value).hexdigest())


def _epochs(spool: Spool) -> Callable[[], Chain]:
    """The spool's writer at first, then a new epoch each time a chain has ended."""
    first = [spool.writer]
    return lambda: Chain(first.pop() if first else spool.renew())


async def _drain(shipper: Shipper, spool: Spool, deadline_s: float) -> None:
    if not await asyncio.to_thread(shipper.drain, deadline_s):
        _log.warning("the spool still holds %d records; they are shipped at the next start", spool.backlog().records)
    await asyncio.to_thread(shipper.close)


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class Leftovers:
    """Records what earlier starts left open, and what the spool lost, now and whenever it finds more. A spool that is
    full is waited for.
    """

    def __init__(self, recorder: Recorder, spool: Spool, place: Place) -> None:
        self._recorder = recorder
        self._spool = spool
        self._place = place
        self._left = [abandoned(request, place) for request in spool.unfinished()]
        self._found = asyncio.Event()
        self._logged = len(spool.damages())

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        self._spool.on_damage = lambda: loop.call_soon_threadsafe(self._found.set)
        waited = False
        while True:
            self._found.clear()
            self._log()
            try:
                await self.tell()
            except LogUnavailable as fault:
                if not waited:
                    _log.warning("what the spool left cannot be recorded yet: %s", fault.sentence)
                waited = True
                await asyncio.sleep(RETRY_S)
                continue
            waited = False
            await self._found.wait()

    async def tell(self) -> None:
        """Raises LogUnavailable; then it is tried again, with the same events."""
        while self._left:  # some at a time: a spool that is nearly full takes a few, and ships them
            await self._recorder.record_all(self._left[:TOLD_AT_ONCE])
            del self._left[:TOLD_AT_ONCE]
        damages = self._spool.damages()
        await self._recorder.record_all([event for damage in damages for event in lost_events(damage, self._place)])
        if damages:
            self._spool.told(damages)
            self._logged = len(self._spool.damages())

    def _log(self) -> None:
        damages = self._spool.damages()
        for damage in damages[self._logged :]:
            _log.error("spool: %s", damage.sentence)
        self._logged = len(damages)


def lost_events(damage: Damage, place: Place) -> list[SpoolDamaged]:
    """One for each chain that has a gap there; one without a chain where none can be named."""
    gaps = damage.gaps or (Gap("", 0, 0),)
    return [
        SpoolDamaged(
            **place.stamp(place.tenant),
            edge=place.edge,
            spool=gap.writer.split(".")[-2] if gap.writer.count(".") > 1 else "",
            file=damage.file,
            aside=damage.aside,
            damage=damage.kind,
            bytes=damage.bytes,
            records=damage.records,
            of_writer=gap.writer,
            first_seq=gap.first,
            last_seq=gap.last,
            message=damage.sentence,
        )
        for gap in gaps
    ]


def abandoned(request: CallRequested, place: Place) -> CallAbandoned:
    """Nobody knows how this call ended: the edge died before its completion was recorded."""
    shared = {name: getattr(request, name) for name in _REPEATED}
    stamp = place.stamp(request.tenant)
    message = "The edge ended before the call's completion was recorded; whether it was carried out is unknown."
    return CallAbandoned(
        **{**shared, **stamp, "reason": "edge-died", "message": message},
        found_us=stamp["time_us"],
        labels=request.labels,
        sealed=request.sealed,  # as it is, under the key that the request was sealed with
    )
