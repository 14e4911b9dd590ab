"""Where data keys rest: the masters' file, an edge's own, the local log. What is destroyed is gone from the bytes."""

import os
import sqlite3
import stat
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from tidegate.errors import ConfigFault, LogUnavailable
from tidegate.log.port import EventLog, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.privacy.key_file import KEY_LIFE_US, SubjectKeyFile
from tidegate.privacy.keys import Published, SubjectKey, Wrapping, topic_key
from tidegate.privacy.master import open_wrapping
from tidegate.privacy.ring import TOPIC, load_ring
from tidegate.settings import Privacy, Settings

WRAPPING = Wrapping([b"1" * 32])
ALICE, BOB = ("acme", "a" * 32), ("acme", "b" * 32)
NOW = 1_800_000_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "subject-keys.db"


@pytest.fixture
def file(path: Path) -> Iterator[SubjectKeyFile]:
    opened = SubjectKeyFile(path, WRAPPING, NOW)
    yield opened
    opened.close()


def bytes_of(path: Path) -> bytes:
    """Of the file and of all that SQLite keeps beside it."""
    return b"".join(found.read_bytes() for found in sorted(path.parent.glob(f"{path.name}*")))


def wrapped_in(value: bytes) -> bytes:
    """The part of a published value that holds the key."""
    return msgspec.json.decode(value, type=Published).wrapped.encode()


def test_a_subject_keeps_its_key_and_shares_it_with_nobody(file: SubjectKeyFile, path: Path) -> None:
    first, bob, again = file.take([ALICE, BOB, ALICE], NOW)
    assert first == again
    assert first.key != bob.key
    assert file.take([ALICE], NOW + 1) == [first]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.key not in bytes_of(path), "keys rest wrapped"
    assert b64encode(first.key) not in bytes_of(path)


def test_a_key_is_on_the_disk_before_it_is_handed_out(file: SubjectKeyFile, path: Path) -> None:
    (key,) = file.take([ALICE], NOW)
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as onlooker:
        (value,) = onlooker.execute("SELECT value FROM keys").fetchone()
    assert WRAPPING.unwrap(value) == key


def test_a_key_seals_for_thirty_days_and_another_follows(file: SubjectKeyFile) -> None:
    (first,) = file.take([ALICE], NOW)
    assert file.take([ALICE], NOW + KEY_LIFE_US - 1) == [first]
    (second,) = file.take([ALICE], NOW + KEY_LIFE_US)
    assert second.kid != first.kid
    file.mark_published([first.kid, second.kid])
    file.drop_old(NOW + KEY_LIFE_US)
    assert file.destroy(ALICE, NOW + 2 * KEY_LIFE_US) == [second.kid], "the old one left when it was needed no more"


def test_what_is_destroyed_is_gone_from_the_raw_bytes_at_once(file: SubjectKeyFile, path: Path) -> None:
    file.take([ALICE, BOB], NOW)
    alice, bob = (wrapped_in(found.value) for found in file.unpublished(10))
    assert alice in bytes_of(path)
    assert len(file.destroy(ALICE, NOW)) == 1
    assert alice not in bytes_of(path)
    assert bob in bytes_of(path)
    assert len(file.unpublished(10)) == 1, "what was not published yet never is"
    assert file.destroy(ALICE, NOW) == []


def test_only_keys_up_to_the_erasure_are_destroyed_and_those_that_it_names(file: SubjectKeyFile) -> None:
    (key,) = file.take([ALICE], NOW)
    assert file.destroy(ALICE, NOW - 1) == []
    assert file.take([ALICE], NOW) == [key]
    assert file.destroy(ALICE, NOW - 1, [key.kid]) == [key.kid], "the clocks of two machines differ"
    assert file.take([ALICE], NOW)[0].kid != key.kid


def test_a_reader_in_the_way_of_a_destruction_is_told_and_it_is_tried_again(
    file: SubjectKeyFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.take([ALICE], NOW)
    (found,) = file.unpublished(1)
    file._db.execute("PRAGMA busy_timeout=10")
    onlooker = sqlite3.connect(path, isolation_level=None)
    onlooker.execute("BEGIN")
    onlooker.execute("SELECT count(*) FROM keys").fetchone()
    with pytest.raises(LogUnavailable, match="being read"):
        file.destroy(ALICE, NOW)
    onlooker.close()
    assert file.destroy(ALICE, NOW) == []
    assert wrapped_in(found.value) not in bytes_of(path)


def test_a_key_that_was_destroyed_while_it_was_published_is_told(file: SubjectKeyFile) -> None:
    alice, bob = file.take([ALICE, BOB], NOW)
    assert file.made() == file.unpublished_kids() == [alice.kid, bob.kid]
    assert file.made() == []
    file.destroy(ALICE, NOW)
    assert file.mark_published([alice.kid, bob.kid]) == [alice.kid]
    assert file.unpublished_kids() == []


def test_after_a_rotation_of_the_master_keys_are_wrapped_and_published_anew(path: Path) -> None:
    first = SubjectKeyFile(path, WRAPPING, NOW)
    (key,) = first.take([ALICE], NOW)
    first.mark_published([key.kid])
    first.close()
    rotated = Wrapping([b"2" * 32, b"1" * 32])
    second = SubjectKeyFile(path, rotated, NOW)
    assert second.take([ALICE], NOW) == [key], "the same key, so that what it sealed opens"
    (found,) = second.unpublished(10)
    assert rotated.is_current(found.value)
    second.close()
    only_new = SubjectKeyFile(path, Wrapping([b"2" * 32]), NOW)
    assert only_new.take([ALICE], NOW) == [key]
    only_new.close()


def test_a_file_whose_masters_are_gone_still_destroys_and_makes_new_keys(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = SubjectKeyFile(path, WRAPPING, NOW)
    (key,) = first.take([ALICE], NOW)
    first.close()
    other = SubjectKeyFile(path, Wrapping([b"3" * 32]), NOW)
    assert "not in privacy.key_file" in caplog.text
    assert other.take([ALICE], NOW)[0].kid != key.kid
    assert len(other.destroy(ALICE, NOW)) == 2
    other.close()


def test_one_process_owns_the_file_and_another_format_is_refused(file: SubjectKeyFile, path: Path) -> None:
    with pytest.raises(LogUnavailable, match="in use by process"):
        SubjectKeyFile(path, WRAPPING, NOW)
    file.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=9")
    with pytest.raises(LogUnavailable, match="format 9"):
        SubjectKeyFile(path, WRAPPING, NOW)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    opened = SqliteLog(tmp_path / "log.db")
    await opened.prepare()
    yield opened
    await opened.close()


async def published_keys(log: EventLog, count: int) -> list[tuple[SubjectKey, bytes]]:
    made = [SubjectKey.generate(*ALICE, NOW) for _ in range(count)]
    found = [(key, WRAPPING.wrap(key)) for key in made]
    await log.append([Record(TOPIC, topic_key(*ALICE, key.kid), value) for key, value in found])
    return found


async def test_the_local_log_loses_the_bytes_of_a_destroyed_key(log: SqliteLog, tmp_path: Path) -> None:
    found = await published_keys(log, 40)
    await log.append([Record("calls", b"k", b"%d" % number) for number in range(200)])
    assert all(wrapped_in(value) in bytes_of(log.path) for _, value in found)
    gone = found[:30]
    await log.append([Record(TOPIC, topic_key(*ALICE, key.kid), None) for key, _ in gone])
    content = bytes_of(log.path)
    assert [key.kid for key, value in gone if wrapped_in(value) in content] == []
    assert all(wrapped_in(value) in content for _, value in found[30:])
    ring = await load_ring(log, WRAPPING)
    assert {key.kid for key, _ in found if ring.find(key.kid)} == {key.kid for key, _ in found[30:]}


async def test_the_local_log_waits_for_a_reader_and_loses_the_bytes_later(log: SqliteLog) -> None:
    ((key, value),) = await published_keys(log, 1)
    onlooker = sqlite3.connect(log.path, isolation_level=None)
    onlooker.execute("BEGIN")
    onlooker.execute(f'SELECT count(*) FROM "log:{TOPIC}"').fetchone()
    await log.append([Record(TOPIC, topic_key(*ALICE, key.kid), None)])
    assert wrapped_in(value) in bytes_of(log.path), "the reader sees the log as it was"
    onlooker.close()
    await log.append([Record("calls", b"k", b"next")])
    assert wrapped_in(value) not in bytes_of(log.path)


def settings(root: Path, **privacy: object) -> Settings:
    return Settings(root=str(root), privacy=msgspec.convert(privacy, Privacy))


def test_local_mode_makes_its_master_and_a_cluster_never_does(tmp_path: Path) -> None:
    local = settings(tmp_path, sealing=True)
    assert open_wrapping(local) is None, "a reader makes none"
    made = open_wrapping(local, create=True)
    assert made is not None
    again = open_wrapping(local, create=True)
    assert again is not None
    assert again.current == made.current
    file = tmp_path / "data" / "keys" / "privacy.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(b64decode(file.read_bytes().strip())) == 32
    cluster = msgspec.structs.replace(settings(tmp_path), log="kafka://127.0.0.1:1")
    assert not cluster.seals
    assert open_wrapping(cluster, create=True) is None
    with pytest.raises(ConfigFault, match=r"privacy\.key_file: needed"):
        open_wrapping(msgspec.structs.replace(cluster, privacy=Privacy(sealing=True)), create=True)
    missing = msgspec.structs.replace(cluster, privacy=Privacy(key_file="absent.key"))
    assert missing.seals
    with pytest.raises(ConfigFault, match="cannot be read"):
        open_wrapping(missing, create=True)


GOOD = b64encode(bytes(range(32)))


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"", 0o600, "1 to 16"),
        (b"# nothing\n\n", 0o600, "1 to 16"),
        (GOOD + b"\nshort\n", 0o600, "line 2: is not 32 bytes"),
        (GOOD + b"\n" + GOOD, 0o600, "the same"),
        (GOOD, 0o604, "chmod 600"),
        (b"#" * 20_000, 0o600, "larger than"),
    ],
)
def test_a_wrong_file_of_masters_is_refused_without_repeating_it(
    tmp_path: Path, content: bytes, mode: int, said: str
) -> None:
    path = tmp_path / "privacy.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigFault, match=said) as fault:
        open_wrapping(settings(tmp_path, key_file=str(path)))
    assert GOOD.decode() not in fault.value.sentence
    assert "short" not in fault.value.sentence


def test_the_first_line_wraps_and_every_line_unwraps(tmp_path: Path) -> None:
    path = tmp_path / "privacy.key"
    old, new = os.urandom(32), os.urandom(32)
    path.write_bytes(b"# since 2026\n%b\n\n%b\n" % (b64encode(new), b64encode(old)))
    path.chmod(0o640)
    wrapping = open_wrapping(settings(tmp_path, key_file=str(path)))
    assert wrapping is not None
    key = SubjectKey.generate(*ALICE, NOW)
    assert wrapping.unwrap(Wrapping([old]).wrap(key)) == key
    assert Wrapping([new]).unwrap(wrapping.wrap(key)) == key
