"""subscriptions/listen: a modern client's stream of changes (2026-07-28 basic/patterns/subscriptions).

Its first frame acknowledges what is honoured, every frame carries the request's id, nothing is sent that was not asked
for, and the filter never changes. It ends with the request's result when the edge drains or the token ends, and without
one when the client is gone. A subscription to a resource is decided and recorded like a read of it.
"""

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from tidegate.ids import now_us, uuid7
from tidegate_edge import facts, steps
from tidegate_edge.accept import Request, refuse
from tidegate_edge.announcements import Announcement, Hearing
from tidegate_edge.calls import Ended, Ongoing, completed_event, requested_event
from tidegate_edge.edge import Edge
from tidegate_edge.messages import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    Reply,
    RequestId,
    decode_fields,
    encode,
    notification,
    result_body,
)
from tidegate_edge.outlet import Outlet
from tidegate_edge.overhearing import (
    CHANGED,
    UPDATED,
    Ears,
    Need,
    changes,
    is_wanted,
    passed_on,
    updated_uri,
)
from tidegate_edge.sessions import end_upstream
from tidegate_edge.talk import LIST_CHANGES
from tidegate_edge.upstream.port import ACKNOWLEDGED, SILENCE, Answer, Caller
from tidegate_edge.visit import Visit

SUBSCRIPTION_META: Final = "io.modelcontextprotocol/subscriptionId"
URIS_MAX: Final = 256
EARLY_MAX: Final = 256
STANDS_WITHIN_S: Final = 5.0
_FLAGS: Final = {"toolsListChanged": "tools", "promptsListChanged": "prompts", "resourcesListChanged": "resources"}
_SUBSCRIBE: Final = "resources/subscribe"


class Filter(msgspec.Struct, frozen=True):
    """What the client asked for; members of extensions are not served, so they are not acknowledged."""

    flags: tuple[str, ...] = ()  # those of _FLAGS that are true
    uris: tuple[str, ...] = ()  # each once, as the client names them


async def listen(edge: Edge, visit: Visit, request: Request, outlet: Outlet) -> Reply:
    """One stream, to its end. -32602 for a filter that is none, 429 at a subject's bound."""
    assert request.id is not None
    asked = read_filter(request.params)
    if isinstance(asked, str):
        return refuse(400, INVALID_PARAMS, asked, request.id)
    with edge.streams.held(visit.principal) as is_held:
        if not is_held:
            most = edge.limits.streams_per_subject_max
            return refuse(429, INVALID_REQUEST, f"you hold {most} streams already; end some", request.id)
        stream = Subscription(edge, visit, request.id, outlet, asked.flags)
        for uri in asked.uris:
            await stream.subscribe(request, uri)
        await stream.serve()
    meta = {SUBSCRIPTION_META: request.id}
    return Reply(200, result_body(request.id, encode({"resultType": "complete", "_meta": meta})))


def read_filter(params: dict[str, Any]) -> Filter | str:
    """`params.notifications`, or what is wrong with it."""
    given = params.get("notifications")
    if not isinstance(given, dict):
        return "params.notifications must be an object that says what to listen for"
    for name in _FLAGS:
        if not isinstance(given.get(name, False), bool):
            return f"params.notifications.{name} must be true or false"
    uris = given.get("resourceSubscriptions", [])
    if not isinstance(uris, list) or not all(isinstance(uri, str) and uri for uri in uris):
        return "params.notifications.resourceSubscriptions must be a list of URIs"
    if len(uris) > URIS_MAX:
        return f"at most {URIS_MAX} resources can be subscribed to in one stream"
    return Filter(tuple(name for name in _FLAGS if given.get(name)), tuple(dict.fromkeys(uris)))


class Subscription:
    """One stream, and what it honours."""

    def __init__(self, edge: Edge, visit: Visit, request_id: RequestId, outlet: Outlet, flags: tuple[str, ...]) -> None:
        self.edge = edge
        self._visit = visit
        self._outlet = outlet
        self._flags = flags
        self._tag = {SUBSCRIPTION_META: request_id}
        self._uris: list[str] = []  # honoured, as the client names them
        self._wanted: dict[str, set[str]] = {}  # the same by server, as the server names them
        self._stands: dict[str, asyncio.Event] = {}  # by server: its listening has begun
        self._early: list[tuple[str, bytes]] | None = []  # updates heard before the acknowledgement; None after it

    async def subscribe(self, request: Request, uri: str) -> None:
        """Honour a resource if the bundle permits to read it; recorded either way."""
        edge = self.edge
        params = {"_meta": request.params["_meta"], "uri": uri}
        one = Request(_SUBSCRIBE, request.id, params, encode(params), True, request.version)
        call = steps.begin(edge, self._visit, one)
        steps.admit(edge, call)
        if call.decision == "allow":
            await facts.gather(edge, call)
        if call.decision == "allow":
            steps.decide(edge, call)
        if call.decision == "allow":
            steps.inspect(edge, call)
        else:
            steps.inspect_refused(call)
        await edge.recorder.record(requested_event(call, edge.place, edge.limits.capture_bytes_max), call.terms.mode)
        edge.counters.decided(call.decision)
        if call.decision != "allow" or call.item is None:
            return
        self._uris.append(uri)
        self._wanted.setdefault(call.item.server, set()).add(call.target)
        self._stands.setdefault(call.item.server, asyncio.Event())
        await self._settle(call)

    async def _settle(self, call: Ongoing) -> None:
        """The call is over once the listening is acknowledged; what is heard later is its fruit, not its answer."""
        ended = Ended(outcome="ok", completed_us=now_us(), result=b"{}", result_captured=b"{}")
        self.edge.counters.ended(ended.outcome)
        event = completed_event(call, ended, self.edge.place, self.edge.limits.capture_bytes_max)
        await self.edge.recorder.record_completion(event, call.terms.mode)

    async def serve(self) -> None:
        """Acknowledge, then tell what is heard until the edge drains or the token ends."""
        edge, principal = self.edge, self._visit.principal
        caller = Caller(principal.tenant, principal.subject_id, principal.agent, f"listen:{uuid7()}")
        with edge.announcements.hearing() as hearing:
            try:
                async with asyncio.TaskGroup() as group:
                    ears = Ears(edge, group, caller, True, lambda server: FromServer(self, server))
                    ears.need({server: Need(frozenset(uris)) for server, uris in self._wanted.items()})
                    await self._until_it_stands()
                    self._acknowledge()
                    telling = group.create_task(self._tell(hearing), name="tell a subscriber")
                    await _until(edge.draining, (principal.expires_us - now_us()) / 1e6)
                    telling.cancel()
                    ears.close()
            finally:
                for server in self._wanted:
                    edge.tasks.start(
                        end_upstream(edge.upstreams[server], caller), f"end a listener's session at {server}"
                    )

    async def _until_it_stands(self) -> None:
        """What is acknowledged should be heard from then on, so the servers get a moment to begin. A server that is
        away is listened to once it is back.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STANDS_WITHIN_S):
                for stands in self._stands.values():
                    await stands.wait()

    def stands(self, server: str) -> None:
        """The server has begun to tell."""
        if server in self._stands:
            self._stands[server].set()

    def _acknowledge(self) -> None:
        early, self._early = self._early or [], None
        honoured: dict[str, Any] = dict.fromkeys(self._flags, True)
        if self._uris:
            honoured["resourceSubscriptions"] = self._uris
        self._outlet.send(notification(ACKNOWLEDGED, encode({"notifications": honoured, "_meta": self._tag})))
        for server, params in early:
            self.updated(server, params)

    async def _tell(self, hearing: Hearing) -> None:
        asked = {_FLAGS[name] for name in self._flags}
        while True:
            heard: list[Announcement] = await hearing.heard()
            for kind in await changes(self.edge, self._visit, heard):
                if kind in asked:
                    self._outlet.send(notification(CHANGED[kind], encode({"_meta": self._tag})))
            for one in heard:
                if one.kind == "updated" and one.tenant == self._visit.principal.tenant:
                    self.updated(one.server, encode({"uri": one.uri}))

    def updated(self, server: str, params: bytes) -> None:
        """An update of a resource, where it was subscribed to."""
        if self._early is not None:
            if len(self._early) < EARLY_MAX:
                self._early.append((server, params))
            return
        uri = updated_uri(params)
        if uri is None or not is_wanted(uri, self._wanted.get(server, ())):
            return
        shown = passed_on(self.edge, self._visit, server, UPDATED, params)
        if shown is None:
            return
        fields = decode_fields(shown)
        try:
            meta = {**decode_fields(bytes(fields["_meta"])), SUBSCRIPTION_META: self._tag[SUBSCRIPTION_META]}
        except (KeyError, msgspec.DecodeError):
            meta = dict(self._tag)
        self._outlet.send(notification(UPDATED, encode({**fields, "_meta": meta})))


class FromServer:
    """The talk of listening at one server for a subscription."""

    pausable = False

    def __init__(self, stream: Subscription, server: str) -> None:
        self._stream = stream
        self._server = server

    def notified(self, method: str, params: bytes) -> None:
        if method in LIST_CHANGES:
            self._stream.edge.discovery.heard(self._server, LIST_CHANGES[method])
        elif method == UPDATED:
            self._stream.updated(self._server, params)
        elif method == ACKNOWLEDGED:
            self._stream.stands(self._server)

    async def asked(self, method: str, params: bytes) -> Answer:
        """No modern client is asked outside of its requests."""
        return await SILENCE.asked(method, params)

    def rested(self, retry_ms: int) -> None: ...


async def _until(event: asyncio.Event, within_s: float) -> None:
    try:
        async with asyncio.timeout(max(within_s, 0)):
            await event.wait()
    except TimeoutError:
        return
