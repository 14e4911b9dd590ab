"""How soon a call can be queried: from the client's answer until `tidegate.calls` has it with its last word.

Real Kafka, a policy service, an edge and an audit consumer with the embedded engine, each a process of its own, under a
steady load in an open loop: a slow answer delays no other call. One reader asks again and again, over the loopback
interface that dashboards use, which of the calls are there; so a figure includes the query that saw the row. Void when
a call fails or is not there in time. Counterpart: `governed.py`.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp
import msgspec
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tests.parts.asking import exchange
from tests.parts.processes import free_port, wait_ready

from bench.governed import Governed, running_governed, tidegate
from bench.measure import Failed
from bench.processes import listening, running
from tidegate.analytics.clickhouse import Address

TARGET_S: Final = 2.0
RATE_MAX, SECONDS_MAX, CONNECTIONS = 1_000, 60.0, 32
GRACE_S: Final = 20.0  # for the last calls to become visible
READY_S: Final = 60.0
PAUSE_S: Final = 0.02  # between two questions
WARM_UP_S: Final = 4.0  # calls are made and not counted

_META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
}
_TEXT: Final = "Summarize the open points about the budget for the weekly report: dates, owners and what is undecided."


@dataclass
class Seen:
    """What is known of the calls; times by one monotonic clock, calls by the digest of their arguments."""

    answered: dict[str, float] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    visible: dict[str, float] = field(default_factory=dict)
    answer_s: list[float] = field(default_factory=list)
    polls_s: list[float] = field(default_factory=list)
    is_over: bool = False

    def delays(self) -> list[float]:
        """Seconds from answer to row, least first. A row may be there before its answer has been read: 0."""
        return sorted(max(0.0, self.visible[one] - self.answered[one]) for one in self.counted)


@dataclass(frozen=True)
class Reader:
    """The loopback interface of the embedded engine."""

    url: str
    token: str

    async def recent(self, http: aiohttp.ClientSession) -> list[tuple[str, str]]:
        """(call_id, digest) of the calls of the last half minute that have their last word."""
        sql = (
            "SELECT call_id, arguments_digest FROM tidegate.calls WHERE requested_at > now() - INTERVAL 30 SECOND "
            "AND completed_event != '' FORMAT JSONCompactEachRow"
        )
        headers = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": self.token}
        async with http.post(self.url, data=sql, headers=headers) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise Failed(f"ClickHouse answered {answer.status}: {body[:500].decode(errors='replace')}")
        return [tuple(msgspec.json.decode(line)) for line in body.splitlines()]


@contextlib.contextmanager
def running_consumer(directory: Path) -> Iterator[Reader]:
    """An audit consumer beside the edge of the same directory, on data of its own."""
    settings: dict[str, Any] = yaml.safe_load((directory / "tidegate.yaml").read_text())
    listen, data = f"127.0.0.1:{free_port()}", directory / "audit"
    settings |= {"data": str(data), "analytics": "chdb"}
    settings["services"] |= {"audit-consumer": {"listen": listen}}
    config, log = directory / "audit.yaml", directory / "audit.log"
    config.write_text(yaml.safe_dump(settings))
    with running(tidegate(["audit-consumer", "--config", str(config)]), log=log) as process:
        ready = f"http://{listen}/readyz"
        wait_ready(lambda: exchange("GET", ready, {})[0] == 200, process, log, deadline_s=READY_S)
        address = msgspec.json.decode((data / "analytics.json").read_bytes(), type=Address)
        token = (data / address.reader_token_file).read_text().strip()
        yield Reader(f"http://{address.host}:{address.port}/", token)


def request_of(number: int) -> tuple[str, bytes]:
    """The digest that the record will have, and the body: about 300 bytes of arguments, never twice the same."""
    arguments = msgspec.json.encode(
        {
            "text": f"{_TEXT:<160}",
            "path": f"/srv/team-{number % 997:03d}/{number}.md",
            "nonce": f"{os.getpid()}-{number}",
        }
    )
    params = {"name": "up__echo", "arguments": msgspec.Raw(arguments), "_meta": _META}
    body = msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
    return hashlib.sha256(arguments).hexdigest(), body


async def call(http: aiohttp.ClientSession, edge: Governed, token: str, number: int, seen: Seen, counts: bool) -> None:
    """Raises Failed."""
    digest, body = request_of(number)
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "up__echo",
    }
    now = asyncio.get_running_loop().time
    began = now()
    async with http.post(edge.url, data=body, headers=headers) as answer:
        content = await answer.read()
    seen.answered[digest] = now()
    if answer.status != 200 or b'"error"' in content or b'"isError":true' in content:
        raise Failed(f"a call was answered {answer.status}: {content[:500].decode(errors='replace')}")
    if counts:
        seen.counted.add(digest)
        seen.answer_s.append(now() - began)


async def make_calls(http: aiohttp.ClientSession, edge: Governed, rate: int, seconds: float, seen: Seen) -> None:
    """At fixed moments, whatever the answers do."""
    token = edge.token_file.read_text().strip()
    now = asyncio.get_running_loop().time
    began = now()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * (WARM_UP_S + seconds))):
            due = number / rate
            if (wait := began + due - now()) > 0:
                await asyncio.sleep(wait)
            group.create_task(call(http, edge, token, number, seen, due >= WARM_UP_S), name=f"call-{number}")
    seen.is_over = True


async def watch(http: aiohttp.ClientSession, reader: Reader, seen: Seen) -> None:
    """Until every call is there. Raises Failed at the deadline."""
    now = asyncio.get_running_loop().time
    ends = float("inf")
    while not (seen.is_over and seen.answered.keys() <= seen.visible.keys()):
        if seen.is_over and now() > (ends := min(ends, now() + GRACE_S)):
            missing = len(seen.answered.keys() - seen.visible.keys())
            raise Failed(f"{missing} of {len(seen.answered)} calls cannot be queried after {GRACE_S:.0f} s")
        asked = now()
        for _, digest in await reader.recent(http):
            seen.visible.setdefault(digest, now())
        seen.polls_s.append(now() - asked)
        await asyncio.sleep(PAUSE_S)


async def measure(edge: Governed, reader: Reader, rate: int, seconds: float) -> Seen:
    seen = Seen()
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30))
    try:
        async with http, asyncio.TaskGroup() as group:
            group.create_task(watch(http, reader, seen), name="watch")
            group.create_task(make_calls(http, edge, rate, seconds, seen), name="load")
    except BaseExceptionGroup as faults:
        raise _first(faults) from faults
    return seen


def _first(faults: BaseExceptionGroup[BaseException]) -> BaseException:
    one = faults.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def show(console: Console, seen: Seen, rate: int) -> float:
    """The 99th percentile, in seconds."""
    delays = seen.delays()
    table = Table(title=f"From the answer to the row, {rate} calls/s", title_justify="left", box=SIMPLE_HEAD)
    for name in ("calls", "p50 ms", "p90 ms", "p99 ms", "most ms", "answer p50 ms", "one query, median ms"):
        table.add_column(name, justify="right")
    figures = [_at(delays, share) for share in (0.5, 0.9, 0.99, 1.0)]
    cells = [*figures, median(seen.answer_s), median(seen.polls_s)]
    table.add_row(f"{len(delays):,}", *[f"{one * 1e3:,.0f}" if one >= 0.01 else f"{one * 1e3:.1f}" for one in cells])
    console.print(table)
    return figures[2]


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=200, help=f"calls per second, at most {RATE_MAX} (default: 200)")
    parser.add_argument("--seconds", type=float, default=30.0, help=f"at most {SECONDS_MAX:.0f} (default: 30)")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    rate, seconds = max(1, min(options.rate, RATE_MAX)), max(1.0, min(options.seconds, SECONDS_MAX))
    console = Console()
    console.print(f"load of the machine before: {os.getloadavg()[0]:.1f}", style="dim")
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-fresh-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            with (
                listening("bench.upstream", "--seen-max", "1000", directory=directory) as (_, at),
                running_governed(directory, at["url"]) as edge,
                running_consumer(directory) as reader,
            ):
                seen = asyncio.run(measure(edge, reader, rate, seconds))
    except (Failed, RuntimeError, aiohttp.ClientError, TimeoutError) as fault:
        console.print(f"void: {fault}", style="red", markup=False)
        return 1
    p99_s = show(console, seen, rate)
    console.print(f"Target, p99 of {TARGET_S:.0f} s: {'met' if p99_s <= TARGET_S else 'missed'}.")
    return 0 if p99_s <= TARGET_S else 1


if __name__ == "__main__":
    sys.exit(main())
