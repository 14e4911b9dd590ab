"""Approvals over a cluster of real processes: a second person agrees at the policy service, edges are killed while the
calls are made, and what the server saw is held against what was stored.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
from tests.parts.asking import get, until
from tests.parts.books import check_chains
from tests.parts.clients.lab_upstream import running_upstream
from tests.parts.clients.raw import Raw, http_client
from tests.parts.cluster import Cluster, Service, running_cluster, telling
from tests.parts.kafka import Kafka
from tests.parts.lab_policy import lab_bundle

from tidegate.events import ApprovalConsumed, ApprovalGranted, CallRequested

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
CALLS = 24
AT_ONCE = 4
ASKS = """
@id("two-persons") @effect("ask") @approver("other") @expires("5m") @reason("Somebody else looks at these.")
forbid (principal, action == Action::"up/echo", resource) when { context.args has nonce };
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka, valkey_url: str) -> Iterator[tuple[Cluster, str]]:
    directory = tmp_path_factory.mktemp("approvals")
    with (
        running_upstream(directory, "--delay-ms", "20") as up,
        running_cluster(
            directory,
            kafka.bootstrap,
            servers={"up": {"url": up["url"]}},
            bundle=lab_bundle(extra_rules=ASKS),
            sessions=valkey_url,
        ) as cluster,
    ):
        yield cluster, up["seen"]


async def asked_for(cluster: Cluster, nonces: list[str]) -> dict[str, str]:
    """Each call is made once, at either edge in turn; the approvals that they wait for."""
    async with http_client() as client:
        raw = Raw(client, cluster.token())
        bases = itertools.cycle([edge.base for edge in cluster.edges])
        told = [await raw.call(next(bases), "up__echo", text="t", nonce=nonce) for nonce in nonces]
    assert {one.decision["reason"] for one in told} == {"approval-required"}
    return {nonce: one.decision["approval"]["id"] for nonce, one in zip(nonces, told, strict=True)}


def granted(cluster: Cluster, approvals: dict[str, str]) -> None:
    def waits() -> bool:
        status, listed = cluster.manage("GET", "/approvals?state=pending&limit=1000")
        return status == 200 and set(approvals.values()) <= {one["approval_id"] for one in listed}

    until(waits, "the policy service knows the questions")
    for approval_id in approvals.values():
        status, told = cluster.manage("POST", f"/approvals/{approval_id}", {"decision": "grant", "reason": "fine"})
        assert status == 200, told


async def called_by_all(cluster: Cluster, nonces: list[str], tries: int, killed: Service | None) -> Counter[str]:
    """Two callers for each call, one at either edge, again and again; meanwhile an edge is killed and started again.
    Some calls at a time, so that the edge dies while approvals are being used.
    """
    passed: Counter[str] = Counter()
    began = asyncio.Event()
    gate = asyncio.Semaphore(AT_ONCE)

    async def caller(raw: Raw, edge: Service, nonce: str) -> None:
        for _ in range(tries):
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
        if killed is not None:
            async with asyncio.timeout(30):
                await began.wait()
            killed.kill()
            killed.launch()
            await asyncio.to_thread(killed.wait_ready)
        await asyncio.gather(*calls)
    return passed


@pytest.mark.parametrize("kills", [False, True], ids=["calm", "killed"])
def test_each_approval_lets_one_call_pass_whatever_dies(running: tuple[Cluster, str], kills: bool) -> None:
    cluster, seen_at = running
    with telling(cluster):
        nonces = [f"{'killed' if kills else 'calm'}-{number}" for number in range(CALLS)]
        approvals = asyncio.run(asked_for(cluster, nonces))
        granted(cluster, approvals)
        killed = cluster.edges[1] if kills else None
        passed = asyncio.run(called_by_all(cluster, nonces, 12 if kills else 6, killed))
        cluster.wait_shipped()
        sightings = Counter(nonce for nonce, _ in msgspec.json.decode(get(seen_at)[1])["calls"])
        events = cluster.events("control", "calls")
    used = Counter(one.approval_id for one in events if isinstance(one, ApprovalConsumed))
    agreed = {one.approval_id: one for one in events if isinstance(one, ApprovalGranted)}
    allowed = Counter(one.approval_id for one in events if isinstance(one, CallRequested) and one.decision == "allow")
    for nonce, approval_id in approvals.items():
        assert passed[nonce] <= sightings[nonce] <= allowed[approval_id] <= used[approval_id] <= 1, nonce
        assert agreed[approval_id].channel == "api"
    uses, dying = sum(used[one] for one in approvals.values()), AT_ONCE if kills else 0
    assert CALLS - dying <= uses <= CALLS
    assert 0 <= uses - sum(sightings[one] for one in nonces) <= dying  # what was under way on the edge that died
    check_chains(cluster.values())
