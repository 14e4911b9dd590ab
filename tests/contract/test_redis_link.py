"""The pool of connections to Redis, when they are reset under it: one may have died unseen, and nobody may notice."""

import asyncio

import pytest
import uvloop
from tests.chaos.links import Link as Wire
from tests.chaos.links import running_links
from tests.parts.valkey import running_valkey_server

from tidegate.sessions.port import SessionsUnavailable
from tidegate.sessions.redis_link import Link

pytestmark = pytest.mark.redis


@pytest.mark.parametrize("loop", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_connections_that_were_reset_while_they_idled_are_replaced_unnoticed(loop: object) -> None:
    async def ping(link: Link) -> None:
        async with link.asked():
            assert await link.redis.ping()

    async def resets(wire: Wire) -> None:
        link = Link(f"redis://127.0.0.1:{wire.port}/0")
        for number in range(10):
            await asyncio.gather(*(ping(link) for _ in range(4)))
            await asyncio.to_thread(wire.cut)
            if number == 5:
                with pytest.raises(SessionsUnavailable, match="did not answer"):
                    await ping(link)
            await asyncio.to_thread(wire.heal)
        await link.close()

    assert callable(loop)
    with running_links() as links, running_valkey_server() as valkey:
        loop(resets(links.open("wire", lambda: ("127.0.0.1", valkey.port))))
