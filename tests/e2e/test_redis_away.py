"""What goes on at an edge while its Redis is killed, and what does not: calls of who was active, in the session that it
was, under its quarantine; no approval is used, and nothing is let through on what nobody knows.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.parts.approving import BUNDLE, Person, asked, nonce, refusal, yes
from tests.parts.edge import RunningEdge, running_edge, until
from tests.parts.scripted import Scripted, scripted, tool
from tests.parts.valkey import Valkey, running_valkey_server

from tidegate.chain import Chain
from tidegate.events import QuarantineImposed
from tidegate.ids import now_us, uuid7
from tidegate.log.port import Record

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.redis]


@dataclass
class Place:
    edge: RunningEdge
    up: Scripted
    valkey: Valkey

    def reached(self, mark: str) -> int:
        return sum(mark.encode() in seen.body for seen in self.up.seen)

    async def until_heard(self) -> None:
        await until(lambda: not self.edge.edge.sessions.awaiting, 20)

    async def session_of(self, mark: str) -> str:
        (requested,), _ = await self.edge.place.calls(mark)
        return requested.session_id

    async def stop_session(self, session_id: str) -> None:
        event = QuarantineImposed(
            id=uuid7(),
            time_us=now_us(),
            tenant="acme",
            region="local",
            quarantine_id=uuid7(),
            scope="session",
            value=session_id,
            reason="looks wrong",
            actor="detector",
        )
        key = f"acme|{event.quarantine_id}".encode()
        await self.edge.log.append([Record("control-state", key, Chain(event.quarantine_id).seal(event).value)])
        await until(lambda: self.edge.edge.quarantines_of("acme").get(event.quarantine_id) is not None)

    @contextlib.asynccontextmanager
    async def without_redis(self) -> AsyncIterator[None]:
        self.valkey.kill()
        try:
            yield
        finally:
            self.valkey.start()
            await self.until_heard()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with contextlib.AsyncExitStack() as stack:
        valkey = stack.enter_context(running_valkey_server())
        up = await stack.enter_async_context(scripted(tools=[tool("echo"), tool("note")]))
        directory: Path = tmp_path_factory.mktemp("away")
        running = running_edge(directory, {"up": {"url": up.url}}, bundle=BUNDLE, sessions=valkey.url)
        at = Place(await stack.enter_async_context(running), up, valkey)
        await at.until_heard()
        yield at


async def test_a_session_in_quarantine_stays_so_while_redis_is_away_and_when_it_is_back_empty(place: Place) -> None:
    stopped, free = Person([place.edge], "stopped@example.com"), Person([place.edge], "free@example.com")
    before, mark = nonce(), nonce()
    for person in (stopped, free):
        await person.call("up__echo", {"words": before + person.user})
    async with place.without_redis():
        await place.stop_session(await place.session_of(before + stopped.user))
        assert refusal(await stopped.call("up__echo", {"words": mark + stopped.user}))["reason"] == "quarantined"
        assert not (await free.call("up__echo", {"words": mark + free.user})).result.get("isError")
    assert await place.session_of(mark + free.user) == await place.session_of(before + free.user)
    assert refusal(await stopped.call("up__echo", {"words": mark + stopped.user}))["reason"] == "quarantined"
    assert place.reached(mark + stopped.user) == 0


async def test_an_approval_is_not_used_while_nobody_can_tell_whether_it_was(place: Place) -> None:
    mark, alice = nonce(), Person([place.edge])
    _, state = asked(await alice.call("up__note", {"words": mark}))
    async with place.without_redis():
        answer = await alice.call("up__note", {"words": mark}, state=state, responses=yes())
        assert refusal(answer)["reason"] == "approvals-unknown"
        assert place.reached(mark) == 0
    assert mark in (await alice.call("up__note", {"words": mark})).text, "the yes is there to be used once"
    assert place.reached(mark) == 1
    asked(await alice.call("up__note", {"words": mark}))
