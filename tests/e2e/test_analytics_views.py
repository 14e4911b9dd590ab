"""Views and counts over a real engine: each call counted once whatever is delivered again, and every question of the
page answered with what is known.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.parts.audit_events import abandoned, calls, completed, delivered, requested
from tests.parts.known_day import Day

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_reader
from tidegate.chain import Chain
from tidegate.ids import now_us
from tidegate.log.port import Record
from tidegate.settings import Settings
from tidegate_audit_consumer.migrate import migrate
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

PAGE = Path(__file__).parents[2] / "docs" / "analytics.md"
QUESTION = re.compile(r"^### (\d+)\. (.*?)\n\n```sql\n(.*?)```", re.MULTILINE | re.DOTALL)
QUESTIONS = {int(number): sql for number, _, sql in QUESTION.findall(PAGE.read_text())}
HOUR_US = 3_600_000_000
FINAL = "SELECT count(), uniqExact(call_id), sum(result_bytes) FROM tidegate.calls WHERE status NOT IN ('pending')"
COUNTED = "SELECT sum(calls), sum(result_bytes) FROM tidegate.calls_by_{}"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with EmbeddedEngine(tmp_path) as engine:
        await migrate(engine.analytics)
        yield engine


@pytest.fixture
def analytics(engine: EmbeddedEngine) -> ClickHouseAnalytics:
    return engine.analytics


async def insert(analytics: ClickHouseAnalytics, records: list[Record], first: int = 0) -> None:
    batch = delivered(records, first)
    await store(analytics, open_batch(batch), batch)


async def set_grace(analytics: ClickHouseAnalytics, seconds: float) -> None:
    await analytics.insert("tidegate.parameters", {"name": ["rollup_grace_s"], "value": [seconds]})


async def refresh(analytics: ClickHouseAnalytics) -> None:
    """What the engine does by itself every few minutes."""
    for view in ("minutes_refresh", "hours_refresh"):
        await analytics.execute(f"SYSTEM REFRESH VIEW tidegate.{view}")
        await analytics.execute(f"SYSTEM WAIT VIEW tidegate.{view}")


async def one(analytics: ClickHouseAnalytics, sql: str) -> tuple[Any, ...]:
    (row,) = (await analytics.query(sql)).rows
    return row


async def counted(analytics: ClickHouseAnalytics) -> int:
    """Calls with a last word, after checking that calls, minutes and hours agree and that none is there twice."""
    rows, ids, size = await one(analytics, FINAL)
    assert rows == ids
    assert await one(analytics, COUNTED.format("minute")) == (rows, size)
    assert await one(analytics, COUNTED.format("hour")) == (rows, size)
    return int(rows)


def ended(call_id: str, hours_ago: float, **others: Any) -> list[Record]:
    request = requested(call_id, now_us() - int(hours_ago * HOUR_US))
    chain = Chain(f"w-{call_id}")
    return [chain.seal(request), chain.seal(completed(request, **others))]


async def test_a_replay_doubles_no_count_before_or_after_the_counting(eager: ClickHouseAnalytics) -> None:
    analytics = eager
    records = [*calls(40), *ended("earlier", 3), *ended("long", 24 * 80)]
    await insert(analytics, records)
    everything = await counted(analytics)
    assert await one(analytics, "SELECT sum(calls) FROM tidegate.calls_by_hour") == (42,)
    await insert(analytics, records, first=1_000)
    assert await counted(analytics) == everything
    await refresh(analytics)
    await insert(analytics, records, first=2_000)
    await refresh(analytics)
    assert await one(analytics, "SELECT sum(calls) FROM tidegate.calls_by_hour") == (42,)


@pytest.fixture
async def eager(analytics: ClickHouseAnalytics) -> ClickHouseAnalytics:
    """The engine, told to count a minute as soon as it is quiet, and to do so when the test says."""
    for view in ("minutes_refresh", "hours_refresh"):
        await analytics.execute(f"ALTER TABLE tidegate.{view} MODIFY REFRESH EVERY 1 YEAR APPEND")
    await set_grace(analytics, 0)
    return analytics


async def test_what_arrives_after_the_counting_is_counted_at_once(eager: ClickHouseAnalytics) -> None:
    analytics = eager
    await insert(analytics, ended("first", 3))
    await refresh(analytics)
    assert await one(analytics, "SELECT count() FROM tidegate.hours_raw") == (1,)
    assert await counted(analytics) == 1
    await insert(analytics, ended("late", 3), first=10)
    assert await counted(analytics) == 2
    await refresh(analytics)
    assert await counted(analytics) == 2
    assert await one(analytics, "SELECT count() FROM tidegate.hours_raw FINAL") == (1,)


async def test_counted_rows_are_what_is_read_while_nothing_was_inserted_since(
    eager: ClickHouseAnalytics,
) -> None:
    analytics = eager
    await insert(analytics, [*ended("a", 3), *ended("b", 3)])
    await refresh(analytics)
    await analytics.execute("TRUNCATE TABLE tidegate.calls_raw")
    assert await one(analytics, "SELECT sum(calls) FROM tidegate.calls_by_hour") == (2,)
    assert await one(analytics, "SELECT sum(calls) FROM tidegate.calls_by_minute") == (2,)


async def test_a_call_is_counted_under_its_last_status_alone(eager: ClickHouseAnalytics) -> None:
    analytics = eager
    request = requested("c1", now_us() - 3 * HOUR_US)
    chain = Chain("w")
    statuses = "SELECT groupArray((status, calls)) FROM tidegate.calls_by_hour"
    history = (
        (request, []),
        (abandoned(request), [("unknown", 1)]),
        (completed(request, outcome="tool-error"), [("tool-error", 1)]),
        (abandoned(request), [("tool-error", 1)]),
    )
    for number, (event, expected) in enumerate(history):
        await insert(analytics, [chain.seal(event)], first=number)
        assert await one(analytics, statuses) == (expected,)
        await refresh(analytics)
        assert await one(analytics, statuses) == (expected,)


async def test_hours_older_than_the_minutes_are_counted_from_the_calls(eager: ClickHouseAnalytics) -> None:
    analytics = eager
    await insert(analytics, ended("long ago", 24 * 200))
    assert await one(analytics, COUNTED.format("minute")) == (0, 0)
    assert await one(analytics, COUNTED.format("hour")) == (1, 300)
    await refresh(analytics)
    await insert(analytics, ended("as long ago", 24 * 200), first=10)
    assert await one(analytics, COUNTED.format("hour")) == (2, 600)


async def test_counts_thrown_away_come_back_from_the_calls(eager: ClickHouseAnalytics) -> None:
    analytics = eager
    await insert(analytics, [*calls(20), *ended("x", 5), *ended("y", 30)])
    await refresh(analytics)
    for table in ("minutes_raw", "hours_raw"):
        await analytics.execute(f"TRUNCATE TABLE tidegate.{table}")
    assert await counted(analytics) == 22
    await refresh(analytics)
    assert await counted(analytics) == 22
    assert await one(analytics, "SELECT count() FROM tidegate.hours_raw") == (2,)


async def test_an_insert_that_is_repeated_marks_again_although_its_rows_are_known(
    analytics: ClickHouseAnalytics,
) -> None:
    """The connection may break between the rows and their mark; the same batch under its token then brings the mark."""
    batch = delivered(ended("x", 3))
    await store(analytics, open_batch(batch), batch)
    for table in ("minutes_marks", "hours_marks"):
        await analytics.execute(f"TRUNCATE TABLE tidegate.{table}")
    await store(analytics, open_batch(batch), batch)
    assert await one(analytics, "SELECT count() FROM tidegate.calls_raw") == (2,)
    assert await counted(analytics) == 1


STEPS = st.lists(st.sampled_from(["0", "1", "2", "3", "all", "refresh", "optimize"]), min_size=1, max_size=8)


@hypothesis_settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=STEPS)
async def test_in_any_order_of_deliveries_and_countings_each_call_counts_once(
    eager: ClickHouseAnalytics, steps: list[str]
) -> None:
    analytics = eager
    for table in ("calls_raw", "minutes_raw", "hours_raw", "minutes_marks", "hours_marks"):
        await analytics.execute(f"TRUNCATE TABLE tidegate.{table}")
    batches = [ended(str(number), number / 2, result_bytes=10**number) for number in range(4)]
    seen: set[str] = set()
    for number, step in enumerate(steps):
        if step == "refresh":
            await refresh(analytics)
        elif step == "optimize":
            await analytics.execute("OPTIMIZE TABLE tidegate.calls_raw FINAL")
        else:
            chosen = [0, 1, 2, 3] if step == "all" else [int(step)]
            seen |= {str(one) for one in chosen}
            await insert(analytics, [record for one in chosen for record in batches[one]], first=number * 100)
        assert await counted(analytics) == len(seen)


async def test_no_reader_ever_sees_a_call_twice_or_a_count_go_back(
    engine: EmbeddedEngine, eager: ClickHouseAnalytics, tmp_path: Path
) -> None:
    """While calls are inserted, inserted again and counted, all at once."""
    await set_grace(eager, 1)  # longer than an insert here: what is being inserted now is not counted yet
    batches = [ended(str(number), 1 + number / 60) for number in range(20)]
    inserted = 0

    async def write() -> None:
        nonlocal inserted
        for number, batch in enumerate(batches):
            inserted += 1
            await insert(eager, batch, first=number * 10)
            await insert(eager, batch, first=1_000 + number * 10)
            for view in ("minutes_refresh", "hours_refresh"):
                await eager.execute(f"SYSTEM REFRESH VIEW tidegate.{view}")

    reader = open_reader(Settings(root=str(tmp_path), data="."))
    try:
        seen: dict[str, list[int]] = {"minute": [0], "hour": [0]}
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            writing = group.create_task(write())
            while not writing.done():
                for grain, counts in seen.items():
                    ((count, _),) = (await reader.query(COUNTED.format(grain))).rows
                    assert counts[-1] <= count <= inserted
                    counts.append(count)
    finally:
        await reader.close()
    assert len(set(seen["minute"])) > 3, "the reader looked while something happened"
    assert await counted(eager) == len(batches)


KNOWN: dict[int, list[tuple[Any, ...]]] = {
    1: [
        *(("ok", 9), ("denied", 3), ("asked", 1), ("blocked", 1), ("limited", 1), ("pending", 1), ("timeout", 1)),
        *(("tool-error", 1), ("unknown", 1)),
    ],
    2: [
        ("git", "git_log", 7, 5, 1, 0),
        ("pay", "send_payment", 5, 2, 1, 2),
        ("files", "read_file", 4, 2, 0, 2),
        ("files", "write_file", 2, 0, 0, 2),
    ],
    3: [("claude-code", 10, 1, 3, 4, 1, 1), ("cursor", 5, 3, 2, 3, 1, 1), ("night-batch", 4, 2, 1, 1, 1, 1)],
    4: [("cursor", 5), ("night-batch", 4)],
    5: [
        ("bob@example.com", "cursor", "files/read_file", "denied", "tool-not-granted", 2),
        ("alice@example.com", "claude-code", "files/write_file", "blocked", "arguments-blocked", 1),
        ("bob@example.com", "cursor", "files/write_file", "denied", "forbidden", 1),
        ("carol@example.com", "night-batch", "pay/send_payment", "asked", "approval-needed", 1),
        ("carol@example.com", "night-batch", "pay/send_payment", "limited", "rate-limit", 1),
    ],
    6: [("ask-pay", "ask", 1), ("forbid-write", "deny", 1)],
    7: [("files", "read_file", 1, 2)],
    8: [("s1", "alice@example.com", 1)],
    9: [("read-1", "out-1", "pay", 1)],
    10: [
        ("card", "critical", "arguments", "block", "files", 1, 2),
        ("token", "medium", "result", "mask", "files", 1, 1),
    ],
    11: [("exfiltration", "high", "s1", ["out-1"])],
    12: [
        *(("files/read_file", "deny", "denied"), ("files/read_file", "deny", "denied")),
        *(("files/write_file", "deny", "denied"), ("git/git_log", "allow", "tool-error")),
        *(("git/git_log", "allow", "unknown"), ("git/git_log", "allow", "pending")),
    ],
    14: [("pay", 3, 1, 33.3), ("git", 7, 2, 28.6), ("files", 3, 0, 0.0)],
    15: [("lost-1", "bob@example.com", "git/git_log", "edge-1")],
    16: [("claude-code", "files", 300, 100_000, 1), ("night-batch", "pay", 5_300, 1_000, 0)],
    17: [("pay", "send_payment", 1, "d2")],
    18: [("git", "git_blame")],
    19: [("edge-1", 3), ("edge-2", 2)],
    20: [("broken", 1, 10, 2), ("unchecked", 1, 5, 0), ("whole", 2, 30, 0)],
    21: [("5ub-bob", "pay/send_payment", 2, 1, 180)],
    22: [("git/git_log", "allow", ["no-log"], 2, 1)],
}


async def sealed(analytics: ClickHouseAnalytics) -> None:
    """Four roots: two found whole, one broken, one not compared yet."""
    now, count = now_us(), 4
    await analytics.insert(
        "tidegate.roots",
        {
            "sealer": ["s"] * count,
            "number": list(range(1, count + 1)),
            "event_id": [f"r{number}" for number in range(count)],
            "sealed_at": [now - HOUR_US] * count,
            "events": [10, 20, 10, 5],
        },
    )
    await analytics.insert(
        "tidegate.checks",
        {
            "sealer": ["s"] * 3,
            "number": [1, 2, 3],
            "event_id": ["c1", "c2", "c3"],
            "checked_at": [now] * 3,
            "verdict": ["whole", "whole", "broken"],
            "wrong": [0, 0, 2],
        },
    )


async def test_the_questions_have_the_answers_that_are_known(
    engine: EmbeddedEngine, analytics: ClickHouseAnalytics, tmp_path: Path
) -> None:
    await insert(analytics, Day(now_us()).records())
    await sealed(analytics)
    reader = open_reader(Settings(root=str(tmp_path), data="."))
    try:
        answers = {number: (await reader.query(sql)).rows for number, sql in QUESTIONS.items()}
    finally:
        await reader.close()
    assert sorted(answers) == list(range(1, 23))
    for number, expected in KNOWN.items():
        found = answers[number][: len(expected)] if number == 16 else answers[number]
        assert found == expected, f"question {number}"
    ((server, target, _, completed_calls, total_ms, upstream_ms, policy_us),) = answers[13]
    assert (server, target, policy_us) == ("pay", "send_payment", 20)
    assert completed_calls in (1, 2, 3)  # of one hour: the day may lie across two
    assert (total_ms, upstream_ms) == (pytest.approx(5_000, rel=0.02), pytest.approx(4_500, rel=0.02))


async def test_the_parts_of_each_view_add_up_to_the_calls(analytics: ClickHouseAnalytics) -> None:
    await insert(analytics, Day(now_us()).records())
    for view in ("tool_usage", "agents", "servers"):
        row = await one(
            analytics, f"SELECT sum(calls), sum(ok) + sum(failed) + sum(refused) + sum(lost) FROM tidegate.{view}"
        )
        assert row == (19, 19), view
    assert await one(analytics, "SELECT sum(calls) FROM tidegate.data_volume") == (19,)
    assert await one(analytics, "SELECT sum(completed) FROM tidegate.latency") == (13,)
    assert await one(analytics, "SELECT count() FROM tidegate.denials") == (6,)


async def test_quantiles_are_within_one_per_cent_of_the_exact_ones(analytics: ClickHouseAnalytics) -> None:
    records = []
    at = now_us() - 3 * HOUR_US
    chain = Chain("w")
    for number in range(1, 1_001):
        request = requested(f"c{number}", at)
        records += [chain.seal(request), chain.seal(completed(request, total_us=number * number * 7))]
    await insert(analytics, records)
    (found,) = (await analytics.query("SELECT total_median_us, total_p95_us, total_p99_us FROM tidegate.latency")).rows
    exact = [(number * number) * 7 for number in (500, 950, 990)]
    assert list(found) == [pytest.approx(one, rel=0.015) for one in exact]


async def test_a_question_about_an_hour_reads_that_hour_of_the_calls_alone(analytics: ClickHouseAnalytics) -> None:
    for hours in (3, 24 * 70):
        await insert(analytics, ended(f"h{hours}", hours), first=hours)
    plan = await analytics.query(
        "EXPLAIN indexes = 1 SELECT sum(calls) FROM tidegate.minutes_live WHERE minute >= now() - INTERVAL 4 HOUR"
    )
    parts = [match[1] for (line,) in plan.rows if (match := re.search(r"Parts: (\d+/\d+)", line))]
    assert parts[0] == "1/2"
