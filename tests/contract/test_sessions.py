"""What a session store promises, on every adapter; and what the Redis one promises when its server goes away."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
import redis.asyncio
from tests.parts.session_stores import PER_SUBJECT_MAX, Edges, Time, until, upstream
from tests.parts.valkey import Valkey

from tidegate.errors import CallerFault, ConfigFault
from tidegate.ids import now_us, uuid7
from tidegate.limits import Limits
from tidegate.sessions.hearing import SILENCE_S
from tidegate.sessions.memory import MemorySessions
from tidegate.sessions.opening import open_sessions
from tidegate.sessions.port import (
    CLAIMABLE_S,
    SessionsUnavailable,
    UpstreamKey,
)
from tidegate.sessions.redis import RedisSessions
from tidegate.settings import Settings


async def test_a_session_opened_on_one_edge_is_read_whole_on_another(edges: Edges) -> None:
    record = edges.record()
    assert await edges.a.open(record, 60)
    assert await edges.b.get(edges.tenant, "s-1") == record


async def test_once_read_a_session_is_known_to_be_live_without_asking(edges: Edges) -> None:
    await edges.a.open(edges.record(), 60)
    await edges.b.get(edges.tenant, "s-1")
    assert edges.a.is_live(edges.tenant, "s-1") is True
    assert edges.b.is_live(edges.tenant, "s-1") is True
    assert edges.b.known(edges.tenant, "s-1") == await edges.b.get(edges.tenant, "s-1")


async def test_what_was_never_opened_is_not_known_and_not_there(edges: Edges) -> None:
    assert edges.a.is_live(edges.tenant, "s-9") is None
    assert await edges.a.get(edges.tenant, "s-9") is None
    assert not await edges.a.touch(edges.tenant, "s-9", 60)
    assert await edges.a.end(edges.tenant, "s-9", 2)


async def test_a_session_ended_on_one_edge_is_live_on_none_when_end_returns(edges: Edges) -> None:
    for number in range(20):
        session_id = f"s-{number}"
        await edges.a.open(edges.record(session_id), 60)
        await edges.b.get(edges.tenant, session_id)
        assert await edges.a.end(edges.tenant, session_id, 2)
        assert edges.b.is_live(edges.tenant, session_id) is None
        assert edges.a.is_live(edges.tenant, session_id) is None
        assert await edges.b.get(edges.tenant, session_id) is None


async def test_readers_racing_with_an_end_never_keep_the_session(edges: Edges) -> None:
    for number in range(10):
        session_id = f"s-{number}"
        await edges.a.open(edges.record(session_id), 60)
        reads = [asyncio.create_task(edges.b.get(edges.tenant, session_id)) for _ in range(20)]
        assert await edges.a.end(edges.tenant, session_id, 2)
        await asyncio.gather(*reads)
        assert edges.b.is_live(edges.tenant, session_id) is None


async def test_a_session_that_is_not_used_expires_on_every_edge(edges: Edges) -> None:
    await edges.a.open(edges.record(), 0.2)
    await edges.b.get(edges.tenant, "s-1")
    await edges.until_forgotten()
    assert edges.a.is_live(edges.tenant, "s-1") is None
    assert edges.b.is_live(edges.tenant, "s-1") is None
    assert await edges.b.get(edges.tenant, "s-1") is None


async def test_a_touched_session_lives_on(edges: Edges) -> None:
    await edges.a.open(edges.record("s-1"), 0.3)
    await edges.a.open(edges.record("s-2"), 0.3)
    assert await edges.b.touch(edges.tenant, "s-1", 60)

    async def other_is_gone() -> bool:
        return await edges.a.get(edges.tenant, "s-2") is None

    if edges.clock is not None:
        edges.clock.now += 30
    await until(other_is_gone)
    assert await edges.a.get(edges.tenant, "s-1") is not None
    assert edges.b.is_live(edges.tenant, "s-1") is True


async def test_a_subject_holds_no_more_sessions_than_it_may(edges: Edges) -> None:
    for number in range(PER_SUBJECT_MAX):
        assert await edges.a.open(edges.record(f"s-{number}"), 60)
    assert not await edges.b.open(edges.record("s-9"), 60)
    assert await edges.b.get(edges.tenant, "s-9") is None
    assert await edges.b.open(edges.record("s-0"), 60), "opening the same one again takes no further place"
    assert await edges.b.open(edges.record("s-9", subject_id="u-2"), 60), "another subject is not concerned"
    await edges.b.end(edges.tenant, "s-0", 2)
    assert await edges.a.open(edges.record("s-10"), 60), "an ended session gives its place back"


async def test_expired_sessions_give_their_places_back(edges: Edges) -> None:
    for number in range(PER_SUBJECT_MAX):
        await edges.a.open(edges.record(f"s-{number}"), 0.2)
    await edges.until_forgotten()
    assert await edges.a.open(edges.record("s-9"), 60)


async def test_an_oversized_record_is_the_callers_fault(edges: Edges) -> None:
    record = msgspec.structs.replace(edges.record(), client_info=msgspec.Raw(b'"' + b"x" * 20_000 + b'"'))
    with pytest.raises(CallerFault, match="larger than"):
        await edges.a.open(record, 60)
    assert await edges.a.get(edges.tenant, "s-1") is None


@pytest.mark.parametrize("other", ["{tenant}|1|session", "{tenant}|1", "{tenant}%7C1", "", "*"])
async def test_tenants_with_equal_ids_never_meet(edges: Edges, other: str) -> None:
    other = other.format(tenant=edges.tenant)
    await edges.a.open(edges.record("s-1"), 60)
    assert await edges.a.get(other, "s-1") is None
    assert edges.a.is_live(other, "s-1") is None
    await edges.a.end(other, "s-1", 2)
    assert await edges.a.get(edges.tenant, "s-1") is not None
    key = edges.upstream_key()
    await edges.a.put_upstream(key, upstream("up-1"), 60)
    assert await edges.a.get_upstream(key._replace(tenant=other)) is None
    ours = await edges.a.window(edges.tenant, "u-1", "a", "", 60, now_us())
    assert ours != await edges.a.window(other + "x", "u-1", "a", "", 60, now_us())


async def test_the_first_upstream_session_stands_for_every_edge(edges: Edges) -> None:
    key = edges.upstream_key()
    assert await edges.a.get_upstream(key) is None
    stands = await asyncio.gather(
        *(edge.put_upstream(key, upstream(f"up-{n}"), 60) for n, edge in enumerate([edges.a, edges.b] * 4))
    )
    assert len({session.session_id for session in stands}) == 1
    assert await edges.b.get_upstream(key) == stands[0]
    assert edges.a.known_upstream(key) == edges.b.known_upstream(key) == stands[0]


async def test_upstream_sessions_are_never_shared_between_principals(edges: Edges) -> None:
    await edges.a.put_upstream(edges.upstream_key(), upstream("up-1"), 60)
    for key in [edges.upstream_key(subject_id="u-2"), edges.upstream_key(agent="x"), edges.upstream_key(server="web")]:
        assert await edges.a.get_upstream(key) is None


async def test_dropping_an_upstream_session_spares_its_successor(edges: Edges) -> None:
    key = edges.upstream_key()
    await edges.a.put_upstream(key, upstream("old one"), 60)
    await edges.b.get_upstream(key)
    await edges.a.drop_upstream(key, "old one")
    await until(lambda: edges.b.known_upstream(key) is None)
    await edges.b.put_upstream(key, upstream("new"), 60)
    await edges.a.drop_upstream(key, "old one")
    found = await edges.a.get_upstream(key)
    assert found is not None
    assert found.session_id == "new"


async def test_an_upstream_session_without_an_id_can_be_shared_and_dropped(edges: Edges) -> None:
    key = edges.upstream_key()
    assert (await edges.a.put_upstream(key, upstream(""), 60)).session_id == ""
    await edges.b.drop_upstream(key, "")
    assert await edges.b.get_upstream(key) is None


async def test_many_sessions_ended_at_once_are_all_acknowledged(edges: Edges) -> None:
    ids = [f"s-{number}" for number in range(100)]
    for session_id in ids:
        await edges.a.open(edges.record(session_id, subject_id=session_id), 60)
        await edges.b.get(edges.tenant, session_id)
    ends = [edge.end(edges.tenant, one, 5) for one, edge in zip(ids, [edges.a, edges.b] * 50, strict=True)]
    assert all(await asyncio.gather(*ends))
    assert not any(edge.is_live(edges.tenant, one) for one in ids for edge in (edges.a, edges.b))


@pytest.mark.redis
async def test_what_is_in_use_is_renewed_before_it_ends(valkey_url: str) -> None:
    store, client = RedisSessions(valkey_url, per_subject_max=1), redis.asyncio.Redis.from_url(valkey_url)
    await store.start()
    await until(lambda: not store.awaiting)
    tenant, key = f"acme-{uuid7()}", UpstreamKey(f"acme-{uuid7()}", "git", "u-1", "a")
    first = await store.window(tenant, "u-1", "a", "", 2, now_us())
    await store.put_upstream(key, upstream("up-1"), 2)

    async def left_s(of: str, beyond_s: float = 0) -> float:
        return float(await client.pttl((await client.keys(f"{of}*"))[0])) / 1000 - beyond_s

    await until(lambda: store.known_window(tenant, "u-1", "a", "") is None and store.known_upstream(key) is None)
    assert await left_s(tenant) <= 1.75
    assert await store.window(tenant, "u-1", "a", "", 2, now_us()) == first
    assert await left_s(tenant) > 1.75
    assert await left_s(key.tenant, CLAIMABLE_S) <= 1.75
    assert await store.get_upstream(key) == store.known_upstream(key)
    assert await left_s(key.tenant, CLAIMABLE_S) > 1.75
    await store.stop()
    await client.aclose()


async def test_the_settings_choose_the_store() -> None:
    assert isinstance(open_sessions(Settings()), MemorySessions)
    store = open_sessions(Settings(sessions="redis://127.0.0.1:1/0", limits=Limits()))
    assert isinstance(store, RedisSessions)
    assert store.awaiting == {"sessions"}
    await store.stop()
    with pytest.raises(ConfigFault, match=r"\$\.sessions"):
        open_sessions(Settings(sessions="redis://127.0.0.1:1/0?socket_timeout=soon"))


async def test_a_full_memory_store_refuses_and_forgets_nothing() -> None:
    clock = Time()
    store = MemorySessions(per_subject_max=PER_SUBJECT_MAX, clock=clock, entries_max=2)
    edges = Edges(store, store, "acme", clock.pass_hours)
    for number in range(2):
        await store.open(edges.record(f"s-{number}", subject_id=f"u-{number}"), 60)
    with pytest.raises(SessionsUnavailable, match="redis://"):
        await store.open(edges.record("s-9", subject_id="u-9"), 60)
    assert store.is_live("acme", "s-0")
    clock.now += 61
    assert await store.open(edges.record("s-9", subject_id="u-9"), 60)


class HoldingRelay:
    """A relay to Redis that keeps back everything answered on a connection once a given request has gone through it."""

    def __init__(self, upstream_port: int) -> None:
        self.port = 0
        self.holds = False
        self._upstream_port = upstream_port
        self._marker = b""
        self._released = asyncio.Event()

    def hold(self, marker: bytes) -> None:
        self._marker = marker

    def release(self) -> None:
        self._released.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        held = asyncio.Event()

        async def forward() -> None:
            while data := await reader.read(65536):
                if self._marker and self._marker in data:
                    held.set()
                up_writer.write(data)

        async def back() -> None:
            while data := await up_reader.read(65536):
                if held.is_set():
                    self.holds = True
                    await self._released.wait()
                writer.write(data)

        ends = [asyncio.create_task(forward()), asyncio.create_task(back())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        up_writer.close()
        writer.close()


@contextlib.asynccontextmanager
async def holding_relay(upstream_port: int) -> AsyncIterator[HoldingRelay]:
    relay = HoldingRelay(upstream_port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        relay.release()
        server.close()
        await server.wait_closed()


@pytest.mark.redis
class TestWhenRedisGoesAway:
    async def test_a_killed_server_is_noticed_asked_in_vain_and_found_again(self, valkey: Valkey, pair: Edges) -> None:
        await pair.a.open(pair.record(), 60)
        await pair.a.put_upstream(pair.upstream_key(), upstream("up-1"), 60)
        await pair.a.window("acme", "u-1", "a", "", 60, now_us())
        valkey.kill()
        await until(lambda: pair.a.is_live("acme", "s-1") is None)
        assert pair.a.awaiting == {"sessions"}
        assert pair.a.known_upstream(pair.upstream_key()) is None
        assert pair.a.known_window("acme", "u-1", "a", "") is None
        began = time.monotonic()
        with pytest.raises(SessionsUnavailable, match="did not answer"):
            await pair.a.get("acme", "s-1")
        assert time.monotonic() - began < 3
        valkey.start()
        await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
        assert await pair.a.get("acme", "s-1") is None, "the server came back empty, and the edge does not pretend"
        assert await pair.a.open(pair.record(), 60)
        await pair.b.get("acme", "s-1")
        assert await pair.a.end("acme", "s-1", 2)
        assert pair.b.is_live("acme", "s-1") is None

    async def test_a_silent_server_is_refused_within_the_deadline(self, valkey: Valkey, pair: Edges) -> None:
        await pair.a.open(pair.record(), 60)
        valkey.pause()
        try:
            began = time.monotonic()
            for method in (
                pair.a.get("acme", "s-2"),
                pair.a.window("acme", "u-1", "a", "", 60, now_us()),
            ):
                with pytest.raises(SessionsUnavailable):
                    await method
            assert time.monotonic() - began < 6
            await until(lambda: pair.a.is_live("acme", "s-1") is None)
        finally:
            valkey.resume()
        await until(lambda: not pair.a.awaiting)
        assert await pair.a.get("acme", "s-1") is not None

    async def test_stopping_in_the_middle_of_anything_ends_soon(self, valkey: Valkey, pair: Edges) -> None:
        for steps in range(40):
            store = RedisSessions(valkey.url, per_subject_max=PER_SUBJECT_MAX)
            await store.start()
            if steps % 2:
                await until(lambda store=store: not store.awaiting)
                await pair.a.end("acme", "s-1", 0)  # leaves the store an acknowledgement to send
            for _ in range(steps):
                await asyncio.sleep(0)
            async with asyncio.timeout(2):
                await store.stop()

    async def test_a_cancelled_question_is_cancelled_wherever_it_stands(self, valkey: Valkey, pair: Edges) -> None:
        outcomes = set()
        for steps in range(1, 60):
            store = RedisSessions(valkey.url, per_subject_max=PER_SUBJECT_MAX)
            asking = asyncio.create_task(store.get("acme", "s-1"))
            for _ in range(steps):
                await asyncio.sleep(0)
            answered = asking.done()
            asking.cancel()
            await asyncio.wait({asking}, timeout=5)
            outcomes.add((answered, asking.cancelled()))
            await store.stop()
        assert outcomes == {(True, False), (False, True)}

    async def test_an_answer_overtaken_by_an_end_is_not_kept(self, valkey: Valkey, pair: Edges) -> None:
        async with holding_relay(valkey.port) as relay:
            late = RedisSessions(f"redis://127.0.0.1:{relay.port}/0", per_subject_max=PER_SUBJECT_MAX)
            await late.start()
            await until(lambda: not late.awaiting)
            await pair.a.open(pair.record("s-1"), 60)
            await pair.a.open(pair.record("s-2"), 60)
            await late.get("acme", "s-2")
            relay.hold(b"session|s-1")
            asking = asyncio.create_task(late.get("acme", "s-1"))
            await until(lambda: relay.holds)
            assert await pair.a.end("acme", "s-1", 5)
            relay.release()
            assert await asking is not None, "it was asked before the end"
            assert late.is_live("acme", "s-1") is None
            assert late.is_live("acme", "s-2") is True
            await late.stop()

    async def test_after_the_process_stood_still_it_asks_and_does_not_trust(self, valkey: Valkey, pair: Edges) -> None:
        await pair.a.open(pair.record(), 60)
        assert pair.a.is_live("acme", "s-1") is True
        time.sleep(SILENCE_S + 0.05)  # the whole process, as a stopped container does
        assert pair.a.is_live("acme", "s-1") is None
        await until(lambda: not pair.a.awaiting)
        assert await pair.a.get("acme", "s-1") is not None

    async def test_a_question_given_up_never_hands_its_answer_to_the_next(self, valkey: Valkey, pair: Edges) -> None:
        await pair.b.open(pair.record("s-1"), 60)
        await pair.b.open(pair.record("s-2"), 60)
        await asyncio.gather(*(pair.a.get("acme", "s-1") for _ in range(5)))  # connections that will be reused
        valkey.pause()
        asked = [asyncio.create_task(pair.a.get("acme", "s-1")) for _ in range(5)]
        await asyncio.wait(asked, timeout=0.05)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
        valkey.resume()
        found = await asyncio.gather(*(pair.a.get("acme", "s-2") for _ in range(5)))
        assert [record and record.session_id for record in found] == ["s-2"] * 5

    async def test_an_end_missed_while_not_hearing_is_never_answered_live(self, valkey: Valkey, pair: Edges) -> None:
        await pair.b.open(pair.record(), 60)
        assert pair.b.is_live("acme", "s-1") is True
        client = redis.asyncio.Redis.from_url(valkey.url)
        await client.client_kill_filter(_type="pubsub")
        await until(lambda: pair.b.is_live("acme", "s-1") is None)
        await client.delete("acme|1|session|s-1")
        await client.aclose()
        await until(lambda: not pair.b.awaiting)
        assert pair.b.is_live("acme", "s-1") is None
        assert await pair.b.get("acme", "s-1") is None

    async def test_an_edge_that_hears_and_does_not_acknowledge_makes_end_say_so(
        self, valkey: Valkey, pair: Edges
    ) -> None:
        client = redis.asyncio.Redis.from_url(valkey.url)
        mute = client.pubsub()
        await mute.subscribe("tidegate|1|gone|0")
        await mute.get_message(timeout=2)
        await pair.a.open(pair.record(), 60)
        began = time.monotonic()
        assert not await pair.a.end("acme", "s-1", 0.3)
        assert time.monotonic() - began < 2
        assert await pair.b.get("acme", "s-1") is None
        await mute.aclose()
        await client.aclose()

    async def test_a_broken_notice_drops_everything_cached(self, valkey: Valkey, pair: Edges) -> None:
        await pair.a.open(pair.record(), 60)
        client = redis.asyncio.Redis.from_url(valkey.url)
        await client.publish("tidegate|1|gone|0", b"\xff{")
        await until(lambda: pair.a.is_live("acme", "s-1") is None)
        assert await pair.a.get("acme", "s-1") is not None
        await client.aclose()

    async def test_every_key_begins_with_tenant_and_version_and_ends_by_itself(
        self, valkey: Valkey, pair: Edges
    ) -> None:
        await pair.a.open(pair.record(), 60)
        await pair.a.put_upstream(pair.upstream_key(), upstream("up-1"), 60)
        await pair.a.window("acme", "u-1", "a", "", 60, now_us())
        await pair.a.touch("acme", "s-1", 120)
        client = redis.asyncio.Redis.from_url(valkey.url)
        await pair.a.put_upstream(pair.upstream_key()._replace(session="s-1"), upstream("up-2"), 60)
        await pair.a.take("acme|git|u-1", "here", 60)
        await pair.a.keep("acme|s-1", "stream", b"{}", 60)
        keys = await client.keys("*")
        assert len(keys) == 10
        keys.remove(b"|1|idle")  # of all tenants
        assert all(key.startswith(b"acme|1|") for key in keys)
        assert all([await client.pttl(key) > 0 for key in keys])
        await client.aclose()
