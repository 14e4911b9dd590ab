"""The audit consumer ends, or a port fails, at every point where it waits: afterwards each event is there once.

A port is what is asked of the log or of ClickHouse; before and after each call of one is a point. The log, the engine
and the consumer are real. A killed process is one whose ports do nothing any more.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from tests.parts.audit_events import completed, finding, requested

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.chain import Chain
from tidegate.errors import AnalyticsUnavailable, LogUnavailable
from tidegate.ids import now_us
from tidegate.log.port import Record
from tidegate.log.sqlite import SqliteLog
from tidegate.log.sqlite_file import connect, ends_of, settled
from tidegate.settings import Settings
from tidegate_audit_consumer import consumer as consumers
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import GROUP, TOPICS, create_audit_consumer, prepare_database

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = Bounds(age_max_s=0.01, idle_s=0.02, backoff_min_s=0.001, backoff_max_s=0.01)
CALLS = 3
STORED = ("insert tidegate.calls_raw", "insert tidegate.findings_raw", "insert tidegate.events_raw")
Way = Literal["killed", "cancelled", "failed"]


class Gone(BaseException):
    """The process was killed."""


class Point:
    """Where it happens: the n-th call of this name, before or after it is done."""

    def __init__(self, name: str = "", nth: int = 0, *, done: bool = False, way: Way = "killed") -> None:
        self.name, self.nth, self.done, self.way = name, nth, done, way
        self.calls: dict[str, int] = {}
        self.happened = False
        self.is_dead = False
        self._at = 0.0

    @property
    def is_over(self) -> bool:
        """It happened, and a process that lives on had the time to try again."""
        return self.happened and (self.way != "failed" or time.monotonic() > self._at + 0.2)

    def before(self, name: str) -> None:
        if self.is_dead:
            raise Gone
        self.calls[name] = self.calls.get(name, 0) + 1
        if not self.done:
            self._happen(name)

    def after(self, name: str) -> None:
        if self.done:
            self._happen(name)

    def _happen(self, name: str) -> None:
        if name != self.name or self.calls[name] != self.nth or self.happened:
            return
        self.happened, self._at = True, time.monotonic()
        match self.way:
            case "killed":
                self.is_dead = True
                raise Gone
            case "cancelled":
                raise asyncio.CancelledError
            case "failed":
                of_log = name.split()[0] in ("poll", "settle", "lag", "append")
                raise LogUnavailable("the connection broke") if of_log else AnalyticsUnavailable("the connection broke")


class Faulty:
    """A port whose calls are points."""

    def __init__(self, inner: Any, point: Point, names: tuple[str, ...]) -> None:
        self._inner, self._point, self._names = inner, point, names

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if name not in self._names:
            return inner

        async def call(*given: Any, **named: Any) -> Any:
            label = f"{name} {given[0]}" if name == "insert" else name
            self._point.before(label)
            answer = await inner(*given, **named)
            self._point.after(label)
            if name == "follow":
                return Faulty(answer, self._point, ("poll", "settle", "lag"))
            return answer

        return call

    async def close(self) -> None:
        """What is shared goes on; a subscription is left as a broken connection leaves it."""
        if hasattr(self._inner, "poll"):
            await self._inner.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedEngine]:
    directory = tmp_path_factory.mktemp("deaths")
    async with EmbeddedEngine(directory) as engine:
        await prepare_database(engine.analytics, Settings(root=str(directory)))
        yield engine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def log(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path_factory.mktemp("log") / "log.db")
    await log.prepare()
    yield log
    await log.close()


def some(case: str) -> list[Record]:
    """Three calls, one of them again, a finding, and what cannot be read."""
    chain, records = Chain(case), []
    for _ in range(CALLS):
        request = requested(agent=case)
        records += [chain.seal(request), chain.seal(completed(request, agent=case))]
    unreadable = Record("calls", case.encode(), b"no json " + case.encode())
    return [*records, unreadable, *records[:2], Record("detections", b"k", finding(f"f {case}", agent=case))]


def points(calls: dict[str, int]) -> Iterator[Point]:
    """Before and after every call of a life that nothing disturbed; of those that come often, the first two."""
    for name, count in calls.items():
        if name == "follow":  # who dies right after it leaves a membership that a real process takes along
            continue
        for nth in range(1, min(count, 2 if name in ("poll", "query") else 1) + 1):
            for way in ("killed", "cancelled", "failed"):
                yield Point(name, nth, way=way)
            yield Point(name, nth, done=True, way="killed")
            if name != "poll":  # a poll that raises has delivered nothing: adapters give records or a fault
                yield Point(name, nth, done=True, way="failed")


def is_settled(log: SqliteLog) -> bool:
    db = connect(log.path, readonly=True)
    try:
        done, ends = settled(db, GROUP), ends_of(db)
    finally:
        db.close()
    return all(done.get(topic, 0) >= ends[topic] for topic in TOPICS)


async def live(log: SqliteLog, engine: EmbeddedEngine, point: Point, until: Callable[[], bool]) -> None:
    """One process's life: until the fact, or until it ends by itself."""
    settings = Settings(analytics="clickhouse://writer@127.0.0.1/tidegate", root="/nowhere")
    consumers.open_server = lambda *given: Faulty(engine.analytics, point, ("query", "insert", "execute"))  # type: ignore[assignment, return-value]
    faulty: Any = Faulty(log, point, ("append", "follow"))
    ended: Any = (Gone, asyncio.CancelledError, RuntimeError, BaseExceptionGroup, AnalyticsUnavailable, LogUnavailable)
    with contextlib.suppress(*ended):
        async with create_audit_consumer(settings, faulty, now_us, registry=CollectorRegistry(), bounds=QUICK):
            async with asyncio.timeout(30):
                while not until() and not point.is_over:
                    await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def parts_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """`live` puts its own in their place; the database is prepared once."""

    async def prepared(*given: Any) -> None: ...

    monkeypatch.setattr(consumers, "prepare_database", prepared)
    monkeypatch.setattr(consumers, "open_server", None)


async def test_each_event_is_there_once_wherever_the_consumer_ended_or_a_port_failed(
    log: SqliteLog, engine: EmbeddedEngine
) -> None:
    await log.append(some("whole"))
    whole = Point()
    await live(log, engine, whole, lambda: is_settled(log))
    assert {"poll", "settle", "lag", "append", "query", *STORED} <= whole.calls.keys()
    cases, happened = ["whole"], 0
    for point in points(whole.calls):
        case = f"{point.way} {'after' if point.done else 'before'} {point.name} {point.nth}"
        await log.append(some(case))
        await live(log, engine, point, lambda: is_settled(log))
        happened += point.happened
        if not is_settled(log):
            await live(log, engine, Point(), lambda: is_settled(log))
        assert is_settled(log), case
        cases.append(case)
    assert happened > 0.8 * (len(cases) - 1), "nearly every point was reached"
    await check(engine, log, cases)


async def check(engine: EmbeddedEngine, log: SqliteLog, cases: list[str]) -> None:
    async def by_case(sql: str) -> dict[str, tuple[Any, ...]]:
        return {row[0]: row[1:] for row in (await engine.analytics.query(sql)).rows}

    events = await by_case(
        "SELECT writer, count(), uniqExact(event_id) FROM tidegate.events WHERE writer != '' GROUP BY writer"
    )
    assert events == dict.fromkeys(cases, (2 * CALLS, 2 * CALLS))
    calls = await by_case(
        "SELECT agent, count(), uniqExact(call_id), countIf(status = 'ok') FROM tidegate.calls GROUP BY agent"
    )
    assert calls == dict.fromkeys(cases, (CALLS, CALLS, CALLS))
    findings = await by_case("SELECT agent, count(), uniqExact(finding_id) FROM tidegate.findings GROUP BY agent")
    assert findings == dict.fromkeys(cases, (1, 1))
    for view in ("calls_by_minute", "calls_by_hour"):
        counted = await by_case(f"SELECT agent, sum(calls) FROM tidegate.{view} GROUP BY agent")
        assert counted == dict.fromkeys(cases, (CALLS,)), view
    letters = await log.follow(["dead-letters"])
    found = []
    while more := await letters.poll(1_000, 0.1):
        found += more
    await letters.close()
    assert {letter.key.decode() for letter in found} == set(cases)
    places = [dict(letter.headers)["dlq.original.offset"] for letter in found]
    assert len(set(places)) == len(cases), "one that is there twice names the same place"
