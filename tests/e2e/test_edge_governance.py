"""Who may call, what is refused, and what the log holds of it: one edge in this process, its file read back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import BLOCKED, BUNDLE, SECRET, Answer, RunningEdge, Speaker, running_edge, until
from tests.parts.scripted import Scripted, Seen, http, result, scripted, text, tool

from tidegate.chain import Chain
from tidegate.events import (
    CallRequested,
    QuarantineImposed,
    RequestRefused,
    SessionClosed,
    SessionOpened,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.ids import now_us, uuid7
from tidegate.log.port import Record

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    servers = {"up": {"url": up.url}, "second": {"url": up.url}}
    async with running_edge(tmp_path_factory.mktemp("governed"), servers) as running:
        yield running


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


def decision(answer: Answer) -> Any:
    return answer.result["_meta"]["tidegate/decision"]


def reached(up: Scripted, nonce: str) -> int:
    return sum(nonce.encode() in seen.body for seen in up.seen)


# identity


async def test_a_stranger_is_told_where_to_get_a_token(edge: RunningEdge) -> None:
    nobody = Speaker(edge.place.listen, "")
    for path in ("/mcp", "/mcp/up"):
        answer = await nobody.ask(nobody.request(b"not even json", path, headers={"Authorization": ""}))
        metadata = f"{edge.settings.url}/.well-known/oauth-protected-resource{path}"
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == f'Bearer resource_metadata="{metadata}"'
        document = await nobody.ask(
            f"GET {metadata.removeprefix(edge.settings.url)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert document.json["resource"] == f"{edge.settings.url}{path}"
        assert document.json["authorization_servers"] == [edge.place.issuer.issuer]
    unknown = b"GET /.well-known/oauth-protected-resource/mcp/none HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await nobody.ask(unknown)).status == 404


async def test_a_token_that_does_not_serve_is_refused(edge: RunningEdge) -> None:
    good = edge.place.token()
    bad = {
        "rubbish": "rubbish",
        "changed": good[:-6] + ("AAAAAA" if good[-6:] != "AAAAAA" else "BBBBBB"),
        "audience": edge.place.token(audience="https://elsewhere.example/mcp"),
        "expired": edge.place.token(ttl_s=60, ago_s=3600),
        "non-ascii": "caf\xe9",
    }
    for token in bad.values():
        answer = await Speaker(edge.place.listen, token).call("up__echo")
        assert answer.status == 401
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert answer.json["id"] is None
    assert (await Speaker(edge.place.listen, good).call("up__echo")).status == 200
    for scheme in ("Basic", "Digest", ""):
        request = Speaker(edge.place.listen, good).request(b"{}", headers={"Authorization": f"{scheme} {good}".strip()})
        assert (await Speaker(edge.place.listen, good).ask(request)).status == 401


async def test_a_token_made_for_one_server_serves_there_alone(edge: RunningEdge) -> None:
    narrow = Speaker(edge.place.listen, edge.place.token(audience=f"{edge.settings.url}/mcp/up"))
    assert (await narrow.call("echo", path="/mcp/up")).status == 200
    for path, name in (("/mcp", "up__echo"), ("/mcp/second", "echo")):
        answer = await narrow.call(name, path=path)
        assert answer.status == 401
        assert "another endpoint" in answer.json["error"]["message"]


async def test_a_session_serves_the_principal_that_opened_it_alone(edge: RunningEdge, speaker: Speaker) -> None:
    await speaker.initialize()
    assert (await speaker.ask(speaker.legacy("ping"))).result == {}
    for other in (
        edge.place.speaker(user="mallory@example.com"),
        edge.place.speaker(agent="another-agent"),
    ):
        other.session = speaker.session
        assert (await other.ask(other.legacy("ping"))).status == 404
        assert (await other.ask(other.legacy("tools/call", {"name": "up__echo"}))).status == 404
        assert (
            await other.ask(other.request(b"", verb="DELETE", headers={"Mcp-Session-Id": other.session}))
        ).status == 404
    for forged in ("x", speaker.session[:-2] + "AA", speaker.session + "A", "\xe9"):
        thief = edge.place.speaker()
        thief.session = forged
        assert (await thief.ask(thief.legacy("ping"))).status == 404
    assert (await speaker.ask(speaker.legacy("ping"))).status == 200


async def test_an_ended_session_is_gone(edge: RunningEdge, speaker: Speaker) -> None:
    await speaker.initialize()
    end = speaker.request(b"", verb="DELETE", headers={"Mcp-Session-Id": speaker.session})
    assert (await speaker.ask(end)).status == 200
    assert (await speaker.ask(speaker.legacy("ping"))).status == 404
    assert (await speaker.ask(end)).status == 404
    events = await edge.place.events("sessions")
    opened = {event.session_id for event in events if isinstance(event, SessionOpened)}
    closed = [event for event in events if isinstance(event, SessionClosed)]
    assert closed
    assert {event.session_id for event in closed} <= opened


async def test_a_session_in_use_does_not_expire(up: Scripted, tmp_path: Path) -> None:
    async with running_edge(tmp_path, {"up": {"url": up.url}}, limits={"session_idle_s": 1.0}) as edge:
        speaker = edge.place.speaker()
        await speaker.initialize()
        until_s = time.monotonic() + 2.0
        while time.monotonic() < until_s:
            assert (await speaker.ask(speaker.legacy("ping"))).status == 200
            await asyncio.sleep(0.1)

        async def gone() -> bool:
            await asyncio.sleep(1.1)  # idle, for once
            return (await speaker.ask(speaker.legacy("ping"))).status == 404

        await until(gone)


# decisions


async def test_a_hidden_tool_answers_like_one_that_does_not_exist(edge: RunningEdge, speaker: Speaker) -> None:
    await speaker.initialize()
    outsider = edge.place.speaker(user="bob@example.com", groups=("sales",))
    await outsider.initialize()
    asked = [
        (speaker, "up__secret-tool", "up__unknown--tool"),
        (outsider, "up__echo", "up__nope"),
    ]
    for who, hidden, unknown in asked:
        for arguments in ({}, {"path": "/etc/x"}, [], "text", None):
            for say in (
                lambda name, who=who, arguments=arguments: who.modern(
                    "tools/call", {"name": name, "arguments": arguments}
                ),
                lambda name, who=who, arguments=arguments: who.legacy(
                    "tools/call", {"name": name, "arguments": arguments}
                ),
            ):
                first, second = await who.ask(say(hidden)), await who.ask(say(unknown))
                assert first.status == second.status
                assert first.body.replace(hidden.encode(), unknown.encode()) == second.body
                headers = [
                    {key: value for key, value in one.headers.items() if key != "content-length"}
                    for one in (first, second)
                ]
                assert headers[0] == headers[1]


async def test_a_hidden_tool_is_not_betrayed_by_a_quarantine(edge: RunningEdge, speaker: Speaker) -> None:
    async with quarantine(edge, "server", "up"):
        first = await speaker.call("up__secret-tool")
        second = await speaker.call("up__unknown--tool")
        assert first.body.replace(b"up__secret-tool", b"up__unknown--tool") == second.body


async def test_refused_arguments_are_told_to_the_model_and_to_the_program(
    edge: RunningEdge, speaker: Speaker, up: Scripted
) -> None:
    answer = await speaker.call("up__echo", {"path": "/etc/passwd", "nonce": "denied-1"})
    assert answer.status == 200
    assert answer.result["isError"] is True
    assert "Nothing below /etc may be read." in answer.text
    told = decision(answer)
    assert (told["reason"], told["rules"], told["stage"]) == ("forbidden-by-rule", ["not-etc"], "policy")
    assert answer.result["resultType"] == "complete"
    asked, ended = await edge.place.calls("denied-1")
    assert ended == []
    (event,) = asked
    assert event.call_id == told["id"]
    assert (event.decision, event.reason, event.rules) == ("deny", "forbidden-by-rule", ("not-etc",))
    assert (event.server, event.target, event.method) == ("up", "echo", "tools/call")
    assert reached(up, "denied-1") == 0


async def test_an_allowed_call_is_two_events_that_agree(edge: RunningEdge, speaker: Speaker, up: Scripted) -> None:
    answer = await speaker.call("up__echo", {"nonce": "allowed-1"})
    assert answer.text == '{"nonce": "allowed-1"}'
    (asked,), (ended,) = await edge.place.calls("allowed-1")
    assert (asked.decision, asked.rules, ended.outcome) == ("allow", ("eng-all",), "ok")
    for name in (
        "call_id",
        "tenant",
        "subject_id",
        "agent",
        "session_id",
        "server",
        "target",
        "mode",
        "bundle",
        "protocol",
    ):
        assert getattr(asked, name) == getattr(ended, name)
    assert asked.agent == "tests"
    assert asked.protocol == "2026-07-28"
    assert asked.sealed.login == "alice@example.com"
    assert asked.subject_id
    assert "alice" not in asked.subject_id
    assert json.loads(bytes(asked.sealed.arguments)) == {"nonce": "allowed-1"}
    assert asked.time_us <= ended.time_us
    assert reached(up, "allowed-1") == 1


async def test_a_secret_in_arguments_is_masked_before_it_leaves_and_stored_nowhere(
    edge: RunningEdge, speaker: Speaker, up: Scripted
) -> None:
    answer = await speaker.call("up__echo", {"nonce": "masked-1", "deep": [{"k": f"x {SECRET} y"}], SECRET: 1})
    assert "[masked:key]" in answer.text
    assert reached(up, SECRET) == 0
    (asked,), (ended,) = await edge.place.calls("masked-1")
    assert [(one.rule, one.action, one.direction) for one in asked.findings] == [("key", "mask", "arguments")]
    assert ended.outcome == "ok"


async def test_a_blocked_word_in_arguments_stops_the_call(edge: RunningEdge, speaker: Speaker, up: Scripted) -> None:
    answer = await speaker.call("up__echo", {"nonce": "blocked-1", "word": BLOCKED})
    assert answer.result["isError"] is True
    assert (decision(answer)["reason"], decision(answer)["stage"]) == ("arguments-blocked", "inspection")
    assert reached(up, BLOCKED) == reached(up, "blocked-1") == 0
    (asked,), ended = await edge.place.calls("blocked-1")
    assert (asked.decision, asked.stage, ended) == ("deny", "inspection", [])


@pytest.mark.parametrize("escaped", [False, True])
async def test_a_secret_in_a_result_is_masked(edge: RunningEdge, speaker: Speaker, up: Scripted, escaped: bool) -> None:
    async def tells(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(result(seen, text(f"the key is {SECRET}") | {"structuredContent": {"key": SECRET}}))
        writer.write(http(body.replace("AKIA", "\\u0041KIA") if escaped else body))

    nonce = f"result-masked-{escaped}"
    up.behaviours["note"] = tells
    try:
        answer = await speaker.call("up__note", {"nonce": nonce})
    finally:
        up.behaviours.clear()
    assert answer.text == "the key is [masked:key]"
    assert answer.result["structuredContent"] == {"key": "[masked:key]"}
    _, (ended,) = await edge.place.calls(nonce)
    assert (ended.outcome, ended.masked, [one.rule for one in ended.findings]) == ("ok", 2, ["key"])


async def test_a_blocked_result_is_withheld(edge: RunningEdge, speaker: Speaker, up: Scripted) -> None:
    async def tells(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(result(seen, text(f"it is {BLOCKED}"))))

    up.behaviours["note"] = tells
    try:
        answer = await speaker.call("up__note", {"nonce": "result-blocked"})
    finally:
        up.behaviours.clear()
    assert answer.result["isError"] is True
    assert BLOCKED.encode() not in answer.body
    _, (ended,) = await edge.place.calls("result-blocked")
    assert (ended.outcome, ended.reason) == ("blocked", "result-blocked")


async def test_an_error_of_the_server_is_inspected_too(edge: RunningEdge, speaker: Speaker, up: Scripted) -> None:
    async def fails(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        error = {"code": -32000, "message": f"bad key {SECRET}", "data": {"key": SECRET}}
        writer.write(http({"jsonrpc": "2.0", "id": seen.message["id"], "error": error}))

    up.behaviours["note"] = fails
    try:
        answer = await speaker.call("up__note", {"nonce": "rpc-error"})
    finally:
        up.behaviours.clear()
    assert answer.error == {"code": -32000, "message": "bad key [masked:key]", "data": {"key": "[masked:key]"}}
    _, (ended,) = await edge.place.calls("rpc-error")
    assert (ended.outcome, ended.error_code) == ("rpc-error", -32000)


async def test_duplicate_keys_are_refused_and_recorded(edge: RunningEdge, speaker: Speaker, up: Scripted) -> None:
    plain = speaker.calling("up__echo", {"nonce": "twice", "path": "/srv"})
    body = plain.replace(b'"path": "/srv"', b'"path": "/srv", "path": "/etc"')
    body = body.replace(b"Content-Length: ", b"X: ").replace(
        b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % (len(plain.split(b"\r\n\r\n", 1)[1]) + 16)
    )
    answer = await speaker.ask(body)
    assert answer.status == 400
    assert "'path' appears twice" in answer.error["message"]
    assert reached(up, "twice") == 0
    refused = [one for one in await edge.place.events("sessions") if isinstance(one, RequestRefused)]
    assert any("appears twice" in one.message and one.status == 400 for one in refused)


async def test_a_call_that_never_became_one_is_a_recorded_refusal(edge: RunningEdge, speaker: Speaker) -> None:
    async def count() -> int:
        return sum(isinstance(one, RequestRefused) for one in await edge.place.events("sessions"))

    before = await count()
    speaker.session = "gone"
    assert (await speaker.ask(speaker.legacy("tools/call", {"name": "up__echo"}))).status == 404
    assert await count() == before + 1
    assert (await speaker.ask(speaker.modern("tools/call", {"name": 7}))).status == 400
    assert await count() == before + 2
    await speaker.initialize("2025-03-26")
    batch = b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":null,"method":"ping"}]'
    answer = await speaker.ask(speaker.request(batch, headers={"Mcp-Session-Id": speaker.session}))
    assert [one.get("error", {}).get("code") for one in answer.json] == [None, -32600]
    assert await count() == before + 3


async def test_each_call_of_a_batch_is_governed_and_recorded(edge: RunningEdge, speaker: Speaker, up: Scripted) -> None:
    await speaker.initialize("2025-03-26")
    members = [
        {"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": {"name": "up__echo", "arguments": arguments}}
        for n, arguments in enumerate(
            [{"nonce": "batch-0"}, {"nonce": "batch-1", "path": "/etc"}, {"nonce": "batch-2"}]
        )
    ]
    answer = await speaker.ask(
        speaker.request(json.dumps(members).encode(), headers={"Mcp-Session-Id": speaker.session})
    )
    assert [one["id"] for one in answer.json] == [0, 1, 2]
    decisions = [(await edge.place.calls(f"batch-{n}"))[0][0].decision for n in range(3)]
    assert decisions == ["allow", "deny", "allow"]
    assert [reached(up, f"batch-{n}") for n in range(3)] == [1, 0, 1]


# quarantines


class quarantine:
    """In force within the block."""

    def __init__(self, edge: RunningEdge, scope: Any, value: str) -> None:
        self.edge = edge
        at_us = now_us()
        self.event = QuarantineImposed(
            id=uuid7(), time_us=at_us, tenant="acme", region="local", quarantine_id=uuid7(), scope=scope,
            value=value, reason="looks wrong", actor="detector",
        )  # fmt: skip
        self.key = f"acme|{self.event.quarantine_id}".encode()

    async def __aenter__(self) -> str:
        value = Chain(self.event.quarantine_id).seal(self.event).value
        await self.edge.log.append([Record("control-state", self.key, value)])
        held = self.edge.edge.quarantines_of("acme")
        await until(lambda: held.get(self.event.quarantine_id) is not None)
        return self.event.quarantine_id

    async def __aexit__(self, *_: object) -> None:
        await self.edge.log.append([Record("control-state", self.key, None)])
        await until(lambda: self.edge.edge.quarantines_of("acme").get(self.event.quarantine_id) is None)


@pytest.mark.parametrize("scope", ["session", "subject", "agent", "server", "tool"])
async def test_what_is_in_quarantine_is_refused_with_the_reason(
    edge: RunningEdge, speaker: Speaker, up: Scripted, scope: str
) -> None:
    await speaker.call("up__echo", {"nonce": f"before-{scope}"})
    (known,), _ = await edge.place.calls(f"before-{scope}")
    value = {
        "session": known.session_id,
        "subject": known.subject_id,
        "agent": "tests",
        "server": "up",
        "tool": "up/echo",
    }
    nonce = f"quarantined-{scope}"
    async with quarantine(edge, scope, value[scope]) as quarantine_id:
        answer = await speaker.call("up__echo", {"nonce": nonce})
        assert "looks wrong" in answer.text
        told = decision(answer)
        assert (told["reason"], told["stage"], told["rules"]) == ("quarantined", "quarantine", [quarantine_id])
        if scope in ("server", "tool"):
            assert (await speaker.call("second__echo", {"n": 1})).text == '{"n": 1}'
        else:
            other = edge.place.speaker(user="else@example.com", agent="else", sid="else")
            assert (await other.call("up__echo", {"n": 1})).text == '{"n": 1}'
    (asked,), ended = await edge.place.calls(nonce)
    assert (asked.decision, asked.stage, ended) == ("deny", "quarantine", [])
    assert reached(up, nonce) == 0
    assert (await speaker.call("up__echo", {"n": 2})).text == '{"n": 2}'


# the log


async def test_without_a_log_nothing_is_forwarded(up: Scripted, tmp_path: Path) -> None:
    async with running_edge(tmp_path, {"up": {"url": up.url}}) as edge:
        speaker = edge.place.speaker()
        await speaker.call("up__echo")
        await edge.log._commit.close()
        answer = await speaker.call("up__echo", {"nonce": "unrecorded"})
        assert answer.status == 503
        assert answer.error["data"]["reason"] == "log-closed"
        assert "was not made" in answer.error["message"]
        assert reached(up, "unrecorded") == 0
        assert (await speaker.ask(speaker.modern("tools/list"))).status == 200


async def test_when_the_disk_refuses_the_call_is_refused_and_the_chain_goes_on_unbroken(
    up: Scripted, tmp_path: Path
) -> None:
    async with running_edge(tmp_path, {"up": {"url": up.url}}) as edge:
        speaker = edge.place.speaker()
        await speaker.call("up__echo", {"nonce": "disk-0"})
        database = edge.log._appender._db
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own "disk is full"
        answers = [await speaker.call("up__echo", {"nonce": f"full-{n}", "pad": "x" * 30_000}) for n in range(3)]
        assert answers[-1].status == 503
        assert "was not made" in answers[-1].error["message"]
        assert reached(up, "full-2") == 0
        database.execute("PRAGMA max_page_count=1000000")
        assert (await speaker.call("up__echo", {"nonce": "disk-1"})).status == 200
        assert len((await edge.place.calls("disk-1"))[1]) == 1
        for number in range(3):
            asked, _ = await edge.place.calls(f"full-{number}")
            assert reached(up, f"full-{number}") <= len(asked)
        await edge.place.chains_hold()


async def test_no_secret_no_token_and_no_blocked_word_is_stored_anywhere(edge: RunningEdge, speaker: Speaker) -> None:
    await speaker.initialize()
    session = speaker.session
    for arguments in ({"nonce": "stored-1", "key": SECRET}, {"nonce": "stored-2", "word": BLOCKED}):
        await speaker.ask(speaker.legacy("tools/call", {"name": "up__echo", "arguments": arguments}))
    await edge.place.chains_hold()
    stored = b"".join(path.read_bytes() for path in edge.settings.data_dir.glob("log.db*"))
    shown = await edge.place.shown()
    assert b"stored-1" in shown
    assert b"stored-2" in shown
    for secret in (SECRET, BLOCKED, speaker.auth, session):
        assert secret.encode() not in stored
        assert secret.encode() not in shown


# the catalogue


async def test_what_is_listed_is_what_can_be_called(edge: RunningEdge, speaker: Speaker) -> None:
    for who, path, expected in (
        (speaker, "/mcp", ["second__echo", "second__note", "second__secret-tool", "up__echo", "up__note"]),
        (speaker, "/mcp/up", ["echo", "note"]),
        (edge.place.speaker(user="bob@example.com", groups=()), "/mcp", []),
    ):
        answer = await who.ask(who.modern("tools/list", path=path))
        assert [one["name"] for one in answer.result["tools"]] == expected
        assert answer.result["resultType"] == "complete"
        for name in expected:
            assert not (await who.call(name, path=path)).result.get("isError")
        for name in ("up__secret-tool", "secret-tool"):
            assert "error" in (await who.call(name, path=path)).json


async def test_a_definition_is_recorded_when_it_is_new_or_changed_and_never_again(tmp_path: Path) -> None:
    icons = [{"src": "data:image/png;base64,AA==", "x-odd": [1.50, "é"]}]
    first = [tool("echo", icons=icons, extra={"kept": True}), tool("note"), {"name": "broken"}, {"inputSchema": {}}]
    async with scripted(tools=first) as up:
        servers = {"up": {"url": up.url}}
        for _ in range(2):
            async with running_edge(tmp_path, servers) as edge:
                speaker = edge.place.speaker()
                listed = (await speaker.ask(speaker.modern("tools/list", path="/mcp/up"))).result["tools"]
                assert listed == [tool("echo", icons=icons, extra={"kept": True}), tool("note")]
            defined = [one for one in await edge.place.events("catalog") if isinstance(one, ToolDefined)]
            assert [(one.tool, one.previous) for one in defined] == [("echo", ""), ("note", "")]
        up.tools = [tool("echo") | {"description": "Changed."}]
        async with running_edge(tmp_path, servers) as edge:
            events = await edge.place.events("catalog")
        changed = [one for one in events if isinstance(one, ToolDefined)][2:]
        assert [(one.tool, one.previous) for one in changed] == [("echo", defined[0].digest)]
        assert [one.tool for one in events if isinstance(one, ToolWithdrawn)] == ["note"]


async def test_a_bundle_that_rules_is_kept_over_a_restart_and_swapped_by_a_better_one(
    up: Scripted, tmp_path: Path
) -> None:
    servers = {"up": {"url": up.url}}
    async with running_edge(tmp_path, servers) as edge:
        assert (await edge.place.speaker().call("up__echo", {"n": 1})).text == '{"n": 1}'
        nothing = {**BUNDLE, "policies/p.cedar": '@id("no") forbid (principal, action, resource);'}
        await edge.publish(nothing, 2)
        assert "error" in (await edge.place.speaker().call("up__echo")).json
    async with running_edge(tmp_path, servers, bundle=None) as edge:
        assert "error" in (await edge.place.speaker().call("up__echo")).json


async def test_without_a_bundle_nothing_is_permitted(up: Scripted, tmp_path: Path) -> None:
    async with running_edge(tmp_path, {"up": {"url": up.url}}, bundle=None) as edge:
        speaker = edge.place.speaker()
        answer = await speaker.call("up__echo", {"nonce": "no-bundle"})
        assert decision(answer)["reason"] == "no-bundle"
        assert (await speaker.ask(speaker.modern("tools/list"))).status == 503
        assert reached(up, "no-bundle") == 0
        asked = [one for one in await edge.place.events("calls") if isinstance(one, CallRequested)]
        assert [one.reason for one in asked] == ["no-bundle"]
