"""The edge's vault over its real file and a real log: what it seals with, what it publishes, what an erasure leaves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from tests.parts.audit_events import completed, requested
from tests.parts.boxes import plain

from tidegate.chain import Chain
from tidegate.errors import LogUnavailable
from tidegate.events import AnyEvent, CallRequested, Sealed, SessionClosed
from tidegate.log.port import Record, Subscription
from tidegate.log.sqlite import SqliteLog
from tidegate.privacy.key_file import KEY_LIFE_US, SubjectKeyFile
from tidegate.privacy.keys import SubjectKey, Wrapping, topic_key
from tidegate.privacy.ring import TOPIC, KeyRing, load_ring
from tidegate_edge.recorder import Recorder, Writer
from tidegate_edge.vault import PERSONAL, Vault

WRAPPING = Wrapping([b"1" * 32])
NOW = 1_800_000_000_000_000


class CountedFile(SubjectKeyFile):
    """Knows how many transactions made keys."""

    taken = 0

    def take(self, subjects: Sequence[tuple[str, str]], now_us: int) -> list[SubjectKey]:
        self.taken += 1
        return super().take(subjects, now_us)


@pytest.fixture
async def file(tmp_path: Path) -> CountedFile:
    return CountedFile(tmp_path / "subject-keys.db", WRAPPING, NOW)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    opened = SqliteLog(tmp_path / "log.db")
    await opened.prepare()
    yield opened
    await opened.close()


@pytest.fixture
async def vault(file: CountedFile, log: SqliteLog) -> AsyncIterator[Vault]:
    opened = Vault(file, lambda: NOW)
    yield opened
    await opened.close(log)


async def published(vault: Vault, log: SqliteLog) -> KeyRing:
    """What is on the log once the vault has published all it has."""
    task = asyncio.create_task(vault.publish(log))
    async with asyncio.timeout(20):
        while vault.pending:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return await load_ring(log, WRAPPING)


def request_of(subject_id: str, at_us: int = NOW) -> CallRequested:
    return requested(subject_id=subject_id, at_us=at_us)


async def test_a_subject_s_first_event_waits_for_a_key_and_the_next_ones_do_not(vault: Vault, log: SqliteLog) -> None:
    request = request_of("alice")
    assert vault.seal(request) is None
    first = await vault.sealed(request)
    ended = completed(request)
    second = vault.seal(ended)
    assert second is not None
    assert first.sealed.kid == second.sealed.kid  # type: ignore[union-attr]
    assert b"alice@example.com" not in (Chain("w").seal(first).value or b"")
    ring = await published(vault, log)
    assert plain(first, ring) == request
    assert plain(second, ring) == ended


async def test_what_is_sealed_or_not_personal_or_empty_stays_as_it_is(vault: Vault) -> None:
    sealed = msgspec.structs.replace(request_of("alice"), sealed=Sealed(kid="0" * 32, box="AAAA"))
    closed = SessionClosed(
        id="i", time_us=NOW, tenant="acme", region="eu", session_id="s", subject_id="alice", agent="a", cause="deleted"
    )
    assert vault.seal(sealed) is sealed
    assert await vault.sealed(sealed) is sealed
    assert vault.seal(closed) is closed
    await vault.sealed(request_of("alice"))
    empty = msgspec.structs.replace(request_of("alice"), sealed=Sealed())
    assert vault.seal(empty) is empty


async def test_many_first_calls_at_once_need_few_writes_and_one_key_each(vault: Vault, file: CountedFile) -> None:
    subjects = [f"user-{number}" for number in range(200)]
    events = await asyncio.gather(*[vault.sealed(request_of(subject)) for subject in subjects * 3])
    kids = {event.subject_id: event.sealed.kid for event in events}  # type: ignore[union-attr]
    assert len(set(kids.values())) == 200
    assert all(event.sealed.kid == kids[event.subject_id] for event in events)  # type: ignore[union-attr]
    assert file.taken <= 2


async def test_memory_is_bounded_and_a_key_that_left_it_is_read_again(file: CountedFile, log: SqliteLog) -> None:
    vault = Vault(file, lambda: NOW, cached_max=3)
    first = [(await vault.sealed(request_of(f"user-{number}"))).sealed.kid for number in range(8)]  # type: ignore[union-attr]
    assert sum(vault.seal(request_of(f"user-{number}")) is not None for number in range(8)) == 3
    again = [(await vault.sealed(request_of(f"user-{number}"))).sealed.kid for number in range(8)]  # type: ignore[union-attr]
    assert again == first
    await vault.close(log)


async def test_after_thirty_days_a_new_key_is_used(file: CountedFile, log: SqliteLog) -> None:
    now = [NOW]
    vault = Vault(file, lambda: now[0])
    first = await vault.sealed(request_of("alice"))
    later = request_of("alice", NOW + KEY_LIFE_US + 1)
    assert vault.seal(later) is None
    now[0] = later.time_us
    second = await vault.sealed(later)
    assert second.sealed.kid != first.sealed.kid  # type: ignore[union-attr]
    assert vault.seal(later) is not None
    await vault.close(log)


async def test_an_erased_subject_s_key_is_never_published_and_the_next_call_makes_another(
    vault: Vault, log: SqliteLog
) -> None:
    before = await vault.sealed(request_of("alice"))
    await vault.sealed(request_of("bob"))
    assert await vault.destroy("acme", "alice", NOW) == 1
    vault._clock = lambda: NOW + 1
    after = await vault.sealed(request_of("alice"))
    ring = await published(vault, log)
    assert ring.find(before.sealed.kid) is None  # type: ignore[union-attr]
    assert ring.find(after.sealed.kid) is not None  # type: ignore[union-attr]
    assert len(ring) == 2


async def test_a_key_that_is_destroyed_while_the_log_takes_it_is_taken_back(vault: Vault, tmp_path: Path) -> None:
    class Crossing(SqliteLog):
        """An erasure arrives in the middle of the first append."""

        crossed = False

        async def append(self, records: Sequence[Record]) -> None:
            if not self.crossed:
                self.crossed = True
                assert await vault.destroy("acme", "alice", NOW) == 1
            await super().append(records)

    event = await vault.sealed(request_of("alice"))
    other = await vault.sealed(request_of("bob"))
    log = Crossing(tmp_path / "crossing.db")
    await log.prepare()
    task = asyncio.create_task(vault.publish(log))
    async with asyncio.timeout(20):
        while (ring := await load_ring(log, WRAPPING)).find(event.sealed.kid) or not log.crossed or not len(ring):  # type: ignore[union-attr]
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert ring.find(other.sealed.kid) is not None  # type: ignore[union-attr]
    await log.close()


async def test_keys_wait_for_a_log_that_is_away_while_events_go_on(
    vault: Vault, log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = asyncio.Event()
    take = log.append

    async def refuse(records: Sequence[Record]) -> None:
        if not away.is_set():
            away.set()
            raise LogUnavailable("away")
        await take(records)

    monkeypatch.setattr(log, "append", refuse)
    event = await vault.sealed(request_of("alice"))
    task = asyncio.create_task(vault.publish(log))
    await asyncio.wait_for(away.wait(), 20)
    assert (await vault.sealed(request_of("bob"))).sealed.kid  # type: ignore[union-attr]
    async with asyncio.timeout(20):
        while (await load_ring(log, WRAPPING)).find(event.sealed.kid) is None:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_keys_that_another_log_took_are_published_again_at_the_start_and_destroyed_ones_are_not(
    log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate_edge.vault.COMPARED_AT_ONCE", 2)
    path, subjects = tmp_path / "moving.db", ["alice", "bob", "carol", "dave", "eve"]

    async def started(log: SqliteLog, *erased: str) -> KeyRing:
        """An edge with this disk that seals something of each, until every key is where it belongs."""
        vault = Vault(SubjectKeyFile(path, WRAPPING, NOW), lambda: NOW)
        task = asyncio.create_task(vault.publish(log))
        for subject in subjects:
            await vault.sealed(request_of(subject))
        for subject in erased:
            await vault.destroy("acme", subject, NOW)
        async with asyncio.timeout(20):
            while len(ring := await load_ring(log, WRAPPING)) < 5 - len(erased) or vault.pending:
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await vault.close(log)
        return ring

    first = await started(log)
    (dave,) = [lock.key.kid for lock in first._locks.values() if lock.key.subject_id == "dave"]
    other = SqliteLog(tmp_path / "other.db")
    await other.prepare()
    await other.append([Record(TOPIC, topic_key("acme", "dave", dave), None)])  # known there, and destroyed
    second = await started(other, "dave")
    assert set(second._locks) == set(first._locks) - {dave}
    vault = Vault(SubjectKeyFile(path, WRAPPING, NOW), lambda: NOW)
    await vault._compare(other)
    assert not vault._absent, "it has them all by now"
    await vault._compare(log)
    assert not vault._absent
    await vault.close(other)
    await other.close()


async def test_keys_destroyed_after_they_were_missed_on_the_log_are_not_published(
    vault: Vault, log: SqliteLog, tmp_path: Path
) -> None:
    for subject in ("alice", "bob"):
        await vault.sealed(request_of(subject))
    assert len(await published(vault, log)) == 2
    other = SqliteLog(tmp_path / "other.db")
    await other.prepare()
    await vault._compare(other)
    assert len(vault._absent) == 2
    assert await vault.destroy("acme", "alice", NOW) == 1
    await vault._publish_all(other)
    ring = await load_ring(other, WRAPPING)
    assert [lock.key.subject_id for lock in ring._locks.values()] == ["bob"]
    assert vault.pending == 0
    await other.close()


async def test_a_log_that_is_away_at_the_start_is_compared_once_it_is_there(
    vault: Vault, log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = await vault.sealed(request_of("alice"))
    await published(vault, log)
    monkeypatch.setattr("tidegate_edge.vault.RETRY_S", 0.01)

    class Away(SqliteLog):
        asked = 0

        async def follow(self, *args: Any, **options: Any) -> Subscription:
            self.asked += 1
            if self.asked < 3:
                raise LogUnavailable("away")
            return await super().follow(*args, **options)

    other = Away(tmp_path / "other.db")
    await other.prepare()
    task = asyncio.create_task(vault.publish(other))
    async with asyncio.timeout(20):
        while other.asked < 3 or (await load_ring(other, WRAPPING)).find(event.sealed.kid) is None:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await other.close()


async def test_a_strict_record_waits_until_its_key_is_on_the_log(
    vault: Vault, log: SqliteLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local log stands in for Kafka: what matters is which was there first."""
    spool = SqliteLog(tmp_path / "spool.db")
    writer = Writer(lambda: Chain("edge-1.strict"), log)
    recorder = Recorder(Writer(lambda: Chain("edge-1.spool"), spool), writer, vault=vault)
    monkeypatch.setattr("tidegate_edge.vault.PUBLISHED_WITHIN_S", 0.05)
    with pytest.raises(LogUnavailable) as fault:
        await recorder.record(request_of("alice"), "strict")
    assert fault.value.code == "key-unpublished"
    assert vault.pending == 1
    await recorder.record(request_of("alice"), "strict-or-spool")
    monkeypatch.setattr("tidegate_edge.vault.PUBLISHED_WITHIN_S", 20.0)
    waiting = asyncio.create_task(recorder.record(request_of("bob"), "strict"))
    ring = await published(vault, log)
    await asyncio.wait_for(waiting, 20)
    assert len(ring) == 2
    for source, subject in ((spool, "alice"), (log, "bob")):
        subscription = await source.follow(["calls"])
        (record,) = await subscription.poll(10, 1.0)
        assert msgspec.json.decode(record.value or b"")["subject_id"] == subject
    await spool.close()


async def test_without_a_key_on_the_disk_nothing_is_recorded_and_the_chain_has_no_gap(
    file: CountedFile, log: SqliteLog
) -> None:
    vault = Vault(file, lambda: NOW)
    recorder = Recorder(Writer(lambda: Chain("edge-1.x"), log), vault=vault)
    request = request_of("alice")
    await recorder.record(request, "spool")
    file._db.execute("PRAGMA max_page_count=1")
    with pytest.raises(LogUnavailable) as fault:
        for number in range(200):
            await recorder.record(request_of(f"user-{number}" * 20), "spool")
    assert fault.value.code == "keys-unavailable"
    await recorder.record_completion(completed(request), "spool")
    file._db.execute("PRAGMA max_page_count=100000")
    await recorder.record(request_of("zoe"), "spool")
    subscription = await log.follow(["calls"])
    values = [record.value or b"" for record in await subscription.poll(1_000, 1.0)]
    assert [msgspec.json.decode(value)["seq"] for value in values] == list(range(1, len(values) + 1))
    await vault.close(log)


def test_every_event_with_a_personal_part_is_one_that_the_vault_seals() -> None:
    personal = {kind for kind in get_args(AnyEvent) if "sealed" in kind.__struct_fields__}
    assert set(PERSONAL) == personal
