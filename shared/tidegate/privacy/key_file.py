"""The data keys that one process made, in a SQLite file of its own: on the disk before their first use.

A key is stored as it is published: wrapped. Published keys that are too old to seal with are dropped. What is destroyed
leaves the file's bytes: freed pages are overwritten, the write-ahead log is emptied. All methods block, one at a time.
Counterpart: the edge's `vault.py`.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from tidegate.errors import KeyFault, LogUnavailable
from tidegate.log.ownership import Ownership
from tidegate.privacy.keys import SubjectKey, Wrapping, topic_key

FORMAT: Final = 1
KEY_LIFE_US: Final = 30 * 24 * 3600 * 1_000_000  # for how long a key seals
_BUSY_S: Final = 10
_ROWID_MAX: Final = 2**63 - 1

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Subject = tuple[str, str]
"""Tenant and subject id."""


class Unpublished(NamedTuple):
    """A key that the log does not have yet, as its record."""

    kid: str
    topic_key: bytes
    value: bytes


class SubjectKeyFile:
    """Opened by one process. Every method raises LogUnavailable (`keys-unavailable`) where the file fails."""

    def __init__(self, path: Path, wrapping: Wrapping | None, now_us: int) -> None:
        """Without masters nothing can be taken from it, only destroyed and published."""
        self.path = path
        self._wrapping = wrapping
        self._turn = threading.Lock()
        self._is_dirty = True  # a crash may have come between a deletion and the emptying of the write-ahead log
        self._made: list[str] = []
        self._ownership = Ownership(path.with_name(path.name + ".lock"), f"the file of subjects' keys {path}")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
            self._lay_out()
            self.drop_old(now_us)
            self._rewrap()
        except sqlite3.Error as error:
            self._ownership.release()
            raise LogUnavailable(f"{path}: cannot be opened ({error}); check `data`", code="keys-unavailable") from None
        except BaseException:
            self._ownership.release()
            raise

    def take(self, subjects: Sequence[Subject], now_us: int) -> list[SubjectKey]:
        """The key to seal with, of each: the newest that is young enough, else a new one. Durable on return."""
        before = len(self._made)
        try:
            return self._within(lambda: [self._taken(subject, now_us) for subject in subjects])
        except BaseException:
            del self._made[before:]
            raise

    def unpublished(self, count_max: int) -> list[Unpublished]:
        """Oldest first."""
        sql = "SELECT kid, tenant, subject_id, value FROM keys WHERE published = 0 ORDER BY rowid LIMIT ?"
        rows = self._within(lambda: self._db.execute(sql, (count_max,)).fetchall())
        return [Unpublished(kid, topic_key(tenant, subject, kid), value) for kid, tenant, subject, value in rows]

    def mark_published(self, kids: Iterable[str]) -> list[str]:
        """The log has them. Returns those that were destroyed meanwhile: the log must not keep them."""

        def mark() -> list[str]:
            return [kid for kid in kids if not self._marked(kid)]

        return self._within(mark)

    def published_kids(self, before: int | None, count_max: int) -> tuple[list[str], int]:
        """Keys that some log took, newest first, and where to go on from: `before` of the next question. 0: no more."""
        sql = "SELECT rowid, kid FROM keys WHERE published = 1 AND rowid < ? ORDER BY rowid DESC LIMIT ?"
        asked = (_ROWID_MAX if before is None else before, count_max)
        rows = self._within(lambda: self._db.execute(sql, asked).fetchall())
        return [str(kid) for _, kid in rows], int(rows[-1][0]) if len(rows) == count_max else 0

    def mark_unpublished(self, kids: Iterable[str]) -> list[str]:
        """The log does not have them, whatever an earlier one took. Returns those that are here still."""

        def mark() -> list[str]:
            sql = "UPDATE keys SET published = 0 WHERE kid = ?"
            return [kid for kid in kids if self._db.execute(sql, (kid,)).rowcount > 0]

        return self._within(mark)

    def drop_old(self, now_us: int) -> None:
        """What is published and sealed with no more is not needed here."""
        limit_us = now_us - KEY_LIFE_US
        self._within(lambda: self._db.execute("DELETE FROM keys WHERE published = 1 AND created_us <= ?", (limit_us,)))

    def unpublished_kids(self) -> list[str]:
        """Keys that the log does not have yet."""
        sql = "SELECT kid FROM keys WHERE published = 0 ORDER BY rowid"
        return [str(kid) for (kid,) in self._within(lambda: self._db.execute(sql).fetchall())]

    def made(self) -> list[str]:
        """The keys that `take` has made since this was asked last."""
        with self._turn:
            found, self._made = self._made, []
        return found

    def destroy(self, subject: Subject, up_to_us: int, kids: Iterable[str] = ()) -> list[str]:
        """Remove the subject's keys made up to then, and those named; their bytes are gone on return. Which they were.

        Where there were none nothing is written.
        """
        held = self._within(
            lambda: self._db.execute(
                "SELECT kid, created_us FROM keys WHERE tenant = ? AND subject_id = ?", subject
            ).fetchall()
        )
        named = set(kids)
        gone = [str(kid) for kid, created_us in held if created_us <= up_to_us or kid in named]
        if gone:
            self._within(lambda: self._delete(gone))
        self.empty_write_ahead_log(only_if_needed=not gone)
        return gone

    def empty_write_ahead_log(self, *, only_if_needed: bool = False) -> None:
        """So that nothing that was deleted is in it. Raises LogUnavailable while a reader stands in the way."""
        if only_if_needed and not self._is_dirty:
            return
        with self._turn:
            try:
                busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error as error:
                raise self._fault(error) from None
        if busy:
            raise LogUnavailable(
                f"{self.path} is being read by another program, so deleted keys stay in its write-ahead log; end it",
                code="keys-unavailable",
            )
        self._is_dirty = False

    def close(self) -> None:
        """Idempotent. Folds the write-ahead log into the file."""
        with self._turn:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._ownership.release()

    def _taken(self, subject: Subject, now_us: int) -> SubjectKey:
        row = self._db.execute(
            "SELECT value FROM keys WHERE tenant = ? AND subject_id = ? AND created_us > ? ORDER BY rowid DESC LIMIT 1",
            (*subject, now_us - KEY_LIFE_US),
        ).fetchone()
        if self._wrapping is None:
            raise LogUnavailable("no master key is configured, so nothing can be sealed", code="keys-unavailable")
        if row is not None:
            try:
                return self._wrapping.unwrap(row[0])
            except KeyFault as fault:
                _log.warning("%s; a new key is made", fault.sentence)
        key = SubjectKey.generate(*subject, now_us)
        self._made.append(key.kid)
        self._db.execute(
            "INSERT INTO keys (kid, tenant, subject_id, created_us, published, value) VALUES (?, ?, ?, ?, 0, ?)",
            (key.kid, key.tenant, key.subject_id, key.created_us, self._wrapping.wrap(key)),
        )
        return key

    def _marked(self, kid: str) -> bool:
        return self._db.execute("UPDATE keys SET published = 1 WHERE kid = ?", (kid,)).rowcount > 0

    def _delete(self, kids: Sequence[str]) -> None:
        self._is_dirty = True
        self._db.executemany("DELETE FROM keys WHERE kid = ?", [(kid,) for kid in kids])

    def _rewrap(self) -> None:
        """Under the first master, after a rotation: published again, the record takes the older one's place."""

        wrapping = self._wrapping
        if wrapping is None:
            return

        def rewrap() -> int:
            count = 0
            for kid, value in self._db.execute("SELECT kid, value FROM keys").fetchall():
                try:
                    if wrapping.is_current(value):
                        continue
                    renewed = wrapping.wrap(wrapping.unwrap(value))
                except KeyFault as fault:
                    _log.error("%s", fault.sentence)
                    continue
                self._db.execute("UPDATE keys SET value = ?, published = 0 WHERE kid = ?", (renewed, kid))
                count += 1
            return count

        if count := self._within(rewrap):
            _log.info("%d keys of subjects are wrapped under the new master", count)

    def _lay_out(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, FORMAT):
            raise LogUnavailable(
                f"{self.path}: has format {version}, this version reads {FORMAT}; use the version that wrote it",
                code="keys-unavailable",
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS keys (rowid INTEGER PRIMARY KEY AUTOINCREMENT, kid TEXT NOT NULL UNIQUE, "
            "tenant TEXT NOT NULL, subject_id TEXT NOT NULL, created_us INTEGER NOT NULL, published INTEGER NOT NULL, "
            "value BLOB NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS of_subject ON keys (tenant, subject_id, created_us)")
        self._db.execute("CREATE INDEX IF NOT EXISTS to_publish ON keys (rowid) WHERE published = 0")
        self._db.execute(f"PRAGMA user_version={FORMAT}")

    def _within(self, work: Callable[[], _T]) -> _T:
        """In one transaction: all of it is on the disk on return, or none."""
        with self._turn:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                done = work()
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise self._fault(error) from None
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            return done

    def _fault(self, error: sqlite3.Error) -> LogUnavailable:
        return LogUnavailable(
            f"{self.path} took no key ({error}); free disk space, check the disk", code="keys-unavailable"
        )
