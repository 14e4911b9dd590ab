"""The spool's files: segments of frames, named by the index of their first record. Counterpart: `frames.py`,
`spool.py`.

    magic 8 | epoch u64 | first index u64 | created u64 (microseconds) | crc u32 | 4 bytes zero | frames … | zeros

A segment grows by stretches of written zeros, because syncing data into blocks that exist and were written costs half
the time and CPU of syncing a growing file. What cannot be read is set aside in a file of its own, never shipped, never
deleted.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate.ids import now_us
from tidegate.log.frames import BadFrame, decode
from tidegate.log.port import Record

_HEADER = struct.Struct("<8sQQQI4x")
_MAGIC = b"TGSPOOL1"
HEADER_BYTES = _HEADER.size


@dataclass(slots=True)
class Segment:
    """A file and its good part: `count` records in `bytes` bytes, header included."""

    path: Path
    epoch: int
    first: int
    created_us: int
    count: int = 0
    bytes: int = HEADER_BYTES

    @property
    def end(self) -> int:
        """The index after its last record."""
        return self.first + self.count


class Writing:
    """The segment that is being appended to. Every method may raise OSError; then call `undo` and write on in a new
    one.
    """

    def __init__(self, directory: Path, epoch: int, first: int, stretch_bytes: int) -> None:
        path = directory / f"{first:020d}.segment"
        self.segment = Segment(path, epoch, first, now_us())
        self._stretch = stretch_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._filled = 0
        try:
            head = _HEADER.pack(_MAGIC, epoch, first, self.segment.created_us, 0)[:-8]
            self._write(_HEADER.pack(_MAGIC, epoch, first, self.segment.created_us, zlib.crc32(head)), 0)
            self._filled = HEADER_BYTES
            os.fsync(self._fd)
            sync_directory(directory)
        except OSError:
            os.close(self._fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def append(self, buffer: bytes, count: int) -> None:
        """On the disk on return. Until then the segment's good part does not contain it."""
        at = self.segment.bytes
        end = at + len(buffer)
        if end > self._filled:
            zeros = bytes(end + self._stretch - self._filled)
            self._write(zeros, self._filled)
            self._filled += len(zeros)
        self._write(buffer, at)
        os.fdatasync(self._fd)
        self.segment.bytes = end
        self.segment.count += count

    def undo(self) -> None:
        """Cut the file back to its good part, durably, and close it."""
        os.ftruncate(self._fd, self.segment.bytes)
        os.fsync(self._fd)
        self.close()

    def close(self) -> None:
        """Drop the zeros behind the good part and close. A crash that keeps them does no harm."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.segment.bytes)
            os.close(self._fd)
            self._fd = -1

    def _write(self, buffer: bytes, at: int) -> None:
        view = memoryview(buffer)
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written


def sync_directory(directory: Path) -> None:
    """Make created, renamed and deleted names durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes) -> None:
    """Whole and durable, or as it was. Raises OSError."""
    staging = path.with_name(path.name + ".new")
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    staging.replace(path)
    sync_directory(path.parent)


def recover(path: Path, seen: Callable[[int, Record], None]) -> tuple[Segment | None, str]:
    """Read a segment that an earlier epoch left: its good part (None without any), and what to report ("" if whole).

    `seen` is called with each index and record of the good part. The rest is set aside and cut off.
    """
    content = path.read_bytes()
    segment = _header(path, content)
    if segment is None and not content.strip(b"\0"):  # a crash while it was being made
        path.unlink()
        return None, ""
    if segment is None:
        aside = path.with_suffix(".set-aside")
        path.rename(aside)
        sync_directory(path.parent)
        return None, f"{path.name} has no readable header: kept as {aside.name}, none of it is shipped"
    why = ""
    try:
        while (found := decode(content, segment.bytes)) is not None:
            record, segment.bytes = found
            seen(segment.end, record)
            segment.count += 1
        if content[segment.bytes :].strip(b"\0"):
            why = "data follows the end"
    except (BadFrame, ValueError) as error:  # ValueError: a frame of ours whose topic or headers are none
        why = str(error)
    return segment, _cut_off(segment, content, why) if why else ""


def _header(path: Path, content: bytes) -> Segment | None:
    if len(content) < HEADER_BYTES:
        return None
    magic, epoch, first, created_us, crc = _HEADER.unpack_from(content)
    if magic != _MAGIC or crc != zlib.crc32(content[: HEADER_BYTES - 8]) or path.stem != f"{first:020d}":
        return None
    return Segment(path, epoch, first, created_us)


def _cut_off(segment: Segment, content: bytes, why: str) -> str:
    rest = content[segment.bytes :].rstrip(b"\0")
    aside = segment.path.with_name(f"{segment.path.stem}-{segment.bytes}.set-aside")
    replace_file(aside, rest)
    os.truncate(segment.path, segment.bytes)
    return (
        f"{segment.path.name}: after {segment.count} good records {why}; {len(rest)} bytes are not shipped, "
        f"kept as {aside.name} (where a crash tore the last write, they were never acknowledged)"
    )
