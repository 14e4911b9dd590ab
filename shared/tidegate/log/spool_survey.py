"""What is in a spool's directory, read without owning or changing it: for people, and before a dead edge's is shipped.

Of a spool in use it is a moment's view. Counterpart: `spool.py` owns the directory.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tidegate.errors import LogUnavailable
from tidegate.log.damage import Damage, head_of
from tidegate.log.open_calls import OpenCalls, kept_calls
from tidegate.log.port import Record
from tidegate.log.recovery import ASIDE, recover
from tidegate.log.spool_state import Identity, Mark, kept_damages

DEPTH_MAX: Final = 4  # directories below the one given
SPOOLS_MAX: Final = 1_000


class Part(msgspec.Struct, frozen=True):
    """One segment."""

    file: str
    first: int
    records: int
    bytes: int


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """`damages` are losses that no event tells of yet; `open_calls` were permitted and have no end here."""

    directory: str
    id: str
    epoch: int
    edge: str  # who wrote the latest record; "" where there is none
    owner: int  # the process that uses it; 0: nobody
    shipped: int
    records: int  # not shipped yet
    bytes: int
    oldest_us: int  # when the segment of the oldest of them was begun; 0 without any
    open_calls: int
    segments: tuple[Part, ...]
    damages: tuple[Damage, ...]
    reports: tuple[str, ...]
    set_aside: tuple[str, ...]


def survey(directory: Path) -> Survey:
    """Raises LogUnavailable where there is no spool, or it cannot be read."""
    if not (directory / "spool.json").is_file():
        raise LogUnavailable(
            f"{directory} holds no spool (no spool.json); an edge keeps it in {{data}}/spool", code="log-missing"
        )
    try:
        return _survey(directory)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LogUnavailable(f"the spool {directory} cannot be read ({error})") from error


def _survey(directory: Path) -> Survey:
    identity = msgspec.json.decode((directory / "spool.json").read_bytes(), type=Identity)
    mark = Mark(directory / "shipped", is_kept=False)
    calls, report = kept_calls(directory / "open-calls")
    latest: list[Record] = []

    def seen(index: int, record: Record) -> None:
        calls.note(record)
        latest[:] = [record]

    found = recover(directory, mark.shipped if mark.is_readable else None, mark.begun, seen)
    known = kept_damages(directory / "unreported")
    places = {(one.file, one.aside) for one in known}
    left = [segment for segment in found.segments if segment.end > found.shipped]
    return Survey(
        directory=str(directory),
        id=identity.id,
        epoch=identity.epoch,
        edge=edge_of(latest[0] if latest else None, calls),
        owner=_owner(directory),
        shipped=found.shipped,
        records=sum(segment.end - max(segment.first, found.shipped) for segment in left),
        bytes=sum(segment.bytes for segment in left),
        oldest_us=min((segment.created_us for segment in left), default=0),
        open_calls=len(calls.records()),
        segments=tuple(Part(one.path.name, one.first, one.count, one.bytes) for one in found.segments),
        damages=(*known, *(one for one in found.damages if (one.file, one.aside) not in places)),
        reports=tuple(filter(None, (report, *found.reports))),
        set_aside=tuple(sorted(path.name for path in directory.glob(f"*{ASIDE}"))),
    )


def edge_of(latest: Record | None, calls: OpenCalls) -> str:
    """The edge that wrote here, from a writer's name: `{edge}.{spool id}.{epoch}`."""
    for record in (latest, *calls.records()[-1:]):
        head = head_of(record)
        if head is not None and head.writer.count(".") >= 2:
            return head.writer.rsplit(".", 2)[0]
    return ""


def spools_below(root: Path) -> Iterator[Path]:
    """Directories that hold a spool: `root` itself and those below it, some levels deep."""
    found = 0
    for depth in range(DEPTH_MAX + 1):
        for path in sorted(root.glob("/".join(["*"] * depth + ["spool.json"]))):
            if found < SPOOLS_MAX:
                yield path.parent
            found += 1


def _owner(directory: Path) -> int:
    try:
        fd = os.open(directory / "spool.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        told = os.pread(fd, 20, 0).decode(errors="replace").strip()
        return int(told) if told.isdecimal() else -1
    finally:
        os.close(fd)
    return 0
