"""A soak: clients of both eras, half of which vanish, over two edges on Valkey and Kafka; then everything must be back.

  make soak                                             20,000 calls over 200 sessions
  python -m tests.soak.run --calls 2000 --sessions 40 --seed 7 --plot memory.svg

Before servers of both eras over HTTP and one with a process for each principal. Idle times are short, so that expiry
can be waited for. It ends with 1 where something did not come back to the start within its bound, or the books do not
balance: each call that a server saw was recorded before, once, and each record that permits a call has an end.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from bench.processes import listening
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tests.parts.asking import exchange
from tests.parts.books import nonce_of
from tests.parts.cluster import Cluster, running_cluster
from tests.parts.edge import Speaker
from tests.parts.federation import bundle, own_server
from tests.parts.kafka import running_kafka
from tests.parts.processes import PartMissing
from tests.parts.strays import Store
from tests.parts.valkey import running_valkey
from tests.soak.clients import Life, Tally
from tests.soak.holdings import Held, excess, held_now, plotted, table

from tidegate.events import CallCompleted, CallRequested

CALLS: Final = 20_000
SESSIONS: Final = 200
PRINCIPALS: Final = 12
AT_ONCE: Final = 16
IDLE_S: Final = 5.0
RETURN_DEADLINE_S: Final = 60.0
SIZES: Final = frozenset({"memory_mib", "descriptors", "threads", "valkey_connections"})
"""What finds its size in the first calls: pools, caches, threads."""
LIMITS: Final = {
    "session_idle_s": IDLE_S,
    "session_window_s": IDLE_S,
    "upstream_session_idle_s": IDLE_S,
    "stream_kept_s": IDLE_S,
    "paused_s": IDLE_S,
}


@dataclass
class Stage:
    """The parts that are soaked."""

    cluster: Cluster
    store: Store
    servers: dict[str, str]  # name → the URL where it tells its books
    processes: Path

    def books(self) -> list[dict[str, Any]]:
        found = []
        for url in self.servers.values():
            status, body = exchange("GET", url, {"x-books": "1"})
            assert status == 200, f"{url} does not tell its books"
            found.append(msgspec.json.decode(body))
        return found

    def held(self, began_s: float) -> Held:
        return held_now(self.cluster, self.store, self.books(), began_s)

    def seen(self) -> Counter[str]:
        """Every nonce that reached a server, by its own account."""
        found = Counter(nonce for books in self.books() for nonce, _ in books["came"])
        file = self.processes / "heard"
        for line in file.read_bytes().splitlines() if file.exists() else ():
            message = msgspec.json.decode(line)
            if message.get("method") == "tools/call":
                found[message["params"]["arguments"]["nonce"]] += 1
        return found


@dataclass
class Outcome:
    """Of a whole soak."""

    start: Held
    end: Held
    samples: list[Held]
    loaded: tuple[float, float]
    tally: Tally
    unbalanced: list[str] = field(default_factory=list)
    returned_s: float = 0.0

    @property
    def faults(self) -> list[str]:
        """Everything that makes it fail, as sentences."""
        grown = [f"{name} grew by {by:g}" for name, by in excess(self.start, self.end).items()]
        return [*grown, *self.unbalanced, *self.tally.wrong[:20]]


@contextlib.contextmanager
def stage(directory: Path, bootstrap: str, sessions: str) -> Iterator[Stage]:
    """Ready on entry, gone on exit."""
    with contextlib.ExitStack() as stack:
        urls = {}
        for name, era in (("old", "sessions"), ("new", "modern")):
            own = directory / name
            own.mkdir(parents=True)
            _, told = stack.enter_context(listening("tests.parts.restless", era, directory=own))
            urls[name] = str(told["url"])
        servers = {name: {"url": url, "timeout_s": 2 * IDLE_S} for name, url in urls.items()}
        processes = directory / "own"
        store = stack.enter_context(contextlib.closing(Store(sessions)))
        cluster = stack.enter_context(
            running_cluster(
                directory / "cluster",
                bootstrap,
                servers={**servers, "own": own_server(processes, idle_s=IDLE_S / 2)},
                bundle=bundle(),
                sessions=sessions,
                limits=LIMITS,
            )
        )
        yield Stage(cluster, store, urls, processes)


class Soak:
    """One run over a stage."""

    def __init__(self, parts: Stage, calls: int, sessions: int, seed: int) -> None:
        self.parts = parts
        self.tally = Tally()
        self.samples: list[Held] = []
        self._calls = calls
        self._sessions = sessions
        self._order = random.Random(seed)
        self._began_s = time.monotonic()
        self._tokens = [parts.cluster.token(f"soak{n}@example.com", agent=f"agent{n}") for n in range(PRINCIPALS)]
        self._listens = [urlsplit(edge.base).netloc for edge in parts.cluster.edges]

    async def run(self) -> Outcome:
        """Warm up and let it all end: that is the start. Then the load, and let it all end again."""
        ready = await self._sample()
        await self._crowd("warm", max(self._sessions // 8, 2 * PRINCIPALS), max(self._calls // 10, 4 * PRINCIPALS))
        start, _ = await self._returned(ready, SIZES)
        begun_s = time.monotonic() - self._began_s
        async with self._sampling():
            await self._crowd("load", self._sessions, self._calls)
            ended_s = time.monotonic() - self._began_s
            end, took_s = await self._returned(start, {"memory_mib"})
        outcome = Outcome(start, end, self.samples, (begun_s, ended_s), self.tally, returned_s=took_s)
        outcome.unbalanced = await asyncio.to_thread(unbalanced, self.parts, self.tally)
        return outcome

    async def _crowd(self, name: str, sessions: int, calls: int) -> None:
        """So many lives, some at once; every second one is modern, and half of each era vanish."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            modern, vanishes = number % 2 == 0, number // 2 % 2 == 0
            token = self._tokens[number % PRINCIPALS]
            speakers = [Speaker(listen, token) for listen in self._listens]
            order = random.Random(self._order.getrandbits(64))
            life = Life(f"{name} {number}", speakers, modern=modern, order=order, tally=self.tally)
            async with turns:
                await life.live(calls // sessions + (number < calls % sessions), vanishes=vanishes)

        async with asyncio.TaskGroup() as lives:
            for number in range(sessions):
                lives.create_task(one(number), name=f"{name} {number}")

    async def _returned(self, start: Held, but: Set[str]) -> tuple[Held, float]:
        """What is held once nothing, `but` these, exceeds the start's bounds; at the deadline, what is held then."""
        began_s = time.monotonic()
        while True:
            now = await self._sample()
            took_s = time.monotonic() - began_s
            if not excess(start, now).keys() - but or took_s > RETURN_DEADLINE_S:
                return now, took_s
            await asyncio.sleep(0.5)

    async def _sample(self) -> Held:
        found = await asyncio.to_thread(self.parts.held, self._began_s)
        self.samples.append(found)
        return found

    @contextlib.asynccontextmanager
    async def _sampling(self) -> AsyncIterator[None]:
        async def sample() -> None:
            while True:
                await self._sample()
                await asyncio.sleep(1.0)

        sampling = asyncio.create_task(sample(), name="sample")
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)


def unbalanced(parts: Stage, tally: Tally) -> list[str]:
    """Where what servers saw, what was recorded and what clients know do not agree, as sentences."""
    parts.cluster.wait_shipped()
    seen = parts.seen()
    events = parts.cluster.events("calls")
    asked: dict[str, list[CallRequested]] = {}
    for one in events:
        if isinstance(one, CallRequested) and one.decision == "allow" and one.method == "tools/call":
            asked.setdefault(nonce_of(one), []).append(one)
    ended = {one.call_id: one.outcome for one in events if isinstance(one, CallCompleted)}
    faults = [f"{nonce}: a server saw it {times} times" for nonce, times in seen.items() if times != 1]
    faults += [f"{nonce}: a server saw it, and no record permits it" for nonce in seen.keys() - asked.keys()]
    for nonce, records in asked.items():
        outcomes = [ended.get(record.call_id, "unknown") for record in records]
        if len({record.root_call_id for record in records}) != 1:  # a further round is a record of its own
            faults.append(f"{nonce}: {len(records)} calls were permitted")
        if "unknown" in outcomes:
            faults.append(f"{nonce}: its record has no end")
        if nonce not in seen and set(outcomes) != {"cancelled"}:
            faults.append(f"{nonce}: permitted, ended as {outcomes}, and no server saw it")
    faults += [f"{nonce}: answered, and not recorded" for nonce in tally.answered - asked.keys()]
    return faults


def report(outcome: Outcome, console: Console) -> None:
    """The table, and what does not hold."""
    shown = Table("held", "start", "most", "end", "bound", "", title="Before and after")
    for what, first, most, last, bound, holds in table(outcome.start, outcome.samples, outcome.end):
        shown.add_row(what, first, most, last, bound, "[green]holds[/]" if holds else "[red]does not hold[/]")
    console.print(shown)
    tally = outcome.tally
    seconds = outcome.loaded[1] - outcome.loaded[0]
    console.print(
        f"{tally.calls} calls, {len(tally.left)} of them left unanswered by clients that vanished; the load took "
        f"{seconds:.0f} s, and what came back was back {outcome.returned_s:.0f} s later."
    )
    console.print("Ends:", ", ".join(f"{how}: {count}" for how, count in sorted(tally.ends.items())))
    console.print("Books: " + ("[red]do not balance[/]" if outcome.unbalanced else "balance"))
    for fault in outcome.faults[:40]:
        console.print(f"[red]{fault}[/]", highlight=False)


async def soak(parts: Stage, calls: int, sessions: int, seed: int, console: Console) -> Outcome:
    """A whole run, with progress on the console."""
    running = Soak(parts, calls, sessions, seed)
    total = calls + max(calls // 10, 4 * PRINCIPALS)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("calls", total=total)
        task = asyncio.create_task(running.run(), name="soak")
        while not task.done():
            await asyncio.wait([task], timeout=0.5)
            progress.update(bar, completed=running.tally.calls)
        return task.result()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="write memory over time to this SVG file")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tidegate-soak-", ignore_cleanup_errors=True) as directory,
            running_kafka() as kafka,
            running_valkey() as sessions,
            stage(Path(directory), kafka.bootstrap, sessions) as parts,
        ):
            outcome = asyncio.run(soak(parts, options.calls, options.sessions, options.seed, console))
    except PartMissing as missing:
        print(missing, file=sys.stderr)
        return 2
    report(outcome, console)
    if options.plot:
        options.plot.write_text(plotted(outcome.samples, outcome.loaded))
        console.print(f"wrote {options.plot}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
