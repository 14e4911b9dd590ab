"""What a record keeps under each capture: never a secret that inspection knows; always sizes, times, outcome.

Read with personal parts opened, as whoever has the master key reads them.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.parts.edge import BLOCKED, SECRET, RunningEdge, running_edge
from tests.parts.scripted import Scripted, Seen, http, result, scripted, text

from tidegate.events import CallCompleted, CallRequested

pytestmark = pytest.mark.asyncio(loop_scope="module")
SERVERS = ("masked", "digest", "none", "full", "careful")
RULES = [
    *({"server": name, "capture": name} for name in ("masked", "digest", "none", "full")),
    {"server": "careful", "capture": "full"},
    {"label": "sensitive", "capture": "digest"},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory, up: Scripted) -> AsyncIterator[RunningEdge]:
    root: Path = tmp_path_factory.mktemp("capture")
    servers: dict[str, Any] = {name: {"url": up.url} for name in SERVERS}
    servers["careful"]["labels"] = ["sensitive"]
    async with running_edge(root, servers, rules=RULES) as running:
        yield running


def hidden_somewhere(choose: random.Random, word: str, depth: int = 0) -> Any:
    """JSON that holds the word: in a value or a key, alone or within a text, at any depth."""
    kind = choose.choice(["alone", "within", "key"] if depth > 3 else ["alone", "within", "key", "list", "object"])
    match kind:
        case "alone":
            return {"k": word}
        case "within":
            return {"k": f'é\n"{word}" {"x" * choose.randrange(40)}'}
        case "key":
            return {word: choose.choice([1, None, "v"])}
        case "list":
            return {"k": [1, "a", hidden_somewhere(choose, word, depth + 1)]}
        case _:
            return {"k": {"a": 0.5, "b": hidden_somewhere(choose, word, depth + 1)}}


async def pair(edge: RunningEdge, server: str, arguments: dict[str, Any]) -> tuple[CallRequested, CallCompleted]:
    """The two events of a call made now."""
    known = {event.id for event in await edge.place.events("calls")}
    await edge.place.speaker().call(f"{server}__echo", arguments)
    fresh = [event for event in await edge.place.events("calls") if event.id not in known]
    (asked,) = [event for event in fresh if isinstance(event, CallRequested)]
    (ended,) = [event for event in fresh if isinstance(event, CallCompleted)]
    return asked, ended


@pytest.mark.parametrize("seed", range(4))
async def test_no_record_holds_a_secret_that_inspection_knows_wherever_it_stood(
    edge: RunningEdge, up: Scripted, seed: int
) -> None:
    choose = random.Random(seed)

    async def tells(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        structured = hidden_somewhere(choose, SECRET)
        kind = choose.choice(["result", "tool-error", "error"])
        body: Any = result(
            seen, text(f"it is {SECRET}") | {"structuredContent": structured, "isError": kind != "result"}
        )
        if kind == "error":
            body = {
                "jsonrpc": "2.0",
                "id": seen.message["id"],
                "error": {"code": -5, "message": SECRET, "data": structured},
            }
        raw = json.dumps(body)
        writer.write(http(raw.replace("AKIA", "\\u0041KIA") if choose.random() < 0.5 else raw))

    up.behaviours["echo"] = tells
    try:
        await edge.place.speaker().call("masked__echo", hidden_somewhere(choose, SECRET))
        for _ in range(6):
            server = choose.choice(["masked", "digest", "none", "careful"])
            word = choose.choice([SECRET, SECRET, BLOCKED])
            name = choose.choice(
                [f"{server}__echo", f"{server}__echo", f"{server}__{SECRET}", f"{server}__secret-tool"]
            )
            await edge.place.speaker().call(name, hidden_somewhere(choose, word))
    finally:
        up.behaviours.clear()
    shown = await edge.place.shown()
    assert b"[masked:key]" in shown, "it was there to be found"
    assert SECRET.encode() not in shown
    assert BLOCKED.encode() not in shown


@pytest.mark.parametrize("server", SERVERS)
async def test_sizes_times_and_outcomes_are_kept_whatever_the_capture(
    edge: RunningEdge, up: Scripted, server: str
) -> None:
    async def fails(server: Scripted, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http(result(seen, text("no such page") | {"isError": True})))

    arguments = {"page": f"for {server}"}
    up.behaviours["echo"] = fails
    try:
        asked, ended = await pair(edge, server, arguments)
    finally:
        up.behaviours.clear()
    capture = "digest" if server == "careful" else server
    assert (asked.capture, ended.capture) == (capture, capture)
    assert ended.outcome == "tool-error", "isError is no success"
    sent = msgspec.json.encode(arguments)
    assert asked.arguments_bytes == ended.arguments_bytes
    assert ended.result_bytes > len("no such page")
    assert 0 < ended.upstream_us <= ended.total_us
    assert 0 < ended.policy_us <= ended.total_us
    kept = capture in ("full", "masked")
    assert (bytes(asked.sealed.arguments) != b"null") is kept
    assert (bytes(ended.sealed.result) != b"null") is kept
    if capture == "none":
        assert (asked.arguments_digest, ended.result_digest) == ("", "")
    else:
        assert len(ended.result_digest) == 64
        assert asked.arguments_digest in {
            hashlib.sha256(one).hexdigest() for one in (sent, json.dumps(arguments).encode())
        }
