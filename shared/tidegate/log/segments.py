"""The spool's files: segments of frames, named by the index of their first record. Counterpart: `frames.py`,
`spool.py`.

    magic 8 | epoch u64 | first index u64 | created u64 (microseconds) | crc u32 | 4 bytes zero | frames … | zeros

A segment grows by stretches of written zeros, because syncing data into blocks that exist and were written costs half
the time and CPU of syncing a growing file. `recovery.py` reads what an earlier epoch left.
"""

import contextlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from tidegate.ids import now_us

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
        path = named(directory, first)
        self.segment = Segment(path, epoch, first, now_us())
        self._stretch = stretch_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._filled = 0
        try:
            self._write(_head(epoch, first, self.segment.created_us), 0)
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
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    staging.replace(path)
    sync_directory(path.parent)


def header_of(path: Path, content: bytes) -> Segment | None:
    """What a file says of itself, whatever its name is; None where its header cannot be read."""
    if len(content) < HEADER_BYTES:
        return None
    magic, epoch, first, created_us, crc = _HEADER.unpack_from(content)
    if magic != _MAGIC or crc != zlib.crc32(content[: HEADER_BYTES - 8]):
        return None
    return Segment(path, epoch, first, created_us)


def named(directory: Path, first: int) -> Path:
    """The file whose first record has this index."""
    return directory / f"{first:020d}.segment"


def rewrite(segment: Segment, frames: bytes) -> None:
    """A whole file of these frames under the segment's header, durable. Raises OSError."""
    replace_file(segment.path, _head(segment.epoch, segment.first, segment.created_us) + frames)


def _head(epoch: int, first: int, created_us: int) -> bytes:
    head = _HEADER.pack(_MAGIC, epoch, first, created_us, 0)[:-8]
    return _HEADER.pack(_MAGIC, epoch, first, created_us, zlib.crc32(head))
