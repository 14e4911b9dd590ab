"""Revision 2026-07-28 over HTTP: each request stands alone, on any replica; closing its stream cancels it.

Counterpart: `http.py` says which servers are spoken to so. What is heard before the answer goes to the request's talk.
"""

import itertools
import logging
from typing import Any, Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate_edge import messages
from tidegate_edge.messages import (
    CLIENT_CAPABILITIES_META,
    CLIENT_INFO_META,
    METHOD_NOT_FOUND,
    PROTOCOL_VERSION_META,
    encode,
)
from tidegate_edge.translate import CLIENT_INFO, MODERN
from tidegate_edge.upstream.answers import answer_in, answer_of, error_code, fields_of, params_of, read_wire
from tidegate_edge.upstream.connection import FOREVER, Exchange, Response
from tidegate_edge.upstream.patience import Patience
from tidegate_edge.upstream.port import ACKNOWLEDGED, SILENCE, Answer, Outgoing, Talk, Wanted
from tidegate_edge.upstream.replicas import Replicas
from tidegate_edge.upstream.sse import Event

SUBSCRIPTION_META: Final = "io.modelcontextprotocol/subscriptionId"
LISTEN_OPENS_S: Final = 30.0
_REFUSED: Final = (METHOD_NOT_FOUND, messages.INVALID_PARAMS, messages.INVALID_REQUEST)

_log = logging.getLogger(__name__)


class Hearing:
    """What comes on a request's stream: its answer ends it, notifications go to the talk."""

    __slots__ = ("_request_id", "_talk")

    def __init__(self, request_id: int, talk: Talk) -> None:
        self._request_id = request_id
        self._talk = talk

    def __call__(self, event: Event) -> Answer | None:
        wire = read_wire(event.data)
        if wire is None:
            return None
        if wire.method is msgspec.UNSET:
            return answer_in(wire, self._request_id)
        if wire.id is msgspec.UNSET:
            self._talk.notified(wire.method, params_of(wire))
        return None  # a request of the server's has no place here: nobody could answer it


class Modern:
    """One server's modern side."""

    def __init__(self, name: str, replicas: Replicas) -> None:
        self.name = name
        self._replicas = replicas
        self._ids = itertools.count(1)

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer:
        """Raises UpstreamFault. Cancelled: the stream is closed, which cancels it at the server."""
        request_id = next(self._ids)
        lines = b"mcp-method: %b\r\n" % outgoing.method.encode()
        routing = outgoing.routing
        if routing.name:
            lines += b"mcp-name: %b\r\n%b" % (routing.name.encode(), routing.param_headers)
        body = messages.request_body(request_id, outgoing.method, outgoing.params)
        exchange = await self._begin(lines, body, Hearing(request_id, talk), outgoing.timeout_s)
        response = await exchange.wait()
        assert response is not None
        return answer_of(self.name, response, request_id)

    async def discover(self, timeout_s: float) -> tuple[Response, int]:
        """server/discover: the whole response, and the id that it was asked under."""
        request_id = next(self._ids)
        body = messages.request_body(request_id, "server/discover", encode({"_meta": own_meta()}))
        lines = b"mcp-method: server/discover\r\n"
        response = await (await self._begin(lines, body, Hearing(request_id, SILENCE), timeout_s)).wait()
        assert response is not None
        return response, request_id

    async def _begin(self, lines: bytes, body: bytes, hearing: Hearing, timeout_s: float) -> Exchange:
        """At the first replica that can be reached: what could not connect has sent nothing."""
        fault: UpstreamFault | None = None
        for replica in self._replicas.in_turn():
            try:
                late_s = replica.pool.loop.time() + timeout_s
                return await replica.pool.begin(replica.modern_head + lines, body, hearing, late_s)
            except UpstreamFault as unreachable:
                if unreachable.code != "upstream-unreachable":
                    raise
                replica.went_down()
                fault = unreachable
        assert fault is not None
        raise fault

    async def listen(self, wanted: Wanted, talk: Talk) -> None:
        """subscriptions/listen, opened again whenever it ends. Returns where the server has no such thing."""
        patience = Patience()
        while await self._listen_once(wanted, talk, patience):
            await patience.wait()

    async def _listen_once(self, wanted: Wanted, talk: Talk, patience: Patience) -> bool:
        """Until the stream ends; False where it is no use to open it again."""
        hearing = _Subscription(next(self._ids), talk, patience)
        body = messages.request_body(hearing.request_id, "subscriptions/listen", encode(_filter(wanted)))
        for replica in self._replicas.in_turn():
            head = replica.modern_head + b"mcp-method: subscriptions/listen\r\n"
            try:
                late_s = replica.streams.loop.time() + LISTEN_OPENS_S
                hearing.exchange = await replica.streams.begin(head, body, hearing, late_s)
                response = await hearing.exchange.wait()
                if response is None:  # it grants nothing of what is wanted
                    hearing.exchange.let_go()
                    return False
                return _may_listen_again(self.name, response, hearing.request_id)
            except UpstreamFault as fault:
                _log.debug("%s", fault.sentence)
                replica.went_down()
        return True


class _Subscription:
    """The frames of a subscription, each tagged with its id, unwrapped."""

    def __init__(self, request_id: int, talk: Talk, patience: Patience) -> None:
        self.request_id = request_id
        self.exchange: Exchange | None = None
        self._talk = talk
        self._patience = patience

    def __call__(self, event: Event) -> Answer | None:
        wire = read_wire(event.data)
        if wire is None:
            return None
        if wire.method is msgspec.UNSET:
            return answer_in(wire, self.request_id)
        params = fields_of(params_of(wire))
        if wire.method == ACKNOWLEDGED:
            self._acknowledged(params)
        elif wire.id is msgspec.UNSET:
            self._talk.notified(wire.method, _without_tag(params))
        return None

    def _acknowledged(self, params: dict[str, Any]) -> None:
        """Open: from here on it may be silent for ever."""
        self._patience.reset()
        self._talk.notified(ACKNOWLEDGED, b"{}")
        if self.exchange is not None:
            self.exchange.late_s = FOREVER
        granted = fields_of(bytes(params.get("notifications", b"{}")))
        grants = any(bytes(value) not in (b"false", b"[]", b"null") for value in granted.values())
        if not grants and self.exchange is not None:
            self.exchange.interrupt()


def _may_listen_again(name: str, response: Response, request_id: int) -> bool:
    """A server without subscriptions says so; all else may pass."""
    try:
        answer = answer_of(name, response, request_id)
    except UpstreamFault as fault:
        _log.debug("%s", fault.sentence)
        return response.status not in (404, 405, 501)
    return error_code(answer) not in _REFUSED and response.status not in (404, 405)


def _filter(wanted: Wanted) -> dict[str, Any]:
    given: dict[str, Any] = {
        "toolsListChanged": wanted.tools,
        "promptsListChanged": wanted.prompts,
        "resourcesListChanged": wanted.resources,
        "resourceSubscriptions": list(wanted.uris),
    }
    return {"_meta": own_meta(), "notifications": {key: value for key, value in given.items() if value}}


def _without_tag(params: dict[str, Any]) -> bytes:
    meta = fields_of(bytes(params.pop("_meta", b"{}")))
    meta.pop(SUBSCRIPTION_META, None)
    return encode(params | ({"_meta": meta} if meta else {}))


def own_meta() -> dict[str, Any]:
    """Of the gateway's own requests."""
    return {PROTOCOL_VERSION_META: MODERN, CLIENT_CAPABILITIES_META: {}, CLIENT_INFO_META: CLIENT_INFO}
