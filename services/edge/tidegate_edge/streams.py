"""GET at the MCP endpoint, for sessions of the revisions before 2026-07-28: what servers say outside of requests, or,
with Last-Event-ID, the rest of an answer whose stream broke off.

The standing stream's events have no ids: it holds nothing that must not be lost, and a client that comes back finds the
state itself. It ends with its session, with the token it was opened under, and when the edge drains.
Sources: 2025-11-25 basic/transports, "Listening for Messages from the Server", "Resumability and Redelivery".
"""

import asyncio
from collections.abc import Awaitable
from typing import Final

import msgspec

from tidegate.claims import Principal
from tidegate.errors import Fault
from tidegate.ids import now_us
from tidegate.sessions.port import KeptEvent, SessionRecord, SessionsUnavailable
from tidegate_edge import asking, facts, lists, sessions, steps, tainting
from tidegate_edge.abilities import ASKED_WITH
from tidegate_edge.accept import LEGACY_VERSIONS, MODERN_VERSIONS, Request, refuse
from tidegate_edge.announcements import Hearing
from tidegate_edge.calls import Ongoing, requested_event
from tidegate_edge.edge import Edge
from tidegate_edge.exchange import Exchange
from tidegate_edge.messages import INTERNAL_ERROR, INVALID_REQUEST, Reply, RpcError, encode, error_body, notification
from tidegate_edge.open_streams import Standing
from tidegate_edge.outlet import (
    StreamOutlet,
    edge_of,
    event_id_of,
    is_priming,
    owner_of,
    primed_for,
    read_event_id,
)
from tidegate_edge.overhearing import (
    CHANGED,
    UPDATED,
    Ears,
    Need,
    changes,
    is_wanted,
    may_ever_read,
    passed_on,
    updated_uri,
)
from tidegate_edge.ruling import Ruling
from tidegate_edge.talk import LIST_CHANGES, is_loud_enough
from tidegate_edge.upstream.port import ACKNOWLEDGED, Answer
from tidegate_edge.visit import Visit

WAIT_S: Final = 5.0  # for the next kept event; then look whether the session still stands, and whoever fills it
LOOK_AGAIN_S: Final = 60.0
AWAY_S: Final = 2.0  # until the session store is asked again
_STREAM_KINDS: Final = frozenset({b"text/event-stream", b"text/*", b"*/*"})
_NEVER_PASSED: Final = frozenset(
    {ACKNOWLEDGED, "notifications/cancelled", "notifications/progress", "notifications/initialized"}
)
EDGE_LOST: Final = "The edge that served this call is gone; whether the call was carried out is in its records."
ALLOW: Final = b"allow: POST\r\n"


async def get_stream(edge: Edge, principal: Principal, door: str, exchange: Exchange) -> Reply:
    """One GET, to its end. 405 for modern clients, 406, 400 and 404 as the transport asks, 429 at a subject's bound."""
    headers = exchange.headers
    version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
    if version in MODERN_VERSIONS:
        refused = refuse(405, INVALID_REQUEST, "this revision has no GET: use subscriptions/listen")
        return Reply(405, refused.body, ALLOW)
    if version and version not in LEGACY_VERSIONS:
        return refuse(400, INVALID_REQUEST, "unsupported MCP-Protocol-Version")
    if _STREAM_KINDS.isdisjoint(
        part.split(b";", 1)[0].strip().lower() for part in headers.get(b"accept", b"").split(b",")
    ):
        return refuse(406, INVALID_REQUEST, "accept must allow text/event-stream")
    sealed = headers.get(b"mcp-session-id", b"").decode("latin-1")
    if not sealed:
        return refuse(400, INVALID_REQUEST, "Mcp-Session-Id is missing: send initialize first")
    record = await sessions.standing(edge, principal, sealed)
    if record is None:
        return refuse(404, INVALID_REQUEST, sessions.GONE)
    exchange.cancel_on_disconnect = True
    with edge.streams.held(principal) as is_held:
        if not is_held:
            most = edge.limits.streams_per_subject_max
            return refuse(429, INVALID_REQUEST, f"you hold {most} streams already; end some")
        given = headers.get(b"last-event-id", b"").decode("latin-1")
        if given:
            return await _resume(edge, principal, record, exchange, given)
        await _stand(edge, principal, door, exchange, record)
        return Reply(200)


async def _resume(edge: Edge, principal: Principal, record: SessionRecord, exchange: Exchange, given: str) -> Reply:
    """What followed an event of one of this session's own streams, at whichever edge it was; then what still comes."""
    named = read_event_id(given)
    owner, (stream, number) = owner_of(principal.tenant, record.session_id), named or ("", "")
    events = await edge.sessions.kept_after(owner, stream, number, 0) if named else None
    if events is None:
        return refuse(400, INVALID_REQUEST, "nothing that followed this Last-Event-ID is kept for this session")
    out = exchange.outlet(principal, "", record.protocol)
    out.open()

    async def replay() -> None:
        following: list[KeptEvent] | None = events
        last = number
        while following is not None:
            for one in following:
                last = one.number
                if not is_priming(one.message):
                    out.put(event_id_of(stream, last), one.message)
                    await out.stream.drained()
            if not following:
                if await _live(edge, principal, record.session_id) is None:
                    return
                await _end_if_lost(edge, owner, stream)
            following = await edge.sessions.kept_after(owner, stream, last, WAIT_S)

    replaying = asyncio.create_task(replay(), name="replay a kept stream")
    try:
        await _first_of(replaying, edge.draining.wait(), within_s=_left_s(principal))
    finally:
        replaying.cancel()
        await asyncio.gather(replaying, return_exceptions=True)
    return Reply(200)


async def _end_if_lost(edge: Edge, owner: str, stream: str) -> None:
    """Where the edge that fills a stream is gone, its last event is that nothing more will come."""
    if await edge.sessions.post(edge_of(stream), b"alive\n"):
        return
    first = await edge.sessions.kept_after(owner, stream, "0-0", 0)
    request_id = primed_for(first[0].message) if first and is_priming(first[0].message) else None
    ttl_s = edge.limits.stream_kept_s
    if request_id is not None:
        await edge.sessions.keep(owner, stream, error_body(request_id, INTERNAL_ERROR, EDGE_LOST), ttl_s)
    await edge.sessions.finish(owner, stream, ttl_s)


async def _stand(edge: Edge, principal: Principal, door: str, exchange: Exchange, record: SessionRecord) -> None:
    """The session's standing stream."""
    out = exchange.outlet(principal, "", record.protocol)
    session = record.session_id
    with edge.streams.standing(principal.tenant, session) as standing, edge.announcements.hearing() as hearing:
        out.open()
        await edge.streams.replace_elsewhere(principal.tenant, session, standing)
        visit = Visit(principal, door, session, session, record.protocol, record, exchange, source=exchange)
        stream = GetStream(edge, visit, out)
        async with asyncio.TaskGroup() as group:
            ears = Ears(edge, group, visit.caller(visit.declared), False, lambda server: FromServer(stream, server))
            telling = group.create_task(stream.tell(hearing), name="tell list changes")
            try:
                await stream.stay(standing, ears)
            finally:
                telling.cancel()
                ears.close()


class GetStream:
    """A standing stream and the session that it belongs to, as it is now."""

    def __init__(self, edge: Edge, visit: Visit, out: StreamOutlet) -> None:
        self.edge = edge
        self.visit = visit
        self.out = out
        self.wanted: dict[str, frozenset[str]] = {}  # by server: its URIs that the session subscribed to
        self._taintings: dict[str, tainting.Tainting | None] = {}

    async def stay(self, standing: Standing, ears: Ears) -> None:
        """Until there is no reason for the stream any more; `ears` follow what the session holds and wants."""
        edge, principal = self.edge, self.visit.principal
        while not standing.is_replaced and not edge.draining.is_set() and _left_s(principal) > 0:
            standing.stirred.clear()
            within_s = min(LOOK_AGAIN_S, edge.limits.session_idle_s / 8)
            try:
                record = await _live(edge, principal, self.visit.session_id)
                if record is None:
                    return
                self._take(record)
                held = await edge.sessions.sessions_of(principal.tenant, record.session_id)
                ears.need(self._needs({key.server: f"{one.opened_us}|{one.session_id}" for key, one in held}))
            except SessionsUnavailable:  # the stream goes on as it was
                within_s = AWAY_S
            within_s = min(within_s, _left_s(principal))
            await _first_of(standing.stirred.wait(), edge.draining.wait(), within_s=within_s)

    def _take(self, record: SessionRecord) -> None:
        visit = self.visit
        self.visit = msgspec.structs.replace(visit, record=record)
        ruling = self.edge.ruling_of(visit.principal)
        wanted: dict[str, set[str]] = {}
        for uri in record.uris if ruling else ():
            assert ruling is not None
            found = ruling.catalog.find_resource(visit.door, uri)
            if found is not None and may_ever_read(ruling, visit.principal, found[0].server, found[1]):
                wanted.setdefault(found[0].server, set()).add(found[1])
        self.wanted = {server: frozenset(uris) for server, uris in wanted.items()}

    def _needs(self, held: dict[str, str]) -> dict[str, Need]:
        servers = set(held) | set(self.wanted)
        return {server: Need(self.wanted.get(server, frozenset()), held.get(server, "")) for server in servers}

    async def tell(self, hearing: Hearing) -> None:
        """Changes that this edge hears of by itself."""
        while True:
            heard = await hearing.heard()
            for kind in await changes(self.edge, self.visit, heard):
                self.out.send(notification(CHANGED[kind], b"{}"))
            for one in heard:
                if one.kind == "updated" and one.tenant == self.visit.principal.tenant:
                    self.say(one.server, UPDATED, encode({"uri": one.uri}))

    def say(self, server: str, method: str, params: bytes) -> None:
        """A server's notification, where the client may and wants to hear it."""
        if method == UPDATED:
            uri = updated_uri(params)
            if uri is None or not is_wanted(uri, self.wanted.get(server, ())):
                return
        elif method == "notifications/message":
            level = self.visit.record.log_level if self.visit.record else ""
            if not is_loud_enough(params, level, silent_by_default=False):
                return
        if (shown := passed_on(self.edge, self.visit, server, method, params)) is None:
            return
        message = notification(method, shown)
        if (taints := self._tainting(server)) is not None and method != UPDATED:  # which tells no more than a URI
            taints.say(message)
        else:
            self.out.send(message)

    def _tainting(self, server: str) -> tainting.Tainting | None:
        """One at a time for each server, which keeps the order of what it says. A mark that the store has lost since is
        set again.
        """
        found = self._taintings.get(server)
        if found is None or found.is_done:
            found = self._taintings[server] = tainting.of_server(self.edge, self.visit, server, self.out.send)
        return found

    async def ask(self, server: str, method: str, params: bytes) -> Answer:
        """A server's question that belongs to no request of the client's: a call of its own, governed as one. No tool
        that was permitted stands behind it, so the rules decide on the action `questions/ask` of the server.
        """
        edge, visit = self.edge, self.visit
        request = Request(method, None, {}, b"{}", False, visit.protocol)
        asked_by = msgspec.structs.replace(visit, door=server)
        ruling = edge.ruling_of(visit.principal)
        shelf = ruling.catalog.shelves.get(server) if ruling is not None else None
        item = shelf.any_question if shelf is not None else None
        call = Ongoing(asked_by, request, item, "", edge.terms_of(asked_by.principal.tenant, server, None), now_us())
        call.ruling, call.abilities = ruling, visit.abilities(request)
        steps.admit(edge, call)
        if ruling is not None:
            call.bundle, call.release = ruling.digest, ruling.number
            if call.decision == "allow":
                await self._decide(ruling, call)
        if call.decision == "allow":
            call.tainting = self._tainting(server)
            return await asking.ask(edge, call, method, params)
        await edge.recorder.record(requested_event(call, edge.place, edge.limits.capture_bytes_max), call.terms.mode)
        return Answer(error=encode(RpcError(INVALID_REQUEST, call.message)))

    async def _decide(self, ruling: Ruling, call: Ongoing) -> None:
        """By the rules, where the client can be asked such a thing at all."""
        if call.server not in lists.visible_servers(ruling, call.principal, self.visit.door):
            call.refuse("policy", "server-not-visible", "The server may not ask this client.")
        elif call.method in ASKED_WITH:  # anything else is refused by its name
            await facts.gather(self.edge, call)
            if call.decision == "allow":
                steps.decide(self.edge, call)
            if call.decision == "ask":
                told = f"{call.message} Nobody is asked to approve what a server asks outside of calls."
                call.refuse("policy", "question-needs-approval", told)


class FromServer:
    """The talk of one server's listening for a standing stream."""

    pausable = False

    def __init__(self, stream: GetStream, server: str) -> None:
        self._stream = stream
        self._server = server

    def notified(self, method: str, params: bytes) -> None:
        if method in LIST_CHANGES:  # told to every stream once this edge has fetched the list
            self._stream.edge.discovery.heard(self._server, LIST_CHANGES[method])
        elif method not in _NEVER_PASSED:
            self._stream.say(self._server, method, params)

    async def asked(self, method: str, params: bytes) -> Answer:
        try:
            return await self._stream.ask(self._server, method, params)
        except Fault as fault:
            return Answer(error=encode(RpcError(INTERNAL_ERROR, fault.sentence)))

    def rested(self, retry_ms: int) -> None: ...


async def _live(edge: Edge, principal: Principal, session_id: str) -> SessionRecord | None:
    """The session's record; whoever listens has not gone away, so it lives on."""
    if edge.renewals.is_due(session_id):
        await edge.sessions.touch(principal.tenant, session_id, edge.limits.session_idle_s)
    return await edge.sessions.get(principal.tenant, session_id)


def _left_s(principal: Principal) -> float:
    """How long the token of a stream still serves."""
    return (principal.expires_us - now_us()) / 1e6


async def _first_of(*waited: Awaitable[object], within_s: float) -> None:
    """Returns when the first has ended, or the time is over. What is not a task ends with this."""
    tasks = [asyncio.ensure_future(one) for one in waited]
    try:
        await asyncio.wait(tasks, timeout=max(within_s, 0), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
