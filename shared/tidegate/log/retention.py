"""How long the local log keeps what may expire: by age and by the file's size, oldest first, a few records at a time.

Never removed: the histories from which state is folded, the newest record of a topic (offsets are counted from it), and
what a reader still needs: what is not in ClickHouse yet, and what no root covers yet. Counterpart: `sqlite_file.py`; on
Kafka the brokers do it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from tidegate.errors import LogUnavailable
from tidegate.ids import now_us
from tidegate.log.sqlite_file import SqliteAppender
from tidegate.settings import Settings

EXPIRING: Final = ("calls", "sessions", "detections", "ocsf", "dead-letters")
INGESTING: Final = "audit-consumer"  # the group whose settled offsets say what is in ClickHouse
SEALING: Final = "audit-roots"  # the group whose settled offsets say what a root covers
_AUDITED: Final = frozenset({"calls", "sessions", "detections"})
_DAY_US: Final = 86_400_000_000
BATCH: Final = 200  # records of one transaction: appends wait for no longer
PAUSE_S: Final = 0.02
EVERY_S: Final = 60.0

_log = logging.getLogger(__name__)

Active = Callable[[str], Iterable[str]]
"""Groups that have members who read a topic now: what they have not settled stays."""


class Kept(NamedTuple):
    """What is kept, and who must have read a record before it may go."""

    age_us: int  # 0: of any age
    bytes_max: int  # 0: of any size
    needed_by: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Kept":
        sealing = (SEALING,) if settings.audit.roots.every_s > 0 else ()
        given = settings.retention
        return cls(int(given.days * _DAY_US), given.bytes_max, (INGESTING, *sealing))


class Retention:
    """The trimming of one file. Its work is done in threads, beside appends."""

    def __init__(self, appender: SqliteAppender, kept: Kept, active: Active) -> None:
        self._appender = appender
        self._kept = kept
        self._active = active
        self._is_told = False

    async def run(self) -> None:
        """Now and then, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.trim(now_us())
            except LogUnavailable as fault:
                _log.warning("the log is not trimmed: %s", fault.sentence)

    async def trim(self, at_us: int) -> Counter[str]:
        """One pass; how many records it removed, by topic. Raises LogUnavailable."""
        removed: Counter[str] = Counter()
        if self._kept.age_us:
            for topic in EXPIRING:
                while number := await self._remove(topic, at_us - self._kept.age_us):
                    removed[topic] += number
        if self._kept.bytes_max:
            await self._shrink(removed)
        return removed

    async def _shrink(self, removed: Counter[str]) -> None:
        """The oldest records first, whichever topic they are of."""
        left = set(EXPIRING)
        while left and await asyncio.to_thread(self._appender.used_bytes) > self._kept.bytes_max:
            ages = {topic: await asyncio.to_thread(self._appender.oldest_us, topic) for topic in left}
            topic = min(left, key=lambda one: ages[one])
            number = await self._remove(topic, at_us=2**62)
            removed[topic] += number
            if not number:
                left.discard(topic)
        if not left and not self._is_told:
            self._is_told = True
            _log.warning(
                "the log is larger than $.retention.bytes_max, and what it holds is kept for ever or not in ClickHouse "
                "yet; give it more room, or look why the audit consumer does not go on"
            )

    async def _remove(self, topic: str, at_us: int) -> int:
        """A few records that are older than `at_us` and that nobody needs."""
        needed_by = {*self._active(topic), *(self._kept.needed_by if topic in _AUDITED else ())}
        number = await asyncio.to_thread(self._appender.trim, topic, at_us, needed_by, BATCH)
        await asyncio.sleep(PAUSE_S if number else 0)
        return number
