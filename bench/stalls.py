"""For how long large bodies hold an edge: `python -m bench.stalls`. About 6 minutes.

One edge with real Kafka, all built-in patterns, fingerprints, an argument rule and a limit that counts records. One
caller sends large arguments or has large results sent to it, one kind after the other; beside it one caller makes
small calls in a closed loop. For each kind: the longest time for which the edge's event loop was held in a call, by
the CPU clock of its thread (median and most over the calls) and by the wall clock; what was at work then; how long the
large call took, and p99 of the small caller. The wall clock counts what other processes take of the cores, too.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import large
from bench.governed import Governed, running_governed
from bench.measure import Failed, load
from bench.processes import listening
from bench.systems import System
from bench.watched import Stood

BYTES: Final = 4 * 1024 * 1024 - 65_536
CALLS: Final = 2
SECONDS: Final = 3.0
TARGET_MS: Final = 50
CALL_S: Final = 60.0
QUIET: Final = "nothing large"
BUNDLE: Final = {
    "manifest.json": '{"v":1,"name":"stalls"}',
    "inspection.yaml": "packs: [secrets, personal-data, injection]\noverrides: {email: {result: mask}}\n",
    "limits.yaml": (
        "v: 1\nlimits:\n  - {id: records, per: [user], daily: {records: 1000000}}\nrecords: {up/fetch: 'data[]'}\n"
    ),
    "policies/all.cedar": """
@id("all") permit (principal, action, resource);
@id("paths") forbid (principal, action, resource) when { context.args has path && context.args.path like "/etc/*" };
""",
}
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
}


class Case(msgspec.Struct, frozen=True):
    """One kind of large body; where it is a result, the file's name that the upstream answers with."""

    kind: str
    body: bytes
    tool: str


class Seen(msgspec.Struct):
    """Of one case, over its calls."""

    kind: str
    held_ms: list[float] = []
    stood_ms: list[float] = []
    where: str = ""
    took_ms: list[float] = []
    told: str = ""
    p99_ms: float = 0.0


class Edge:
    """The edge under test, and its watch."""

    def __init__(self, governed: Governed, watch: Path) -> None:
        self.governed = governed
        self._watch = watch
        self._turn = 0

    async def stood(self) -> Stood:
        """Since the last time."""
        self._turn += 1
        os.kill(self.governed.pid, signal.SIGUSR1)
        async with asyncio.timeout(CALL_S):
            while (told := self._read()) is None or told.turn < self._turn:
                await asyncio.sleep(0.005)
        return told

    def _read(self) -> Stood | None:
        try:
            return msgspec.json.decode(self._watch.read_bytes(), type=Stood)
        except FileNotFoundError:
            return None


@contextmanager
def running(directory: Path, results: Path) -> Iterator[Edge]:
    watch = directory / "watch.json"
    bundle = directory / "bundle"
    for name, text in BUNDLE.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(text)

    def watched(arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "bench.watched", str(watch), *arguments]

    with ExitStack() as stack:
        options = ("--seen-max", "1000", "--results", str(results))
        _, at = stack.enter_context(listening("bench.upstream", *options, directory=directory))
        servers = {"up": {"url": at["url"], "labels": ["egress", "sensitive"]}}
        settings = {"servers": servers, "taint_labels": []}
        edge = running_governed(directory, at["url"], edge_command=watched, bundle=bundle, settings=settings)
        yield Edge(stack.enter_context(edge), watch)


def cases(size: int, results: Path) -> Iterator[Case]:
    """The kinds, as arguments and as results; results are put where the upstream finds them."""
    for kind, make in large.values(size).items():
        value = make()
        yield Case(f"{kind}, sent", _body("note", b'{"text":"x","data":%b}' % value), "note")
        is_text = value[:1] == b'"'
        in_text, in_data = b'{"content":[{"type":"text","text":%b}]}', b'{"content":[],"structuredContent":{"data":%b}}'
        result = in_text if is_text else in_data
        yield _answered(f"{kind}, answered", result % value, results)
    yield _answered("content blocks, answered", large.blocks(size), results)


def _answered(kind: str, result: bytes, results: Path) -> Case:
    name = "".join(one if one.isalnum() else "-" for one in kind)
    (results / name).write_bytes(result)
    return Case(kind, _body("fetch", b'{"text":"x","path":"%b"}' % name.encode()), "fetch")


def _body(tool: str, arguments: bytes) -> bytes:
    meta = msgspec.json.encode(_META)
    params = b'{"name":"up__%b","arguments":%b,"_meta":%b}' % (tool.encode(), arguments, meta)
    return b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":%b}' % params


async def measured(edge: Edge, case: Case | None, calls: int, seconds: float) -> Seen:
    """A load of small calls for `seconds`, or as long as it takes, and the large calls meanwhile."""
    governed = edge.governed
    system = System("tidegate", governed.url, "up__echo", governed.pid, governed.token_file)
    seen = Seen(case.kind if case else QUIET)
    small = asyncio.create_task(asyncio.to_thread(load, system, 1, seconds))
    await asyncio.sleep(0.5)  # it has begun
    async with aiohttp.ClientSession() as session:
        for _ in range(calls):
            await edge.stood()
            if case is None:
                await asyncio.sleep(seconds / (calls + 1))
            else:
                await _call(session, governed, case, seen)
            stood = await edge.stood()
            if not seen.held_ms or stood.held_ms > max(seen.held_ms):
                seen.where = stood.where
            seen.held_ms.append(stood.held_ms)
            seen.stood_ms.append(stood.stood_ms)
            if case is not None and small.done():
                break
    seen.p99_ms = (await small).p99_ms
    return seen


async def _call(session: aiohttp.ClientSession, governed: Governed, case: Case, seen: Seen) -> None:
    headers = {
        "Authorization": f"Bearer {governed.token_file.read_text().strip()}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": f"up__{case.tool}",
    }
    began_s = time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=CALL_S)
    async with session.post(governed.url, data=case.body, headers=headers, timeout=timeout) as answer:
        told = await answer.read()
    seen.took_ms.append((time.perf_counter() - began_s) * 1e3)
    seen.told = _told(answer.status, told)


def _told(status: int, body: bytes) -> str:
    """What became of the large call, in a few words."""
    if status == 200 and b'"error"' not in body[:200] and b'"isError":true' not in body[-400:]:
        return "ok"
    found: Any = msgspec.json.decode(body) if len(body) < 10_000 else {}
    message = found.get("error", {}).get("message") or "tool error"
    return f"{status}: {message[:60]}"


def shown(found: Sequence[Seen]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "held ms", "most", "stood ms", "large call ms", "small p99 ms", "told", "at work"):
        table.add_column(name, justify="left" if name in ("", "told", "at work") else "right")
    for one in found:
        took = f"{median(one.took_ms):,.0f}" if one.took_ms else ""
        held = (f"{median(one.held_ms):.1f}", f"{max(one.held_ms):.1f}", f"{median(one.stood_ms):.1f}")
        table.add_row(one.kind, *held, took, f"{one.p99_ms:.1f}", one.told, one.where)
    return table


async def run(edge: Edge, results: Path, options: argparse.Namespace) -> list[Seen]:
    found = [await measured(edge, None, options.calls, options.seconds)]
    for case in cases(options.bytes, results):
        if options.only not in case.kind:
            continue
        try:
            found.append(await measured(edge, case, options.calls, options.seconds))
        except (Failed, TimeoutError) as fault:
            found.append(Seen(case.kind, [float("nan")], [float("nan")], told=f"{type(fault).__name__}: {fault}"[:80]))
        one = found[-1]
        print(f"{one.kind}: {max(one.held_ms):.1f} ms, {one.told}, {one.where}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=BYTES, help="of each large value (default: just below 4 MiB)")
    parser.add_argument("--calls", type=int, default=CALLS, help="large calls of each kind, at most")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of small calls, for each kind")
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-stalls-") as name:
        results = Path(name) / "results"
        results.mkdir()
        with running(Path(name), results) as edge:
            found = asyncio.run(run(edge, results, options))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(shown(found))
    late = [one.kind for one in found[1:] if median(one.held_ms) > TARGET_MS]
    console.print(
        f"over {TARGET_MS} ms: {', '.join(late) or 'none'}; with nothing large {max(found[0].held_ms):.1f} ms"
    )


if __name__ == "__main__":
    main()
