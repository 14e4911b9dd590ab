"""A server's question to a legacy client: recorded, inspected, put to it, and its answer recorded and inspected.

It is a call of its own in the log, under the logical call that it belongs to (`root_call_id`).
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from tidegate.errors import CallerFault, Fault, LogUnavailable
from tidegate.events import Outcome
from tidegate.ids import now_us
from tidegate.limits import QUESTION_BYTES_MAX
from tidegate.policy.verdict import Verdict
from tidegate.sessions.port import SessionsUnavailable
from tidegate.turns import Turns, at_once
from tidegate_edge import facts, strict_json
from tidegate_edge.abilities import ASKED_WITH
from tidegate_edge.calls import Ended, Ongoing, completed_event, requested_event
from tidegate_edge.edge import Edge
from tidegate_edge.messages import INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, RpcError, encode
from tidegate_edge.upstream.port import Answer
from tidegate_edge.upstream.server_asks import TOO_LARGE
from tidegate_edge.visit import Visit

ANSWERED_WITHIN_S: Final = 600.0  # people answer
LOOKS_EVERY_S: Final = 2.0  # whether the session still stands
METHOD_CHARS_MAX: Final = 64  # of a method that a server made up


async def ask(edge: Edge, call: Ongoing, method: str, params: bytes) -> Answer:
    """The client's answer, or the error that the server is given."""
    if len(params) > QUESTION_BYTES_MAX:
        return await _not_put(edge, call, method, INVALID_REQUEST, "question-too-large", TOO_LARGE)
    try:
        read = await edge.aside.in_turns(strict_json.reading_any(params, keep=True))
    except (strict_json.NotStrictJson, msgspec.DecodeError):
        return await _not_put(edge, call, method, INVALID_REQUEST, "request-malformed", "the request cannot be read")
    if call.request.modern or method not in ASKED_WITH:
        told = f"the client cannot be asked: {method[:METHOD_CHARS_MAX]}"
        return await _not_put(edge, call, method, METHOD_NOT_FOUND, "question-not-relayed", told)
    if not isinstance(read, dict) or not call.abilities.can_answer(method, read):
        told = f"the client declared no capability for {method}"
        return await _not_put(edge, call, method, METHOD_NOT_FOUND, "client-lacks-capability", told)
    question = await edge.aside.in_turns(_question(call, method, params))
    try:
        await edge.recorder.record(
            requested_event(question, edge.place, edge.limits.capture_bytes_max), call.terms.mode
        )
    except LogUnavailable as fault:
        return _refused(INTERNAL_ERROR, f"the question could not be recorded, so it was not put: {fault.sentence}")
    if question.decision != "allow":
        return _refused(INVALID_REQUEST, question.message)
    return await _put(edge, call, question)


def _question(call: Ongoing, method: str, params: bytes) -> Turns[Ongoing]:
    """The question as a call: what was permitted for the tool is permitted for what it asks, content apart."""
    question = Ongoing(call.visit, call.request, call.item, call.target, call.terms, now_us())
    question.method, question.root = method, call.root
    inherited = ("ruling", "rules", "bundle", "release", "catalog", "control_epoch", "abilities", "target_captured")
    for fact in (*inherited, "facts"):
        setattr(question, fact, getattr(call, fact))
    question.decision, question.stage, question.reason = "allow", "policy", call.reason
    assert call.ruling is not None
    scan = yield from call.ruling.scanner.scanning(params, "result")
    question.findings = scan.findings
    question.arguments = params if scan.masked is None else scan.masked
    question.arguments_captured = scan.recorded or question.arguments
    if scan.blocked is not None:
        question.refuse(
            "inspection",
            "arguments-blocked",
            f"The question holds something that may not be passed on: {scan.blocked.rule}.",
        )
        question.rules = (scan.blocked.rule,)
    return question


async def _not_put(edge: Edge, call: Ongoing, method: str, code: int, reason: str, message: str) -> Answer:
    """A question that the client cannot be asked: recorded without its content, and refused."""
    question = at_once(_question(call, method[:METHOD_CHARS_MAX], b"{}"))
    assert call.ruling is not None
    question.method = call.ruling.told(question.method, "result")
    question.refuse("admission", reason, call.ruling.told(message, "result"))
    try:
        await edge.recorder.record(
            requested_event(question, edge.place, edge.limits.capture_bytes_max), call.terms.mode
        )
    except LogUnavailable:  # it is refused all the same
        edge.counters.unrecorded += 1
    return _refused(code, message)


async def _put(edge: Edge, call: Ongoing, question: Ongoing) -> Answer:
    visit = question.visit
    question.forwarded_us = question.now_us()
    try:
        if call.tainting is not None:
            await call.tainting.note()
        asking = edge.asks.ask(
            visit.outlet, visit.protocol_session, question.method, question.arguments, ANSWERED_WITHIN_S
        )
        answer = await while_the_session_stands(edge, visit, asking)
        denied = await facts.denied_since(edge, call)
        if denied is None:
            ended, answer = await edge.aside.in_turns(_inspecting(question, answer))
        else:
            ended, answer = _denied(question, denied)
    except Fault as fault:
        answer = _refused(INTERNAL_ERROR, fault.sentence)
        ended = _ended(question, "timeout" if "timeout" in fault.code else "upstream-failed", b"", fault.code)
    except asyncio.CancelledError:
        await asyncio.shield(_settle(edge, question, _ended(question, "cancelled", b"", "caller-gone")))
        raise
    try:
        await _settle(edge, question, ended)
    except LogUnavailable as fault:
        return _refused(INTERNAL_ERROR, f"the answer could not be recorded: {fault.sentence}")
    return answer


async def while_the_session_stands(edge: Edge, visit: Visit, asking: Coroutine[Any, Any, Answer]) -> Answer:
    """Nobody can answer once the session has ended. Raises CallerFault `client-unreachable`."""
    task = asyncio.create_task(asking, name="ask")
    try:
        while not (await asyncio.wait((task,), timeout=LOOKS_EVERY_S))[0]:
            try:
                record = await edge.sessions.get(visit.principal.tenant, visit.protocol_session)
            except SessionsUnavailable:
                continue
            if record is None:
                raise CallerFault("the client's session has ended without an answer", code="client-unreachable")
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _settle(edge: Edge, question: Ongoing, ended: Ended) -> None:
    event = completed_event(question, ended, edge.place, edge.limits.capture_bytes_max)
    await edge.recorder.record_completion(event, question.terms.mode)


def _denied(question: Ongoing, verdict: Verdict) -> tuple[Ended, Answer]:
    """Which call it belongs to was permitted, and would not be any more: the answer stays here."""
    return _ended(question, "blocked", b"", verdict.reason), _refused(INVALID_REQUEST, verdict.told)


def _inspecting(question: Ongoing, answer: Answer) -> Turns[tuple[Ended, Answer]]:
    """What a client says to a server is inspected like arguments."""
    raw = answer.result or answer.error
    try:
        yield from strict_json.reading_any(raw, keep=False)
    except (strict_json.NotStrictJson, msgspec.DecodeError) as error:
        return _ended(question, "blocked", b"", "answer-malformed"), _refused(
            INTERNAL_ERROR, f"the client's answer is refused: {error}"
        )
    assert question.ruling is not None
    scan = yield from question.ruling.scanner.scanning(raw, "arguments")
    outcome: Outcome = "blocked" if scan.blocked else "rpc-error" if answer.error else "ok"
    ended = msgspec.structs.replace(
        _ended(question, outcome, raw, "answer-blocked" if scan.blocked else ""),
        result_captured=scan.recorded or raw,
        findings=scan.findings,
        masked=scan.masks,
    )
    if scan.blocked is not None:
        return ended, _refused(INTERNAL_ERROR, f"the answer holds something that may not be sent: {scan.blocked.rule}")
    shown = raw if scan.masked is None else scan.masked
    return ended, Answer(result=shown) if answer.result else Answer(error=shown)


def _ended(question: Ongoing, outcome: Outcome, result: bytes, reason: str) -> Ended:
    at_us = question.now_us()
    return Ended(
        outcome=outcome,
        completed_us=at_us,
        upstream_us=at_us - question.forwarded_us,
        reason=reason,
        result=result,
        result_captured=result,
    )


def _refused(code: int, message: str) -> Answer:
    return Answer(error=encode(RpcError(code, message)))
