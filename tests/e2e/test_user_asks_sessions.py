"""What users of gateways suffer from with sessions, over three edges on one Valkey: sessions lost between replicas,
upstreams that restart, affinity that costs more than it gives. `docs/user-asks.md` names the complaints.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import pytest_asyncio
from tests.parts.asking import is_alive, until
from tests.parts.books import nonce_of
from tests.parts.clients.driving import KINDS, Kind, sdk_client
from tests.parts.clients.raw import Raw, Told, http_client
from tests.parts.cluster import telling
from tests.parts.federation import World, federation
from tests.parts.kafka import Kafka
from tests.parts.restless import Restless, restless

from tidegate.events import CallAbandoned, CallCompleted, CallRequested

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
EDGES = 3
LEASE_DEADLINE_S = 30.0  # how soon another edge owns what a dead one owned
CONNECTIONS_PER_EDGE_MAX = 40
REPLICAS: list[Restless] = []  # of the server `many`; each knows its own sessions alone


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("asks")
    with restless("sessions") as left, restless("sessions") as right:
        REPLICAS[:] = [left, right]
        many = {"many": {"urls": [left.url, right.url], "timeout_s": 15}}
        with federation(directory, kafka.bootstrap, edges=EDGES, servers=many, own={"idle_s": 60}) as world:
            yield world


@pytest.fixture
def world(running: World) -> Iterator[World]:
    with telling(running.cluster):
        yield running


@pytest_asyncio.fixture
async def client(world: World) -> AsyncIterator[Raw]:
    """A caller of its own for each test."""
    async with http_client() as connections:
        yield Raw(connections, world.cluster.token(f"user{time.monotonic_ns()}@example.com"))


def why(told: Told) -> str:
    return str(told.decision.get("reason", told.message))


async def works(client: Raw, base: str, tool: str, session: str = "", deadline_s: float = 20.0) -> None:
    """Until a call of the tool goes well. A call that fails is told so at once, each time."""
    async with asyncio.timeout(deadline_s):
        while not (told := await client.call(base, tool, session)).is_ok:
            assert told.status == 200, told
            await asyncio.sleep(0.05)


def settles(server: Restless, sessions: int) -> bool:
    return len(server.sessions) == sessions


# ---- sessions over several edges


async def test_forty_sessions_at_three_edges_at_once_are_never_not_found(world: World) -> None:
    order = random.Random(4711)
    opened = world.one.opened
    async with http_client() as connections:
        callers = [Raw(connections, world.cluster.token(f"many{number}@example.com")) for number in range(10)]

        async def live(number: int) -> list[Told]:
            caller = callers[number % len(callers)]
            session = await caller.initialize(order.choice(world.bases))
            calls = [
                caller.call(order.choice(world.bases), "one__echo", session, nonce=f"many {number} {turn}")
                for turn in range(6)
            ]
            return list(await asyncio.gather(*calls))

        told = [one for life in await asyncio.gather(*map(live, range(40))) for one in life]
    assert len(told) == 240
    assert not [one for one in told if not one.is_ok]
    nonces = world.one.nonces()
    for number in range(40):
        mine = [f"many {number} {turn}" for turn in range(6)]
        assert [nonces.count(nonce) for nonce in mine] == [1] * 6
        assert len(world.one.sessions_of(*mine)) <= EDGES  # first calls raced; whoever lost has ended its own
    until(lambda: len(world.one.sessions) <= opened + 40, "each session holds one session upstream")


@pytest.mark.parametrize("kind", KINDS)
def test_an_sdk_client_opened_at_one_edge_lists_and_calls_all_servers_of_both_eras(world: World, kind: Kind) -> None:
    user = f"sdk{kind}@example.com"
    with sdk_client(kind, f"{world.bases[0]}/mcp", world.cluster.token(user)) as client:
        names = client.do("list")
        assert {"one__echo", "two__echo", "new__echo", "own__who"} <= set(names)
        assert "one__secret-tool" not in names
        for server in ("one", "two", "new"):
            result = client.call(f"{server}__echo", nonce=f"sdk {kind} {server}")
            assert not result.get("isError"), result
        assert not client.call("own__who").get("isError")


async def test_clients_with_and_without_sessions_share_an_endpoint_and_no_session_is_forced(
    world: World, client: Raw
) -> None:
    speaker = world.speaker(0, "stateless@example.com")
    session = await client.initialize(world.bases[1])
    for number in range(3):
        edge = world.speaker(number, "stateless@example.com")
        answer = await edge.ask(edge.calling("one__echo", {"nonce": f"stateless {number}"}))
        assert answer.status == 200
        assert "mcp-session-id" not in answer.headers
        assert (await client.call(world.bases[number], "one__echo", session, nonce=f"stateful {number}")).is_ok
    modern = world.one.sessions_of(*(f"stateless {number}" for number in range(3)))
    legacy = world.one.sessions_of(*(f"stateful {number}" for number in range(3)))
    assert len(modern) == len(legacy) == 1
    assert modern != legacy
    given = speaker.modern("tools/call", {"name": "one__echo", "arguments": {}}, headers={"Mcp-Session-Id": session})
    answer = await speaker.ask(given)  # of another principal, at that: revision 2026-07-28 has it ignored
    assert answer.status == 200
    assert "mcp-session-id" not in answer.headers


@pytest.mark.parametrize("given", ["x", "upstream-1", "@", "a" * 3000, "é".encode().decode("latin-1")])
async def test_a_session_id_that_is_none_is_told_as_not_found_and_how_to_go_on(world: World, given: str) -> None:
    speaker = world.speaker()
    speaker.session = given
    answer = await speaker.ask(speaker.legacy("tools/list"))
    assert (answer.status, answer.error["code"]) == (404, -32600)
    assert "initialize again" in answer.error["message"]


async def test_without_a_session_id_a_legacy_request_is_told_what_is_missing(world: World) -> None:
    speaker = world.speaker()
    answer = await speaker.ask(speaker.legacy("tools/list"))
    assert answer.status == 400
    assert "mcp-session-id" in answer.error["message"].lower()


async def test_an_edge_that_dies_takes_along_nothing_but_what_was_in_flight_on_it(world: World, client: Raw) -> None:
    victim = world.cluster.edges[0]
    session = await client.initialize(world.bases[0])
    assert (await client.call(world.bases[0], "one__echo", session, nonce="before the death")).is_ok
    held = asyncio.create_task(client.call(world.bases[0], "one__hold", session, nonce="held at the death"))
    await asyncio.to_thread(until, lambda: "held at the death" in world.one.nonces(), "the call is under way")
    victim.kill()
    try:
        assert (await held).status == 0
        for base in world.bases[1:]:
            told = await client.call(base, "one__echo", session, nonce=f"after at {base}")
            assert told.is_ok, told
            told = await client.call(base, "two__echo", session)
            assert told.is_ok, told
    finally:
        world.one.release()
        victim.start()
    assert (await client.call(world.bases[0], "one__echo", session, nonce="again at the first")).is_ok
    mine = ["before the death", *(f"after at {base}" for base in world.bases[1:]), "again at the first"]
    assert len(world.one.sessions_of(*mine)) == 1, "the upstream session went on, too"
    assert world.one.nonces().count("held at the death") == 1, "it was not sent again"
    world.cluster.wait_shipped()

    def is_told() -> bool:
        events = world.cluster.events("calls")
        (asked,) = [one for one in events if isinstance(one, CallRequested) and nonce_of(one) == "held at the death"]
        ends = [
            one for one in events if isinstance(one, CallAbandoned | CallCompleted) and one.call_id == asked.call_id
        ]
        return [type(one) for one in ends] == [CallAbandoned]

    await asyncio.to_thread(until, is_told, "the log says that the call was abandoned")


# ---- upstreams that restart


async def test_a_server_that_forgot_its_sessions_is_greeted_anew_and_the_others_notice_nothing(
    world: World, client: Raw
) -> None:
    session = await client.initialize(world.bases[0])
    for tool in ("one__echo", "two__echo", "new__echo"):
        assert (await client.call(world.bases[0], tool, session)).is_ok
    opened, others = world.one.opened, (world.two.opened, len(world.two.sessions))
    world.one.forget()
    calls = [
        client.call(world.bases[number % EDGES], "one__echo", session, nonce=f"after the restart {number}")
        for number in range(15)
    ]
    beside = [client.call(world.bases[number % EDGES], "two__echo", session) for number in range(6)]
    told = await asyncio.gather(*calls, *beside)
    assert not [one for one in told if not one.is_ok]
    assert [world.one.nonces().count(f"after the restart {number}") for number in range(15)] == [1] * 15
    assert opened < world.one.opened <= opened + 2 * EDGES, "at most one new session per edge, and discovery's"
    assert (world.two.opened, len(world.two.sessions)) == others
    last = [f"settled {number}" for number in range(EDGES)]
    for base, nonce in zip(world.bases, last, strict=True):
        assert (await client.call(base, "one__echo", session, nonce=nonce)).is_ok
    assert len(world.one.sessions_of(*last)) == 1, "all edges agree on the session that stands"


async def test_a_server_that_is_away_is_named_at_once_and_used_again_when_it_is_back(world: World, client: Raw) -> None:
    sessions = [await client.initialize(base) for base in world.bases]
    for base, session in zip(world.bases, sessions, strict=True):
        assert (await client.call(base, "one__echo", session)).is_ok
    for _ in range(2):  # a second restart must heal as the first one did
        world.one.stop()
        began_s = time.monotonic()
        for base, session in zip(world.bases, sessions, strict=True):
            for tool in ("one__echo", "one__echo", "one__note"):
                told = await client.call(base, tool, session, nonce="while away")
                assert told.status == 200
                assert why(told) in ("upstream-unreachable", "upstream-unavailable", "upstream-broken"), told
                assert "one" in told.text
            assert (await client.call(base, "two__echo", session)).is_ok
            listed = await client.legacy(base, "tools/list", {}, session)
            names = [tool["name"] for tool in listed.message["result"]["tools"]]
            assert "one__echo" in names, "its last list stands"
        assert time.monotonic() - began_s < 12
        world.one.start()
        for base, session in zip(world.bases, sessions, strict=True):
            await works(client, base, "one__echo", session)
    assert "while away" not in world.one.nonces()


async def test_many_calls_share_a_session_upstream_and_principals_never_do(world: World) -> None:
    opened = world.one.opened
    async with http_client() as connections:
        pooled = {user: Raw(connections, world.cluster.token(f"{user}@example.com")) for user in ("pia", "paul")}
        for user, caller in pooled.items():
            assert (await caller.call(world.bases[0], "one__echo", nonce=f"pool {user} 0")).is_ok
            calls = [caller.call(world.bases[n % EDGES], "one__echo", nonce=f"pool {user} {n}") for n in range(1, 30)]
            assert all(told.is_ok for told in await asyncio.gather(*calls))
    found = {user: world.one.sessions_of(*(f"pool {user} {n}" for n in range(30))) for user in pooled}
    assert [len(sessions) for sessions in found.values()] == [1, 1]
    assert found["pia"] != found["paul"]
    assert world.one.opened <= opened + 2 + EDGES, "theirs, and perhaps those in which edges hear of changes"


async def test_a_server_of_two_replicas_keeps_each_session_where_it_began(world: World) -> None:
    async def live(number: int) -> set[str]:
        async with http_client() as connections:
            caller = Raw(connections, world.cluster.token(f"replica{number}@example.com"))
            session = await caller.initialize(world.bases[number % EDGES])
            nonces = [f"replica {number} {turn}" for turn in range(2 * EDGES)]
            for turn, nonce in enumerate(nonces):
                told = await caller.call(world.bases[turn % EDGES], "many__echo", session, nonce=nonce)
                assert told.is_ok, told
            assert len({one for server in REPLICAS for one in server.sessions_of(*nonces)}) == 1
            return {server.url for server in REPLICAS if server.sessions_of(*nonces)}

    homes = await asyncio.gather(*map(live, range(12)))
    assert all(len(home) == 1 for home in homes)
    assert len(set[str]().union(*homes)) == 2, "both replicas have their share"


async def test_a_replica_that_is_away_costs_its_sessions_and_no_call(world: World, client: Raw) -> None:
    session = await client.initialize(world.bases[0])
    assert (await client.call(world.bases[0], "many__echo", session, nonce="at home")).is_ok
    (home,) = [server for server in REPLICAS if "at home" in server.nonces()]
    (other,) = [server for server in REPLICAS if server is not home]
    home.stop()
    try:
        for base in world.bases:
            told = await client.call(base, "many__echo", session, nonce=f"moved at {base}")
            assert told.is_ok, told
        assert len(other.sessions_of(*(f"moved at {base}" for base in world.bases))) == 1
    finally:
        home.start()


# ---- what affinity costs


async def test_a_call_in_a_session_asks_valkey_nothing_and_nobody_polls_it(world: World, client: Raw) -> None:
    session = await client.initialize(world.bases[0])
    for base in world.bases:
        for tool in ("one__echo", "new__echo"):
            assert (await client.call(base, tool, session)).is_ok
    before, old_s = world.store.commands(), world.store.uptime_s()
    calls = 240
    for turn in range(0, calls, 12):
        tools = ("one__echo", "new__echo")
        told = [client.call(world.bases[n % EDGES], tools[n // 3 % 2], session) for n in range(turn, turn + 12)]
        assert all(one.is_ok for one in await asyncio.gather(*told))
    idle_from = world.store.commands()
    spent = sum((idle_from - before).values())
    assert spent < calls / 4 + 20 * (world.store.uptime_s() - old_s + 1), idle_from - before
    await asyncio.to_thread(world.store.pass_time, 3)
    idle = world.store.commands() - idle_from
    assert sum(idle.values()) < 10 * EDGES * 3, f"at rest, three edges asked {dict(idle)} within 3 s"


async def test_one_session_through_three_edges_is_as_fast_as_through_one(world: World, client: Raw) -> None:
    session = await client.initialize(world.bases[0])

    async def per_second(bases: list[str]) -> float:
        for base in bases:
            assert (await client.call(base, "two__echo", session)).is_ok
        began_s = time.monotonic()
        for turn in range(0, 160, 8):
            calls = [client.call(bases[n % len(bases)], "two__echo", session) for n in range(turn, turn + 8)]
            assert all(told.is_ok for told in await asyncio.gather(*calls))
        return 160 / (time.monotonic() - began_s)

    alone, spread = await per_second(world.bases[:1]), await per_second(world.bases)
    assert spread > 40, f"{spread:.0f} calls/s through three edges, {alone:.0f} through one"
    assert spread > alone / 4


async def test_connections_to_valkey_stay_bounded_under_load(world: World) -> None:
    most = 0
    async with http_client() as connections:
        callers = [Raw(connections, world.cluster.token(f"load{number}@example.com")) for number in range(20)]

        async def live(number: int) -> bool:
            nonlocal most
            caller, base = callers[number % 20], world.bases[number % EDGES]
            session = await caller.initialize(base)
            told = await caller.call(base, "one__echo", session)
            most = max(most, world.store.connections())
            return told.is_ok and await caller.delete(world.bases[(number + 1) % EDGES], session) == 200

        assert all(await asyncio.gather(*map(live, range(150))))
    assert most <= EDGES * CONNECTIONS_PER_EDGE_MAX, f"{most} connections"


# ---- processes that one edge owns


async def test_a_process_s_owner_knows_who_calls_through_another_edge(world: World) -> None:
    async with http_client() as connections:
        ann = Raw(connections, world.cluster.token("ann@example.com"))
        ben = Raw(connections, world.cluster.token("ben@example.com"))
        told = [json.loads((await ann.call(base, "own__who", nonce="who ann")).text) for base in world.bases]
        assert len({one["pid"] for one in told}) == 1, "one process for her, wherever she calls"
        assert [one["calls"] for one in told] == [1, 2, 3]
        other = json.loads((await ben.call(world.bases[0], "own__who", nonce="who ben")).text)
        assert other["pid"] != told[0]["pid"]
    world.cluster.wait_shipped()
    requests = world.cluster.requests()
    hers = [one for one in requests if nonce_of(one) == "who ann"]
    assert {one.edge for one in hers} == {edge.name for edge in world.cluster.edges}, "whoever accepted recorded"
    assert {one.sealed.login for one in hers} == {"ann@example.com"}
    (his,) = [one for one in requests if nonce_of(one) == "who ben"]
    assert {his.subject_id}.isdisjoint({one.subject_id for one in hers})


async def test_when_a_process_s_owner_dies_another_edge_owns_one_soon(world: World) -> None:
    async with http_client() as connections:
        carl = Raw(connections, world.cluster.token("carl@example.com"))
        first = json.loads((await carl.call(world.bases[2], "own__who")).text)["pid"]
        world.cluster.edges[2].kill()
        try:
            await asyncio.to_thread(until, partial(gone, first), "the process ends with its owner")
            await works(carl, world.bases[0], "own__who", deadline_s=LEASE_DEADLINE_S)
            found = [json.loads((await carl.call(base, "own__who")).text)["pid"] for base in world.bases[:2]]
            assert found[0] == found[1] != first
        finally:
            world.cluster.edges[2].start()
        assert json.loads((await carl.call(world.bases[2], "own__who")).text)["pid"] == found[0]


def gone(pid: int) -> bool:
    return not is_alive(pid)
