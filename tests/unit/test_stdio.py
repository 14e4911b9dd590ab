"""Requests, notifications and questions over the pipes of real processes."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.parts import sdk130
from tests.parts.stdio_calls import ABLE, ANNA, BERT, ROOT, Heard, call, heard, plan, text, until

from tidegate.errors import ConfigFault, UpstreamFault
from tidegate.settings_file import load_settings
from tidegate_edge.upstream.port import SILENCE, Answer, Caller, Outgoing, Paused, Wanted
from tidegate_edge.upstream.stdio import StdioUpstream, plan_of
from tidegate_edge.upstream.stdio_child import Command
from tidegate_edge.upstream.stdio_kept import Plan, Room
from tidegate_edge.wiring import peer_address


@contextlib.asynccontextmanager
async def running(plan: Plan, room: Room | None = None) -> AsyncIterator[StdioUpstream]:
    upstream = StdioUpstream(plan, "acme", Room(64, 8) if room is None else room)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.close()
        assert not upstream.running()


@pytest.mark.parametrize("kind", ["talker", "modern", "dies", "mute", "slow-modern"])
async def test_the_era_is_found_whatever_a_server_does_with_the_question(tmp_path: Path, kind: str) -> None:
    async with running(plan(tmp_path, kind)) as upstream:
        assert upstream.known_era(True) is None
        modern = await upstream.era(True, 15.0)
        assert modern is (kind in ("modern", "slow-modern"))
        assert upstream.known_era(False) is modern
        assert text(await upstream.request(call("echo", modern=modern, n=1), SILENCE)) == {"n": 1}


async def test_a_choice_of_era_is_obeyed(tmp_path: Path) -> None:
    async with running(plan(tmp_path, "mute", era="legacy")) as upstream:
        assert upstream.known_era(True) is False
        assert text(await upstream.request(call("echo", n=1), SILENCE)) == {"n": 1}
        assert "server/discover" not in heard(tmp_path)
    async with running(plan(tmp_path, "talker", era="modern")) as upstream:
        with pytest.raises(UpstreamFault) as raised:
            await upstream.request(call("echo", modern=True, timeout_s=1.0), SILENCE)
        assert (raised.value.code, raised.value.sent) == ("upstream-unreachable", False)


async def test_a_server_that_speaks_another_era_after_its_end_is_found_out(tmp_path: Path) -> None:
    async with running(plan(tmp_path, "updated")) as upstream:
        assert await upstream.era(True, 10.0) is False
        with pytest.raises(UpstreamFault, match="the last words"):
            await upstream.request(call("crash"), SILENCE)
        with pytest.raises(UpstreamFault) as raised:
            await upstream.request(call("echo"), SILENCE)
        assert (raised.value.code, raised.value.sent) == ("upstream-era-changed", False)
        assert upstream.known_era(True) is True
        assert text(await upstream.request(call("echo", modern=True, n=2), SILENCE)) == {"n": 2}


@pytest.mark.parametrize("kind", ["talker", "modern"])
async def test_what_a_server_says_of_itself_comes_with_its_tools(tmp_path: Path, kind: str) -> None:
    async with running(plan(tmp_path, kind)) as upstream:
        found = await upstream.definitions(10.0)
        assert len(found.tools) == 10
        assert b'"subscribe"' in found.capabilities
        assert json.loads(found.server_info)["name"] == "talker"
        assert found.instructions == "Talk."


async def test_line_ends_in_a_request_do_not_break_the_line(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream:
        params = b'{"name":"echo",\r\n"arguments":\n{"a":\n"b\\nc"}}'
        answer = await upstream.request(Outgoing("tools/call", params, ANNA, False, 5.0), SILENCE)
        assert text(answer) == {"a": "b\nc"}


@pytest.mark.parametrize("kind", ["talker", "modern"])
async def test_progress_reaches_the_request_whose_token_it_carries(tmp_path: Path, kind: str) -> None:
    modern = kind == "modern"
    async with running(plan(tmp_path, kind)) as upstream:
        talks = [Heard() for _ in range(5)]
        await asyncio.gather(
            *[
                upstream.request(call("progress", modern=modern, token=f"t{n}", times=n), talk)
                for n, talk in enumerate(talks)
            ]
        )
        for n, talk in enumerate(talks):
            assert [params["progressToken"] for _, params in talk.notes] == [f"t{n}"] * n


async def test_a_log_line_goes_to_the_only_request_and_to_nobody_where_two_principals_share(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream:
        alone = Heard()
        await upstream.request(call("log", words="for anna"), alone)
        assert alone.notes == [("notifications/message", {"level": "info", "data": "for anna"})]
        other, mine = Heard(), Heard()
        held = asyncio.create_task(upstream.request(call("hold", BERT, until="go"), other))
        await until(lambda: '"until"' in heard(tmp_path))
        await upstream.request(call("log", words="for anna"), mine)
        (tmp_path / "go").touch()
        await held
        assert other.notes == mine.notes == []


async def test_the_level_is_set_once_as_verbose_as_wanted(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream:
        for level in ("warning", "info", "error", "info", "debug", "nonsense"):
            outgoing = Outgoing("tools/call", b'{"name":"echo"}', ANNA, False, 5.0, log_level=level)
            await upstream.request(outgoing, SILENCE)
        lines = [json.loads(line) for line in heard(tmp_path).splitlines()]
        levels = [one["params"]["level"] for one in lines if one["method"] == "logging/setLevel"]
        assert levels == ["warning", "info", "debug"]


async def test_a_question_is_answered_by_the_client_whose_call_is_under_way(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream:
        talk = Heard(answer=Answer(result=b'{"action":"accept","content":{"name":"Anna"}}'))
        answer = await upstream.request(call("ask", words="Who?", times=2), talk)
        assert text(answer) == [{"action": "accept", "content": {"name": "Anna"}}] * 2
        assert [(method, params["message"]) for method, params in talk.questions] == [
            ("elicitation/create", "Who?")
        ] * 2


async def test_a_client_is_not_asked_for_what_it_did_not_declare(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream:
        talk = Heard()
        unable = Caller("acme", "anna", "cli")
        for caller, method in ((unable, "elicitation/create"), (ANNA, "roots/list"), (ANNA, "made/up")):
            (told,) = text(await upstream.request(call("ask", caller, method=method), talk))
            assert told["error"]["code"] == -32601
        assert talk.questions == []


@pytest.mark.parametrize("pausable", [True, False])
async def test_nobody_is_asked_in_a_shared_process_while_another_principal_s_call_is_under_way(
    tmp_path: Path, pausable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(plan(tmp_path)) as upstream:
        anna, bert = Heard(pausable=pausable), Heard(pausable=pausable)
        held = asyncio.create_task(upstream.request(call("hold", BERT, until="go"), bert))
        await until(lambda: '"until"' in heard(tmp_path))
        (told,) = text(await upstream.request(call("ask"), anna))
        assert told["error"]["code"] == -32601
        (tmp_path / "go").touch()
        await held
        assert anna.questions == bert.questions == []
        assert "process: per-principal" in caplog.text


async def test_what_a_cancelled_call_still_asks_reaches_nobody_else(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream:
        anna, bert = Heard(), Heard()
        asking = asyncio.create_task(upstream.request(call("ask", after="late", nonce="late"), anna))
        await until(lambda: '"after"' in heard(tmp_path))
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: "the caller went away" in heard(tmp_path))
        held = asyncio.create_task(upstream.request(call("hold", BERT, until="go"), bert))
        await until(lambda: '"until"' in heard(tmp_path))
        (tmp_path / "late").touch()
        await until(lambda: '"late-0"' in heard(tmp_path))
        (tmp_path / "go").touch()
        await held
        assert anna.questions == bert.questions == []


async def test_a_paused_call_goes_on_with_the_answers_and_serves_its_own_principal_alone(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream:
        talk = Heard(pausable=True)
        paused = await upstream.request(call("ask", times=3, words="Sure?"), talk)
        assert isinstance(paused, Paused)
        assert (paused.edge, len(paused.asked)) == ("here", 3)
        assert {one.method for one in paused.asked.values()} == {"elicitation/create"}
        with pytest.raises(UpstreamFault) as raised:
            await upstream.resume(paused.ticket, {}, BERT, Heard(pausable=True), 5.0)
        assert raised.value.code == "upstream-pause-ended"
        first, *others = paused.asked
        again = await upstream.resume(
            paused.ticket, {first: Answer(result=b'{"action":"decline"}')}, ANNA, Heard(pausable=True), 5.0
        )
        assert isinstance(again, Paused)
        assert list(again.asked) == others
        with pytest.raises(UpstreamFault):
            await upstream.resume(paused.ticket, {}, ANNA, talk, 5.0)  # a ticket serves once
        accept = Answer(result=b'{"action":"accept","content":{}}')
        done = await upstream.resume(again.ticket, dict.fromkeys(others, accept), ANNA, Heard(pausable=True), 5.0)
        assert [one["action"] for one in text(done)] == ["decline", "accept", "accept"]


async def test_a_server_of_the_handshake_era_s_official_sdk_asks_and_is_answered_in_both_ways(tmp_path: Path) -> None:
    command = Command((str(sdk130.python()), str(ROOT / "tests" / "parts" / "stdio_sdk130.py")), {})
    async with running(plan(tmp_path)._replace(command=command)) as upstream:
        assert await upstream.era(True, 20.0) is False
        answer = Answer(result=b'{"action":"accept","content":{"row":7}}')
        live = Heard(answer=answer)
        done = await upstream.request(call("book", name="Anna", token="t1"), live)
        assert isinstance(done, Answer)
        assert b"Anna sits in row 7" in done.result
        assert [method for method, _ in live.notes] == ["notifications/message", "notifications/progress"]
        paused = await upstream.request(call("book", name="Bert"), Heard(pausable=True))
        assert isinstance(paused, Paused)
        (key,) = paused.asked
        done = await upstream.resume(paused.ticket, {key: answer}, ANNA, Heard(), 10.0)
        assert isinstance(done, Answer)
        assert b"Bert sits in row 7" in done.result


async def test_a_pause_ends_with_its_time_and_the_server_is_told(tmp_path: Path) -> None:
    async with running(plan(tmp_path, paused_s=0.2)) as upstream:
        paused = await upstream.request(call("ask"), Heard(pausable=True))
        assert isinstance(paused, Paused)
        await until(lambda: "did not answer in time" in heard(tmp_path))
        assert '{"action":"cancel"}' in heard(tmp_path)
        with pytest.raises(UpstreamFault) as raised:
            await upstream.resume(paused.ticket, {}, ANNA, Heard(), 5.0)
        assert raised.value.code == "upstream-pause-ended"


async def test_a_server_is_told_when_its_question_will_not_be_answered(tmp_path: Path) -> None:
    class Deaf(Heard):
        async def asked(self, method: str, params: bytes) -> Answer:
            await super().asked(method, params)
            return await asyncio.get_running_loop().create_future()

    async with running(plan(tmp_path)) as upstream:
        talk = Deaf()
        for method, told in (
            ("elicitation/create", '"action":"cancel"'),
            ("sampling/createMessage", "does not answer"),
        ):
            asking = asyncio.create_task(upstream.request(call("ask", method=method), talk))
            await until(lambda method=method: any(asked == method for asked, _ in talk.questions))  # type: ignore[misc]
            asking.cancel()
            await asyncio.wait([asking])
            await until(lambda told=told: told in heard(tmp_path))  # type: ignore[misc]


async def test_a_talk_that_fails_costs_its_message_and_not_the_process(tmp_path: Path) -> None:
    class Clumsy(Heard):
        def notified(self, method: str, params: bytes) -> None:
            raise RuntimeError("dropped")

        async def asked(self, method: str, params: bytes) -> Answer:
            raise RuntimeError("dropped")

    async with running(plan(tmp_path)) as upstream:
        await upstream.request(call("progress", token="t", times=2), Clumsy())
        (told,) = text(await upstream.request(call("ask"), Clumsy()))
        assert told["error"]["code"] == -32603
        assert len(pids_of(tmp_path)) == 1


async def test_a_pause_ends_with_its_process_and_with_its_session(tmp_path: Path) -> None:
    session = Caller("acme", "anna", "cli", "s1", ABLE)
    async with running(plan(tmp_path)) as upstream:
        paused = await upstream.request(call("ask", session), Heard(pausable=True))
        assert isinstance(paused, Paused)
        await upstream.end(session)
        with pytest.raises(UpstreamFault, match="call again"):
            await upstream.resume(paused.ticket, {}, session, Heard(), 5.0)
        paused = await upstream.request(call("ask"), Heard(pausable=True))
        assert isinstance(paused, Paused)
        with pytest.raises(UpstreamFault, match="the last words"):
            await upstream.request(call("crash"), SILENCE)
        with pytest.raises(UpstreamFault):
            await upstream.resume(paused.ticket, {}, ANNA, Heard(), 5.0)


@pytest.mark.parametrize("kind", ["talker", "modern"])
async def test_a_listener_hears_changes_also_after_the_process_was_started_again(tmp_path: Path, kind: str) -> None:
    modern = kind == "modern"
    async with running(plan(tmp_path, kind)) as upstream:
        talk = Heard()
        listening = asyncio.create_task(upstream.listen(Wanted(tools=True), ANNA, modern, talk))

        async def change() -> bool:
            await upstream.request(call("change", modern=modern), SILENCE)
            return any(method == "notifications/tools/list_changed" for method, _ in talk.notes)

        for _ in range(2):
            talk.notes.clear()
            async with asyncio.timeout(10):
                while not await change():
                    await asyncio.sleep(0.01)
            with contextlib.suppress(UpstreamFault):
                await upstream.request(call("crash", modern=modern), SILENCE)
        listening.cancel()
        await asyncio.wait([listening])


async def test_a_resource_is_subscribed_to_once_and_until_the_last_listener_leaves(tmp_path: Path) -> None:
    def told(method: str) -> int:
        return heard(tmp_path).count(f'"{method}"')

    async with running(plan(tmp_path)) as upstream:
        await upstream.era(True, 10.0)
        talks = [Heard(), Heard()]
        wanted = [Wanted(uris=("a:1",)), Wanted(uris=("a:1", "a:2"))]
        tasks = [
            asyncio.create_task(upstream.listen(one, ANNA, False, talk))
            for one, talk in zip(wanted, talks, strict=True)
        ]
        await until(lambda: told("resources/subscribe") == 2)
        await upstream.request(call("touch", uri="a:1"), SILENCE)
        await upstream.request(call("touch", uri="a:2"), SILENCE)
        assert [[params["uri"] for _, params in talk.notes] for talk in talks] == [["a:1"], ["a:1", "a:2"]]
        tasks[1].cancel()
        await asyncio.wait(tasks[1:])
        await until(lambda: told("resources/unsubscribe") == 1)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        await until(lambda: told("resources/unsubscribe") == 2)


async def test_listening_returns_where_nothing_of_the_kind_is_offered(tmp_path: Path) -> None:
    async with running(plan(tmp_path)) as upstream, asyncio.timeout(10):
        await upstream.listen(Wanted(prompts=True), ANNA, False, SILENCE)


def starts(directory: Path) -> int:
    path = directory / "pids"
    return len(path.read_text().split()) if path.exists() else 0


async def pid_of(upstream: StdioUpstream, caller: Caller) -> int:
    return int(text(await upstream.request(call("who", caller), SILENCE))["pid"])


async def test_each_principal_and_agent_has_its_own_process_where_that_is_configured(tmp_path: Path) -> None:
    async with running(plan(tmp_path, shared=False)) as upstream:
        assert starts(tmp_path) == 0
        other_agent = Caller("acme", "anna", "desktop")
        other_tenant = Caller("globex", "anna", "cli")
        callers = [ANNA, BERT, other_agent, other_tenant]
        pids = [await pid_of(upstream, caller) for caller in callers]
        assert len(set(pids)) == 4
        assert [await pid_of(upstream, caller) for caller in callers] == pids
        greeting = text(await upstream.request(call("greeting"), SILENCE))
        assert greeting["capabilities"] == json.loads(ABLE)


async def test_questions_at_once_in_processes_of_their_own_reach_their_own_principals(tmp_path: Path) -> None:
    async with running(plan(tmp_path, shared=False)) as upstream:
        talks = [Heard(answer=Answer(result=b'{"action":"accept","content":{"n":%d}}' % n)) for n in range(2)]
        answers = await asyncio.gather(
            *[
                upstream.request(call("ask", caller, words=caller.subject_id, nonce=caller.subject_id), talk)
                for caller, talk in zip((ANNA, BERT), talks, strict=True)
            ]
        )
        assert [text(answer)[0]["content"]["n"] for answer in answers] == [0, 1]
        assert [talk.questions[0][1]["message"] for talk in talks] == ["anna", "bert"]


async def test_an_idle_process_ends_and_is_started_again_with_the_next_call(tmp_path: Path) -> None:
    async with running(plan(tmp_path, shared=False, idle_s=0.4)) as upstream:
        first = await pid_of(upstream, ANNA)
        await until(lambda: not upstream.running())
        await until(lambda: not Path(f"/proc/{first}").exists())
        assert await pid_of(upstream, ANNA) != first


async def test_ten_agents_at_once_have_no_more_processes_than_are_allowed(tmp_path: Path) -> None:
    room = Room(4, 8)
    async with running(plan(tmp_path, shared=False), room) as upstream:
        agents = [Caller("acme", f"user-{n}", "cli") for n in range(10)]
        told = await asyncio.gather(*[pid_of(upstream, one) for one in agents], return_exceptions=True)
        pids = {one for one in told if isinstance(one, int)}
        busy = [one for one in told if isinstance(one, UpstreamFault)]
        assert (len(pids), len(busy)) == (4, 6)
        assert {(fault.code, fault.sent) for fault in busy} == {("upstream-busy", False)}
        assert "limits.processes_max" in busy[0].sentence
        for agent in agents:  # one after the other: the longest idle one makes room
            await pid_of(upstream, agent)
            assert len(upstream.running()) == len(room) == 4
        await until(lambda: sum(Path(f"/proc/{pid}").exists() for pid in map(int, pids_of(tmp_path))) == 4)
    assert not [pid for pid in pids_of(tmp_path) if Path(f"/proc/{pid}").exists()]
    assert len(room) == 0


def pids_of(directory: Path) -> list[str]:
    return (directory / "pids").read_text().split()


async def test_one_principal_has_no_more_processes_than_its_share(tmp_path: Path) -> None:
    async with running(plan(tmp_path, shared=False), Room(64, 2)) as upstream:
        agents = [Caller("acme", "anna", f"agent-{n}") for n in range(3)]
        pids = [await pid_of(upstream, agent) for agent in agents]
        assert len(upstream.running()) == 2
        assert await pid_of(upstream, agents[2]) == pids[2]
        assert await pid_of(upstream, agents[0]) != pids[0]


async def test_a_process_in_use_is_not_ended_to_make_room(tmp_path: Path) -> None:
    async with running(plan(tmp_path, shared=False), Room(1, 8)) as upstream:
        held = asyncio.create_task(upstream.request(call("hold", until="go"), SILENCE))
        await until(lambda: '"until"' in heard(tmp_path))
        with pytest.raises(UpstreamFault, match="in use"):
            await pid_of(upstream, BERT)
        (tmp_path / "go").touch()
        await held
        assert await pid_of(upstream, BERT)


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"url": "http://x/mcp", "process": "per-principal"}, "go with command"),
        ({"url": "http://x/mcp", "idle_s": 5.0}, "go with command"),
        ({"command": ["x"], "idle_s": -1.0}, "0 for never"),
        ({"command": ["x"], "process": "one"}, "'one' is none of"),
    ],
)
def test_keys_of_processes_are_checked(tmp_path: Path, server: dict[str, Any], told: str) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text(json.dumps({"servers": {"up": server}}))
    with pytest.raises(ConfigFault, match=told):
        load_settings(file)


def test_what_is_configured_is_what_is_planned(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.yaml"
    servers = {
        "one": {"command": ["x"]},
        "own": {"command": ["y"], "process": "per-principal", "cwd": "here", "era": "legacy"},
        "brief": {"command": ["z"], "process": "per-principal", "idle_s": 30},
    }
    file.write_text(json.dumps({"servers": servers, "limits": {"paused_s": 60}}))
    settings = load_settings(file)
    one, own, brief = (plan_of(settings, name, "here") for name in servers)
    assert (one.shared, one.idle_s, one.era, one.paused_s) == (True, 0.0, "auto", 60.0)
    assert (own.shared, own.idle_s, own.era, own.command.cwd) == (False, 900.0, "legacy", str(tmp_path / "here"))
    assert brief.idle_s == 30.0


def test_an_edge_s_address_for_others_is_checked_and_has_a_default(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text(json.dumps({"edge": {"address": "edge-1:8080"}}))
    with pytest.raises(ConfigFault, match="http://host:port"):
        load_settings(file)
    for given, found in (
        ({"listen": "10.0.0.1:8080"}, "http://10.0.0.1:8080"),
        ({"listen": "0.0.0.0:81"}, f"http://{socket.gethostname()}:81"),
        ({"listen": "0.0.0.0:81", "edge": {"address": "https://edge-1.example"}}, "https://edge-1.example"),
    ):
        file.write_text(json.dumps(given))
        assert peer_address(load_settings(file)) == found
