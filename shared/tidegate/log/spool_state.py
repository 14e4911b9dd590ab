"""The small files beside a spool's segments: who writes here (`spool.json`), how far it is shipped (`shipped`), and
losses that are still to be recorded (`unreported`). Counterpart: `spool.py`.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from tidegate.ids import uuid7
from tidegate.log.damage import Damage
from tidegate.log.segments import replace_file, sync_directory

_SLOT = struct.Struct("<QI4x")
_BEGUN: Final = 2  # the slot behind the two of the mark
DAMAGES_MAX: Final = 1_000


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who writes: the spool's id, and an epoch per start. `check` finds a flipped bit that leaves JSON."""

    id: str
    epoch: int
    v: int = 1
    check: int = 0

    def following(self) -> "Identity":
        """The next epoch."""
        return Identity(self.id, self.epoch + 1, check=_checked(self.id, self.epoch + 1))


def next_identity(path: Path, epoch_min: int) -> tuple[Identity, bool, str]:
    """(the identity of this start, whether the spool existed, what to report). Not stored yet. Raises OSError.

    `epoch_min` is the highest epoch that a segment names: none of it may ever be used again.
    """
    found, existed, report = Identity(uuid7().replace("-", "")[-12:], 0), path.exists(), ""
    if existed:
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=Identity)
            if stored.check and stored.check != _checked(stored.id, stored.epoch):
                raise msgspec.DecodeError("its checksum does not match")
            found = stored
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            report = f"{path.name} cannot be read ({error}): the spool goes on under a new id"
    return Identity(found.id, max(found.epoch, epoch_min)).following(), existed, report


def keep_identity(path: Path, identity: Identity) -> None:
    """Durable on return. Raises OSError."""
    replace_file(path, msgspec.json.encode(identity))


def _checked(spool_id: str, epoch: int) -> int:
    return zlib.crc32(f"{spool_id}.{epoch}".encode()) or 1


class Mark:
    """How far the spool is shipped. Two slots, written in turn, so that a torn one leaves the other; too low only ships
    again what is known. A third names the segment that was written last, so that its absence is noticed.
    """

    def __init__(self, path: Path, *, is_kept: bool = True) -> None:
        """Not `is_kept`: read alone, and never written. Raises OSError."""
        existed = path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if is_kept else -1
        content = path.read_bytes()[: 3 * _SLOT.size] if existed else b""
        self._slot = 0
        self.was_made = not existed
        self.is_readable = not content[: _BEGUN * _SLOT.size].strip(b"\0")
        self.shipped = 0
        for slot in range(min(_BEGUN, len(content) // _SLOT.size)):
            index = _read(content, slot)
            if index is not None and index >= self.shipped:
                self.shipped, self._slot, self.is_readable = index, slot, True
        self.begun = _read(content, _BEGUN)

    def keep(self, shipped: int) -> None:
        """Not synced: what was not kept is shipped again, and readers count it once."""
        self._slot ^= 1
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, _packed(shipped), self._slot * _SLOT.size)

    def begin(self, first: int | None) -> None:
        """A segment that begins at this index holds a record; None: there is none. Not synced either."""
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, bytes(_SLOT.size) if first is None else _packed(first), _BEGUN * _SLOT.size)

    def sync(self) -> None:
        """Before what is shipped is deleted: else it would look like a loss. Raises OSError."""
        os.fdatasync(self._fd)

    def close(self) -> bool:
        """False where it was closed before."""
        if self._fd < 0:
            return False
        os.close(self._fd)
        self._fd = -1
        return True


def _packed(index: int) -> bytes:
    return _SLOT.pack(index, zlib.crc32(index.to_bytes(8, "little")))


def _read(content: bytes, slot: int) -> int | None:
    if len(content) < (slot + 1) * _SLOT.size:
        return None
    index, crc = _SLOT.unpack_from(content, slot * _SLOT.size)
    return int(index) if crc == zlib.crc32(index.to_bytes(8, "little")) else None


def kept_damages(path: Path) -> list[Damage]:
    """Those that no event tells of yet; [] where the file cannot be read, for it is only a reminder."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Damage])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return []


def keep_damages(path: Path, damages: Iterable[Damage]) -> None:
    """Durable on return; without any the file goes. Raises OSError."""
    kept = list(damages)[:DAMAGES_MAX]
    if kept:
        replace_file(path, msgspec.json.encode(kept))
    elif path.exists():
        path.unlink()
        sync_directory(path.parent)
