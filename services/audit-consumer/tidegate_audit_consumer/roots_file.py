"""Roots as they are published beside the log: one stored event a line, appended and synced, never rewritten.

The order of the lines means nothing, nor does a line that is there twice: readers sort by number. Counterparts:
`sealing.py` writes, `tidegate verify` reads.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tidegate.chain import open_event
from tidegate.errors import ConfigFault
from tidegate.events import RootSealed
from tidegate.settings import Settings


class RootsFile:
    """The file of one process; missing until the first root."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, value: bytes) -> None:
        """Durable on return. A line that a crash cut off is ended first, so that it spoils no other. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write((b"\n" if is_torn else b"") + value + b"\n")
            os.fsync(file.fileno())

    def numbers(self, sealer: str) -> set[int]:
        """Of the roots of this sealer that are there."""
        return {root.number for root in read_roots(self.path) if root.sealer == sealer} if self.path.exists() else set()


def roots_path(settings: Settings) -> Path:
    named = settings.audit.roots.file
    return settings.path(named) if named else settings.data_dir / "roots.jsonl"


def read_roots(path: Path) -> Iterator[RootSealed]:
    """Whatever in the file is a root; torn lines are none. Raises ConfigFault where it cannot be read."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    event = open_event(line)
                except msgspec.DecodeError:
                    continue
                if isinstance(event, RootSealed):
                    yield event
    except OSError as error:
        raise ConfigFault(f"{path}: the file of roots cannot be read ({error.strerror})") from error
