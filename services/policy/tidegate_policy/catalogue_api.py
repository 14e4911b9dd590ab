"""The routes under /api/v1/catalog: the tools that servers offer, what of them is trusted, what changed, and approving.
For administrators. Counterpart: `catalogue.py`.
"""

from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from tidegate.events import Rank, ToolApproved
from tidegate.policy.definition_rules import Action
from tidegate.policy.definitions import Change
from tidegate.policy.trusting import State
from tidegate_policy.access import Access
from tidegate_policy.catalogue import Curator, Shown, digest_of
from tidegate_policy.models import OneLine, Strict
from tidegate_policy.problems import REFUSALS, ProblemRoute, not_found

_BEARER = HTTPBearer(auto_error=False, description="A token for {public_url}/api/v1 of a member of an admin group")
_RING = Annotated[str, Query(max_length=64, description="Judged by the bundle that rules this ring")]
_NAME = Annotated[str, Query(min_length=1, max_length=512)]


class ToolView(BaseModel):
    """One tool that is offered now. `rank` and `gravest`: of the change since what is trusted; null and "" for none."""

    server: str
    tool: str
    state: State
    action: Action = Field(description="What edges do: hold it back, alert, or nothing")
    rank: Rank | None
    gravest: str = Field(description="The gravest change, as a sentence")
    changes: int
    digest: str = Field(description="Of the definition that is offered now")
    trusted: str = Field(description="Digest of the definition that it is compared with; empty where there is none")
    since_us: int = Field(description="Since when this definition is offered")
    approved_by: str = Field(
        description="Subject id of who approved the trusted definition; empty: nobody, it was first"
    )
    approved_us: int
    approval_reason: str


class ServerView(BaseModel):
    """`digest`: of all its definitions together, to approve them all as they were looked at."""

    server: str
    digest: str
    tools: list[ToolView]


class ChangeView(BaseModel):
    """One difference. `before` and `after` are bounded, and as the server wrote them, hidden characters included."""

    rank: Rank
    path: str
    before: str
    after: str
    sentence: str


class DefinitionView(ToolView):
    """With both definitions and all differences, gravest first."""

    differences: list[ChangeView]
    definition: Any
    trusted_definition: Any = Field(description="null where nothing is trusted yet, or it is the same one")


class Approve(Strict):
    server: str = Field(min_length=1, max_length=64)
    tool: str = Field(
        min_length=1, max_length=512, description="The server's own name of it; '*': all that it offers now"
    )
    digest: str = Field(
        "", max_length=64, description="Of what was looked at, or its beginning: else nothing is approved"
    )
    reason: OneLine = Field("", max_length=500)


class ApprovedView(BaseModel):
    server: str
    tool: str
    digest: str
    actor: str
    reason: str
    approved_us: int


async def _actor(request: Request) -> str:
    return str(request.state.principal.subject_id)


def catalogue_router(access: Access, curator: Curator, require_ready: Callable[[], Awaitable[None]]) -> APIRouter:
    """`require_ready` raises a fault while the state is not complete yet."""
    router = APIRouter(
        route_class=ProblemRoute,
        responses=REFUSALS,
        dependencies=[Depends(_BEARER), Depends(access), Depends(require_ready)],
        tags=["catalog"],
    )

    @router.get("/catalog", summary="Tools that servers offer now, and which definitions are trusted")
    async def get_catalog(
        ring: _RING = "main",
        server: Annotated[str, Query(max_length=64)] = "",
        state: State | None = None,
    ) -> list[ServerView]:
        shown = await curator.offered(ring, server)
        return [_server_view(name, list(tools), state) for name, tools in groupby(shown, lambda one: one.known.server)]

    @router.get(
        "/catalog/definition", summary="One tool's definition and what differs", responses=not_found("No such tool")
    )
    async def get_definition(server: _NAME, tool: _NAME, ring: _RING = "main") -> DefinitionView:
        return _definition_view(await curator.tool(ring, server, tool))

    @router.post(
        "/catalog/approvals",
        status_code=201,
        summary="Trust what a server offers now",
        responses=not_found("No such tool"),
    )
    async def post_approval(actor: Annotated[str, Depends(_actor)], wanted: Approve) -> list[ApprovedView]:
        """Empty where all of it was approved before. 409 where what was looked at is not offered any more."""
        done = await curator.approve(wanted.server, wanted.tool, wanted.digest, wanted.reason, actor)
        return [_approved_view(event) for event in done]

    return router


def _server_view(server: str, tools: list[Shown], state: State | None) -> ServerView:
    wanted = [tool_view(one) for one in tools if state in (None, one.judgement.state)]
    return ServerView(server=server, digest=digest_of(one.known for one in tools), tools=wanted)


def tool_view(shown: Shown) -> ToolView:
    return ToolView(**_fields(shown))


def _fields(shown: Shown) -> dict[str, Any]:
    known, judgement = shown.known, shown.judgement
    approval = known.approval
    return {
        "server": known.server,
        "tool": known.tool,
        "state": judgement.state,
        "action": judgement.action,
        "rank": None if judgement.state == "trusted" and not judgement.changes else judgement.rank,
        "gravest": judgement.changes[0].sentence if judgement.changes else "",
        "changes": len(judgement.changes),
        "digest": known.current,
        "trusted": judgement.trusted,
        "since_us": known.since_us,
        "approved_by": approval.actor if approval else "",
        "approved_us": approval.time_us if approval else 0,
        "approval_reason": approval.reason if approval else "",
    }


def _definition_view(shown: Shown) -> DefinitionView:
    known, judgement = shown.known, shown.judgement
    before = known.definitions.get(judgement.trusted) if judgement.trusted != known.current else None
    return DefinitionView(
        **_fields(shown),
        differences=[_change_view(change) for change in judgement.changes],
        definition=_decoded(known.definitions.get(known.current)),
        trusted_definition=_decoded(before),
    )


def _decoded(definition: bytes | None) -> Any:
    return None if definition is None else msgspec.json.decode(definition)


def _change_view(change: Change) -> ChangeView:
    return ChangeView(**msgspec.structs.asdict(change))


def _approved_view(event: ToolApproved) -> ApprovedView:
    return ApprovedView(
        server=event.server,
        tool=event.tool,
        digest=event.digest,
        actor=event.actor,
        reason=event.reason,
        approved_us=event.time_us,
    )
