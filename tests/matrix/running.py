"""Runs the matrix: the servers, the clients, and every exercise in every cell, side by side.

`python -m tests.matrix.running [direct|door|shared] [feature words]` prints what fails.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tests.matrix.cells import CLIENTS, SERVERS, Cell, Client, Seen, Server
from tests.matrix.driving import ROOT, SDKS, Process, RpcFailed, Sdk, StepFailed, driven
from tests.matrix.features import FEATURES, RULES, Feature
from tests.parts import sdk130

Way = Literal["direct", "door", "shared"]
WAYS: Final[tuple[Way, ...]] = ("direct", "door", "shared")
"""At the server itself; through the gateway at /mcp/{server}; at /mcp, where all servers' names have prefixes."""
CELLS_AT_ONCE: Final = 4
EXERCISES_AT_ONCE: Final = 16
"""More of either takes no less time on two cores, and makes each exercise slow."""
EXERCISE_DEADLINE_S: Final = 45.0
Words = Literal["works", "translated", "refused", "failed"]


@dataclass(frozen=True)
class Result:
    """`why` is the rule's key where refused, what happened where failed."""

    words: Words
    why: str = ""


Results = dict[tuple[str, Server, str], Result]
"""By client, server and the feature's title."""


@dataclass(frozen=True)
class Place:
    """A running server."""

    url: str
    seen: Seen


@contextlib.asynccontextmanager
async def running_server(server: Server, directory: Path) -> AsyncIterator[Place]:
    """Ended on exit."""
    book = directory / f"{server}.jsonl"
    if server in ("legacy", "resumable"):
        more = ["--resumable"] if server == "resumable" else []
        command = [str(await asyncio.to_thread(sdk130.python)), "-m", "tests.matrix.legacy_server", str(book), *more]
    else:
        more = ["--modern-only"] if server == "modern" else []
        command = [sys.executable, "-m", "tests.matrix.modern_server", str(book), *more]
    with (directory / f"{server}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line, (directory / f"{server}.log").read_text()
        yield Place(json.loads(line)["url"], Seen(book))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


def is_met(way: Way, client: Client, server: Server) -> bool:
    """Directly, only where both speak the same era."""
    return way != "direct" or server == "dual" or client.modern is (server == "modern")


async def _exercise(cell: Cell, feature: Feature) -> Result:
    try:
        refused = await asyncio.wait_for(feature.exercise(cell), EXERCISE_DEADLINE_S)
    except (AssertionError, RpcFailed, StepFailed, TimeoutError, KeyError, IndexError, TypeError, ValueError) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/exercises/" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return Result("failed", f"{type(error).__name__} at {where}: {str(error)[:600]}")
    if refused is not None:
        assert refused in RULES
        return Result("refused", refused)
    return Result("translated" if cell.is_translated else "works")


async def run_cell(cell: Cell, features: tuple[Feature, ...]) -> dict[str, Result]:
    """All features, side by side."""
    await cell.learn()
    if cell.client.modern:
        changes = {"toolsListChanged": True, "promptsListChanged": True, "resourcesListChanged": True}
        await cell.full.do("listen", filter=changes)
    places = asyncio.Semaphore(EXERCISES_AT_ONCE)

    async def exercise(feature: Feature) -> Result:
        async with places:
            return await _exercise(cell, feature)

    found = await asyncio.gather(*(exercise(feature) for feature in features))
    return {feature.title: result for feature, result in zip(features, found, strict=True)}


@dataclass
class Matrix:
    """What runs for it: servers, clients, and where they are met."""

    servers: Mapping[Server, Place]
    clients: Mapping[Sdk, Process]
    urls: Mapping[tuple[Way, Server], str]
    token: str

    async def cell(self, way: Way, client: Client, server: Server, features: tuple[Feature, ...]) -> dict[str, Result]:
        process = self.clients[client.sdk]
        name = f"{way}-{client.key}-{server}"
        url = self.urls[way, server]
        token = "" if way == "direct" else self.token
        try:
            async with (
                process.connection(f"{name}-full", url, token, mode=client.mode) as full,
                process.connection(f"{name}-bare", url, token, mode=client.mode, capable=False) as bare,
            ):
                prefix = f"{server}__" if way == "shared" else ""
                cell = Cell(client, server, full, bare, self.servers[server].seen, prefix)
                return await run_cell(cell, features)
        except (AssertionError, RpcFailed, StepFailed, TimeoutError) as error:
            why = f"the cell itself: {type(error).__name__} {str(error)[:600]}"
            return {feature.title: Result("failed", why) for feature in features}

    async def _again(
        self, way: Way, client: Client, server: Server, features: tuple[Feature, ...], results: dict[str, Result]
    ) -> dict[str, Result]:
        """What failed among everything at once is tried once more by itself: SDK servers starve on a busy machine, and
        an update in the moment after a subscription may be missed.
        """
        failed = tuple(feature for feature in features if results[feature.title].words == "failed")
        return await self.cell(way, client, server, failed) if failed else {}

    async def run(self, way: Way, features: tuple[Feature, ...] = FEATURES) -> Results:
        """Every cell that this way has; a client's cells one after the other."""
        places = asyncio.Semaphore(CELLS_AT_ONCE)

        async def column(client: Client) -> Results:
            found: Results = {}
            for server in SERVERS:
                if not is_met(way, client, server):
                    continue
                async with places:
                    results = await self.cell(way, client, server, features)
                    results |= await self._again(way, client, server, features, results)
                found |= {(client.key, server, title): result for title, result in results.items()}
            return found

        columns = await asyncio.gather(*(column(client) for client in CLIENTS))
        return {key: result for found in columns for key, result in found.items()}


@contextlib.asynccontextmanager
async def running_matrix(directory: Path, ways: tuple[Way, ...] = WAYS) -> AsyncIterator[Matrix]:
    """Everything that the ways need runs on entry, and has ended on exit."""
    async with contextlib.AsyncExitStack() as stack:
        entered = asyncio.gather(
            asyncio.gather(*(stack.enter_async_context(running_server(server, directory)) for server in SERVERS)),
            asyncio.gather(*(stack.enter_async_context(driven(sdk)) for sdk in SDKS)),
        )
        started, driving = await entered
        places, clients = dict(zip(SERVERS, started, strict=True)), dict(zip(SDKS, driving, strict=True))
        urls: dict[tuple[Way, Server], str] = {("direct", server): place.url for server, place in places.items()}
        token = ""
        if ways != ("direct",):
            from tests.parts.edge import edge_process

            root = directory / "edge"
            root.mkdir()
            configured: dict[str, Any] = {server: {"url": place.url} for server, place in places.items()}
            edge = await stack.enter_async_context(edge_process(root, configured))
            for server in SERVERS:
                urls["door", server] = f"http://{edge.place.listen}/mcp/{server}"
                urls["shared", server] = f"http://{edge.place.listen}/mcp"
            token = edge.place.token()
        yield Matrix(places, clients, urls, token)


async def _main(ways: tuple[Way, ...], words: list[str]) -> None:
    features = tuple(one for one in FEATURES if not words or any(word in one.title for word in words))
    with tempfile.TemporaryDirectory(prefix="matrix-") as directory:
        async with running_matrix(Path(directory), ways) as matrix:
            for way in ways:
                start = time.monotonic()
                results = await matrix.run(way, features)
                failed = {key: result for key, result in results.items() if result.words == "failed"}
                for (client, server, title), result in failed.items():
                    print(f"{way} | {client} → {server} | {title}: {result.why}")
                print(f"{way}: {len(results) - len(failed)} of {len(results)} in {time.monotonic() - start:.1f} s")
        log = Path(directory) / "edge" / "edge.log"
        if log.exists():
            print(log.read_text()[-3000:])


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        sys.exit(f"usage: python -m tests.matrix.running [{' | '.join(WAYS)}] [words of features]; default: everything")
    chosen = tuple(way for way in WAYS if way in sys.argv[1:]) or WAYS
    asyncio.run(_main(chosen, [word for word in sys.argv[1:] if word not in WAYS]))
