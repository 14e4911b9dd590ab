"""Sealed calls in ClickHouse: opened while they are read, shut for good once their key is gone; in between nothing is
lost and nothing doubled.
"""

import asyncio
import contextlib
import logging
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.parts.audit_events import calls, delivered, requested
from tests.parts.kafka import Kafka
from tests.parts.sealed_calls import (
    RESULT,
    destroyed,
    erasure,
    key_for,
    published,
    sealed_call,
    sealed_records,
    write_masters,
)

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.clickhouse import ClickHouseAnalytics, open_server
from tidegate.analytics.port import Analytics, Answer
from tidegate.chain import Chain
from tidegate.errors import AnalyticsUnavailable
from tidegate.events import Sealed, SessionOpened
from tidegate.ids import now_us, uuid7
from tidegate.log.kafka import KafkaLog
from tidegate.log.port import EventLog, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.privacy.erasure import state_key
from tidegate.privacy.keys import SubjectKey, Wrapping, seal, topic_key
from tidegate.privacy.master import open_wrapping
from tidegate.privacy.ring import TOPIC
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Privacy, Settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import AuditConsumer, create_audit_consumer
from tidegate_audit_consumer.key_feed import Changes, KeyFeed, columns_of
from tidegate_audit_consumer.migrate import migrate
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store
from tidegate_cli.erasing import left_of

QUICK = Bounds(age_max_s=0.02, idle_s=0.05, backoff_min_s=0.01, backoff_max_s=0.05)
PERSONAL = "login, subject, issuer, claimed_client, arguments, result, inputs, is_erased"
OPEN = ("alice@example.com", "alice", "https://idp", "claude 1", '{"path": "/a"}', bytes(RESULT).decode(), "", 0)
SHUT = ("", "", "", "", "", "", "", 0)
ERASED = (*SHUT[:-1], 1)
WITHIN_S = 30.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_masters(tmp_path / "privacy.key")
    return Settings(root=str(tmp_path), data="data", privacy=Privacy(key_file="privacy.key"))


@pytest.fixture
def wrapping(settings: Settings) -> Wrapping:
    found = open_wrapping(settings)
    assert found is not None
    return found


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.sqlite")
    await log.prepare()
    yield log
    await log.close()


def consuming(settings: Settings, log: EventLog) -> contextlib.AbstractAsyncContextManager[AuditConsumer]:
    return create_audit_consumer(settings, log, now_us, registry=CollectorRegistry(), bounds=QUICK)


async def shown(analytics: Analytics, call_id: str) -> tuple[Any, ...]:
    answer = await analytics.query(
        f"SELECT {PERSONAL} FROM tidegate.calls WHERE call_id = {{id:String}}",
        {"id": call_id},
    )
    return answer.rows[0] if len(answer.rows) == 1 else tuple(answer.rows)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await holds():
            await asyncio.sleep(0.02)


async def shows(analytics: Analytics, call_id: str, wanted: tuple[Any, ...]) -> None:
    """Until it does."""

    async def holds() -> bool:
        return await shown(analytics, call_id) == wanted

    try:
        await until(holds)
    except TimeoutError:
        assert await shown(analytics, call_id) == wanted


async def keys_in(analytics: Analytics) -> set[str]:
    return {kid for (kid,) in (await analytics.query("SELECT kid FROM tidegate.subject_keys")).rows}


async def test_a_call_is_found_by_what_is_personal_in_it_until_its_key_is_destroyed(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    alice, bob = key_for("5ub"), key_for("b0b")
    await log.append([*sealed_records(alice, "c1"), *sealed_records(bob, "c2", writer="w2")])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(4)
        assert await shown(consumer.analytics, "c1") == SHUT, "no key came yet, and nobody was erased"
        await log.append(published(wrapping, alice, bob))
        await shows(consumer.analytics, "c1", OPEN)
        await shows(consumer.analytics, "c2", OPEN)
        found = (
            "SELECT call_id FROM tidegate.calls WHERE login = 'alice@example.com' AND arguments LIKE '%/a%' ORDER BY 1"
        )
        assert (await consumer.analytics.query(found)).rows == [("c1",), ("c2",)]
        before = await consumer.analytics.query("SELECT hex(raw), hash FROM tidegate.events ORDER BY writer, seq")

        await log.append(destroyed(alice))
        await shows(consumer.analytics, "c1", ERASED)
        assert await shown(consumer.analytics, "c2") == OPEN
        assert (await consumer.analytics.query(found)).rows == [("c2",)]
        assert (
            await consumer.analytics.query("SELECT hex(raw), hash FROM tidegate.events ORDER BY writer, seq") == before
        )
        files = [path.read_bytes() for path in (settings.data_dir / "analytics").rglob("*") if path.is_file()]
        assert not any(alice.key in content for content in files), "the key's bytes are in no file any more"
        assert any(bob.key in content for content in files), "where they would have been"
    async with consuming(settings, log) as consumer:
        await shows(consumer.analytics, "c2", OPEN)
        assert await shown(consumer.analytics, "c1") == ERASED


async def test_denials_show_who_it_was_as_long_as_that_may_be_known(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    key = key_for()
    denied = requested("d1", decision="deny", sealed=seal(Sealed(login="alice@example.com"), key))
    await log.append([Chain("w").seal(denied), *published(wrapping, key)])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(1)

        async def logins() -> list[tuple[Any, ...]]:
            return (await consumer.analytics.query("SELECT call_id, login FROM tidegate.denials")).rows

        await until(lambda: _equal(logins(), [("d1", "alice@example.com")]))
        await log.append(destroyed(key))
        await until(lambda: _equal(logins(), [("d1", "")]))


async def _equal(found: Awaitable[Any], wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_an_erasure_reaches_keys_that_were_never_named(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    now = now_us()
    old, new, never_published = key_for(created_us=now - 9_000_000), key_for(created_us=now + 9_000_000), key_for()
    records = [*sealed_records(old, "old"), *sealed_records(new, "new", writer="w2")]
    await log.append([*records, *sealed_records(never_published, "never", writer="w3")])
    await log.append(published(wrapping, old, new))
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(6)
        await shows(consumer.analytics, "old", OPEN)
        assert await shown(consumer.analytics, "never") == SHUT
        await log.append(erasure("5ub", now))
        await shows(consumer.analytics, "old", ERASED)
        assert await shown(consumer.analytics, "never") == ERASED
        assert await shown(consumer.analytics, "new") == OPEN, "it was made after the erasure"
        late = key_for(created_us=now - 1)
        other = key_for("0ther", created_us=now - 1)
        await log.append(published(wrapping, late, other))
        await until(lambda: _equal(keys_in(consumer.analytics), {new.kid, other.kid}))


async def test_plain_and_sealed_calls_stand_side_by_side_and_a_replay_doubles_nothing(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    key = key_for()
    records = [*calls(5), *sealed_records(key, *[f"s{number}" for number in range(5)])]
    await log.append([*published(wrapping, key), *records])
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(20)
        await shows(consumer.analytics, "s4", OPEN)
        for first in (0, 1_000):  # as they were, and as another log would hand them out
            again = delivered(records, first)
            await store(consumer.analytics, open_batch(again), again)
        answer = await consumer.analytics.query(
            "SELECT count(), uniqExact(call_id), countIf(login = 'alice@example.com'), sum(is_erased) "
            "FROM tidegate.calls"
        )
        assert answer.rows == [(10, 10, 10, 0)]
        assert await shown(consumer.analytics, "s0") == OPEN


async def test_what_was_erased_while_nobody_looked_is_gone_and_what_clickhouse_lost_comes_back(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    kept, lost, forgotten = key_for("kept"), key_for("lost"), key_for("forgotten")
    fast = key_for("forgotten", created_us=now_us() + 9_000_000)  # of an edge whose clock was ahead
    await log.append(published(wrapping, kept, lost))
    async with consuming(settings, log) as consumer:
        await until(lambda: _migrated(consumer.analytics))
        await until(lambda: _equal(keys_in(consumer.analytics), {kept.kid, lost.kid}))
    async with EmbeddedEngine(settings.data_dir) as engine:
        await put(engine.analytics, forgotten)
        await put(engine.analytics, fast)
        await engine.analytics.execute(f"ALTER TABLE tidegate.subject_keys DELETE WHERE kid = '{lost.kid}'")
    await log.append(erasure("forgotten", now_us(), kids=(fast.kid,)))
    async with consuming(settings, log) as consumer:
        await until(lambda: _equal(keys_in(consumer.analytics), {kept.kid, lost.kid}))


async def test_a_consumer_of_an_empty_or_another_log_takes_nobody_s_key_and_says_so(
    settings: Settings, log: SqliteLog, wrapping: Wrapping, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [key_for(f"s{number}") for number in range(5)]
    erased = key_for("erased")
    await log.append([*published(wrapping, *keys), *sealed_records(keys[0], "c1")])
    other = SqliteLog(tmp_path / "other.sqlite")
    await other.prepare()
    await other.append(erasure("erased", now_us()))
    async with consuming(settings, log) as consumer:
        await consumer.wait_until_ingested(2)
        await shows(consumer.analytics, "c1", OPEN)
        await until(lambda: _equal(keys_in(consumer.analytics), {key.kid for key in keys}))
    async with EmbeddedEngine(settings.data_dir) as engine:
        await put(engine.analytics, erased)
        registry = CollectorRegistry()
        with caplog.at_level(logging.ERROR, "tidegate_audit_consumer.key_feed"):
            async with feeding(other, engine.analytics, wrapping, registry) as feed:
                await until(lambda: _is_current(feed))
        assert await keys_in(engine.analytics) == {key.kid for key in keys}
        assert registry.get_sample_value("tidegate_audit_subject_keys_unknown") == 5
        assert [record.message for record in caplog.records if "5 keys" in record.message]
        assert len(caplog.records) == 1
        assert await shown(engine.analytics, "c1") == OPEN
    await other.close()


async def _is_current(feed: KeyFeed) -> bool:
    return feed.is_current


async def test_what_is_left_of_a_person_counts_every_event_in_clear_and_no_sealed_one(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, tenant="acme")
    key, chain = key_for(), Chain("w")
    tricky = Sealed(arguments=msgspec.Raw(b'{"sealed":{"kid":"0"}}'))
    opened = SessionOpened(
        id=uuid7(),
        time_us=now_us(),
        tenant="acme",
        region="eu",
        session_id="se55ion",
        subject_id="5ub",
        agent="a",
        protocol="p",
        edge="edge-1",
        sealed=Sealed(claimed_client="claude 1"),
    )
    plain = [
        opened,
        msgspec.structs.replace(opened, id=uuid7(), subject_id="0ther"),
        requested("hint", subject_id="5ub", sealed=Sealed(claimed_client="claude 1")),
        requested("tricky", subject_id="5ub", sealed=tricky),
        requested("nothing", subject_id="5ub", sealed=Sealed()),
    ]
    async with EmbeddedEngine(settings.data_dir) as engine:
        await migrate(engine.analytics)
        for records in (sealed_records(key, "c1"), [chain.seal(event) for event in plain]):
            batch = delivered(records)
            await store(engine.analytics, open_batch(batch), batch)
            await store(engine.analytics, open_batch(batch), batch)
            left = await left_of(engine.analytics, settings, "5ub", now_us() + 10**6)
            if len(records) == 2:
                assert (left.calls, left.readable, left.plain_events) == (1, 0, 0)
        assert (left.calls, left.readable, left.plain_events) == (4, 2, 3)
        assert (await left_of(engine.analytics, settings, "5ub", 1)).plain_events == 0


async def put(analytics: Analytics, key: SubjectKey) -> None:
    await analytics.insert("tidegate.subject_keys", columns_of([key]))


async def test_a_key_that_was_made_and_destroyed_before_the_start_is_never_put_in(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    key, other = key_for(), key_for("0ther")
    await log.append([*sealed_records(key, "c1"), *published(wrapping, key, other), *destroyed(key)])
    inserted: list[str] = []

    class Watching(Passing):
        async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
            inserted.extend(columns["kid"] if table == "tidegate.subject_keys" else ())
            await super().insert(table, columns, token=token)

    async with EmbeddedEngine(settings.data_dir) as engine:
        await migrate(engine.analytics)
        async with feeding(log, Watching(engine.analytics), wrapping):
            await until(lambda: _equal(keys_in(engine.analytics), {other.kid}))
    assert inserted == [other.kid]


class Passing:
    """An Analytics in front of another."""

    def __init__(self, inner: ClickHouseAnalytics) -> None:
        self.inner = inner

    async def execute(self, sql: str) -> None:
        await self.inner.execute(sql)

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        await self.inner.insert(table, columns, token=token)

    async def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        return await self.inner.query(sql, parameters)

    async def close(self) -> None: ...


class Failing(Passing):
    """Every statement fails once before it is done and once after."""

    def __init__(self, inner: ClickHouseAnalytics) -> None:
        super().__init__(inner)
        self.turns: Counter[str] = Counter()

    async def _through(self, statement: str, work: Awaitable[Any]) -> Any:
        self.turns[statement] += 1
        if self.turns[statement] == 1:
            work.close()  # type: ignore[attr-defined]
            raise AnalyticsUnavailable("the connection broke before the statement")
        done = await work
        if self.turns[statement] == 2:
            raise AnalyticsUnavailable("the connection broke before the answer")
        return done

    async def execute(self, sql: str) -> None:
        await self._through(sql, self.inner.execute(sql))

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        named = f"{table} {columns.get('kid')}"
        await self._through(named, self.inner.insert(table, columns, token=token))


@contextlib.asynccontextmanager
async def feeding(
    log: EventLog, analytics: Analytics, wrapping: Wrapping | None, registry: CollectorRegistry | None = None
) -> AsyncIterator[KeyFeed]:
    feed = KeyFeed(log, analytics, wrapping, QUICK, registry or CollectorRegistry())
    task = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        feed.stop()
        await asyncio.wait_for(task, WITHIN_S)


async def test_with_clickhouse_away_keys_wait_and_arrive_and_go_all_the_same(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    keys = [key_for(f"s{number}") for number in range(12)]
    await log.append(published(wrapping, *keys[:6]))
    async with EmbeddedEngine(settings.data_dir) as engine:
        await migrate(engine.analytics)
        async with feeding(log, Failing(engine.analytics), wrapping):
            await until(lambda: _equal(keys_in(engine.analytics), {key.kid for key in keys[:6]}))
            await log.append([*published(wrapping, *keys[6:]), *destroyed(*keys[:3])])
            await until(lambda: _equal(keys_in(engine.analytics), {key.kid for key in keys[3:]}))


async def test_a_consumer_that_lags_puts_back_nothing_that_another_one_took_away(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    key = key_for()
    await log.append(published(wrapping, key))
    async with EmbeddedEngine(settings.data_dir) as engine:
        await migrate(engine.analytics)
        async with feeding(log, engine.analytics, wrapping):
            await until(lambda: _equal(keys_in(engine.analytics), {key.kid}))
            await log.append(destroyed(key))
            await until(lambda: _equal(keys_in(engine.analytics), set()))
        late = Changes()
        late.add(key)
        await KeyFeed(log, engine.analytics, wrapping, QUICK, CollectorRegistry())._apply(late)
        assert await keys_in(engine.analytics) == set()


JUNK = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"{}", b"[]", b"null", b'{"v":2}', b"[" * 5_000, b'{"v":1,"kid":1}']),
)


@hypothesis_settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_stands_in_the_topic_the_good_keys_arrive_and_no_secret_is_told(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    wrapping, stranger = Wrapping([b"m" * 32]), Wrapping([b"x" * 32])
    good, foreign, moved = key_for("good"), key_for("foreign"), key_for("moved")
    value = wrapping.wrap(moved)
    decoded = msgspec.json.decode(value)
    bad = [
        *published(stranger, foreign),
        Record(TOPIC, topic_key("rival", moved.subject_id, moved.kid), value),
        Record(
            TOPIC, topic_key("rival", moved.subject_id, moved.kid), msgspec.json.encode(decoded | {"tenant": "rival"})
        ),
        Record(TOPIC, topic_key("acme", "0ther", moved.kid), value),
        Record(TOPIC, topic_key("acme", "good", "f" * 32), value),
        Record(TOPIC, topic_key("acme", "good", "' OR 1"), None),
        *[Record(TOPIC, data.draw(st.binary(max_size=80)), data.draw(JUNK)) for _ in range(20)],
        *[Record(TOPIC, topic_key("acme", "s", f"{number:032x}"), data.draw(JUNK)) for number in range(20)],
        Record("control-state", state_key("acme", "good"), data.draw(JUNK)),
        Record("control-state", data.draw(st.binary(max_size=40)), data.draw(JUNK)),
    ]
    records = data.draw(st.permutations([*bad, *published(wrapping, good)]))
    caplog.clear()

    async def run() -> None:
        directory = tmp_path_factory.mktemp("fuzz")
        log = SqliteLog(directory / "log.sqlite")
        await log.prepare()
        await log.append(records)
        async with EmbeddedEngine(directory) as engine:
            await migrate(engine.analytics)
            async with feeding(log, engine.analytics, wrapping) as feed:
                async with asyncio.timeout(WITHIN_S):
                    while not feed.is_current:
                        await asyncio.sleep(0.01)
                assert await keys_in(engine.analytics) == {good.kid}
        await log.close()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    for secret in (good.key, moved.key, foreign.key, b"m" * 32):
        for text in (secret.hex(), b64encode(secret).decode(), repr(secret)[2:-1]):
            assert text not in caplog.text


async def test_without_a_master_nothing_is_opened_and_erasures_count_all_the_same(
    settings: Settings, log: SqliteLog, wrapping: Wrapping
) -> None:
    key, held = key_for(), key_for("held")
    await log.append([*published(wrapping, key, held), *sealed_records(held, "c1")])
    async with EmbeddedEngine(settings.data_dir) as engine:
        await migrate(engine.analytics)
        await put(engine.analytics, held)
        async with feeding(log, engine.analytics, None):
            await log.append(destroyed(held))
            await until(lambda: _equal(keys_in(engine.analytics), set()))


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["arguments", "result", "inputs", "login", 'a":', "}"]), inner, max_size=3)
    ),
    max_leaves=8,
).map(msgspec.json.encode)
HARD = [
    b"12345678901234567890123456789012345678901234567890",
    b"1.0",
    b"1e400",
    b'{"a": 1,\t"a":2 }',
    b'"\\u00e9\\ud83d\\ude00"',
]
CONTENT = st.one_of(ANY_JSON, st.sampled_from(HARD)).map(msgspec.Raw)
TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(['","login":"x', '"arguments":1', "\\", '\\"', "\x00\n"]))
PARTS = st.builds(
    Sealed,
    issuer=TEXTS,
    subject=TEXTS,
    user=TEXTS,
    login=TEXTS,
    claimed_client=TEXTS,
    arguments=CONTENT,
    inputs=CONTENT,
)


BACKSLASHES = ["C:\\", "\\\\", '\\"', "a\\b", '"']
SLASHED = [
    Sealed(
        login=one,
        subject=one,
        arguments=msgspec.Raw(msgspec.json.encode(value)),
        inputs=msgspec.Raw(msgspec.json.encode([one])),
    )
    for one in BACKSLASHES
    for value in (one, {"path": one, one: {"x": [one, "]}"]}})
]


@example(parts=SLASHED, results=[part.arguments for part in SLASHED])
@hypothesis_settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(PARTS, min_size=60, max_size=60), results=st.lists(CONTENT, min_size=60, max_size=60))
def test_what_sql_shows_of_a_sealed_part_is_what_was_sealed_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, parts: list[Sealed], results: list[msgspec.Raw]
) -> None:
    key = key_for()

    async def run() -> None:
        chain = Chain("w")
        records, wanted = [], {}
        for number, (part, result) in enumerate(zip(parts, results, strict=True)):
            request, completion = sealed_call(key, f"c{number}")
            completion = msgspec.structs.replace(completion, sealed=seal(Sealed(login=part.login, result=result), key))
            records += [chain.seal(msgspec.structs.replace(request, sealed=seal(part, key))), chain.seal(completion)]
            texts = [text.encode() for text in (part.issuer, part.subject, part.login, part.claimed_client)]
            whole = [b"" if bytes(raw) == b"null" else bytes(raw) for raw in (part.arguments, result, part.inputs)]
            wanted[f"c{number}"] = tuple(text.hex().upper() for text in (*texts, *whole))
        async with EmbeddedEngine(tmp_path_factory.mktemp("law")) as engine:
            await migrate(engine.analytics)
            await put(engine.analytics, key)
            batch = delivered(records)
            await store(engine.analytics, open_batch(batch), batch)
            columns = ("issuer", "subject", "login", "claimed_client", "arguments", "result", "inputs")
            asked = ", ".join(f"hex({column})" for column in columns)
            answer = await engine.analytics.query(f"SELECT call_id, {asked} FROM tidegate.calls")
            assert {row[0]: tuple(row[1:]) for row in answer.rows} == wanted

    asyncio.run(run())


async def test_a_query_that_names_nothing_personal_reads_neither_boxes_nor_keys(tmp_path: Path) -> None:
    async with EmbeddedEngine(tmp_path) as engine:
        await migrate(engine.analytics)
        for free in ("count()", "server, status, count()", "call_id, subject_id, message, findings, result_bytes"):
            plan = await engine.analytics.query(f"EXPLAIN actions = 1 SELECT {free} FROM tidegate.calls GROUP BY ALL")
            told = "\n".join(row[0] for row in plan.rows)
            assert not any(word in told for word in ("_box", "_kid", "tryDecrypt", "joinGet", "erasures")), free


async def test_two_consumers_of_a_cluster_open_and_erase_as_one(kafka: Kafka, tmp_path: Path) -> None:
    write_masters(tmp_path / "privacy.key")
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(EmbeddedEngine(tmp_path))
        settings = Settings(
            root=str(tmp_path),
            log=f"kafka://{kafka.bootstrap}",
            kafka=KafkaSettings(prefix=f"sealed{uuid7()}.", partitions=2, replication=1, min_insync=1),
            analytics=f"clickhouse://writer@127.0.0.1:{engine.address.port}/tidegate",
            analytics_password=(tmp_path / "analytics-writer.token").read_text(),
            privacy=Privacy(key_file="privacy.key"),
        )
        wrapping = open_wrapping(settings)
        assert wrapping is not None
        logs = [KafkaLog(settings, writer_id=f"w{number}") for number in range(2)]
        for log in logs:
            stack.push_async_callback(log.close)
        await logs[0].prepare()
        alice, bob = key_for("5ub"), key_for("b0b")
        await logs[0].append([*published(wrapping, alice, bob), *sealed_records(alice, "c1")])
        await logs[0].append(sealed_records(bob, "c2", writer="w2"))
        for log in logs:
            await stack.enter_async_context(consuming(settings, log))
        reader = open_server(settings.analytics, settings.analytics_password)
        stack.push_async_callback(reader.close)
        await until(lambda: _migrated(reader))
        await shows(reader, "c1", OPEN)
        await shows(reader, "c2", OPEN)
        await logs[1].append([*erasure("5ub", now_us()), *destroyed(alice)])
        await shows(reader, "c1", ERASED)
        assert await shown(reader, "c2") == OPEN
        assert await keys_in(reader) == {bob.kid}


async def _migrated(analytics: Analytics) -> bool:
    answer = await analytics.query(
        "SELECT count() FROM system.tables WHERE database = 'tidegate' AND name = 'erasures'"
    )
    return bool(answer.rows[0][0])
