"""A person is erased from a cluster of real processes: two edges, Kafka, Valkey. One edge is away while it happens."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.parts.asking import until
from tests.parts.books import check_chains
from tests.parts.boxes import plain
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client
from tests.parts.cluster import TENANT, Cluster, Service, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

from tidegate.events import CallCompleted, CallRequested, SubjectErased
from tidegate.log.opening import open_log
from tidegate.privacy.keys import Wrapping
from tidegate.privacy.master import add_master, open_wrapping
from tidegate.privacy.ring import KeyRing, load_ring
from tidegate.settings_file import load_settings

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
ALICE, BOB = "alice@example.com", "bob@example.com"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka, valkey_url: str) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("erasure")
    master = directory / "privacy.key"
    add_master(master)
    with (
        running_upstream(directory) as up,
        running_cluster(
            directory,
            kafka.bootstrap,
            servers={"up": {"url": up["url"]}},
            bundle=lab_bundle(("up",)),
            sessions=valkey_url,
            privacy={"key_file": str(master)},
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    with telling(running):
        yield running


async def call(cluster: Cluster, edge: Service, user: str, nonce: str) -> None:
    async with http_client() as client:
        assert (await Raw(client, cluster.token(user)).call(edge.base, "up__echo", text=nonce)).is_ok


def wrapping_of(cluster: Cluster) -> Wrapping:
    found = open_wrapping(load_settings(cluster.policy.config))
    assert found is not None
    return found


async def ring_of(cluster: Cluster) -> KeyRing:
    log = open_log(load_settings(cluster.policy.config))
    try:
        return await load_ring(log, wrapping_of(cluster))
    finally:
        await log.close()


def requests_by(cluster: Cluster, ring: KeyRing) -> dict[str, CallRequested]:
    """The requests that can be opened, by the text in their arguments; as they are stored."""
    cluster.wait_shipped()
    found: dict[str, CallRequested] = {}
    for event in cluster.requests():
        shown = plain(event, ring)
        for nonce in ("a-0", "a-1", "b-0", "b-1", "c-0", "c-1"):
            if isinstance(shown, CallRequested) and f'"{nonce}"'.encode() in bytes(shown.sealed.arguments):
                found[nonce] = event
    return found


def key_file(edge: Service) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(edge.data.glob("subject-keys.db*")))


def is_published(cluster: Cluster) -> None:
    for edge in cluster.edges:
        until(lambda edge=edge: edge.metric("tidegate_subject_keys_unpublished") == 0, "keys are published")  # type: ignore[misc]


async def test_an_erased_person_can_be_read_nowhere_and_the_chains_hold(cluster: Cluster) -> None:
    for number, edge in enumerate(cluster.edges):
        await call(cluster, edge, ALICE, f"a-{number}")
        await call(cluster, edge, BOB, f"b-{number}")
    await asyncio.to_thread(is_published, cluster)
    ring = await ring_of(cluster)
    before = await asyncio.to_thread(requests_by, cluster, ring)
    assert set(before) == {"a-0", "a-1", "b-0", "b-1"}
    subject = before["a-0"].subject_id
    hers = {before["a-0"].sealed.kid, before["a-1"].sealed.kid}
    assert len(hers) == 2, "each edge makes keys of its own"
    stored = await asyncio.to_thread(cluster.values)
    assert not any(word in b"".join(stored) for word in (b"alice", b"a-0"))

    away = cluster.edges[1]
    await asyncio.to_thread(away.stop)
    status, done = await asyncio.to_thread(
        cluster.manage, "POST", "/erasures", {"subject": f"{cluster.issuer.issuer}|{ALICE}", "reason": "asked to"}
    )
    assert (status, done["subject_id"], done["keys"]) == (201, subject, 2)
    kid = before["a-0"].sealed.kid.encode()
    await asyncio.to_thread(until, lambda: kid not in key_file(cluster.edges[0]), "the edge destroyed its key")
    kid = before["a-1"].sealed.kid.encode()
    assert kid in key_file(away)
    away.launch()
    await asyncio.to_thread(away.wait_ready)
    await asyncio.to_thread(until, lambda: kid not in key_file(away), "the edge that was away did, too")

    ring = await ring_of(cluster)
    assert [ring.find(kid) for kid in hers] == [None, None]
    assert set(await asyncio.to_thread(requests_by, cluster, ring)) == {"b-0", "b-1"}
    for number, edge in enumerate(cluster.edges):
        await call(cluster, edge, ALICE, f"c-{number}")
    await asyncio.to_thread(is_published, cluster)
    after = await asyncio.to_thread(requests_by, cluster, await ring_of(cluster))
    assert set(after) == {"b-0", "b-1", "c-0", "c-1"}
    assert {after["c-0"].subject_id, after["c-1"].subject_id} == {subject}
    assert not hers & {after["c-0"].sealed.kid, after["c-1"].sealed.kid}

    now = await asyncio.to_thread(cluster.values)
    assert set(stored) <= set(now), "no record was changed"
    check_chains(now)
    events = cluster.events("control")
    assert [set(event.keys) for event in events if isinstance(event, SubjectErased)] == [hers]


async def test_after_a_rotation_of_the_master_old_and_new_records_open(cluster: Cluster) -> None:
    old = wrapping_of(cluster)
    edge = cluster.edges[0]
    await call(cluster, edge, BOB, "b-0")
    await asyncio.to_thread(is_published, cluster)
    master = Path(load_settings(cluster.policy.config).privacy.key_file)
    assert add_master(master) == 2
    await asyncio.to_thread(edge.stop)
    edge.launch()
    await asyncio.to_thread(edge.wait_ready)
    await call(cluster, edge, "carol@example.com", "c-0")
    await asyncio.to_thread(is_published, cluster)
    new = wrapping_of(cluster)
    assert new.current != old.current
    ring = await ring_of(cluster)
    cluster.wait_shipped()
    events = [event for event in cluster.events("calls") if isinstance(event, CallRequested | CallCompleted)]
    shown = [event for event in events if plain(event, ring) is not event]
    assert {event.tenant for event in shown} == {TENANT}
    assert {"b-0", "c-0"} <= set(requests_by(cluster, ring))
    assert len(shown) > 4
