"""The question to the requester's own client: `input_required` for modern ones, a live request on the stream of legacy
ones; as a form, or as a page of this edge where the client can only open pages. Counterpart: `approvals.py`.
"""

from typing import Any, Final

import msgspec

from tidegate.errors import Fault
from tidegate.events import Channel
from tidegate.ids import now_us, uuid7
from tidegate.policy.approvals import Approval
from tidegate_edge import approval_question, asking, bridge
from tidegate_edge.approval_page import url_of
from tidegate_edge.approval_question import Question
from tidegate_edge.calls import Inputs, Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply, encode, notification, result_body
from tidegate_edge.rounds import WAITING_MAX
from tidegate_edge.upstream.port import Answer

METHOD: Final = "elicitation/create"
LIVE_PAGE_WAIT_S: Final = 300.0  # a legacy client's call waits so long for a decision on the page


async def ask_modern(edge: Edge, call: Ongoing, approval: Approval) -> Reply | None:
    """The client answers in a further request, which goes to any edge. None: it cannot be asked."""
    way = _way(call)
    if way is None or call.method not in bridge.RESUMABLE or _rounds(call) > bridge.ROUNDS_MAX:
        return None
    assert call.request.id is not None
    params = msgspec.Raw(encode(_params(edge, call, approval, way)))
    try:
        result = bridge.approval_result(edge, call, approval, way, params)
    except ValueError:  # of sealing: too large to carry
        return None
    return Reply(200, result_body(call.request.id, result))


async def ask_live(edge: Edge, call: Ongoing, approval: Approval) -> Inputs | None:
    """What the client answered, for the next round. None: it cannot be asked, or did not answer."""
    way = _way(call)
    if way is None or _rounds(call) > bridge.ROUNDS_MAX or edge.calls_waiting >= WAITING_MAX:
        return None
    edge.calls_waiting += 1
    try:
        params = _params(edge, call, approval, way)
        if way == "url":
            params["elicitationId"] = uuid7()
        left_s = max(0.0, (approval.expires_us - now_us()) / 1e6)
        answer = await _put(edge, call, encode(params), min(asking.ANSWERED_WITHIN_S, left_s))
        if answer is None:
            return None
        if way == "url" and approval_question.meant(answer.result, way)[0] == "opened":
            await edge.approvals.decided(approval, min(LIVE_PAGE_WAIT_S, left_s))
            told = encode({"elicitationId": params["elicitationId"]})
            call.visit.outlet.send(notification("notifications/elicitation/complete", told))
    finally:
        edge.calls_waiting -= 1
    given = msgspec.Raw(answer.result)
    return Inputs(call.root, _rounds(call), approval=approval.approval_id, asked_by=way, answer=given)


def _way(call: Ongoing) -> Channel | None:
    if "elicitation" not in call.abilities.names:
        return None
    return "form" if call.abilities.by_form else "url" if call.abilities.by_url else None


def _rounds(call: Ongoing) -> int:
    return call.inputs.rounds + 1 if call.inputs else 1


def _params(edge: Edge, call: Ongoing, approval: Approval, way: Channel) -> dict[str, Any]:
    asked = _question(call, approval)
    if way == "form":
        return approval_question.form(asked)
    return approval_question.page(asked, url_of(edge, approval, asked))


def _question(call: Ongoing, approval: Approval) -> Question:
    """With the arguments as captured: what the inspection keeps out of records is not shown either."""
    return Question(
        agent=call.principal.agent,
        login=call.principal.login,
        method=call.method,
        server=call.server,
        target=call.target_captured or call.target,
        arguments=call.arguments_captured,
        why=approval.message,
        expires_us=approval.expires_us,
    )


async def _put(edge: Edge, call: Ongoing, params: bytes, within_s: float) -> Answer | None:
    visit = call.visit
    try:
        asked = edge.asks.ask(visit.outlet, visit.protocol_session, METHOD, params, within_s)
        answer = await asking.while_the_session_stands(edge, visit, asked)
    except Fault:  # nobody is there, or nobody answered
        return None
    return answer if answer.result else None
