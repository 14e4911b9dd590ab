"""Cancellation by the client: of its own requests alone, at whichever edge they are under way, without a response."""

import asyncio

import pytest
from tests.parts.buses import Lan

from tidegate_edge.inflight import CAUSE, ClientCancelled, InFlight
from tidegate_edge.messages import RequestId


class Handler:
    """A request under way that waits to be cancelled, and remembers how it ended."""

    def __init__(self, inflight: InFlight, session: str = "s", request_id: RequestId = 1) -> None:
        self.begun = asyncio.Event()
        self.cause: tuple[object, ...] | None = None
        self.task = asyncio.create_task(self._run(inflight, session, request_id))

    async def _run(self, inflight: InFlight, session: str, request_id: RequestId) -> str:
        with inflight.running(session, request_id):
            try:
                self.begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                self.cause = error.args
                raise
        return "never"


@pytest.mark.parametrize("there", ["a", "b"])
@pytest.mark.parametrize("request_id", [7, "7", ""])
async def test_a_notification_at_any_edge_cancels_the_request(there: str, request_id: RequestId) -> None:
    lan = Lan("a", "b")
    inflight = {name: InFlight(lan[name]) for name in ("a", "b")}
    handler = Handler(inflight["a"], request_id=request_id)
    await handler.begun.wait()
    await inflight[there].cancel("s", request_id)
    with pytest.raises(ClientCancelled):
        await asyncio.wait_for(handler.task, 5)
    assert handler.cause == (CAUSE,)
    assert not handler.task.cancelled()
    assert len(inflight["a"]) == 0


@pytest.mark.parametrize(("session", "request_id"), [("other", 1), ("s", "1"), ("s", 2), ("", 1)])
async def test_only_the_very_request_of_the_very_session_is_cancelled(session: str, request_id: RequestId) -> None:
    lan = Lan("a", "b")
    inflight = {name: InFlight(lan[name]) for name in ("a", "b")}
    handler = Handler(inflight["a"])
    await handler.begun.wait()
    for name in ("a", "b"):
        await inflight[name].cancel(session, request_id)
    await asyncio.sleep(0)
    assert not handler.task.done()
    handler.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler.task
    assert len(inflight["a"]) == 0


async def test_an_edge_that_cancels_by_itself_is_not_mistaken_for_the_client() -> None:
    inflight = InFlight(Lan("a")["a"])
    handler = Handler(inflight)
    await handler.begun.wait()
    handler.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler.task


async def test_when_both_cancel_the_task_stays_cancelled() -> None:
    inflight = InFlight(Lan("a")["a"])
    handler = Handler(inflight)
    await handler.begun.wait()
    await inflight.cancel("s", 1)
    handler.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler.task


async def test_a_request_that_has_ended_is_not_cancelled_and_its_id_serves_again() -> None:
    inflight = InFlight(Lan("a")["a"])
    for _ in range(2):
        with inflight.running("s", 1):
            pass
        await inflight.cancel("s", 1)
    await asyncio.sleep(0)
    assert len(inflight) == 0


async def test_the_same_id_twice_leaves_nothing_behind() -> None:
    inflight = InFlight(Lan("a")["a"])
    first, second = Handler(inflight), Handler(inflight)
    await first.begun.wait()
    await second.begun.wait()
    await inflight.cancel("s", 1)
    with pytest.raises(ClientCancelled):
        await second.task
    first.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first.task
    assert len(inflight) == 0


async def test_a_handler_that_answers_all_the_same_is_not_disturbed_afterwards() -> None:
    inflight = InFlight(Lan("a")["a"])
    begun = asyncio.Event()

    async def stubborn() -> str:
        with inflight.running("s", 1):
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
        await asyncio.sleep(0)
        return "answered"

    task = asyncio.create_task(stubborn())
    await begun.wait()
    await inflight.cancel("s", 1)
    assert await asyncio.wait_for(task, 5) == "answered"


async def test_garbage_on_the_bus_cancels_nothing() -> None:
    lan = Lan("a", "b")
    inflight = InFlight(lan["a"])
    handler = Handler(inflight)
    await handler.begun.wait()
    for garbage in (b"", b"{", b'{"session":"s"}', b'{"session":"s","id":null}', b'{"session":"s","id":1.5}', b"\xff"):
        await lan["b"].tell_all(b"cancel\n" + garbage)
    await asyncio.sleep(0)
    assert not handler.task.done()
    handler.task.cancel()
