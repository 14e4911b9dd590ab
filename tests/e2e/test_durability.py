"""An edge against its spool's bound, a damaged disk and its own death, on a real broker that is away meanwhile.

Calls go on until the bound, then are refused with a reason; everything that was recorded arrives afterwards, in order,
and what a disk lost is told of by number.
"""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.parts.asking import until
from tests.parts.books import check_chains, nonce_of
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client
from tests.parts.cluster import TIDEGATE, Cluster, running_cluster, telling
from tests.parts.kafka import Kafka, running_kafka
from tests.parts.lab_policy import lab_bundle

from tidegate.chain import open_head
from tidegate.events import CallCompleted, SpoolDamaged
from tidegate.log.recovery import scan
from tidegate.log.segments import HEADER_BYTES

pytestmark = pytest.mark.kafka
BOUND = 400_000
TEXT = "a word or two, " * 150


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kafka, Cluster]]:
    """An edge whose spool is small, and a broker of its own."""
    directory = tmp_path_factory.mktemp("durability")
    with (
        running_kafka() as broker,
        running_upstream(directory) as up,
        running_cluster(
            directory,
            broker.bootstrap,
            servers={"up": {"url": up["url"]}},
            bundle=lab_bundle(),
            edges=1,
            limits={"spool_bytes_max": BOUND},
        ) as cluster,
    ):
        yield broker, cluster


@pytest.fixture
def place(running: tuple[Kafka, Cluster]) -> Iterator[tuple[Kafka, Cluster]]:
    with telling(running[1]):
        yield running


def recorded(cluster: Cluster) -> list[str]:
    return [nonce_of(event) for event in cluster.requests()]


async def calls(cluster: Cluster, *nonces: str) -> list[bool]:
    async with http_client() as client:
        raw = Raw(client, cluster.token())
        base = cluster.edges[0].base
        return [(await raw.call(base, "up__echo", text=TEXT, nonce=nonce)).is_ok for nonce in nonces]


async def test_calls_go_on_to_the_spool_s_bound_then_are_refused_and_all_of_them_arrive(
    place: tuple[Kafka, Cluster],
) -> None:
    broker, cluster = place
    (edge,) = cluster.edges
    broker.kill()
    answered: list[str] = []
    async with http_client() as client, asyncio.timeout(120):
        raw = Raw(client, cluster.token())
        while (told := await raw.call(edge.base, "up__echo", text=TEXT, nonce=f"bound {len(answered)}")).is_ok:
            answered.append(f"bound {len(answered)}")
    assert told.status == 503
    assert "spool" in told.message["error"]["message"]
    assert "Kafka" in told.message["error"]["message"]
    assert len(answered) > 20
    assert edge.metric("tidegate_spool_full") == 1
    assert 0.8 * BOUND < edge.metric("tidegate_spool_backlog_bytes") <= BOUND
    await asyncio.to_thread(until, lambda: edge.metric("tidegate_spool_fault") == 1, "shipping is told to fail")
    assert edge.metric("tidegate_spool_backlog_age_seconds") > 0
    broker.start()
    await asyncio.to_thread(cluster.wait_shipped)
    assert [nonce for nonce in recorded(cluster) if nonce.startswith("bound")] == answered
    assert await calls(cluster, "after"), "it goes on without a restart"
    await asyncio.to_thread(cluster.wait_shipped)
    assert edge.metric("tidegate_spool_fault") == 0
    check_chains(cluster.values())


async def test_a_record_that_the_disk_lost_is_named_on_the_log_and_the_others_arrive(
    place: tuple[Kafka, Cluster],
) -> None:
    broker, cluster = place
    (edge,) = cluster.edges
    broker.kill()
    nonces = [f"rot {number}" for number in range(6)]
    assert all(await calls(cluster, *nonces))
    edge.kill()
    lost = flip_in_the_middle(edge.data / "spool")
    broker.start()
    edge.start()
    await asyncio.to_thread(
        until, lambda: any(isinstance(one, SpoolDamaged) for one in cluster.events("integrity")), "the loss is told"
    )
    await asyncio.to_thread(cluster.wait_shipped)
    (told,) = [one for one in cluster.events("integrity") if isinstance(one, SpoolDamaged)]
    assert (told.of_writer, told.first_seq, told.last_seq, told.records) == (*lost, lost[1], 1)
    assert (edge.data / "spool" / told.aside).exists()
    assert edge.metric("tidegate_spool_damaged") == 1
    held = {(head.writer, head.seq) for head in map(open_head, cluster.values())}
    mine = {seq for writer, seq in held if writer == lost[0]}
    assert mine == set(range(1, max(mine) + 1)) - {lost[1]}


def flip_in_the_middle(spool: Path) -> tuple[str, int]:
    """Of the middle one of what is there: its writer and number."""
    path = max(spool.glob("*.segment"))
    content = bytearray(path.read_bytes())
    (run,), _ = scan(bytes(content), HEADER_BYTES)
    victim = run.records[len(run.records) // 2]
    assert victim.value is not None
    content[content.index(victim.value) + 40] ^= 0x04
    path.write_bytes(content)
    head = open_head(victim.value)
    return head.writer, head.seq


async def test_a_dead_edge_s_spool_is_shipped_by_command(place: tuple[Kafka, Cluster]) -> None:
    broker, cluster = place
    (edge,) = cluster.edges
    broker.kill()
    nonces = [f"orphan {number}" for number in range(5)]
    assert all(await calls(cluster, *nonces))
    edge.kill()
    broker.start()
    command = [str(TIDEGATE), "spool", "ship", str(edge.data), "--config", str(cluster.policy.config)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, timeout=60, check=False, cwd=cluster.directory
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "is empty" in done.stdout.decode()
    assert [nonce for nonce in recorded(cluster) if nonce.startswith("orphan")] == nonces
    ended = {one.call_id for one in cluster.events("calls") if isinstance(one, CallCompleted)}
    assert ended >= {one.call_id for one in cluster.requests() if nonce_of(one) in nonces}
    edge.start()
    assert all(await calls(cluster, "alive again"))
