"""Approvals over a cluster of real processes: the policy service, two edges, Kafka, Valkey. Some die on the way, and
what the server saw is held against what was stored.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
import pytest
from tests.parts.asking import get, until
from tests.parts.books import check_chains
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, Told, http_client
from tests.parts.cluster import Cluster, Service, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

from tidegate.events import ApprovalConsumed, ApprovalGranted, ApprovalRequested, CallRequested

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
CALLS = 24
AT_ONCE = 4
TRIES = 8
ASKS = """
@id("asked") @effect("ask") @approver("leads") @expires("10m") @reason("A lead looks at this.")
forbid (principal, action == Action::"up/echo", resource) when { context.args has nonce };
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka, valkey_url: str) -> Iterator[tuple[Cluster, str]]:
    """And where the server tells what it saw."""
    directory = tmp_path_factory.mktemp("approvals")
    bundle = lab_bundle(("up",), extra_rules=ASKS)
    with (
        running_upstream(directory, "--delay-ms", "20") as up,
        running_cluster(
            directory, kafka.bootstrap, servers={"up": {"url": up["url"]}}, bundle=bundle, sessions=valkey_url
        ) as cluster,
    ):
        yield cluster, up["seen"]


@pytest.fixture
def cluster(running: tuple[Cluster, str]) -> Iterator[Cluster]:
    with telling(running[0]):
        yield running[0]


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
    cluster.policy.launch()
    await passes(cluster, client, 1, nonce)
    assert await asked(cluster, client, 0, nonce) != approval_id
    await asyncio.to_thread(cluster.policy.wait_ready)
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


async def asked_for(cluster: Cluster, nonces: list[str]) -> dict[str, str]:
    """Each call is made once, at either edge in turn; the approvals that they wait for."""
    async with http_client() as client:
        raw = Raw(client, cluster.token())
        bases = itertools.cycle([edge.base for edge in cluster.edges])
        told = [await raw.call(next(bases), "up__echo", text="t", nonce=nonce) for nonce in nonces]
    assert {one.decision["reason"] for one in told} == {"approval-required"}
    return {nonce: one.decision["approval"]["id"] for nonce, one in zip(nonces, told, strict=True)}


def all_granted(cluster: Cluster, approvals: dict[str, str]) -> None:
    def waits() -> bool:
        status, listed = cluster.manage("GET", "/approvals?state=pending&limit=1000")
        return status == 200 and set(approvals.values()) <= {one["approval_id"] for one in listed}

    until(waits, "the policy service knows the questions")
    for approval_id in approvals.values():
        status, told = cluster.manage("POST", f"/approvals/{approval_id}", {"decision": "grant", "reason": "fine"})
        assert status == 200, told


async def called_by_all(cluster: Cluster, nonces: list[str], killed: Service) -> Counter[str]:
    """Two callers for each call, one at either edge, again and again; meanwhile an edge is killed and started again.
    Some calls at a time, so that the edge dies while approvals are being used.
    """
    passed: Counter[str] = Counter()
    began = asyncio.Event()
    gate = asyncio.Semaphore(AT_ONCE)

    async def caller(raw: Raw, edge: Service, nonce: str) -> None:
        for _ in range(TRIES):
            told = await raw.call(edge.base, "up__echo", text="t", nonce=nonce)
            passed[nonce] += told.is_ok
            if passed.total() * 3 > len(nonces):
                began.set()
            if told.status == 0:
                await asyncio.sleep(0.05)  # an edge that is gone refuses at once

    async def both(raw: Raw, nonce: str) -> None:
        async with gate:
            await asyncio.gather(*[caller(raw, edge, nonce) for edge in cluster.edges])

    async with http_client() as client:
        raw = Raw(client, cluster.token())
        calls = [asyncio.create_task(both(raw, nonce)) for nonce in nonces]
        async with asyncio.timeout(30):
            await began.wait()
        killed.kill()
        killed.launch()
        await asyncio.to_thread(killed.wait_ready)
        await asyncio.gather(*calls)
    return passed


def test_each_approval_lets_one_call_pass_though_an_edge_dies(running: tuple[Cluster, str]) -> None:
    cluster, seen_at = running
    with telling(cluster):
        nonces = [f"killed-{number}" for number in range(CALLS)]
        approvals = asyncio.run(asked_for(cluster, nonces))
        all_granted(cluster, approvals)
        passed = asyncio.run(called_by_all(cluster, nonces, cluster.edges[1]))
        cluster.wait_shipped()
        sightings = Counter(nonce for nonce, _ in msgspec.json.decode(get(seen_at)[1])["calls"])
        events = cluster.events("control", "calls")
    used = Counter(one.approval_id for one in events if isinstance(one, ApprovalConsumed))
    agreed = {one.approval_id: one for one in events if isinstance(one, ApprovalGranted)}
    allowed = Counter(one.approval_id for one in events if isinstance(one, CallRequested) and one.decision == "allow")
    for nonce, approval_id in approvals.items():
        assert passed[nonce] <= sightings[nonce] <= allowed[approval_id] <= used[approval_id] <= 1, nonce
        assert agreed[approval_id].channel == "api"
    uses = sum(used[one] for one in approvals.values())
    assert CALLS - AT_ONCE <= uses <= CALLS
    assert 0 <= uses - sum(sightings[one] for one in nonces) <= AT_ONCE  # what was under way on the edge that died
    check_chains(cluster.values())
