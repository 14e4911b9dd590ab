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
    if not _can_be_asked(call) or call.method not in bridge.RESUMABLE or _rounds(call) > bridge.ROUNDS_MAX:
        return None
    put = _put_as(edge, call, approval)
    if put is None:
        return None
    assert call.request.id is not None
    way, params = put
    try:
        result = bridge.approval_result(edge, call, approval, way, msgspec.Raw(encode(params)))
    except ValueError:  # of sealing: too large to carry
        return None
    return Reply(200, result_body(call.request.id, result))


async def ask_live(edge: Edge, call: Ongoing, approval: Approval) -> Inputs | None:
    """What the client answered, for the next round. None: it cannot be asked, or did not answer."""
    if not _can_be_asked(call) or _rounds(call) > bridge.ROUNDS_MAX or edge.calls_waiting >= WAITING_MAX:
        return None
    put = _put_as(edge, call, approval)
    if put is None:
        return None
    way, params = put
    edge.calls_waiting += 1
    try:
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


def is_too_long(edge: Edge, call: Ongoing, approval: Approval) -> bool:
    """Whether the client would have been asked, were there less to see."""
    return _can_be_asked(call) and _put_as(edge, call, approval) is None


def _can_be_asked(call: Ongoing) -> bool:
    return "elicitation" in call.abilities.names and (call.abilities.by_form or call.abilities.by_url)


def _rounds(call: Ongoing) -> int:
    return call.inputs.rounds + 1 if call.inputs else 1


def _put_as(edge: Edge, call: Ongoing, approval: Approval) -> tuple[Channel, dict[str, Any]] | None:
    """By form where that shows all there is to see, else by page where that does. None: neither."""
    asked = _question(call, approval)
    if call.abilities.by_form and (form := approval_question.form(asked)) is not None:
        return "form", form
    if not call.abilities.by_url:
        return None
    try:
        return "url", approval_question.page(asked, url_of(edge, approval, asked))
    except ValueError:
        return None


def _question(call: Ongoing, approval: Approval) -> Question:
    """With the arguments as they are sent on: they are the requester's own, whatever records keep of them."""
    return Question(
        agent=call.principal.agent,
        login=call.principal.login,
        method=call.method,
        server=call.server,
        target=call.target,
        arguments=call.arguments,
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
