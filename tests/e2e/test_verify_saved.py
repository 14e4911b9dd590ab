"""Saved evidence: it does not rot, and nothing that lies beside it excuses what was taken out of it."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from tests.parts.audit_events import requested
from tests.parts.sealed import Sealed, chained, hour, sealed_house

from tidegate.analytics.clickhouse import Address
from tidegate.audit.holdings import Held
from tidegate.chain import Chain
from tidegate.ids import now_us
from tidegate_cli.held_sources import ClickHouseSource, DirectorySource, Stranger
from tidegate_cli.verify_telling import hint
from tidegate_cli.verifying import Report, Saving, Verification

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIDEGATE = Path(sys.executable).parent / "tidegate"
HOUR_US = 3_600_000_000
OLD, YOUNG = 10, 0  # hours of 50 and of 30 days ago
EVERYTHING = (hour(OLD)[0], now_us() + 100 * HOUR_US)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sealed]:
    """Two writers' records under a root, and three of a third that were made just now and are under none."""
    async with sealed_house(tmp_path_factory.mktemp("saving")) as house:
        await house.append(chained("old.spool.1", OLD, 10))
        await house.append(chained("young.spool.1", YOUNG, 10))
        await house.ingested()
        await house.seal()
        chain = Chain("now.spool.1")
        await house.append([chain.seal(requested(at_us=now_us())) for _ in range(3)])
        await house.ingested()
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def saved(house: Sealed, tmp_path: Path) -> Path:
    verification = Verification(ClickHouseSource(house.consumer.analytics), house.trust, *EVERYTHING, now_us())
    roots = await verification.roots()
    verification.saving = Saving(tmp_path / "saved", roots, [house.key.public])
    report = await verification.run(roots)
    verification.saving.close()
    assert (report.verdict, report.records, report.pending >= 3) == ("whole", 20, True)
    return tmp_path / "saved"


async def read(house: Sealed, saved: Path, at_us: int = 0, expired_before_us: int = 0) -> Report:
    source = DirectorySource(saved)
    offline = Verification(source, house.trust, *EVERYTHING, at_us or now_us(), expired_before_us=expired_before_us)
    return await offline.run(await offline.roots())


def take_out(saved: Path, what: bytes) -> None:
    events = saved / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    left = [line for line in lines if what not in line]
    assert len(left) < len(lines)
    events.write_bytes(b"".join(left))


def excuse(saved: Path, before_us: int) -> None:
    (saved / "expired.json").write_bytes(msgspec.json.encode([before_us, before_us, "expired by TTL: believe me"]))


async def cli(*arguments: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        TIDEGATE, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, " ".join(out.decode().split()), " ".join(err.decode().split())


async def test_what_was_saved_whole_is_whole_a_year_later(house: Sealed, saved: Path) -> None:
    for later_us in (0, 24 * 365 * HOUR_US):
        report = await read(house, saved, now_us() + later_us)
        assert (report.verdict, report.records, report.pending) == ("whole", 20, 0)


async def test_a_record_under_no_root_is_never_too_young_in_a_copy(house: Sealed, saved: Path) -> None:
    added = Chain("added.spool.1").seal(requested(at_us=now_us())).value or b""
    with (saved / "events.jsonl").open("ab") as file:
        file.write(added + b"\n")
    report = await read(house, saved)
    assert (report.verdict, report.records, report.overdue) == ("unproven", 20, 1)


async def test_a_wrong_record_under_no_root_is_saved_with_what_shows_it(tmp_path: Path) -> None:
    saving = Saving(tmp_path / "few", [], [])
    number = [one.value or b"" for one in chained("w", YOUNG, 4)]
    strangers = [Stranger("w", Held(at, str(at), "h", "p"), raw, 0, "", 0) for at, raw in enumerate(number)]
    for stranger, is_pending in zip(strangers, (True, True, False, True), strict=True):
        saving.take_stranger(stranger, is_pending=is_pending)
    saving.close()
    assert (tmp_path / "few" / "events.jsonl").read_bytes().splitlines() == number[1:3]


async def test_a_file_beside_the_records_excuses_none_of_them(house: Sealed, saved: Path) -> None:
    take_out(saved, b'"old.spool.1"')
    for before_us in (hour(OLD)[1], now_us() - HOUR_US, now_us() + 100 * HOUR_US, 2**62):
        excuse(saved, before_us)
        report = await read(house, saved)
        assert (report.verdict, report.records, report.expired) == ("broken", 10, 0)
        assert [(one.kind, one.writer) for one in report.wrong] == [("missing", "old.spool.1")]
        assert hint(report).startswith("the copy says that records ")
        assert ("give --expired-before" in hint(report)) is (before_us < now_us())
    for spoiled in (b"", b"{}", b'[1, 2, "' + b"x" * 10_000 + b'"]'):
        (saved / "expired.json").write_bytes(spoiled)
        report = await read(house, saved)
        assert (report.verdict, hint(report)) == ("broken", "")


async def test_who_verifies_may_excuse_what_is_missing_and_nothing_that_is_there(house: Sealed, saved: Path) -> None:
    take_out(saved, b'"old.spool.1"')
    report = await read(house, saved, expired_before_us=hour(OLD)[1])
    assert (report.verdict, report.records, report.expired) == ("whole", 10, 10)
    assert "the word of who verifies" in report.expired_why
    events = saved / "events.jsonl"
    events.write_bytes(events.read_bytes().replace(b"alice", b"mallo", 1))
    report = await read(house, saved, expired_before_us=now_us())
    assert (report.verdict, [one.kind for one in report.wrong]) == ("broken", ["altered"])


async def test_a_copy_that_was_emptied_is_never_whole(house: Sealed, saved: Path) -> None:
    (saved / "events.jsonl").write_bytes(b"")
    excuse(saved, now_us())
    report = await read(house, saved)
    assert (report.verdict, report.records) == ("broken", 0)
    report = await read(house, saved, expired_before_us=now_us())
    assert (report.verdict, report.records, report.expired) == ("unproven", 0, 20)
    assert report.nothing == "the copy holds no sealed record of this time"
    (saved / "roots.jsonl").write_bytes(b"")
    report = await read(house, saved)
    assert (report.verdict, report.roots) == ("unproven", 0)
    assert report.nothing.startswith("there is no root")
    source = DirectorySource(saved)
    offline = Verification(source, house.trust, *EVERYTHING, now_us())
    report = await offline.run(await offline.roots(house.published()))
    assert report.verdict == "broken", "the published file has the roots that were taken out"
    assert {one.writer for one in report.wrong} >= {"old.spool.1", "young.spool.1"}


async def test_the_command_quotes_the_excuse_and_takes_it_from_who_verifies_alone(house: Sealed, saved: Path) -> None:
    take_out(saved, b'"old.spool.1"')
    excuse(saved, hour(OLD)[1])
    command = ("verify", "--dir", saved, "--key", house.key.public, "--config", saved / "none.yaml")
    code, out, err = await cli(*command)
    assert (code, "Broken: 1 thing is wrong; the first:" in out) == (1, True), out + err
    before = datetime.fromtimestamp(hour(OLD)[1] // 1_000_000 + 1, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert f"if you accept that, give --expired-before {before}." in out
    assert "believe me" in out
    assert "tidegate rebuild" not in out, "a copy cannot be rebuilt"
    code, out, err = await cli(*command, "--expired-before", before)
    assert (code, "Whole: 10 records are what was sealed, under 1 root" in out) == (0, True), out + err
    assert f"10 records from before {before} are no longer there: so says --expired-before" in out
    code, out, err = await cli(*command, "--expired-before", "2999-01-01")
    assert (code, out) == (2, "")
    assert "--expired-before 2999-01-01 lies in the future" in err
    code, out, err = await cli(*command, "--from", "2999-01-01")
    assert (code, "--from 2999-01-01 lies in the future" in err, "exchange" in err) == (2, True, False)
    code, out, err = await cli(*command, "--from", "1d", "--to", "2d")
    assert (code, "--from lies after --to; exchange them" in err) == (2, True)
    code, out, err = await cli(*command, "--save", saved)
    assert (code, "--save would overwrite what --dir reads" in err) == (2, True)


async def test_a_report_of_missing_records_ends_with_the_way_to_have_them_again(house: Sealed, tmp_path: Path) -> None:
    config = Path(house.settings.root) / "tidegate.yaml"
    config.write_text("data: data\n")
    number = 20
    await house.append(chained("lost.spool.1", number, 3))
    await house.ingested()
    await house.seal()
    await house.execute(
        "ALTER TABLE tidegate.events_raw DELETE WHERE writer = 'lost.spool.1' SETTINGS mutations_sync = 2"
    )
    begin, end = (datetime.fromtimestamp(one / 1e6, UTC).isoformat() for one in hour(number))
    code, out, err = await cli("verify", "--config", config, "--from", begin, "--to", end)
    assert (code, "records 1 to 3 are missing" in out) == (1, True), out + err
    assert out.endswith("`tidegate rebuild` makes ClickHouse anew from it.")


async def test_without_the_owner_of_the_analytics_it_says_what_to_start(house: Sealed, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        (tmp_path / "data").mkdir()
        (tmp_path / "token").write_text("t")
        address = Address("127.0.0.1", taken.getsockname()[1], 1, str(tmp_path / "token"), str(tmp_path / "token"))
        (tmp_path / "data" / "analytics.json").write_bytes(msgspec.json.encode(address))
        config = tmp_path / "tidegate.yaml"
        config.write_text("data: data\n")
        for command in (("verify", "--key", house.key.public), ("prove", "x", "--key", house.key.public)):
            code, out, err = await cli(*command, "--config", config)
            assert (code, out) == (1, ""), err
            assert "is `tidegate up` running? It owns the analytics in" in err
            assert "Traceback" not in err
