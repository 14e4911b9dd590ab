"""Reads what earlier epochs left in a spool's directory, and takes apart what is good and what is not.

First everything is read and nothing changed; then, once the losses are written down (`unreported`), the files are put
right: bad bytes into `*.set-aside`, never shipped and never deleted, the good records around them into segments of
their own. A crash in between finds the same again. Counterparts: `segments.py`, `damage.py`, `spool.py`.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tidegate.ids import now_us
from tidegate.log.damage import Damage, Kind, gaps_between, lost_between
from tidegate.log.frames import BadFrame, decode, resume
from tidegate.log.port import Record
from tidegate.log.segments import HEADER_BYTES, Segment, header_of, named, replace_file, rewrite, sync_directory

ASIDE: Final = ".set-aside"
KNOWN: Final = frozenset({"spool.json", "spool.lock", "shipped", "open-calls", "unreported", "lost+found"})
UNKNOWN_MAX: Final = 20  # foreign files that are named


class Run(NamedTuple):
    """Good frames in a row: bytes `start` to `end`."""

    start: int
    end: int
    records: list[Record]


class Bad(NamedTuple):
    start: int
    end: int
    why: str


class _Place(NamedTuple):
    """A segment's file, in the order in which they are read."""

    first: int
    is_misnamed: bool
    path: Path
    header: Segment | None


class _Open(NamedTuple):
    """A loss whose other side is not known yet."""

    kind: Kind
    file: str
    why: str
    aside: str = ""
    bytes: int = 0


@dataclass
class Recovered:
    """What is left to ship, and what is lost. `shipped` may be lower than it was: what may have been shipped then goes
    again.
    """

    segments: list[Segment] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    repairs: list[Callable[[], None]] = field(default_factory=list)
    shipped: int = 0

    def repair(self) -> None:
        """Put the files right. Raises OSError."""
        for step in self.repairs:
            step()
        self.repairs.clear()


def recover(directory: Path, shipped: int | None, begun: int | None, seen: Callable[[int, Record], None]) -> Recovered:
    """Reads the whole directory. `shipped` is the mark, None where it cannot be read; `begun` the first index of the
    segment that was written last. `seen` is called with every good record, in order. Raises OSError.
    """
    reading = _Reading(directory, shipped, seen)
    places = reading.places()
    for number, place in enumerate(places):
        behind = (one.first for one in places[number + 1 :] if one.first > place.first)  # not a double of it
        reading.take(place, next(behind, None))
    reading.finish(begun)
    return reading.found


def scan(content: bytes, at: int) -> tuple[list[Run], list[Bad]]:
    """Good and bad stretches from `at` on; zeros behind the last are neither."""
    runs: list[Run] = []
    bads: list[Bad] = []
    end = len(content.rstrip(b"\0"))
    while True:
        start, records = at, []
        why = "data follows the end"
        try:
            while (found := decode(content, at)) is not None:
                records.append(found[0])
                at = found[1]
        except (BadFrame, ValueError) as error:  # ValueError: a frame of ours whose topic or headers are none
            why = str(error)
        if records:
            runs.append(Run(start, at, records))
        if at >= end:
            return runs, bads
        beyond = resume(content, at)
        bads.append(Bad(at, end if beyond is None else beyond, why))
        if beyond is None:
            return runs, bads
        at = beyond


class _Reading:
    """One pass over a directory."""

    def __init__(self, directory: Path, shipped: int | None, seen: Callable[[int, Record], None]) -> None:
        self.found = Recovered(shipped=shipped or 0)
        self._directory = directory
        self._seen = seen
        self._end: int | None = shipped  # the index that comes next; None: not known
        self._floor = 0  # the least index that a run behind open losses can have
        self._is_counted = True  # how much the open losses held is known
        self._before: Record | None = None
        self._open: list[_Open] = []
        self._planned: set[Path] = set()  # files that the repair will write

    def places(self) -> list[_Place]:
        """Every file that is a segment, whatever it is named; the others are reported and left alone."""
        found: list[_Place] = []
        strange: list[str] = []
        for path in sorted(self._directory.iterdir()):
            if path.name in KNOWN or path.suffix in (ASIDE, ".new"):
                continue
            place = self._place(path)
            if place is None:
                strange.append(path.name)
            else:
                found.append(place)
        for name in strange[:UNKNOWN_MAX]:
            self.found.reports.append(f"{name} is no file of a spool: it is left alone")
        if len(strange) > UNKNOWN_MAX:
            self.found.reports.append(f"{len(strange) - UNKNOWN_MAX} more are no files of a spool")
        return sorted(found)

    def _place(self, path: Path) -> _Place | None:
        header = None
        with contextlib.suppress(OSError), path.open("rb") as file:
            header = header_of(path, file.read(HEADER_BYTES))
        if header is not None:
            return _Place(header.first, path != named(self._directory, header.first), path, header)
        if path.suffix == ".segment" and path.stem.isdecimal() and len(path.stem) == 20:
            return _Place(int(path.stem), False, path, None)
        return None

    def take(self, place: _Place, next_first: int | None) -> None:
        path, end = place.path, self._end
        if path in self._planned:
            return  # written by a repair that a crash interrupted: read already, where it came from
        if self.found.segments and end is not None and place.first < end:
            self._set_aside_whole(path, "repeats records of another segment", ".duplicate")
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            aside = self._set_aside_whole(path, f"cannot be read ({error.strerror})", "")
            self._open.append(_Open("unreadable", path.name, f"it cannot be read ({error.strerror})", aside))
            return
        runs, bads = scan(content, HEADER_BYTES)
        if not runs and not bads:
            self._drop_empty(place, content)
            return
        self._take_runs(place, content, runs, bads, next_first)

    def finish(self, begun: int | None) -> None:
        """After the last file."""
        end = max(self._end or 0, self.found.shipped)
        if begun is not None and self._end is not None and begun >= end and not self._open:
            name = named(self._directory, begun).name
            self._open.append(_Open("missing", name, "the segment that was written last is gone"))
        self._settle(0, None)

    def _drop_empty(self, place: _Place, content: bytes) -> None:
        """A crash while it was being made leaves a header without records, or not even that."""
        if place.header is None and len(content) > HEADER_BYTES:
            why = "it holds nothing but zeros"
            aside = self._set_aside_whole(place.path, why, "")
            self._open.append(_Open("damaged", place.path.name, why, aside, len(content)))
            return
        self.found.repairs.append(lambda: place.path.unlink(missing_ok=True))

    def _take_runs(
        self, place: _Place, content: bytes, runs: list[Run], bads: list[Bad], next_first: int | None
    ) -> None:
        header = place.header or Segment(place.path, 0, place.first, now_us())
        pieces: list[tuple[Segment, Run]] = []
        asides = [(bad, self._aside_of(place.path, bad)) for bad in bads]
        self._come_to(header.first, runs[0].records[0] if runs and runs[0].start == HEADER_BYTES else None)
        waiting = list(asides)
        for number, run in enumerate(runs):
            while waiting and waiting[0][0].start < run.start:
                self._open_bad(place.path, *waiting.pop(0), "damaged")
            left = sum(len(one.records) for one in runs[number:])
            index = self._index_of(run, left, next_first, is_last=number == len(runs) - 1 and not waiting)
            self._come_to(index, run.records[0])
            path = named(self._directory, index)
            size = HEADER_BYTES + run.end - run.start
            segment = Segment(path, header.epoch, index, header.created_us, len(run.records), size)
            for offset, record in enumerate(run.records):
                self._seen(index + offset, record)
            self._end, self._before = segment.end, run.records[-1]
            pieces.append((segment, run._replace(records=[])))
        for bad, aside in waiting:
            self._open_bad(place.path, bad, aside, "damaged" if next_first is not None else "torn-end")
        self.found.segments += [segment for segment, _ in pieces]
        if bads or place.is_misnamed or place.header is None:
            self._planned |= {segment.path for segment, _ in pieces} - {place.path}
            self.found.repairs.append(lambda: _put_right(place.path, pieces, asides))
            self._report_harmless(place)

    def _report_harmless(self, place: _Place) -> None:
        if place.header is None:
            self.found.reports.append(f"{place.path.name}: its header was damaged and is made anew")
        if place.is_misnamed:
            right = named(self._directory, place.first).name
            self.found.reports.append(f"{place.path.name} is a segment under another name: it is {right} again")

    def _index_of(self, run: Run, left: int, next_first: int | None, *, is_last: bool) -> int:
        """Where a run stands behind damage: its chain tells, else the segment behind; else what may have been shipped
        is shipped again.
        """
        assert self._end is not None
        if not self._open:
            return self._end
        lost = lost_between(self._before, run.records[0])
        if lost is not None:
            return max(self._end + lost, self._floor)
        if is_last and next_first is not None:
            return max(self._end, next_first - left)
        self._is_counted = False
        self.found.shipped = min(self.found.shipped, self._end)
        return max(self._end + 1, self._floor)

    def _come_to(self, index: int, after: Record | None) -> None:
        """The next record has this index, and what lies before it and was not shipped is lost. `after` is that record;
        None where it is damaged itself.
        """
        if self._end is None or (index < self._end and not self.found.segments):
            self._end = index  # the first file begins with what was shipped
        lost = max(0, index - max(self._end, self.found.shipped))
        if lost and not self._open:
            name = named(self._directory, self._end).name
            self._open.append(_Open("missing", name, f"the records before number {index} of the spool are gone"))
        if self._open and after is None:
            self._floor = index
            return
        self._settle(lost, after)
        self._end = index

    def _settle(self, lost: int, after: Record | None) -> None:
        """What was open has its other side: `after`, or the end of everything."""
        counted, self._is_counted = lost if self._is_counted else 0, True
        gaps = gaps_between(self._before, after, counted) if lost or after is None else ()
        for one in self._open:
            if after is not None and not lost:
                kept = f", kept as {one.aside}" if one.aside else ""
                told = f"{one.file}: {one.why}: {one.bytes} bytes that held nothing to ship{kept}"
                self.found.reports.append(told)
                continue
            damage = Damage(
                kind=one.kind,
                file=one.file,
                why=one.why,
                aside=one.aside,
                bytes=one.bytes,
                records=counted,
                gaps=gaps,
                found_us=now_us(),
            )
            self.found.damages.append(damage)
            self.found.reports.append(damage.sentence)
            after, counted, gaps = None, 0, ()  # of several losses in a row the first one tells of all
        self._open.clear()

    def _open_bad(self, path: Path, bad: Bad, aside: Path, kind: Kind) -> None:
        self._open.append(_Open(kind, path.name, bad.why, aside.name, bad.end - bad.start))

    def _aside_of(self, path: Path, bad: Bad) -> Path:
        return path.with_name(f"{path.stem}-{bad.start}{ASIDE}")

    def _set_aside_whole(self, path: Path, why: str, mark: str) -> str:
        aside = path.with_name(f"{path.name}{mark}{ASIDE}")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}{mark}-{number}{ASIDE}")
        self.found.repairs.append(lambda: _rename(path, aside))
        self.found.reports.append(f"{path.name} {why}: kept as {aside.name}")
        return aside.name


def _rename(path: Path, aside: Path) -> None:
    path.rename(aside)
    sync_directory(path.parent)


def _put_right(path: Path, pieces: Sequence[tuple[Segment, Run]], asides: Sequence[tuple[Bad, Path]]) -> None:
    """The bad bytes into files of their own, then the good ones; what was there goes last."""
    content = path.read_bytes()
    for bad, aside in asides:
        replace_file(aside, content[bad.start : bad.end])
    for segment, run in reversed(pieces):
        rewrite(segment, content[run.start : run.end])
    if path not in {segment.path for segment, _ in pieces}:
        path.unlink()
    sync_directory(path.parent)


def count_asides(directory: Path) -> int:
    """Files of bytes that could not be read. Raises OSError."""
    with os.scandir(directory) as entries:
        return sum(entry.name.endswith(ASIDE) for entry in entries)


def highest_epoch(directory: Path) -> int:
    """That a segment names; 0 without any. Raises OSError where the directory cannot be read."""
    epochs = [0]
    for path in directory.glob("*.segment"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            header = header_of(path, file.read(HEADER_BYTES))
            epochs.append(header.epoch if header else 0)
    return max(epochs)
