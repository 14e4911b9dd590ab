"""Drives the official clients: `async with driven("ts2") as process`, then `process.connection(...)`.

Counterparts: clients/lines.py and tests/parts/clients/ts_lines.mjs, which carry the steps out.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from tests.parts import node, sdk130

Wire = dict[str, Any]
Sdk = Literal["py130", "py23", "ts1", "ts2"]
SDKS: Final[tuple[Sdk, ...]] = ("py130", "py23", "ts1", "ts2")
STEP_DEADLINE_S: Final = 20.0
HEARD_DEADLINE_S: Final = 10.0
LINE_BYTES_MAX: Final = 1 << 24
ROOT: Final = Path(__file__).resolve().parents[2]
_SCRIPTS: Final = ROOT / "tests" / "parts" / "clients"


class RpcFailed(Exception):
    """The step ended in a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any) -> None:
        super().__init__(f"{code} {message} {'' if data is None else data}")
        self.code = code
        self.message = message
        self.data = data


class StepFailed(Exception):
    """The step ended in the SDK itself: it refused, or could not read what came."""


@dataclass
class Heard:
    """A notification, a question, or progress (`method` is "progress" and `by` the step that it belongs to)."""

    method: str
    params: Any
    by: int


@dataclass
class Running:
    """A step under way."""

    number: int
    outcome: "asyncio.Future[Wire]"

    async def result(self, deadline_s: float = STEP_DEADLINE_S) -> Any:
        """Raises RpcFailed, StepFailed."""
        told = await asyncio.wait_for(asyncio.shield(self.outcome), deadline_s)
        if "error" in told:
            raise RpcFailed(told["error"]["code"], told["error"]["message"], told["error"].get("data"))
        if "failed" in told:
            raise StepFailed(told["failed"])
        return told["ok"]


class Process:
    """A client's process, which holds many connections."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._running: dict[int, asyncio.Future[Wire]] = {}
        self._connections: dict[str, Connection] = {}

    def say(self, on: str, do: str, args: Wire) -> Running:
        assert self._process.stdin is not None
        number = next(self._numbers)
        outcome = asyncio.get_running_loop().create_future()
        self._running[number] = outcome
        line = json.dumps({"id": number, "on": on, "do": do, "args": args})
        self._process.stdin.write(line.encode() + b"\n")
        return Running(number, outcome)

    async def read(self) -> None:
        """Until the client ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "heard" in told:
                if told["on"] in self._connections:
                    self._connections[told["on"]].hear(Heard(told["heard"], told["params"], told["by"]))
            else:
                self._running.pop(told["id"]).set_result(told)
        for outcome in self._running.values():
            outcome.set_result({"failed": "the client has ended"})
        self._running.clear()

    @contextlib.asynccontextmanager
    async def connection(
        self, name: str, url: str, token: str, *, mode: str = "auto", capable: bool = True
    ) -> AsyncIterator["Connection"]:
        """Connected on entry, closed by the SDK's own rules on exit."""
        connection = Connection(self, name)
        self._connections[name] = connection
        args = {"url": url, "token": token, "mode": mode, "capable": capable}
        connection.about = await self.say(name, "open", args).result()
        try:
            yield connection
        finally:
            with contextlib.suppress(RpcFailed, StepFailed, TimeoutError):
                await self.say(name, "close", {}).result()
            self._connections.pop(name)


@dataclass
class Connection:
    """A connection of a client. What it hears is kept in order."""

    _process: Process
    name: str
    about: Wire = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, heard: Heard) -> None:
        self.heard.append(heard)
        self._news.set()

    def start(self, step: str, **args: Any) -> Running:
        return self._process.say(self.name, step, args)

    async def do(self, step: str, **args: Any) -> Any:
        """Raises RpcFailed, StepFailed."""
        return await self.start(step, **args).result()

    def calling(self, name: str, *, meta: Wire | None = None, level: str = "", **arguments: Any) -> Running:
        return self.start("call", name=name, arguments=arguments, meta=meta or {}, level=level)

    async def call(self, name: str, *, meta: Wire | None = None, level: str = "", **arguments: Any) -> Wire:
        """A CallToolResult. Raises RpcFailed, StepFailed."""
        return dict(await self.calling(name, meta=meta, level=level, **arguments).result())

    def cancel(self, running: Running) -> None:
        self._process.say(self.name, "cancel", {"step": running.number})

    async def hears(self, method: str, wanted: Callable[[Any], bool] = lambda _: True, by: int = 0) -> Any:
        """The params of the first such thing heard. Raises AssertionError where it does not come in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARD_DEADLINE_S):
                while True:
                    self._news.clear()
                    for one in self.heard:
                        if one.method == method and one.by == by and wanted(one.params):
                            return one.params
                    await self._news.wait()
        raise AssertionError(f"{method} was not heard; only {sorted({one.method for one in self.heard})}")


def _command(sdk: Sdk) -> list[str]:
    match sdk:
        case "py130":
            return [str(sdk130.python()), "-m", "tests.matrix.clients.py130"]
        case "py23":
            return [sys.executable, "-m", "tests.matrix.clients.py23"]
        case _:
            return [str(node.node()), str(node.beside(_SCRIPTS / f"{sdk}.mjs", _SCRIPTS / "ts_lines.mjs"))]


@contextlib.asynccontextmanager
async def driven(sdk: Sdk) -> AsyncIterator[Process]:
    """A running client; ended on exit."""
    command = await asyncio.to_thread(_command, sdk)
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    started = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdin=pipe,
        stdout=pipe,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
        limit=LINE_BYTES_MAX,
    )
    process = Process(started)
    reading = asyncio.create_task(process.read(), name=f"reading {sdk}")
    try:
        yield process
    finally:
        assert started.stdin is not None
        started.stdin.close()
        try:
            await asyncio.wait_for(started.wait(), 10)
        except TimeoutError:
            started.kill()
            await started.wait()
        await reading
