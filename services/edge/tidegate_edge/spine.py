"""The life of a call. Its steps are leaves: `record` and `forward` do I/O, all others are functions of what they
are given.

    accept → identify → admit → decide → inspect arguments → record → forward → inspect result → record → reply

What is large is read and inspected in turns with other calls (`taking_turns.py`), by the same steps.

(`accept` and `identify` have happened in `desk.py`: an unknown caller's body is not parsed.) A server that asks a
legacy client for input is answered in a further round of the same call, decided and recorded anew.
"""

import asyncio

from tidegate.errors import Fault, LogUnavailable
from tidegate.limits import LARGE_BYTES
from tidegate_edge import approvals, bridge, facts, reply, rounds, steps, tainting
from tidegate_edge.accept import Request
from tidegate_edge.calls import Ended, Inputs, Ongoing, completed_event, requested_event
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply, error_body
from tidegate_edge.upstream.port import Answer, Paused
from tidegate_edge.visit import Visit


async def call(edge: Edge, visit: Visit, request: Request) -> Reply:
    """One governed request: refused and recorded, or recorded, forwarded, recorded and answered."""
    inputs: Inputs | None = None
    while True:
        try:
            ongoing = steps.begin(edge, visit, request, inputs)
        except bridge.StateRefused as refused:
            error = refused.error
            return Reply(400, error_body(request.id, error.code, error.message, error.data))
        try:
            answer = await _round(edge, ongoing)
        finally:
            if ongoing.held:
                edge.budgets.undo(ongoing)  # what was not charged: the call was not forwarded
        if isinstance(answer, Reply):
            return answer
        if isinstance(answer, Inputs):  # a person was asked whether the call may go on
            inputs = answer
            continue
        if not rounds.is_asked_live(ongoing, answer):
            return reply.answer(edge, ongoing, answer)
        further = await rounds.ask_client(edge, ongoing, answer)
        if isinstance(further, Reply):
            return further
        inputs = further


async def _round(edge: Edge, call: Ongoing) -> Answer | Paused | Reply | Inputs:
    steps.admit(edge, call)
    if call.decision == "allow" and facts.matter(call):
        await facts.gather(edge, call)
    if call.decision == "allow":
        steps.decide(edge, call)
    if len(call.request.raw_params) > LARGE_BYTES:
        await edge.aside.in_turns(steps.inspecting(edge, call))
        steps.admit_still(edge, call)
    else:
        steps.inspect(edge, call)
    try:
        if call.decision == "ask":
            await approvals.settle(edge, call)
        if call.decision == "allow" and edge.sessions.awaiting:
            await tainting.foresee(edge, call)
        if call.decision == "allow" and (plan := edge.budgets.plan(call)) is not None:
            await edge.budgets.draw(call, plan)
        if call.decision == "allow" and call.approval is not None:
            await approvals.consume(edge, call)
        await edge.recorder.record(requested_event(call, edge.place, edge.limits.capture_bytes_max), call.terms.mode)
    except LogUnavailable as fault:
        edge.counters.unrecorded += 1
        return reply.unavailable(call, fault)
    except asyncio.CancelledError:
        if call.decision == "allow" and call.dimensions:  # permitted, perhaps recorded, and never sent
            await asyncio.shield(_settle(edge, call, steps.cancelled(call)))
        raise
    edge.counters.decided(call.decision)
    if call.decision == "ask":
        return await approvals.ask(edge, call)
    if call.decision != "allow":
        return reply.refusal(call)
    return await _carry_out(edge, call)


async def _carry_out(edge: Edge, call: Ongoing) -> Answer | Paused | Reply:
    """From the durable permit to the durable answer."""
    call.forwarded_us = call.now_us()
    call.tainting = tainting.of(edge, call)
    edge.calls_in_flight += 1
    try:
        answer = await steps.forward(edge, call)
        if steps.size(answer) > LARGE_BYTES:
            ended, answered = await edge.aside.in_turns(steps.inspecting_result(edge, call, answer))
        else:
            ended, answered = steps.inspect_result(edge, call, answer)
        if call.plan is not None:
            await edge.budgets.count(call, ended)
        if call.tainting is not None:
            ended, answered = await call.tainting.before(call, ended, answered)
    except Fault as fault:
        ended, answered = steps.failed(edge, call, fault)
    except asyncio.CancelledError:
        await asyncio.shield(_settle(edge, call, steps.cancelled(call)))
        raise
    except Exception:  # a fault of ours; what has begun must end in the log all the same
        await _settle(edge, call, steps.broken(call))
        raise
    finally:
        edge.calls_in_flight -= 1
        if call.tainting is not None:
            call.tainting.close()
    try:
        await _settle(edge, call, ended)
    except LogUnavailable as fault:
        edge.counters.unrecorded += 1
        return reply.unavailable(call, fault)
    return answered


async def _settle(edge: Edge, call: Ongoing, ended: Ended) -> None:
    edge.counters.ended(ended.outcome)
    if call.plan is not None:
        edge.budgets.charge(call, ended)
    event = completed_event(call, ended, edge.place, edge.limits.capture_bytes_max)
    await edge.recorder.record_completion(event, call.terms.mode)
