"""Changing a client's session: every edge goes on with the new record, at once for who changed it; on every adapter."""

import asyncio
import itertools

import msgspec
import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from tests.parts.session_stores import Edges, until
from tests.parts.valkey import Valkey

from tidegate.errors import CallerFault
from tidegate.limits import SESSION_RECORD_BYTES_MAX
from tidegate.sessions.port import SessionRecord, SessionStore
from tidegate.sessions.records import amended, record_as_stored


def told(edge: SessionStore) -> list[tuple[str, str]]:
    heard: list[tuple[str, str]] = []
    edge.on_amended(lambda tenant, session_id: heard.append((tenant, session_id)))
    return heard


async def test_what_was_amended_is_read_at_every_edge_and_no_edge_goes_on_with_the_old(edges: Edges) -> None:
    record = edges.record()
    await edges.a.open(record, 60)
    await edges.b.get(edges.tenant, "s-1")
    new = await edges.a.amend(edges.tenant, "s-1", log_level="info", subscribe="file:///x")
    assert new == msgspec.structs.replace(record, log_level="info", uris=("file:///x",))
    assert edges.a.known(edges.tenant, "s-1") in (None, new), "who changed it knows it at once"
    await until(lambda: edges.b.known(edges.tenant, "s-1") in (None, new))
    assert await edges.b.get(edges.tenant, "s-1") == new
    assert edges.b.known(edges.tenant, "s-1") == new


async def test_subscriptions_come_and_go_in_order_and_each_once(edges: Edges) -> None:
    await edges.a.open(edges.record(), 60)
    for uri in ("u:1", "u:2", "u:1", "u:3"):
        await edges.a.amend(edges.tenant, "s-1", subscribe=uri)
    await edges.b.amend(edges.tenant, "s-1", unsubscribe="u:2")
    await edges.b.amend(edges.tenant, "s-1", unsubscribe="u:9")
    found = await edges.a.get(edges.tenant, "s-1")
    assert found is not None
    assert found.uris == ("u:1", "u:3")


async def test_changes_made_at_once_at_two_edges_are_all_there(edges: Edges) -> None:
    await edges.a.open(edges.record(), 60)
    changes = [
        edge.amend(edges.tenant, "s-1", subscribe=f"u:{n}")
        for n, edge in zip(range(12), itertools.cycle([edges.a, edges.b]), strict=False)
    ]
    await asyncio.gather(*changes, edges.b.amend(edges.tenant, "s-1", log_level="debug"))
    found = await edges.a.get(edges.tenant, "s-1")
    assert found is not None
    assert set(found.uris) == {f"u:{n}" for n in range(12)}
    assert found.log_level == "debug"


async def test_listeners_everywhere_are_told_of_changes_and_ends_of_that_session_alone(edges: Edges) -> None:
    await edges.a.open(edges.record("s|1"), 60)
    at_a, at_b = told(edges.a), told(edges.b)
    await edges.a.amend(edges.tenant, "s|1", log_level="info")
    await until(lambda: at_a == at_b == [(edges.tenant, "s|1")])
    await edges.a.amend(edges.tenant, "s|1", log_level="info")
    await edges.b.end(edges.tenant, "s|1", 2)
    await until(lambda: len(at_a) == len(at_b) == 2)
    assert at_a == at_b == [(edges.tenant, "s|1")] * 2, "what changes nothing is not told"


async def test_a_listener_that_fails_harms_nobody_else(edges: Edges) -> None:
    def fail(tenant: str, session_id: str) -> None:
        raise ValueError(session_id)

    edges.b.on_amended(fail)
    at_b = told(edges.b)
    await edges.a.open(edges.record(), 60)
    await edges.b.get(edges.tenant, "s-1")
    assert await edges.a.end(edges.tenant, "s-1", 2)
    await until(lambda: at_b == [(edges.tenant, "s-1")])
    assert edges.b.is_live(edges.tenant, "s-1") is None


async def test_what_is_gone_cannot_be_amended_and_does_not_come_back(edges: Edges) -> None:
    assert await edges.a.amend(edges.tenant, "s-1", log_level="info") is None
    await edges.a.open(edges.record(), 60)
    await edges.a.end(edges.tenant, "s-1", 2)
    assert await edges.b.amend(edges.tenant, "s-1", log_level="info") is None
    assert await edges.b.get(edges.tenant, "s-1") is None


async def test_amending_does_not_lengthen_a_session_s_life(edges: Edges) -> None:
    await edges.a.open(edges.record(), 0.3)
    assert await edges.a.amend(edges.tenant, "s-1", log_level="info") is not None
    await edges.until_forgotten()
    assert await edges.a.get(edges.tenant, "s-1") is None


async def test_subscriptions_have_a_bound_and_what_was_there_stays(edges: Edges) -> None:
    await edges.a.open(edges.record(), 60)
    await edges.a.amend(edges.tenant, "s-1", subscribe="u:1")
    with pytest.raises(CallerFault, match="unsubscribe") as fault:
        await edges.a.amend(edges.tenant, "s-1", subscribe="u:" + "x" * SESSION_RECORD_BYTES_MAX)
    assert fault.value.code == "session-too-large"
    found = await edges.b.get(edges.tenant, "s-1")
    assert found is not None
    assert found.uris == ("u:1",)


@pytest.mark.redis
async def test_records_of_older_and_newer_edges_are_read_and_lose_nothing(pair: Edges, valkey: Valkey) -> None:
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.set(
        "acme|1|session|s-1",
        b'{"session_id":"s-1","tenant":"acme","subject_id":"u-1","agent":"a","protocol":"2025-06-18",'
        b'"opened_us":7,"edge":"e","of_the_future":{"b":[],"a":1.0}}',
        px=60_000,
    )
    old = await pair.a.get("acme", "s-1")
    assert old is not None
    assert (old.log_level, old.uris) == ("", ())
    await pair.a.amend("acme", "s-1", subscribe="u:1")
    stored = await client.get("acme|1|session|s-1")
    assert b'"of_the_future":{"b":[],"a":1.0}' in stored
    assert 0 < await client.pttl("acme|1|session|s-1") <= 60_000
    await client.aclose()


@pytest.mark.redis
async def test_who_may_have_missed_a_change_is_told_to_look_again(pair: Edges, valkey: Valkey) -> None:
    at_b = told(pair.b)
    client = redis.asyncio.Redis.from_url(valkey.url)
    await client.client_kill_filter(_type="pubsub")
    await until(lambda: ("", "") in at_b)
    await client.aclose()


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["u:1", "u:2", "ü\n", '"'])), max_size=20))
def test_what_is_stored_says_what_is_returned(changes: list[tuple[bool, str]]) -> None:
    record = SessionRecord(session_id="s", tenant="t", subject_id="u", agent="a", protocol="p", opened_us=1, edge="e")
    stored, expected = record_as_stored(record), list[str]()
    for comes, uri in changes:
        record, stored = amended(record, stored, None, uri if comes else "", "" if comes else uri)
        expected = [one for one in expected if comes or one != uri] + [uri] * (comes and uri not in expected)
        assert list(record.uris) == expected
        read = msgspec.json.decode(stored, type=SessionRecord)
        assert (read.uris, read.log_level, read.session_id) == (record.uris, record.log_level, "s")
