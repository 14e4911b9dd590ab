"""Processes die under load, and the books balance by nonce in both directions: what the upstream saw against the log.

Every request that the upstream saw has exactly one record, durable before it was sent; every record without a sighting
is a refusal, or says that the call's end is not known.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.parts.asking import get, until
from tests.parts.books import check_chains, nonce_of
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Load, Raw, http_client, reached, running_load
from tests.parts.cluster import Cluster, Service, running_cluster, telling
from tests.parts.kafka import Kafka, running_kafka
from tests.parts.lab_policy import lab_bundle
from tests.parts.processes import free_port

from tidegate.events import CallAbandoned, CallCompleted, CallRequested
from tidegate.log.spool import Spool

pytestmark = pytest.mark.kafka
USERS = [f"user{number}@example.com" for number in range(4)]


class Place:
    """A cluster and the address where its upstream tells what it saw."""

    def __init__(self, cluster: Cluster, seen: str) -> None:
        self.cluster = cluster
        self._seen = seen
        self.bases = [edge.base for edge in cluster.edges]
        self.tokens = [cluster.token(user) for user in USERS]

    def sightings(self) -> Counter[str]:
        """Nonces that the upstream saw, and how often."""
        return Counter(nonce for nonce, _ in msgspec.json.decode(get(self._seen)[1])["calls"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Place]:
    """Two edges in spool mode, and the audit consumer with its embedded ClickHouse."""
    directory = tmp_path_factory.mktemp("crash")
    with (
        running_upstream(directory, "--delay-ms", "40") as up,
        running_cluster(
            directory, kafka.bootstrap, servers={"up": {"url": up["url"]}}, bundle=lab_bundle(), audit=True
        ) as cluster,
    ):
        yield Place(cluster, up["seen"])


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    with telling(running.cluster):
        yield running


@pytest.fixture(scope="module")
def running_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kafka, Place]]:
    """An edge with a broker of its own, which may be stopped. Calls of `up` are spooled, those of `firm` are strict."""
    directory = tmp_path_factory.mktemp("apart")
    with (
        running_kafka() as broker,
        running_upstream(directory) as up,
        running_cluster(
            directory,
            broker.bootstrap,
            servers={"up": {"url": up["url"]}, "firm": {"url": up["url"]}},
            bundle=lab_bundle(("up", "firm")),
            edges=1,
            rules=[{"server": "firm", "durability": "strict"}],
        ) as cluster,
    ):
        yield broker, Place(cluster, up["seen"])


@pytest.fixture
def apart(running_apart: tuple[Kafka, Place]) -> Iterator[tuple[Kafka, Place]]:
    with telling(running_apart[1].cluster):
        yield running_apart


async def restart(edge: Service) -> None:
    """Start again on its data while the load goes on."""
    edge.launch()
    await asyncio.to_thread(edge.wait_ready)


def balance(place: Place, load: Load) -> Counter[str]:
    """Balance the books of this load; how many calls ended in which way. Raises AssertionError."""
    seen = Counter({nonce: times for nonce, times in place.sightings().items() if nonce in load.answered})
    requested: defaultdict[str, list[CallRequested]] = defaultdict(list)
    completed: defaultdict[str, list[CallCompleted]] = defaultdict(list)
    abandoned: defaultdict[str, list[CallAbandoned]] = defaultdict(list)
    for event in place.cluster.events("calls"):
        match event:
            case CallRequested() if nonce_of(event) in load.answered:
                requested[nonce_of(event)].append(event)
            case CallCompleted():
                completed[event.call_id].append(event)
            case CallAbandoned():
                abandoned[event.call_id].append(event)
    assert all(times == 1 for times in seen.values()), "the upstream saw a call twice"
    assert all(len(records) == 1 for records in requested.values()), "a call has two records"
    assert set(seen) <= set(requested), f"seen and not recorded: {sorted(set(seen) - set(requested))[:5]}"
    ends: Counter[str] = Counter()
    for nonce, (record,) in requested.items():
        done, left = completed[record.call_id], abandoned[record.call_id]
        assert len(done) <= 1, record
        assert len(left) <= 1, record
        assert record.decision == "allow", record
        end = done[0].outcome if done else "unknown"
        ends[end] += 1
        if end == "unknown":
            assert left, f"{nonce} was left open and no one said so"
            assert not load.answered[nonce].is_ok, f"{nonce} was answered and its completion is not recorded"
        if end == "ok":
            assert nonce in seen, f"{nonce} has an answer that nobody gave"
    for nonce, told in load.answered.items():
        if told.is_ok:
            assert nonce in seen, nonce
            assert completed[requested[nonce][0].call_id][0].outcome == "ok"
    return ends


async def kill_under_way(edge: Service) -> None:
    """At a moment at which it has forwarded calls and not heard of them yet."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(edge.metric, "tidegate_calls_in_flight") < 4:
            pass
    edge.kill()


async def test_edges_killed_under_load_leave_balanced_books(place: Place) -> None:
    edges = place.cluster.edges
    async with running_load(place.tokens, place.bases, name="kill") as load:
        for victim in (edges[0], edges[1], edges[0]):
            await reached(load, 150)
            await kill_under_way(victim)
            await reached(load, 30)
            await restart(victim)
        await reached(load, 100)
    await asyncio.to_thread(place.cluster.wait_shipped)
    ends = balance(place, load)
    assert ends["ok"] >= load.done, "a recorded answer may have died with its edge, never the other way round"
    assert ends["unknown"] >= 3, f"16 callers were under way at three deaths: {ends}"
    chains = check_chains(place.cluster.values())
    assert chains.writers >= 6, "each start of an edge is a writer of its own"
    print(f"calls {ends}, {chains}")


async def test_clickhouse_holds_the_same_calls_each_once(place: Place) -> None:
    async with running_load(place.tokens, place.bases, name="rows", calls_max=8_000) as load:
        await reached(load, 100)
        place.cluster.audit.kill()
        await reached(load, 100)
        await kill_under_way(place.cluster.edges[1])
        await reached(load, 30)
        await restart(place.cluster.edges[1])
        place.cluster.audit.launch()
    await asyncio.to_thread(place.cluster.audit.wait_ready)
    await asyncio.to_thread(place.cluster.wait_shipped)
    ends = balance(place, load)
    logged = {event.call_id: event for event in place.cluster.requests()}
    stored = len({(event.writer, event.seq) for event in place.cluster.events("calls")})
    ask = place.cluster.query
    await asyncio.to_thread(
        until,
        lambda: int(ask("SELECT count() AS n FROM tidegate.events WHERE type LIKE 'call.%'")[0]["n"]) >= stored,
        f"{stored} call events in ClickHouse",
    )
    for table, key in (("tidegate.events", "event_id"), ("tidegate.calls", "call_id")):
        (row,) = ask(f"SELECT count() AS n, uniqExact({key}) AS distinct FROM {table}")
        assert row["n"] == row["distinct"], (table, row)
    rows = ask("SELECT call_id, status, arguments FROM tidegate.calls")
    assert {row["call_id"] for row in rows} == set(logged)
    assert "pending" not in {row["status"] for row in rows}
    mine = Counter(row["status"] for row in rows if msgspec.json.decode(row["arguments"])["nonce"] in load.answered)
    assert mine == ends
    assert ends["unknown"] > 0


async def test_an_edge_told_to_end_under_load_ends_well_with_an_empty_spool(place: Place) -> None:
    leaving = place.cluster.edges[0]
    async with running_load(place.tokens, place.bases, name="term") as load:
        await reached(load, 150)
        leaving.terminate()
        status = await asyncio.to_thread(leaving.wait_gone)
        await reached(load, 50)
    assert status == 0
    spool = Spool(leaving.data / "spool", 1 << 30, edge=leaving.name)
    left, unfinished = spool.backlog(), spool.unfinished()
    spool.close()
    leaving.start()
    assert (left.records, unfinished) == (0, [])
    await asyncio.to_thread(place.cluster.wait_shipped)
    ends = balance(place, load)
    assert ends == {"ok": load.done}, "every call under way was finished, recorded and answered"
    broken = [told for told in load.answered.values() if told.message and not told.is_ok and told.status != 503]
    assert not broken


async def test_calls_go_on_while_kafka_is_away_and_everything_arrives_afterwards(apart: tuple[Kafka, Place]) -> None:
    broker, place = apart
    (edge,) = place.cluster.edges
    async with running_load(place.tokens, place.bases, name="away", callers=8, calls_max=4_000) as load:
        await reached(load, 100)
        broker.kill()
        await reached(load, 300)
        assert edge.metric("tidegate_spool_backlog_records") > 300
        broker.start()
        await reached(load, 50)
    assert load.done == len(load.answered), "no call was refused"
    await asyncio.to_thread(place.cluster.wait_shipped)
    assert balance(place, load) == {"ok": load.done}
    check_chains(place.cluster.values())


async def test_a_strict_call_is_refused_while_kafka_is_away_and_never_forwarded(apart: tuple[Kafka, Place]) -> None:
    broker, place = apart
    async with http_client() as client:
        raw = Raw(client, place.tokens[0])
        assert (await raw.call(place.bases[0], "firm__echo", text="x", nonce="strict 1")).is_ok
        broker.pause()
        try:
            refused, spooled = await asyncio.gather(
                raw.call(place.bases[0], "firm__echo", text="x", nonce="strict 2"),
                raw.call(place.bases[0], "up__echo", text="x", nonce="strict 3"),
            )
        finally:
            broker.resume()
        assert spooled.is_ok
        assert refused.status == 503
        assert refused.message["error"]["message"].startswith("The call could not be recorded, so it was not made")
        assert (await raw.call(place.bases[0], "firm__echo", text="x", nonce="strict 4")).is_ok
    seen = place.sightings()
    assert (seen["strict 1"], seen["strict 2"], seen["strict 3"], seen["strict 4"]) == (1, 0, 1, 1)
    await asyncio.to_thread(place.cluster.wait_shipped)
    modes = {nonce_of(event): event.mode for event in place.cluster.requests()}
    assert (modes["strict 1"], modes["strict 3"], modes["strict 4"]) == ("strict", "spool", "strict")


def test_a_spool_is_one_writer_and_a_second_edge_on_it_is_refused(place: Place, tmp_path: Path) -> None:
    edge = place.cluster.edges[0]
    twin = Service("twin", "edge", tmp_path / "twin.yaml", edge.base)
    listen = edge.base.removeprefix("http://")
    twin.config.write_text(edge.config.read_text().replace(listen, f"127.0.0.1:{free_port()}"))
    twin.launch()
    assert twin.wait_gone() != 0
    assert str(edge.pid) in twin.news()
    assert edge.is_ready()
