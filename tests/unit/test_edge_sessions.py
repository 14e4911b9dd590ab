"""Ends of sessions at servers: done in the background of an edge that must outlive whatever goes wrong there."""

import asyncio
from typing import Any

import pytest

from tidegate.errors import UpstreamFault
from tidegate.lifecycle import background
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge.sessions import end_upstream
from tidegate_edge.upstream.port import Caller


class Clumsy:
    """A server whose sessions cannot be ended."""

    name = "up"

    def __init__(self, fault: Exception) -> None:
        self.fault = fault
        self.asked = 0
        self.twice = asyncio.Event()

    async def end(self, caller: Caller) -> None:
        self.asked += 1
        if self.asked == 2:
            self.twice.set()
        raise self.fault


@pytest.mark.parametrize("fault", [UpstreamFault("gone"), SessionsUnavailable("away"), RuntimeError("ours")])
async def test_an_edge_outlives_a_session_that_cannot_be_ended(fault: Exception) -> None:
    upstream: Any = Clumsy(fault)
    ended = False
    async with background() as tasks:
        tasks.start(end_upstream(upstream, Caller("t", "s", "a")), "end")
        await end_upstream(upstream, Caller("t", "s", "a"))
        async with asyncio.timeout(5):
            await upstream.twice.wait()
        ended = True
    assert ended
    assert upstream.asked == 2
