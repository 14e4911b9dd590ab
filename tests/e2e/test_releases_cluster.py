"""Releases over a real Kafka and two edges: guards act over both, a killed writer leaves whole releases or none, there
is one writer, and its key can change.
"""

import asyncio
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from tests.parts.asking import until
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client
from tests.parts.cluster import TENANT, Cluster, Service, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle
from tests.parts.processes import free_port

from tidegate.chain import open_event
from tidegate.events import BundleActivated, BundleRejected, BundleReleased
from tidegate.log.opening import open_log
from tidegate.policy.bundle import Bundle, bundle_of
from tidegate.policy.release import STATE_TOPIC, Chunks, pointer_key
from tidegate.policy.signing import Release, ensure_signing_key, open_release, trusted_keys
from tidegate.settings_file import load_settings

pytestmark = pytest.mark.kafka
GOOD, BAD = lab_bundle(paths="/srv/*", version="good"), lab_bundle(paths="/nowhere/*", version="bad")
GUARD = "guard_denials=0.05&guard_calls=20"
PEOPLE, CALLS = 25, 2  # calls of each person at each edge
KILLS = 2
FILLING = "// " + "x" * 1_100_000 + "\n"  # some chunks, so that an append takes a while


def big(version: str) -> Bundle:
    bundle = lab_bundle(version=version)
    return bundle_of({**bundle.files, "policies/filling.cedar": f"{FILLING}// {version}\n".encode()})


@dataclass
class Stored:
    """What the log holds of releases, as an edge reads it."""

    released: list[BundleReleased] = field(default_factory=list)
    told: list[BundleActivated | BundleRejected] = field(default_factory=list)
    pointers: dict[bytes, Release] = field(default_factory=dict)
    chunks: Chunks = field(default_factory=lambda: Chunks(1 << 30))

    def is_whole(self, digest: str) -> bool:
        canonical = self.chunks.whole(digest)
        return canonical is not None and Bundle.from_bytes(canonical).digest == digest


async def stored(cluster: Cluster) -> Stored:
    """Read to its end."""
    log = open_log(load_settings(cluster.policy.config))
    found = Stored()
    trust = trusted_keys([cluster.signing.public])
    subscription = await log.follow((STATE_TOPIC, "policy"))
    while not subscription.caught_up:
        for record in await subscription.poll(1_000, 0.2):
            if record.value is None:
                continue
            if record.topic == "policy":
                event = open_event(record.value)
                if isinstance(event, BundleReleased):
                    found.released.append(event)
                elif isinstance(event, BundleActivated | BundleRejected):
                    found.told.append(event)
            elif len(parts := record.key.decode().split("|")) == 4:
                found.chunks.add(parts[1], int(parts[2]), int(parts[3]), record.value, parts[1])
            else:
                found.pointers[record.key] = open_release(record.value, trust, TENANT)
    await subscription.close()
    await log.close()
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("crash")
    with (
        running_upstream(directory) as up,
        running_cluster(directory, kafka.bootstrap, servers={"up": {"url": up["url"]}}, bundle=GOOD) as running,
        telling(running),
    ):
        yield running


async def morning(cluster: Cluster) -> None:
    """Everybody calls at both edges."""
    async with http_client() as client:
        people = [Raw(client, cluster.token(f"p{number}@example.com")) for number in range(PEOPLE)]

        async def calls(raw: Raw) -> None:
            for edge in cluster.edges:
                for _ in range(CALLS):
                    told = await raw.call(edge.base, "up__echo", text="x", path="/srv/a")
                    assert told.status == 200, told

        for start in range(0, PEOPLE, 5):
            await asyncio.gather(*map(calls, people[start : start + 5]))


def publish(cluster: Cluster, bundle: Bundle, query: str = "") -> dict[str, Any]:
    status, made = cluster.manage("POST", f"/bundles?{query}", {"files": _files(bundle)})
    assert status == 201, made
    return dict(made)


def ring(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.manage("GET", "/status?ring=main")[1]["rings"][0])


def both_obey(cluster: Cluster, role: str) -> bool:
    held = ring(cluster)[role]
    return held is not None and [edge["state"] for edge in held["edges"]] == ["current", "current"]


def test_a_bad_canary_is_taken_back_at_both_edges_though_its_publisher_died(cluster: Cluster) -> None:
    canary = publish(cluster, BAD, f"role=canary&percent=50&{GUARD}")
    until(lambda: both_obey(cluster, "canary"), "both edges run the canary")
    cluster.policy.kill()
    asyncio.run(morning(cluster))
    cluster.policy.start()
    until(lambda: bool(ring(cluster)["ended"]), "the guard ends the canary")
    ended = ring(cluster)["ended"][0]
    assert (ended["actor"], ended["number"]) == ("guard", canary["number"] + 1)
    assert "were denied, 0 of" in ended["reason"]
    cluster.wait_shipped()
    met: dict[tuple[str, str], set[str]] = {}
    for event in cluster.requests():
        met.setdefault((event.edge, event.subject_id), set()).add(event.bundle)
    one, two = ({who: bundles for (at, who), bundles in met.items() if at == edge.name} for edge in cluster.edges)
    assert one == two, "who meets the canary at one edge meets it at the other"
    assert {frozenset(bundles) for bundles in one.values()} == {frozenset({BAD.digest}), frozenset({GOOD.digest})}
    asyncio.run(morning(cluster))
    cluster.wait_shipped()
    later = [event for event in cluster.requests() if event.time_us > ended["released_us"] + 2_000_000]
    assert {(event.bundle, event.decision) for event in later} <= {(GOOD.digest, "allow")}


def test_a_bad_release_for_everybody_is_rolled_back_at_both_edges(cluster: Cluster) -> None:
    asyncio.run(morning(cluster))  # what the bad one will be compared with
    bad = publish(cluster, BAD, f"{GUARD}&watch=60")
    until(lambda: both_obey(cluster, "ruling"), "both edges obey the bad release")
    asyncio.run(morning(cluster))
    until(lambda: set(cluster.runs().values()) == {GOOD.digest}, "both edges run what ruled before")
    newest = cluster.manage("GET", "/releases?limit=1")[1][0]
    assert (newest["number"], newest["cause"], newest["actor"]) == (bad["number"] + 1, "rolled-back", "guard")


def test_a_good_canary_stays_and_is_promoted(cluster: Cluster) -> None:
    better = lab_bundle(paths="/s*", version="better")
    publish(cluster, better, f"role=canary&percent=50&guard_errors=0&{GUARD}")
    until(lambda: both_obey(cluster, "canary"), "both edges run the canary")
    asyncio.run(morning(cluster))
    until(lambda: ring(cluster)["canary"]["counts"]["decided"] >= 20, "the edges have said what they counted")
    held = ring(cluster)["canary"]
    assert (held["watching"], held["counts"]["denied"]) == ("watching", 0)
    status, promoted = cluster.manage("POST", "/promote", {})
    assert (status, promoted["digest"]) == (201, better.digest)
    until(lambda: set(cluster.runs().values()) == {better.digest}, "both edges run the promoted bundle")


def publish_and_promote(cluster: Cluster, answers: list[tuple[int, object]], version: str) -> None:
    """A canary, then for everybody: two releases in one append. Until nobody answers."""
    for step in range(100):
        files = {path: text.decode() for path, text in big(f"{version}.{step}").files.items()}
        answers.append(cluster.manage("POST", "/bundles?role=canary&percent=50&replace=true", {"files": files}))
        answers.append(cluster.manage("POST", "/promote", {}))
        if answers[-1][0] == 0:
            return


def test_a_writer_killed_while_publishing_leaves_whole_releases_and_edges_that_run_one(cluster: Cluster) -> None:
    dice = random.Random(11)
    acknowledged: list[int] = []
    for kill in range(KILLS):
        answers: list[tuple[int, object]] = []
        publishing = threading.Thread(target=publish_and_promote, args=(cluster, answers, f"k{kill}"))
        publishing.start()
        until(lambda answers=answers: len(answers) >= 1, "the first release of this round is answered")  # type: ignore[misc]
        publishing.join(dice.uniform(0.0, 0.5))  # somewhere in one of the next
        cluster.policy.kill()
        publishing.join(30)
        assert not publishing.is_alive()
        acknowledged += [int(release["number"]) for status, release in answers if status == 201]  # type: ignore[index]
        cluster.policy.start()
    status, last = cluster.manage("POST", "/bundles", {"files": _files(lab_bundle(version="last"))})
    assert status == 201, last
    until(lambda: set(cluster.runs().values()) == {last["digest"]}, "both edges run the last release")
    found = asyncio.run(stored(cluster))
    numbers = [release.number for release in found.released]
    assert numbers == sorted(set(numbers)), "strictly increasing, in the order of the log"
    assert set(acknowledged) <= set(numbers), "what was answered is there"
    for release in found.released:
        assert not release.digest or found.is_whole(release.digest), f"release {release.number} is not whole"
    ends = {release.number for release in found.released if release.cause == "withdrawn" and release.actor != "guard"}
    promoted = {release.number for release in found.released if release.cause == "promoted"}
    assert ends == {number + 1 for number in promoted}, "a promotion and the end of its canary are one append"
    assert promoted
    newest = {role: max(r.number for r in found.released if r.role == role) for role in ("ruling", "canary")}
    held = {role: found.pointers[pointer_key(TENANT, "main", role)].number for role in ("ruling", "canary")}
    assert held == newest, "the pointers are those of the history"
    assert [event for event in found.told if isinstance(event, BundleRejected)] == []
    known = {(release.number, release.role, release.digest) for release in found.released}
    ran = [event for event in found.told if isinstance(event, BundleActivated)]
    assert {(event.number, event.role, event.digest) for event in ran} <= known
    for edge in cluster.edges:
        for role in ("ruling", "canary"):
            order = [event.number for event in ran if (event.edge, event.role) == (edge.name, role)]
            assert order == sorted(order)


def test_a_second_writer_fences_the_first_and_numbers_go_on(cluster: Cluster) -> None:
    listen = f"127.0.0.1:{free_port()}"
    config = cluster.directory / "policy-second.yaml"
    config.write_text(cluster.policy.config.read_text().replace(cluster.policy.base.removeprefix("http://"), listen))
    before = cluster.publish(lab_bundle(version="before"))["number"]
    second = Service("policy-second", "policy", config, f"http://{listen}")
    first = cluster.policy
    try:
        second.start()
        status, problem = cluster.manage("POST", "/bundles", {"files": _files(lab_bundle(version="stale"))})
        assert (status, problem["code"]) == (503, "writer-fenced")
        cluster.policy = second
        release = cluster.publish(lab_bundle(version="after"))
        assert release["number"] == before + 1
        until(lambda: set(cluster.runs().values()) == {release["digest"]}, "both edges obey the second writer")
    finally:
        cluster.policy = first
        second.stop()
    first.stop()
    first.start()  # it is the writer again
    assert cluster.publish(lab_bundle(version="first again"))["number"] == before + 2


def _files(bundle: Bundle) -> dict[str, str]:
    return {path: content.decode() for path, content in bundle.files.items()}


def test_a_new_signing_key_takes_over_while_the_same_bundle_rules(cluster: Cluster) -> None:
    """Edges trust both keys, the policy service signs with the new one and releases again, the old key goes."""
    cluster.edges[1].kill()
    edge, (old, new) = cluster.edges[0], (cluster.signing, ensure_signing_key(cluster.directory / "signing-new.pem"))
    bundle = lab_bundle(version="kept")
    by_the_old = cluster.publish(bundle)["number"]
    until(lambda: _edge(cluster)["number"] == by_the_old, "the edge runs what the old key signed")
    cluster.policy.stop()
    _configure(cluster.policy, signing={"key_file": str(cluster.directory / "signing-new.pem")})
    cluster.policy.start()
    again = cluster.publish(bundle)
    assert (again["created"], again["number"]) == (True, by_the_old + 1), "the same bundle under the new key"
    assert cluster.publish(bundle)["created"] is False, "and once"
    until(lambda: _refuses(cluster), "an edge that does not trust the new key says so")
    assert ring(cluster)["ruling"]["edges"][0]["state"] == "refused"
    assert _edge(cluster)["number"] == by_the_old, "and goes on with what it has"
    edge.kill()
    _configure(edge, trust={"bundle_keys": [old.public, new.public]})
    edge.start()
    until(lambda: _edge(cluster)["number"] == again["number"], "an edge that trusts both obeys")
    edge.kill()
    _configure(edge, trust={"bundle_keys": [new.public]})
    edge.start()  # ready: a bundle rules
    until(lambda: _edge(cluster)["rejected"] is None, "nothing is refused any more")
    assert _edge(cluster)["number"] == again["number"]


def _configure(service: Service, **keys: dict[str, object]) -> None:
    service.config.write_text(yaml.safe_dump(yaml.safe_load(service.config.read_text()) | keys))


def _edge(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.manage("GET", "/edges")[1][0])


def _refuses(cluster: Cluster) -> bool:
    rejected = _edge(cluster)["rejected"]
    return rejected is not None and rejected["reason"].startswith("key-unknown")
