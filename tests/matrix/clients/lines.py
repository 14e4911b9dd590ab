"""The common half of the Python clients: steps come on stdin as lines of JSON, each carried out in a task of its own;
outcomes and everything heard in between go to stdout.

A step: {"id", "on": connection, "do", "args"}. An outcome: {"id", "ok" | "error" | "failed"}. What is heard:
{"on", "heard": method, "params", "by": step}. Imports no SDK: py130.py and py23.py do. Counterpart: ../driving.py.
"""

import asyncio
import functools
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Wire = dict[str, Any]
Hear = Callable[[str, Any, int], None]
LINE_BYTES_MAX = 1 << 24


class RpcFailed(Exception):
    """The step ended in a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any) -> None:
        super().__init__(code, message)
        self.told = {"code": code, "message": message, "data": data}


class Connection(Protocol):
    """A connection of an SDK; further methods are the steps."""

    async def run(self, ready: "asyncio.Future[Wire]", ended: asyncio.Event) -> None:
        """Connect, tell `ready` about it, stay until `ended`."""
        ...


Opening = Callable[[Wire, Hear], Connection]


class Lines:
    """The connections of this process."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._connections: dict[str, Connection] = {}
        self._held: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self._steps: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            step = json.loads(line)
            task = asyncio.create_task(self._carry_out(step), name=f"step {step['id']}")
            self._steps[step["id"]] = task
            task.add_done_callback(functools.partial(self._forget, step["id"]))
        for on in list(self._held):
            await self._close(on)

    def _forget(self, number: int, _: object) -> None:
        self._steps.pop(number, None)

    async def _carry_out(self, step: Wire) -> None:
        told: Wire
        try:
            told = {"ok": await self._step(step)}
        except RpcFailed as failed:
            told = {"error": failed.told}
        except asyncio.CancelledError:
            told = {"failed": "cancelled"}
        except Exception as error:
            told = {"failed": f"{type(error).__name__}: {error}"}
        self._say({"id": step["id"], **told})

    async def _step(self, step: Wire) -> Any:
        match step["do"]:
            case "open":
                return await self._open(step["on"], step["args"])
            case "close":
                return await self._close(step["on"])
            case "cancel":
                return self._steps[step["args"]["step"]].cancel()
            case do:
                carry_out: Callable[..., Awaitable[Any]] = getattr(self._connections[step["on"]], do)
                return await carry_out(step["id"], **step["args"])

    async def _open(self, on: str, args: Wire) -> Wire:
        def hear(method: str, params: Any, by: int = 0) -> None:
            self._say({"on": on, "heard": method, "params": params, "by": by})

        connection = self._opening(args, hear)
        ready: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        ended = asyncio.Event()
        task = asyncio.create_task(connection.run(ready, ended), name=on)
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await task  # raises why
        self._connections[on] = connection
        self._held[on] = (ended, task)
        return ready.result()

    async def _close(self, on: str) -> None:
        ended, task = self._held.pop(on)
        ended.set()
        await task

    def _say(self, told: Wire) -> None:
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def answer(method: str, params: Wire) -> Wire:
    """What a user, a model or a file system says. It depends on the question, so that a mix-up shows."""
    if method == "roots/list":
        return {"roots": [{"uri": "file:///matrix", "name": "matrix"}]}
    if method == "sampling/createMessage":
        said = params["messages"][-1]["content"]
        text = (said[0] if isinstance(said, list) else said)["text"]
        return {"role": "assistant", "model": "matrix-model", "content": {"type": "text", "text": f"on {text}"}}
    if params.get("mode") == "url":
        return {"action": "accept"}
    topic = params["message"].rpartition(", ")[2]
    if topic in ("decline", "cancel"):
        return {"action": topic}
    return {"action": "accept", "content": {"name": f"{topic}!"}}


def serve(opening: Opening) -> None:
    asyncio.run(Lines(opening).serve())
