"""The methods of the MCP endpoint, in both eras: which are served where, and by whom."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from tidegate.claims import Principal
from tidegate.ids import now_us
from tidegate_edge import listen, lists, notices, reply, sessions, spine, targets
from tidegate_edge.accept import Request, refuse
from tidegate_edge.edge import Edge
from tidegate_edge.exchange import Exchange
from tidegate_edge.looking_ahead import look_ahead
from tidegate_edge.messages import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, Reply, result_body
from tidegate_edge.talk import LEVELS
from tidegate_edge.visit import Visit

LISTS: Final = {
    "tools/list": "tool",
    "prompts/list": "prompt",
    "resources/list": "resource",
    "resources/templates/list": "template",
}
_EMPTY: Final = b"{}"
NO_BUNDLE: Final = (
    "No policy bundle is active yet, so nothing can be listed: `tidegate bundle publish DIRECTORY` publishes one."
)
_NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", **dict.fromkeys(targets.TASKS, "taskId")}
_GOVERNED: Final = targets.GOVERNED - targets.SUBSCRIBING
MODERN: Final = frozenset({"server/discover", "subscriptions/listen", *LISTS, *_GOVERNED, *targets.TASKS})
LEGACY: Final = frozenset({"initialize", "ping", "logging/setLevel", *LISTS, *targets.GOVERNED})


async def serve(edge: Edge, principal: Principal, door: str, request: Request, exchange: Exchange) -> Reply:
    """One request or notification of a known principal; the members of a batch share an exchange."""
    method, request_id = request.method, request.id
    if request_id is not None and method not in (MODERN if request.modern else LEGACY):
        status = 404 if request.modern else 200
        return refuse(status, METHOD_NOT_FOUND, f"Method not found: {method[:64]}", request_id)
    if method == "initialize":
        return await sessions.initialize(edge, principal, door, request)
    visit = await sessions.admit(edge, principal, door, request, exchange)
    if isinstance(visit, Reply):
        return visit
    if request_id is None:
        await notices.take(edge, visit, request)
        return Reply(202)
    if method in targets.GOVERNED or method in targets.TASKS:
        return await _governed(edge, visit, request)
    if method in LISTS:
        return await _list(edge, visit, request, LISTS[method])
    return await _OTHERS[method](edge, visit, request)


async def _governed(edge: Edge, visit: Visit, request: Request) -> Reply:
    if wrong := _misnamed(request):
        return _invalid(request, wrong)
    if request.modern:
        return await spine.call(edge, visit, request)
    assert request.id is not None
    if visit.exchange is not None:
        visit.exchange.outlet(
            visit.principal, visit.protocol_session, visit.protocol, request.id
        )  # opens when it lasts
    with edge.inflight.running(visit.protocol_session, request.id):
        reply = await spine.call(edge, visit, request)
    if request.method in targets.SUBSCRIBING and not reply.recorded:  # it was done: refusals say that they are recorded
        await notices.subscribed(edge, visit, request)
    return reply


def _misnamed(request: Request) -> str:
    """What is wrong with how the params name their target; "" where nothing is."""
    params = request.params
    if request.method == "completion/complete":
        ref, argument = params.get("ref"), params.get("argument")
        if not isinstance(ref, dict) or ref.get("type") not in ("ref/prompt", "ref/resource"):
            return "params.ref must be a ref/prompt or a ref/resource"
        if not isinstance(argument, dict) or not isinstance(argument.get("name"), str):
            return "params.argument must have a name"
        return "" if targets.named(request) else "params.ref must name a prompt or a resource"
    key = _NAMED_BY.get(request.method, "uri")
    return "" if isinstance(params.get(key), str) else f"params.{key} must be a string"


async def _list(edge: Edge, visit: Visit, request: Request, kind: Any) -> Reply:
    assert request.id is not None
    ruling = edge.ruling_of(visit.principal)
    if ruling is None:
        return refuse(503, INTERNAL_ERROR, NO_BUNDLE, request.id)
    if not ruling.catalog.door(visit.door).servers and (edge.discovery.troubles or edge.discovery.awaiting):
        told = "No server at this endpoint has told what it offers yet; try again shortly."
        return refuse(503, INTERNAL_ERROR, told, request.id, {"reason": "lists-unavailable"})
    cursor = request.params.get("cursor")
    if cursor is not None and not isinstance(cursor, str):
        return _invalid(request, "params.cursor must be a string")
    principal = visit.principal
    quarantines, at_us = edge.quarantines_of(principal.tenant), now_us()
    standing = quarantines.match(visit.session_id, principal.subject_id, principal.agent, "", "", at_us)
    if standing is not None:
        return reply.quarantined(request, standing)
    await look_ahead(ruling, principal, visit.door)
    stopped = quarantines.stopped(at_us)
    try:
        result = lists.listed(edge, ruling, principal, visit.door, kind, request.modern, cursor, stopped)
    except lists.BadCursor as bad:
        return _invalid(request, str(bad))
    return Reply(200, result_body(request.id, result))


async def _discover(edge: Edge, visit: Visit, request: Request) -> Reply:
    assert request.id is not None
    ruling = edge.ruling_of(visit.principal)
    return Reply(200, result_body(request.id, lists.discovered(ruling, visit.principal, visit.door)))


async def _ping(edge: Edge, visit: Visit, request: Request) -> Reply:
    assert request.id is not None
    return Reply(200, result_body(request.id, _EMPTY))


async def _set_level(edge: Edge, visit: Visit, request: Request) -> Reply:
    assert request.id is not None
    level = request.params.get("level")
    if level not in LEVELS:
        return _invalid(request, f"params.level must be one of {', '.join(LEVELS)}")
    if await edge.sessions.amend(visit.principal.tenant, visit.session_id, log_level=level) is None:
        return refuse(404, INTERNAL_ERROR, sessions.GONE, request.id)
    return Reply(200, result_body(request.id, _EMPTY))


async def _listen(edge: Edge, visit: Visit, request: Request) -> Reply:
    return await listen.listen(edge, visit, request, visit.outlet)


_OTHERS: Final[dict[str, Callable[[Edge, Visit, Request], Awaitable[Reply]]]] = {
    "server/discover": _discover,
    "ping": _ping,
    "logging/setLevel": _set_level,
    "subscriptions/listen": _listen,
}


def _invalid(request: Request, message: str) -> Reply:
    return refuse(400 if request.modern else 200, INVALID_PARAMS, message, request.id)
