"""What tests say to a stdio upstream, and what they hear from it. Counterpart: `stdio_servers.py`."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidegate_edge.upstream.port import ACKNOWLEDGED, Answer, Caller, Outgoing, Paused
from tidegate_edge.upstream.stdio_child import Command
from tidegate_edge.upstream.stdio_handshake import own_meta
from tidegate_edge.upstream.stdio_kept import Plan

ROOT = Path(__file__).resolve().parents[2]
ABLE = b'{"elicitation":{"form":{}},"sampling":{}}'
ANNA = Caller("acme", "anna", "cli", capabilities=ABLE)
BERT = Caller("acme", "bert", "cli", capabilities=ABLE)


async def until(fact: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait for a fact."""
    async with asyncio.timeout(deadline_s):
        while not fact():
            await asyncio.sleep(0.005)


def heard(directory: Path) -> str:
    """Every line that servers there have read."""
    path = directory / "heard"
    return path.read_text() if path.exists() else ""


class Heard:
    """A client's side that keeps what it hears."""

    def __init__(self, *, pausable: bool = False, answer: Answer | None = None) -> None:
        self.pausable = pausable
        self.notes: list[tuple[str, Any]] = []
        self.questions: list[tuple[str, Any]] = []
        self.began = 0  # how often a listening has begun
        self.answer = answer or Answer(result=b'{"action":"accept","content":{}}')

    def notified(self, method: str, params: bytes) -> None:
        if method == ACKNOWLEDGED:
            self.began += 1
        else:
            self.notes.append((method, json.loads(params)))

    async def asked(self, method: str, params: bytes) -> Answer:
        self.questions.append((method, json.loads(params)))
        return self.answer

    def rested(self, retry_ms: int) -> None: ...


def plan(directory: Path, kind: str = "talker", *words: str, **more: Any) -> Plan:
    command = Command((sys.executable, "-m", "tests.parts.stdio_servers", kind, str(directory), *words), {}, str(ROOT))
    given: dict[str, Any] = {"era": "auto", "shared": True, "idle_s": 0.0, "edge": "here", "paused_s": 30.0, **more}
    return Plan("up", command, **given)


def call(
    tool: str, caller: Caller = ANNA, *, modern: bool = False, timeout_s: float = 10.0, **arguments: Any
) -> Outgoing:
    token = arguments.pop("token", "")
    meta = {**(own_meta() if modern else {}), **({"progressToken": token} if token else {})}
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    return Outgoing("tools/call", json.dumps(params).encode(), caller, modern, timeout_s, progress_token=token)


def text(answer: Answer | Paused) -> Any:
    assert isinstance(answer, Answer), answer
    assert not answer.error, answer.error
    return json.loads(json.loads(answer.result)["content"][0]["text"])
