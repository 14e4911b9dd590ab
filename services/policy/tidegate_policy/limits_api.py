"""The route under /api/v1/limits: what of each limit is used and left, as the session store has it now.

It reads the counters that the edges share, and changes none. A limit that nobody has used has no counter. Counterpart:
`tidegate.sessions.budgets`.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from tidegate.sessions.budgets import HELD_RETRY_MS, Standing, read_name
from tidegate.sessions.port import Budgets
from tidegate_policy.access import Access
from tidegate_policy.problems import REFUSALS, ApiFault, ProblemRoute

READ_MAX = 20_000
_BEARER = HTTPBearer(auto_error=False, description="A token for {public_url}/api/v1 of a member of an admin group")
_PAGE = Annotated[int, Query(ge=1, le=1_000, description="At most so many, fullest first")]


class CounterView(BaseModel):
    """One measure of one limit, for one combination of what it is kept per."""

    limit: str
    measure: str = Field(description="calls, daily-calls, daily-bytes, daily-records, daily-cost or concurrent")
    per: dict[str, str] = Field(description="tenant, user (subject id), agent, server, tool (server/tool)")
    most: int = Field(description="Of daily-cost, millionths of the unit of prices")
    used: int = Field(description="What edges hold on lease included")
    left: int
    held: int = Field(description="On lease at edges, which give back what they do not use")
    next_us: int = Field(description="When there is some of it at the latest; 0: there is, or that cannot be told")
    renewed_us: int = Field(description="When nothing of it will be used any more; 0: that cannot be told")


class LimitsView(BaseModel):
    counters: list[CounterView]
    whole: bool = Field(description="False where there are more counters than were looked at, or are shown")


def limits_router(
    access: Access,
    budgets: Budgets | None,
    tenant: str,
    require_ready: Callable[[], Awaitable[None]],
    clock: Callable[[], int],
) -> APIRouter:
    """`budgets` None: every edge counts in its own memory, which this service cannot see."""
    router = APIRouter(
        route_class=ProblemRoute,
        responses=REFUSALS,
        dependencies=[Depends(_BEARER), Depends(access), Depends(require_ready)],
    )

    @router.get("/limits", tags=["limits"], summary="What of each limit is used and left")
    async def get_limits(
        limit: str = "", user: str = "", agent: str = "", server: str = "", tool: str = "", most: _PAGE = 100
    ) -> LimitsView:
        if budgets is None:
            sentence = "edges count limits in their own memory; set `sessions: redis://…` for them and this service"
            raise ApiFault(409, "limits-in-memory", sentence)
        found, whole = await budgets.standings(tenant, READ_MAX)
        wanted = {"limit": limit, "user": user, "agent": agent, "server": server, "tool": tool}
        shown = [view for standing in found if (view := _view(standing, clock())) and _fits(view, wanted)]
        shown.sort(key=lambda view: (-view.used / view.most, view.limit, view.measure))
        return LimitsView(counters=shown[:most], whole=whole and len(shown) <= most)

    return router


def _view(standing: Standing, at_us: int) -> CounterView | None:
    try:
        limit, measure, per = read_name(standing.name)
    except msgspec.DecodeError:
        return None  # a newer edge's
    return CounterView(
        limit=limit,
        measure=measure,
        per=per,
        most=standing.most,
        used=standing.used,
        left=max(0, standing.most - standing.used),
        held=standing.held,
        next_us=at_us + next_ms * 1000 if (next_ms := next_in_ms(standing)) else 0,
        renewed_us=at_us + standing.full_ms * 1000 if standing.full_ms else 0,
    )


def next_in_ms(standing: Standing) -> int:
    """How long until one unit more can be had, as its refused callers are told; 0: now, or nobody knows. Pure."""
    if standing.used < standing.most or not standing.full_ms:
        return 0
    waits = standing.full_ms
    if standing.kind == "bucket":
        waits = max(1, waits - (standing.most - 1) * standing.every_ms // standing.refill)
    return min(waits, HELD_RETRY_MS) if standing.held else waits


def _fits(view: CounterView, wanted: dict[str, str]) -> bool:
    known = {"limit": view.limit, **view.per}
    return all(not value or known.get(name) == value for name, value in wanted.items())
