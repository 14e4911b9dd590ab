"""Two edges on one Valkey: what a session has read at one is known at the other before its client can go there."""

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest
from tests.parts.asking import get, until
from tests.parts.books import nonce_of
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, Told, http_client
from tests.parts.cluster import Cluster, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.valkey import Valkey, running_valkey_server

from tidegate.events import SessionTainted
from tidegate.policy.bundle import bundle_of

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

RULES = b"""
@id("eng-all") permit (principal in Group::"eng", action in Action::"call", resource);
@id("no-leak") @reason("This session has read private data, so nothing of it may be sent out.")
forbid (principal, action in Action::"egress", resource) when { context.taint.contains("read-private") };
"""
SESSIONS = 15


class Place:
    def __init__(self, cluster: Cluster, valkey: Valkey, seen_url: str) -> None:
        self.cluster, self.valkey, self._seen_url = cluster, valkey, seen_url
        self.a, self.b = (edge.base for edge in cluster.edges)

    def reached(self, nonce: str) -> bool:
        """The servers were called so."""
        return nonce in get(self._seen_url)[1].decode()

    def tainted(self, *agents: str) -> list[SessionTainted]:
        found = [event for event in self.cluster.events("sessions") if isinstance(event, SessionTainted)]
        return [event for event in found if event.agent in agents]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("taint")
    with (
        running_valkey_server() as valkey,
        running_upstream(directory) as lab,
        running_cluster(
            directory,
            kafka.bootstrap,
            servers={"hr": {"url": lab["url"]}, "out": {"url": lab["url"], "labels": ["egress"]}},
            bundle=bundle_of({"manifest.json": b'{"v": 1, "name": "taint"}', "policies/p.cedar": RULES}),
            sessions=valkey.url,
            rules=[{"server": "hr", "tool": "echo", "labels": ["read-private"]}],
        ) as cluster,
    ):
        yield Place(cluster, valkey, lab["seen"])


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    with telling(running.cluster):
        yield running


class Agent:
    """One governance session: a legacy client's, or the window of a modern client's calls."""

    def __init__(self, client: aiohttp.ClientSession, token: str, name: str) -> None:
        self._raw, self._token, self.name = Raw(client, token), token, name
        self._session = ""
        self.calls = 0

    async def initialize(self, base: str) -> None:
        """Be a legacy client from now on."""
        self._session = await self._raw.initialize(base)

    def over(self, client: aiohttp.ClientSession) -> "Agent":
        """The same session over other connections."""
        self._raw = Raw(client, self._token)
        return self

    async def read(self, base: str, *, again: bool = False) -> Told:
        nonce = f"read{' again' if again else ''} {self.name}"
        return await self._raw.call(base, "hr__echo", self._session, text="salaries", nonce=nonce)

    async def greet(self, base: str) -> Told:
        """A call of which no rule asks what the session has read."""
        return await self._raw.call(base, "hr__note", self._session, text="hello")

    async def send(self, base: str) -> Told:
        self.calls += 1
        nonce = f"sent {self.name} {self.calls}"
        return await self._raw.call(base, "out__echo", self._session, text="hello", nonce=nonce)


def is_forbidden(told: Told) -> bool:
    """By the rule; whatever else came back is shown."""
    assert told.decision.get("reason") == "forbidden-by-rule", told
    return True


async def agent_of(place: Place, client: aiohttp.ClientSession, name: str, *, legacy: bool) -> Agent:
    agent = Agent(client, place.cluster.token("anna@example.com", agent=name), name)
    if legacy:
        await agent.initialize(place.a)
    return agent


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "modern"])
async def test_a_session_that_read_at_one_edge_sends_nothing_at_the_other(place: Place, legacy: bool) -> None:
    names = [f"agent-{legacy}-{number}" for number in range(SESSIONS)]
    async with http_client() as client:
        for name in names:
            agent = await agent_of(place, client, name, legacy=legacy)
            for base in (place.b, place.a):  # both know from now on that it has read nothing
                assert (await agent.send(base)).is_ok
            assert (await agent.read(place.a)).is_ok
            for base in (place.b, place.a):
                assert is_forbidden(await agent.send(base))
            assert not place.reached(f"sent {name} 3")
            assert not place.reached(f"sent {name} 4")
            assert (await agent.read(place.b)).is_ok
    place.cluster.wait_shipped()
    assert sorted(event.agent for event in place.tainted(*names)) == sorted(names), "one event for each session"
    last = [event for event in place.cluster.requests() if nonce_of(event) == f"sent {names[-1]} 3"]
    assert [(event.edge, event.decision, event.inputs.taint) for event in last] == [
        ("edge-1", "deny", ("read-private",))
    ]


async def test_of_many_calls_at_once_at_both_edges_none_after_an_answer_slips_through(place: Place) -> None:
    async with http_client() as client:
        agents = [await agent_of(place, client, f"crowd-{number}", legacy=True) for number in range(8)]

        async def reads_then_sends(agent: Agent, reads_at: str, sends_at: str) -> Told:
            assert (await agent.read(reads_at)).is_ok
            return await agent.send(sends_at)

        pairs = [(place.a, place.b), (place.b, place.a), (place.b, place.b)]
        told = await asyncio.gather(*[reads_then_sends(agent, *pair) for agent in agents for pair in pairs])
    assert {one.decision.get("reason") for one in told} == {"forbidden-by-rule"}
    place.cluster.wait_shipped()
    assert len(place.tainted(*(f"crowd-{number}" for number in range(8)))) == 8


async def test_a_restarted_edge_knows_what_its_sessions_have_read(place: Place) -> None:
    async with http_client() as client:
        agents = [await agent_of(place, client, f"restart-{legacy}", legacy=legacy) for legacy in (True, False)]
        for agent in agents:
            assert (await agent.read(place.b)).is_ok
    edge = place.cluster.edges[1]
    edge.kill()
    edge.start()
    async with http_client() as client:
        for agent in agents:
            for base in (place.b, place.a):
                assert is_forbidden(await agent.over(client).send(base))
    assert not place.reached("sent restart")


async def test_while_valkey_is_silent_or_gone_nothing_is_sent_that_a_taint_might_forbid(place: Place) -> None:
    async with http_client() as client:
        agents = [await agent_of(place, client, f"away-{legacy}", legacy=legacy) for legacy in (True, False)]
        for agent in agents:
            assert (await agent.read(place.a)).is_ok
            assert (await agent.greet(place.b)).is_ok  # which knows the session now, and not all that it has read
        fresh = [await agent_of(place, client, f"fresh-{legacy}", legacy=legacy) for legacy in (True, False)]
        place.valkey.pause()
        try:
            told = await asyncio.gather(*[one.send(place.b) for one in agents], *[one.read(place.a) for one in fresh])
        finally:
            place.valkey.resume()
        assert not any(one.is_ok for one in told)
        reasons = {one.decision.get("reason") or one.message["error"]["data"]["reason"] for one in told}
        assert reasons <= {"facts-unavailable", "sessions-unavailable"}, told
        assert "facts-unavailable" in reasons, told
        assert not place.reached("sent away")
        await asyncio.to_thread(until, lambda: all(edge.is_ready() for edge in place.cluster.edges), "edges are ready")
        for agent in agents:
            assert (await agent.send(place.b)).decision["reason"] == "forbidden-by-rule"
        place.valkey.kill()
        legacy, modern = [await agent.send(place.b) for agent in agents]
        assert (legacy.status, legacy.message["error"]["data"]["reason"]) == (503, "sessions-unavailable"), legacy
        assert modern.decision.get("reason") == "facts-unavailable", modern
        assert (await agents[1].greet(place.b)).is_ok, "no rule looks at what was read there"
        kept_back = await agents[1].read(place.b, again=True)
        assert kept_back.decision.get("reason") == "facts-unavailable", "whose answer could not be noted"
        assert not place.reached(f"read again {agents[1].name}"), "so the server was not asked"
        place.valkey.start()
        await asyncio.to_thread(until, lambda: all(edge.is_ready() for edge in place.cluster.edges), "edges are ready")
        for base in (place.b, place.a):
            assert is_forbidden(await agents[1].send(base)), "Valkey came back empty, and the edges knew it"
        assert not place.reached("sent away")
