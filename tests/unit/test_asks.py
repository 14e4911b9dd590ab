"""Questions to legacy clients: asked at one edge, answered at any; only the session that was asked can answer."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.parts.buses import Lan

from tidegate.errors import CallerFault, Fault
from tidegate.limits import ASKS_PER_SESSION_MAX, BUS_MESSAGE_BYTES_MAX
from tidegate_edge.asks import Asks
from tidegate_edge.upstream.port import Answer

SESSION = "session-1"
YES = Answer(result=b'{"action":"accept"}')


class Said:
    """An outlet that remembers."""

    resumable = False

    def __init__(self) -> None:
        self.is_open = True
        self.messages: list[dict[str, object]] = []
        self.some = asyncio.Event()

    def send(self, message: bytes) -> None:
        self.messages.append(json.loads(message))
        self.some.set()

    def rest(self, retry_ms: int) -> None: ...

    async def ask_id(self) -> str:
        await asyncio.wait_for(self.some.wait(), 5)
        return str(self.messages[0]["id"])


def asking(asks: Asks, said: Said, timeout_s: float = 5.0, session: str = SESSION) -> "asyncio.Task[Answer]":
    return asyncio.create_task(asks.ask(said, session, "elicitation/create", b'{"message":"?"}', timeout_s))


@pytest.mark.parametrize("there", ["a", "b"])
async def test_an_answer_posted_to_any_edge_reaches_the_one_that_asked(there: str) -> None:
    lan = Lan("a", "b")
    asks = {name: Asks(lan[name]) for name in ("a", "b")}
    said = Said()
    task = asking(asks["a"], said)
    ask_id = await said.ask_id()
    assert said.messages[0] == {
        "jsonrpc": "2.0",
        "id": ask_id,
        "method": "elicitation/create",
        "params": {"message": "?"},
    }
    assert await asks[there].answered(SESSION, ask_id, YES)
    assert await asyncio.wait_for(task, 5) == YES
    assert len(asks["a"]) == 0
    assert len(said.messages) == 1


@pytest.mark.parametrize("there", ["a", "b"])
async def test_another_session_s_answer_does_not_count(there: str) -> None:
    lan = Lan("a", "b")
    asks = {name: Asks(lan[name]) for name in ("a", "b")}
    said = Said()
    task = asking(asks["a"], said)
    ask_id = await said.ask_id()
    await asks[there].answered("session-2", ask_id, Answer(result=b'{"action":"stolen"}'))
    await asyncio.sleep(0)
    assert not task.done()
    assert await asks["a"].answered(SESSION, ask_id, YES)
    assert await asyncio.wait_for(task, 5) == YES


async def test_a_question_is_answered_once() -> None:
    asks, said = Asks(Lan("a")["a"]), Said()
    task = asking(asks, said)
    ask_id = await said.ask_id()
    assert await asks.answered(SESSION, ask_id, YES)
    assert not await asks.answered(SESSION, ask_id, Answer(result=b"{}"))
    assert await asyncio.wait_for(task, 5) == YES
    assert not await asks.answered(SESSION, ask_id, YES)


async def test_an_error_is_an_answer_too_also_from_another_edge() -> None:
    lan = Lan("a", "b")
    asks, other, said = Asks(lan["a"]), Asks(lan["b"]), Said()
    task = asking(asks, said)
    error = Answer(error=b'{"code":-1,"message":"no"}')
    assert await other.answered(SESSION, await said.ask_id(), error)
    assert await asyncio.wait_for(task, 5) == error


async def test_the_answer_for_an_edge_that_died_is_refused() -> None:
    lan = Lan("a", "b")
    asks, other, said = Asks(lan["a"]), Asks(lan["b"]), Said()
    task = asking(asks, said)
    ask_id = await said.ask_id()
    lan.die("a")
    assert not await other.answered(SESSION, ask_id, YES)
    task.cancel()


@given(st.one_of(st.integers(), st.text(max_size=60), st.from_regex(r"ask-[A-Za-z0-9]{1,40}-[0-9]{1,20}")))
async def test_ids_that_nobody_minted_are_refused(request_id: int | str) -> None:
    assert not await Asks(Lan("a")["a"]).answered(SESSION, request_id, YES)


async def test_a_silent_client_is_told_that_nobody_waits_any_more() -> None:
    asks, said = Asks(Lan("a")["a"]), Said()
    with pytest.raises(CallerFault) as raised:
        await asking(asks, said, timeout_s=0.01)
    assert raised.value.code == "ask-timeout"
    asked, withdrawn = said.messages
    assert withdrawn["method"] == "notifications/cancelled"
    assert withdrawn["params"]["requestId"] == asked["id"]  # type: ignore[index]
    assert len(asks) == 0


async def test_a_cancelled_question_is_withdrawn() -> None:
    asks, said = Asks(Lan("a")["a"]), Said()
    task = asking(asks, said)
    await said.ask_id()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [one["method"] for one in said.messages] == ["elicitation/create", "notifications/cancelled"]
    assert len(asks) == 0


async def test_a_client_that_cannot_be_reached_is_not_waited_for() -> None:
    said = Said()
    said.is_open = False
    with pytest.raises(CallerFault) as raised:
        await asking(Asks(Lan("a")["a"]), said)
    assert raised.value.code == "client-unreachable"


async def test_a_client_that_goes_away_is_not_waited_for_any_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate_edge.asks.LOOKS_EVERY_S", 0.01)
    asks, said = Asks(Lan("a")["a"]), Said()
    task = asking(asks, said)
    await said.ask_id()
    said.is_open = False
    with pytest.raises(CallerFault) as raised:
        await asyncio.wait_for(task, 5)
    assert raised.value.code == "client-unreachable"
    assert len(asks) == 0


async def test_questions_that_wait_are_bounded_for_each_session() -> None:
    asks, said = Asks(Lan("a")["a"]), Said()
    tasks = [asking(asks, said) for _ in range(ASKS_PER_SESSION_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(CallerFault) as raised:
        await asking(asks, said)
    assert raised.value.code == "asks-too-many"
    other = asking(asks, Said(), session="session-2")
    await asyncio.sleep(0)
    assert len(asks) == ASKS_PER_SESSION_MAX + 1
    for task in [*tasks, other]:
        task.cancel()
    await asyncio.gather(*tasks, other, return_exceptions=True)
    assert await asks.answered(SESSION, "ask-a-1", YES) is False
    assert len(asks) == 0


async def test_an_answer_too_large_to_travel_ends_the_question_with_an_error() -> None:
    lan = Lan("a", "b")
    asks, other, said = Asks(lan["a"]), Asks(lan["b"]), Said()
    task = asking(asks, said)
    huge = Answer(result=b'{"text":"' + b"x" * BUS_MESSAGE_BYTES_MAX + b'"}')
    with pytest.raises(Fault):
        await other.answered(SESSION, await said.ask_id(), huge)
    answer = await asyncio.wait_for(task, 5)
    assert b"too large" in answer.error


async def test_garbage_on_the_bus_harms_nobody() -> None:
    lan = Lan("a", "b")
    asks, said = Asks(lan["a"]), Said()
    task = asking(asks, said)
    ask_id = await said.ask_id()
    for garbage in (b"", b"{", b"[]", b'{"session":1}', b"\xff"):
        assert await lan["b"].post("a", b"answer\n" + garbage)
    assert await asks.answered(SESSION, ask_id, YES)
    assert await asyncio.wait_for(task, 5) == YES
