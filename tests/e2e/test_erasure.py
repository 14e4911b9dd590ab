"""A person is erased: what was recorded of them can never be read again, and no recorded byte was changed."""

import asyncio
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.parts.audit_events import requested
from tests.parts.boxes import opened, plain, ring_of
from tests.parts.edge import RunningEdge, prepare, running_edge, settings_for, until
from tests.parts.kafka import Kafka
from tests.parts.scripted import Scripted, scripted

from tidegate.chain import Chain, open_event
from tidegate.events import CallAbandoned, CallRequested, SubjectErased
from tidegate.ids import now_us, subject_id, uuid7
from tidegate.log.opening import open_log
from tidegate.log.port import EventLog, Record
from tidegate.log.sqlite import SqliteLog
from tidegate.policy.signing import ensure_signing_key
from tidegate.privacy.erasure import read_erasure, state_key
from tidegate.privacy.keys import Published, SubjectKey, Wrapping, seal, topic_key
from tidegate.privacy.master import open_wrapping
from tidegate.privacy.ring import TOPIC, load_ring
from tidegate.secrets import open_secrets
from tidegate.settings import Settings
from tidegate_policy.service import PolicyService, create_policy, writer_id

ON = {"privacy": {"sealing": True}}
NOBODY: Any = None  # a verifier for services that are not asked over HTTP


def files_of(settings: Settings) -> bytes:
    """Every byte of the log's and the keys' files."""
    found = [*settings.data_dir.glob("log.db*"), *settings.data_dir.glob("subject-keys.db*")]
    return b"".join(path.read_bytes() for path in sorted(found))


async def wrapped_keys(log: EventLog) -> dict[str, bytes]:
    """By kid: the part of each published record that holds the key."""
    found: dict[str, bytes] = {}
    subscription = await log.follow([TOPIC])
    while not subscription.caught_up:
        for record in await subscription.poll(1_000, 1.0):
            if record.value is not None:
                value = msgspec.json.decode(record.value, type=Published)
                found[value.kid] = value.wrapped.encode()
    await subscription.close()
    return found


async def last_request(edge: RunningEdge) -> CallRequested:
    events = [open_event(value) for value in await edge.place.stored("calls")]
    return [event for event in events if isinstance(event, CallRequested)][-1]


async def call(edge: RunningEdge, nonce: str, user: str = "alice@example.com") -> CallRequested:
    """A call, and its request as it is stored."""
    answer = await edge.place.speaker(user=user).call("up__echo", {"nonce": nonce})
    assert nonce in answer.text
    return await last_request(edge)


async def erased_here(edge: RunningEdge, kid: str) -> None:
    """Until the edge has heard and destroyed."""
    await until(lambda: kid.encode() not in (edge.settings.data_dir / "subject-keys.db").read_bytes())


@pytest.fixture
async def up() -> AsyncIterator[Scripted]:
    async with scripted() as server:
        yield server


@pytest.fixture
async def edge(tmp_path: Path, up: Scripted) -> AsyncIterator[RunningEdge]:
    async with running_edge(tmp_path, {"up": {"url": up.url}}, **ON) as running:
        yield running


@pytest.fixture
async def policy(edge: RunningEdge) -> AsyncIterator[PolicyService]:
    secrets = open_secrets(edge.settings)
    async with create_policy(edge.settings, edge.log, NOBODY, secrets=secrets) as service:
        await until(lambda: not service.awaiting())
        yield service


async def test_the_log_shows_nothing_personal_to_whoever_has_no_master(edge: RunningEdge) -> None:
    request = await call(edge, "n0nce-to-hide")
    assert request.sealed.kid
    content = files_of(edge.settings)
    for hidden in (b"alice", b"n0nce-to-hide", edge.place.issuer.issuer.encode() + b'","subject"'):
        assert hidden not in content
        assert b64encode(hidden) not in content
    (shown,) = await opened([request], edge.settings, edge.log)
    assert isinstance(shown, CallRequested)
    assert (shown.sealed.login, shown.sealed.subject) == ("alice@example.com", "alice@example.com")
    assert b"n0nce-to-hide" in bytes(shown.sealed.arguments)
    await edge.place.chains_hold()


async def test_erasing_leaves_no_key_anywhere_and_the_next_call_has_a_new_one(
    edge: RunningEdge, policy: PolicyService
) -> None:
    before, bob = await call(edge, "first"), await call(edge, "other", "bob@example.com")
    await opened([before, bob], edge.settings, edge.log)  # the keys are published
    keys = await wrapped_keys(edge.log)
    stored = await edge.place.stored()
    dry = await policy.eraser.erase(before.subject_id, "asked to", "root", dry_run=True)
    assert (dry.kids, dry.event) == ((before.sealed.kid,), None)
    assert (await ring_of(edge.settings, edge.log)).find(before.sealed.kid)

    done = await policy.eraser.erase(before.subject_id, "asked to", "root")
    assert done.event is not None
    assert done.event.keys == (before.sealed.kid,)
    await erased_here(edge, before.sealed.kid)
    await until(lambda: keys[before.sealed.kid] not in files_of(edge.settings))
    assert keys[bob.sealed.kid] in files_of(edge.settings)
    ring = await ring_of(edge.settings, edge.log)
    assert ring.find(before.sealed.kid) is None
    assert plain(before, ring) == before, "the box stays shut"
    assert plain(bob, ring) != bob

    after = await call(edge, "second")
    assert after.subject_id == before.subject_id
    assert after.sealed.kid != before.sealed.kid
    (shown,) = await opened([after], edge.settings, edge.log)
    assert b"second" in bytes(shown.sealed.arguments)  # type: ignore[union-attr]
    assert set(stored) <= set(await edge.place.stored()), "no record was rewritten"
    await edge.place.chains_hold()


async def test_an_erasure_is_a_fact_in_the_history_and_may_be_repeated(
    edge: RunningEdge, policy: PolicyService
) -> None:
    request = await call(edge, "once")
    await opened([request], edge.settings, edge.log)
    first = await policy.eraser.erase(request.subject_id, "asked to", "root")
    second = await policy.eraser.erase(request.subject_id, "asked to again", "root")
    events = [event for event in await edge.place.events("control") if isinstance(event, SubjectErased)]
    assert [event.erasure_id for event in events] == [first.event.erasure_id, second.event.erasure_id]  # type: ignore[union-attr]
    assert (len(first.kids), len(second.kids)) == (1, 0)
    assert list(policy.state.erasures) == [event.erasure_id for event in events]
    state = await last_state(edge.log, edge.settings.tenant, request.subject_id)
    assert state is not None
    assert (read_erasure(state).done, read_erasure(state).event.erasure_id) == (True, events[1].erasure_id)


async def last_state(log: EventLog, tenant: str, subject: str) -> bytes | None:
    subscription = await log.follow(["control-state"])
    found: bytes | None = None
    while not subscription.caught_up:
        for record in await subscription.poll(1_000, 1.0):
            found = record.value if record.key == state_key(tenant, subject) else found
    await subscription.close()
    return found


async def test_an_edge_that_was_away_destroys_its_keys_when_it_starts(tmp_path: Path, up: Scripted) -> None:
    servers = {"up": {"url": up.url}}
    async with running_edge(tmp_path, servers, **ON) as edge:
        request = await call(edge, "before")
        await opened([request], edge.settings, edge.log)
        keys, settings = await wrapped_keys(edge.log), edge.settings
    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    async with create_policy(settings, log, NOBODY) as service:
        await until(lambda: not service.awaiting())
        await service.eraser.erase(request.subject_id, "asked to", "root")
    await log.close()
    assert keys[request.sealed.kid] not in b"".join(path.read_bytes() for path in settings.data_dir.glob("log.db*"))
    assert request.sealed.kid.encode() in (settings.data_dir / "subject-keys.db").read_bytes()
    async with running_edge(tmp_path, servers, bundle=None, **ON) as edge:
        await erased_here(edge, request.sealed.kid)
        after = await call(edge, "after")
        assert after.sealed.kid != request.sealed.kid
        assert keys[request.sealed.kid] not in files_of(edge.settings)


async def test_with_sealing_off_events_are_plain_and_old_keys_still_die(tmp_path: Path, up: Scripted) -> None:
    servers = {"up": {"url": up.url}}
    async with running_edge(tmp_path, servers, **ON) as edge:
        request = await call(edge, "sealed")
        await opened([request], edge.settings, edge.log)
    async with running_edge(tmp_path, servers, bundle=None, privacy={"sealing": False}) as edge:
        bare = await call(edge, "bare")
        assert (bare.sealed.kid, bare.sealed.login) == ("", "alice@example.com")
        assert [one.sealed for one in await opened([bare], edge.settings, edge.log)] == [bare.sealed]  # type: ignore[union-attr]
        async with create_policy(edge.settings, edge.log, NOBODY) as service:
            await until(lambda: not service.awaiting())
            await service.eraser.erase(request.subject_id, "asked to", "root")
            await erased_here(edge, request.sealed.kid)


async def test_a_call_that_its_edge_never_finished_is_told_with_the_request_s_own_box(
    tmp_path: Path, up: Scripted
) -> None:
    servers = {"up": {"url": up.url}}
    settings = settings_for(tmp_path, servers, **ON)
    prepare(settings)
    wrapping = open_wrapping(settings, create=True)
    assert wrapping is not None
    key = SubjectKey.generate("acme", "alice", now_us())
    request = requested()
    request = msgspec.structs.replace(request, sealed=seal(request.sealed, key))
    log = SqliteLog(settings.data_dir / "log.db")
    await log.append([Chain("edge.died").seal(request)])
    await log.close()
    (settings.data_dir / "edge.open").touch()
    async with running_edge(tmp_path, servers, **ON) as edge:
        stored = [open_event(value) for value in await edge.place.stored("calls")]
        (told,) = [event for event in stored if isinstance(event, CallAbandoned)]
        assert told.call_id == request.call_id
        assert told.sealed == request.sealed
        await edge.place.chains_hold()


async def test_a_subject_is_named_by_its_id_or_as_its_tokens_say(edge: RunningEdge, policy: PolicyService) -> None:
    request = await call(edge, "x")
    issuer = edge.place.issuer.issuer
    assert policy.eraser.resolve(request.subject_id) == request.subject_id
    assert policy.eraser.resolve(f"{issuer}|alice@example.com") == request.subject_id
    pepper = open_secrets(edge.settings).pepper("acme")
    assert subject_id(pepper, issuer, "alice@example.com") == request.subject_id
    for wrong in ("alice@example.com", "|x", "x|", "A" * 32, ""):
        with pytest.raises(Exception, match="32 hex digits"):
            policy.eraser.resolve(wrong)


ERASE_AND_DIE = """
import asyncio, os, sys
from pathlib import Path
import msgspec
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_policy.service import create_policy

class Dying(SqliteLog):
    async def append(self, records):
        if any(record.topic == "subject-keys" and record.value is None for record in records):
            os._exit(9)
        await super().append(records)

async def main(root, subject):
    settings = msgspec.convert({"root": root, "tenant": "acme"}, Settings)
    log = Dying(settings.data_dir / "log.db")
    await log.prepare()
    async with create_policy(settings, log, None) as service:
        while service.awaiting():
            await asyncio.sleep(0.001)
        await service.eraser.erase(subject, "asked to", "root")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_service_killed_between_the_event_and_the_keys_finishes_at_its_next_start(tmp_path: Path) -> None:
    settings = msgspec.convert({"root": str(tmp_path), "tenant": "acme"}, Settings)
    settings.data_dir.mkdir()
    wrapping, subject = Wrapping([b"m" * 32]), "a" * 32
    made = [SubjectKey.generate("acme", subject, now_us()) for _ in range(5)]
    other = SubjectKey.generate("acme", "b" * 32, now_us())
    log = SqliteLog(settings.data_dir / "log.db")
    await log.append([Record(TOPIC, topic_key(*key[1:3], key.kid), wrapping.wrap(key)) for key in (*made, other)])
    await log.close()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", ERASE_AND_DIE, str(tmp_path), subject)
    assert await asyncio.wait_for(child.wait(), 60) == 9

    log = SqliteLog(settings.data_dir / "log.db")
    await log.prepare()
    state = await last_state(log, "acme", subject)
    assert state is not None
    told = read_erasure(state)
    assert not told.done
    assert set(told.event.keys) == {key.kid for key in made}
    assert len(await load_ring(log, wrapping)) == 6, "nothing was destroyed yet"
    async with create_policy(settings, log, NOBODY) as service:
        await until(lambda: not service.awaiting())

        async def is_done() -> bool:
            state = await last_state(log, "acme", subject)
            return state is not None and read_erasure(state).done

        await until(is_done, 20)
        ring = await load_ring(log, wrapping)
        assert (len(ring), ring.find(other.kid)) == (1, other)
        assert len(service.state.erasures) == 1, "finished, not repeated"
    await log.close()


def cluster_settings(kafka: Kafka, root: Path) -> Settings:
    raw = {
        "root": str(root),
        "tenant": "acme",
        "log": f"kafka://{kafka.bootstrap}",
        "kafka": {"prefix": f"{uuid7()}.", "partitions": 2, "replication": 1, "min_insync": 1},
        "signing": {"key_file": "bundle.pem"},
    }
    return msgspec.convert(raw, Settings)


@pytest.mark.kafka
async def test_a_key_that_comes_late_is_taken_off_the_log_and_a_new_one_stays(kafka: Kafka, tmp_path: Path) -> None:
    ensure_signing_key(tmp_path / "bundle.pem")
    settings, subject = cluster_settings(kafka, tmp_path), "a" * 32
    wrapping = Wrapping([b"m" * 32])
    log = open_log(settings, writer_id=writer_id(settings))
    await log.prepare()
    try:
        late, early = (SubjectKey.generate("acme", subject, now_us()) for _ in range(2))
        await log.append([Record(TOPIC, topic_key("acme", subject, early.kid), wrapping.wrap(early))])
        async with create_policy(settings, log, NOBODY) as service:
            await until(lambda: not service.awaiting(), 60)
            done = await service.eraser.erase(subject, "asked to", "root")
            assert done.kids == (early.kid,)
            new = SubjectKey.generate("acme", subject, now_us())
            for key in (new, late):
                await log.append([Record(TOPIC, topic_key("acme", subject, key.kid), wrapping.wrap(key))])

            async def is_gone() -> bool:
                ring = await load_ring(log, wrapping)
                return ring.find(late.kid) is None and ring.find(new.kid) == new and ring.find(early.kid) is None

            await until(is_gone, 30)
    finally:
        await log.close()
