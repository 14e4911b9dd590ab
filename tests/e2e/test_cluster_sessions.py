"""Two edges on one Valkey and one Kafka are interchangeable at any moment of a session, also when a process dies."""

import asyncio
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

import msgspec
import pytest
from tests.parts.asking import get, until
from tests.parts.books import nonce_of
from tests.parts.clients.driving import KINDS, Kind, sdk_client
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client, round_robin
from tests.parts.cluster import Cluster, Service, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle
from tests.parts.valkey import Valkey, running_valkey_server

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


class Place:
    """The cluster, its Valkey, and the address where the legacy upstream tells what it saw."""

    def __init__(self, cluster: Cluster, valkey: Valkey, seen: str) -> None:
        self.cluster = cluster
        self.valkey = valkey
        self.seen_url = seen
        self.a, self.b = (edge.base for edge in cluster.edges)

    def upstream_sessions(self, *nonces: str) -> set[str]:
        """The upstream's own sessions in which these calls came; each must have come once."""
        calls = msgspec.json.decode(get(self.seen_url)[1])["calls"]
        found = {nonce: [session for other, session in calls if other == nonce] for nonce in nonces}
        assert all(len(sessions) == 1 for sessions in found.values()), found
        return {sessions[0] for sessions in found.values()}

    def upstream_opened(self) -> int:
        """How many sessions the upstream was asked to open so far."""
        return int(msgspec.json.decode(get(self.seen_url)[1])["initialized"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("sessions")
    with (
        running_valkey_server() as valkey,
        running_upstream(directory, "--legacy") as old,
        running_cluster(
            directory,
            kafka.bootstrap,
            servers={"old": {"url": old["url"]}},
            bundle=lab_bundle(("old",)),
            sessions=valkey.url,
        ) as cluster,
    ):
        yield Place(cluster, valkey, old["seen"])


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    with telling(running.cluster):
        yield running


def awaits_sessions(edge: Service) -> bool:
    status, answer = get(f"{edge.base}/readyz")
    return status == 503 and b"sessions" in answer


async def test_a_session_opened_at_one_edge_goes_on_at_the_other_in_the_same_upstream_session(place: Place) -> None:
    opened = place.upstream_opened()
    async with http_client() as client:
        anna = Raw(client, place.cluster.token("anna@example.com"))
        session = await anna.initialize(place.a)
        nonces = [f"anna {number}" for number in range(6)]
        for number, nonce in enumerate(nonces):
            told = await anna.call((place.a, place.b)[number % 2], "old__echo", session, text="x", nonce=nonce)
            assert told.is_ok, told
    assert len(place.upstream_sessions(*nonces)) == 1
    assert place.upstream_opened() == opened + 1
    place.cluster.wait_shipped()
    mine = [event for event in place.cluster.requests() if nonce_of(event) in nonces]
    assert {event.edge for event in mine} == {"edge-0", "edge-1"}
    assert len({event.session_id for event in mine}) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_an_sdk_client_does_not_notice_that_every_request_meets_another_edge(place: Place, kind: Kind) -> None:
    token = place.cluster.token(f"sdk-{kind}@example.com")
    url = f"{place.cluster.public_url}/mcp"

    def talk() -> str:
        with sdk_client(kind, url, token) as client:
            for number in range(6):
                result = client.call("old__echo", text=f"part {number}", nonce=f"sdk {kind} {number}")
                assert str(result["content"][0]["text"]).startswith(f"part {number}")
                assert client.do("list") == ["old__echo"]
            return client.about["session"]

    async with round_robin(urlsplit(url).netloc, (place.a, place.b)) as asked:
        session = await asyncio.to_thread(talk)
    assert bool(session) == (kind != "auto")
    assert {place.a, place.b} <= set(asked)
    assert len(place.upstream_sessions(*(f"sdk {kind} {number}" for number in range(6)))) == 1


async def test_a_session_that_one_edge_ended_is_gone_from_the_other_at_once(place: Place) -> None:
    async with http_client() as client:
        dora = Raw(client, place.cluster.token("dora@example.com"))
        for first, second in ((place.a, place.b), (place.b, place.a)):
            session = await dora.initialize(first)
            for base in (first, second):  # both know it as live, from their own memory
                assert (await dora.call(base, "old__echo", session, text="x")).is_ok
            assert await dora.delete(first, session) == 200
            told = await dora.call(second, "old__echo", session, text="x", nonce="dora late")
            assert (told.status, told.message["error"]["code"]) == (404, -32600)
            assert (await dora.call(first, "old__echo", session, text="x")).status == 404
            assert await dora.delete(second, session) == 404
    assert "dora late" not in get(place.seen_url)[1].decode()


async def test_a_session_serves_nobody_but_the_principal_that_it_was_made_for(place: Place) -> None:
    async with http_client() as client:
        alice = Raw(client, place.cluster.token("alice@example.com"))
        others = [
            Raw(client, place.cluster.token("bob@example.com")),
            Raw(client, place.cluster.token("alice@example.com", agent="another-agent")),
        ]
        session = await alice.initialize(place.a)
        for stranger in others:
            for base in (place.a, place.b):
                told = await stranger.call(base, "old__echo", session, text="x", nonce="stolen")
                assert (told.status, "result" in told.message) == (404, False)
                assert await stranger.delete(base, session) == 404
        assert (await alice.call(place.b, "old__echo", session, text="x")).is_ok
    assert "stolen" not in get(place.seen_url)[1].decode()


async def test_a_session_survives_the_death_of_the_edge_that_opened_it(place: Place) -> None:
    first = place.cluster.edges[0]
    async with http_client() as client:
        eve = Raw(client, place.cluster.token("eve@example.com"))
        session = await eve.initialize(place.a)
        assert (await eve.call(place.a, "old__echo", session, text="x", nonce="eve 0")).is_ok
        first.kill()
        try:
            assert (await eve.call(place.a, "old__echo", session, text="x")).status == 0
            assert (await eve.call(place.b, "old__echo", session, text="x", nonce="eve 1")).is_ok
        finally:
            first.start()
        assert (await eve.call(place.a, "old__echo", session, text="x", nonce="eve 2")).is_ok
    assert len(place.upstream_sessions("eve 0", "eve 1", "eve 2")) == 1


async def test_without_valkey_calls_are_refused_with_the_reason_and_come_back_with_it(place: Place) -> None:
    async with http_client() as client:
        vera = Raw(client, place.cluster.token("vera@example.com"))
        session = await vera.initialize(place.a)
        assert (await vera.call(place.b, "old__echo", session, text="x")).is_ok
        place.valkey.kill()
        try:
            for base in (place.a, place.b):
                told = await vera.call(base, "old__echo", session, text="x", nonce="vera while away")
                assert told.status == 503, told
                assert told.message["error"]["data"]["reason"] == "sessions-unavailable"
                assert "check `sessions`" in told.message["error"]["message"]
            for edge in place.cluster.edges:
                until(partial(awaits_sessions, edge), "readiness names what is awaited")
                assert get(f"{edge.base}/healthz")[0] == 200
        finally:
            place.valkey.start()
        for edge in place.cluster.edges:
            until(edge.is_ready, "the edge is ready again")
        told = await vera.call(place.a, "old__echo", session, text="x")
        assert told.status == 404, "it was in memory only: the client is told to begin again"
        session = await vera.initialize(place.a)
        assert (await vera.call(place.b, "old__echo", session, text="x", nonce="vera again")).is_ok
    assert "vera while away" not in get(place.seen_url)[1].decode()
