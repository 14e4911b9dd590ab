"""The life of a tool call. Its steps are leaves: `record` and `forward` do I/O, all others are functions of what they
are given.

    accept → identify → admit → decide → inspect arguments → record → forward → inspect result → record → reply

(`accept` and `identify` have happened in `desk.py`: an unknown caller's body is not parsed.)
"""

import asyncio

from tidegate.errors import Fault, LogUnavailable
from tidegate.ids import now_us
from tidegate_edge import reply, steps
from tidegate_edge.accept import Request
from tidegate_edge.calls import Ended, Ongoing, completed_event, requested_event
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply
from tidegate_edge.steps import Visit


async def call_tool(edge: Edge, visit: Visit, request: Request) -> Reply:
    """One governed tools/call: refused and recorded, or recorded, forwarded, recorded and answered."""
    call = steps.begin(edge, visit, request)
    steps.admit(edge, call)
    if call.decision == "allow":
        steps.decide(edge, call)
    if call.decision == "allow":
        steps.inspect_arguments(edge, call)
    else:
        steps.inspect_refused(edge, call)
    try:
        await edge.recorder.record(requested_event(call, edge.place, edge.limits.capture_bytes_max), call.terms.mode)
    except LogUnavailable as fault:
        edge.counters.unrecorded += 1
        return reply.unavailable(call, fault)
    except asyncio.CancelledError:
        if call.decision == "allow":  # permitted, perhaps recorded, and never sent
            await asyncio.shield(_settle(edge, call, steps.cancelled(call)))
        raise
    edge.counters.decided(call.decision)
    if call.decision != "allow":
        return reply.refusal(call)
    return await _carry_out(edge, call)


async def _carry_out(edge: Edge, call: Ongoing) -> Reply:
    """From the durable permit to the durable answer."""
    call.forwarded_us = now_us()
    edge.calls_in_flight += 1
    try:
        answer = await steps.forward(edge, call)
        ended, answered = steps.inspect_result(edge, call, answer)
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
    try:
        await _settle(edge, call, ended)
    except LogUnavailable as fault:
        edge.counters.unrecorded += 1
        return reply.unavailable(call, fault)
    return answered


async def _settle(edge: Edge, call: Ongoing, ended: Ended) -> None:
    edge.counters.ended(ended.outcome)
    event = completed_event(call, ended, edge.place, edge.limits.capture_bytes_max)
    await edge.recorder.record_completion(event, call.terms.mode)
