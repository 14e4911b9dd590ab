"""Dead letters: what could not be read is kept whole, and comes back through the consumer's own steps, once."""

import asyncio
import base64
import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.parts.audit_events import calls, completed, requested

from tidegate.chain import Chain
from tidegate.ids import now_us
from tidegate.limits import LETTER_BYTES_MAX
from tidegate.log.commit import check_size
from tidegate.log.port import Delivered, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate.settings_file import load_settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import AuditConsumer, create_audit_consumer
from tidegate_audit_consumer.dead_letters import Letter, dead_letter, open_letter
from tidegate_audit_consumer.reading import Unreadable
from tidegate_audit_consumer.retrying import retry

QUICK = Bounds(age_max_s=0.02, idle_s=0.05, backoff_min_s=0.01, backoff_max_s=0.05)
BROKEN = b"\xff\xfe not json"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\n")
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
    command = [str(Path(sys.executable).with_name("tidegate")), *words]
    environment = {"PATH": "/usr/bin:/bin", "HOME": settings.root, "COLUMNS": "300"}
    return await asyncio.to_thread(
        subprocess.run, command, cwd=settings.root, env=environment, capture_output=True, text=True, timeout=60
    )


def buried_by_an_older_version(record: Record, offset: int, reason: str = "unknown-type") -> Record:
    """What a version that could not read this record put on the topic."""
    found = Delivered(record.topic, 0, offset, record.key, record.value, record.headers, now_us())
    return dead_letter(Unreadable(found, reason, "unknown event type"))


async def letters_of(log: SqliteLog) -> list[Letter]:
    subscription = await log.follow(["dead-letters"])
    letters = [open_letter(record) for record in await subscription.poll(100, 1.0)]
    await subscription.close()
    return [letter for letter in letters if letter is not None]


async def rows(consumer: AuditConsumer, sql: str) -> list[tuple[Any, ...]]:
    return (await consumer.analytics.query(sql)).rows


async def test_a_letter_that_can_be_read_now_is_stored_as_if_it_had_been_read_at_first(
    settings: Settings, log: SqliteLog
) -> None:
    request = requested("late")
    sealed = (chain := Chain("w")).seal(request)
    await log.append([buried_by_an_older_version(sealed, 700), chain.seal(completed(request))])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(1)
        (letter,) = await letters_of(log)
        assert [one.outcome for one in await retry(consumer.analytics, [letter])] == ["stored"]
        stored = "SELECT raw, topic, partition, offset, toUnixTimestamp64Micro(logged_at) FROM tidegate.events"
        ((raw, *position),) = await rows(consumer, f"{stored} WHERE type = 'call.requested.v1'")
        assert raw.encode() == sealed.value
        assert position == ["calls", 0, 700, letter.record.time_us]
        assert await rows(consumer, "SELECT call_id, status, login FROM tidegate.calls") == [
            ("late", "ok", "alice@example.com")
        ]


async def test_retrying_again_changes_nothing_whatever_was_stored_in_between(
    settings: Settings, log: SqliteLog
) -> None:
    records = calls(20)
    await log.append([buried_by_an_older_version(record, 1_000 + at) for at, record in enumerate(records)])
    await log.append(calls(1))
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(2)
        letters = await letters_of(log)
        await retry(consumer.analytics, letters[:10])
        outcomes = [one.outcome for one in await retry(consumer.analytics, letters)]
        assert outcomes == ["stored-before"] * 10 + ["stored"] * 30
        await log.append(records)  # and the consumer itself reads them at last
        await consumer.wait_until_ingested(42)
        assert [one.outcome for one in await retry(consumer.analytics, letters)] == ["stored-before"] * 40
        for view, key in (("events", "event_id"), ("calls", "call_id")):
            ((count, ids),) = await rows(consumer, f"SELECT count(), uniqExact({key}) FROM tidegate.{view}")
            assert count == ids == {"events": 42, "calls": 21}[view]


async def test_the_commands_list_show_and_retry_what_the_consumer_buried(settings: Settings, log: SqliteLog) -> None:
    headers = (("odd", b"\xff\x00"), ("dlq.reason", b"the producer's own"))
    readable = calls(1)[0]
    await log.append([Record("calls", b"k\xff", BROKEN, headers), buried_by_an_older_version(readable, 900)])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(1)

        listed = json.loads((await tidegate(settings, "dead-letters", "list", "--json")).stdout)
        told = {one["id"]: (one["reason"], one["state"]) for one in listed}
        assert told == {"calls/0/900": ("unknown-type", "dead"), "calls/0/0": ("not-json", "dead")}

        shown = json.loads((await tidegate(settings, "dead-letters", "show", "calls/0/0", "--json")).stdout)
        assert base64.b64decode(shown["value"]["base64"]) == BROKEN
        assert shown["headers"] == [
            ["odd", {"base64": base64.b64encode(b"\xff\x00").decode()}],
            ["dlq.reason", {"text": "the producer's own"}],
        ]

        retried = await tidegate(settings, "dead-letters", "retry", "--all", "--json")
        assert json.loads(retried.stdout)["counts"] == {"stored": 1, "stored-before": 0, "unreadable": 1}
        assert retried.returncode == 1, "one of them can still not be read"

        again = await tidegate(settings, "dead-letters", "retry", "calls/0/900")
        assert again.returncode == 0, again.stderr
        assert "stored before" in again.stdout
        text = (await tidegate(settings, "dead-letters", "list", "--reason", "unknown-type")).stdout
        assert "calls/0/900" in text
        assert "stored" in text
        assert len(await letters_of(log)) == 2, "what stays unreadable is not buried twice"


async def test_a_record_larger_than_any_of_ours_is_buried_and_ingestion_goes_on(
    settings: Settings, log: SqliteLog
) -> None:
    large, huge = b"x" * 950_000, b'{"type":"call.paused.v9"}' + b" " * 3_000_000
    await log.append([*calls(1), *(filler := [Record("calls", b"k", b"-"), Record("calls", b"k", b"--")])])
    replaced = sqlite3.connect(log.path)  # as any producer can append, past the bounds of ours
    for held, value in zip(filler, (large, huge), strict=True):
        replaced.execute('UPDATE "log:calls" SET value = ? WHERE value = ?', (value, held.value))
    replaced.commit()
    replaced.close()
    await log.append(calls(2, writer="later"))
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(8)
        assert await rows(consumer, "SELECT count() FROM tidegate.events") == [(6,)]
        whole, cut = await letters_of(log)
        assert (whole.record.value, whole.whole_bytes) == (large, 0)
        assert huge.startswith(cut.record.value or b"-")
        assert 1_000_000 < len(cut.record.value or b"") < LETTER_BYTES_MAX
        assert (cut.whole_bytes, cut.sha256) == (len(huge), hashlib.sha256(huge).hexdigest())
        assert f"{len(huge):,} bytes" in cut.message
        tried = await retry(consumer.analytics, [whole, cut])
        assert [(one.outcome, one.reason) for one in tried] == [("unreadable", "not-json"), ("unreadable", "cut")]


async def test_wrong_uses_say_what_to_give(settings: Settings, log: SqliteLog) -> None:
    for words, code, said in (
        (("show", "calls-0"), 2, "topic/partition/offset"),
        (("retry",), 2, "--all"),
        (("show", "calls/0/5"), 1, "dead-letters list"),
        (("retry", "calls/0/5"), 1, "tidegate up"),  # nobody owns the engine
    ):
        made = await tidegate(settings, "dead-letters", *words)
        assert made.returncode == code, made.stderr
        assert said in made.stderr
        assert "Traceback" not in made.stderr


names = st.one_of(st.text(max_size=10), st.sampled_from(["dlq.reason", "dlq.cut.bytes", "dlq.error.message"]))


@given(
    st.binary(max_size=20),
    st.none() | st.binary(max_size=50),
    st.lists(st.tuples(names, st.binary(max_size=10)), max_size=5).map(tuple),
    st.integers(0, 2**40),
    st.text(max_size=20),
)
def test_a_letter_holds_the_record_exactly(
    key: bytes, value: bytes | None, headers: tuple[tuple[str, bytes], ...], offset: int, message: str
) -> None:
    record = Delivered("calls", 3, offset, key, value, headers, 1_700_000_000_000_000)
    buried = dead_letter(Unreadable(record, "wrong-shape", message))
    letter = open_letter(Delivered(buried.topic, 0, 9, buried.key, buried.value, buried.headers, now_us()))
    assert letter is not None
    assert letter.record == record
    assert letter.reason == "wrong-shape"
    assert letter.id == f"calls/3/{offset}"


@given(
    st.integers(0, 2_000_000),
    st.integers(0, 2_000_000),
    st.integers(0, 300),
    st.integers(0, 10_000),
    st.sampled_from(["x", "ü", "\x00"]),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_every_letter_fits_into_its_topic_and_says_what_was_cut(
    value: int, key: int, headers: int, size: int, char: str
) -> None:
    record = Delivered("calls", 3, 7, b"k" * key, b"v" * value, ((char * 20, b"h" * size),) * headers, 1)
    buried = dead_letter(Unreadable(record, "not-json", char * 5_000))
    check_size(buried)
    letter = open_letter(Delivered(buried.topic, 0, 9, buried.key, buried.value, buried.headers, now_us()))
    assert letter is not None
    assert letter.id == "calls/3/7"
    assert letter.record == record or any(name.startswith("dlq.cut.") for name, _ in buried.headers)
    assert letter.record.value == record.value or letter.whole_bytes == value


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("dlq.original.topic", b"calls"),),
        (("dlq.original.topic", b"calls"), ("dlq.original.partition", b"0"), ("dlq.original.offset", b"-1")),
        (("dlq.original.topic", b"calls"), ("dlq.original.partition", b"0"), ("dlq.original.offset", b"9" * 5_000)),
        (("dlq.original.topic", b"calls"), ("dlq.original.partition", b"9" * 10), ("dlq.original.offset", b"1")),
    ],
)
def test_somebody_elses_record_is_no_letter(headers: tuple[tuple[str, bytes], ...]) -> None:
    assert open_letter(Delivered("dead-letters", 0, 1, b"k", b"v", headers, 1)) is None
