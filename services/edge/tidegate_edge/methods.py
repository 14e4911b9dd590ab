"""The methods of the MCP endpoint, in both eras, and the sessions of the legacy one.

A legacy session id is a sealed token bound to its principal: any edge can read it; nobody else can use it. Whether it
still lives is the session store's to say, from a local cache in the common case.
"""

from typing import Final

import msgspec

from tidegate.events import Sealed, SessionClosed, SessionOpened
from tidegate.identity import Principal
from tidegate.ids import now_us, uuid7
from tidegate.sessions.port import SessionRecord
from tidegate_edge import lists, spine
from tidegate_edge.accept import Request, refuse
from tidegate_edge.edge import Edge
from tidegate_edge.messages import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    Reply,
    encode,
    result_body,
)
from tidegate_edge.steps import Visit

PURPOSE: Final = "session"
ACKNOWLEDGED_WITHIN_S: Final = 1.0
_MODERN_METHODS: Final = frozenset({"server/discover", "tools/list", "tools/call"})
_LEGACY_METHODS: Final = frozenset({"initialize", "ping", "tools/list", "tools/call"})


async def serve(edge: Edge, principal: Principal, server: str, request: Request) -> Reply:
    """One request or notification of a known principal."""
    if request.method not in (_MODERN_METHODS if request.modern else _LEGACY_METHODS) and request.id is not None:
        return refuse(
            404 if request.modern else 200, METHOD_NOT_FOUND, f"Method not found: {request.method[:64]}", request.id
        )
    if request.method == "initialize":
        return await _initialize(edge, principal, request)
    visit = await _admit(edge, principal, server, request)
    if isinstance(visit, Reply):
        return visit
    if request.id is None:
        return Reply(202)
    if request.method == "tools/call":
        if not isinstance(request.params.get("name"), str):
            return refuse(400 if request.modern else 200, INVALID_PARAMS, "params.name must be a string", request.id)
        return await spine.call_tool(edge, visit, request)
    if request.method == "tools/list":
        return _list_tools(edge, visit, request)
    return Reply(200, result_body(request.id, lists.discovered() if request.modern else b"{}"))


def _list_tools(edge: Edge, visit: Visit, request: Request) -> Reply:
    assert request.id is not None
    if request.params.get("cursor") is not None:
        return refuse(
            400 if request.modern else 200, INVALID_PARAMS, "unknown cursor: the list is one page", request.id
        )
    ruling = edge.rulings.get(visit.principal.tenant)
    if ruling is None:
        return refuse(503, INTERNAL_ERROR, "No policy bundle is active yet, so nothing can be listed.", request.id)
    return Reply(
        200, result_body(request.id, lists.tools_listed(ruling, visit.principal, visit.server, request.modern))
    )


async def _admit(edge: Edge, principal: Principal, server: str, request: Request) -> Visit | Reply:
    """The session: the governance one for modern clients, the MCP session for legacy ones. 404: initialize again."""
    if request.modern:
        whose = (principal.tenant, principal.subject_id, principal.agent, principal.sid)
        session_id = edge.sessions.known_window(*whose)
        if session_id is None:
            session_id = await edge.sessions.window(*whose, edge.limits.session_window_s, now_us())
        return Visit(principal, server, session_id)
    opened = edge.sealer.unseal(PURPOSE, request.session, _binding(principal))
    if opened is None:
        return refuse(404, INVALID_REQUEST, "Session not found: initialize again", request.id)
    session_id = opened.decode()
    if not await _is_live(edge, principal.tenant, session_id):
        return refuse(404, INVALID_REQUEST, "Session not found: initialize again", request.id)
    return Visit(principal, server, session_id, session_id)


async def _is_live(edge: Edge, tenant: str, session_id: str) -> bool:
    """From the local cache in the common case; now and then the store is told that the session is in use."""
    if edge.renewals.is_due(session_id):
        return await edge.sessions.touch(tenant, session_id, edge.limits.session_idle_s)
    if edge.sessions.is_live(tenant, session_id):
        return True
    return await edge.sessions.get(tenant, session_id) is not None


async def _initialize(edge: Edge, principal: Principal, request: Request) -> Reply:
    if request.id is None:
        return refuse(400, INVALID_REQUEST, "initialize is a request: give it an id")
    version, result = lists.initialized(request.params.get("protocolVersion"))
    at_us = now_us()
    session_id = uuid7(at_us)
    client_info = request.params.get("clientInfo")
    info = encode(client_info)
    event = SessionOpened(
        **edge.place.stamp(principal.tenant),
        session_id=session_id,
        subject_id=principal.subject_id,
        agent=principal.agent,
        protocol=version,
        edge=edge.place.edge,
        sealed=Sealed(
            issuer=principal.issuer,
            subject=principal.subject,
            login=principal.login,
            claimed_client=info[:256].decode(errors="replace"),
        ),
    )
    await edge.recorder.record(event, "spool")
    record = SessionRecord(
        session_id=session_id,
        tenant=principal.tenant,
        subject_id=principal.subject_id,
        agent=principal.agent,
        protocol=version,
        client_info=msgspec.Raw(info if len(info) <= 1024 else b"null"),
        capabilities=msgspec.Raw(b"{}"),
        opened_us=at_us,
        edge=edge.place.edge,
    )
    if not await edge.sessions.open(record, edge.limits.session_idle_s):
        most = edge.limits.sessions_per_subject_max
        return refuse(429, INVALID_REQUEST, f"you hold {most} sessions already; end some (DELETE) or wait", request.id)
    sealed = edge.sealer.seal(PURPOSE, session_id.encode(), _binding(principal))
    return Reply(200, result_body(request.id, result), b"mcp-session-id: %b\r\n" % sealed.encode())


async def end_session(edge: Edge, principal: Principal, sealed: str) -> Reply:
    """DELETE: gone on every edge when this answers."""
    opened = edge.sealer.unseal(PURPOSE, sealed, _binding(principal)) if sealed else None
    if opened is None:
        return refuse(
            404 if sealed else 400, INVALID_REQUEST, "Session not found" if sealed else "Mcp-Session-Id is missing"
        )
    session_id = opened.decode()
    if await edge.sessions.get(principal.tenant, session_id) is None:
        return refuse(404, INVALID_REQUEST, "Session not found")
    await edge.sessions.end(principal.tenant, session_id, ACKNOWLEDGED_WITHIN_S)
    event = SessionClosed(
        **edge.place.stamp(principal.tenant),
        session_id=session_id,
        subject_id=principal.subject_id,
        agent=principal.agent,
        cause="deleted",
    )
    await edge.recorder.record(event, "spool")
    return Reply(200)


def _binding(principal: Principal) -> bytes:
    """Whom a session serves; groups may change during it."""
    return f"{principal.tenant}|{principal.subject_id}|{principal.agent}".encode()
