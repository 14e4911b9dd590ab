"""Messages between edges: to one, to all others, in order, at most once, bounded; on every adapter."""

import asyncio
import logging

import pytest
import redis.asyncio
from tests.parts.session_stores import Edges, until
from tests.parts.valkey import Valkey

from tidegate.errors import OurFault
from tidegate.limits import BUS_MESSAGE_BYTES_MAX, BUS_OUTBOX_BYTES_MAX
from tidegate.sessions.port import SessionStore, SessionsUnavailable
from tidegate.sessions.redis import RedisSessions


def mailbox(edge: SessionStore, kind: str = "answer") -> list[bytes]:
    taken: list[bytes] = []
    edge.on_message(kind, taken.append)
    return taken


async def test_a_message_reaches_the_edge_it_is_posted_to_as_it_was_written(edges: Edges) -> None:
    at_b = mailbox(edges.b)
    for message in (b"", b"{}", b"a\nb\n\n", b"\xff\x00\n", b"answer\nanother"):
        assert await edges.a.post(edges.b.address, b"answer\n" + message)
    await until(lambda: len(at_b) == 5)
    assert at_b == [b"", b"{}", b"a\nb\n\n", b"\xff\x00\n", b"answer\nanother"]


async def test_an_edge_reaches_itself(edges: Edges) -> None:
    at_a = mailbox(edges.a)
    assert await edges.a.post(edges.a.address, b"answer\n1")
    await until(lambda: at_a == [b"1"])


@pytest.mark.parametrize("address", ["0" * 32, "", "all", "*", "x\n", "\ud800", "9" * 33, "Ａ" * 32])
async def test_who_posts_to_nobody_is_told(edges: Edges, address: str) -> None:
    at_b = mailbox(edges.b)
    assert not await edges.a.post(address, b"answer\n1")
    assert await edges.a.post(edges.b.address, b"answer\n2")
    await until(lambda: at_b == [b"2"])


async def test_an_address_is_safe_within_ids(edges: Edges) -> None:
    assert edges.a.address.isalnum()
    assert edges.a.address.isascii()
    assert 1 <= len(edges.a.address) <= 32


async def test_kinds_are_told_apart_and_unknown_ones_are_left_alone(edges: Edges) -> None:
    answers, cancels = mailbox(edges.b, "answer"), mailbox(edges.b, "cancel")
    await edges.a.post(edges.b.address, b"a-newer-kind\n1")
    await edges.a.post(edges.b.address, b"no line at all")
    await edges.a.post(edges.b.address, b"cancel\n2")
    await edges.a.post(edges.b.address, b"answer\n3")
    await until(lambda: answers == [b"3"])
    assert cancels == [b"2"]


async def test_messages_posted_at_once_keep_their_order(edges: Edges) -> None:
    at_b = mailbox(edges.b)
    posts = [edges.a.post(edges.b.address, b"answer\n%d" % number) for number in range(500)]
    assert all(await asyncio.gather(*posts))
    await until(lambda: len(at_b) == 500)
    assert at_b == [b"%d" % number for number in range(500)]


async def test_a_message_of_the_largest_size_arrives_and_a_larger_one_is_refused(edges: Edges) -> None:
    at_b = mailbox(edges.b)
    largest = b"answer\n" + b"x" * (BUS_MESSAGE_BYTES_MAX - 7)
    assert await edges.a.post(edges.b.address, largest)
    await until(lambda: at_b == [largest[7:]])
    for refused in (edges.a.post(edges.b.address, largest + b"x"), edges.a.tell_all(largest + b"x")):
        with pytest.raises(OurFault, match="send less") as fault:
            await refused
        assert fault.value.code == "message-too-large"


async def test_a_taker_that_fails_is_logged_and_the_next_message_is_taken(
    edges: Edges, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: bytes) -> None:
        raise ValueError(message.decode())

    edges.b.on_message("broken", fail)
    at_b = mailbox(edges.b)
    with caplog.at_level(logging.ERROR):
        await edges.a.post(edges.b.address, b"broken\n1")
        await edges.a.post(edges.b.address, b"answer\n2")
        await until(lambda: at_b == [b"2"])
    assert "was not taken" in caplog.text
    assert not edges.b.awaiting


@pytest.mark.redis
async def test_what_is_told_to_all_reaches_every_other_edge(pair: Edges) -> None:
    at_a, at_b = mailbox(pair.a), mailbox(pair.b)
    await pair.a.tell_all(b"answer\n1")
    await pair.b.post(pair.a.address, b"answer\n2")
    await until(lambda: at_b == [b"1"] and at_a == [b"2"])


@pytest.mark.redis
async def test_the_same_message_heard_twice_is_taken_once(pair: Edges, valkey: Valkey) -> None:
    at_b = mailbox(pair.b)
    client = redis.asyncio.Redis.from_url(valkey.url)
    channel = f"tidegate|1|0|bus|{pair.b.address}"
    for wire in (b"e 1\nanswer\n1", b"e 1\nanswer\n1", b"e 2\nanswer\n2", b"e 1\nanswer\n1", b"f 1\nanswer\n3"):
        assert await client.publish(channel, wire) == 1
    for broken in (b"", b"\n", b"e\nanswer\n4", b"e x\nanswer\n4", b"e " + b"9" * 5000 + b"\nanswer\n4", b"\xff"):
        await client.publish(channel, broken)
    await client.publish(channel, b"e 3\nanswer\n5")
    await until(lambda: at_b[-1:] == [b"5"])
    assert at_b == [b"1", b"2", b"3", b"5"]
    await client.aclose()


@pytest.mark.redis
async def test_the_bus_recovers_when_its_server_was_killed(pair: Edges, valkey: Valkey) -> None:
    at_b = mailbox(pair.b)
    valkey.kill()
    with pytest.raises(SessionsUnavailable):
        await pair.a.post(pair.b.address, b"answer\nlost")
    valkey.start()
    await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
    assert await pair.a.post(pair.b.address, b"answer\n1")
    await until(lambda: at_b == [b"1"])


@pytest.mark.redis
async def test_a_message_to_a_silent_server_fails_in_time_and_never_comes_after_later_ones(
    pair: Edges, valkey: Valkey
) -> None:
    at_b = mailbox(pair.b)
    assert await pair.a.post(pair.b.address, b"answer\n0")
    valkey.pause()
    try:
        posts = [asyncio.create_task(pair.a.post(pair.b.address, b"answer\n%d" % number)) for number in range(1, 5)]
        await asyncio.wait(posts, timeout=6)
        assert all(isinstance(post.exception(), SessionsUnavailable) for post in posts)
    finally:
        valkey.resume()
    await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
    assert await pair.a.post(pair.b.address, b"answer\n9")
    await until(lambda: at_b[-1:] == [b"9"])
    assert at_b == sorted(set(at_b)), "in order, none twice"


@pytest.mark.redis
async def test_more_bytes_than_may_wait_for_a_silent_server_are_refused_at_once(pair: Edges, valkey: Valkey) -> None:
    large = b"answer\n" + b"x" * (BUS_MESSAGE_BYTES_MAX - 7)
    most = BUS_OUTBOX_BYTES_MAX // len(large)
    valkey.pause()
    try:
        posts = [asyncio.create_task(pair.a.post(pair.b.address, large)) for _ in range(most + 2)]
        await asyncio.wait(posts, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
        refused = [post for post in posts if post.done()]
        assert refused
        assert refused == posts[-len(refused) :], "the first ones wait on"
        assert "wait already" in str(refused[-1].exception())
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)
    finally:
        valkey.resume()
    await until(lambda: not pair.a.awaiting and not pair.b.awaiting)
    assert await pair.a.post(pair.b.address, b"answer\n1"), "there is room again"


@pytest.mark.redis
async def test_what_waits_when_the_edge_stops_is_told_so(valkey: Valkey) -> None:
    store = RedisSessions(valkey.url, per_subject_max=1)
    await store.start()
    await until(lambda: not store.awaiting)
    valkey.pause()
    try:
        posts = [asyncio.create_task(store.tell_all(b"answer\n1")) for _ in range(100)]
        await asyncio.wait(posts, timeout=0.05)
        await store.stop()
        done, waiting = await asyncio.wait(posts, timeout=0.5)
        assert not waiting
        assert all(isinstance(post.exception(), SessionsUnavailable) for post in done)
    finally:
        valkey.resume()


@pytest.mark.redis
async def test_a_post_given_up_neither_holds_up_nor_harms_the_others(pair: Edges) -> None:
    at_b = mailbox(pair.b)
    posts = [asyncio.create_task(pair.a.post(pair.b.address, b"answer\n%d" % number)) for number in range(100)]
    await asyncio.sleep(0)
    for post in posts[::2]:
        post.cancel()
    assert all(await asyncio.gather(*posts[1::2]))
    await until(lambda: b"99" in at_b)
    assert [one for one in at_b if int(one) % 2] == [b"%d" % number for number in range(1, 100, 2)]
