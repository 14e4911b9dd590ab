"""Canaries and shadows over two edges of different regions, released through the API, with real Kafka between."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
from tests.parts.asking import until
from tests.parts.books import nonce_of
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client
from tests.parts.cluster import Cluster, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

from tidegate.events import BundleActivated, BundleReleased, CallRequested, Role
from tidegate.policy.bundle import Bundle

pytestmark = pytest.mark.kafka
OLD: Final = lab_bundle(version="old")
NO_B: Final = """
@id("no-b")
forbid (principal, action == Action::"up/echo", resource)
when { context.args has path && context.args.path like "/srv/b*" };
"""
PLACES: Final = {
    "edge-0": {"region": "eu", "edge": {"id": "edge-0", "labels": {"tier": "early"}}},
    "edge-1": {"region": "us", "edge": {"id": "edge-1", "labels": {"tier": "late"}}},
}
PEOPLE: Final = 60
DEADLINE_S: Final = 30.0


def strict(version: str) -> Bundle:
    """Nobody may ask for what is below /srv/b."""
    return lab_bundle(version=version, extra_rules=NO_B)


class Rings:
    def __init__(self, cluster: Cluster, client: aiohttp.ClientSession) -> None:
        self.cluster = cluster
        self.client = client
        self.bases = [edge.base for edge in cluster.edges]

    async def release(self, bundle: Bundle, role: Role, **options: Any) -> dict[str, Any]:
        """Through the API; returns once both edges have it in its role."""
        files = {path: content.decode() for path, content in bundle.files.items()}
        query = "&".join(f"{name}={value}" for name, value in {"role": role, **options}.items())
        status, release = await asyncio.to_thread(self.cluster.manage, "POST", f"/bundles?{query}", {"files": files})
        assert status == 201, release
        await self.active(role, release["number"])
        return dict(release)

    async def withdraw(self, role: Role) -> None:
        status, release = await asyncio.to_thread(self.cluster.manage, "POST", "/rollback", {"role": role})
        assert status == 201, release
        await self.active(role, release["number"])

    async def active(self, role: Role, number: int) -> None:
        def told() -> bool:
            events = [one for one in self.cluster.events("policy") if isinstance(one, BundleActivated)]
            return {one.edge for one in events if (one.role, one.number) == (role, number)} == set(PLACES)

        await asyncio.to_thread(until, told, f"both edges have release {number} as their {role}", DEADLINE_S)

    async def allowed(self, base: str, user: str, *groups: str, **arguments: Any) -> bool:
        raw = Raw(self.client, self.cluster.token(user, "eng", *groups))
        told = await raw.call(base, "up__echo", text="x", path="/srv/b/1", **arguments)
        assert told.status == 200
        return told.is_ok

    async def recorded(self, nonce: str) -> list[CallRequested]:
        """The calls with this nonce, once the edges have shipped them."""
        await asyncio.to_thread(self.cluster.wait_shipped)
        return [event for event in self.cluster.requests() if nonce_of(event) == nonce]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("rings")
    with (
        running_upstream(directory) as up,
        running_cluster(
            directory, kafka.bootstrap, servers={"up": {"url": up["url"]}}, bundle=OLD, own=PLACES
        ) as running,
    ):
        yield running


@pytest_asyncio.fixture
async def rings(cluster: Cluster) -> AsyncIterator[Rings]:
    with telling(cluster):
        async with http_client() as client:
            yield Rings(cluster, client)


async def test_a_share_of_principals_is_stable_on_both_edges_and_over_a_restart(rings: Rings) -> None:
    await rings.release(strict("share"), "canary", percent=30)

    async def denied(base: str) -> set[int]:
        allowed = await asyncio.gather(*[rings.allowed(base, f"user{number}@example.com") for number in range(PEOPLE)])
        return {number for number, is_allowed in enumerate(allowed) if not is_allowed}

    chosen = await denied(rings.bases[0])
    assert 0.08 < len(chosen) / PEOPLE < 0.55, "of 60 people, more than three deviations around 30 percent"
    assert await denied(rings.bases[1]) == chosen
    restarted = rings.cluster.edges[1]
    await asyncio.to_thread(restarted.kill)
    restarted.start()
    assert await denied(rings.bases[1]) == chosen
    await rings.withdraw("canary")
    assert await denied(rings.bases[0]) == await denied(rings.bases[1]) == set()


@pytest.mark.parametrize(
    ("stage", "ruled"), [({"region": "us"}, [False, True]), ({"edge_label": "tier=early"}, [True, False])]
)
async def test_a_canary_rules_on_the_edges_of_its_stage(rings: Rings, stage: dict[str, str], ruled: list[bool]) -> None:
    await rings.release(strict(str(stage)), "canary", **stage)
    assert [not await rings.allowed(base, "alice@example.com") for base in rings.bases] == ruled
    await rings.withdraw("canary")


async def test_a_canary_of_a_group_rules_its_members_on_both_edges(rings: Rings) -> None:
    release = await rings.release(strict("group"), "canary", group="early")
    for number, base in enumerate(rings.bases):
        assert not await rings.allowed(base, "eve@example.com", "early", nonce=f"early {number}")
        assert await rings.allowed(base, "alice@example.com", nonce=f"other {number}")
    for number in range(len(rings.bases)):
        [early], [other] = await rings.recorded(f"early {number}"), await rings.recorded(f"other {number}")
        assert (early.inputs.role, early.inputs.release, early.bundle) == (
            "canary",
            release["number"],
            release["digest"],
        )
        assert (other.inputs.role, other.bundle) == ("ruling", OLD.digest)
    await rings.withdraw("canary")


async def test_a_shadow_changes_no_answer_on_either_edge_and_its_differences_are_in_the_log(rings: Rings) -> None:
    release = await rings.release(strict("shadow"), "shadow")
    for number, base in enumerate(rings.bases):
        assert await rings.allowed(base, "alice@example.com", nonce=f"shadowed {number}")
    await rings.withdraw("shadow")
    assert await rings.allowed(rings.bases[0], "alice@example.com", nonce="alone")
    for number in range(len(rings.bases)):
        [asked] = await rings.recorded(f"shadowed {number}")
        assert (asked.decision, asked.bundle) == ("allow", OLD.digest)
        [difference] = asked.shadows
        assert (difference.bundle, difference.decision, difference.rules) == (release["digest"], "deny", ("no-b",))
    [alone] = await rings.recorded("alone")
    assert alone.shadows == ()


async def test_a_canary_that_denies_too_much_is_taken_back_by_itself_on_both_edges(rings: Rings) -> None:
    release = await rings.release(strict("guarded"), "canary", group="early", guard_denials=0.2, guard_calls=20)
    for number in range(30):
        base = rings.bases[number % 2]
        assert await rings.allowed(base, f"user{number}@example.com")
        assert not await rings.allowed(base, f"user{number}@example.com", "early") or number > 10

    async def healed() -> bool:
        return all([await rings.allowed(base, "eve@example.com", "early") for base in rings.bases])

    async with asyncio.timeout(DEADLINE_S):
        while not await healed():
            await asyncio.sleep(0.1)
    released = [event for event in rings.cluster.events("policy") if isinstance(event, BundleReleased)]
    [taken_back] = [event for event in released if event.actor == "guard"]
    assert (taken_back.role, taken_back.cause, taken_back.digest) == ("canary", "withdrawn", "")
    assert taken_back.number > release["number"]
    assert "denied" in taken_back.reason
