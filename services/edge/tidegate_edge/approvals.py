"""ask: a rule wants a person to approve a call. Who is asked, what an answer does, and the one use of a yes.

    settle → consume → record → ask

`settle` finds, opens or answers the question of a call that the rules decided to ask about. Where somebody said yes the
call goes on, and `consume` is its right to: a lease by the approval's name, then `approval.consumed`, durable, then the
rest. The rules have decided anew each time, so a yes turns `ask` into `allow` and nothing else into anything.
Counterparts: `tidegate/policy/approvals.py` (the fold), `approval_book.py`, `approval_page.py`, the policy service.
"""

from typing import Final

from tidegate.events import (
    ApprovalConsumed,
    ApprovalRequested,
    Sealed,
)
from tidegate.ids import now_us, uuid7
from tidegate.limits import APPROVAL_TTL_S
from tidegate.policy.approvals import ANYBODY, SOMEBODY_ELSE, Approval, binding_of
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge import approval_question, reply, steps
from tidegate_edge.approval_asking import ask_live, ask_modern, is_too_long
from tidegate_edge.approval_records import decide, mode_of, say
from tidegate_edge.calls import TARGET_CHARS_MAX, Approved, Inputs, Ongoing, captured
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply

APPROVABLE: Final = frozenset({"tools/call", "prompts/get", "resources/read", "resources/subscribe"})
"""A completion is asked for with each key that is pressed: nobody is asked about it."""
LEASED_BEYOND_S: Final = 86_400.0  # after a grant has expired, its lease stands so much longer: clocks differ
PAGE_WAIT_S: Final = 20.0  # for a decision on the page, before the client is asked again
ALONE: Final = (
    "This call needs an approval, and none can be used here: edges need a session store that they share "
    "(`sessions: redis://…`), or an approval might be used twice. Tell the operator."
)
LATE: Final = "Nobody decided in time, so the call was not made. Call again to ask anew."
TOO_LONG: Final = "Your client was not asked: there is more to see than it can show, and nobody approves what was cut."
UNSEEN: Final = (
    "The call was not made: something in its arguments is kept masked, and would be sent in full, so whoever should "
    "approve it cannot see it. Leave it out, or tell the operator: a pattern that says `arguments: mask` masks what is "
    "sent, too, and one that says `record: keep` shows it."
)
MASKED: Final = (
    "The call was not made: it waits for you, at your client, which was not asked. Nobody else can approve it, since "
    "something in its arguments is kept masked, and would be sent in full."
)
DISMISSED: Final = "The question was put away without an answer, so the call was not made. Call again to be asked."


async def settle(edge: Edge, call: Ongoing) -> None:
    """What is known of such a call decides how it goes on: `allow` where it was approved, `deny` where somebody said
    no, else `ask` with `call.approval`, which waits. Raises LogUnavailable.
    """
    if call.method not in APPROVABLE:
        return
    if edge.settings.sessions == "memory" and not edge.settings.is_local:
        call.refuse("policy", "approvals-unknown", ALONE)
        return
    if not edge.approvals.is_current:
        call.refuse("policy", "approvals-unknown", "Which approvals were used is not known yet. Try again shortly.")
        return
    if call.inputs is not None and call.inputs.is_unasked:  # whoever approves the call does not see them
        call.inputs = None
        call.members.pop("inputResponses", None)
    if call.inputs is not None and call.inputs.approved is not None:
        await _continue(edge, call, call.inputs.approved)
    else:
        await _look(edge, call)
    if call.decision == "allow":
        await edge.aside.in_turns(steps.fingerprinting_arguments(edge, call))


async def _look(edge: Edge, call: Ongoing) -> None:
    edge.approvals.tidy()
    if (told := _too_large(edge, call)) is not None:
        call.refuse("policy", "approval-arguments-too-large", told)
        return
    if call.approver != ANYBODY and _is_masked(call):
        call.refuse("policy", "approval-arguments-masked", f"{call.message} {UNSEEN}")
        return
    binding = _binding(edge, call)
    if call.inputs is not None and call.inputs.approval:
        await _take_answer(edge, call, call.inputs, binding)
    await _find(edge, call, binding)


def _too_large(edge: Edge, call: Ongoing) -> str | None:
    """Nobody approves what nobody can read."""
    size, most = len(call.asked_about), edge.limits.approval_arguments_bytes_max
    if size > most:
        return (
            f"{call.message} Its arguments have {size} bytes, and a person can be asked about {most} at most "
            "(`limits.approval_arguments_bytes_max`). The call was not made: call with less at a time."
        )
    if len(call.target) > TARGET_CHARS_MAX:
        return (
            f"{call.message} Its address has {len(call.target)} characters, and a person can be asked about "
            f"{TARGET_CHARS_MAX} at most. The call was not made."
        )
    return None


def _is_masked(call: Ongoing) -> bool:
    """Whether what is kept for others to judge by is masked where the call is sent in full."""
    is_kept_masked = call.terms.capture == "masked" and call.arguments_captured != call.arguments
    return bool(call.target_captured) or is_kept_masked


def _binding(edge: Edge, call: Ongoing) -> str:
    """Over what was decided on, before anything was masked in it."""
    principal = call.principal
    return binding_of(
        edge.fingerprint_key(principal.tenant),
        tenant=principal.tenant,
        subject_id=principal.subject_id,
        agent=principal.agent,
        method=call.method,
        server=call.server,
        target=call.target,
        arguments=call.asked_about,
    )


async def _continue(edge: Edge, call: Ongoing, approved: Approved) -> None:
    """A further round of a call that was approved: its server asked something. Each round goes on once."""
    assert call.inputs is not None
    if not approved.serves(call.approver, call.rules):
        call.refuse(
            "policy", "approval-required", f"The rules changed meanwhile. {call.message} Call again, from the start."
        )
        return
    if approved.binding and approved.binding != _binding(edge, call):
        told = f"What was approved was another call. {call.message} Call again, from the start."
        call.refuse("policy", "approval-required", told)
        return
    name = f"{call.principal.tenant}|approval|{approved.approval_id}|{call.inputs.rounds}"
    if await _takes(edge, call, name, LEASED_BEYOND_S):
        call.approved = approved
        _permit(call)


def _permit(call: Ongoing) -> None:
    call.decision, call.stage, call.reason, call.message = "allow", "policy", "approved", ""


async def _find(edge: Edge, call: Ongoing, binding: str) -> None:
    tenant, subject_id, full = call.principal.tenant, call.principal.subject_id, ""
    approvals = edge.approvals.of(tenant)
    found = approvals.find(binding, now_us(), call.approver, call.rules)
    if found is None:
        async with edge.approvals.turn(binding):
            found = approvals.find(binding, now_us(), call.approver, call.rules)
            if found is None and not (full := edge.approvals.is_full_for(tenant, subject_id)):
                found = await _open(edge, call, binding)
    call.approval = found
    if found is None:
        call.refuse("limit", "approvals-too-many", full, "limited")
    elif found.state == "denied":
        call.refuse("policy", "approval-denied", _denied(found))
    elif found.state == "granted":
        _permit(call)


async def _open(edge: Edge, call: Ongoing, binding: str) -> Approval:
    at_us, principal = now_us(), call.principal
    approval_id = uuid7(at_us)
    event = ApprovalRequested(
        **edge.place.stamp(principal.tenant, at_us),
        approval_id=approval_id,
        binding=binding,
        subject_id=principal.subject_id,
        agent=principal.agent,
        session_id=call.visit.session_id,
        method=call.method,
        server=call.server,
        target=(call.target_captured or call.target)[:TARGET_CHARS_MAX],
        call_id=call.call_id,
        root_call_id=call.root,
        rules=call.rules,
        message=call.message,
        bundle=call.bundle,
        approver=call.approver,
        expires_us=at_us + (call.asked_for_s or APPROVAL_TTL_S) * 1_000_000,
        edge=edge.place.edge,
        masked=_is_masked(call),
        sealed=Sealed(
            issuer=principal.issuer,
            subject=principal.subject,
            login=principal.login,
            arguments=captured(
                call.arguments, call.arguments_captured, call.terms.capture, edge.limits.capture_bytes_max
            ),
        ),
    )
    with edge.approvals.opening(principal.tenant, principal.subject_id, approval_id):
        return await say(edge, event, mode_of(call))


async def _take_answer(edge: Edge, call: Ongoing, inputs: Inputs, binding: str) -> None:
    """The client brings back what its person said. What it says of another call, or of what is over, says nothing."""
    approval = edge.approvals.of(call.principal.tenant).get(inputs.approval)
    if approval is None or approval.binding != binding or not approval.is_open(now_us()):
        return
    if approval.approver != ANYBODY or not approval.serves(call.approver, call.rules):
        return
    if inputs.answer is None:
        return  # a request that came again without the answer: it is asked again
    meaning, reason = approval_question.meant(inputs.answer, inputs.asked_by)
    if meaning == "opened":
        return  # the page tells the rest
    if meaning == "nothing":
        call.dismissed = True
    elif meaning == "deny" or approval.state == "pending":  # a no counts beside somebody else's yes
        assert call.ruling is not None
        told = call.ruling.told(reason, "arguments")[: approval_question.REASON_CHARS_MAX]
        await decide(edge, approval, inputs.asked_by, meaning == "grant", told, mode_of(call))


async def consume(edge: Edge, call: Ongoing) -> None:
    """The approval's one use. Where another call was faster, this one is refused. Raises LogUnavailable."""
    approval = call.approval
    assert approval is not None
    left_s = max(0.0, (approval.expires_us - now_us()) / 1e6)
    if not await _takes(edge, call, lease_of(approval), left_s + LEASED_BEYOND_S):
        return
    if not _stands(edge.approvals.of(approval.tenant).get(approval.approval_id), call.call_id):
        call.refuse("policy", "approval-used", "The approval of this call ended a moment ago. Call again to ask anew.")
        return
    event = ApprovalConsumed(
        **edge.place.stamp(approval.tenant),
        approval_id=approval.approval_id,
        call_id=call.call_id,
        edge=edge.place.edge,
    )
    await say(edge, event, mode_of(call), approval)
    call.approved = Approved(approval.approval_id, approval.approver, approval.rules, approval.binding)


def _stands(approval: Approval | None, call_id: str) -> bool:
    """Whether it is still granted; others may know already that this call has taken it."""
    if approval is None or approval.denied or approval.expired or approval.used_by not in ("", call_id):
        return False
    return approval.granted is not None and approval.expires_us > now_us()


def lease_of(approval: Approval) -> str:
    return f"{approval.tenant}|approval|{approval.approval_id}"


async def _takes(edge: Edge, call: Ongoing, name: str, ttl_s: float) -> bool:
    """Whether this call, of all calls at all edges, may go on by that approval. False: it is refused."""
    try:
        standing = await edge.sessions.take(name, call.call_id, ttl_s)
    except SessionsUnavailable:
        told = "Whether the approval was used cannot be known now, so the call was not made. Try again shortly."
        call.refuse("policy", "approvals-unknown", told)
        return False
    if standing != call.call_id:
        told = "The approval of this call was used already; it is for one call. Call again to ask for another."
        call.refuse("policy", "approval-used", told)
        if call.approval is not None:
            edge.approvals.used(call.approval, standing)
    return standing == call.call_id


async def ask(edge: Edge, call: Ongoing) -> Reply | Inputs:
    """Put the question to the client, where it may be asked; else say who can approve, and how. `Inputs`: the person
    has answered meanwhile, and the call is admitted and decided anew.
    """
    approval = call.approval
    if approval is None:
        return reply.refusal(call)
    if call.dismissed:
        return refused(call, approval, DISMISSED)
    if (inputs := await _from_page(edge, call, approval)) is not None:
        return inputs
    if approval.approver == ANYBODY:
        asked = await (ask_modern if call.request.modern else ask_live)(edge, call, approval)
        if asked is not None:
            return asked
    if approval.expires_us <= now_us():
        return refused(call, approval, LATE)
    unseen = approval.approver == ANYBODY and is_too_long(edge, call, approval)
    return refused(call, approval, f"{_how(call, approval)} {TOO_LONG}" if unseen else _how(call, approval))


async def _from_page(edge: Edge, call: Ongoing, approval: Approval) -> Inputs | None:
    """A modern client comes back from the page: wait a while for what was said there. None: nothing was."""
    inputs = call.inputs
    if inputs is None or inputs.asked_by != "url" or inputs.approval != approval.approval_id or not call.request.modern:
        return None
    if inputs.answer is None or approval_question.meant(inputs.answer, "url")[0] != "opened":
        return None
    await edge.approvals.decided(approval, PAGE_WAIT_S)
    now = edge.approvals.of(approval.tenant).get(approval.approval_id)
    return inputs if now is not None and now.state in ("granted", "denied") else None


def refused(call: Ongoing, approval: Approval, sentence: str) -> Reply:
    """Not made now: what waits, for whom and until when."""
    about = {"id": approval.approval_id, "expires_us": approval.expires_us, "approver": approval.approver}
    return reply.refused(call, sentence, decision=call.decision, approval=about)


def _how(call: Ongoing, approval: Approval) -> str:
    if approval.masked:
        return f"{call.message} {MASKED}"
    who = {ANYBODY: "you, or somebody who may approve", SOMEBODY_ELSE: "somebody else than you"}.get(
        approval.approver, f"a member of '{approval.approver}' other than you"
    )
    return (
        f"{call.message} The call was not made: it waits for {who}, as approval {approval.approval_id}, until "
        f"{approval_question.clock(approval.expires_us)}. To approve: `tidegate approvals approve "
        f"{approval.approval_id}`, or POST /api/v1/approvals/{approval.approval_id} of the policy service. "
        "Then call again with the same arguments."
    )


def _denied(approval: Approval) -> str:
    denied = approval.denied
    assert denied is not None
    who = "you, at your client" if denied.actor == approval.subject_id else "somebody who may approve it"
    because = f": {denied.reason}" if denied.reason else ""
    return (
        f"This call was denied by {who}{because}. The same call can be asked for again after "
        f"{approval_question.clock(approval.expires_us)}."
    )
