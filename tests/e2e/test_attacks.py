"""Attempts to get round the promises: what must not pass does not, and what must not be kept is kept nowhere."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.edge import (
    BLOCKED,
    LEGACY,
    MODERN,
    ROOT,
    SECRET,
    RunningEdge,
    Speaker,
    legacy_body,
    modern_body,
    running_edge,
)
from tests.parts.scripted import Scripted, Seen, http, scripted

from tidegate_edge.upstream.stdio import StdioUpstream
from tidegate_edge.upstream.stdio_eras import StdioEras

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def old() -> AsyncIterator[Scripted]:
    async with scripted("legacy") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(up: Scripted, old: Scripted, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEdge]:
    async with running_edge(
        tmp_path_factory.mktemp("attacked"), {"up": {"url": up.url}, "old": {"url": old.url}}
    ) as one:
        yield one


@pytest.fixture
def speaker(edge: RunningEdge) -> Speaker:
    return edge.place.speaker()


def modern_call(speaker: Speaker, name: str, beside: dict[str, Any], meta: dict[str, Any]) -> bytes:
    """A tools/call with more in its params than a name and arguments."""
    message = json.loads(modern_body("tools/call", {"name": name, "arguments": {}, **beside}))
    message["params"]["_meta"].update(meta)
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": name}
    return speaker.request(json.dumps(message).encode(), headers=headers)


def kept_in(root: Path, word: str) -> list[str]:
    """Files under the data directory that hold the word."""
    return [str(file) for file in root.rglob("*") if file.is_file() and word.encode() in file.read_bytes()]


@pytest.mark.parametrize("place", ["_meta", "inputResponses"])
async def test_a_secret_beside_the_arguments_is_masked_and_a_blocked_word_there_stops_the_call(
    speaker: Speaker, up: Scripted, place: str
) -> None:
    def call(word: str) -> bytes:
        value = {"note": word}
        return modern_call(
            speaker, "up__echo", {} if place == "_meta" else {place: value}, value if place == "_meta" else {}
        )

    before = len(up.seen)
    assert (await speaker.ask(call(SECRET))).status == 200
    assert up.calls("echo")[-1].params[place]["note"] == "[masked:key]"
    answer = await speaker.ask(call(BLOCKED))
    assert answer.result["_meta"]["tidegate/decision"]["reason"] == "arguments-blocked"
    assert len(up.seen) == before + 1
    assert not any(word.encode() in seen.body for seen in up.seen for word in (SECRET, BLOCKED))


async def test_params_that_the_protocol_does_not_have_and_a_task_that_is_not_offered_stay_here(
    speaker: Speaker, up: Scripted, old: Scripted
) -> None:
    """Neither rules nor whoever approves a call see them."""
    for name, server in (("up__note", up), ("old__note", old)):
        await speaker.ask(modern_call(speaker, name, {"extra": {"word": "kept"}, "task": {"ttl": 1}}, {}))
        params = server.calls("note")[-1].params
        assert set(params) <= {"name", "arguments", "_meta"}


async def test_a_request_state_that_the_gateway_did_not_make_goes_nowhere(speaker: Speaker, up: Scripted) -> None:
    before = len(up.seen)
    answer = await speaker.ask(modern_call(speaker, "up__note", {"requestState": "forged"}, {}))
    assert (answer.status, answer.error["code"]) == (400, -32602)
    assert len(up.seen) == before


async def test_a_legacy_caller_cannot_hand_a_request_state_to_a_modern_server(speaker: Speaker, up: Scripted) -> None:
    await speaker.initialize()
    params = {"name": "up__note", "arguments": {}, "requestState": "forged", "inputResponses": {"a": 1}}
    headers = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": speaker.session}
    assert (await speaker.ask(speaker.request(legacy_body("tools/call", params), headers=headers))).status == 200
    assert set(up.calls("note")[-1].params) == {"name", "arguments", "_meta"}


async def test_a_refused_call_keeps_no_secret_of_its_caller(edge: RunningEdge, speaker: Speaker) -> None:
    secret = "AKIADENIEDDENIEDDENI"
    arguments = {"path": "/etc/passwd", "word": secret, secret: 1}
    for name in ("up__echo", "up__secret-tool", "nowhere__tool"):
        await speaker.call(name, arguments)
    await speaker.call("up__echo", secret)
    await speaker.call(f"up__{secret}", {})
    assert (await speaker.ask(speaker.modern(secret))).status == 404
    requested, _ = await edge.place.calls("[masked:key]")
    assert {(one.decision, one.findings[0].rule) for one in requested} == {("deny", "key")}
    assert not kept_in(edge.settings.data_dir, secret)


async def test_without_a_bundle_the_arguments_of_a_refused_call_are_not_kept(up: Scripted, tmp_path: Path) -> None:
    async with running_edge(tmp_path, {"up": {"url": up.url}}, bundle=None) as edge:
        answer = await edge.place.speaker().call("up__echo", {"word": SECRET})
        assert answer.result["_meta"]["tidegate/decision"]["reason"] == "no-bundle"
    assert not kept_in(edge.settings.data_dir, SECRET)


async def test_a_servers_complaint_is_inspected_before_it_is_told_or_kept(tmp_path: Path) -> None:
    async def refuse(server: Scripted, seen: Seen, writer: Any) -> None:
        refused = {"jsonrpc": "2.0", "id": seen.message["id"], "error": {"code": -1, "message": f"bad key {SECRET}"}}
        writer.write(http(refused))

    async with scripted("legacy") as server, running_edge(tmp_path, {"up": {"url": server.url}}) as edge:
        server.behaviours["initialize"] = refuse  # of the caller's own session
        answer = await edge.place.speaker().call("up__echo", {})
        assert "bad key [masked:key]" in answer.text
    assert not kept_in(edge.settings.data_dir, SECRET)


async def test_a_process_that_does_not_read_is_not_written_to_for_ever(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.parts.stdio_servers", "raw", str(tmp_path)]
    server = {"command": command, "cwd": str(ROOT), "timeout_s": 1.0}
    async with running_edge(tmp_path, {"up": server}) as edge:
        upstream = edge.edge.upstreams["up"]
        assert isinstance(upstream, StdioEras)
        assert isinstance(upstream.first, StdioUpstream)
        pid = next(iter(upstream.first.running().values())).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            speaker = edge.place.speaker()
            arguments = {"text": "x" * 3_500_000}
            answers = await asyncio.gather(*[speaker.call("up__echo", arguments) for _ in range(8)])
        finally:
            os.kill(pid, signal.SIGCONT)
        told = [answer.text for answer in answers]
        assert sum("does not read its input. It was not carried out." in one for one in told) >= 2
        assert sum("no answer within 1 s. It may have been carried out." in one for one in told) >= 4


@pytest.mark.parametrize(
    ("header", "status"), [("Content-Encoding: gzip", 415), ("Transfer-Encoding: gzip, chunked", 400)]
)
async def test_an_encoded_body_is_refused_and_not_read_as_it_is(speaker: Speaker, header: str, status: int) -> None:
    body = modern_body("tools/list")
    chunked = header.startswith("Transfer")
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list", "Content-Length": "" if chunked else "9999"}
    head = speaker.request(b"", headers=headers).replace(b"\r\n\r\n", f"\r\n{header}\r\n\r\n".encode())
    answer = await speaker.ask(head + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body))
    assert (answer.status, answer.headers["connection"]) == (status, "close")


DEEP = b"[" * 50_000 + b"]" * 50_000
ANSWERS = {
    "invalid UTF-8": b'{"jsonrpc":"\xff","id":%d,"result":{"content":[]}}',
    "deep envelope": b'{"jsonrpc":"2.0","more":' + DEEP + b',"id":%d,"result":{"content":[]}}',
    "deep result": b'{"jsonrpc":"2.0","id":%d,"result":{"content":' + DEEP + b"}}",
    "large code": b'{"jsonrpc":"2.0","id":%d,"error":{"code":' + b"9" * 40 + b',"message":"m"}}',
}


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("shape", ANSWERS)
async def test_whatever_a_server_answers_the_call_ends_in_the_log(
    edge: RunningEdge, speaker: Speaker, up: Scripted, shape: str, kind: str
) -> None:
    async def answer(server: Scripted, seen: Seen, writer: Any) -> None:
        body = ANSWERS[shape] % seen.message["id"]
        writer.write(http(body if "json" in kind else b"data: " + body + b"\n\n", kind=kind))

    nonce = f"ends-{shape}-{kind}"
    up.behaviours["echo"] = answer
    try:
        assert (await speaker.call("up__echo", {"nonce": nonce})).status == 200
    finally:
        del up.behaviours["echo"]
    requested, completed = await edge.place.calls(nonce)
    assert (len(requested), len(completed)) == (1, 1)
    assert abs(completed[0].error_code) < 2**31


@pytest.mark.parametrize("listed", [b'"more":' + DEEP, b'"tools":[],"nextCursor":"\xff"', b'"tools":[' + DEEP + b"]"])
async def test_a_server_whose_list_cannot_be_read_leaves_the_others_working(tmp_path: Path, listed: bytes) -> None:
    async def answer(server: Scripted, seen: Seen, writer: Any) -> None:
        writer.write(http(b'{"jsonrpc":"2.0","id":%d,"result":{%b}}' % (seen.message["id"], listed)))

    async with scripted() as good, scripted() as bad:
        bad.behaviours["tools/list"] = answer
        async with running_edge(tmp_path, {"up": {"url": good.url}, "bad": {"url": bad.url}}) as edge:
            assert bad.count("tools/list")
            assert (await edge.place.speaker().call("up__echo", {})).result["content"]


async def test_a_process_that_writes_rubbish_goes_on_serving(tmp_path: Path) -> None:
    program = tmp_path / "rubbish.py"
    program.write_text(RUBBISH)
    async with running_edge(tmp_path, {"up": {"command": [sys.executable, str(program)]}}) as edge:
        for _ in range(3):
            assert (await edge.place.speaker().call("up__echo", {})).result["content"] == []


RUBBISH = """
import json, sys

TOOLS = [{"name": "echo", "inputSchema": {"type": "object"}}]
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    sys.stdout.buffer.write(b'{"jsonrpc":"\\xff","id":1}\\n{"more":' + b"[" * 50_000 + b"]" * 50_000 + b"}\\n")
    sys.stdout.flush()
    result = {
        "initialize": {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "x", "version": ""}},
        "tools/list": {"tools": TOOLS},
    }.get(message["method"], {"content": []})
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
