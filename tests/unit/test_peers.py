"""Edges that share stdio processes: one owner, everybody's calls, and nobody else's."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.parts.peering import KEY, Node, running_nodes
from tests.parts.stdio_calls import ANNA, BERT, Heard, call, heard, plan, text, until

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.peer_frames import PATH, Frame, PeerCall, PeerSeal, decode_call, encode_call
from tidegate_edge.upstream.port import SILENCE, Answer, Caller, Paused, Wanted


def starts(directory: Path) -> list[int]:
    path = directory / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


async def owner_and_other(nodes: list[Node], caller: Caller = ANNA) -> tuple[Node, Node]:
    """Who runs the caller's process, and who does not."""
    await nodes[0].upstream.request(call("echo", caller), SILENCE)
    first, second = nodes
    return (first, second) if first.local.running() else (second, first)


async def test_calls_through_any_edge_reach_the_one_process(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path), 3) as nodes:
        answers = await asyncio.gather(*[node.upstream.request(call("who"), SILENCE) for node in nodes * 4])
        assert {text(answer)["pid"] for answer in answers} == set(starts(tmp_path))
        assert len(starts(tmp_path)) == 1
        assert {await node.upstream.era(True, 5.0) for node in nodes} == {False}
        assert [len((await node.upstream.definitions(5.0)).tools) for node in nodes] == [10] * 3
    assert not [pid for pid in starts(tmp_path) if Path(f"/proc/{pid}").exists()]


async def test_a_principal_s_process_is_one_over_all_edges_and_keeps_its_capabilities(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path, shared=False)) as nodes:
        callers = [ANNA, BERT, Caller("globex", "anna", "cli")]
        pids = [
            {text(await node.upstream.request(call("who", caller), SILENCE))["pid"] for node in nodes}
            for caller in callers
        ]
        assert [len(one) for one in pids] == [1, 1, 1]
        assert len(set.union(*pids)) == 3
        greeting = text(await nodes[1].upstream.request(call("greeting", BERT), SILENCE))
        assert greeting["capabilities"] == json.loads(BERT.capabilities)


async def test_the_two_processes_of_a_server_of_both_eras_serve_all_edges(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path, "both"), 3) as nodes:
        for modern in (True, False):
            assert {await node.eras.era(modern, 10.0) for node in nodes} == {modern}
            answers = await asyncio.gather(
                *[node.eras.request(call("who", modern=modern), SILENCE) for node in nodes * 2]
            )
            assert len({text(answer)["pid"] for answer in answers}) == 1
        for node in nodes:
            talk = Heard()
            (told,) = text(await node.eras.request(call("ask", words="Who?"), talk))
            assert (told["action"], len(talk.questions)) == ("accept", 1)
        assert len(starts(tmp_path)) == 2
    assert not [pid for pid in starts(tmp_path) if Path(f"/proc/{pid}").exists()]


async def test_an_edge_learns_from_the_owner_that_a_server_takes_no_handshake_and_that_it_was_started_again(
    tmp_path: Path,
) -> None:
    async with running_nodes(plan(tmp_path, "later-both")) as nodes:
        first, second = nodes
        assert await first.eras.era(True, 10.0) is True
        owner, other = (first, second) if first.local.running() else (second, first)
        assert await other.eras.era(False, 10.0) is True
        assert (other.eras.known_era(False), owner.eras.known_era(False)) == (True, None)
        with pytest.raises(UpstreamFault, match="the last words"):
            await other.eras.request(call("crash", modern=True), SILENCE)
        await other.eras.definitions(10.0)
        assert await other.eras.era(False, 10.0) is False
        assert text(await owner.eras.request(call("echo", n=1), SILENCE)) == {"n": 1}


async def test_what_a_server_says_and_asks_meanwhile_crosses_over(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        _, other = await owner_and_other(nodes)
        talk = Heard(answer=Answer(result=b'{"action":"accept","content":{"n":7}}'))
        await other.upstream.request(call("progress", token="t1", times=3), talk)
        assert [params["progress"] for _, params in talk.notes] == [0, 1, 2]
        await other.upstream.request(call("log", words="hello"), talk)
        assert talk.notes[-1][1]["data"] == "hello"
        answer = await other.upstream.request(call("ask", times=3, words="Which?"), talk)
        assert [one["content"]["n"] for one in text(answer)] == [7, 7, 7]
        assert [params["message"] for _, params in talk.questions] == ["Which?"] * 3


async def test_a_paused_call_is_resumed_from_another_edge_by_its_own_principal_alone(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path), 3) as nodes:
        owner, other = await owner_and_other(nodes[:2])
        paused = await other.upstream.request(call("ask"), Heard(pausable=True))
        assert isinstance(paused, Paused)
        assert paused.edge == owner.me.bus
        accept = {key: Answer(result=b'{"action":"accept","content":{}}') for key in paused.asked}
        for node in (other, nodes[2]):
            with pytest.raises(UpstreamFault) as raised:
                await node.peers.resume(paused.edge, "up", paused.ticket, accept, BERT, Heard(), 5.0)
            assert raised.value.code == "upstream-pause-ended"
        done = await nodes[2].peers.resume(paused.edge, "up", paused.ticket, accept, ANNA, Heard(), 5.0)
        assert text(done)[0]["action"] == "accept"
        with pytest.raises(UpstreamFault) as raised:
            await nodes[2].peers.resume("nobody", "up", paused.ticket, accept, ANNA, Heard(), 5.0)
        assert raised.value.code == "upstream-pause-ended"


async def test_leaving_cancels_at_the_server(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        _, other = await owner_and_other(nodes)
        held = asyncio.create_task(other.upstream.request(call("hold", until="never"), SILENCE))
        await until(lambda: '"until"' in heard(tmp_path))
        held.cancel()
        await asyncio.wait([held])
        await until(lambda: "the caller went away" in heard(tmp_path))


async def test_a_server_s_fault_comes_as_it_is(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        _, other = await owner_and_other(nodes)
        with pytest.raises(UpstreamFault) as raised:
            await other.upstream.request(call("hold", until="never", timeout_s=0.3), SILENCE)
        assert raised.value.code == "upstream-timeout"
        with pytest.raises(UpstreamFault, match="the last words") as raised:
            await other.upstream.request(call("crash"), SILENCE)
        assert (raised.value.code, raised.value.sent) == ("upstream-broken", True)


async def test_an_edge_that_stops_hands_over_at_once(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        owner, other = await owner_and_other(nodes)
        talk = Heard()
        listening = asyncio.create_task(other.upstream.listen(Wanted(tools=True), ANNA, False, talk))
        await owner.stop()
        answer = text(await other.upstream.request(call("who"), SILENCE))
        assert len(starts(tmp_path)) == 2
        assert answer["pid"] == starts(tmp_path)[-1]

        async def changes() -> bool:
            await other.upstream.request(call("change"), SILENCE)
            return bool(talk.notes)

        async with asyncio.timeout(10):
            while not await changes():
                await asyncio.sleep(0.02)
        listening.cancel()
        await asyncio.wait([listening])


async def test_an_edge_that_drains_hands_over_what_nobody_waits_for_and_finishes_the_rest(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path, shared=False)) as nodes:
        owner, other = nodes
        for caller in (ANNA, BERT):
            await owner.upstream.request(call("echo", caller), SILENCE)
        held = asyncio.create_task(owner.upstream.request(call("hold", ANNA, until="go", nonce="n1"), SILENCE))
        await until(lambda: '"n1"' in heard(tmp_path))
        handing = asyncio.create_task(owner.upstream.hand_over(owner.draining))
        owner.draining.set()
        bert = text(await other.upstream.request(call("who", BERT), SILENCE))
        assert bert["pid"] not in starts(tmp_path)[:2]
        waiting = asyncio.create_task(other.upstream.request(call("who", ANNA), SILENCE))
        await asyncio.wait([waiting], timeout=0.5)
        (tmp_path / "go").touch()
        assert text(await held)["nonce"] == "n1"
        anna = text(await waiting)  # by the old process while it lasted, or by the next one: never both
        assert anna["pid"] in starts(tmp_path)
        await until(lambda: not owner.local.running())
        handing.cancel()
        await asyncio.wait([handing])


async def test_a_dead_owner_s_calls_fail_once_and_another_edge_takes_over(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        owner, other = await owner_and_other(nodes)
        held = asyncio.create_task(other.upstream.request(call("hold", until="never", nonce="n1"), SILENCE))
        await until(lambda: '"until"' in heard(tmp_path))
        await owner.vanish()
        with pytest.raises(UpstreamFault, match="broke off") as raised:
            await held
        assert (raised.value.code, raised.value.sent) == ("upstream-broken", True)
        await other.upstream.request(call("who", nonce="n2"), SILENCE)
        assert other.local.running()
        assert [heard(tmp_path).count(nonce) for nonce in ('"n1"', '"n2"')] == [1, 1]
        await until(
            lambda: not Path(f"/proc/{starts(tmp_path)[0]}").exists() or not owner.owners.holds("stdio|up|acme||")
        )


async def test_an_edge_that_lost_its_lease_ends_its_process(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        owner, other = await owner_and_other(nodes)
        (pid,) = starts(tmp_path)
        held = asyncio.create_task(owner.upstream.request(call("hold", until="never"), SILENCE))
        await until(lambda: '"until"' in heard(tmp_path))
        leases = owner.owners._leases
        name = owner.upstream.here.lease_of(ANNA)
        await leases.give_up(name, owner.me.value)
        assert await leases.take(name, other.me.value, 30.0) == other.me.value
        with pytest.raises(UpstreamFault, match="does not own"):
            await held
        await until(lambda: not Path(f"/proc/{pid}").exists())
        answer = text(await owner.upstream.request(call("who"), SILENCE))
        assert answer["pid"] == starts(tmp_path)[-1] != pid
        assert other.local.running()


async def test_a_request_for_an_earlier_life_of_an_edge_is_refused(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        owner, other = await owner_and_other(nodes)
        wrong = owner.me._replace(bus="f" * 32)
        with pytest.raises(UpstreamFault) as raised:
            await other.peers.ask(wrong, "spoken", PeerCall(to=wrong.bus, server="up", timeout_s=5.0))
        assert (raised.value.code, raised.value.sent) == ("peer-moved", False)


def headers_of(proof: Any, **changed: str) -> dict[str, str]:
    return {
        "X-Tidegate-Time": str(proof.at_s),
        "X-Tidegate-Nonce": proof.nonce.hex(),
        "X-Tidegate-Proof": proof.proof.hex(),
        **changed,
    }


async def test_forged_altered_stale_and_replayed_requests_look_like_an_unknown_path(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes, aiohttp.ClientSession() as client:
        node = nodes[0]
        path = PATH + "notify"
        said = encode_call(PeerCall(to=node.me.bus, server="up", caller=ANNA, method="notifications/x"))
        now_s = int(time.time())
        proof, body = node.seal.seal_call(path, said, now_s)

        async def post(body: bytes, headers: dict[str, str], to: str = path) -> tuple[int, bytes]:
            async with client.post(node.me.address + to, data=body, headers=headers) as response:
                return response.status, await response.read()

        unknown = await post(b"x", {}, "/internal/v1/nothing")
        assert unknown[0] == 404
        foreign = PeerSeal(b"f" * 32).seal_call(path, said, now_s)
        old, early = (node.seal.seal_call(path, said, now_s + by_s) for by_s in (-40, 40))
        refused = [
            await post(body, {}),
            await post(body, headers_of(proof, **{"X-Tidegate-Proof": "0" * 64})),
            await post(body, headers_of(proof, **{"X-Tidegate-Nonce": "0" * 32})),
            await post(body, headers_of(proof, **{"X-Tidegate-Time": str(now_s + 1)})),
            await post(body, headers_of(proof, **{"X-Tidegate-Time": "9" * 400})),
            await post(body[:-1] + bytes([body[-1] ^ 1]), headers_of(proof)),
            await post(body, headers_of(proof), PATH + "end"),
            await post(foreign[1], headers_of(foreign[0])),
            await post(old[1], headers_of(old[0])),
            await post(early[1], headers_of(early[0])),
            await post(b"x" * (2 << 20), headers_of(proof)),
        ]
        assert refused == [unknown] * len(refused)
        assert (await post(body, headers_of(proof)))[0] == 200
        assert await post(body, headers_of(proof)) == unknown


async def test_an_edge_with_another_key_is_told_what_to_compare(tmp_path: Path) -> None:
    async with running_nodes(plan(tmp_path)) as nodes:
        owner, _ = await owner_and_other(nodes)
        stranger = Node(plan(tmp_path), owner.owners._leases, time.time, b"x" * 32)  # type: ignore[arg-type]
        await stranger.peers.start()
        with pytest.raises(UpstreamFault, match="secrets_file") as raised:
            await stranger.peers.ask(owner.me, "spoken", PeerCall(to=owner.me.bus, server="up", timeout_s=5.0))
        assert (raised.value.code, raised.value.sent) == ("peer-unreachable", False)
        await stranger.peers.stop()


class NextCall(PeerCall, frozen=True, kw_only=True):
    """As a later version may have it."""

    later: str = "unknown"


def test_calls_and_frames_of_a_later_version_are_understood() -> None:
    raw = msgspec.msgpack.encode(NextCall(v=2, to="here", server="up", later="x"))
    assert decode_call(raw).server == "up"
    frames = PeerSeal(KEY).frames_of(b"n" * 16)
    later = {"kind": "weather", "v": 2, "rain": True}
    cipher = PeerSeal(KEY).frames_of(b"n" * 16)
    sealed = cipher._cipher.encrypt(cipher._next(), msgspec.msgpack.encode(later), None)
    opened = frames.open(sealed)
    assert opened is not None
    assert opened.kind == "weather"


@given(
    st.binary(min_size=1, max_size=200),
    st.integers(0, 400),
    st.integers(1, 255),
    st.text("abcdef/", min_size=1, max_size=20),
)
def test_a_sealed_call_opens_whole_or_not_at_all(said: bytes, at: int, flip: int, path: str) -> None:
    seal = PeerSeal(KEY)
    proof, body = seal.seal_call(path, said, 1_000)
    assert seal.proves(path, proof, len(body), 1_020.0)
    assert seal.open_call(path, proof, body) == said
    index = at % len(body)
    altered = body[:index] + bytes([body[index] ^ flip]) + body[index + 1 :]
    assert seal.open_call(path, proof, altered) is None
    assert seal.open_call(path + "x", proof, body) is None
    assert seal.open_call(path, proof._replace(at_s=1_001), body) is None
    for wrong in (proof._replace(at_s=1_001), proof._replace(nonce=b"0" * 16)):
        assert not seal.proves(path, wrong, len(body), 1_020.0)
    assert not seal.proves(path, proof, len(body) + 1, 1_020.0)
    assert not seal.proves(path, proof, len(body), 1_031.0)


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=6), st.data())
def test_frames_open_in_their_order_alone(said: list[bytes], data: st.DataObject) -> None:
    seal = PeerSeal(KEY).frames_of(b"n" * 16)
    sealed = [seal.seal(Frame(kind="notified", params=one))[4:] for one in said]
    reading = PeerSeal(KEY).frames_of(b"n" * 16)
    assert [frame.params for one in sealed if (frame := reading.open(one))] == said
    first = data.draw(st.integers(1, len(said) - 1))
    assert PeerSeal(KEY).frames_of(b"n" * 16).open(sealed[first]) is None
    assert PeerSeal(KEY).frames_of(b"m" * 16).open(sealed[0]) is None
