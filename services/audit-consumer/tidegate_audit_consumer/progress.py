"""Which records are in ClickHouse already. Progress is not kept anywhere but in the rows themselves: topic, partition,
offset.

A partition is in doubt after it was assigned and after an insert of unknown outcome, up to the highest offset that is
stored. Past that its records are new, and nothing is asked. Another consumer may still insert late what it had in
hand; the tables' keys take care of that.
"""

from collections.abc import Iterable, Sequence

from tidegate.analytics.port import Analytics
from tidegate.log.port import Delivered, Partition

OFFSET_MAX = 2**63 - 1


class Progress:
    """The doubts of one consumer."""

    def __init__(self, analytics: Analytics) -> None:
        self._analytics = analytics
        self._horizons: dict[Partition, int] = {}  # highest stored offset when last asked; -1: none

    def doubt(self, partitions: Iterable[Partition]) -> None:
        """What is stored of these is no longer known."""
        for partition in partitions:
            self._horizons.pop(partition, None)

    async def unstored(self, records: Sequence[Delivered]) -> list[Delivered]:
        """Those that are not in ClickHouse, in order. Raises AnalyticsUnavailable or AnalyticsRefused."""
        lowest = lowest_of(records)
        for at in lowest.keys() - self._horizons.keys():
            self._horizons[at] = await self._highest(at, lowest[at])
        horizons = {at: self._horizons.get(at, OFFSET_MAX) for at in lowest}  # in doubt again while it was asked
        if all(horizons[at] < offset for at, offset in lowest.items()):
            return list(records)
        doubtful = [one for one in records if one.offset <= horizons[Partition(one.topic, one.partition)]]
        stored = await self._stored(doubtful)
        return [one for one in records if (one.topic, one.partition, one.offset) not in stored]

    async def _highest(self, at: Partition, lowest: int) -> int:
        answer = await self._analytics.query(
            "SELECT max(toInt64(offset)), count() FROM tidegate.events_raw "
            "WHERE topic = {topic:String} AND partition = {partition:UInt32} AND offset >= {lowest:UInt64}",
            {"topic": at.topic, "partition": at.partition, "lowest": lowest},
        )
        highest, rows = answer.rows[0]
        return int(highest) if rows else -1

    async def _stored(self, doubtful: Sequence[Delivered]) -> set[tuple[str, int, int]]:
        stored: set[tuple[str, int, int]] = set()
        offsets: dict[Partition, list[int]] = {}
        for record in doubtful:
            offsets.setdefault(Partition(record.topic, record.partition), []).append(record.offset)
        for at, some in offsets.items():
            answer = await self._analytics.query(
                "SELECT DISTINCT offset FROM tidegate.events_raw WHERE topic = {topic:String} "
                "AND partition = {partition:UInt32} AND offset BETWEEN {first:UInt64} AND {last:UInt64}",
                {"topic": at.topic, "partition": at.partition, "first": min(some), "last": max(some)},
            )
            stored.update((at.topic, at.partition, int(offset)) for (offset,) in answer.rows)
        return stored


def lowest_of(records: Sequence[Delivered]) -> dict[Partition, int]:
    """The least offset of each partition."""
    lowest: dict[tuple[str, int], int] = {}
    for topic, partition, offset, *_ in records:
        at = (topic, partition)
        if offset < lowest.get(at, offset + 1):
            lowest[at] = offset
    return {Partition(*at): offset for at, offset in lowest.items()}
