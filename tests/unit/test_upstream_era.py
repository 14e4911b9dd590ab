"""Which era a server is taken to speak: by its answer to the probe, and for which clients."""

import asyncio
from typing import Any

import pytest
from tests.parts.scripted import MODERN, Scripted, Seen, http, refusal, result, scripted
from tests.parts.upstreams import Talking, opened, outgoing, words

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.era import LEGACY_KEPT_S, Eras, Found
from tidegate_edge.upstream.port import Answer

pytestmark = pytest.mark.asyncio
Writer = asyncio.StreamWriter


def answering(body: Any, status: int = 200, headers: str = "") -> Any:
    async def behave(server: Scripted, seen: Seen, writer: Writer) -> None:
        made = body(seen) if callable(body) else body
        writer.write(http(made, status, headers=headers))

    return behave


def supports(*versions: str) -> Any:
    return lambda seen: result(seen, {"supportedVersions": list(versions), "capabilities": {}})


@pytest.mark.parametrize(
    ("answer", "status", "is_modern"),
    [
        (supports(MODERN), 200, True),
        (supports(MODERN, "2025-11-25"), 200, True),
        (supports("2025-11-25"), 200, False),
        (supports(), 200, False),
        (lambda seen: result(seen, {"supportedVersions": "all"}), 200, False),
        (lambda seen: refusal(seen, -32020, "header"), 400, True),
        (lambda seen: refusal(seen, -32021, "capability"), 400, True),
        (lambda seen: refusal(seen, -32022, "version"), 400, True),
        (lambda seen: refusal(seen, -32600, "no session"), 400, False),
        ({"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": "x"}}, 400, False),
        (lambda seen: refusal(seen, -32601, "unknown"), 200, False),
        (lambda seen: refusal(seen, -32601, "unknown"), 404, False),
        (lambda seen: refusal(seen, -32602, "params"), 200, False),
        (lambda seen: refusal(seen, -32603, "oops"), 200, False),
        ("not json", 400, False),
        ("", 405, False),
        ("", 202, False),
    ],
)
async def test_the_probe_s_answer_tells_the_era(answer: Any, status: int, is_modern: bool) -> None:
    async with scripted(behaviours={"server/discover": answering(answer, status)}) as server, opened(server.url) as up:
        assert up.known_era(True) is None
        assert await up.era(True, 5) is is_modern
        assert up.known_era(True) is is_modern
        assert server.count("server/discover") == 1


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503])
async def test_a_refusal_that_tells_nothing_is_no_verdict(status: int) -> None:
    async with scripted(behaviours={"server/discover": answering("", status)}) as server, opened(server.url) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.era(True, 5)
        assert not caught.value.sent
        assert str(status) in caught.value.sentence
        server.behaviours.clear()
        assert await up.era(True, 5) is True


async def test_silence_is_no_verdict() -> None:
    async def silent(server: Scripted, seen: Seen, writer: Writer) -> None:
        await asyncio.Event().wait()

    async with scripted(behaviours={"server/discover": silent}) as server, opened(server.url) as up:
        with pytest.raises(UpstreamFault) as caught:
            await up.era(True, 0.2)
        assert (caught.value.code, caught.value.sent) == ("upstream-timeout", False)
        server.behaviours.clear()
        assert await up.era(True, 5) is True


async def test_what_speaks_both_is_spoken_to_as_the_client_speaks() -> None:
    both = {"server/discover": answering(supports(MODERN, "2025-11-25"))}
    async with scripted("sessions", behaviours=both) as server, opened(server.url) as up:
        assert (await up.era(True, 5), await up.era(False, 5)) == (True, False)
        assert server.count("initialize") == 0  # it said so by itself


async def test_a_modern_server_is_asked_once_whether_it_knows_the_handshake_too() -> None:
    both = {"server/discover": answering(supports(MODERN))}
    async with scripted("sessions", behaviours=both) as server, opened(server.url) as up:
        assert await up.era(True, 5) is True
        assert server.count("initialize") == 0
        assert [await up.era(False, 5) for _ in range(3)] == [False] * 3
        assert server.count("initialize") == 1
        assert server.sessions == []  # the session of the trial was ended
    async with scripted() as server, opened(server.url) as up:
        assert [await up.era(False, 5) for _ in range(3)] == [True] * 3
        assert server.count("initialize") == 1


async def test_a_session_that_the_probe_was_given_is_ended() -> None:
    async def minting(server: Scripted, seen: Seen, writer: Writer) -> None:
        server.sessions.append("minted")
        body = {"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": "no session"}}
        writer.write(http(body, 400, headers="mcp-session-id: minted\r\n"))

    async with scripted("sessions", behaviours={"server/discover": minting}) as server, opened(server.url) as up:
        assert await up.era(True, 5) is False
        assert server.sessions == []


@pytest.mark.parametrize(("era", "is_modern"), [("modern", True), ("legacy", False)])
async def test_a_configured_era_is_not_asked_for(era: str, is_modern: bool) -> None:
    async with scripted("sessions") as server, opened(server.url, era=era) as up:
        assert [up.known_era(True), up.known_era(False)] == [is_modern] * 2
        assert await up.era(True, 5) is is_modern
        assert server.seen == []


async def test_callers_that_come_at_once_ask_once() -> None:
    async with scripted() as server, opened(server.url) as up:
        assert await asyncio.gather(*[up.era(True, 5) for _ in range(20)]) == [True] * 20
        assert server.count("server/discover") == 1


async def test_a_server_that_changes_its_era_is_found_out() -> None:
    async with scripted() as server, opened(server.url) as up:
        assert words(await up.request(outgoing(modern=await up.era(True, 5)), Talking())) == "{}"
        server.era = "sessions"  # as after a roll-back
        refused = await up.request(outgoing(modern=True), Talking())
        assert isinstance(refused, Answer)
        assert b"no session" in refused.error
        assert words(await up.request(outgoing(modern=await up.era(True, 5)), Talking())) == "{}"
        server.era, server.sessions = "modern", []
        await up.end(outgoing().caller)
        with pytest.raises(UpstreamFault) as caught:
            await up.request(outgoing(modern=False), Talking())
        assert not caught.value.sent
        assert await up.era(True, 5) is True


async def test_a_legacy_verdict_is_asked_for_again_after_a_day() -> None:
    now_s = 0.0
    eras = Eras("auto", lambda: now_s)
    eras.found(Found(modern=False))
    assert (eras.known(True), eras.known(False)) == (False, False)
    now_s = LEGACY_KEPT_S
    assert (eras.known(True), eras.known(False)) == (None, None)
    eras.found(Found(modern=True))
    now_s += LEGACY_KEPT_S * 9
    assert (eras.known(True), eras.known(False)) == (True, None)
    eras.found_handshake(True)
    assert eras.known(False) is False
