"""The edge's durable buffer in front of Kafka: what is appended is on this disk before a call is forwarded, and is
shipped later.

One directory, one owner, one writer identity per start: `{edge}.{spool id}.{epoch}`. A full spool refuses; it never
forgets. Files: `spool.json` (id and epoch), `*.segment` (records; `segments.py`), `shipped` (how far), `open-calls`,
`*.set-aside` (what could not be read). Counterpart: `shipper.py` empties it.
"""

import contextlib
import errno
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tidegate.chain import open_event
from tidegate.errors import LogUnavailable
from tidegate.events import CallRequested
from tidegate.ids import now_us, uuid7
from tidegate.log.frames import BadFrame, decode, encode, skip
from tidegate.log.open_calls import OpenCalls, kept_calls
from tidegate.log.ownership import Ownership
from tidegate.log.port import Record
from tidegate.log.segments import HEADER_BYTES, Segment, Writing, recover, replace_file, sync_directory
from tidegate.log.shipper import Shipper

__all__ = ["Backlog", "Chunk", "Shipper", "Spool"]

_SEGMENT_BYTES = 16 * 1024 * 1024
_STRETCH_BYTES = 1024 * 1024
_TAIL_BYTES_MAX = 32 * 1024 * 1024  # unshipped records kept in memory as well; beyond it the shipper reads the disk
_MARK = struct.Struct("<QI4x")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Identity(msgspec.Struct, frozen=True):
    id: str
    epoch: int
    v: int = 1


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


class Spool:
    """BlockingAppender on a directory. `append` from one thread, `take` and `shipped` from another.

    Opening recovers what earlier epochs left; `reports` says what was not whole. Raises LogUnavailable where another
    process owns the directory, or it cannot be written.
    """

    def __init__(self, directory: str | Path, bytes_max: int, *, edge: str) -> None:
        self.directory = Path(directory)
        self.reports: list[str] = []
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
        self._identity = _Identity("", 0)
        self._mark_fd = -1
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
        identity = _Identity(self._identity.id, self._identity.epoch + 1)
        try:
            replace_file(self.directory / "spool.json", msgspec.json.encode(identity))
        except OSError as error:
            raise LogUnavailable(f"the spool {self.directory} cannot begin a new epoch ({error})") from error
        self._identity = identity
        return self.writer

    def append(self, records: Sequence[Record]) -> None:
        """On the disk on return. Raises LogUnavailable (`spool-full`, ...): then none of them is ever shipped.

        `spool-broken` is the exception: a failed write could not be taken back, and nothing is taken until a restart.
        """
        if self._fault:
            raise LogUnavailable(self._fault, code="spool-broken")
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
        except OSError as error:
            self._undo()
            code = "spool-full" if error.errno in _FULL else "log-unavailable"
            raise LogUnavailable(
                f"the spool {self.directory} took no record ({error}); free space, check the disk", code=code
            ) from error
        self._remember(_Batch(first, records, len(buffer), now_us()))

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
        self._keep_mark()
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
        if self._mark_fd < 0:
            return
        self._fault = self._fault or f"the spool {self.directory} is closed"
        if self._writing is not None:
            self._writing.close()
            self._writing = None
        done = [segment for segment in self._segments if segment.end <= self._shipped]
        if done:
            self._delete(done)
        os.close(self._mark_fd)
        self._mark_fd = -1
        self._ownership.release()

    def _recover(self) -> None:
        self._identity = self._next_identity()
        self._mark_fd = os.open(self.directory / "shipped", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._shipped = self._read_mark()
        calls, report = kept_calls(self.directory / "open-calls")
        if report:
            self.reports.append(report)
        self._open_shipped = calls
        at_mark: OpenCalls | None = None

        def seen(index: int, record: Record) -> None:
            nonlocal at_mark
            if at_mark is None and index >= self._shipped:
                at_mark = calls.copy()
            calls.note(record)

        for path in sorted(self.directory.glob("*.segment")):
            self._recover_segment(path, seen)
        self._left_open = calls.records()
        self._open_shipped = at_mark or calls
        self._next = max([self._shipped, *(segment.end for segment in self._segments)])

    def _recover_segment(self, path: Path, seen: Callable[[int, Record], None]) -> None:
        segment, report = recover(path, seen)
        if report:
            self.reports.append(report)
        if segment is None:
            return
        if self._segments and segment.first > self._segments[-1].end:
            lost = segment.first - self._segments[-1].end
            self.reports.append(f"{lost} records before {path.name} are missing")
        if segment.count:
            self._segments.append(segment)
        else:
            path.unlink()

    def _next_identity(self) -> _Identity:
        path = self.directory / "spool.json"
        identity = _Identity(uuid7().replace("-", "")[-12:], 0)
        if path.exists():
            try:
                identity = msgspec.json.decode(path.read_bytes(), type=_Identity)
            except msgspec.DecodeError as error:
                self.reports.append(f"spool.json cannot be read ({error}): the spool goes on under a new id")
        identity = _Identity(identity.id, identity.epoch + 1)
        replace_file(path, msgspec.json.encode(identity))
        return identity

    def _read_mark(self) -> int:
        """The mark has two slots, written in turn: a torn one leaves the other. Too low only ships again what is
        known.
        """
        best = 0
        content = os.pread(self._mark_fd, 2 * _MARK.size, 0)
        for slot in range(len(content) // _MARK.size):
            mark, crc = _MARK.unpack_from(content, slot * _MARK.size)
            if crc == zlib.crc32(mark.to_bytes(8, "little")) and mark >= best:
                best, self._slot = mark, slot
        return best

    def _keep_mark(self) -> None:
        self._slot ^= 1
        mark = _MARK.pack(self._shipped, zlib.crc32(self._shipped.to_bytes(8, "little")))
        with contextlib.suppress(OSError):  # a mark that was not kept ships again what readers then count once
            os.pwrite(self._mark_fd, mark, self._slot * _MARK.size)

    def _delete(self, done: list[Segment]) -> None:
        try:
            self._open_shipped.keep(self.directory / "open-calls")
            for segment in done:
                segment.path.unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError:
            return  # tried again with the next chunk: a segment too many costs space alone
        with self._changed:
            self._segments = [segment for segment in self._segments if segment not in done]

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
            self._fault = f"the spool {self.directory} could not take back a failed write ({error}); restart this edge"

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
        _, content, end, at, index = self._read_on(segment, upto)
        records: list[Record] = []
        limit = at + bytes_max
        try:
            while index < upto and len(records) < records_max and at < limit:
                found = decode(content, at)
                if found is None:
                    raise BadFrame("it ends early")
                records.append(found[0])
                at, index = found[1], index + 1
        except (BadFrame, ValueError) as error:
            if not records:  # the good ones before it are shipped first
                self._skip_damage(segment, content[at:], upto - index, f"{error}")
                index = upto
        self._reading = _Reading(segment.path, content, end, at, index)
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

    def _skip_damage(self, segment: Segment, rest: bytes, number: int, why: str) -> None:
        aside = segment.path.with_name(f"{segment.path.stem}-{segment.bytes - len(rest)}.set-aside")
        replace_file(aside, rest)
        self.reports.append(f"{segment.path.name}: {why}; {number} records are not shipped, kept as {aside.name}")
