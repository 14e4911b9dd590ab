"""The audit consumer on the real local log and the real engine: each event once, whatever fails in between."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.parts.audit_events import abandoned, calls, completed, delivered, finding, requested
from tests.parts.kafka import Kafka

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_reader, open_server
from tidegate.chain import Chain
from tidegate.errors import AnalyticsUnavailable
from tidegate.events import QuarantineImposed, SessionOpened, ToolDefined
from tidegate.ids import now_us, uuid7
from tidegate.log.kafka import KafkaLog
from tidegate.log.port import Partition, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import AuditConsumer, create_audit_consumer
from tidegate_audit_consumer.migrate import migrate
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

QUICK = Bounds(age_max_s=0.02, idle_s=0.05, backoff_min_s=0.01, backoff_max_s=0.05)

COUNTS = {
    "calls": "SELECT count(), uniqExact(call_id) FROM tidegate.calls",
    "events": "SELECT count(), uniqExact(event_id) FROM tidegate.events",
    "findings": "SELECT count(), uniqExact(finding_id) FROM tidegate.findings",
}


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.sqlite")
    await log.prepare()
    yield log
    await log.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=str(tmp_path), data="data")


@asynccontextmanager
async def consuming(
    settings: Settings, log: SqliteLog, registry: CollectorRegistry | None = None, bounds: Bounds = QUICK
) -> AsyncIterator[AuditConsumer]:
    registry = registry or CollectorRegistry()
    async with create_audit_consumer(settings, log, now_us, registry=registry, bounds=bounds) as consumer:
        yield consumer


async def counted(consumer: AuditConsumer) -> dict[str, int]:
    """Rows of each published view, after checking that none is there twice."""
    found = {}
    for view, sql in COUNTS.items():
        ((rows, ids),) = (await consumer.analytics.query(sql)).rows
        assert rows == ids, f"{view} shows {rows} rows for {ids} ids"
        found[view] = rows
    return found


async def one(consumer: AuditConsumer, sql: str) -> tuple[Any, ...]:
    (row,) = (await consumer.analytics.query(sql)).rows
    return row


async def test_calls_become_one_row_each_with_everything_that_both_events_said(
    settings: Settings, log: SqliteLog
) -> None:
    request = requested()
    await log.append([(chain := Chain("w")).seal(request), chain.seal(completed(request))])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(2)
        assert await counted(consumer) == {"calls": 1, "events": 2, "findings": 0}
        assert await one(
            consumer,
            "SELECT call_id, status, decision, reason, rules, labels, groups, login, arguments, result, policy_us, "
            "upstream_us, total_us, arguments_bytes, result_bytes, findings.rule, masked, arguments_fingerprints, "
            "result_fingerprints, toUnixTimestamp64Micro(requested_at), toUnixTimestamp64Micro(completed_at) "
            "FROM tidegate.calls",
        ) == (
            *(request.call_id, "ok", "allow", "permitted", ["allow-git"], ["read-only"], ["eng", "oncall"]),
            *(
                "alice@example.com",
                '{"path": "/a"}',
                '{"content": []}',
                20,
                4_000,
                5_000,
                20,
                300,
                ["card", "token"],
                1,
            ),
            *(["f1", "f2"], ["f3"], request.requested_us, request.requested_us + 5_000),
        )


async def test_the_stored_bytes_come_back_exactly_with_their_hash_and_chain(settings: Settings, log: SqliteLog) -> None:
    records = calls(3)
    await log.append(records)
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(6)
        rows = (
            await consumer.analytics.query(
                "SELECT hex(raw), hash = lower(hex(SHA256(raw))), seq, writer, "
                "prev = lagInFrame(hash) OVER (PARTITION BY writer ORDER BY seq) FROM tidegate.events ORDER BY seq"
            )
        ).rows
        assert [bytes.fromhex(row[0]) for row in rows] == [record.value for record in records]
        assert [row[1:] for row in rows] == [(1, seq, "edge-1.spool.1", 1) for seq in range(1, 7)]


async def test_refusals_open_calls_and_lost_ones_each_show_their_status(settings: Settings, log: SqliteLog) -> None:
    chain = Chain("w")
    hour_ago = now_us() - 3_600_000_000
    lost = requested("lost", hour_ago)
    late = requested("late", hour_ago)
    events = [
        requested("denied", decision="deny", reason="tool-not-granted"),
        requested("asked", decision="ask"),
        requested("limited", decision="limited", stage="limit"),
        requested("open"),
        requested("overdue", hour_ago),
        *(lost, abandoned(lost), late, abandoned(late), completed(late, outcome="tool-error")),
        completed(requested("early")),  # its request is still in another writer's spool
    ]
    await log.append([chain.seal(event) for event in events])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(len(events))
        rows = (await consumer.analytics.query("SELECT call_id, status FROM tidegate.calls")).rows
        assert dict(rows) == {
            "denied": "denied",
            "asked": "asked",
            "limited": "limited",
            "open": "pending",
            "overdue": "unknown",
            "lost": "unknown",
            "late": "tool-error",
            "early": "ok",
        }


async def test_every_kind_of_event_is_kept_and_can_be_filtered(settings: Settings, log: SqliteLog) -> None:
    chain = Chain("w")
    common: dict[str, Any] = {"time_us": now_us(), "tenant": "acme", "region": "eu"}
    opened = SessionOpened(
        id=uuid7(), session_id="s", subject_id="u", agent="a", protocol="2025-11-25", edge="e", **common
    )
    defined = ToolDefined(id=uuid7(), server="git", tool="git_log", digest="d", **common)
    imposed = QuarantineImposed(
        id=uuid7(), quarantine_id="q", scope="session", value="s", reason="exfiltration", actor="detector", **common
    )
    await log.append([chain.seal(event) for event in (opened, defined, imposed)])
    await log.append([Record("detections", b"acme|5ub|claude-code", finding())])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(4)
        rows = (
            await consumer.analytics.query(
                "SELECT type, session_id, server, target, reason, topic FROM tidegate.events ORDER BY type"
            )
        ).rows
        assert rows == [
            ("finding.raised.v1", "se55ion", "", "", "exfiltration", "detections"),
            ("quarantine.imposed.v1", "", "", "", "exfiltration", "control"),
            ("session.opened.v1", "s", "", "", "", "sessions"),
            ("tool.defined.v1", "", "git", "git_log", "", "catalog"),
        ]
        assert await one(consumer, "SELECT finding_id, severity, title, call_ids FROM tidegate.findings") == (
            *("f1nd1ng", "high", "Exfiltration", ["c1", "c2"]),
        )
        (ocsf,) = await one(consumer, "SELECT ocsf FROM tidegate.findings")
        assert json.loads(ocsf)["class_uid"] == 2004


async def test_a_replay_from_the_start_changes_no_count(settings: Settings, log: SqliteLog) -> None:
    await log.append([*calls(200), Record("detections", b"k", finding())])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(401)
        before = await counted(consumer)
    await log.settle("audit-consumer", {"calls": 0, "detections": 0})
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(401)
        assert consumer.counts.skipped == 401
        assert await counted(consumer) == before == {"calls": 200, "events": 401, "findings": 1}


async def test_the_same_events_at_new_offsets_change_no_count(settings: Settings, log: SqliteLog) -> None:
    records = [*calls(50), Record("detections", b"k", finding())]
    await log.append(records)
    await log.append(records)
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(202)
        assert await counted(consumer) == {"calls": 50, "events": 101, "findings": 1}


async def test_an_event_with_a_used_id_does_not_replace_the_first(settings: Settings, log: SqliteLog) -> None:
    first = requested("c1", reason="tool-not-granted", decision="deny")
    forged = msgspec.structs.replace(first, decision="allow", reason="permitted")
    await log.append([Chain("w").seal(first)])
    await log.append([Chain("forger").seal(forged)])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(2)
        assert await one(consumer, "SELECT decision, writer FROM tidegate.events") == ("deny", "w")


async def test_a_writer_that_wakes_up_late_doubles_nothing(settings: Settings, log: SqliteLog) -> None:
    records = calls(40)
    await log.append(records)
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(80)
        in_hand = delivered(records, first=1)[10:30]  # what a paused consumer read, under another token
        await store(consumer.analytics, open_batch(in_hand), in_hand)
        assert await counted(consumer) == {"calls": 40, "events": 80, "findings": 0}
        await consumer.analytics.execute("OPTIMIZE TABLE tidegate.events_raw FINAL")
        assert await counted(consumer) == {"calls": 40, "events": 80, "findings": 0}


class Flaky:
    """The engine, behind a connection that loses what it is told to lose."""

    def __init__(self, inner: ClickHouseAnalytics) -> None:
        self.inner = inner
        self.faults: dict[str, list[str]] = {}  # by table: "before" or "after" the insert

    async def execute(self, sql: str) -> None:
        await self.inner.execute(sql)

    async def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        return await self.inner.query(sql, parameters)

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        fault = self.faults[table].pop(0) if self.faults.get(table) else ""
        if fault == "before":
            raise AnalyticsUnavailable("the connection broke before the insert")
        if fault == "half":  # the first rows only, as when an insert of several blocks is cut off
            count = len(next(iter(columns.values()))) // 2
            await self.inner.insert(table, {name: values[:count] for name, values in columns.items()})
        else:
            await self.inner.insert(table, columns, token=token)
        if fault in ("after", "half"):
            raise AnalyticsUnavailable("the connection broke before the answer")

    async def close(self) -> None:
        await self.inner.close()


@pytest.mark.parametrize("table", ["calls_raw", "findings_raw", "events_raw"])
@pytest.mark.parametrize("fault", ["before", "after", "half"])
async def test_an_insert_of_unknown_outcome_is_finished_and_never_doubled(
    settings: Settings, log: SqliteLog, monkeypatch: pytest.MonkeyPatch, table: str, fault: str
) -> None:
    await log.append([*calls(30), *[Record("detections", b"k", finding(f"f{n}")) for n in range(4)]])
    flaky: list[Flaky] = []

    class FlakyEngine(EmbeddedEngine):
        async def __aenter__(self) -> Any:
            await super().__aenter__()
            flaky.append(Flaky(self.analytics))
            flaky[0].faults = {f"tidegate.{table}": [fault]}
            self.analytics = flaky[0]  # type: ignore[assignment]
            return self

    monkeypatch.setattr("tidegate_audit_consumer.consumer.EmbeddedEngine", FlakyEngine)
    registry = CollectorRegistry()
    async with consuming(settings, log, registry) as consumer:
        await consumer.wait_until_ingested(lambda counts: sum(counts.settled.values()) == 64)
        assert await counted(consumer) == {"calls": 30, "events": 64, "findings": 4}
        assert flaky[0].faults[f"tidegate.{table}"] == []
        assert registry.get_sample_value("tidegate_audit_retries_total", {"fault": "analytics-unavailable"}) == 1


async def test_while_clickhouse_refuses_nothing_is_dropped_and_readiness_says_what_is_awaited(
    settings: Settings, log: SqliteLog
) -> None:
    async with consuming(settings, log) as consumer:
        await log.append(calls(5))
        await consumer.wait_until_ingested(10)
        assert consumer.awaited == frozenset()
        await consumer.analytics.execute("RENAME TABLE tidegate.events_raw TO tidegate.away")
        await log.append(calls(5, writer="w2"))
        await until(lambda: consumer.awaited == {"analytics"})
        assert consumer.counts.records == 10
        await consumer.analytics.execute("RENAME TABLE tidegate.away TO tidegate.events_raw")
        await consumer.wait_until_ingested(20)
        assert consumer.awaited == frozenset()
        assert await counted(consumer) == {"calls": 10, "events": 20, "findings": 0}


async def until(holds: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


BROKEN = {
    b"\xff\xfe not json": "not-json",
    b'{"type":"call.requested.v1","id":"x"}': "wrong-shape",
    b'{"type":"call.requested.v9","id":"x","time_us":1,"tenant":"t"}': "unknown-type",
    b'{"type":"session.closed.v1","id":"x","time_us":1,"tenant":"t","region":"r","session_id":"s","subject_id":"u",'
    b'"agent":"a","cause":"deleted"}': "out-of-range",
}


async def test_what_cannot_be_read_is_buried_untouched_and_the_rest_goes_on(settings: Settings, log: SqliteLog) -> None:
    headers = (("ce_type", b"tidegate.call.requested.v1"), ("odd", b"\xff\x00"))
    good = calls(2)
    await log.append([good[0], *[Record("calls", b"k\xff", value, headers) for value in BROKEN], *good[1:]])
    registry = CollectorRegistry()
    async with consuming(settings, log, registry) as consumer:
        await consumer.wait_until_ingested(8)
        assert await counted(consumer) == {"calls": 2, "events": 4, "findings": 0}
        assert consumer.counts.settled == {Partition("calls", 0): 8}
    letters = await (await log.follow(["dead-letters"])).poll(100, 1.0)
    assert [(letter.key, letter.value, letter.headers[:2]) for letter in letters] == [
        (b"k\xff", value, headers) for value in BROKEN
    ]
    for offset, (letter, reason) in enumerate(zip(letters, BROKEN.values(), strict=True), start=1):
        added = dict(letter.headers[2:])
        assert added.pop("dlq.error.message")
        assert int(added.pop("dlq.original.time_us")) <= letter.time_us
        assert added == {
            "dlq.reason": reason.encode(),
            "dlq.original.topic": b"calls",
            "dlq.original.partition": b"0",
            "dlq.original.offset": str(offset).encode(),
        }
        assert registry.get_sample_value("tidegate_audit_dead_letters_total", {"reason": reason}) == 1


async def test_another_process_reads_what_was_ingested_and_cannot_change_it(settings: Settings, log: SqliteLog) -> None:
    await log.append(calls(3))
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(6)
        reader = open_reader(settings)
        assert (await reader.query("SELECT count() FROM calls")).rows == [(3,)]
        await reader.close()


CRASH = """
import asyncio, os, sys
from prometheus_client import CollectorRegistry
from tidegate.ids import now_us
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import create_audit_consumer
import tidegate_audit_consumer.spine as spine

async def main():
    log = SqliteLog(sys.argv[1] + "/log.sqlite")
    await log.prepare()
    async def stop_here(*given):
        if sys.argv[2] == "store":  # killed between two tables
            await given[0].insert("tidegate.calls_raw", given[1].calls)
        print("stored", flush=True)
        await asyncio.Event().wait()
    setattr(spine, sys.argv[2], stop_here)
    settings = Settings(root=sys.argv[1], data="data")
    bounds = Bounds(age_max_s=0.02)
    async with create_audit_consumer(settings, log, now_us, registry=CollectorRegistry(), bounds=bounds):
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(("killed_at", "found_stored"), [("store", 0), ("settle", 200)])
async def test_killed_while_storing_or_before_settling_each_event_is_there_once(
    settings: Settings, tmp_path: Path, killed_at: str, found_stored: int
) -> None:
    log = SqliteLog(tmp_path / "log.sqlite")
    await log.append(calls(100))
    await log.close()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CRASH, str(tmp_path), killed_at), stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"stored\n"
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    log = SqliteLog(tmp_path / "log.sqlite")
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(200)
        assert consumer.counts.skipped == found_stored, "what the killed process finished is durable and recognised"
        assert await counted(consumer) == {"calls": 100, "events": 200, "findings": 0}
    await log.close()


async def test_migrations_are_applied_once_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    async with EmbeddedEngine(tmp_path) as engine:
        assert len(await migrate(engine.analytics)) >= 3
        assert await migrate(engine.analytics) == []
        await engine.analytics.insert(
            "tidegate.migrations", {"number": [99], "name": ["0099_later.sql"], "digest": ["x"]}
        )
        with pytest.raises(Exception, match="newer than this version"):
            await migrate(engine.analytics)


async def test_metrics_count_rows_by_table_and_the_lag(settings: Settings, log: SqliteLog) -> None:
    registry = CollectorRegistry()
    await log.append(calls(2))
    async with consuming(settings, log, registry) as consumer:
        await consumer.wait_until_ingested(4)
        assert registry.get_sample_value("tidegate_audit_rows_total", {"table": "events_raw"}) == 4
        assert registry.get_sample_value("tidegate_audit_rows_total", {"table": "calls_raw"}) == 4
        assert registry.get_sample_value("tidegate_audit_lag_records") == 0
        assert (registry.get_sample_value("tidegate_audit_insert_seconds_count") or 0) >= 1


async def test_the_events_of_a_call_make_the_same_row_in_any_order_and_number(tmp_path: Path) -> None:
    request = requested("c1")
    chain = Chain("w")
    events = [chain.seal(event) for event in (request, abandoned(request), completed(request, reason="result-blocked"))]
    seen: dict[frozenset[int], tuple[Any, ...]] = {}
    async with EmbeddedEngine(tmp_path) as engine:
        await migrate(engine.analytics)
        for history in [[0, 1, 2], [2, 1, 0], [1, 0, 0], [0, 1], [2, 0, 2], [0, 2], [1, 2], [2, 1, 1], [1, 1], [1]]:
            await engine.analytics.execute("TRUNCATE TABLE tidegate.calls_raw")
            for index in history:
                columns = open_batch(delivered([events[index]])).calls
                await engine.analytics.insert("tidegate.calls_raw", columns)
            (row,) = (await engine.analytics.query("SELECT * FROM tidegate.calls")).rows
            await engine.analytics.execute("OPTIMIZE TABLE tidegate.calls_raw FINAL")
            assert (await engine.analytics.query("SELECT * FROM tidegate.calls")).rows == [row]
            assert seen.setdefault(frozenset(history), row) == row
            reason = (await engine.analytics.query("SELECT reason FROM tidegate.calls")).rows
            assert reason == [("result-blocked" if 2 in history else "permitted",)]


class Stalled:
    """A connection whose inserts wait until they are let go: a consumer that was paused in the middle of one."""

    def __init__(self, inner: ClickHouseAnalytics) -> None:
        self.inner = inner
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        if table == "tidegate.events_raw":
            self.reached.set()
            await self.let_go.wait()
        await self.inner.insert(table, columns, token=token)


@pytest.mark.kafka
async def test_on_kafka_a_consumer_that_stalls_while_another_takes_its_partitions_doubles_and_loses_nothing(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = KafkaSettings(prefix=f"audit{uuid7()}.", partitions=4, replication=1, min_insync=1)
    stalled: list[Stalled] = []

    def opening(url: str, password: str) -> Any:
        opened = open_server(url, password)
        if not stalled:
            stalled.append(Stalled(opened))
            return stalled[0]
        return opened

    monkeypatch.setattr("tidegate_audit_consumer.consumer.open_server", opening)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(EmbeddedEngine(tmp_path))
        settings = Settings(
            log=f"kafka://{kafka.bootstrap}",
            kafka=topics,
            analytics=f"clickhouse://writer@127.0.0.1:{engine.address.port}/tidegate",
            analytics_password=(tmp_path / "analytics-writer.token").read_text(),
        )
        logs = [KafkaLog(settings, writer_id=f"w{number}") for number in range(2)]
        for log in logs:
            stack.push_async_callback(log.close)
        await logs[0].prepare()
        records = [record._replace(key=b"k%d" % (number // 2 % 8)) for number, record in enumerate(calls(200))]
        await logs[0].append(records)
        first = await stack.enter_async_context(consuming(settings, logs[0]))
        await asyncio.wait_for(stalled[0].reached.wait(), 30)
        second = await stack.enter_async_context(consuming(settings, logs[1]))
        await second.wait_until_ingested(1, 30)  # it has taken partitions over and works on them
        stalled[0].let_go.set()
        await logs[0].append(calls(50, writer="later"))
        async with asyncio.timeout(30):
            while (await counted(second)) != {"calls": 250, "events": 500, "findings": 0}:
                await asyncio.sleep(0.05)
        await first.wait_until_ingested(1, 30)
        await second.analytics.execute("OPTIMIZE TABLE tidegate.events_raw FINAL")
        assert await counted(first) == {"calls": 250, "events": 500, "findings": 0}
