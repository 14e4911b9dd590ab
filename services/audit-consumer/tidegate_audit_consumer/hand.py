"""The batch in hand: records between delivery and settling. What is taken away by a rebalance drops out at once.

So nothing of another member's is settled, and what is delivered anew after a rebalance is never mistaken for it.
"""

from collections.abc import Sequence

from tidegate.log.port import Delivered, Partition
from tidegate_audit_consumer.progress import Progress


class Hand:
    """`assigned` and `revoked` are given to the subscription."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.records: list[Delivered] = []
        self.bytes = 0  # of their values

    def take(self, records: Sequence[Delivered]) -> None:
        """Call without awaiting between their delivery and this."""
        self.records.extend(records)
        self.bytes += size_of(records)

    def drop(self) -> None:
        """Done with all of them."""
        self.records = []
        self.bytes = 0

    async def assigned(self, partitions: frozenset[Partition]) -> None:
        self._progress.doubt(partitions)

    async def revoked(self, partitions: frozenset[Partition]) -> None:
        self._progress.doubt(partitions)
        self.records = [one for one in self.records if Partition(one.topic, one.partition) not in partitions]
        self.bytes = size_of(self.records)


def size_of(records: Sequence[Delivered]) -> int:
    """Bytes of the values."""
    return sum([len(record.value or b"") for record in records])
