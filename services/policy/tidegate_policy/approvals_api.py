"""The routes under /api/v1/approvals: who waits for what, and what is decided. Beside administrators they let in the
members of a group that a rule names, and requesters; each sees what is theirs to see, and the rest is not there.

Counterpart: `approvals.py`.
"""

from collections.abc import Awaitable, Callable, Iterator
from itertools import chain, islice
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from tidegate.events import Channel
from tidegate.policy.approvals import Approval, State
from tidegate_policy.access import Access
from tidegate_policy.approvals import Approver, Person, Said, may_decide, may_see, state_at, unknown, wanted
from tidegate_policy.circles import Circles
from tidegate_policy.models import OneLine, Strict
from tidegate_policy.opening import WHY, Opened, Opener
from tidegate_policy.problems import REFUSALS, ProblemDocument, ProblemRoute, not_found

NOTHING = b"null"
LOOKED_AT_MAX = 10_000  # of a tenant's approvals, and of the caller's own, for one list
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
    masked: bool = Field(
        description="What is kept of it is masked in places that would be sent in full: here it can only be denied"
    )
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
    reason: OneLine = Field("", max_length=500, description="Recorded for good, and told to the requester's agent")


async def _caller(request: Request) -> Person:
    """Whom `Access.member` let in."""
    return Person(request.state.principal, request.state.is_admin)


Caller = Annotated[Person, Depends(_caller)]


class Shelf(NamedTuple):
    """What is read from."""

    approver: Approver
    circles: Circles
    opener: Opener
    clock: Callable[[], int]


def approvals_router(
    access: Access,
    approver: Approver,
    circles: Circles,
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
    shelf = Shelf(approver, circles, opener, clock)
    _add_reading(router, shelf)
    _add_deciding(router, shelf)
    return router


def _add_reading(router: APIRouter, shelf: Shelf) -> None:
    @router.get("/approvals", summary="Calls that wait for a person, newest first")
    async def get_approvals(
        who: Caller,
        state: Annotated[
            Literal["pending", "all"],
            Query(description="pending: those to be decided; all: also what was decided, until it expires"),
        ] = "pending",
        limit: _LIMIT = 100,
    ) -> list[ApprovalView]:
        """Those that you may decide, of the newest 10,000 in the tenant, and your own."""
        who = await shelf.circles.around(who, _newest(shelf))
        found = islice(_visible(shelf, who, state), limit)
        return [_view(shelf, one, who) for one in found]

    @router.get(
        "/approvals/{approval_id}",
        summary="One call that waits, with its arguments",
        response_model=ApprovalDetail,
        responses=not_found("No such approval, or none that you may see"),
    )
    async def get_approval(approval_id: _ID, who: Caller) -> Response:
        """The arguments digit by digit as they were captured, where this service can open them."""
        approval = shelf.approver.approvals.get(approval_id)
        if approval is None or not may_see(approval, who := await shelf.circles.around(who, [approval])):
            raise unknown()
        return _detail(shelf, approval, who)


def _visible(shelf: Shelf, who: Person, state: Literal["pending", "all"]) -> Iterator[Approval]:
    """Newest first. However many there are, so many are looked at; whoever asks does not wait for others' questions."""
    own = shelf.approver.approvals.newest_of(who.subject_id, shelf.clock())
    seen: set[str] = set()
    for one in chain(_newest(shelf), islice(own, LOOKED_AT_MAX)):
        if (state == "all" or one.state == "pending") and may_see(one, who) and one.approval_id not in seen:
            seen.add(one.approval_id)
            yield one


def _newest(shelf: Shelf) -> Iterator[Approval]:
    return islice(shelf.approver.approvals.newest(shelf.clock()), LOOKED_AT_MAX)


def _add_deciding(router: APIRouter, shelf: Shelf) -> None:
    @router.post(
        "/approvals/{approval_id}",
        summary="Grant or deny one call",
        responses=not_found("No such approval, or none that you may see") | _CONFLICT,
    )
    async def post_approval(approval_id: _ID, wanted: Decide, who: Caller) -> ApprovalView:
        """For this one call alone: the same principal, agent, tool and arguments, once. The first decision counts."""
        known = shelf.approver.approvals.get(approval_id)
        who = await shelf.circles.around(who, [known] if known is not None else [])
        return _view(shelf, await shelf.approver.decide(approval_id, wanted.decision, wanted.reason, who), who)


def _view(shelf: Shelf, approval: Approval, who: Person) -> ApprovalView:
    return ApprovalView(**_told(shelf, approval, who, _opened(shelf, approval)))


def _detail(shelf: Shelf, approval: Approval, who: Person) -> Response:
    """Encoded here, so that no number of the arguments is read and written again."""
    opened = _opened(shelf, approval)
    told = _told(shelf, approval, who, opened) | {
        "arguments": msgspec.Raw(bytes(opened.part.arguments) or NOTHING),
        "shut_message": WHY.get(opened.shut, ""),
        "session_id": approval.session_id,
        "bundle": approval.bundle,
        "edge": approval.edge,
        "who_decides": wanted(approval),
    }
    return Response(msgspec.json.encode(told), media_type="application/json")


def _opened(shelf: Shelf, approval: Approval) -> Opened:
    return shelf.opener.open(approval.subject_id, shelf.approver.asked(approval.approval_id))


def _told(shelf: Shelf, approval: Approval, who: Person, opened: Opened) -> dict[str, Any]:
    return {
        "approval_id": approval.approval_id,
        "state": state_at(approval, shelf.clock()),
        "subject_id": approval.subject_id,
        "login": opened.part.login or opened.part.subject,
        "agent": approval.agent,
        "method": approval.method,
        "server": approval.server,
        "target": approval.target,
        "rules": approval.rules,
        "message": approval.message,
        "approver": approval.approver,
        "masked": approval.masked,
        "may_decide": may_decide(approval, who),
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
    return {
        "decision": "denied" if stands is approval.denied else "granted",
        "actor": stands.actor,
        "channel": stands.channel,
        "reason": stands.reason,
        "at_us": stands.at_us,
    }
