"""The edge's durable buffer in front of Kafka: what is appended is on this disk before a call is forwarded, and is
shipped later.

One directory, one owner, one writer identity per start: `{edge}.{spool id}.{epoch}`. A full spool refuses; it never
forgets. Files: `spool.json` (id and epoch), `*.segment` (records; `segments.py`), `shipped` (how far), `open-calls`,
`*.set-aside` (what could not be read), `unreported` (losses that are still to be recorded). Counterparts: `shipper.py`
empties it, `recovery.py` reads what an earlier epoch left.
"""

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tidegate.chain import open_event
from tidegate.errors import LogUnavailable
from tidegate.events import CallRequested
from tidegate.ids import now_us
from tidegate.log.damage import Damage, Kind, gaps_between, lost_between
from tidegate.log.frames import BadFrame, decode, encode, resume, skip
from tidegate.log.open_calls import OpenCalls, kept_calls
from tidegate.log.ownership import Ownership
from tidegate.log.port import Record
from tidegate.log.recovery import ASIDE, count_asides, highest_epoch, recover, scan
from tidegate.log.segments import HEADER_BYTES, Segment, Writing, replace_file, sync_directory
from tidegate.log.shipper import Shipper
from tidegate.log.spool_state import (
    DAMAGES_MAX,
    Identity,
    Mark,
    keep_damages,
    keep_identity,
    kept_damages,
    next_identity,
)

__all__ = ["Backlog", "Chunk", "Shipper", "Spool"]

_SEGMENT_BYTES = 16 * 1024 * 1024
_STRETCH_BYTES = 1024 * 1024
_TAIL_BYTES_MAX = 32 * 1024 * 1024  # unshipped records kept in memory as well; beyond it the shipper reads the disk
_RESERVED: Final = 16  # this part of the bound is for the ends of calls that were permitted before
_READS_MAX: Final = 3  # of a segment that the disk does not give, while others wait behind it
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Backlog(NamedTuple):
    """What is not shipped yet. `bytes` of a partly shipped segment are an estimate."""

    records: int
    bytes: int
    oldest_age_s: float


class Chunk(NamedTuple):
    """Records in order, to be shipped together; `end` is the index after the last."""

    records: list[Record]
    end: int


class _Batch(NamedTuple):
    first: int
    records: Sequence[Record]
    bytes: int
    time_us: int


class _Reading(NamedTuple):
    """A segment that is being shipped from the disk: its content up to index `end`, and where to go on."""

    path: Path
    content: bytes
    end: int
    at: int
    next: int
    before: Record | None = None


class Spool:
    """BlockingAppender on a directory. `append` from one thread, `take` and `shipped` from another.

    Opening recovers what earlier epochs left: `reports` says what was not as it should be, `damages` what is lost; both
    grow while shipping finds more. Raises LogUnavailable where another process owns the directory, or it cannot be
    written.
    """

    def __init__(self, directory: str | Path, bytes_max: int, *, edge: str) -> None:
        self.directory = Path(directory)
        self.reports: list[str] = []
        self.damaged = 0  # losses found since the start
        self.set_aside = 0  # files of bytes that could not be read
        self.syncs = 0  # writes that were synced since the start
        self.on_damage: Callable[[], object] | None = None  # called by the shipper's thread
        self.takes_permits = True  # room is left for more than the ends of calls under way
        self._edge = edge
        self._bytes_max = bytes_max
        self._segment_bytes = min(_SEGMENT_BYTES, max(bytes_max // 8, HEADER_BYTES + 1))
        self._stretch_bytes = min(_STRETCH_BYTES, self._segment_bytes)
        self._changed = threading.Condition()
        self._shipper_waits = False
        self._segments: list[Segment] = []
        self._writing: Writing | None = None
        self._tail: deque[_Batch] = deque()
        self._tail_bytes = 0
        self._reading: _Reading | None = None
        self._identity = Identity("", 0)
        self._mark: Mark | None = None
        self._damages: list[Damage] = []
        self._reads = 0  # in vain
        self._undone: Writing | None = None  # a failed write that is still to be taken back
        self._shipped = 0  # the index of the next record to ship
        self._next = 0  # the index of the next record to append
        self._open_shipped = OpenCalls()  # as of `_shipped`
        self._left_open: list[Record] = []
        self._fault = ""
        self._slot = 0
        try:
            self._ownership = Ownership(self.directory / "spool.lock", f"the spool {self.directory}")
            try:
                self._recover()
            except BaseException:
                self._ownership.release()
                raise
        except OSError as error:
            raise LogUnavailable(
                f"the spool {self.directory} cannot be used ({error}); is it a writable directory?"
            ) from error

    @property
    def writer(self) -> str:
        """The writer identity of this epoch, for the `Chain`."""
        return f"{self._edge}.{self._identity.id}.{self._identity.epoch}"

    def renew(self) -> str:
        """Begin a new epoch, after records that were sealed could not be stored: their chain is at its end.

        Returns the new writer. Raises LogUnavailable where the epoch cannot be stored.
        """
        identity = self._identity.following()
        try:
            keep_identity(self.directory / "spool.json", identity)
        except OSError as error:
            raise LogUnavailable(f"the spool {self.directory} cannot begin a new epoch ({error})") from error
        self._identity = identity
        return self.writer

    def append(self, records: Sequence[Record]) -> None:
        """On the disk on return. Raises LogUnavailable (`spool-full`, ...): then none of them is ever shipped.

        `spool-broken` is the exception: a failed write could not be taken back, and nothing is taken until it can. An
        edge that dies meanwhile may find it at its next start and ship it.
        """
        self._check_whole()
        try:
            buffer = encode(records)
        except ValueError as error:
            raise LogUnavailable(str(error), code="record-too-large") from error
        used = sum(segment.bytes for segment in self._segments)
        if used + len(buffer) > self._bytes_max:
            raise LogUnavailable(
                f"the spool {self.directory} is full ({used} of {self._bytes_max} bytes); is Kafka away? "
                "limits.spool_bytes_max bounds it",
                code="spool-full",
            )
        try:
            writing = self._room_for(len(buffer))
            first = writing.segment.end
            writing.append(buffer, len(records))
            self.syncs += 1
        except OSError as error:
            self._undo()
            code = "spool-full" if error.errno in _FULL else "log-unavailable"
            raise LogUnavailable(
                f"the spool {self.directory} took no record ({error}); free space, check the disk", code=code
            ) from error
        if first == writing.segment.first and self._mark is not None:
            self._mark.begin(first)
        self.takes_permits = used + len(buffer) < self._bytes_max - self._bytes_max // _RESERVED
        self._remember(_Batch(first, records, len(buffer), now_us()))

    def full(self) -> LogUnavailable:
        """What to tell who asks for a permit while `takes_permits` is False."""
        return LogUnavailable(
            f"the spool {self.directory} is nearly full and takes only the ends of calls under way; is Kafka away? "
            "limits.spool_bytes_max bounds it",
            code="spool-full",
        )

    def damages(self) -> list[Damage]:
        """Losses that no event tells of yet, those of earlier starts included; from any thread."""
        with self._changed:
            return list(self._damages)

    def told(self, damages: Sequence[Damage]) -> None:
        """Events tell of these now. A reminder that cannot be deleted is told of again at the next start."""
        with self._changed:
            self._damages = [one for one in self._damages if one not in damages]
            try:
                keep_damages(self.directory / "unreported", self._damages)
            except OSError as error:
                self.reports.append(f"unreported cannot be written ({error})")

    def unfinished(self) -> list[CallRequested]:
        """Calls of earlier epochs that were allowed and have no end in this spool, oldest first."""
        events = [open_event(record.value) for record in self._left_open if record.value is not None]
        return [event for event in events if isinstance(event, CallRequested) and event.decision == "allow"]

    def backlog(self) -> Backlog:
        """Cheap enough for a metric; from any thread."""
        with self._changed:
            records = total = 0
            oldest_us = 0
            for segment in self._segments:
                left = segment.end - max(self._shipped, segment.first)
                if left <= 0:
                    continue
                records += left
                total += (segment.bytes - HEADER_BYTES) * left // segment.count
                oldest_us = oldest_us or segment.created_us
            if records and self._tail and self._tail[0].first <= self._shipped:
                oldest_us = self._tail[0].time_us
            return Backlog(records, total, max(0.0, (now_us() - oldest_us) / 1e6) if records else 0.0)

    def take(self, records_max: int, bytes_max: int, timeout_s: float) -> Chunk | None:
        """The oldest records not shipped yet; None after `timeout_s` without any. Again the same until `shipped`."""
        with self._changed:
            if not self._unshipped() and timeout_s > 0:
                self._shipper_waits = True
                self._changed.wait(timeout_s)
                self._shipper_waits = False
            if not self._unshipped():
                return None
            if self._tail and self._tail[0].first <= self._shipped:
                return self._from_tail(records_max, bytes_max)
            segment = next(segment for segment in self._segments if segment.end > self._shipped)
            upto = self._tail[0].first if self._tail else segment.end
        return self._from_disk(segment, min(upto, segment.end), records_max, bytes_max)

    def shipped(self, chunk: Chunk) -> None:
        """This chunk is in Kafka: keep the mark, delete the segments that are done with."""
        for record in chunk.records:
            self._open_shipped.note(record)
        with self._changed:
            self._shipped = chunk.end
            while self._tail and self._tail[0].first < chunk.end:
                self._tail_bytes -= self._tail.popleft().bytes
            done = [each for each in self._segments if each.end <= chunk.end and not self._is_written(each)]
            self._changed.notify_all()
        if self._mark is not None:
            self._mark.keep(self._shipped)
        if done:
            self._delete(done)

    def wait_empty(self, deadline_s: float) -> bool:
        """Whether everything is shipped before the deadline."""
        until = time.monotonic() + deadline_s
        with self._changed:
            while self._unshipped():
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Give up the directory; segments that are shipped whole go. Call after the shipper is closed. Idempotent."""
        if self._mark is None:
            return
        self._fault = self._fault or f"the spool {self.directory} is closed"
        if self._writing is not None:
            self._writing.close()
            self._writing = None
        done = [segment for segment in self._segments if segment.end <= self._shipped]
        if done:
            self._delete(done)
        self._mark.close()
        self._mark = None
        self._ownership.release()

    def _recover(self) -> None:
        directory = self.directory
        identity, existed, report = next_identity(directory / "spool.json", highest_epoch(directory))
        if report:
            self.reports.append(report)
        keep_identity(directory / "spool.json", identity)
        self._identity = identity
        mark = self._mark = Mark(directory / "shipped")
        is_known = mark.is_readable and not (mark.was_made and existed)
        if not is_known:
            self.reports.append("shipped cannot be read: all that is here is shipped again")
        calls, report = kept_calls(directory / "open-calls")
        if report:
            self.reports.append(report)
        self._open_shipped = calls
        at_mark: OpenCalls | None = None

        def seen(index: int, record: Record) -> None:
            nonlocal at_mark
            if at_mark is None and index >= mark.shipped:
                at_mark = calls.copy()
            calls.note(record)

        found = recover(directory, mark.shipped if is_known else None, mark.begun, seen)
        self._note_damages(kept_damages(directory / "unreported"), found.damages)
        found.repair()
        self.reports.extend(found.reports)
        self.damaged = len(found.damages)
        self.set_aside = count_asides(directory)
        self._segments = found.segments
        self._shipped = found.shipped
        self._next = max([found.shipped, *(segment.end for segment in found.segments)])
        if mark.begun is not None and mark.begun not in {segment.first for segment in found.segments}:
            mark.begin(None)  # shipped and deleted, or its loss is noted
        self._left_open = calls.records()
        self._open_shipped = at_mark or calls
        self._weigh()

    def _note_damages(self, known: Sequence[Damage], new: Sequence[Damage]) -> None:
        """Written down before the files are put right, for afterwards nothing shows them. Raises OSError."""
        places = {(one.file, one.aside) for one in known}
        fresh = [one for one in new if (one.file, one.aside) not in places]
        with self._changed:
            self._damages = [*known, *fresh][:DAMAGES_MAX]
            if fresh:
                keep_damages(self.directory / "unreported", self._damages)

    def _check_whole(self) -> None:
        """Takes back now what could not be taken back before. Raises LogUnavailable."""
        if self._undone is not None and self._mark is not None:
            self._writing, self._undone, self._fault = self._undone, None, ""
            self._undo()
        if self._fault:
            raise LogUnavailable(self._fault, code="spool-broken")

    def _weigh(self) -> None:
        used = sum(segment.bytes for segment in self._segments)
        self.takes_permits = used < self._bytes_max - self._bytes_max // _RESERVED

    def _delete(self, done: list[Segment]) -> None:
        try:
            if self._mark is not None:
                self._mark.sync()
            self._open_shipped.keep(self.directory / "open-calls")
            for segment in done:
                segment.path.unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError:
            return  # tried again with the next chunk: a segment too many costs space alone
        with self._changed:
            self._segments = [segment for segment in self._segments if segment not in done]
        self._weigh()

    def _room_for(self, size: int) -> Writing:
        writing = self._writing
        if writing is not None and writing.segment.count and writing.segment.bytes + size > self._segment_bytes:
            writing.close()
            self._writing = writing = None
        if writing is None:
            writing = Writing(self.directory, self._identity.epoch, self._next, self._stretch_bytes)
            self._writing = writing
            with self._changed:
                self._segments.append(writing.segment)
        return writing

    def _undo(self) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.undo()
            if not writing.segment.count:
                writing.segment.path.unlink()
                with self._changed:
                    self._segments.remove(writing.segment)
        except OSError as error:
            self._undone = writing
            self._fault = f"the spool {self.directory} cannot take back a failed write ({error}); check the disk"

    def _remember(self, batch: _Batch) -> None:
        with self._changed:
            self._next = batch.first + len(batch.records)
            self._tail.append(batch)
            self._tail_bytes += batch.bytes
            while self._tail_bytes > _TAIL_BYTES_MAX and len(self._tail) > 1:
                self._tail_bytes -= self._tail.popleft().bytes
            if self._shipper_waits:
                self._changed.notify_all()

    def _is_written(self, segment: Segment) -> bool:
        return self._writing is not None and self._writing.segment is segment

    def _unshipped(self) -> bool:
        return self._next > self._shipped

    def _from_tail(self, records_max: int, bytes_max: int) -> Chunk:
        records: list[Record] = []
        size, end = 0, self._shipped
        for batch in self._tail:
            if records and (len(records) + len(batch.records) > records_max or size + batch.bytes > bytes_max):
                break
            records += batch.records
            size += batch.bytes
            end = batch.first + len(batch.records)
        return Chunk(records, end)

    def _from_disk(self, segment: Segment, upto: int, records_max: int, bytes_max: int) -> Chunk:
        """What an earlier epoch left, or memory did not hold. Checked again: it may have lain here for days."""
        try:
            _, content, end, at, index, before = self._read_on(segment, upto)
        except OSError as error:
            return self._unreadable(segment, upto, error)
        self._reads = 0
        records: list[Record] = []
        limit = at + bytes_max
        while index < upto and len(records) < records_max and at < limit:
            try:
                found = decode(content, at)
                if found is None:
                    raise BadFrame("it ends early")
            except (BadFrame, ValueError) as error:
                if records:
                    break  # the good ones before it are shipped first
                at, index = self._pass_over(segment, content, at, index, upto, before, str(error))
                continue
            records.append(found[0])
            at, index = found[1], index + 1
        self._reading = _Reading(segment.path, content, end, at, index, records[-1] if records else before)
        return Chunk(records, index)

    def _read_on(self, segment: Segment, upto: int) -> _Reading:
        start = max(self._shipped, segment.first)
        reading = self._reading
        if reading is not None and reading.path == segment.path and reading.next == start and reading.end >= upto:
            return reading
        with segment.path.open("rb") as file:
            end, size = segment.end, segment.bytes
            content = file.read(size)
        return _Reading(segment.path, content, end, skip(content, HEADER_BYTES, start - segment.first), start)

    def _pass_over(
        self, segment: Segment, content: bytes, at: int, index: int, upto: int, before: Record | None, why: str
    ) -> tuple[int, int]:
        """Where the next good record is, and its index: as many are left as there are good ones."""
        beyond = resume(content, at)
        runs, _ = scan(content, beyond) if beyond is not None else ([], [])
        left = sum(len(run.records) for run in runs) - max(0, segment.end - upto)
        after = runs[0].records[0] if runs else None
        lost = lost_between(before, after)
        to = min(max(index + 1, upto - left if lost is None else index + lost), upto)
        end = len(content) if beyond is None else beyond
        aside = segment.path.with_name(f"{segment.path.stem}-{at}{ASIDE}")
        replace_file(aside, content[at:end])
        self._lose("damaged", segment, why, to - index, before, after, aside.name, end - at)
        return end, to

    def _unreadable(self, segment: Segment, upto: int, error: OSError) -> Chunk:
        """Tried a few times; then what stands behind it is shipped. Raises the OSError."""
        self._reads += 1
        if self._reads < _READS_MAX and not isinstance(error, FileNotFoundError):
            raise error
        self._reads = 0
        start = max(self._shipped, segment.first)
        kind: Kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        self._lose(kind, segment, f"it cannot be read ({error.strerror})", upto - start, None, None)
        return Chunk([], upto)

    def _lose(
        self,
        kind: Kind,
        segment: Segment,
        why: str,
        records: int,
        before: Record | None,
        after: Record | None,
        aside: str = "",
        size: int = 0,
    ) -> None:
        gaps = gaps_between(before, after, records)
        damage = Damage(
            kind=kind,
            file=segment.path.name,
            why=why,
            aside=aside,
            bytes=size,
            records=records,
            gaps=gaps,
            found_us=now_us(),
        )
        self.reports.append(damage.sentence)
        del self.reports[:-DAMAGES_MAX]
        self.damaged += 1
        self.set_aside += bool(aside)
        self._note_damages(self.damages(), [damage])
        if self.on_damage is not None:
            self.on_damage()
