"""The log, as every service sees it. Adapters: `sqlite.py` (local mode, one process) and `kafka.py`.

Appending is durable on return. Reading is by subscription: in a group (offsets are settled for the group, partitions
are shared out) or alone from the start (to fold a state). Topic names here are without the configured prefix.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

TOPICS = ("calls", "sessions", "detections", "dead-letters", "policy", "control", "catalog", "integrity", "ocsf")
"""Histories; `ocsf` repeats calls for security tools. `policy`, `control`, `catalog` and `integrity` are never
expired.
"""

STATE_TOPICS = (
    "policy-state",
    "control-state",
    "catalog-state",
    "detector-state",
    "integrity-state",
    "subject-keys",
)
"""Compacted, keyed by entity: the whole current value; a None value deletes."""

ERASING_TOPIC = "subject-keys"
"""What a None value deletes here is gone from the disk, too, as soon as the log can."""


class Record(NamedTuple):
    """What is appended. `headers` are CloudEvents attributes where the value is an event."""

    topic: str
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Delivered(NamedTuple):
    """What is read."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    time_us: int  # when the log took it


class Partition(NamedTuple):
    topic: str
    partition: int


class Subscription(Protocol):
    """An open read of some topics. Offsets are settled explicitly, last of all."""

    async def poll(self, records_max: int, timeout_s: float) -> list[Delivered]:
        """Up to `records_max` records; [] after `timeout_s` without any, or sooner when `caught_up` has become true.

        Order holds within a partition.
        """
        ...

    async def settle(self, offsets: Mapping[Partition, int]) -> None:
        """The group resumes from these (the next offset to read). Raises LogUnavailable, `claim-lost` if taken away."""
        ...

    @property
    def caught_up(self) -> bool:
        """True once everything that was in the log when the subscription opened has been delivered."""
        ...

    async def lag(self) -> int:
        """Records not yet delivered, over all assigned partitions."""
        ...

    async def close(self) -> None: ...


Assigned = Callable[[frozenset[Partition]], Awaitable[None]]
"""Called before the first record of newly assigned partitions is delivered."""

Revoked = Callable[[frozenset[Partition]], Awaitable[None]]
"""Called before partitions are taken away, on `close` as well: finish (and settle) or drop what is in hand."""


class EventLog(Protocol):
    """The log. `prepare` before anything else."""

    async def prepare(self) -> None:
        """Create or check the topics. Raises LogUnavailable with what to do when the log cannot be reached."""
        ...

    async def append(self, records: Sequence[Record]) -> None:
        """All or none, in order, durable on return. Raises LogUnavailable; then whether they were stored is unknown."""
        ...

    async def follow(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        on_assigned: Assigned | None = None,
        on_revoked: Revoked | None = None,
    ) -> Subscription:
        """With a group: from its settled offsets (else the start), sharing partitions. Without: all partitions, from
        the start.
        """
        ...

    async def close(self) -> None: ...


class BlockingAppender(Protocol):
    """The durable write under a `GroupCommit` (see `commit.py`); called from its thread only."""

    def append(self, records: Sequence[Record]) -> None:
        """Durable on return, in order. Raises LogUnavailable; the caller may try the same records again."""
        ...

    def close(self) -> None: ...
