"""Steps of an approval become facts: durable first, then known here, then told to the other edges."""

from typing import Any, Final

from tidegate.events import ApprovalDenied, ApprovalGranted, Channel, Mode
from tidegate.ids import now_us
from tidegate.policy.approvals import Approval, ApprovalEvent
from tidegate_edge.calls import Ongoing
from tidegate_edge.edge import Edge

GRANTED_FOR_S: Final = 60  # at least, from the moment of the yes


async def say(edge: Edge, event: ApprovalEvent, mode: Mode, known: Approval | None = None) -> Approval:
    """The approval as it stands with this event; `known` is it as it stood. Raises LogUnavailable: then nothing
    happened.
    """
    await edge.recorder.record(event, mode)
    if known is not None:  # the fold may have forgotten it meanwhile
        edge.approvals.learn(known)
    edge.approvals.apply(event)
    now = edge.approvals.of(event.tenant).get(event.approval_id) or known
    assert now is not None
    await edge.approvals.tell(now)
    return now


async def decide(edge: Edge, approval: Approval, channel: Channel, yes: bool, reason: str, mode: Mode) -> Approval:
    """What the requester said, by this way. Raises LogUnavailable."""
    at_us = now_us()
    stamp = edge.place.stamp(approval.tenant, at_us)
    said: dict[str, Any] = {"approval_id": approval.approval_id, "actor": approval.subject_id, "channel": channel}
    if yes:
        expires_us = max(approval.asked_until_us, at_us + GRANTED_FOR_S * 1_000_000)
        return await say(edge, ApprovalGranted(**stamp, **said, reason=reason, expires_us=expires_us), mode, approval)
    return await say(edge, ApprovalDenied(**stamp, **said, reason=reason), mode, approval)


def mode_of(call: Ongoing) -> Mode:
    """As durable as the call's own records, and never less than on this edge's disk."""
    return "spool" if call.terms.mode == "async" else call.terms.mode
