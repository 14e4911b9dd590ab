"""Drives an SDK client in a process of its own, one step at a time: `with sdk_client("auto", url, token) as client`.

Counterparts: sdk23_client.py, sdk130_client.py.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from tests.parts import sdk130
from tests.parts.processes import stop

Kind = Literal["auto", "legacy", "1.30"]
KINDS: Final[tuple[Kind, ...]] = ("auto", "legacy", "1.30")
STEP_DEADLINE_S: Final = 30.0
_HERE: Final = Path(__file__).parent


class Failed(AssertionError):
    """The step ended in a JSON-RPC error, as the SDK raised it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class SdkClient:
    """A running client. Steps: see the scripts."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.about: dict[str, str] = {}  # protocol, server, session

    def do(self, step: str, *arguments: object) -> Any:
        """Carry out one step; its result. Raises Failed."""
        self.say([step, *arguments])
        told = self._hear()
        if "error" in told:
            raise Failed(told["error"]["code"], told["error"]["message"])
        return told["ok"]

    def call(self, tool: str, **arguments: object) -> dict[str, Any]:
        """A CallToolResult as JSON."""
        return dict(self.do("call", tool, arguments))

    def say(self, line: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        """The next line of JSON. One line is outstanding at a time, so a buffer never hides a second one."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:  # `select` takes no descriptor above 1,023
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(STEP_DEADLINE_S)
        line = self._process.stdout.readline() if ready else b""
        assert line, f"the client said nothing within {STEP_DEADLINE_S:.0f} s, status {self._process.poll()}"
        return dict(json.loads(line))


@contextlib.contextmanager
def sdk_client(kind: Kind, url: str, token: str, elicits: dict[str, Any] | None = None) -> Iterator[SdkClient]:
    """Connected on entry, closed by the SDK's own rules on exit (it ends its session). `elicits` is how it answers
    forms; without it, it cannot be asked.
    """
    if kind == "1.30":
        command = [str(sdk130.python()), str(_HERE / "sdk130_client.py")]
    else:
        command = [sys.executable, str(_HERE / "sdk23_client.py"), kind]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    client = SdkClient(process)
    try:
        client.say({"url": url, "token": token, "elicits": elicits})
        client.about = client.do("about")
        yield client
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 0, "the client did not end well"
    finally:
        stop(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
