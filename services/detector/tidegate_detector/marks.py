"""Where judging stands in each partition, and from where a restart must read again. Pure but for `read_marks`.

The group's settled offsets lag by the rules' memory: whoever takes a partition over reads that stretch again and so
has the state that the rules need. The mark tells how far the calls had been judged: up to there they are only
remembered, not judged twice. A mark goes into the same append as the findings, so either both are in the log or
neither is.
"""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from tidegate.log.port import Delivered, EventLog, Partition, Record

TOPIC = "detector-state"
STEP_US = 10_000_000  # how finely the places to resume from are kept
_POLL_S = 0.2
_BATCH_MAX = 1_000


class Mark(msgspec.Struct, frozen=True):
    """Everything before `offset` has been judged. `time_us` is when the log took the newest of it."""

    offset: int
    time_us: int
    v: int = 1


@dataclass(slots=True)
class Place:
    """One partition's progress."""

    mark: Mark = field(default_factory=lambda: Mark(0, 0))  # as stored
    judged: Mark = field(default_factory=lambda: Mark(0, 0))
    steps: deque[tuple[int, int]] = field(default_factory=deque)  # (offset, time the log took it), some time apart

    def is_judged(self, record: Delivered) -> bool:
        """By an earlier run. A topic made anew begins at 0 again, so the time counts as well."""
        return record.offset < self.mark.offset and record.time_us <= self.mark.time_us

    def advance(self, record: Delivered) -> None:
        if not self.steps or record.time_us - self.steps[-1][1] >= STEP_US:
            self.steps.append((record.offset, record.time_us))
        if not self.is_judged(record):
            self.judged = Mark(record.offset + 1, max(record.time_us, self.judged.time_us))

    def resume_at(self, memory_us: int) -> int | None:
        """The offset to settle: the last step older than the memory, else where this run began. None at first."""
        newest_us = max(self.judged.time_us, self.steps[-1][1] if self.steps else 0)
        while len(self.steps) > 1 and self.steps[1][1] <= newest_us - memory_us:
            self.steps.popleft()
        return self.steps[0][0] if self.steps else None


def seal_mark(partition: Partition, mark: Mark) -> Record:
    return Record(TOPIC, f"{partition.topic}|{partition.partition}".encode(), msgspec.json.encode(mark))


async def read_marks(log: EventLog) -> dict[Partition, Mark]:
    """The marks of all partitions as they stand now. Raises LogUnavailable."""
    marks: dict[Partition, Mark] = {}
    subscription = await log.follow((TOPIC,))
    try:
        while True:
            for record in await subscription.poll(_BATCH_MAX, _POLL_S):
                topic, _, number = record.key.decode("utf-8", "replace").rpartition("|")
                if number.isdecimal() and record.value is not None:
                    with suppress(msgspec.DecodeError):  # a newer version's: the calls are judged once more, alike
                        marks[Partition(topic, int(number))] = msgspec.json.decode(record.value, type=Mark)
            if subscription.caught_up:
                return marks
    finally:
        await subscription.close()
