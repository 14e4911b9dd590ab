"""Calls for other tools: exported from a real ClickHouse engine, and published on the topic `ocsf`."""

import asyncio
import json
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.parts.audit_events import abandoned, completed, requested
from tests.parts.kafka import Kafka
from tests.parts.ocsf_schemas import problems
from typer.testing import CliRunner

from tidegate.analytics.clickhouse import open_reader
from tidegate.analytics.port import Answer
from tidegate.chain import Chain
from tidegate.errors import LogUnavailable
from tidegate.events import CallRequested, RequestRefused, Sealed
from tidegate.ids import now_us, uuid7
from tidegate.log.kafka import KafkaLog
from tidegate.log.port import Delivered, EventLog, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Audit, Settings
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings_file import load_settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import AuditConsumer, create_audit_consumer
from tidegate_audit_consumer.dead_letters import dead_letter
from tidegate_audit_consumer.reading import Unreadable
from tidegate_audit_consumer.siem import open_siem
from tidegate_cli import export_pages
from tidegate_cli.export_pages import Span, pages
from tidegate_cli.main import app

QUICK = Bounds(age_max_s=0.02, idle_s=0.05, backoff_min_s=0.01, backoff_max_s=0.05)
SECRET = "sk-4242424242424242"
HOUR_US = 3_600_000_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\naudit: {ocsf_topic: true}\n")
    (tmp_path / "data").mkdir()
    return load_settings(tmp_path / "tidegate.yaml")


@pytest.fixture
async def log(settings: Settings) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    yield log
    await log.close()


@asynccontextmanager
async def consuming(settings: Settings, log: SqliteLog) -> AsyncIterator[AuditConsumer]:
    async with create_audit_consumer(settings, log, now_us, registry=CollectorRegistry(), bounds=QUICK) as consumer:
        yield consumer


async def tidegate(settings: Settings, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command as a process of its own, beside the one that owns log and engine."""
    command = [str(Path(sys.executable).with_name("tidegate")), "export", *words]
    environment = {"PATH": "/usr/bin:/bin", "HOME": settings.root, "COLUMNS": "300"}
    return await asyncio.to_thread(
        subprocess.run, command, cwd=settings.root, env=environment, capture_output=True, text=True, timeout=60
    )


async def export(settings: Settings, *words: str) -> str:
    """What the command printed on stdout; here a thread of its own does for a process."""
    command = ["export", *words, "--config", f"{settings.root}/tidegate.yaml"]
    made = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert made.exit_code == 0, made.output
    return made.stdout


async def lines(settings: Settings, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await export(settings, *words)).splitlines()]


def kept_as(capture: str, call_id: str, at_us: int, **others: Any) -> CallRequested:
    """A request under this capture policy. What the policy masked or left out is not in the sealed part."""
    kept = {"full": f'{{"key": "{SECRET}"}}', "masked": '{"key": "***"}'}.get(capture, "null")
    sealed = Sealed(subject="alice", login="alice@example.com", arguments=msgspec.Raw(kept.encode()))
    return requested(call_id, at_us, capture=capture, sealed=sealed, **others)


def day(now: int) -> list[Record]:
    """Calls of one day, two of them long ago."""
    chain = Chain("edge-1.spool.1")
    masked = kept_as("masked", "masked", now - 4 * HOUR_US)
    digest = kept_as("digest", "digest", now - 3 * HOUR_US, server="wiki", target="search")
    lost = kept_as("none", "lost", now - 2 * HOUR_US)
    events = [
        *(kept_as("masked", "old", now - 900 * HOUR_US), masked, completed(masked)),
        *(digest, completed(digest, outcome="tool-error", capture="digest", sealed=Sealed())),
        *(lost, abandoned(lost)),
        kept_as("masked", "denied", now - HOUR_US, decision="deny", reason="tool-not-granted", message="a=b|c\nd"),
    ]
    return [chain.seal(event) for event in events]


async def test_calls_come_out_in_each_format_as_the_options_ask(settings: Settings, log: SqliteLog) -> None:
    await log.append(day(now_us()))
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(8)

        objects = await lines(settings, "--since", "1d", "--format", "ocsf")
        assert [problems(one) for one in objects] == [[]] * 4
        assert [one["status_code"] for one in objects] == ["ok", "tool-error", "unknown", "denied"]
        assert {one["actor"]["user"]["name"] for one in objects} == {"alice@example.com"}

        columns = await lines(settings, "--since", "50d", "--format", "jsonl")
        assert [one["call_id"] for one in columns] == ["old", "masked", "digest", "lost", "denied"]
        assert columns[1]["arguments"] == {"key": "***"}
        assert columns[1]["findings"][0]["rule"] == "card"
        assert [one["arguments"] for one in columns[2:4]] == [None, None]

        cef = (await export(settings, "--since", "1d", "--format", "cef", "--decision", "deny")).splitlines()
        assert len(cef) == 1
        assert r"msg=a\=b|c\nd" in cef[0]

        narrow = await lines(settings, "--since", "1d", "--until", "150m", "--server", "wiki", "--format", "jsonl")
        assert [one["call_id"] for one in narrow] == ["digest"]


async def test_what_the_capture_policy_did_not_keep_is_never_printed(settings: Settings, log: SqliteLog) -> None:
    now = now_us()
    tampered = [  # a writer that says one thing and does the other
        msgspec.structs.replace(kept_as("full", f"c{number}", now - HOUR_US), capture=capture)
        for number, capture in enumerate(("digest", "none"))
    ]
    whole = kept_as("full", "whole", now - HOUR_US)
    chain = Chain("w")
    await log.append([chain.seal(event) for event in (*tampered, whole)])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(3)
        columns = {one["call_id"]: one for one in await lines(settings, "--since", "1d", "--format", "jsonl")}
        assert [columns[call]["arguments"] for call in ("c0", "c1")] == [None, None]
        assert columns["whole"]["arguments"] == {"key": SECRET}, "the policy keeps all of this one"
        for form in ("ocsf", "cef"):
            assert SECRET not in (await export(settings, "--since", "1d", "--format", form))
        for form in ("ocsf", "cef", "jsonl"):
            bare = await export(settings, "--since", "1d", "--format", form, "--no-personal")
            assert bare.count("\n") == 3
            assert SECRET not in bare
            assert "alice" not in bare


async def test_a_file_appears_whole_and_is_its_owners_alone(settings: Settings, log: SqliteLog) -> None:
    await log.append(day(now_us()))
    target = Path(settings.root) / "calls.jsonl"
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(8)
        made = await tidegate(settings, "--since", "1d", "--format", "jsonl", "--output", str(target))
        assert made.returncode == 0, made.stderr
        assert made.stdout == ""
        assert "4 calls" in made.stderr
        assert len(target.read_text().splitlines()) == 4
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    before = target.read_text()
    failed = await tidegate(settings, "--since", "1d", "--format", "jsonl", "--output", str(target))
    assert failed.returncode == 1
    assert "tidegate up" in failed.stderr
    assert target.read_text() == before
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".calls")] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "yesterday"), "--since yesterday: give an age"),
        (("--since", "1h", "--until", "2h"), "--until is not after --since"),
        (("--since", "1h", "--format", "leef"), "ocsf"),
        (("--since", "1h", "--output", "nowhere/calls"), "a directory of yours"),
        ((), "--since"),
    ],
)
async def test_wrong_uses_say_what_to_give(settings: Settings, words: tuple[str, ...], said: str) -> None:
    made = await tidegate(settings, *words)
    assert made.returncode == 2, made.stderr
    assert said in made.stderr
    assert "Traceback" not in made.stderr


class Counting:
    """A connection that remembers how many rows an answer had at most."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.rows_max = 0
        self.asked = 0

    async def query(self, sql: str, parameters: Any = None) -> Answer:
        answer: Answer = await self.inner.query(sql, parameters)
        self.rows_max = max(self.rows_max, len(answer.rows))
        self.asked += 1
        return answer


async def test_every_call_comes_out_once_however_small_the_pages_are(
    settings: Settings, log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_pages, "PAGE_ROWS", 7)
    now = now_us()
    chain = Chain("w")
    spreads = {"in one moment": 0, "over two months": 36 * HOUR_US}
    for tenant, spread in spreads.items():
        requests = [requested(f"c{at:02}", now - HOUR_US - at * spread, tenant=tenant) for at in range(40)]
        await log.append([chain.seal(one) for one in requests])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(80)
        reader = open_reader(settings)
        for tenant in spreads:
            counting = Counting(reader)
            span = Span(since_us=now - 3 * 8766 * HOUR_US, until_us=now, tenant=tenant)
            found = [row async for page in pages(counting, span) for row in page.rows]  # type: ignore[arg-type]
            assert sorted(row.columns["call_id"] for row in found) == [f"c{at:02}" for at in range(40)], tenant
            assert [row.requested_us for row in found] == sorted(row.requested_us for row in found)
            assert counting.rows_max <= 7
            assert counting.asked < 80
        await reader.close()


def refused() -> RequestRefused:
    return RequestRefused(
        id=uuid7(), time_us=now_us(), tenant="acme", region="eu", subject_id="5ub", agent="claude-code",
        session_id="s", edge="edge-1", method="tools/call", reason="too-many-calls", message="Slow down.", status=429,
    )  # fmt: skip


async def topic(log: EventLog, count: int) -> list[Delivered]:
    """Objects of the topic `ocsf`, so many of them different. Raises TimeoutError."""
    subscription = await log.follow(["ocsf"])
    found: list[Delivered] = []
    try:
        async with asyncio.timeout(30):
            while len({record.key for record in found}) < count:
                found += await subscription.poll(1_000, 1.0)
    finally:
        await subscription.close()
    return found


async def test_the_topic_tells_every_end_of_a_call_once_as_the_export_does(settings: Settings, log: SqliteLog) -> None:
    chain = Chain("w")
    await log.append([*day(now_us()), chain.seal(refused()), Record("calls", b"k", b"no event")])
    async with consuming(settings, log) as consumer:
        published = [json.loads(record.value or b"") for record in await topic(log, 5)]
        await consumer.wait_until_ingested(10)
        exported = {one["metadata"]["uid"]: one for one in await lines(settings, "--since", "1d")}
    assert [problems(one) for one in published] == [[]] * 5
    by_uid = {one["metadata"]["uid"]: one for one in published}
    assert sorted(one["status_code"] for one in by_uid.values()) == ["denied", "ok", "refused", "tool-error", "unknown"]
    assert exported.keys() <= by_uid.keys()
    for uid, one in exported.items():
        for member in ("class_uid", "status_code", "action_id", "disposition_id", "time", "api", "resources"):
            if member != "api":
                assert by_uid[uid][member] == one[member], member
        assert by_uid[uid]["api"]["request"]["uid"] == one["api"]["request"]["uid"]
    text = json.dumps(published)
    assert "alice" not in text
    assert "***" not in text


@asynccontextmanager
async def publishing(log: EventLog) -> AsyncIterator[None]:
    siem, subscription = await open_siem(log, QUICK, CollectorRegistry())
    running = asyncio.create_task(siem.run())
    yield
    siem.stop()
    await running
    await subscription.close()


async def test_the_topic_continues_after_a_restart_and_its_key_is_the_events_id(log: SqliteLog) -> None:
    chain = Chain("w")
    first, second = (requested(decision="deny") for _ in range(2))
    await log.append([chain.seal(first)])
    async with publishing(log):
        await topic(log, 1)
    await log.append([chain.seal(second)])
    async with publishing(log):
        found = await topic(log, 2)
    assert [record.key.decode() for record in found] == [first.id, second.id]


async def test_dead_letters_that_this_version_can_read_reach_the_topic_once(log: SqliteLog) -> None:
    late, chain = requested(decision="deny"), Chain("w")
    buried = [chain.seal(late), Record("calls", b"k", b"never to be read")]
    positions = [Delivered(one.topic, 0, 900 + at, one.key, one.value, (), now_us()) for at, one in enumerate(buried)]
    await log.append([dead_letter(Unreadable(one, "unknown-type", "a newer version's")) for one in positions])
    async with publishing(log):
        (found,) = await topic(log, 1)
    assert found.key.decode() == late.id
    after = chain.seal(requested(decision="deny"))
    await log.append([after])
    async with publishing(log):
        assert len(await topic(log, 2)) == 2, "the letter was told before, and is not told again"


async def test_no_event_is_so_large_that_the_topic_stands_still(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chain, large = Chain("w"), requested(decision="deny", target="t" * 400_000)
    others = [requested(decision="deny") for _ in range(2)]
    await log.append([chain.seal(event) for event in (others[0], large, others[1])])
    async with publishing(log):
        found = await topic(log, 3)
    assert [record.key.decode() for record in found] == [others[0].id, large.id, others[1].id]
    assert max(len(record.value or b"") for record in found) < 32_000
    monkeypatch.setattr("tidegate_audit_consumer.siem.EVENT_BYTES_MAX", 5_000)  # as if clipping were not enough
    after = requested(decision="deny")
    await log.append([chain.seal(event) for event in (requested(decision="deny", target="t" * 400_000), after)])
    async with publishing(log):
        assert [record.key.decode() for record in await topic(log, 4)][3:] == [after.id]
    assert "too large for the topic ocsf" in caplog.text


class Failing:
    """The log, of which some appends fail: before or after they are stored."""

    def __init__(self, inner: SqliteLog, faults: list[str]) -> None:
        self.inner = inner
        self.faults = faults
        self.follow = inner.follow

    async def append(self, records: Sequence[Record]) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        if fault != "before":
            await self.inner.append(records)
        if fault:
            raise LogUnavailable("the broker went away")


async def test_a_log_that_fails_loses_no_object_and_repeats_only_whole_ones(log: SqliteLog) -> None:
    events = [requested(decision="deny") for _ in range(5)]
    chain = Chain("w")
    await log.append([chain.seal(event) for event in events])
    async with publishing(Failing(log, ["before", "after"])):  # type: ignore[arg-type]
        await topic(log, 5)
    found = await topic(log, 5)
    assert [record.key.decode() for record in found] == [event.id for event in events] * 2
    assert len({record.value for record in found}) == 5


@pytest.mark.kafka
async def test_publishers_that_share_the_partitions_tell_every_call_over_a_rebalance(kafka: Kafka) -> None:
    topics = KafkaSettings(prefix=f"t{uuid7()[-8:]}.", partitions=3, replication=1, min_insync=1)
    log = KafkaLog(Settings(log=f"kafka://{kafka.bootstrap}", kafka=topics))
    await log.prepare()
    chain = Chain("w")
    events = [requested(decision="deny", agent=f"agent-{at}") for at in range(300)]
    records = [chain.seal(event) for event in events]
    try:
        await log.append(records[:100])
        async with publishing(log):
            await topic(log, 100)
            async with publishing(log):
                await log.append(records[100:200])
                await topic(log, 200)
            await log.append(records[200:])
            found = await topic(log, 300)
    finally:
        await log.close()
    assert {record.key.decode() for record in found} == {event.id for event in events}


async def test_without_the_setting_there_is_no_object_and_no_group(settings: Settings, log: SqliteLog) -> None:
    off = msgspec.structs.replace(settings, audit=Audit())
    await log.append([Chain("w").seal(requested(decision="deny"))])
    async with consuming(off, log) as consumer:
        await consumer.wait_until_ingested(1)
    subscription = await log.follow(["ocsf"])
    assert await subscription.poll(10, 0.0) == []
    await subscription.close()
