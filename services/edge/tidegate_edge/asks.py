"""Questions put to legacy clients (sampling, elicitation, roots): a request goes out on the client's stream, and its
answer is POSTed to any edge.

A question's id names the edge that asked, so that the others know where to bring the answer. An answer counts only when
it comes from the session that was asked. Counterpart: `listen.py` and the bridge put questions, `methods.py` brings
answers.
"""

import asyncio
import re
from collections import Counter
from itertools import count
from typing import Final, NamedTuple

import msgspec

from tidegate.errors import CallerFault, OurFault
from tidegate.limits import ASKS_PER_SESSION_MAX
from tidegate.sessions.port import Bus, SessionsUnavailable
from tidegate_edge.messages import INTERNAL_ERROR, RequestId, RpcError, encode, request_body
from tidegate_edge.outlet import Outlet
from tidegate_edge.upstream.port import Answer

KIND: Final = "answer"
ASKS_PER_EDGE_MAX: Final = 4_096
LOOKS_EVERY_S: Final = 2.0  # whether the client is still there
_ASK_ID: Final = re.compile(r"ask-([A-Za-z0-9]{1,32})-([0-9]{1,18})")


class Delivery(msgspec.Struct, frozen=True):
    """On the bus: an answer on its way to the edge that asked."""

    session: str
    id: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_decode: Final = msgspec.json.Decoder(Delivery).decode
_NULL: Final = b"null"
TOO_LARGE: Final = Answer(error=encode(RpcError(INTERNAL_ERROR, "the client's answer is too large to be passed on")))


class Pending(NamedTuple):
    """A question that waits."""

    session: str
    answer: "asyncio.Future[Answer]"


class Asks:
    """Of one edge."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._pending: dict[str, Pending] = {}
        self._of_session: Counter[str] = Counter()
        self._numbers = count(1)
        bus.on_message(KIND, self._heard)

    def __len__(self) -> int:
        return len(self._pending)

    async def ask(self, outlet: Outlet, session: str, method: str, params: bytes, timeout_s: float) -> Answer:
        """The client's answer, result or error. Raises CallerFault: `client-unreachable`, `asks-too-many` or
        `ask-timeout`. A question that nobody waits for any more is withdrawn.
        """
        if not outlet.is_open:
            raise CallerFault("the client cannot be reached any more", code="client-unreachable")
        if len(self._pending) >= ASKS_PER_EDGE_MAX:
            raise CallerFault("too many questions wait for clients at this edge already", code="asks-too-many")
        if self._of_session[session] >= ASKS_PER_SESSION_MAX:
            raise CallerFault(
                f"{ASKS_PER_SESSION_MAX} questions wait for this client already; it must answer some first",
                code="asks-too-many",
            )
        ask_id = f"ask-{self._bus.address}-{next(self._numbers)}"
        pending = Pending(session, asyncio.get_running_loop().create_future())
        self._pending[ask_id] = pending
        self._of_session[session] += 1
        try:
            outlet.send(request_body(ask_id, method, params))
            async with asyncio.timeout(timeout_s):
                return await _answer_of(pending, outlet)
        except TimeoutError:
            sentence = f"the client has not answered {method} within {timeout_s:g} s"
            raise CallerFault(sentence, code="ask-timeout") from None
        finally:
            self._forget(ask_id, pending)
            if not pending.answer.done() or pending.answer.cancelled():
                outlet.send(_withdrawal(ask_id))

    async def answered(self, session: str, request_id: RequestId, answer: Answer) -> bool:
        """Bring a POSTed response to whoever asked. False: nobody waits for it, or its edge is gone. Raises OurFault
        for what is too large to travel between edges; then the question is answered with an error.
        """
        found = _ASK_ID.fullmatch(request_id) if isinstance(request_id, str) else None
        if found is None:
            return False
        assert isinstance(request_id, str)
        if found[1] == self._bus.address:
            return self._deliver(session, request_id, answer)
        try:
            return await self._post(found[1], session, request_id, answer)
        except SessionsUnavailable:
            return False
        except OurFault:
            await self._post(found[1], session, request_id, TOO_LARGE)
            raise

    async def _post(self, address: str, session: str, ask_id: str, answer: Answer) -> bool:
        delivery = Delivery(session, ask_id, msgspec.Raw(answer.result or _NULL), msgspec.Raw(answer.error or _NULL))
        return await self._bus.post(address, KIND.encode() + b"\n" + encode(delivery))

    def _deliver(self, session: str, ask_id: str, answer: Answer) -> bool:
        pending = self._pending.get(ask_id)
        if pending is None or pending.session != session or pending.answer.done():
            return False
        pending.answer.set_result(answer)
        return True

    def _heard(self, message: bytes) -> None:
        try:
            delivery = _decode(message)
        except msgspec.DecodeError:
            return
        result, error = bytes(delivery.result), bytes(delivery.error)
        self._deliver(delivery.session, delivery.id, Answer(error=error) if error != _NULL else Answer(result=result))

    def _forget(self, ask_id: str, pending: Pending) -> None:
        self._pending.pop(ask_id, None)
        self._of_session[pending.session] -= 1
        if self._of_session[pending.session] <= 0:
            del self._of_session[pending.session]


async def _answer_of(pending: Pending, outlet: Outlet) -> Answer:
    """Wait while the client can still be told how its request ends."""
    while not pending.answer.done():
        await asyncio.wait((pending.answer,), timeout=LOOKS_EVERY_S)
        if not pending.answer.done() and not outlet.is_open:
            raise CallerFault("the client has gone away without an answer", code="client-unreachable")
    return pending.answer.result()


def _withdrawal(ask_id: str) -> bytes:
    params = encode({"requestId": ask_id, "reason": "the answer is not awaited any more"})
    return b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":%b}' % params
