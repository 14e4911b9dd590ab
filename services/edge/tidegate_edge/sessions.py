"""Sessions: a legacy client's own, opened by `initialize`, ended by DELETE; a modern client's governance session.

A legacy session id is a sealed token bound to its principal: any edge can read it; nobody else can use it. Whether it
still lives is the session store's to say, from a local cache in the common case.
"""

import asyncio
import logging
from typing import Any, Final

import msgspec

from tidegate.claims import Principal
from tidegate.errors import Fault
from tidegate.events import Sealed, SessionClosed, SessionOpened
from tidegate.ids import now_us, uuid7
from tidegate.sessions.port import SessionRecord
from tidegate_edge import lists
from tidegate_edge.accept import BATCH_VERSION, Request, Response, refuse
from tidegate_edge.edge import Edge
from tidegate_edge.exchange import Exchange
from tidegate_edge.looking_ahead import look_ahead
from tidegate_edge.messages import INVALID_REQUEST, Reply, encode, result_body
from tidegate_edge.ruling import Ruling
from tidegate_edge.upstream.port import Answer, Caller, Upstream
from tidegate_edge.visit import Visit

PURPOSE: Final = "session"
ACKNOWLEDGED_WITHIN_S: Final = 1.0
CLAIMED_CHARS_MAX: Final = 256
CLAIMED_READ_BYTES: Final = 1_024
ENDS_WITHIN_S: Final = 10.0
GONE: Final = "Session not found: initialize again"

_log = logging.getLogger(__name__)


async def admit(
    edge: Edge, principal: Principal, door: str, request: Request, exchange: Exchange | None
) -> Visit | Reply:
    """The session of a request. 404: initialize again."""
    source = exchange
    if request.in_batch:
        exchange = None
    if request.modern:
        whose = (principal.tenant, principal.subject_id, principal.agent, principal.sid)
        session_id = edge.sessions.known_window(*whose)
        if session_id is None:
            session_id = await edge.sessions.window(*whose, edge.limits.session_window_s, now_us())
        return Visit(principal, door, session_id, "", request.version, None, exchange, request.id, source)
    record = await standing(edge, principal, request.session)
    if record is None:
        return refuse(404, INVALID_REQUEST, GONE, request.id)
    if request.in_batch and record.protocol != BATCH_VERSION:
        return refuse(400, INVALID_REQUEST, f"batches exist on revision {BATCH_VERSION} only", request.id)
    session_id = record.session_id
    return Visit(principal, door, session_id, session_id, record.protocol, record, exchange, request.id, source)


async def standing(edge: Edge, principal: Principal, sealed: str) -> SessionRecord | None:
    """The live session behind the id that a client sent; None where there is none of this principal's.

    From the local cache in the common case; now and then the store is told that the session is in use.
    """
    opened = edge.sealer.unseal(PURPOSE, sealed, _binding(principal))
    if opened is None:
        return None
    tenant, session_id = principal.tenant, opened.decode()
    due = edge.renewals.is_due(session_id)
    if due and not await edge.sessions.touch(tenant, session_id, edge.limits.session_idle_s):
        return None
    return edge.sessions.known(tenant, session_id) or await edge.sessions.get(tenant, session_id)


async def initialize(edge: Edge, principal: Principal, door: str, request: Request) -> Reply:
    """A new session: recorded, stored, and its id sealed for the client."""
    if request.id is None:
        return refuse(400, INVALID_REQUEST, "initialize is a request: give it an id")
    ruling = edge.ruling_of(principal)
    if ruling is not None:
        await look_ahead(ruling, principal, door)
    version, result = lists.initialized(ruling, principal, door, request.params.get("protocolVersion"))
    at_us = now_us()
    session_id = uuid7(at_us)
    info = encode(request.params.get("clientInfo"))
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
            claimed_client=_told(ruling, info),
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
        capabilities=msgspec.Raw(_relayed(request.params.get("capabilities"))),
        opened_us=at_us,
        edge=edge.place.edge,
    )
    if not await edge.sessions.open(record, edge.limits.session_idle_s):
        most = edge.limits.sessions_per_subject_max
        return refuse(429, INVALID_REQUEST, f"you hold {most} sessions already; end some (DELETE) or wait", request.id)
    sealed = edge.sealer.seal(PURPOSE, session_id.encode(), _binding(principal))
    return Reply(200, result_body(request.id, result), b"mcp-session-id: %b\r\n" % sealed.encode())


async def end(edge: Edge, principal: Principal, sealed: str) -> Reply:
    """DELETE: gone on every edge when this answers, and at the servers that held a session for it."""
    if not sealed:
        return refuse(400, INVALID_REQUEST, "Mcp-Session-Id is missing")
    opened = edge.sealer.unseal(PURPOSE, sealed, _binding(principal))
    session_id = opened.decode() if opened is not None else ""
    if not session_id or await edge.sessions.get(principal.tenant, session_id) is None:
        return refuse(404, INVALID_REQUEST, "Session not found")
    held = await edge.sessions.sessions_of(principal.tenant, session_id)
    await edge.sessions.end(principal.tenant, session_id, ACKNOWLEDGED_WITHIN_S)
    caller = Caller(principal.tenant, principal.subject_id, principal.agent, session_id)
    for server in sorted({key.server for key, _ in held} | edge.processes):
        if (upstream := edge.upstreams.get(server)) is not None:
            edge.tasks.start(end_upstream(upstream, caller), f"end sessions at {server}")
    event = SessionClosed(
        **edge.place.stamp(principal.tenant),
        session_id=session_id,
        subject_id=principal.subject_id,
        agent=principal.agent,
        cause="deleted",
    )
    await edge.recorder.record(event, "spool")
    return Reply(200)


async def end_upstream(upstream: Upstream, caller: Caller) -> None:
    """What a caller holds at a server, in the background: whatever goes wrong there, the edge goes on."""
    try:
        async with asyncio.timeout(ENDS_WITHIN_S):
            await upstream.end(caller)
    except (Fault, TimeoutError) as fault:
        _log.info("%s: a session may stay until it is idle: %s", upstream.name, fault)
    except Exception:  # this task's own loop: nobody else could catch it
        _log.exception("%s: a session could not be ended", upstream.name)


async def answered(edge: Edge, principal: Principal, response: Response) -> Reply:
    """A client's answer to what a server asked. 2025-11-25 basic/transports: 202 where it is taken."""
    record = await standing(edge, principal, response.session)
    if record is None:
        return refuse(404, INVALID_REQUEST, GONE, response.id)
    answer = Answer(response.result, response.error)
    if await edge.asks.answered(record.session_id, response.id, answer):
        return Reply(202)
    return refuse(400, INVALID_REQUEST, "nothing in this session waits for this response", response.id)


def _told(ruling: Ruling | None, info: bytes) -> str:
    """What a client says of itself, as an event may keep it; nothing where nobody knows yet what must be masked."""
    text = info[:CLAIMED_READ_BYTES].decode(errors="replace")
    return ruling.told(text, "arguments")[:CLAIMED_CHARS_MAX] if ruling is not None else ""


def _relayed(capabilities: Any) -> bytes:
    return encode(capabilities) if isinstance(capabilities, dict) else b"{}"


def _binding(principal: Principal) -> bytes:
    """Whom a session serves; groups may change during it."""
    return f"{principal.tenant}|{principal.subject_id}|{principal.agent}".encode()
