"""A modern upstream that asks for input, and a legacy client: its questions are put as live requests, and the answers
go back in a further round. Counterpart: `bridge.py`, where the client itself makes the rounds.
"""

import asyncio
from typing import Any, Final

import msgspec

from tidegate import json_values
from tidegate.ids import uuid7
from tidegate.limits import QUESTION_BYTES_MAX
from tidegate_edge import asking, bridge, reply, strict_json
from tidegate_edge.bridge import QUESTIONS_MAX, ROUNDS_MAX, InputRequest
from tidegate_edge.calls import Inputs, Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply, decode_error, encode
from tidegate_edge.upstream.port import Answer, Paused

WAITING_MAX: Final = 4_096  # calls at one edge: they are not counted as in flight meanwhile
WAITS_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between rounds in which nothing new is known
_DECLINED: Final = msgspec.Raw(b'{"action":"cancel"}')


def is_asked_live(call: Ongoing, answer: Answer | Paused) -> bool:
    """Whether a legacy client must be asked before the call can go on."""
    return not call.request.modern and isinstance(answer, Answer) and call.result_type == "input_required"


async def ask_client(edge: Edge, call: Ongoing, answer: Answer | Paused) -> Inputs | Reply:
    """The client's answers for the next round, or why there is none."""
    if edge.calls_waiting >= WAITING_MAX:
        return reply.refused(
            call, "The gateway waits for too many clients already. Try again later.", reason="gateway-busy"
        )
    edge.calls_waiting += 1
    try:
        return await _ask_client(edge, call, answer)
    finally:
        edge.calls_waiting -= 1


async def _ask_client(edge: Edge, call: Ongoing, answer: Answer | Paused) -> Inputs | Reply:
    assert isinstance(answer, Answer)
    rounds = call.inputs.rounds + 1 if call.inputs else 1
    if rounds > ROUNDS_MAX:
        return reply.refused(
            call, f"{call.server} asked for input {ROUNDS_MAX} times without an end.", reason="asked-too-often"
        )
    try:
        questions, state = bridge.asked_in(answer.result)
    except msgspec.DecodeError as error:
        return reply.refused(
            call, f"{call.server} asks for input in a malformed way: {error}", reason="upstream-malformed"
        )
    if len(questions) > QUESTIONS_MAX:
        return reply.refused(
            call,
            f"{call.server} asks {len(questions)} questions at once; {QUESTIONS_MAX} are allowed.",
            reason="asked-too-much",
        )
    answers = await asyncio.gather(*[_put(edge, call, one) for one in questions.values()])
    responses: dict[str, msgspec.Raw] = {}
    for key, question, given in zip(questions, questions.values(), answers, strict=True):
        if given.result:
            responses[key] = msgspec.Raw(given.result)
        elif question.method == "elicitation/create":
            responses[key] = _DECLINED
        else:
            return _unanswerable(call, question.method, given)
    if not questions or all(_is_by_url(question) for question in questions.values()):
        await asyncio.sleep(WAITS_S[min(rounds, len(WAITS_S)) - 1])  # what happens elsewhere takes its time
    return Inputs(call.root, rounds, state, responses, approved=call.approval_held)


async def _put(edge: Edge, call: Ongoing, question: InputRequest) -> Answer:
    params = bytes(question.params)
    if _is_by_url(question):  # 2025-11-25 names what the client later hears of as complete
        params = encode({**json_values.decode(params), "elicitationId": uuid7()})
    return await asking.ask(edge, call, question.method, params)


def _is_by_url(question: InputRequest) -> bool:
    if len(question.params) > QUESTION_BYTES_MAX:  # it is not put to anybody
        return False
    try:
        params: Any = strict_json.read(bytes(question.params))
    except (strict_json.NotStrictJson, msgspec.DecodeError):
        return False
    return question.method == "elicitation/create" and isinstance(params, dict) and params.get("mode") == "url"


def _unanswerable(call: Ongoing, method: str, given: Answer) -> Reply:
    said = decode_error(given.error).message
    return reply.refused(
        call, f"{call.server} needs {method}, which this client did not answer: {said}", reason="client-cannot-answer"
    )
