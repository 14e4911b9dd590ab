"""Bundles are swapped and quarantines imposed while calls run on two edges: each call is decided by exactly one."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.parts.asking import get, until
from tests.parts.books import nonce_of
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client, reached, running_load
from tests.parts.cluster import TENANT, Cluster, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

from tidegate.events import BundleActivated, BundleRejected
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.release import STATE_TOPIC, chunk_records, pointer_key
from tidegate.policy.signing import Release, SigningKey

pytestmark = pytest.mark.kafka
A = lab_bundle(paths="/srv/a*", version="A")
B = lab_bundle(paths="/srv/b*", version="B")
TOOLS = [ToolFacts("up", "echo"), ToolFacts("up", "note")]
ACTIVE_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Principal:
    user: str
    agent: str
    groups: tuple[str, ...]


class Place:
    def __init__(self, cluster: Cluster, seen: str) -> None:
        self.cluster = cluster
        self._seen = seen
        self.bases = [edge.base for edge in cluster.edges]
        self.tokens = [cluster.token(f"user{number}@example.com") for number in range(4)]

    def nonces(self) -> set[str]:
        """What the upstream saw."""
        return {nonce for nonce, _ in msgspec.json.decode(get(self._seen)[1])["calls"]}

    def wait_active(self, bundle: Bundle) -> float:
        """Until both edges report that they run this bundle; the seconds that it took."""
        wanted = {edge.name: bundle.digest for edge in self.cluster.edges}
        return until(lambda: self.cluster.runs() == wanted, "both edges report the bundle", ACTIVE_DEADLINE_S)

    def put(self, key: bytes, value: bytes, topic: str = STATE_TOPIC) -> None:
        """Write into the log past the policy service."""
        producer = Producer({"bootstrap.servers": self.cluster.bootstrap, "partitioner": "murmur2_random"})
        producer.produce(f"{self.cluster.prefix}{topic}", key=key, value=value)
        assert producer.flush(15) == 0

    def put_release(self, key: SigningKey, bundle: Bundle, number: int, tenant: str = TENANT) -> None:
        """A release, chunks and pointer, as the policy service would write it."""
        release = Release(tenant=tenant, ring="main", number=number, digest=bundle.digest, previous="")
        for record in chunk_records(TENANT, bundle):
            assert record.value is not None
            self.put(record.key, record.value)
        self.put(pointer_key(TENANT, "main"), key.sign(release))

    def current(self) -> int:
        """Number of the release that rules."""
        status, releases = self.cluster.manage("GET", "/releases?limit=1")
        assert status == 200, releases
        return int(releases[0]["number"])

    def rejections(self) -> list[BundleRejected]:
        return [event for event in self.cluster.events("policy") if isinstance(event, BundleRejected)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("swap")
    with (
        running_upstream(directory) as up,
        running_cluster(directory, kafka.bootstrap, servers={"up": {"url": up["url"]}}, bundle=A) as cluster,
    ):
        yield Place(cluster, up["seen"])


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    with telling(running.cluster):
        yield running


def path_for(number: int) -> dict[str, Any]:
    return {"path": f"/srv/{'ab'[number % 2]}/{number}"}


async def test_every_call_is_decided_by_one_bundle_and_agrees_with_it(place: Place) -> None:
    latencies = []
    async with running_load(place.tokens, place.bases, name="swap", arguments=path_for) as load:
        for number in range(6):
            await reached(load, 60)
            bundle = (B, A)[number % 2]
            await asyncio.to_thread(place.cluster.publish, bundle)
            latencies.append(await asyncio.to_thread(place.wait_active, bundle))
        await reached(load, 60)
    await asyncio.to_thread(place.cluster.wait_shipped)
    engines = {bundle.digest: Engine.build(bundle, TOOLS, {"up": ()}) for bundle in (A, B)}
    seen = place.nonces()
    records = {nonce_of(event): event for event in place.cluster.requests() if nonce_of(event) in load.answered}
    assert set(records) == set(load.answered)
    decided: Counter[tuple[str, str]] = Counter()
    for nonce, event in records.items():
        principal = Principal(event.sealed.subject, event.agent, event.inputs.groups)
        arguments = msgspec.json.decode(event.sealed.arguments)
        verdict = engines[event.bundle].evaluate(principal, event.server, event.target, arguments)
        assert (event.decision, event.rules) == (verdict.effect, verdict.rules), event
        told = load.answered[nonce]
        assert told.is_ok == (event.decision == "allow") == (nonce in seen), event
        if not told.is_ok:
            assert (told.decision["bundle"], told.decision["id"]) == (event.bundle, event.call_id)
        decided[event.bundle, event.decision] += 1
    assert set(decided) == {(bundle.digest, effect) for bundle in (A, B) for effect in ("allow", "deny")}
    print(f"{sum(decided.values())} calls; published → both edges report it: {[f'{s:.2f} s' for s in latencies]}")


async def test_a_release_that_is_not_in_order_leaves_the_old_one_ruling_and_is_reported(place: Place) -> None:
    await asyncio.to_thread(place.cluster.publish, A)
    await asyncio.to_thread(place.wait_active, A)
    stranger = SigningKey(Ed25519PrivateKey.generate())
    own, number = place.cluster.signing, place.current()
    broken = bundle_of({**A.files, "policies/lab.cedar": b"permit (principal, action"})
    place.put(pointer_key(TENANT, "main"), b"{not a release")
    place.put_release(stranger, B, number + 1)
    forged = msgspec.json.decode(own.sign(Release(tenant=TENANT, ring="main", number=1, digest=B.digest, previous="")))
    forged["release"]["number"] = number + 1
    place.put(pointer_key(TENANT, "main"), msgspec.json.encode(forged))
    place.put_release(own, B, number + 1, tenant="another-tenant")
    place.put_release(own, lab_bundle(paths="/srv/*", version="lower"), number - 1)
    place.put_release(own, broken, number + 1)
    wanted = {"release-malformed", "key-unknown", "signature-invalid", "tenant-foreign", "number-not-higher"}
    for edge in place.cluster.edges:

        def reasons(name: str = edge.name) -> set[str]:
            return {event.reason.partition(":")[0] for event in place.rejections() if event.edge == name}

        await asyncio.to_thread(until, lambda: wanted | {"bad-bundle"} <= reasons(), f"{edge.name} reports {wanted}")
    edges = place.cluster.manage("GET", "/edges")[1]
    assert {(edge["digest"], edge["rejected"]["reason"].partition(":")[0]) for edge in edges} == {
        (A.digest, "bad-bundle")
    }
    async with http_client() as client:
        raw = Raw(client, place.tokens[0])
        for base in place.bases:
            assert (await raw.call(base, "up__echo", text="x", path="/srv/a/1")).is_ok
            told = await raw.call(base, "up__echo", text="x", path="/srv/b/1")
            assert (told.is_ok, told.decision["bundle"]) == (False, A.digest)


async def test_a_roll_back_is_obeyed_and_an_edge_that_starts_anew_begins_with_what_rules(place: Place) -> None:
    for bundle in (lab_bundle(paths="/srv/c*", version="C"), B):  # two: the test before has used up one number
        await asyncio.to_thread(place.cluster.publish, bundle)
    await asyncio.to_thread(place.wait_active, B)
    status, release = place.cluster.manage("POST", "/rollback", {"to": A.digest})
    assert (status, release["cause"]) == (201, "rolled-back")
    await asyncio.to_thread(place.wait_active, A)
    place.cluster.edges[0].kill()
    place.cluster.edges[0].start()
    async with http_client() as client:
        raw = Raw(client, place.tokens[0])
        for base in place.bases:
            assert (await raw.call(base, "up__echo", text="x", path="/srv/a/1")).is_ok
            told = await raw.call(base, "up__echo", text="x", path="/srv/b/1")
            assert (told.is_ok, told.decision["bundle"]) == (False, A.digest)
    await asyncio.to_thread(place.cluster.wait_shipped)
    activated = [event for event in place.cluster.events("policy") if isinstance(event, BundleActivated)]
    for edge in place.cluster.edges:
        numbers = [event.number for event in sorted(activated, key=lambda e: e.id) if event.edge == edge.name]
        assert numbers == sorted(numbers)
    edges = place.cluster.manage("GET", "/edges")[1]
    assert [(edge["digest"], edge["rejected"]) for edge in edges] == [(A.digest, None)] * 2, "history is no attempt"


@pytest.mark.parametrize("scope", ["subject", "agent", "server", "tool"])
async def test_a_quarantine_is_obeyed_within_a_second_and_ends_when_lifted(place: Place, scope: str) -> None:
    who, agent = f"{scope}@example.com", f"agent-{scope}"
    async with http_client() as client:
        raw = Raw(client, place.cluster.token(who, agent=agent))
        bystander = Raw(client, place.tokens[0])
        assert (await raw.call(place.bases[0], "up__echo", text="x", nonce=f"q {scope}")).is_ok
        await asyncio.to_thread(place.cluster.wait_shipped)
        (record,) = [event for event in place.cluster.requests() if nonce_of(event) == f"q {scope}"]
        value = {"subject": record.subject_id, "agent": agent, "server": "up", "tool": "up/echo"}[scope]
        body = {"scope": scope, "value": value, "reason": "under review"}
        status, quarantine = await asyncio.to_thread(place.cluster.manage, "POST", "/quarantines", body)
        assert status == 201, quarantine
        imposed_s = time.monotonic()
        for base in place.bases:
            while (told := await raw.call(base, "up__echo", text="x")).is_ok:
                assert time.monotonic() - imposed_s < 1.0, "not obeyed within a second"
            assert (told.decision["stage"], told.decision["reason"]) == ("quarantine", "quarantined")
            assert told.decision["rules"] == [quarantine["quarantine_id"]]
            assert told.text == f"This {'person' if scope == 'subject' else scope} is in quarantine: under review"
            assert (await bystander.call(base, "up__echo", text="x")).is_ok == (scope in ("subject", "agent"))
        path = f"/quarantines/{quarantine['quarantine_id']}?reason=done"
        assert (await asyncio.to_thread(place.cluster.manage, "DELETE", path))[0] == 204
        lifted_s = time.monotonic()
        for base in place.bases:
            while not (await raw.call(base, "up__echo", text="x")).is_ok:
                assert time.monotonic() - lifted_s < 1.0, "not lifted within a second"
