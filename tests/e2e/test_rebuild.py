"""ClickHouse built anew from the log, with real parts: the same rows before and after, whatever happens meanwhile."""

import asyncio
import hashlib
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.parts.audit_events import abandoned, calls, completed, finding, requested
from tests.parts.kafka import Kafka
from tests.parts.sealed import Sealed, chained, sealed_house, until

from tidegate.chain import Chain
from tidegate.errors import AnalyticsRefused, ConfigFault
from tidegate.ids import now_us, uuid7
from tidegate.log.extents import open_extents
from tidegate.log.kafka import KafkaLog
from tidegate.log.port import Partition, Record
from tidegate.log.sqlite import open_readonly
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Settings
from tidegate_audit_consumer import beside, claim, rebuilding
from tidegate_audit_consumer.rebuilding import Rebuild, Result

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIDEGATE = Path(sys.executable).parent / "tidegate"
LOCAL = Partition("calls", 0)
STEP = 17  # of the statements of a rebuild every so many

# What people see; `ingested_at` and when something was counted are no part of what was recorded.
VIEWS = {
    "events": "* EXCEPT (ingested_at)",
    "findings": "* EXCEPT (ingested_at)",
    **dict.fromkeys(
        ("calls", "roots", "leaves", "checks", "integrity", "denials", "tool_usage", "agents", "servers"), "*"
    ),
    **dict.fromkeys(("latency", "data_volume", "policy_hits"), "*"),
    **dict.fromkeys(
        ("calls_by_minute", "calls_by_hour"), "* EXCEPT (subjects, sessions, policy_time, upstream_time, total_time)"
    ),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sealed]:
    """Calls of every kind, findings, unreadable records, an event that the log has twice; some of it under roots."""
    async with sealed_house(tmp_path_factory.mktemp("rebuilt")) as house:
        (house.settings.data_dir / "log.db").symlink_to(house.log.path)
        chain = Chain("kinds.spool.1")
        lost, late = requested("lost"), requested("late")
        kinds = [
            requested("denied", decision="deny", reason="tool-not-granted"),
            requested("open"),
            lost,
            abandoned(lost),
        ]
        kinds += [late, abandoned(late), completed(late, outcome="tool-error")]
        await house.append(calls(30))
        await house.append([chain.seal(event) for event in kinds])
        await house.append(findings(3))
        await house.append([Record("calls", b"k", b"\xff no json"), Record("calls", b"k", None)])
        again = calls(2, writer="again.spool.1")
        await house.append([*again, *again])
        await house.append(chained("old.spool.1", 0, 5))
        await house.ingested()
        async with house.sealing() as integrity:
            await until(lambda: len(integrity.checker.checked) > 1)
        await house.ingested()
        yield house


FEW = ("events", "calls", "findings", "roots", "checks", "calls_by_hour")


def findings(count: int) -> list[Record]:
    """Of one detector, in its chain."""
    records: list[Record] = []
    for seq in range(1, count + 1):
        prev = hashlib.sha256(records[-1].value or b"").hexdigest() if records else ""
        own = {"writer": "detector.a", "seq": seq, "prev": prev, "time_us": now_us()}
        records.append(Record("detections", b"k", finding(f"0192f0c1-0000-8000-8000-00000000000{seq}", **own)))
    return records


async def shown(house: Sealed, views: Sequence[str] = FEW) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    for view in views:
        columns = VIEWS[view]
        source = f"tidegate.{view}" + (" FINAL" if view in ("roots", "leaves", "checks") else "")
        found[view] = sorted(await house.query(f"SELECT {columns} FROM {source}"), key=repr)
    return found


async def rebuilt(house: Sealed, *only: str, keep: bool = False, told: Any = lambda phase, more: None) -> Result:
    log = open_readonly(house.log.path)
    try:
        async with open_extents(house.settings) as extents:
            rebuild = Rebuild(log, extents, house.consumer.analytics, only, keep=keep)
            return await rebuild.run(await rebuild.find(), told)
    finally:
        await log.close()


async def letters(house: Sealed) -> int:
    subscription = await house.log.follow(["dead-letters"])
    found = len(await subscription.poll(1_000, 0.2))
    await subscription.close()
    return found


async def test_every_table_and_view_is_the_same_afterwards_and_dead_letters_are_not_doubled(house: Sealed) -> None:
    before, buried = await shown(house, tuple(VIEWS)), await letters(house)
    assert all(before[view] for view in VIEWS), "there is something to compare everywhere"
    result = await rebuilt(house)
    assert await shown(house, tuple(VIEWS)) == before
    assert await letters(house) == buried == 2
    (local,) = [one for one in result.compared if one.at == LOCAL]
    assert (local.unreadable, local.repeated, local.missing, local.strange) == (2, 4, 0, 0)
    assert result.is_whole
    assert not await beside.exists(house.consumer.analytics), "nothing is left beside"
    report = await house.verify(0, 2**61)
    assert (report.wrong, report.rows) == ([], [])
    assert report.records >= 40


async def test_what_was_spoiled_lost_or_forged_in_clickhouse_is_as_the_log_has_it_again(house: Sealed) -> None:
    before = await shown(house)
    mutations = "SETTINGS mutations_sync = 2"
    await house.execute(f"ALTER TABLE tidegate.events_raw DELETE WHERE seq % 3 = 0 {mutations}")
    await house.execute(f"ALTER TABLE tidegate.events_raw UPDATE raw = 'forged' WHERE seq = 4 {mutations}")
    await house.execute("TRUNCATE TABLE tidegate.roots")
    await house.execute("TRUNCATE TABLE tidegate.minutes_marks")
    await house.execute(
        "INSERT INTO tidegate.calls_raw (tenant, requested_at, call_id) VALUES ('acme', '2020-01-01', 'x')"
    )
    await house.execute(
        "INSERT INTO tidegate.events_raw (event_id, tenant, topic, partition, offset) "
        "VALUES ('0155f0c1-0000-7000-8000-000000000001', 'acme', 'calls', 0, 5)"
    )
    assert await shown(house) != before
    result = await rebuilt(house)
    assert result.is_whole
    assert await shown(house) == before


async def test_rows_are_there_all_the_while_and_what_comes_meanwhile_is_there_once(house: Sealed) -> None:
    (before,) = (await house.query("SELECT count() FROM tidegate.events"))[0]
    least, phases, ended = before, [], asyncio.Event()

    async def writing() -> None:
        for number in range(40):
            await house.append(calls(20, writer=f"busy-{number}.spool.1"))
            await asyncio.sleep(0.01)
            if ended.is_set() and number > 5:
                return

    async def watching() -> None:
        nonlocal least
        while not ended.is_set():
            least = min(least, (await house.query("SELECT count() FROM tidegate.events"))[0][0])
            await asyncio.sleep(0)

    work = [asyncio.create_task(writing()), asyncio.create_task(watching())]
    await rebuilt(house, told=lambda phase, more: phases.append(phase))
    ended.set()
    await asyncio.gather(*work)
    await house.ingested()
    assert {"building", "replacing", "filling"} == set(phases)
    assert least >= before, "no reader ever met fewer rows than there were"
    busy = await house.query(
        "SELECT uniqExact(writer), count(), uniqExact(event_id), uniqExact(writer, seq) FROM tidegate.events "
        "WHERE writer LIKE 'busy-%'"
    )
    writers = busy[0][0]
    assert busy == [(writers, writers * 40, writers * 40, writers * 40)]
    assert (await house.query("SELECT count() FROM tidegate.calls"))[0] == (
        (await house.query("SELECT uniqExact(call_id) FROM tidegate.events WHERE topic = 'calls'"))[0][0],
    )
    counted = await house.query("SELECT sum(calls) FROM tidegate.calls_by_hour")
    final = await house.query(
        "SELECT count() FROM tidegate.calls WHERE status NOT IN ('pending', 'unknown') OR abandoned_event != ''"
    )
    assert counted == final


async def test_only_the_tables_that_are_named_are_rebuilt(house: Sealed) -> None:
    before = await shown(house)
    await house.execute("TRUNCATE TABLE tidegate.calls_raw")
    await house.execute("TRUNCATE TABLE tidegate.checks")
    await rebuilt(house, "calls")
    assert (await shown(house))["calls"] == before["calls"]
    assert (await shown(house))["checks"] == []
    await rebuilt(house, "integrity")
    assert await shown(house) == before
    await house.execute("TRUNCATE TABLE tidegate.hours_marks")
    await rebuilt(house, "rollups")
    assert await shown(house) == before


class Dies:
    """Analytics of a process that is gone from its n-th statement on: before it is done, or right after."""

    def __init__(self, inner: Any, at: int, *, done: bool) -> None:
        self.inner, self.at, self.done, self.calls = inner, at, done, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        async def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls > self.at or (self.calls == self.at and not self.done):
                raise Gone
            answer = await method(*given, **named)
            if self.calls == self.at:
                raise Gone
            return answer

        return call


class Gone(BaseException):
    """The process was killed."""


async def run_until(house: Sealed, at: int, *, done: bool) -> int:
    """Statements that were made."""
    analytics, log = Dies(house.consumer.analytics, at, done=done), open_readonly(house.log.path)
    try:
        async with open_extents(house.settings) as extents:
            rebuild = Rebuild(log, extents, analytics)
            await rebuild.run(await rebuild.find(), lambda phase, more: None)
    except Gone:
        pass
    finally:
        await log.close()
    return analytics.calls


async def test_killed_again_and_again_the_next_run_goes_on_and_the_last_one_ends(
    house: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await shown(house)
    monkeypatch.setattr(rebuilding, "BATCH_RECORDS", 100)
    statements = await run_until(house, 10**6, done=True)
    for number, at in enumerate(range(2, statements, STEP)):
        await run_until(house, at, done=bool(number % 2))
    result = await rebuilt(house)
    assert result.is_whole
    assert await shown(house) == before


async def claimed(house: Sealed, number: int, whose: str) -> None:
    await house.execute(f"CREATE DATABASE IF NOT EXISTS {beside.BESIDE}")
    await house.execute(
        f"CREATE TABLE {beside.BESIDE}.claim_{number} (at DateTime64(6, 'UTC'), run String) "
        f"ENGINE = MergeTree ORDER BY at COMMENT '{whose}'"
    )


async def test_while_a_rebuild_elsewhere_lives_another_is_refused_and_once_it_is_silent_it_is_taken_over(
    house: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await shown(house)
    await claimed(house, 7, "elsewhere/1/x")
    with pytest.raises(ConfigFault, match=r"another rebuild is at work \(process 1 on elsewhere\)"):
        await rebuilt(house)
    assert [one.number for one in await claim.held(house.consumer.analytics)] == [7], "the other's stays"
    monkeypatch.setattr(claim, "SILENT_S", -60.0)  # as if it were a minute later
    assert (await rebuilt(house)).is_whole
    assert await shown(house) == before
    assert not await beside.exists(house.consumer.analytics)


async def test_whoever_was_taken_over_ends_before_it_replaces_anything(
    house: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await shown(house)
    log, told = open_readonly(house.log.path), list[str]()
    async with open_extents(house.settings) as extents:
        slow = Rebuild(log, extents, house.consumer.analytics)
        found = await slow.find()
        await house.execute(f"DROP TABLE {beside.BESIDE}.claim_1")
        await claimed(house, 2, "elsewhere/1/x")
        with pytest.raises(AnalyticsRefused, match="another rebuild took over"):
            await slow.run(found, lambda phase, more: told.append(phase))
    await log.close()
    assert told == []
    await house.execute(f"DROP TABLE {beside.BESIDE}.claim_2")

    async def lost(own: claim.Claim) -> None:
        raise AnalyticsRefused("another rebuild took over")

    with monkeypatch.context() as patched:  # while it works, at one of its beats
        patched.setattr(claim.Claim, "_beat_on", lost)
        with pytest.raises(AnalyticsRefused, match="took over"):
            await rebuilt(house, told=lambda phase, more: told.append(phase))
    assert "replacing" not in told
    assert (await rebuilt(house)).is_whole
    assert await shown(house) == before


async def test_one_of_other_tables_is_refused_while_a_dead_one_has_to_be_finished(house: Sealed) -> None:
    def dies(phase: str, more: int) -> None:
        if phase == "filling":
            raise Gone

    with pytest.raises(Gone):
        await rebuilt(house, "calls", told=dies)
    await claimed(house, 1, f"{socket.gethostname()}/999999999/x")
    with pytest.raises(ConfigFault, match="finish it first, with --only calls"):
        await rebuilt(house, "findings")
    assert (await rebuilt(house, "calls")).tables == ["calls_raw"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("DROP TABLE tidegate_rebuild.runs", "nothing tells how far that came"),
        ("DROP TABLE tidegate_rebuild.roots", "some are missing"),
        ("INSERT INTO tidegate_rebuild.runs (phase, only) VALUES ('building', 'calls')", "that was a rebuild of calls"),
    ],
)
async def test_what_an_earlier_run_left_half_made_is_told_and_cleared_and_never_continued(
    house: Sealed, spoil: str, why: str
) -> None:
    before, analytics = await shown(house), house.consumer.analytics

    def dies(phase: str, more: int) -> None:
        if phase == "replacing":
            raise Gone

    with pytest.raises(Gone):
        await rebuilt(house, told=dies)
    left = await beside.tables(analytics)
    assert "events_raw" in left
    assert "subject_keys" not in left, "no key is ever copied"
    await house.execute(spoil)
    await house.execute(f"CREATE TABLE {beside.BESIDE}.`odd ``name` (x UInt8) ENGINE = MergeTree ORDER BY x")
    await house.execute(f"CREATE VIEW {beside.BESIDE}.`a view` AS SELECT 1")
    log = open_readonly(house.log.path)
    async with open_extents(house.settings) as extents:
        rebuild = Rebuild(log, extents, analytics)
        found = await rebuild.find()
        assert (found.leftover, found.positions) == (why, {})
        assert (await rebuild.run(found, lambda phase, more: None)).is_whole
    await log.close()
    assert await shown(house) == before
    assert not await beside.exists(analytics), "nothing is left beside"


async def cli(*arguments: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        TIDEGATE,
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_what_the_log_no_longer_has_is_said_before_anything_is_touched_and_kept_or_given_up(
    house: Sealed,
) -> None:
    before = await shown(house)
    config = Path(house.settings.root) / "tidegate.yaml"
    config.write_text("data: data\n")
    with sqlite3.connect(house.log.path, timeout=20) as db:
        db.execute('DELETE FROM "log:calls" WHERE "offset" < 20')
    code, out, err = await cli("rebuild", "--config", config, "--yes")
    assert (code, out) == (2, "")
    assert "calls/0: ClickHouse holds 20 records from 20" in err
    assert "it begins at offset 20" in err
    assert "--keep takes these records from ClickHouse" in err
    assert not await beside.exists(house.consumer.analytics)
    code, out, err = await cli("rebuild", "--config", config, "--keep")
    assert (code, "give --yes" in err) == (2, True)
    code, out, err = await cli("rebuild", "--config", config, "--keep", "--yes", "--json", "--no-verify")
    told = msgspec.json.decode(out)
    assert (code, told["whole"], told["unreadable"]) == (0, True, 2)
    assert await shown(house) == before, "nothing is lost"
    code, out, err = await cli("rebuild", "--config", config, "--accept-loss", "--yes")
    assert code == 0, out + err
    assert "In all 20 records would be gone." in err
    assert "What the log says is what ClickHouse holds." in out
    assert "filling in what came meanwhile ━" in err, "a bar"
    assert await house.query("SELECT count() FROM tidegate.events WHERE topic = 'calls' AND offset < 20") == [(0,)]
    assert await house.query("SELECT count() FROM tidegate.calls") == [(len(before["calls"]) - 10,)]


@pytest.mark.kafka
async def test_from_kafka_with_transactions_and_idle_partitions_every_record_comes_once(
    house: Sealed, kafka: Kafka
) -> None:
    topics = KafkaSettings(prefix=f"rebuild{uuid7()}.", partitions=3, replication=1, min_insync=1)
    settings = Settings(log=f"kafka://{kafka.bootstrap}", kafka=topics)
    log = KafkaLog(settings)
    await log.prepare()
    try:
        records = [one._replace(key=b"k%d" % (at % 2)) for at, one in enumerate(calls(40, writer="kafka.spool.1"))]
        await log.append(records[:50])  # transactions: their marks count as offsets
        await log.append(records[50:])
        await log.append([Record("calls", b"k0", b"no json")])
        async with open_extents(settings) as extents:
            found = await extents.now(["calls", "integrity"])
            assert len(found) == 4
            assert sum(one.next - one.first for one in found.values()) > 81
            rebuild = Rebuild(log, extents, house.consumer.analytics)
            result = await rebuild.run(await rebuild.find(), lambda phase, more: None)
        assert result.is_whole
        assert sum(one.records for one in result.compared) == 81
        assert result.unreadable == 1
    finally:
        await log.close()
    assert await house.query("SELECT count(), uniqExact(event_id) FROM tidegate.events") == [(80, 80)]
    assert await house.query("SELECT count() FROM tidegate.calls WHERE status = 'ok'") == [(40,)]
    assert await house.query("SELECT sum(calls) FROM tidegate.calls_by_minute") == [(40,)]
