"""The analytics port, one suite over both ways in: the embedded engine, and its HTTP interface by the ordinary
client.
"""

import asyncio
import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import lz4.frame
import pytest
from backports import zstd
from clickhouse_connect.driver.exceptions import DatabaseError

from tidegate.analytics import chdb_http
from tidegate.analytics.chdb_server import AnalyticsOwned, EmbeddedEngine
from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_reader, open_server, read_address
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, ConfigFault
from tidegate.settings import Settings

TABLE = """CREATE TABLE tidegate.t (id UInt64, name LowCardinality(String), at DateTime64(6, 'UTC'), body String,
most SimpleAggregateFunction(max, String), tags Array(String), maybe Nullable(Int64),
found Array(Tuple(rule String, count UInt64))) ENGINE = ReplacingMergeTree ORDER BY id
SETTINGS non_replicated_deduplication_window = 100"""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    async with EmbeddedEngine(tmp_path) as engine:
        await over_http_once(engine, tmp_path, "CREATE DATABASE tidegate")
        yield engine


async def over_http_once(engine: EmbeddedEngine, tmp_path: Path, sql: str) -> None:
    client = over_http(engine, tmp_path, "writer")
    await client.execute(sql)
    await client.close()


@pytest.fixture(params=["embedded", "http"])
async def analytics(request: pytest.FixtureRequest, engine: EmbeddedEngine, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "embedded":
        yield engine.analytics
        return
    client = over_http(engine, tmp_path, "writer")
    yield client
    await client.close()


def token(tmp_path: Path, user: str) -> str:
    return (tmp_path / f"analytics-{user}.token").read_text()


def over_http(engine: EmbeddedEngine, tmp_path: Path, user: str) -> ClickHouseAnalytics:
    return open_server(f"clickhouse://{user}@127.0.0.1:{engine.address.port}/tidegate", token(tmp_path, user))


def columns(count: int, first: int = 0) -> dict[str, list[Any]]:
    ids = range(first, first + count)
    return {
        "id": list(ids),
        "name": ["n"] * count,
        "at": [1_700_000_000_000_001 + number for number in ids],
        "body": [b"\x00\xff\n'\\" + bytes([number % 256]) for number in ids],
        "most": ["größt"] * count,
        "tags": [("a", "b") if number % 2 else () for number in ids],
        "maybe": [-5 if number % 2 else None for number in ids],
        "found": [[("card", 2)] if number % 2 else () for number in ids],
    }


async def test_columns_come_back_as_they_went_in(analytics: ClickHouseAnalytics) -> None:
    await analytics.execute(TABLE)
    await analytics.insert("tidegate.t", columns(4))
    answer = await analytics.query(
        "SELECT id, name, toUnixTimestamp64Micro(at) AS us, hex(body), most, tags, maybe, found.rule FROM tidegate.t "
        "WHERE id = {id:UInt64}",
        {"id": 3},
    )
    assert answer.names == ("id", "name", "us", "hex(body)", "most", "tags", "maybe", "found.rule")
    body = b"\x00\xff\n'\\\x03".hex().upper()
    assert answer.rows == [(3, "n", 1_700_000_000_000_004, body, "größt", ["a", "b"], -5, ["card"])]


async def test_an_insert_of_many_blocks_arrives_whole(analytics: ClickHouseAnalytics, monkeypatch: Any) -> None:
    monkeypatch.setattr("tidegate.analytics.clickhouse.ROWS_PER_BLOCK", 700)
    await analytics.execute(TABLE)
    await analytics.insert("tidegate.t", columns(5_000))
    answer = await analytics.query("SELECT count(), sum(id), sum(length(body)) FROM tidegate.t")
    assert answer.rows == [(5_000, sum(range(5_000)), 30_000)]


async def test_the_same_token_again_inserts_nothing(analytics: ClickHouseAnalytics) -> None:
    await analytics.execute(TABLE)
    await analytics.insert("tidegate.t", columns(10), token="batch-1")
    await analytics.insert("tidegate.t", columns(10, first=100), token="batch-1")
    await analytics.insert("tidegate.t", columns(10, first=200), token="batch-2")
    assert (await analytics.query("SELECT count(), max(id) FROM tidegate.t")).rows == [(20, 209)]


async def test_parameters_are_bound_never_pasted(analytics: ClickHouseAnalytics) -> None:
    text = 'a\'b\\c\n\t{x:String} -- "ü" INTO OUTFILE'
    assert (await analytics.query("SELECT {text:String}", {"text": text})).rows == [(text,)]
    assert (await analytics.query("SELECT {list:Array(String)}", {"list": [text, "b"]})).rows == [([text, "b"],)]


async def test_parameters_that_are_too_long_for_an_address_are_bound_as_well(
    analytics: ClickHouseAnalytics, engine: EmbeddedEngine, tmp_path: Path
) -> None:
    texts = [f"{number} 'quoted' \\ --boundary\r\n ü" for number in range(2_000)]
    reader = over_http(engine, tmp_path, "reader")
    for one in (analytics, reader):
        sql = "SELECT length({texts:Array(String)}), {texts:Array(String)}[2000], {more:UInt8}"
        assert (await one.query(sql, {"texts": texts, "more": 7})).rows == [(2_000, texts[-1], 7)]
    with pytest.raises(AnalyticsRefused, match="readonly"):
        await reader.query("SELECT {texts:Array(String)} INTO OUTFILE 'x'", {"texts": texts})
    await reader.close()


async def test_a_form_that_cannot_be_read_is_refused(engine: EmbeddedEngine, tmp_path: Path) -> None:
    headers = {"X_ClickHouse_Key": token(tmp_path, "writer"), "Content_Type": 'multipart/form-data; boundary="b"'}
    field = b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT 1\r\n'
    assert (await asyncio.to_thread(request, engine, "/", field + b"--b--\r\n", **headers))[0] == 200
    for body in (b"", field, field * 2 + b"--b--", b"--b\r\n\r\nSELECT 1\r\n--b--", b"SELECT 1\r\n" + field + b"--b--"):
        status, _, text = await asyncio.to_thread(request, engine, "/", body, **headers)
        assert (status, b"form" in text) == (400, True), text


async def test_no_rows_are_an_answer(analytics: ClickHouseAnalytics) -> None:
    assert (await analytics.query("SELECT 1 AS one WHERE 0")).rows == []


async def test_a_wrong_statement_is_refused_with_clickhouse_s_words(analytics: ClickHouseAnalytics) -> None:
    with pytest.raises(AnalyticsRefused, match="UNKNOWN_TABLE"):
        await analytics.query("SELECT * FROM tidegate.missing")
    with pytest.raises(AnalyticsRefused, match="SYNTAX_ERROR"):
        await analytics.execute("SELECT FROM WHERE")
    assert (await analytics.query("SELECT 1")).rows == [(1,)]


async def test_a_refused_insert_stores_nothing_and_the_next_one_works(analytics: ClickHouseAnalytics) -> None:
    await analytics.execute(TABLE)
    await analytics.insert("tidegate.t", columns(1))  # the table's types are known from now on
    await analytics.execute("RENAME TABLE tidegate.t TO tidegate.away")
    with pytest.raises((AnalyticsRefused, AnalyticsUnavailable)):
        await analytics.insert("tidegate.t", columns(10, first=5))
    await analytics.execute("RENAME TABLE tidegate.away TO tidegate.t")
    await analytics.insert("tidegate.t", columns(10, first=5))
    assert (await analytics.query("SELECT count() FROM tidegate.t")).rows == [(11,)]


async def test_the_event_loop_goes_on_while_a_statement_runs(analytics: ClickHouseAnalytics) -> None:
    turns = 0
    asking = asyncio.ensure_future(analytics.query("SELECT sleep(0.5)"))
    while not asking.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10


async def test_nobody_listening_is_unavailable_and_names_it() -> None:
    nobody = open_server("clickhouse://u@127.0.0.1:1/tidegate", "")
    with pytest.raises(AnalyticsUnavailable, match="does not answer"):
        await nobody.query("SELECT 1")
    await nobody.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("clickhouse://u:secret@h:1/tidegate", "analytics_password"),
        ("clickhouse://u@h:1/other", "always 'tidegate'"),
        ("clickhouse:///tidegate", "expected clickhouse://"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused_with_what_to_do(url: str, words: str) -> None:
    with pytest.raises(ConfigFault, match=words):
        open_server(url, "")


FORBIDDEN = [
    "INSERT INTO tidegate.t (id) VALUES (1)",
    "DROP TABLE tidegate.t",
    "CREATE TABLE tidegate.u (a Int8) ENGINE = Memory",
    "ALTER TABLE tidegate.t DELETE WHERE 1",
    "TRUNCATE TABLE tidegate.t",
    "SET readonly = 0",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 0",
    "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
    "SELECT 1 INTO OUTFILE '{file}'",
    "SELECT 1 INTO /**/ OutFile '{file}'",
    "INSERT INTO FUNCTION file('{file}', 'CSV', 'a Int8') VALUES (1)",
    "SYSTEM SHUTDOWN",
    "BACKUP TABLE tidegate.t TO File('{file}')",
    "KILL QUERY WHERE 1",
    "/* SELECT */ KILL QUERY WHERE 1",
    "SELECT 1; KILL QUERY WHERE 1",
    "CREATE NAMED COLLECTION secrets AS a = 1",
    "DESCRIBE TABLE file('/etc/passwd', 'CSVWithNames')",
    "-- \n desc url('http://127.0.0.1:1/', 'CSV')",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
async def test_a_reader_changes_nothing_and_reaches_nothing_else(
    engine: EmbeddedEngine, tmp_path: Path, sql: str
) -> None:
    await engine.analytics.execute(TABLE)
    await engine.analytics.insert("tidegate.t", columns(2))
    reader = over_http(engine, tmp_path, "reader")
    file = tmp_path / "written"
    with pytest.raises((AnalyticsRefused, AnalyticsUnavailable)):
        await reader.execute(sql.replace("{file}", str(file)))
    assert not file.exists()
    assert (await reader.query("SELECT count() FROM t")).rows == [(2,)]
    await reader.close()


async def test_one_request_leaves_no_trace_in_the_next(engine: EmbeddedEngine, tmp_path: Path) -> None:
    writer = over_http(engine, tmp_path, "writer")
    await writer.execute("SET max_threads = 1")
    await writer.execute("USE system")
    assert (await writer.query("SELECT currentDatabase(), getSetting('max_threads') = 1")).rows == [("tidegate", False)]
    await writer.close()


def request(engine: EmbeddedEngine, path: str, body: bytes = b"", **headers: str) -> tuple[int, str, bytes]:
    """Status, ClickHouse's error code, body."""
    url = f"http://127.0.0.1:{engine.address.port}{path}"
    asked = urllib.request.Request(url, data=body or None, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=20) as response:
            return response.status, "", response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("X-ClickHouse-Exception-Code", ""), error.read()


async def test_without_a_right_token_nothing_is_answered_but_ping(engine: EmbeddedEngine) -> None:
    assert await asyncio.to_thread(request, engine, "/ping") == (200, "", b"Ok.\n")
    for headers in ({}, {"X_ClickHouse_Key": "guess"}, {"Authorization": "Basic !!"}, {"X_ClickHouse_User": "default"}):
        status, code, _ = await asyncio.to_thread(request, engine, "/?query=SELECT+1", **headers)
        assert (status, code) == (403, "516")


async def test_get_never_writes_even_for_the_writer(engine: EmbeddedEngine, tmp_path: Path) -> None:
    key = token(tmp_path, "writer")
    path = "/?query=CREATE+TABLE+tidegate.u+(a+Int8)+ENGINE=Memory"
    assert (await asyncio.to_thread(request, engine, path, X_ClickHouse_Key=key))[:2] == (500, "164")


async def test_credentials_in_the_address_are_refused_unread(engine: EmbeddedEngine, tmp_path: Path) -> None:
    key = token(tmp_path, "writer")
    answer = await asyncio.to_thread(request, engine, "/?query=SELECT+1&password=x", X_ClickHouse_Key=key)
    assert answer[:2] == (400, "115")


@pytest.mark.parametrize("encoding", ["lz4", "zstd", ""])
async def test_bodies_of_several_frames_are_read_to_their_end(
    engine: EmbeddedEngine, tmp_path: Path, encoding: str
) -> None:
    await engine.analytics.execute("CREATE TABLE tidegate.n (a UInt64) ENGINE = MergeTree ORDER BY a")
    compress = {"lz4": lz4.frame.compress, "zstd": zstd.compress, "": bytes}[encoding]
    lines = [f'{{"a": {number}}}\n'.encode() for number in range(1_000)]
    body = b"".join(compress(b"".join(lines[at : at + 100])) for at in range(0, 1_000, 100))
    headers = {"X_ClickHouse_Key": token(tmp_path, "writer")} | ({"Content_Encoding": encoding} if encoding else {})
    path = "/?query=INSERT+INTO+tidegate.n+FORMAT+JSONEachRow"
    assert (await asyncio.to_thread(request, engine, path, body, **headers))[0] == 200
    assert (await engine.analytics.query("SELECT count(), sum(a) FROM tidegate.n")).rows == [(1_000, 499_500)]
    if encoding:
        cut = body[:-20]
        status, _, text = await asyncio.to_thread(request, engine, path, cut, **headers)
        assert status == 400, text
        assert (await engine.analytics.query("SELECT count() FROM tidegate.n")).rows == [(1_000,)]


async def test_bodies_are_bounded_before_and_after_decompression(
    engine: EmbeddedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chdb_http, "WRITER_BODY_BYTES_MAX", 1_000_000)
    writer = {"X_ClickHouse_Key": token(tmp_path, "writer")}
    reader = {"X_ClickHouse_Key": token(tmp_path, "reader")}
    bomb = lz4.frame.compress(b"0" * 50_000_000)
    assert len(bomb) < 1_000_000
    for body, headers in (
        (b"x" * 1_000_001, writer),
        (bomb, writer | {"Content_Encoding": "lz4"}),
        (b"SELECT 1 --" + b"x" * chdb_http.READER_SQL_BYTES_MAX, reader),
    ):
        assert (await asyncio.to_thread(request, engine, "/", body, **headers))[0] == 413


async def test_a_statement_ends_at_its_time_limit(
    engine: EmbeddedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chdb_http, "READER_TIMEOUT_S", 1)
    reader = over_http(engine, tmp_path, "reader")
    with pytest.raises(AnalyticsUnavailable, match="TIMEOUT_EXCEEDED"):
        await reader.query("SELECT count() FROM numbers(100000000000) WHERE NOT ignore(sipHash64(number))")
    await reader.close()


async def test_any_clickhouse_connect_client_in_another_process_can_query_and_insert(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    await engine.analytics.execute(TABLE)
    script = f"""
import clickhouse_connect
client = clickhouse_connect.get_client(host="127.0.0.1", port={engine.address.port}, username="writer",
    password={token(tmp_path, "writer")!r}, database="tidegate")
client.insert("t", [[1, "n", 5], [2, "n", 6]], column_names=["id", "name", "at"])
print(client.query("SELECT id, name, at FROM t ORDER BY id").result_rows)
print(client.query_df("SELECT count() AS n FROM t").to_dict("records"), client.command("SELECT max(id) FROM t"))
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("[(1, 'n', datetime.datetime(1970, 1, 1, 0, 0, 0, 5)")
    assert second == "[{'n': 2}] 2"


async def test_a_reader_s_client_connects_and_reads(engine: EmbeddedEngine, tmp_path: Path) -> None:
    def ask() -> Any:
        client = clickhouse_connect.get_client(
            host="127.0.0.1", port=engine.address.port, username="reader", password=token(tmp_path, "reader")
        )
        with pytest.raises(DatabaseError, match="readonly"):
            client.command("CREATE DATABASE x")
        return client.query("SELECT 40 + 2").result_rows

    assert await asyncio.to_thread(ask) == [(42,)]


async def test_a_second_opener_is_told_the_owner_s_pid(engine: EmbeddedEngine, tmp_path: Path) -> None:
    with pytest.raises(AnalyticsOwned, match=f"pid {os.getpid()} owns"):
        async with EmbeddedEngine(tmp_path):
            pass
    script = (
        "import asyncio, pathlib, sys; from tidegate.analytics.chdb_server import EmbeddedEngine\n"
        "asyncio.run(EmbeddedEngine(pathlib.Path(sys.argv[1])).__aenter__())"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert f"the process with pid {os.getpid()} owns" in done.stderr


async def test_tokens_are_private_and_tokens_port_and_data_survive_a_restart(tmp_path: Path) -> None:
    async with EmbeddedEngine(tmp_path) as engine:
        await engine.analytics.execute("CREATE DATABASE tidegate")
        await engine.analytics.execute(TABLE)
        await engine.analytics.insert("tidegate.t", columns(3))
        before = engine.address, token(tmp_path, "reader"), token(tmp_path, "writer")
    async with EmbeddedEngine(tmp_path) as engine:
        assert (engine.address, token(tmp_path, "reader"), token(tmp_path, "writer")) == before
        assert read_address(tmp_path) == engine.address
        assert (await engine.analytics.query("SELECT count() FROM tidegate.t")).rows == [(3,)]
    for name in ("analytics.json", "analytics-reader.token", "analytics-writer.token"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert "token" not in json.dumps(json.loads((tmp_path / "analytics.json").read_text())["host"])
    assert before[1] not in (tmp_path / "analytics.json").read_text()


async def test_without_an_owner_a_reader_is_told_what_to_start(tmp_path: Path) -> None:
    with pytest.raises(AnalyticsUnavailable, match="start `tidegate up` first"):
        open_reader(Settings(root=str(tmp_path), data="data"))
