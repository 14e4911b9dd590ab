"""`tidegate sql`: what it lets through, how it prints, and the command whole beside a running engine."""

import asyncio
import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.parts.audit_events import calls, delivered

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.port import Answer
from tidegate.errors import ConfigFault
from tidegate_audit_consumer.migrate import migrate
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store
from tidegate_cli.output import console
from tidegate_cli.sql_printing import PRINTERS
from tidegate_cli.sql_work import bounded, explained, parameters_of


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO tidegate.calls_raw VALUES (1)",
        "DROP TABLE tidegate.calls_raw",
        "-- SELECT\nALTER TABLE tidegate.calls_raw DELETE WHERE 1",
        "/* SELECT */ TRUNCATE TABLE tidegate.calls_raw",
        "SET readonly = 0",
        "KILL QUERY WHERE 1",
        "SYSTEM SHUTDOWN",
        "USE system",
        "",
        "42",
        "DESCRIBE url('http://elsewhere')",
        "SELECT 1 FORMAT JSON",
        "SELECT 1) INTO OUTFILE '/tmp/x' /*",
        "SELECT $$'$$; DROP TABLE tidegate.calls_raw; SELECT $$'$$",
    ],
)
def test_what_does_not_read_or_reads_elsewhere_is_refused_before_it_is_sent(query: str) -> None:
    with pytest.raises(ConfigFault):
        bounded(query, 10)


@pytest.mark.parametrize("query", ["SELECT 1", "  select 1;\n", "-- why\nWITH 1 AS x SELECT x", "(SELECT 1)"])
def test_a_select_runs_as_a_subquery_under_a_limit(query: str) -> None:
    sent = bounded(query, 10)
    assert sent.startswith("SELECT * FROM (\n")
    assert sent.endswith("\n) LIMIT 11")
    assert ";" not in sent


@pytest.mark.parametrize("query", ["SHOW TABLES FROM tidegate", "DESCRIBE tidegate.calls", "EXPLAIN SELECT 1"])
def test_statements_that_show_are_sent_as_they_are(query: str) -> None:
    assert bounded(query + ";", 10) == query


def test_parameters_are_names_and_values() -> None:
    assert parameters_of(["who=alice", "text=a=b", "none="]) == {"who": "alice", "text": "a=b", "none": ""}
    for wrong in ("who", "=x", "a-b=x"):
        with pytest.raises(ConfigFault, match="--param"):
            parameters_of([wrong])


def test_an_error_is_told_in_clickhouse_s_words_with_advice() -> None:
    told = explained(
        "ClickHouse refused the statement: Received ClickHouse exception, code: 60, server response: Code: 60. "
        "DB::Exception: Unknown table expression identifier 'call'. (UNKNOWN_TABLE) (for url http://127.0.0.1:1)"
    )
    assert told.startswith("Unknown table expression identifier 'call'")
    assert "SHOW TABLES FROM tidegate" in told
    assert "127.0.0.1" not in told


ROWS = Answer(
    ("name", "at", "rules", "n", "gone"),
    [('a "b",\n\x1b[2J', datetime(2026, 3, 1, 12, tzinfo=UTC), ["r1", "r2"], 2**63, None)],
)


def test_csv_and_json_hold_the_values_whole(capsys: pytest.CaptureFixture[str]) -> None:
    PRINTERS["csv"](ROWS)
    header, row = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert header == list(ROWS.names)
    assert row == ['a "b",\n\x1b[2J', "2026-03-01T12:00:00Z", '["r1","r2"]', str(2**63), ""]
    PRINTERS["json"](ROWS)
    (read,) = json.loads(capsys.readouterr().out)
    assert read == {
        "name": 'a "b",\n\x1b[2J',
        "at": "2026-03-01T12:00:00Z",
        "rules": ["r1", "r2"],
        "n": 2**63,
        "gone": None,
    }
    PRINTERS["jsonl"](ROWS)
    assert json.loads(capsys.readouterr().out) == read


def test_a_table_sends_no_control_characters_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    PRINTERS["table"](ROWS)
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "2026-03-01T12:00:00Z" in shown


@example([1, 1, 1, 1, 1, 18, 40, 40], 1)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 3))
def test_every_column_is_printed_whole_however_wide_the_rows_are(widths: list[int], count: int) -> None:
    """A short value or name is never folded; only what is wider than an id may be, and then all of it is there."""
    names = tuple(f"column_{number}" for number in range(len(widths)))
    rows = [tuple(f"{number:02}".ljust(width, "x") for number, width in enumerate(widths)) for _ in range(count)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        console.cache_clear()
        PRINTERS["table"](Answer(names, rows))
    console.cache_clear()
    shown = out.getvalue()
    for name, value in zip(names, rows[0], strict=True):
        assert re.search(rf"\b{name}\b", shown)
        if len(value) <= 40:
            assert len(re.findall(rf"(?<!\S){value}(?!\S)", shown)) >= count
    assert shown.count("x") == count * sum(max(0, width - 2) for width in widths)


def test_rows_too_wide_for_a_table_are_blocks_of_name_and_value(capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(f"name_{number}" for number in range(30))
    console.cache_clear()
    PRINTERS["table"](Answer(names, [tuple(f"value {number}\nrest" for number in range(30))] * 2))
    console.cache_clear()
    shown = capsys.readouterr().out
    assert shown.startswith("row 1\n name_0: value 0\n         rest\n name_1: value 1\n")
    assert "row 2\n" in shown


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\n")
    async with EmbeddedEngine(tmp_path / "data") as engine:
        await migrate(engine.analytics)
        batch = delivered(calls(5))
        await store(engine.analytics, open_batch(batch), batch)
        yield engine


async def tidegate(
    house: Path, *words: str, stdin: str | None = None, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("tidegate")), "sql", *words]
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(house), "COLUMNS": "200", **(environment or {})}
    return await asyncio.to_thread(
        subprocess.run, command, cwd=house, env=plain, input=stdin, capture_output=True, text=True, timeout=60
    )


async def test_the_command_answers_beside_the_process_that_owns_the_engine(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    table = await tidegate(tmp_path, "SELECT status, count() AS calls FROM tidegate.calls GROUP BY status")
    assert (table.returncode, table.stderr) == (0, "")
    assert "status" in table.stdout
    assert "ok" in table.stdout

    bound = ["--param", "who=alice@example.com", "--format", "jsonl", "-"]
    asked = "SELECT count() AS n FROM tidegate.calls WHERE login = {who:String} -- whose?"
    lines = await tidegate(tmp_path, *bound, stdin=asked)
    assert json.loads(lines.stdout) == {"n": 5}

    cut = await tidegate(tmp_path, "--rows", "3", "-f", "csv", "SELECT number FROM numbers(10) ORDER BY number DESC")
    assert cut.stdout.split() == ["number", "9", "8", "7"]
    assert "the first 3 rows" in cut.stderr

    wrong = await tidegate(tmp_path, "SELECT logn FROM tidegate.calls")
    assert wrong.returncode == 1
    assert "logn" in wrong.stderr
    assert "DESCRIBE tidegate.calls" in wrong.stderr

    closing = await tidegate(tmp_path, "SELECT 1); DROP TABLE tidegate.calls_raw; SELECT (1")
    assert closing.returncode == 2
    ((kept,),) = (await engine.analytics.query("SELECT count() FROM tidegate.calls")).rows
    assert kept == 5


async def test_the_command_reaches_a_server_by_its_address_and_still_only_reads(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    """The server's account may write, as the audit consumer's does; the command may not."""
    address = f"clickhouse://writer@127.0.0.1:{engine.address.port}/tidegate"
    (tmp_path / "server.yaml").write_text(
        f"analytics: {address}\nanalytics_password: ${{PASSWORD}}\nlog: sqlite\ndata: elsewhere\n"
    )
    secret = {"PASSWORD": (tmp_path / "data" / "analytics-writer.token").read_text().strip()}
    options = ("--config", "server.yaml", "-f", "json")
    read = await tidegate(tmp_path, *options, "SHOW TABLES FROM tidegate", environment=secret)
    assert read.returncode == 0, read.stderr
    assert {"name": "calls_by_hour"} in json.loads(read.stdout)
    closing = "SELECT 1); DROP TABLE tidegate.calls_raw; SELECT * FROM (SELECT 1"
    refused = await tidegate(tmp_path, *options, closing, environment=secret)
    assert refused.returncode == 2
    ((kept,),) = (await engine.analytics.query("SELECT count() FROM tidegate.calls")).rows
    assert kept == 5


async def test_without_a_running_engine_the_command_says_what_to_start(tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\n")
    told = await tidegate(tmp_path, "SELECT 1")
    assert told.returncode == 1
    assert "tidegate up" in told.stderr
