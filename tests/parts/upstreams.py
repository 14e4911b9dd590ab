"""An upstream adapter on its own, as an edge opens it, and a talk that remembers. Counterpart: `scripted.py`."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidegate.sessions.memory import MemorySessions
from tidegate.sessions.port import SessionStore
from tidegate.settings import Settings
from tidegate_edge.upstream.http import HttpUpstream
from tidegate_edge.upstream.port import ACKNOWLEDGED, Answer, Caller, Outgoing, Paused
from tidegate_edge.wiring import open_http_upstream

ALICE = Caller("acme", "alice", "tests")
ASKABLE = Caller("acme", "alice", "tests", "client-1", b'{"elicitation":{},"roots":{},"sampling":{}}')


@dataclass
class Talking:
    """The client's side: answers what it is asked with `answers`, and remembers all that it is told."""

    pausable: bool = False
    answers: Callable[[str, Any], Answer] = lambda method, params: Answer(result=b'{"action":"accept"}')
    heard: list[tuple[str, Any]] = field(default_factory=list)
    questions: list[tuple[str, Any]] = field(default_factory=list)
    rests: list[int] = field(default_factory=list)
    began: int = 0  # how often a listening has begun

    def notified(self, method: str, params: bytes) -> None:
        if method == ACKNOWLEDGED:
            self.began += 1
        else:
            self.heard.append((method, msgspec.json.decode(params)))

    async def asked(self, method: str, params: bytes) -> Answer:
        self.questions.append((method, msgspec.json.decode(params)))
        return self.answers(method, msgspec.json.decode(params))

    def rested(self, retry_ms: int) -> None:
        self.rests.append(retry_ms)


@contextlib.asynccontextmanager
async def opened(*urls: str, store: SessionStore | None = None, **given: Any) -> AsyncIterator[HttpUpstream]:
    """The adapter for a server at these addresses; it leaves nothing behind, or the block fails."""
    limits = {"connect_timeout_s": 2.0, **given.pop("limits", {})}
    server = {"urls" if len(urls) > 1 else "url": urls if len(urls) > 1 else urls[0], **given}
    settings = msgspec.convert({"servers": {"up": server}, "limits": limits}, Settings)
    sessions: SessionStore = store or MemorySessions(per_subject_max=100)
    upstream = open_http_upstream(settings, "up", sessions, "edge-1")
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.close()
    open_still = [pool.open_connections for replica in upstream.replicas for pool in (replica.pool, replica.streams)]
    assert (len(upstream.errands), len(upstream.parks), sum(open_still)) == (0, 0, 0)


def outgoing(
    method: str = "tools/call",
    params: Any = None,
    *,
    caller: Caller = ALICE,
    modern: bool = False,
    timeout_s: float = 5.0,
    **more: Any,
) -> Outgoing:
    given = {"name": "echo", "arguments": {}} if params is None else params
    return Outgoing(method, msgspec.json.encode(given), caller, modern, timeout_s, **more)


def said(answer: Answer | Paused) -> Any:
    """The result, decoded."""
    assert isinstance(answer, Answer), answer
    assert not answer.error, answer.error
    return msgspec.json.decode(answer.result)


def words(answer: Answer | Paused) -> str:
    """The text of a tool's result."""
    return str(said(answer)["content"][0]["text"])
