"""The log in one SQLite file, for one process (`up`): one partition per topic, followers woken on append.

Appends go through a group commit, so one sync serves all concurrent callers. Read-only openers (`open_readonly`)
follow the file while its owner writes. Counterparts: `sqlite_file.py` (the file), `commit.py`, `kafka.py` (the same
port on a cluster).
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tidegate.errors import LogUnavailable
from tidegate.log.commit import GroupCommit
from tidegate.log.port import STATE_TOPICS, TOPICS, Assigned, Delivered, Partition, Record, Revoked, Subscription
from tidegate.log.retention import Kept, Retention
from tidegate.log.sqlite_file import Ends, SqliteAppender, connect, count, ends_of, read, settled

__all__ = ["SqliteAppender", "SqliteLog", "open_readonly"]

_KNOWN = frozenset((*TOPICS, *STATE_TOPICS))
_READONLY_POLL_S = 0.2
_T = TypeVar("_T")


class SqliteLog:
    """EventLog on a file that this process owns. `submit` is the hot path's append: a future per record."""

    def __init__(self, path: str | Path, *, records_max: int = 20_000, kept: Kept | None = None) -> None:
        self.path = Path(path)
        self._groups: dict[str, list[SqliteSubscription]] = {}
        self._subscriptions: list[SqliteSubscription] = []
        self._rebalancing = asyncio.Lock()
        self._appender = SqliteAppender(self.path, self._committed)
        self._fault_listeners: list[Callable[[LogUnavailable], None]] = []
        self._commit = GroupCommit(self._appender, records_max=records_max, name="log-sqlite", on_fault=self._failed)
        self._readers = _Readers(self.path, readonly=False)
        self.retention = Retention(self._appender, kept, self._followed_by) if kept else None
        self._trimming: asyncio.Task[None] | None = None

    def when_failed(self, listener: Callable[[LogUnavailable], None]) -> None:
        """Called after records that were handed over could not be stored: a writer begins a new chain then."""
        self._fault_listeners.append(listener)

    def _failed(self, fault: LogUnavailable) -> None:
        for listener in self._fault_listeners:
            listener(fault)

    async def prepare(self) -> None:
        """Compact the state topics; the tables were made when the file was opened."""
        await asyncio.to_thread(self._appender.compact)
        if self.retention is not None and self._trimming is None:
            self._trimming = asyncio.create_task(self.retention.run(), name="trim the log")

    def submit(self, record: Record) -> "asyncio.Future[None]":
        """See GroupCommit.submit: the future ends when the record is on the disk."""
        if record.topic not in _KNOWN:
            raise ValueError(f"no topic '{record.topic}'")
        return self._commit.submit(record)

    async def append(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.topic not in _KNOWN:
                raise ValueError(f"no topic '{record.topic}'")
        await self._commit.append(records)

    @property
    def backlog(self) -> int:
        """Records handed over and not yet durable."""
        return self._commit.backlog

    async def follow(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        on_assigned: Assigned | None = None,
        on_revoked: Revoked | None = None,
    ) -> Subscription:
        subscription = SqliteSubscription(self, self._readers, topics, group, on_assigned, on_revoked)
        async with self._rebalancing:
            self._subscriptions.append(subscription)
            if group is None:
                await subscription.take(dict.fromkeys(topics, 0))
            else:
                self._groups.setdefault(group, []).append(subscription)
                await self._share_out(group)
        return subscription

    async def close(self) -> None:
        """Make what is pending durable, end the subscriptions, give up the file."""
        if self._trimming is not None:
            self._trimming.cancel()
            await asyncio.gather(self._trimming, return_exceptions=True)
        for subscription in list(self._subscriptions):
            await subscription.close()
        await self._commit.close()
        self._readers.close()

    async def settle(self, group: str, offsets: Mapping[str, int]) -> None:
        await self._readers.run(lambda db: self._appender.settle(group, offsets))

    async def leave(self, subscription: "SqliteSubscription") -> None:
        async with self._rebalancing:
            if subscription not in self._subscriptions:
                return
            self._subscriptions.remove(subscription)
            group = subscription.group
            if group is not None:
                await subscription.give_up(frozenset(subscription.positions))
                self._groups[group].remove(subscription)
                await self._share_out(group)

    async def _share_out(self, group: str) -> None:
        """Each topic is one partition: topic i belongs to member i modulo members. Takes away before it gives."""
        members = self._groups[group]
        wanted: list[set[str]] = [set() for _ in members]
        for index, topic in enumerate(sorted({topic for member in members for topic in member.topics})):
            interested = [number for number, member in enumerate(members) if topic in member.topics]
            wanted[interested[index % len(interested)]].add(topic)
        for member, topics in zip(members, wanted, strict=True):
            await member.give_up(frozenset(member.positions) - topics)
        for member, topics in zip(members, wanted, strict=True):
            if new := topics - member.positions.keys():
                from_offsets = await self._readers.run(lambda db: settled(db, group))
                await member.take({topic: from_offsets.get(topic, 0) for topic in sorted(new)})

    def _followed_by(self, topic: str) -> list[str]:
        return [name for name, members in self._groups.items() if any(topic in member.topics for member in members)]

    def _committed(self, ends: Ends) -> None:
        for subscription in self._subscriptions:
            subscription.grown(ends)


class SqliteSubscription:
    """Subscription on the file. Positions advance on delivery; settled offsets live in the file."""

    def __init__(
        self,
        log: "SqliteLog | None",
        readers: "_Readers",
        topics: Sequence[str],
        group: str | None,
        on_assigned: Assigned | None = None,
        on_revoked: Revoked | None = None,
    ) -> None:
        if unknown := [topic for topic in topics if topic not in _KNOWN]:
            raise ValueError(f"no topic '{unknown[0]}'")
        self.topics = tuple(dict.fromkeys(topics))
        self.group = group
        self.positions: dict[str, int] = {}
        self._targets: dict[str, int] = {}  # the ends when the topics were assigned
        self._log = log
        self._readers = readers
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._loop = asyncio.get_running_loop()
        self._grown = asyncio.Event()
        self._generation = 0
        self._closed = False
        self._turn = 0

    async def poll(self, records_max: int, timeout_s: float) -> list[Delivered]:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._closed:
                raise LogUnavailable("the subscription is closed", code="log-closed")
            self._grown.clear()
            if found := await self._read(records_max):
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            if self._log is None:
                left = min(left, _READONLY_POLL_S)
            try:
                async with asyncio.timeout(left):
                    await self._grown.wait()
            except TimeoutError:
                continue

    async def settle(self, offsets: Mapping[Partition, int]) -> None:
        if self._log is None or self.group is None:
            raise LogUnavailable("offsets are settled by a group of the log's owner", code="log-readonly")
        if lost := [partition.topic for partition in offsets if partition.topic not in self.positions]:
            raise LogUnavailable(f"{', '.join(lost)} now belongs to another member of {self.group}", code="claim-lost")
        if offsets:
            await self._log.settle(self.group, {partition.topic: offset for partition, offset in offsets.items()})

    @property
    def caught_up(self) -> bool:
        return all(self.positions[topic] >= end for topic, end in self._targets.items())

    async def lag(self) -> int:
        positions = dict(self.positions)
        return await self._readers.run(lambda db: sum(count(db, topic, at) for topic, at in positions.items()))

    async def close(self) -> None:
        self._closed = True
        self._grown.set()
        if self._log is not None:
            await self._log.leave(self)

    def grown(self, ends: Ends) -> None:
        """Called from the appending thread."""
        if not self._grown.is_set() and not ends.keys().isdisjoint(self.topics):
            with contextlib.suppress(RuntimeError):  # the follower's loop has ended: nobody to wake
                self._loop.call_soon_threadsafe(self._grown.set)

    async def take(self, positions: dict[str, int]) -> None:
        """Begin to deliver these topics, after `on_assigned`."""
        ends = await self._readers.run(ends_of)
        if self._on_assigned is not None:
            await self._on_assigned(frozenset(Partition(topic, 0) for topic in positions))
        self._generation += 1
        self._targets.update({topic: ends.get(topic, 0) for topic in positions})
        self.positions.update(positions)
        self._grown.set()

    async def give_up(self, topics: frozenset[str]) -> None:
        """Stop delivering these topics, then `on_revoked`, in which they may still be settled."""
        if not topics:
            return
        self._generation += 1
        if self._on_revoked is not None:
            await self._on_revoked(frozenset(Partition(topic, 0) for topic in topics))
        self._generation += 1
        for topic in topics:
            self.positions.pop(topic, None)
            self._targets.pop(topic, None)

    async def _read(self, records_max: int) -> list[Delivered]:
        positions, generation = dict(self.positions), self._generation
        found = await self._readers.run(lambda db: _read_some(db, positions, self._turn, records_max))
        if generation != self._generation:  # shares changed meanwhile: what was read may be another member's now
            self._grown.set()
            return []
        self._turn += 1
        for record in found:
            self.positions[record.topic] = record.offset + 1
        return found


def _read_some(db: sqlite3.Connection, positions: dict[str, int], turn: int, records_max: int) -> list[Delivered]:
    """Up to `records_max` over the topics, beginning with another topic each turn, so that none starves."""
    names = list(positions)
    found: list[Delivered] = []
    for index in range(len(names)):
        topic = names[(turn + index) % len(names)]
        if len(found) < records_max:
            found += read(db, topic, positions[topic], records_max - len(found))
    return found


class _Readers:
    """Reads off the event loop: one thread, one connection."""

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self._db = connect(path, readonly=readonly)
        self._db.execute("PRAGMA query_only=ON")
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log-read")

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, self._db)
        except sqlite3.Error as error:
            raise LogUnavailable(f"the log's file could not be read ({error})") from error
        except RuntimeError as error:  # the executor was shut down
            raise LogUnavailable("the log is closed", code="log-closed") from error

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self._db.close()


class _ReadonlyLog:
    """EventLog for onlookers: follows without a group while the owner writes; appends nothing."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise LogUnavailable(
                f"{path}: there is no log here; start Tidegate once, or check `data`", code="log-missing"
            )
        self._readers = _Readers(path, readonly=True)

    async def prepare(self) -> None: ...

    async def append(self, records: Sequence[Record]) -> None:
        raise LogUnavailable("this log is open for reading only", code="log-readonly")

    async def follow(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        on_assigned: Assigned | None = None,
        on_revoked: Revoked | None = None,
    ) -> Subscription:
        if group is not None:
            raise LogUnavailable("this log is open for reading only: follow it without a group", code="log-readonly")
        subscription = SqliteSubscription(None, self._readers, topics, None, on_assigned, on_revoked)
        await subscription.take(dict.fromkeys(subscription.topics, 0))
        return subscription

    async def close(self) -> None:
        self._readers.close()


def open_readonly(path: str | Path) -> _ReadonlyLog:
    """An onlooker's EventLog on a file that another process may be writing. Raises LogUnavailable (`log-missing`)."""
    return _ReadonlyLog(Path(path))
