"""What a legacy client says without waiting for an answer, and what it subscribes to."""

import contextlib
from typing import Final

from tidegate.errors import Fault
from tidegate_edge import targets
from tidegate_edge.accept import Request
from tidegate_edge.edge import Edge
from tidegate_edge.messages import encode
from tidegate_edge.visit import Visit

CANCELLED: Final = "notifications/cancelled"
ROOTS_CHANGED: Final = "notifications/roots/list_changed"


async def take(edge: Edge, visit: Visit, request: Request) -> None:
    """One notification. What means nothing here is acknowledged and dropped, as the transport asks."""
    if request.modern:
        return
    if request.method == CANCELLED:
        request_id = request.params.get("requestId")
        if isinstance(request_id, int | str) and not isinstance(request_id, bool):
            await edge.inflight.cancel(visit.protocol_session, request_id)
    elif request.method == ROOTS_CHANGED:
        await _tell_servers(edge, visit)


async def _tell_servers(edge: Edge, visit: Visit) -> None:
    """The servers at which this client's session has a session ask for its roots again."""
    caller = visit.caller(visit.declared)
    for key, _ in await edge.sessions.sessions_of(visit.principal.tenant, visit.protocol_session):
        upstream = edge.upstreams.get(key.server)
        if upstream is not None:
            with contextlib.suppress(Fault):  # advice: a server that is away asks when it needs them
                await upstream.notify(ROOTS_CHANGED, encode({}), caller)


async def subscribed(edge: Edge, visit: Visit, request: Request) -> None:
    """Keep in the session what its streams must hear of."""
    uri = targets.named(request)
    tenant, session_id = visit.principal.tenant, visit.session_id
    if request.method == "resources/subscribe":
        await edge.sessions.amend(tenant, session_id, subscribe=uri)
    else:
        await edge.sessions.amend(tenant, session_id, unsubscribe=uri)
