"""What users of gateways suffer from when something changes: servers' notices that nobody hears, reloads that change
more than was changed, streams that cannot be taken up again. Two edges, official clients of both eras.
`docs/user-asks.md` names the complaints.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from tests.matrix.driving import Connection, Sdk, driven
from tests.parts.asking import until
from tests.parts.clients.raw import LEGACY, Raw, http_client
from tests.parts.cluster import telling
from tests.parts.edge import Client, Speaker
from tests.parts.federation import POLICY, World, bundle, federation
from tests.parts.kafka import Kafka
from tests.parts.restless import TOOLS

from tidegate.events import BundleReleased, ToolDefined, ToolWithdrawn

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.asyncio(loop_scope="module")]
CLIENTS: list[tuple[Sdk, str]] = [("py130", "legacy"), ("py23", "legacy"), ("py23", "auto")]
NARROWER = POLICY.replace('Action::"new/secret-tool"', 'Action::"new/secret-tool", Action::"one/note"')
CHANGED = "notifications/tools/list_changed"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[World]:
    with federation(tmp_path_factory.mktemp("changes"), kafka.bootstrap) as world:
        yield world


@pytest.fixture
def world(running: World) -> Iterator[World]:
    with telling(running.cluster):
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(running: World) -> AsyncIterator[dict[str, Connection]]:
    """One of each kind at each edge, listening."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[str, Connection] = {}
        for sdk, mode in CLIENTS:
            process = await stack.enter_async_context(driven(sdk))
            for number, base in enumerate(running.bases):
                name = f"{sdk} {mode} at edge {number}"
                token = running.cluster.token(f"{sdk}-{mode}@example.com")
                opening = process.connection(name, f"{base}/mcp", token, mode=mode)
                connection = await stack.enter_async_context(opening)
                if mode == "auto":
                    await connection.do("listen", filter={"toolsListChanged": True})
                await connection.do("page", kind="tools", cursor=None)
                found[name] = connection
        yield found


async def names_at(connection: Connection) -> list[str]:
    page = await connection.do("page", kind="tools", cursor=None)
    return [tool["name"] for tool in page["tools"]]


async def lists(connection: Connection, wanted: set[str], unwanted: set[str]) -> None:
    """Until the client's list has, and has not, these. A notice may come before another change has settled."""
    async with asyncio.timeout(10):
        while True:
            names = set(await names_at(connection))
            if wanted <= names and not unwanted & names:
                return
            await asyncio.sleep(0.05)


# ---- notices


@pytest.mark.parametrize("era", ["sessions", "modern"])
async def test_a_server_s_change_reaches_every_live_client_of_both_eras_at_both_edges(
    world: World, clients: dict[str, Connection], era: str
) -> None:
    name, server = ("one", world.one) if era == "sessions" else ("new", world.new)
    until(lambda: len(server.streams) >= 2, "both edges listen to it")
    for connection in clients.values():
        connection.heard.clear()
    server.change(*TOOLS, "fresh")
    for connection in clients.values():
        await connection.hears(CHANGED)
        await lists(connection, {f"{name}__fresh", f"{name}__echo"}, {f"{name}__secret-tool"})
        told = await connection.call(f"{name}__fresh", nonce=f"fresh {connection.name}")
        assert not told.get("isError"), (connection.name, told)
    for connection in clients.values():
        connection.heard.clear()
    server.change(*TOOLS)
    for connection in clients.values():
        await connection.hears(CHANGED)
        await lists(connection, {f"{name}__echo"}, {f"{name}__fresh"})


async def test_a_server_that_was_restarted_with_other_tools_is_heard_too(
    world: World, clients: dict[str, Connection]
) -> None:
    for connection in clients.values():
        connection.heard.clear()
    world.two.stop()
    world.two.tools = [*world.two.tools, {"name": "later", "inputSchema": {"type": "object"}}]
    world.two.start()
    try:
        for connection in clients.values():
            await asyncio.wait_for(until_heard(connection), 75)
            await lists(connection, {"two__later"}, set())
    finally:
        world.two.change(*TOOLS)


async def until_heard(connection: Connection) -> None:
    while not [one for one in connection.heard if one.method == CHANGED]:
        await asyncio.sleep(0.1)


# ---- streams that break off


def progress_call(speaker: Speaker, tool: str, nonce: str, times: int = 12) -> bytes:
    params = {
        "name": tool,
        "arguments": {"times": times, "gap_s": 0.05, "nonce": nonce},
        "_meta": {"progressToken": nonce},
    }
    return speaker.legacy("tools/call", params)


def fetching(speaker: Speaker, last_event_id: str = "") -> bytes:
    headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session, "Accept": "text/event-stream"}
    more = {"Last-Event-ID": last_event_id, "Content-Length": "", "Content-Type": ""}
    return speaker.request(b"", verb="GET", headers={**headers, **more})


@pytest.mark.parametrize("tool", ["one__drip", "new__drip"])
async def test_an_answer_that_broke_off_at_one_edge_is_taken_up_at_the_other_without_loss(
    world: World, tool: str
) -> None:
    user = f"torn-{tool}@example.com"
    first, second = world.speaker(0, user), world.speaker(1, user)
    await first.initialize()
    second.session = first.session
    client = await first.connect()
    client.write(progress_call(first, tool, f"torn {tool}"))
    assert (await client.stream()).headers["content-type"] == "text/event-stream"
    events = [await client.event() for _ in range(4)]
    last = events[-1]
    assert last is not None
    assert last.id
    client.writer.transport.abort()
    again = await second.connect()
    again.write(fetching(second, last.id))
    assert (await again.stream()).status == 200
    events += await again.events(30)
    again.close()
    told = [one.json for one in events if one is not None and one.data]
    assert [one["params"]["progress"] for one in told[:-1]] == list(range(12))
    assert told[-1]["result"]["content"]
    server = world.one if tool.startswith("one") else world.new
    assert server.nonces().count(f"torn {tool}") == 1


async def test_a_client_may_leave_and_come_back_as_often_as_it_likes(world: World) -> None:
    speakers = [world.speaker(number, "often@example.com") for number in range(2)]
    await speakers[0].initialize()
    speakers[1].session = speakers[0].session
    for turn in range(30):
        client: Client = await speakers[turn % 2].connect()
        client.write(fetching(speakers[turn % 2]))
        answer = await client.stream()
        assert answer.status == 200, turn
        if turn % 3:
            client.close()
        else:
            client.writer.transport.abort()
    client = await speakers[0].connect()
    client.write(fetching(speakers[0]))
    assert (await client.stream()).status == 200
    world.one.change(*TOOLS, "seen-after-all")
    try:
        event = await client.event(15)
        assert event is not None
        assert event.json["method"] == CHANGED
    finally:
        world.one.change(*TOOLS)
        client.close()


# ---- reload


async def raw_lists(world: World) -> list[bytes]:
    """tools/list of both eras at both edges, for one principal, byte for byte."""
    found = []
    for number in range(len(world.bases)):
        speaker = world.speaker(number, "reader@example.com")
        found.append((await speaker.ask(speaker.modern("tools/list"))).body)
        await speaker.initialize()
        found.append((await speaker.ask(speaker.legacy("tools/list"))).body)
    return found


async def settled(world: World) -> list[bytes]:
    """The lists, once every server has the tools that it began with, as all edges know."""
    async with asyncio.timeout(20):
        while True:
            found = await raw_lists(world)
            as_begun = all(body.count(b'"two__') == 7 and body.count(b'"one__') == 6 for body in found)
            if as_begun and found[0] == found[2] and found[1] == found[3]:
                return found
            await asyncio.sleep(0.1)


async def test_publishing_what_rules_already_changes_nothing_for_anybody(
    world: World, clients: dict[str, Connection]
) -> None:
    before = await settled(world)
    await asyncio.to_thread(world.store.pass_time, 2)  # until the last notices of the tests before have come
    assert b"one__echo" in before[0]
    assert b"one__secret-tool" not in before[0]
    runs = world.cluster.runs()
    world.cluster.wait_shipped()
    facts = len([one for one in world.cluster.events("catalog") if isinstance(one, ToolDefined | ToolWithdrawn)])
    for connection in clients.values():
        connection.heard.clear()
    for _ in range(3):
        world.cluster.publish(bundle())
        assert await raw_lists(world) == before
    assert world.cluster.runs() == runs
    assert await raw_lists(world) == before
    assert not [one for connection in clients.values() for one in connection.heard if one.method == CHANGED]
    world.cluster.wait_shipped()
    after = [one for one in world.cluster.events("catalog") if isinstance(one, ToolDefined | ToolWithdrawn)]
    assert len(after) == facts


async def test_a_bundle_that_is_broken_never_opens_the_list(world: World) -> None:
    before = await settled(world)
    runs = world.cluster.runs()
    files = {"manifest.json": '{"v": 1, "name": "federation"}', "policies/p.cedar": POLICY + "\npermit (principal"}
    status, told = world.cluster.manage("POST", "/bundles", {"files": files})
    assert status == 422, told
    assert "policies/p.cedar" in str(told)
    assert await raw_lists(world) == before
    assert world.cluster.runs() == runs


async def test_while_bundles_are_swapped_a_hidden_tool_is_never_shown(world: World) -> None:
    seen: list[bytes] = []
    swapped = asyncio.Event()

    async def watch() -> None:
        while not swapped.is_set():
            seen.extend(await raw_lists(world))

    watching = asyncio.create_task(watch())
    try:
        for version in range(2, 5):
            for rules in (NARROWER, POLICY):
                released = world.cluster.publish(bundle(str(version), rules))
                wanted = {edge.name: released["digest"] for edge in world.cluster.edges}
                await asyncio.to_thread(until, lambda wanted=wanted: world.cluster.runs() == wanted, "it rules")
    finally:
        swapped.set()
        await watching
    assert len(seen) > 10
    for body in seen:
        assert b"one__secret-tool" not in body
        assert b"new__secret-tool" not in body
        assert b"one__echo" in body
    assert {b"one__note" in body for body in seen} == {True, False}


async def test_clients_hear_when_a_bundle_changes_what_they_may_see(
    world: World, clients: dict[str, Connection]
) -> None:
    for rules, wanted, unwanted in ((NARROWER, set[str](), {"one__note"}), (POLICY, {"one__note"}, set[str]())):
        for connection in clients.values():
            connection.heard.clear()
        world.cluster.publish(bundle("told", rules))
        for connection in clients.values():
            await connection.hears(CHANGED)
            await lists(connection, wanted, unwanted)


async def test_an_edge_that_starts_again_on_the_same_configuration_shows_the_same(world: World) -> None:
    before = await settled(world)
    world.cluster.wait_shipped()
    counted = [type(one) for one in world.cluster.events("catalog", "policy")]
    edge = world.cluster.edges[1]
    assert edge.stop() == 0
    edge.start()
    assert await raw_lists(world) == before
    world.cluster.wait_shipped()
    again = [type(one) for one in world.cluster.events("catalog", "policy")]
    for kind in (ToolDefined, ToolWithdrawn, BundleReleased):
        assert again.count(kind) == counted.count(kind), kind


async def test_a_server_whose_list_fails_keeps_its_last_one_and_is_named(world: World) -> None:
    before = await settled(world)
    world.one.list_status = 500
    try:
        world.one.loop.call_soon_threadsafe(lambda: asyncio.ensure_future(world.one.tell("tools")))
        asked = world.one.count("tools/list")
        await asyncio.to_thread(until, lambda: world.one.count("tools/list") >= asked + 4, "both edges tried", 30)
        for body, old in zip(await raw_lists(world), before, strict=True):
            names = body.count(b'"name":"one__')
            assert names == old.count(b'"name":"one__') > 3
        async with http_client() as connections:
            caller = Raw(connections, world.cluster.token("calls-on@example.com"))
            for base in world.bases:
                assert (await caller.call(base, "one__echo")).is_ok
    finally:
        world.one.list_status = 200
