"""Attacks on the embedded engine's HTTP interface: a reader never writes nor leaves the tables, and blocks nobody."""

import asyncio
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tidegate.analytics.chdb_server import EmbeddedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

INSERT = "INSERT INTO tidegate.t SELECT 9"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedEngine]:
    async with EmbeddedEngine(tmp_path_factory.mktemp("attacked")) as engine:
        await engine.analytics.execute("CREATE DATABASE tidegate")
        await engine.analytics.execute("CREATE TABLE tidegate.t (a UInt8) ENGINE = MergeTree ORDER BY a")
        await engine.analytics.insert("tidegate.t", {"a": [1, 2]})
        yield engine


def ask(engine: EmbeddedEngine, who: str, sql: str, **parameters: str) -> tuple[int, str]:
    directory = engine._data_dir  # type: ignore[attr-defined]
    token = (directory / f"analytics-{who}.token").read_text()
    url = f"http://127.0.0.1:{engine.address.port}/?{urllib.parse.urlencode(parameters)}"
    asked = urllib.request.Request(url, data=sql.encode(), headers={"X-ClickHouse-Key": token})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


ATTACKS = [
    f"SELECT 1; {INSERT}",
    f"SELECT 1;;{INSERT}",
    f"SELECT 1 -- ;\n; {INSERT}",
    f"SELECT 1 # ;\n; {INSERT}",
    f"SELECT ';' ; {INSERT}",
    f"SELECT '\\'' ; {INSERT}; SELECT '",
    f"SELECT $a$ ' $a$; {INSERT}",
    f"SELECT 1 PARALLEL WITH {INSERT}",
    f"({INSERT})",
    f"WITH 9 AS x {INSERT}",
    f"EXPLAIN PIPELINE {INSERT}",
    f"EXPLAIN ESTIMATE {INSERT}",
    "SELECT 1 SETTINGS readonly = 0, readonly = 2",
    "SELECT * FROM Python(tokens)",
    "SELECT * FROM `Python`(tokens)",
    "SELECT * FROM python /* */ ('tokens')",
    "SELECT * FROM remote('127.0.0.1', 'system.one')",
    "SELECT * FROM remoteSecure('127.0.0.1', 'system.one')",
    "SELECT * FROM s3('http://127.0.0.1:1/a.csv')",
    "SELECT * FROM gcs('http://127.0.0.1:1/a.csv')",
    "SELECT * FROM odbc('DSN=x', 'a', 'b')",
    "SELECT * FROM jdbc('x', 'y', 'z')",
    "SELECT * FROM redis('127.0.0.1:1', 'key', 'key String')",
    "SELECT * FROM executable('x.sh', 'CSV', 'a Int8')",
    "SELECT * FROM filesystem('/etc')",
    "SELECT * FROM fileCluster('c', '/etc/passwd', 'LineAsString')",
    "SELECT * FROM urlCluster('c', 'http://127.0.0.1:1/', 'CSV')",
    "SELECT file('/etc/passwd')",
    "SELECT catboostEvaluate('/etc/passwd', 1)",
    "SELECT * FROM dictionary('x')",
    "SELECT * FROM system.users",
    "SELECT 1 FORMAT Null INTO OUTFILE '/dev/null'",
]


@pytest.mark.parametrize("sql", ATTACKS)
async def test_a_reader_s_attack_is_refused_and_changes_nothing(engine: EmbeddedEngine, sql: str) -> None:
    status, text = await asyncio.to_thread(ask, engine, "reader", sql)
    assert status in (400, 500), text
    assert (await engine.analytics.query("SELECT count() FROM tidegate.t")).rows == [(2,)]


async def test_settings_and_parameters_of_the_address_give_a_reader_nothing(engine: EmbeddedEngine) -> None:
    for parameters in ({"readonly": "0"}, {"query": INSERT}, {"database": "x`; " + INSERT}, {"default_format": "CSV;"}):
        status, text = await asyncio.to_thread(lambda p: ask(engine, "reader", "", **p), parameters)
        assert status in (400, 500), text
    status, text = await asyncio.to_thread(
        ask, engine, "reader", "SELECT {x:Identifier} FROM tidegate.t", param_x="a; " + INSERT
    )
    assert status == 500
    assert (await engine.analytics.query("SELECT count() FROM tidegate.t")).rows == [(2,)]


async def test_a_reader_cannot_write_while_a_writer_writes(engine: EmbeddedEngine) -> None:
    """Each request has a handle of its own: what one may, never reaches the other."""
    writes = [asyncio.to_thread(ask, engine, "writer", "INSERT INTO tidegate.w SELECT 1") for _ in range(20)]
    reads = [asyncio.to_thread(ask, engine, "reader", f"WITH 9 AS x {INSERT}") for _ in range(20)]
    await engine.analytics.execute("CREATE TABLE tidegate.w (a UInt8) ENGINE = MergeTree ORDER BY a")
    answers = await asyncio.gather(*(one for pair in zip(writes, reads, strict=True) for one in pair))
    assert [status for status, _ in answers] == [200, 500] * 20
    assert (await engine.analytics.query("SELECT count() FROM tidegate.w")).rows == [(20,)]
    assert (await engine.analytics.query("SELECT count() FROM tidegate.t")).rows == [(2,)]


async def test_a_writer_sends_one_statement_in_a_request(engine: EmbeddedEngine) -> None:
    status, text = await asyncio.to_thread(ask, engine, "writer", "SELECT 1; SELECT 2")
    assert (status, "Multi-statements" in text) == (400, True)
    assert (await asyncio.to_thread(ask, engine, "writer", "SELECT ';' -- one; two\n;"))[0] == 200


async def test_slow_readers_keep_no_writer_waiting_and_have_a_bound_on_memory(engine: EmbeddedEngine) -> None:
    slow = "SELECT count() FROM numbers(3) WHERE sleepEachRow(1) = 0"
    readers = [asyncio.create_task(asyncio.to_thread(ask, engine, "reader", slow)) for _ in range(8)]
    status, _ = await asyncio.to_thread(ask, engine, "writer", "SELECT 1")
    assert status == 200
    assert not any(reader.done() for reader in readers)
    assert [status for status, _ in await asyncio.gather(*readers)] == [200] * 8
    status, told = await asyncio.to_thread(
        ask, engine, "reader", "SELECT length(groupArray(repeat('x', 1000000))) FROM numbers(100000)"
    )
    assert (status, "MEMORY_LIMIT_EXCEEDED" in told) == (500, True)
