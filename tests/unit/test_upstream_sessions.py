"""Sessions at servers of the handshake era: whose they are, what is declared in them, where they live and end."""

import asyncio
import contextlib
import socket
from typing import Any

import msgspec
import pytest
from tests.parts.scripted import Scripted, Seen, Stream, gone, http, refusal, result, scripted
from tests.parts.upstreams import ALICE, ASKABLE, Talking, opened, outgoing, words

from tidegate.errors import UpstreamFault
from tidegate.sessions.memory import MemorySessions
from tidegate_edge.upstream.port import Caller, Wanted
from tidegate_edge.upstream.reaper import reap

Writer = asyncio.StreamWriter


def sessions_of_calls(server: Scripted) -> list[str]:
    return [seen.headers["mcp-session-id"] for seen in server.calls()]


async def test_sessions_are_apart_by_everything_that_makes_a_caller() -> None:
    base = Caller("acme", "alice", "tests", "c1", b'{"roots":{}}')
    others = [
        msgspec.structs.replace(base, **{name: value})
        for name, value in {
            "tenant": "other",
            "subject_id": "bob",
            "agent": "else",
            "session": "c2",
            "capabilities": b"{}",
        }.items()
    ]
    async with scripted("sessions") as server, opened(server.url) as up:
        for caller in (base, *others, base):
            await up.request(outgoing(caller=caller), Talking())
        used = sessions_of_calls(server)
        assert len(set(used)) == len(others) + 1
        assert used[0] == used[-1]


@pytest.mark.parametrize("declared", [b"{}", ASKABLE.capabilities])
async def test_what_the_client_declared_is_declared_and_nothing_else(declared: bytes) -> None:
    async with scripted("sessions") as server, opened(server.url) as up:
        await up.request(outgoing(caller=msgspec.structs.replace(ALICE, capabilities=declared)), Talking())
        (seen,) = [one for one in server.seen if one.method == "initialize"]
        assert seen.params["capabilities"] == msgspec.json.decode(declared)
        assert seen.params["protocolVersion"] == "2025-11-25"
        assert seen.params["clientInfo"]["name"] == "tidegate"


async def test_callers_that_come_at_once_share_one_handshake_and_one_that_leaves_spoils_nothing() -> None:
    async with scripted("sessions") as server, opened(server.url) as up:
        await up.era(True, 5)
        calls = [asyncio.create_task(up.request(outgoing(), Talking())) for _ in range(10)]
        await server.until_seen(lambda seen: seen.method == "initialize")
        calls[0].cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        assert [words(one) for one in done[1:] if not isinstance(one, BaseException)] == ["{}"] * 9
        assert server.count("initialize") == 1


async def test_edges_share_a_session_and_one_that_came_second_ends_its_own() -> None:
    store = MemorySessions(per_subject_max=10)
    arrived = asyncio.Semaphore(0)
    both = asyncio.Event()

    async def slowly(server: Scripted, seen: Seen, writer: Writer) -> None:
        arrived.release()
        await both.wait()
        server.well(seen, writer)

    async with (
        scripted("sessions", behaviours={"initialize": slowly}) as server,
        opened(server.url, store=store) as one,
        opened(server.url, store=store) as other,
    ):
        calls = [asyncio.create_task(up.request(outgoing(), Talking())) for up in (one, other)]
        for _ in calls:
            await arrived.acquire()
        both.set()
        assert [words(await call) for call in calls] == ["{}", "{}"]
        assert server.count("initialize") == 2
        assert len(server.sessions) == 1
        assert set(sessions_of_calls(server)) == set(server.sessions)
        ids = [seen.message["id"] for seen in server.seen if "id" in seen.message and seen.method != "server/discover"]
        assert len(ids) == len(set(ids))  # two edges in one session never use the same id


async def test_404_on_a_session_is_a_new_session_and_one_more_try() -> None:
    async with scripted("sessions") as server, opened(server.url) as up:
        await up.request(outgoing(), Talking())
        server.sessions.clear()
        assert words(await up.request(outgoing(), Talking())) == "{}"
        assert (server.count("initialize"), len(server.calls())) == (2, 3)


async def test_400_on_a_session_is_never_tried_again_but_the_next_call_gets_a_new_session() -> None:
    async def forgetful(server: Scripted, seen: Seen, writer: Writer) -> None:
        if seen.headers["mcp-session-id"] in server.sessions:
            server.well(seen, writer)
        else:
            error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
            writer.write(http({"jsonrpc": "2.0", "id": None, "error": error}, 400))

    async with scripted("sessions", behaviours={"echo": forgetful}) as server, opened(server.url) as up:
        await up.request(outgoing(), Talking())
        server.sessions.clear()
        answer = await up.request(outgoing(), Talking())
        assert b"No valid session" in getattr(answer, "error", b"")
        assert len(server.calls()) == 2
        assert words(await up.request(outgoing(), Talking())) == "{}"
        assert server.count("initialize") == 2


async def test_an_unknown_method_that_is_answered_404_is_no_lost_session() -> None:
    async def unknown(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.write(http(refusal(seen, -32601, "no such method"), 404))

    async with scripted("sessions", behaviours={"completion/complete": unknown}) as server, opened(server.url) as up:
        answer = await up.request(outgoing("completion/complete", {}), Talking())
        assert b"no such method" in getattr(answer, "error", b"")
        assert (server.count("initialize"), server.count("completion/complete")) == (1, 1)


async def test_a_server_of_two_eras_never_sees_a_call_twice_after_an_error() -> None:
    async def failing(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.write(http("oops", 500, kind="text/plain"))

    async with scripted("sessions", behaviours={"echo": failing}) as server, opened(server.url) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(), Talking())
        assert caught.value.sent
        assert len(server.calls()) == 1


# levels


async def test_a_level_is_set_once_for_all_edges_and_only_made_more_verbose() -> None:
    store = MemorySessions(per_subject_max=10)
    async with (
        scripted("sessions", capabilities={"logging": {}}) as server,
        opened(server.url, store=store) as one,
        opened(server.url, store=store) as other,
    ):
        for up, level in [(one, "warning"), (one, "warning"), (other, "error"), (other, "debug"), (one, "info")]:
            await up.request(outgoing(log_level=level), Talking())
        levels = [seen.params["level"] for seen in server.seen if seen.method == "logging/setLevel"]
        assert levels == ["warning", "debug"]
        assert len(set(sessions_of_calls(server))) == 1


async def test_a_server_without_logging_is_not_told_a_level_and_one_that_refuses_is_told_once() -> None:
    async with scripted("sessions") as server, opened(server.url) as up:
        await up.request(outgoing(log_level="debug"), Talking())
        assert server.count("logging/setLevel") == 0
    refuses = {"logging/setLevel"}
    async with scripted("sessions", capabilities={"logging": {}}, refused=refuses) as server, opened(server.url) as up:
        for _ in range(3):
            assert words(await up.request(outgoing(log_level="debug"), Talking())) == "{}"
        assert server.count("logging/setLevel") == 1


# notifications and ends


async def test_a_notification_goes_to_the_session_that_there_is_and_opens_none() -> None:
    async with scripted("sessions") as server, opened(server.url) as up:
        await up.notify("notifications/roots/list_changed", b"{}", ASKABLE)
        assert server.seen == []
        await up.request(outgoing(caller=ASKABLE), Talking())
        await up.notify("notifications/roots/list_changed", b"{}", ASKABLE)
        (told,) = [seen for seen in server.seen if seen.method == "notifications/roots/list_changed"]
        assert told.headers["mcp-session-id"] == server.sessions[0]


async def test_a_client_s_session_ends_with_all_that_it_has_here_and_no_other_s() -> None:
    store = MemorySessions(per_subject_max=10)
    async with (
        scripted("sessions") as server,
        opened(server.url, store=store) as one,
        opened(server.url, store=store) as other,
    ):
        mine = [ASKABLE, msgspec.structs.replace(ASKABLE, capabilities=b"{}")]
        for caller in (*mine, ALICE, msgspec.structs.replace(ASKABLE, session="client-2")):
            await one.request(outgoing(caller=caller), Talking())
        assert len(server.sessions) == 4
        await other.end(mine[0])
        assert len(server.sessions) == 2
        assert words(await one.request(outgoing(caller=mine[0]), Talking())) == "{}"
        await one.end(ALICE)
        await one.end(Caller("acme", "nobody", "tests", "client-9"))
        assert len(server.sessions) == 2


async def test_idle_sessions_are_ended_by_one_edge_and_what_is_used_stays() -> None:
    store = MemorySessions(per_subject_max=10)
    limits = {"upstream_session_idle_s": 0.8}

    async def open_stream(server: Scripted, seen: Seen, writer: Writer) -> None:
        Stream(writer)
        await writer.drain()
        await gone(seen)

    async with (
        scripted("sessions", behaviours={"GET": open_stream}) as server,
        opened(server.url, store=store, limits=limits) as one,
        opened(server.url, store=store, limits=limits) as other,
    ):
        await one.request(outgoing(), Talking())
        listening = asyncio.create_task(one.listen(Wanted(tools=True), ASKABLE, False, Talking()))
        await server.until_seen(lambda seen: seen.verb == "GET")
        listened = server.sessions[-1]
        reapers = [asyncio.create_task(reap(store, {"up": up}, 0.8)) for up in (one, other)]
        ended = await server.until_seen(lambda seen: seen.verb == "DELETE")
        await asyncio.sleep(1.2)  # several rounds more: what is listened to is in use
        assert server.sessions == [listened]
        assert ended.headers["mcp-session-id"] != listened
        assert server.count("DELETE") == 1
        for task in (*reapers, listening):
            task.cancel()
        await asyncio.wait([*reapers, listening])


# replicas


async def test_requests_without_a_session_go_round_and_pass_over_what_is_down() -> None:
    async with scripted() as one, scripted() as two, opened(one.url, two.url, _nowhere()) as up:
        await up.era(True, 5)
        for number in range(12):
            assert words(await up.request(outgoing(modern=True), Talking())), number
        assert min(len(one.calls()), len(two.calls())) >= 4
        assert len(one.calls()) + len(two.calls()) == 12


async def test_a_session_stays_where_it_was_opened_on_every_edge() -> None:
    store = MemorySessions(per_subject_max=10)
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(scripted("sessions")) for _ in range(3)]
        urls = [server.url for server in servers]
        edges = [await stack.enter_async_context(opened(*urls, store=store)) for _ in range(2)]
        callers = [Caller("acme", f"user-{n}", "tests") for n in range(6)]
        for _ in range(3):
            for caller in callers:
                for up in edges:
                    assert words(await up.request(outgoing(caller=caller), Talking())) == "{}"
        assert [len(server.sessions) for server in servers] == [2, 2, 2]
        for server in servers:
            assert set(sessions_of_calls(server)) == set(server.sessions)
            assert server.count("DELETE") == 0


async def test_a_replica_that_dies_costs_its_sessions_and_no_call() -> None:
    async with contextlib.AsyncExitStack() as stack:
        dying = contextlib.AsyncExitStack()
        servers = [await dying.enter_async_context(scripted("sessions"))]
        servers.append(await stack.enter_async_context(scripted("sessions")))
        up = await stack.enter_async_context(opened(*[server.url for server in servers]))
        for number in range(4):
            await up.request(outgoing(caller=Caller("acme", f"user-{number}", "tests")), Talking())
        assert [len(server.sessions) for server in servers] == [2, 2]
        await dying.aclose()
        for replica in up.replicas:
            replica.pool.close()  # idle connections are gone as well
        for number in range(4):
            caller = Caller("acme", f"user-{number}", "tests")
            assert words(await up.request(outgoing(caller=caller), Talking())) == "{}"
        assert len(servers[1].sessions) == 4


async def test_a_call_that_may_have_arrived_at_a_dying_replica_is_not_sent_to_another() -> None:
    async def dies(server: Scripted, seen: Seen, writer: Writer) -> None:
        writer.transport.abort()

    async with (
        scripted("sessions", behaviours={"echo": dies}) as one,
        scripted("sessions", behaviours={"echo": dies}) as two,
        opened(one.url, two.url) as up,
    ):
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(), Talking())
        assert caught.value.sent
        assert len(one.calls()) + len(two.calls()) == 1


def _nowhere() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/mcp"


# what the server says of itself


async def test_a_server_s_own_words_come_with_its_definitions_in_either_era() -> None:
    told = {"capabilities": {"tools": {"listChanged": True}}, "instructions": "Be kind."}

    async def introduce(server: Scripted, seen: Seen, writer: Writer) -> None:
        about: dict[str, Any] = {"serverInfo": {"name": "s", "version": "7"}, "protocolVersion": "2025-11-25"}
        meta = {"_meta": {"io.modelcontextprotocol/serverInfo": about["serverInfo"]}}
        more = {"supportedVersions": ["2026-07-28"], **meta} if seen.method == "server/discover" else about
        writer.write(http(result(seen, told | more)))

    for era, method in (("modern", "server/discover"), ("legacy", "initialize")):
        async with scripted(era, behaviours={method: introduce}) as server, opened(server.url) as up:
            found = await up.definitions(5)
            assert msgspec.json.decode(found.capabilities) == told["capabilities"]
            assert (found.instructions, msgspec.json.decode(found.server_info)["version"]) == ("Be kind.", "7")
            assert len(found.tools) == 3


async def test_a_server_without_session_ids_is_initialized_once() -> None:
    async with scripted("legacy") as server, opened(server.url) as up:
        for _ in range(3):
            assert words(await up.request(outgoing(), Talking())) == "{}"
        assert server.count("initialize") == 1
