"""Sealed calls as people read them from the command line: open as long as their keys are there, `erased` afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.parts.audit_events import delivered
from tests.parts.sealed_calls import destroyed, erasure, key_for, published, sealed_call, sealed_records
from typer.testing import CliRunner

from tidegate.chain import Chain
from tidegate.ids import now_us
from tidegate.log.sqlite import SqliteLog
from tidegate.privacy.keys import Wrapping
from tidegate.privacy.master import open_wrapping
from tidegate.settings import Settings
from tidegate.settings_file import load_settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import AuditConsumer, create_audit_consumer
from tidegate_audit_consumer.siem import objects_of
from tidegate_cli.boxes import open_boxes
from tidegate_cli.main import app
from tidegate_cli.matching import open_seen

QUICK = Bounds(age_max_s=0.02, idle_s=0.05, backoff_min_s=0.01, backoff_max_s=0.05)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\nprivacy: {sealing: on}\n")
    (tmp_path / "data").mkdir()
    return load_settings(tmp_path / "tidegate.yaml")


@pytest.fixture
def wrapping(settings: Settings) -> Wrapping:
    found = open_wrapping(settings, create=True)
    assert found is not None
    return found


@pytest.fixture
async def log(settings: Settings) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    yield log
    await log.close()


@pytest.fixture
async def consumer(settings: Settings, log: SqliteLog, wrapping: Wrapping) -> AsyncIterator[AuditConsumer]:
    made = create_audit_consumer(settings, log, now_us, registry=CollectorRegistry(), bounds=QUICK)
    async with made as running:
        yield running


async def tidegate(settings: Settings, *words: str) -> str:
    command = [*words, "--config", f"{settings.root}/tidegate.yaml"]
    made = await asyncio.to_thread(CliRunner(env={"COLUMNS": "250"}).invoke, app, command)
    assert made.exit_code == 0, made.output
    return made.stdout


async def tail(settings: Settings, *words: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (await tidegate(settings, "log", "tail", "--no-follow", "--json", *words)).splitlines()
    ]


async def test_tail_and_why_open_what_is_sealed_and_say_erased_afterwards(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    alice, bob = key_for("5ub"), key_for("b0b")
    records = [*sealed_records(alice, "call-one"), *sealed_records(bob, "c2", writer="w2", login="bob@example.com")]
    await log.append([*records, *published(wrapping, alice, bob)])
    found = await tail(settings, "--user", "alice@example.com")
    assert [one["call_id"] for one in found] == ["call-one", "call-one"]
    assert found[0]["sealed"]["arguments"] == {"path": "/a"}
    assert "alice@example.com" in await tidegate(settings, "log", "tail", "--no-follow")
    story = await tidegate(settings, "why", "call-one")
    for part in ("alice@example.com", '"/a"', "to alice", "claude 1"):
        assert part in story, part
    assert (
        json.loads(await tidegate(settings, "why", "call-one", "--json"))["requested"]["sealed"]["login"]
        == "alice@example.com"
    )

    await log.append([*erasure("5ub", now_us()), *destroyed(alice)])
    assert await tail(settings, "--user", "alice@example.com") == []
    assert [one["call_id"] for one in await tail(settings, "--user", "bob@example.com")] == ["c2", "c2"]
    (shut, *_) = await tail(settings, "--user", "5ub")
    assert shut["sealed"]["shut"] == "erased"
    lines = await tidegate(settings, "log", "tail", "--no-follow")
    assert "erased 5ub" in lines
    assert "alice@example.com" not in lines
    story = await tidegate(settings, "why", "call-one")
    assert [line.split()[:2] for line in story.splitlines() if "erased" in line] == [
        ["who", "erased"],
        ["arguments", "erased"],
        ["result", "erased"],
    ]


async def test_a_reader_without_the_masters_is_told_that_it_is_sealed_and_not_that_it_was_erased(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    alice, bob = key_for("5ub"), key_for("b0b")
    await log.append([*sealed_records(alice, "call-one"), *sealed_records(bob, "c2", writer="w2")])
    await log.append([*published(wrapping, alice, bob), *erasure("b0b", now_us()), *destroyed(bob)])
    (settings.data_dir / "keys" / "privacy.key").unlink()
    shut = {one["call_id"]: one["sealed"]["shut"] for one in await tail(settings) if "call_id" in one}
    assert shut == {"call-one": "sealed", "c2": "erased"}
    assert "sealed 5ub" in await tidegate(settings, "log", "tail", "--no-follow")


async def test_an_event_that_comes_before_its_key_waits_for_it_a_little(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    key, never = key_for(), key_for("never")
    boxes = await open_boxes(settings, log)
    (record, _) = sealed_records(key, "call-one")
    seen = open_seen(record.value or b"")
    assert seen is not None
    waiting = asyncio.create_task(boxes.shown_soon(seen))
    await asyncio.sleep(0)
    assert boxes.shown(seen).shut == "sealed"
    await log.append(published(wrapping, key))
    shown = await asyncio.wait_for(waiting, 20)
    assert (shown.shut, shown.sealed["login"]) == ("", "alice@example.com")
    other = open_seen(sealed_records(never, "c2")[0].value or b"")
    assert other is not None
    old = msgspec.structs.replace(other, time_us=5)
    assert (await asyncio.wait_for(boxes.shown_soon(old), 1)).shut == "sealed", "what is old is not waited for"
    await boxes.close()


async def test_an_export_has_the_person_and_the_content_until_the_erasure_and_says_so_after_it(
    settings: Settings, log: SqliteLog, wrapping: Wrapping, consumer: AuditConsumer
) -> None:
    key = key_for()
    await log.append([*published(wrapping, key), *sealed_records(key, "call-one", at_us=now_us() - 3_600_000_000)])
    await consumer.wait_until_ingested(2, 30)

    async def exported(form: str) -> str:
        return await tidegate(settings, "export", "--since", "1d", "--format", form)

    async with asyncio.timeout(30):
        while "alice@example.com" not in await exported("jsonl"):
            await asyncio.sleep(0.02)
    row = json.loads(await exported("jsonl"))
    assert (row["arguments"], row["is_erased"]) == ({"path": "/a"}, False)
    assert json.loads(await exported("ocsf"))["actor"]["user"]["name"] == "alice@example.com"
    assert "suser=alice@example.com" in await exported("cef")

    await log.append([*erasure("5ub", now_us()), *destroyed(key)])
    async with asyncio.timeout(30):
        while "alice@example.com" in await exported("jsonl"):
            await asyncio.sleep(0.02)
    row = json.loads(await exported("jsonl"))
    assert (row["login"], row["arguments"], row["result"], row["is_erased"]) == ("", None, None, True)
    told = json.loads(await exported("ocsf"))
    assert told["unmapped"]["tidegate"]["erased"] is True
    assert told["actor"]["user"] == {"uid": "5ub", "groups": [{"name": "eng"}, {"name": "oncall"}]}
    assert "suser" not in (line := await exported("cef"))
    assert "flexString1=erased" in line


def test_the_topic_for_siems_names_nobody_whether_a_call_is_sealed_or_plain(wrapping: Wrapping) -> None:
    key = key_for()
    chain = Chain("w")
    for record in objects_of(delivered([chain.seal(event) for event in sealed_call(key)])):
        told = msgspec.json.decode(record.value or b"")
        assert told["actor"]["user"] == {"uid": "5ub"}
        assert not any(text in (record.value or b"") for text in (b"alice", b"/a", key.kid.encode()))
