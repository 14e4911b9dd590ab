"""How soon a command rules everywhere: `python -m bench.killswitch`. About 90 seconds.

Four edges with real Kafka and a policy service, each a process of its own, under a steady load in a closed loop over
all edges. A quarantine is imposed and lifted, and bundles that differ in one tool are published, again and again. From
sending the command until the last call was begun, at any edge, that it should have stopped or changed. The first round,
in which connections and caches are still cold, is told apart.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tests.parts.cluster import Cluster, running_cluster
from tests.parts.kafka import running_kafka

from bench.processes import listening
from tidegate.policy.bundle import Bundle, bundle_of

EDGES: Final = 4
CALLERS_PER_EDGE: Final = 4
ROUNDS: Final = 40
SETTLED_CALLS: Final = 3  # of each caller, all of them changed: then the command rules everywhere
DEADLINE_S: Final = 20.0
TARGET_MS: Final = 300
AGENT: Final = "bench"
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
}


@dataclass
class Caller:
    """One connection to one edge. `last_begun_s`: by outcome, when the last call with it was begun."""

    edge: int
    last_begun_s: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    same: int = 0  # calls in a row with one outcome
    outcome: bool | None = None
    calls: int = 0

    def saw(self, allowed: bool, begun_s: float) -> None:
        self.last_begun_s[allowed] = begun_s
        self.same = self.same + 1 if allowed is self.outcome else 1
        self.outcome = allowed
        self.calls += 1


def policy(*, permits: bool, number: int) -> Bundle:
    """Each time another bundle; `permits` says whether the tool may be called."""
    rule = '@id("all") permit (principal, action, resource);'
    stop = '@id("stop") forbid (principal, action == Action::"up/echo", resource);'
    text = f"// {number}\n{rule}\n{'' if permits else stop}\n"
    return bundle_of({"manifest.json": b'{"v":1,"name":"bench"}', "policies/a.cedar": text.encode()})


async def call_on(session: aiohttp.ClientSession, url: str, token: str, caller: Caller) -> None:
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "up__echo",
    }
    params = {"name": "up__echo", "arguments": {"text": "x"}, "_meta": _META}
    body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    while True:
        begun_s = time.monotonic()
        async with session.post(f"{url}/mcp", data=body, headers=headers) as answer:
            told = await answer.read()
        caller.saw(b'"isError":true' not in told and b'"error"' not in told, begun_s)


@contextlib.asynccontextmanager
async def load(cluster: Cluster) -> AsyncIterator[list[Caller]]:
    callers = [Caller(edge) for edge in range(EDGES) for _ in range(CALLERS_PER_EDGE)]
    token = cluster.token(agent=AGENT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(call_on(session, cluster.edges[one.edge].base, token, one)) for one in callers]
        try:
            await settled(callers, allowed=True)
            yield callers
        finally:
            for task in tasks:
                task.cancel()


async def settled(callers: list[Caller], *, allowed: bool) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not all(one.outcome is allowed and one.same >= SETTLED_CALLS for one in callers):
            await asyncio.sleep(0.002)


async def command(callers: list[Caller], do: Callable[[], Any], *, allowed: bool) -> tuple[float, Any]:
    """(milliseconds until the last call was begun that went the old way, what the command answered)."""
    began_s = time.monotonic()
    answer = await asyncio.to_thread(do)
    await settled(callers, allowed=allowed)
    return max(0.0, max(one.last_begun_s[not allowed] for one in callers) - began_s) * 1e3, answer


def impose(cluster: Cluster) -> str:
    body = {"scope": "agent", "value": AGENT, "reason": "measured", "ttl_s": 60}
    status, answer = cluster.manage("POST", "/quarantines", body)
    assert status == 201, answer
    return str(answer["quarantine_id"])


async def measured(cluster: Cluster, rounds: int, told: Callable[[int], None]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"quarantine imposed": [], "quarantine lifted": [], "bundle published": []}
    async with load(cluster) as callers:
        began_s, before = time.monotonic(), sum(one.calls for one in callers)
        for number in range(-1, rounds):
            if number == 0:
                print(
                    "first: " + "; ".join(f"{name} {max(took):.0f} ms" for name, took in times.items()), file=sys.stderr
                )
                times = {name: [] for name in times}
                began_s, before = time.monotonic(), sum(one.calls for one in callers)
            took, name = await command(callers, partial(impose, cluster), allowed=False)
            times["quarantine imposed"].append(took)
            took, _ = await command(callers, partial(cluster.manage, "DELETE", f"/quarantines/{name}"), allowed=True)
            times["quarantine lifted"].append(took)
            for permits in (False, True):
                made = policy(permits=permits, number=number)
                took, _ = await command(callers, partial(cluster.publish, made), allowed=permits)
                times["bundle published"].append(took)
            told(number + 1)
        seconds = time.monotonic() - began_s
        rate = (sum(one.calls for one in callers) - before) / seconds
    print(f"{rate:,.0f} calls/s over {EDGES} edges meanwhile, {EDGES * CALLERS_PER_EDGE} callers", file=sys.stderr)
    return times


def shown(times: dict[str, list[float]]) -> Table:
    table = Table("ms until the last call that went the old way was begun", "p50", "p99", "max", "n", box=SIMPLE_HEAD)
    for name, took in times.items():
        ordered = sorted(took)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        table.add_row(name, f"{median(ordered):.0f}", f"{p99:.0f}", f"{ordered[-1]:.0f}", str(len(ordered)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()

    def told(number: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{number}/{given.rounds} rounds", end="" if number < given.rounds else "\n", file=sys.stderr)

    with tempfile.TemporaryDirectory() as directory, running_kafka() as kafka:
        root = Path(directory)
        with (
            listening("bench.upstream", directory=root) as (_, upstream),
            running_cluster(
                root / "cluster",
                kafka.bootstrap,
                servers={"up": {"url": upstream["url"]}},
                bundle=policy(permits=True, number=-2),
                edges=EDGES,
            ) as cluster,
        ):
            times = asyncio.run(measured(cluster, given.rounds, told))
    Console().print(shown(times))


if __name__ == "__main__":
    main()
