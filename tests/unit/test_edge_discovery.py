"""Discovery: what readiness waits for, and what is served without."""

import asyncio
from typing import Any

import pytest

from tidegate.errors import UpstreamFault
from tidegate.settings import Server, Settings
from tidegate_edge import discovery
from tidegate_edge.calls import Place
from tidegate_edge.catalog import Catalog
from tidegate_edge.upstream.port import Definitions


class Upstream:
    """Tells its tools, refuses, or never says a word."""

    def __init__(self, manner: str) -> None:
        self.manner = manner

    async def definitions(self, timeout_s: float) -> Definitions:
        if self.manner == "dead":
            raise UpstreamFault("dead: cannot connect")
        if self.manner == "silent":
            await asyncio.Event().wait()
        return Definitions((b'{"name":"echo","inputSchema":{"type":"object"}}',))


async def test_a_server_that_refuses_or_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "AWAITED_S", 0.2)
    upstreams: Any = {name: Upstream(name) for name in ("good", "dead", "silent")}
    settings = Settings(servers={name: Server(url="http://127.0.0.1:1/mcp") for name in upstreams})
    seen: list[Catalog] = []

    async def append(events: Any) -> None: ...

    found = discovery.Discovery(settings, Place("t", "r", "e"), upstreams, append, {})
    assert found.awaiting == {"good", "dead", "silent"}
    running = asyncio.create_task(found.run(seen.append))
    async with asyncio.timeout(5):
        while found.awaiting:
            await asyncio.sleep(0)
    assert set(found.troubles) == {"dead", "silent"}
    assert [tool.exposed for tool in seen[-1].tools] == ["good__echo"]
    running.cancel()
