"""What a spool could not read, in terms that security can use: which file, how much, and where the chain has the gap.

Pure. Counterparts: `recovery.py` finds it at a start, `spool.py` while shipping; an edge records it as `SpoolDamaged`.
"""

from typing import Literal

import msgspec

from tidegate.chain import Head, open_head
from tidegate.log.port import Record

Kind = Literal["damaged", "torn-end", "missing", "unreadable"]


class Gap(msgspec.Struct, frozen=True):
    """Numbers that a writer's chain will not have. `last` 0: all that followed `first`, as far as there was more."""

    writer: str
    first: int
    last: int = 0


class Damage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stretch of bytes, or of records, that the spool lost."""

    kind: Kind
    file: str
    why: str
    aside: str = ""  # the file that keeps the bytes; "": there are none
    bytes: int = 0
    records: int = 0  # 0: that cannot be told
    gaps: tuple[Gap, ...] = ()
    found_us: int = 0

    @property
    def sentence(self) -> str:
        lost = f"{self.records} record{'s' if self.records > 1 else ''}" if self.records else "an unknown number"
        kept = f"; {self.bytes} bytes are kept as {self.aside}" if self.aside else ""
        torn = " (a write torn by a crash was never acknowledged)" if self.kind == "torn-end" else ""
        return f"{self.file}: {self.why}: {lost} not shipped{torn}{kept}{''.join(map(_shown, self.gaps))}"


def _shown(gap: Gap) -> str:
    if gap.last == gap.first:
        return f"; number {gap.first} of {gap.writer}"
    return f"; numbers {gap.first} to {gap.last or 'its end'} of {gap.writer}"


def head_of(record: Record | None) -> Head | None:
    """The chain position of a stored event; None of anything else."""
    if record is None or record.value is None:
        return None
    try:
        head = open_head(record.value)
    except msgspec.DecodeError:
        return None
    return head if head.writer and head.seq > 0 else None


def lost_between(before: Record | None, after: Record | None) -> int | None:
    """How many records stood between two, where one chain says so."""
    first, last = head_of(before), head_of(after)
    if first is None or last is None or first.writer != last.writer or last.seq <= first.seq:
        return None
    return last.seq - first.seq - 1


def gaps_between(before: Record | None, after: Record | None, lost: int) -> tuple[Gap, ...]:
    """Whose chains miss what, told by the good records on both sides. `lost` 0: that cannot be told."""
    first, last = head_of(before), head_of(after)
    if first is not None and last is not None and first.writer == last.writer:
        return (Gap(first.writer, first.seq + 1, last.seq - 1),) if last.seq > first.seq + 1 else ()
    gaps = []
    begins = last.seq - 1 if last is not None else 0  # numbers of the later chain that may be in the gap
    if first is not None and (lost == 0 or lost > begins):
        gaps.append(Gap(first.writer, first.seq + 1, first.seq + lost - begins if lost else 0))
    if last is not None and begins:
        least = last.seq - lost if first is None and 0 < lost < begins else 1
        gaps.append(Gap(last.writer, least, begins))
    return tuple(gaps)
