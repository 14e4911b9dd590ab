"""Approvals over a cluster of real processes: the policy service, two edges, Kafka, Valkey. Some die on the way."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from tests.parts.asking import until
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, Told, http_client
from tests.parts.cluster import Cluster, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

from tidegate.events import ApprovalConsumed, ApprovalGranted, ApprovalRequested

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
ASKS = """
@id("asked") @effect("ask") @approver("leads") @expires("10m") @reason("A lead looks at this.")
forbid (principal, action == Action::"up/echo", resource) when { context.args has nonce };
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka, valkey_url: str) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("approvals")
    bundle = lab_bundle(("up",), extra_rules=ASKS)
    with (
        running_upstream(directory) as up,
        running_cluster(
            directory, kafka.bootstrap, servers={"up": {"url": up["url"]}}, bundle=bundle, sessions=valkey_url
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    with telling(running):
        yield running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with http_client() as session:
        yield session


async def call(cluster: Cluster, client: aiohttp.ClientSession, edge: int, nonce: str) -> Told:
    return await Raw(client, cluster.token()).call(cluster.edges[edge].base, "up__echo", text="t", nonce=nonce)


async def asked(cluster: Cluster, client: aiohttp.ClientSession, edge: int, nonce: str) -> str:
    """The approval's id, of a call that was not made."""
    told = await call(cluster, client, edge, nonce)
    assert told.decision["reason"] == "approval-required", told
    return str(told.decision["approval"]["id"])


def decide(cluster: Cluster, approval_id: str, decision: str = "grant") -> tuple[int, Any]:
    return cluster.manage("POST", f"/approvals/{approval_id}", {"decision": decision, "reason": "seen"})


async def grant(cluster: Cluster, approval_id: str) -> None:
    """As soon as the service has heard of it."""

    def granted() -> bool:
        status, _ = decide(cluster, approval_id)
        assert status in (200, 404, 503)
        return status == 200

    await asyncio.to_thread(until, granted, "the approval is granted")


async def passes(cluster: Cluster, client: aiohttp.ClientSession, edge: int, nonce: str) -> Told:
    """The call, made again until the edge knows that it is approved."""
    late = time.monotonic() + 30
    while not (told := await call(cluster, client, edge, nonce)).is_ok:
        assert told.decision["reason"] == "approval-required", told
        assert time.monotonic() < late
    return told


async def test_what_is_asked_at_one_edge_and_granted_at_the_service_passes_at_the_other_once(
    cluster: Cluster, client: aiohttp.ClientSession
) -> None:
    nonce = uuid4().hex
    approval_id = await asked(cluster, client, 0, nonce)
    late = time.monotonic() + 30
    while {await asked(cluster, client, edge, nonce) for edge in (0, 1)} != {approval_id}:
        assert time.monotonic() < late, "every edge tells the earliest question"
    await grant(cluster, approval_id)
    await passes(cluster, client, 1, nonce)
    anew = {await asked(cluster, client, edge, nonce) for edge in (0, 1, 0, 1)}
    assert approval_id not in anew
    await asyncio.to_thread(cluster.wait_shipped)
    (used,) = [
        one
        for one in await asyncio.to_thread(cluster.requests)
        if one.approval_id == approval_id and one.decision == "allow"
    ]
    assert (used.reason, used.edge, used.rules) == ("approved", cluster.edges[1].name, ("asked",))


async def test_of_many_that_call_again_at_once_at_both_edges_one_passes(
    cluster: Cluster, client: aiohttp.ClientSession
) -> None:
    nonce = uuid4().hex
    approval_id = await asked(cluster, client, 0, nonce)
    await grant(cluster, approval_id)
    told: list[Told] = []
    late = time.monotonic() + 30
    while not any(one.is_ok for one in told):
        assert time.monotonic() < late
        told += await asyncio.gather(*[call(cluster, client, number % 2, nonce) for number in range(16)])
    told += await asyncio.gather(*[call(cluster, client, number % 2, nonce) for number in range(16)])
    assert sum(one.is_ok for one in told) == 1
    await asyncio.to_thread(cluster.wait_shipped)
    control = await asyncio.to_thread(cluster.events, "control")
    uses = [one for one in control if isinstance(one, ApprovalConsumed) and one.approval_id == approval_id]
    assert len(uses) == 1


async def test_a_policy_service_that_dies_between_question_and_answer_goes_on_and_edges_that_start_know_what_stands(
    cluster: Cluster, client: aiohttp.ClientSession
) -> None:
    nonce, other = uuid4().hex, uuid4().hex
    await asyncio.to_thread(cluster.policy.kill)
    approval_id = await asked(cluster, client, 0, nonce)
    assert await asked(cluster, client, 1, other)
    cluster.policy.start()
    await grant(cluster, approval_id)
    await asyncio.to_thread(cluster.policy.kill)
    await asyncio.to_thread(cluster.edges[1].kill)
    cluster.edges[1].start()
    await passes(cluster, client, 1, nonce)
    assert await asked(cluster, client, 0, nonce) != approval_id
    cluster.policy.start()
    status, problem = await asyncio.to_thread(decide, cluster, approval_id, "deny")
    assert (status, problem["code"]) == (409, "approval-consumed")
    await asyncio.to_thread(cluster.wait_shipped)
    control = await asyncio.to_thread(cluster.events, "control")
    steps = [type(one) for one in control if getattr(one, "approval_id", "") == approval_id]
    assert sorted(steps, key=str) == sorted([ApprovalRequested, ApprovalGranted, ApprovalConsumed], key=str)


async def test_two_people_who_decide_at_once_are_told_what_stands_and_the_edges_obey_it(
    cluster: Cluster, client: aiohttp.ClientSession
) -> None:
    nonce = uuid4().hex
    approval_id = await asked(cluster, client, 0, nonce)

    def known() -> bool:
        return cluster.manage("GET", f"/approvals/{approval_id}")[0] == 200

    await asyncio.to_thread(until, known, "the service has heard of it")
    answers = await asyncio.gather(
        *[asyncio.to_thread(decide, cluster, approval_id, ("grant", "deny")[number % 2]) for number in range(6)]
    )
    (won,) = [body for status, body in answers if status == 200]
    assert {body["code"] for status, body in answers if status == 409} == {f"approval-{won['state']}"}
    if won["state"] == "granted":
        await passes(cluster, client, 1, nonce)
        return

    async def is_denied(edge: int) -> bool:
        return bool((await call(cluster, client, edge, nonce)).decision["reason"] == "approval-denied")

    late = time.monotonic() + 30
    while not (await is_denied(0) and await is_denied(1)):
        assert time.monotonic() < late
