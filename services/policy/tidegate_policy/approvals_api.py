"""The routes under /api/v1/approvals: who waits for what, and what is decided. Beside administrators they let in the
members of a group that a rule names, and requesters; each sees what is theirs to see, and the rest is not there.

Counterpart: `approvals.py`.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from tidegate.claims import Principal
from tidegate.events import Channel
from tidegate.policy.approvals import Approval, State
from tidegate_policy.access import Access
from tidegate_policy.approvals import Approver, Said, may_decide, may_see, state_at, unknown, wanted
from tidegate_policy.models import Strict
from tidegate_policy.opening import WHY, Opened, Opener
from tidegate_policy.problems import REFUSALS, ProblemDocument, ProblemRoute, not_found

NOTHING = b"null"
_BEARER = HTTPBearer(
    scheme_name="Approver",
    auto_error=False,
    description="A token for {public_url}/api/v1 of anybody in the tenant: what it opens depends on who they are",
)
_LIMIT = Annotated[int, Query(ge=1, le=1_000, description="At most so many, newest first")]
_ID = Annotated[str, Path(max_length=128, description="The approval's id, as the refusal tells it")]
_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {
        "model": ProblemDocument,
        "description": "It is decided, used or expired already; `code` and `detail` say what stands",
        "content": {"application/problem+json": {}},
    }
}


class DecisionView(BaseModel):
    """What somebody said."""

    decision: Literal["granted", "denied"]
    actor: str = Field(description="Subject id of who decided")
    channel: Channel = Field(description="api: here; form, url: the requester, asked through the client")
    reason: str
    at_us: int


class ApprovalView(BaseModel):
    """One call that a rule wants a person to approve, and what became of it."""

    approval_id: str
    state: State
    subject_id: str = Field(description="Of the requester")
    login: str = Field(description="Of the requester; empty where `shut` says why")
    agent: str
    method: str
    server: str
    target: str = Field(description="The tool, prompt or resource, by the server's own name of it")
    rules: tuple[str, ...] = Field(description="Ids of the rules that ask")
    message: str = Field(description="Their sentence")
    approver: str = Field(description="Who may decide: empty the requester, too; 'other' somebody else; else a group")
    may_decide: bool = Field(description="Whether you may")
    call_id: str = Field(description="The call that asked; `tidegate why` tells it")
    requested_us: int
    expires_us: int = Field(description="A question is to be decided before, a grant to be used")
    decision: DecisionView | None = Field(description="A denial stands before a grant, until that is used")
    used_by: str = Field(description="Id of the one call that it let pass; empty: none")
    shut: Literal["", "erased", "no-key-file", "key-not-here", "altered", "not-kept"] = Field(
        description="Why the personal part cannot be read; empty: it can"
    )


class ApprovalDetail(ApprovalView):
    """With what is to be judged."""

    arguments: Any = Field(None, description="As captured; null where `shut` says why, or where none were captured")
    shut_message: str = Field("", description="`shut` as a sentence")
    session_id: str
    bundle: str = Field(description="Digest of the bundle whose rules ask")
    edge: str
    who_decides: str = Field(description="`approver` as words")


class Decide(Strict):
    decision: Said
    reason: str = Field("", max_length=500, description="Recorded for good, and told to the requester's agent")


async def _caller(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


async def _is_admin(request: Request) -> bool:
    return bool(request.state.is_admin)


Caller = Annotated[Principal, Depends(_caller)]
IsAdmin = Annotated[bool, Depends(_is_admin)]


def approvals_router(
    access: Access,
    approver: Approver,
    opener: Opener,
    require_ready: Callable[[], Awaitable[None]],
    clock: Callable[[], int],
) -> APIRouter:
    """Beside the management router, not in it: its door is wider."""
    router = APIRouter(
        route_class=ProblemRoute,
        responses=REFUSALS,
        dependencies=[Depends(_BEARER), Depends(access.member), Depends(require_ready)],
        tags=["approvals"],
    )
    _add_reading(router, approver, opener, clock)
    _add_deciding(router, approver, opener, clock)
    return router


def _add_reading(router: APIRouter, approver: Approver, opener: Opener, clock: Callable[[], int]) -> None:
    @router.get("/approvals", summary="Calls that wait for a person, newest first")
    async def get_approvals(
        who: Caller,
        is_admin: IsAdmin,
        state: Annotated[
            Literal["pending", "all"],
            Query(description="pending: those to be decided; all: also what was decided, until it expires"),
        ] = "pending",
        limit: _LIMIT = 100,
    ) -> list[ApprovalView]:
        """Those that you may decide, and your own."""
        now_us = clock()
        found = [
            one
            for one in reversed(approver.approvals.current(now_us))
            if may_see(one, who, is_admin) and (state == "all" or one.state == "pending")
        ]
        return [ApprovalView(**_told(one, opener, approver, who, is_admin, now_us)) for one in found[:limit]]

    @router.get(
        "/approvals/{approval_id}",
        summary="One call that waits, with its arguments",
        response_model=ApprovalDetail,
        responses=not_found("No such approval, or none that you may see"),
    )
    async def get_approval(approval_id: _ID, who: Caller, is_admin: IsAdmin) -> Response:
        """The arguments digit by digit as they were captured, where this service can open them."""
        approval = approver.approvals.get(approval_id)
        if approval is None or not may_see(approval, who, is_admin):
            raise unknown()
        return _detail(approval, opener, approver, who, is_admin, clock())


def _add_deciding(router: APIRouter, approver: Approver, opener: Opener, clock: Callable[[], int]) -> None:
    @router.post(
        "/approvals/{approval_id}",
        summary="Grant or deny one call",
        responses=not_found("No such approval, or none that you may see") | _CONFLICT,
    )
    async def post_approval(approval_id: _ID, wanted: Decide, who: Caller, is_admin: IsAdmin) -> ApprovalView:
        """For this one call alone: the same principal, agent, tool and arguments, once. The first decision counts."""
        decided = await approver.decide(approval_id, wanted.decision, wanted.reason, who, is_admin=is_admin)
        return ApprovalView(**_told(decided, opener, approver, who, is_admin, clock()))


def _detail(
    approval: Approval, opener: Opener, approver: Approver, who: Principal, is_admin: bool, now_us: int
) -> Response:
    """Encoded here, so that no number of the arguments is read and written again."""
    opened = opener.open(approval.subject_id, approver.asked(approval.approval_id))
    told = _told(approval, opener, approver, who, is_admin, now_us) | {
        "arguments": msgspec.Raw(bytes(opened.part.arguments) or NOTHING),
        "shut_message": WHY.get(opened.shut, ""),
        "session_id": approval.session_id,
        "bundle": approval.bundle,
        "edge": approval.edge,
        "who_decides": wanted(approval),
    }
    return Response(msgspec.json.encode(told), media_type="application/json")


def _told(
    approval: Approval, opener: Opener, approver: Approver, who: Principal, is_admin: bool, now_us: int
) -> dict[str, Any]:
    opened: Opened = opener.open(approval.subject_id, approver.asked(approval.approval_id))
    return {
        "approval_id": approval.approval_id,
        "state": state_at(approval, now_us),
        "subject_id": approval.subject_id,
        "login": opened.part.login or opened.part.subject,
        "agent": approval.agent,
        "method": approval.method,
        "server": approval.server,
        "target": approval.target,
        "rules": approval.rules,
        "message": approval.message,
        "approver": approval.approver,
        "may_decide": may_decide(approval, who, is_admin),
        "call_id": approval.call_id,
        "requested_us": approval.requested_us,
        "expires_us": approval.expires_us,
        "decision": _decision(approval),
        "used_by": approval.used_by,
        "shut": opened.shut,
    }


def _decision(approval: Approval) -> dict[str, Any] | None:
    stands = approval.decision
    if stands is None:
        return None
    word = "denied" if stands is approval.denied else "granted"
    return {
        "decision": word,
        "actor": stands.actor,
        "channel": stands.channel,
        "reason": stands.reason,
        "at_us": stands.at_us,
    }
