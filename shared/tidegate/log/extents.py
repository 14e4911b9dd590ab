"""From where to where each partition of the log goes at this moment: what a rebuild can read, and what has expired.

A look from outside, beside whoever owns or follows the log. Counterparts: `sqlite_file.py`, `kafka_reader.py`.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tidegate.errors import LogUnavailable
from tidegate.log.port import Partition
from tidegate.log.sqlite_file import connect, ends_of, table_of
from tidegate.settings import Settings

TIMEOUT_S = 15.0
PROBE_MS = 500
PROBE_RECORDS = 10


class Extent(NamedTuple):
    """The first offset that is still there, and the next that will be given."""

    first: int
    next: int


class Extents(Protocol):
    """All methods raise LogUnavailable."""

    async def now(self, topics: Sequence[str]) -> dict[Partition, Extent]:
        """Of every partition of these topics."""
        ...

    async def is_bare(self, at: Partition, first: int, end: int) -> bool:
        """Whether no record lies there: Kafka counts marks of transactions, which nobody is ever given."""
        ...


@contextlib.asynccontextmanager
async def open_extents(settings: Settings) -> AsyncIterator[Extents]:
    """Of the log that the settings name."""
    if settings.is_local:
        yield _SqliteExtents(settings.data_dir / "log.db")
        return
    extents = _KafkaExtents(settings)
    try:
        yield extents
    finally:
        await extents.close()


class _SqliteExtents:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def now(self, topics: Sequence[str]) -> dict[Partition, Extent]:
        return await asyncio.to_thread(self._read, topics)

    async def is_bare(self, at: Partition, first: int, end: int) -> bool:
        return first >= end

    def _read(self, topics: Sequence[str]) -> dict[Partition, Extent]:
        if not self._path.is_file():
            raise LogUnavailable(f"{self._path}: there is no log here; check `data`", code="log-missing")
        db = connect(self._path, readonly=True)
        try:
            ends, found = ends_of(db), {}
            for topic in topics:
                (first,) = db.execute(f'SELECT min("offset") FROM {table_of(topic)}').fetchone()  # noqa: S608
                end = ends.get(topic, 0)
                found[Partition(topic, 0)] = Extent(end if first is None else first, end)
            return found
        except sqlite3.Error as error:
            raise LogUnavailable(f"{self._path}: could not be read ({error})") from error
        finally:
            db.close()


class _KafkaExtents:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = settings.kafka.prefix
        self._consumer: Any = None

    async def now(self, topics: Sequence[str]) -> dict[Partition, Extent]:
        from aiokafka import TopicPartition

        async with self._asking() as consumer:
            names = [self._prefix + topic for topic in topics]
            await consumer._client.set_topics(names)  # it knows the partitions of what it was told of
            places = [
                TopicPartition(name, number) for name in names for number in consumer.partitions_for_topic(name) or ()
            ]
            if missing := [name for name in names if name not in {place.topic for place in places}]:
                raise LogUnavailable(f"the topic {missing[0]} does not exist; is $.kafka.prefix right?")
            firsts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
            return {self._ours(place): Extent(firsts[place], ends[place]) for place in places}

    async def is_bare(self, at: Partition, first: int, end: int) -> bool:
        from aiokafka import TopicPartition

        if first >= end:
            return True
        async with self._asking() as consumer:
            place = TopicPartition(self._prefix + at.topic, at.partition)
            consumer.assign([place])
            consumer.seek(place, first)
            while True:
                found = await consumer.getmany(place, timeout_ms=PROBE_MS, max_records=PROBE_RECORDS)
                if any(record.offset < end for record in found.get(place, ())):
                    return False
                if await consumer.position(place) >= end:
                    return True

    async def close(self) -> None:
        if self._consumer is not None:
            from tidegate.log.kafka_stopping import stopped

            await stopped(self._consumer, TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[Any]:
        from aiokafka.errors import KafkaError

        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield await self._opened()
        except (KafkaError, TimeoutError, OSError) as error:
            raise LogUnavailable(
                f"Kafka at {self._settings.kafka_bootstrap} did not say how far its topics go ({error}); is it up?"
            ) from error

    async def _opened(self) -> Any:
        from aiokafka import AIOKafkaConsumer

        from tidegate.log.kafka_connection import for_aiokafka

        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                group_id=None,
                enable_auto_commit=False,
                isolation_level="read_committed",
                **for_aiokafka(self._settings),
            )
            await consumer.start()
            self._consumer = consumer
        return self._consumer

    def _ours(self, place: Any) -> Partition:
        return Partition(place.topic.removeprefix(self._prefix), place.partition)
