"""The SQLite file of the local log: one table per topic, offsets dense per topic; settled offsets of groups.

`SqliteAppender` is its one writer (counterpart: `sqlite.py`, the port over it). Values and keys are stored as given.
The format has a version (`PRAGMA user_version`); a file of another version is refused, never guessed at.
"""

import contextlib
import re
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import msgspec

from tidegate.errors import LogUnavailable
from tidegate.ids import now_us
from tidegate.log.ownership import Ownership
from tidegate.log.port import ERASING_TOPIC, STATE_TOPICS, TOPICS, Delivered, Record

FORMAT = 1
_BUSY_MS = 1_000  # for how long readers are waited for before the write-ahead log is emptied
_TOPIC = re.compile(r"[a-z][a-z0-9-]{0,63}")
_headers = msgspec.json.Decoder(list[tuple[str, bytes]])

Ends = dict[str, int]
"""Next offset by topic."""


def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """A connection without implicit transactions, usable from any one thread at a time. Raises LogUnavailable."""
    try:
        mode = "ro" if readonly else "rwc"
        db = sqlite3.connect(
            f"file:{_quoted(path)}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=10
        )
        version = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        raise LogUnavailable(f"{path}: cannot be opened as a log ({error}); is `data` right, and readable?") from error
    if version not in ((FORMAT,) if readonly else (0, FORMAT)):
        db.close()
        raise LogUnavailable(
            f"{path}: has log format {version}, this version reads {FORMAT}; use the version that wrote it"
        )
    return db


def _quoted(path: Path) -> str:
    return str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def table_of(topic: str) -> str:
    """The quoted table of a topic. Raises ValueError for what is no topic name."""
    if not _TOPIC.fullmatch(topic):
        raise ValueError(f"'{topic}' is not a topic: a-z, 0-9 and '-', beginning with a letter")
    return f'"log:{topic}"'


def ends_of(db: sqlite3.Connection) -> Ends:
    """The next offset of every topic that the file has."""
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type='table' AND name LIKE 'log:%'")]
    return {
        name[4:]: db.execute(f'SELECT coalesce(max("offset") + 1, 0) FROM "{name}"').fetchone()[0]  # noqa: S608
        for name in names
    }


def read(db: sqlite3.Connection, topic: str, offset: int, records_max: int) -> list[Delivered]:
    """Records of a topic from `offset` on. Compacted topics have gaps in their offsets."""
    columns = '"offset", key, value, headers, time_us'
    wanted = f'SELECT {columns} FROM {table_of(topic)} WHERE "offset" >= ? ORDER BY "offset" LIMIT ?'  # noqa: S608
    rows = db.execute(wanted, (offset, records_max))
    return [
        Delivered(topic, 0, at, key, value, tuple(_headers.decode(headers)) if headers else (), time_us)
        for at, key, value, headers, time_us in rows
    ]


def count(db: sqlite3.Connection, topic: str, offset: int) -> int:
    """Records of a topic from `offset` on."""
    (number,) = db.execute(f'SELECT count(*) FROM {table_of(topic)} WHERE "offset" >= ?', (offset,)).fetchone()  # noqa: S608
    return int(number)


def settled(db: sqlite3.Connection, group: str) -> Ends:
    """The offsets that a group resumes from."""
    return dict(db.execute('SELECT topic, "offset" FROM groups WHERE name = ?', (group,)))


class SqliteAppender:
    """BlockingAppender over the file: one transaction per batch, on the disk (synchronous=FULL) on return, all or none.

    Owns the file: a second owner, in this process or another, gets LogUnavailable with the owner's pid. `committed` is
    called from the appending thread after each batch with the next offsets of the topics that grew.
    """

    def __init__(self, path: Path, committed: Callable[[Ends], None] = lambda ends: None) -> None:
        self._ownership = Ownership(path.with_name(path.name + ".lock"), f"the log {path}")
        self._committed = committed
        self._turn = threading.Lock()  # appends and settlements: SQLite has one writer at a time and waits by sleeping
        try:
            self._db = connect(path)
            self._settler = connect(path)
            self._lay_out()
            self.ends = ends_of(self._db)
        except BaseException:
            self._ownership.release()
            raise
        self._to_empty = True  # a crash may have come between an erasure and this
        table = table_of(ERASING_TOPIC)
        self._erase = f"DELETE FROM {table} WHERE key = ?1 AND value IS NOT NULL"  # noqa: S608
        self._insert = {topic: self._insert_into(topic) for topic in self.ends}

    def append(self, records: Sequence[Record]) -> None:
        """See BlockingAppender. After an exception nothing of the batch is in the log (short of a power cut while
        committing).
        """
        if not records:
            return
        time_us = now_us()
        erased = [(key,) for topic, key, value, _ in records if value is None and topic == ERASING_TOPIC]
        rows: dict[str, list[tuple[int, bytes, bytes | None, bytes | None, int]]] = {}
        ends: Ends = {}
        for topic, key, value, headers in records:
            if topic not in ends:
                ends[topic] = self.ends[topic]
                rows[topic] = []
            packed = msgspec.json.encode(headers) if headers else None
            rows[topic].append((ends[topic], key, value, packed, time_us))
            ends[topic] += 1
        with self._turn:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for topic, values in rows.items():
                    self._db.executemany(self._insert[topic], values)
                if erased:
                    self._db.executemany(self._erase, erased)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise LogUnavailable(
                    f"the log's file took no record ({error}); free disk space, check the disk"
                ) from error
            self.ends.update(ends)
            self._to_empty |= bool(erased)
            if self._to_empty:
                self._empty()
        self._committed(ends)

    def settle(self, group: str, offsets: Mapping[str, int]) -> None:
        """Keep a group's offsets. Atomic, but on the disk only with a later append: a settlement may be lost, never
        torn.
        """
        rows = [(group, topic, offset) for topic, offset in offsets.items()]
        with self._turn:
            try:
                self._settler.execute("BEGIN IMMEDIATE")
                self._settler.executemany("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", rows)
                self._settler.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._settler.execute("ROLLBACK")
                raise LogUnavailable(
                    f"offsets could not be settled ({error}); free disk space, check the disk"
                ) from error

    def compact(self) -> None:
        """Keep the newest record per key in the state topics, tombstones included."""
        with self._turn:
            for topic in STATE_TOPICS:
                table = table_of(topic)
                newest = f'SELECT max("offset") FROM {table} GROUP BY key'  # noqa: S608
                self._db.execute(f'DELETE FROM {table} WHERE "offset" NOT IN ({newest})')  # noqa: S608

    def trim(self, topic: str, at_us: int, needed_by: Collection[str], records_max: int) -> int:
        """Remove some of the oldest records that were logged before `at_us` and that these groups have settled, never
        the newest one; how many. One transaction, kept on the disk with a later append. Raises LogUnavailable.
        """
        table = table_of(topic)
        oldest = f'SELECT "offset", time_us FROM {table} WHERE "offset" < ? ORDER BY "offset" LIMIT ?'  # noqa: S608
        with self._turn:
            try:
                (below,) = self._settler.execute(f'SELECT coalesce(max("offset"), 0) FROM {table}').fetchone()  # noqa: S608
                for group in needed_by:
                    below = min(below, settled(self._settler, group).get(topic, 0))
                rows = self._settler.execute(oldest, (below, records_max)).fetchall()
                old = list(takewhile(lambda row: row[1] < at_us, rows))
                if old:
                    self._settler.execute(f'DELETE FROM {table} WHERE "offset" <= ?', (old[-1][0],))  # noqa: S608
            except sqlite3.Error as error:
                raise LogUnavailable(f"old records could not be removed ({error}); check the disk") from error
        return len(old)

    def used_bytes(self) -> int:
        """Of the file, without pages that are free to be used again. Raises LogUnavailable."""
        with self._turn:
            try:
                count, free, size = [
                    self._settler.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("page_count", "freelist_count", "page_size")
                ]
            except sqlite3.Error as error:
                raise LogUnavailable(f"the log's size could not be read ({error})") from error
        return int((count - free) * size)

    def oldest_us(self, topic: str) -> int:
        """When the oldest record of a topic was logged; far in the future where there is none."""
        first = f'SELECT time_us FROM {table_of(topic)} ORDER BY "offset" LIMIT 1'  # noqa: S608
        with self._turn:
            try:
                row = self._settler.execute(first).fetchone()
            except sqlite3.Error as error:
                raise LogUnavailable(f"the log's oldest record could not be read ({error})") from error
        return int(row[0]) if row else 2**62

    def _empty(self) -> None:
        """What was erased is not in the write-ahead log either; while somebody reads, at the next append."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            self._to_empty = bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout=10000")

    def close(self) -> None:
        """Fold the write-ahead log into the file and give up ownership."""
        with self._turn:
            self._settler.close()
            self._db.close()
        self._ownership.release()

    def _lay_out(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten
        self._settler.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("BEGIN IMMEDIATE")
        for topic in (*TOPICS, *STATE_TOPICS):
            self._db.execute(
                f'CREATE TABLE IF NOT EXISTS {table_of(topic)} ("offset" INTEGER PRIMARY KEY, '
                "key BLOB NOT NULL, value BLOB, headers BLOB, time_us INTEGER NOT NULL)"
            )
        self._db.execute(f"CREATE INDEX IF NOT EXISTS keys_to_erase ON {table_of(ERASING_TOPIC)} (key)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS groups "
            '(name TEXT, topic TEXT, "offset" INTEGER NOT NULL, PRIMARY KEY (name, topic))'
        )
        self._db.execute(f"PRAGMA user_version={FORMAT}")
        self._db.execute("COMMIT")

    def _insert_into(self, topic: str) -> str:
        return f'INSERT INTO {table_of(topic)} ("offset", key, value, headers, time_us) VALUES (?, ?, ?, ?, ?)'  # noqa: S608
