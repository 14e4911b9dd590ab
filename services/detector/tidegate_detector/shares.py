"""The partitions that this detector holds, and what each of them has in memory.

A partition that is taken away is marked and settled first, so that its next holder judges on exactly there.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tidegate.log.port import EventLog, Partition
from tidegate_detector.marks import Place, read_marks
from tidegate_detector.state import PartitionState

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Share:
    """One held partition."""

    place: Place = field(default_factory=Place)
    state: PartitionState = field(default_factory=PartitionState)
    marked: bool = False  # whether its mark has been read


Handover = Callable[[dict[Partition, Share]], Awaitable[None]]


class Shares:
    """All held partitions. `turn` is held while records are judged and published: nothing is given up midway."""

    def __init__(self, hand_over: Handover) -> None:
        self.held: dict[Partition, Share] = {}
        self.turn = asyncio.Lock()
        self._hand_over = hand_over

    async def assigned(self, partitions: frozenset[Partition]) -> None:
        self.held.update({partition: Share() for partition in partitions})

    async def revoked(self, partitions: frozenset[Partition]) -> None:
        async with self.turn:
            leaving = {partition: self.held.pop(partition) for partition in partitions if partition in self.held}
            await self._hand_over(leaving)

    def drop(self) -> None:
        """Forget everything without handing over: what was judged may not have been published."""
        self.held.clear()

    async def read_places(self, log: EventLog) -> None:
        """Read the marks of partitions that are new here. Not to be called holding `turn`. Raises LogUnavailable."""
        new = {partition: share for partition, share in self.held.items() if not share.marked}
        if not new:
            return
        marks = await read_marks(log)
        for partition, share in new.items():
            share.marked = True
            if partition in marks:
                share.place.mark = share.place.judged = marks[partition]
