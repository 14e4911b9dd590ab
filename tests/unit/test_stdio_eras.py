"""A stdio server that may speak both eras, as the two processes that it takes; one where it speaks a single one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.parts.stdio_calls import ABLE, ANNA, BERT, Heard, call, plan, text, until

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.port import SILENCE, Answer, Wanted
from tidegate_edge.upstream.stdio import StdioUpstream
from tidegate_edge.upstream.stdio_eras import StdioEras, second_of
from tidegate_edge.upstream.stdio_kept import Plan, Room


def pids(directory: Path) -> list[int]:
    """Of every start."""
    path = directory / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@contextlib.asynccontextmanager
async def both_eras(plan: Plan, room: Room | None = None, **second: Any) -> AsyncIterator[StdioEras]:
    """`second` changes how the second process is run."""
    room = Room(64, 8) if room is None else room
    parts = (StdioUpstream(one, "acme", room) for one in (plan, second_of(plan)._replace(**second)))
    upstream = StdioEras(*parts)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.close()
        assert len(room) == 0


def seconds(upstream: StdioEras) -> int:
    assert isinstance(upstream.second, StdioUpstream)
    return len(upstream.second.running())


async def test_a_server_of_both_eras_is_asked_in_that_of_the_client(tmp_path: Path) -> None:
    room = Room(64, 8)
    async with both_eras(plan(tmp_path, "both"), room) as upstream:
        assert await upstream.era(True, 10.0) is True
        assert upstream.known_era(False) is None
        assert len(pids(tmp_path)) == len(room) == 1  # modern clients alone need no second one
        assert [await upstream.era(False, 10.0) for _ in range(2)] == [False, False]
        assert (upstream.known_era(True), upstream.known_era(False)) == (True, False)
        told = [text(await upstream.request(call("who", modern=modern), SILENCE))["pid"] for modern in (True, False)]
        assert told == pids(tmp_path)
        assert len(room) == 2
        talk = Heard(answer=Answer(result=b'{"action":"accept","content":{"n":1}}'))
        (answer,) = text(await upstream.request(call("ask", words="Who?"), talk))
        assert answer["content"] == {"n": 1}
        await upstream.request(call("log", words="hello"), talk)
        assert talk.notes == [("notifications/message", {"level": "info", "data": "hello"})]
        assert len((await upstream.definitions(10.0)).tools) == 10
        assert upstream.known_era(False) is False
    assert not [pid for pid in pids(tmp_path) if Path(f"/proc/{pid}").exists()]


async def test_a_server_of_the_handshake_era_stays_one_process(tmp_path: Path) -> None:
    async with both_eras(plan(tmp_path)) as upstream:
        assert [await upstream.era(modern, 10.0) for modern in (False, True)] == [False, False]
        assert text(await upstream.request(call("echo", n=1), SILENCE)) == {"n": 1}
        assert len(pids(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["modern", "modern-mute", "modern-once"])
async def test_legacy_clients_of_a_modern_server_are_translated_and_it_is_tried_once(tmp_path: Path, kind: str) -> None:
    room = Room(64, 8)
    async with both_eras(plan(tmp_path, kind), room, start_s=1.0) as upstream:
        assert await asyncio.gather(*[upstream.era(False, 10.0) for _ in range(3)]) == [True] * 3
        assert upstream.known_era(False) is True
        assert text(await upstream.request(call("who", modern=True), SILENCE))["calls"] == 1
        assert (len(pids(tmp_path)), len(room)) == (2, 1)
        await upstream.definitions(10.0)
        assert upstream.known_era(False) is True


async def test_a_refusal_that_nobody_waited_for_is_known_to_the_next_client(tmp_path: Path) -> None:
    async with both_eras(plan(tmp_path, "modern-mute"), start_s=0.5) as upstream:
        assert await upstream.era(True, 10.0) is True
        assert await upstream.era(False, 0.05) is True
        assert upstream.known_era(False) is None
        await until(lambda: seconds(upstream) == 0)
        assert await upstream.era(False, 10.0) is True
        assert upstream.known_era(False) is True
        assert len(pids(tmp_path)) == 2


async def test_what_was_found_of_the_second_process_holds_until_the_first_is_started_again(tmp_path: Path) -> None:
    async with both_eras(plan(tmp_path, "later-both")) as upstream:
        assert await upstream.era(False, 10.0) is True
        with pytest.raises(UpstreamFault, match="the last words"):
            await upstream.request(call("crash", modern=True), SILENCE)
        await upstream.definitions(10.0)
        assert await upstream.era(False, 10.0) is False
        assert text(await upstream.request(call("echo", n=1), SILENCE)) == {"n": 1}


async def test_a_second_process_ends_when_it_is_idle_and_makes_room_for_others(tmp_path: Path) -> None:
    async with both_eras(plan(tmp_path, "both"), idle_s=0.4) as upstream:
        assert second_of(plan(tmp_path)).idle_s == 900.0
        assert await upstream.era(False, 10.0) is False
        await until(lambda: seconds(upstream) == 0)
        assert text(await upstream.request(call("echo", n=1), SILENCE)) == {"n": 1}
        assert len(pids(tmp_path)) == 3
    full = tmp_path / "full"
    full.mkdir()
    async with both_eras(plan(full, "both"), Room(1, 8)) as upstream:
        assert await upstream.era(False, 10.0) is True  # for now
        assert (upstream.known_era(False), len(pids(full))) == (None, 1)


async def test_each_principal_has_a_process_of_its_own_for_each_era_it_calls_in(tmp_path: Path) -> None:
    async with both_eras(plan(tmp_path, "both", shared=False)) as upstream:
        assert await upstream.era(False, 10.0) is False
        asked = [call("who", caller, modern=modern) for caller in (ANNA, BERT) for modern in (True, False)]
        told = {text(await upstream.request(one, SILENCE))["pid"] for one in asked}
        assert len(told) == 4
        assert text(await upstream.request(call("greeting", ANNA), SILENCE))["capabilities"] == json.loads(ABLE)


async def test_a_list_change_that_either_process_tells_of_is_heard(tmp_path: Path) -> None:
    async with both_eras(plan(tmp_path, "both")) as upstream:
        assert await upstream.era(False, 10.0) is False
        talk = Heard()
        listening = asyncio.create_task(upstream.listen(Wanted(tools=True), ANNA, True, talk))
        await until(lambda: talk.began == 1)
        for count, modern in ((1, False), (2, True)):
            await upstream.request(call("change", modern=modern), SILENCE)
            await until(lambda count=count: len(talk.notes) == count)  # type: ignore[misc]
        assert {method for method, _ in talk.notes} == {"notifications/tools/list_changed"}
        listening.cancel()
        await asyncio.wait([listening])
