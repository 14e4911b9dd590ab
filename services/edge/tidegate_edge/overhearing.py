"""What servers say outside of requests, brought to one client's long-lived stream.

`Ears` listen at servers for the stream; `passed_on` decides what the client may hear of it: from a server that it can
see, not in quarantine, inspected like a result, under the URIs of its door. Counterparts: `streams.py`, `listen.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

import msgspec

from tidegate.claims import Principal
from tidegate.errors import Fault
from tidegate.ids import now_us
from tidegate.limits import NOTIFICATION_BYTES_MAX
from tidegate.policy.resource_uris import MalformedUri
from tidegate_edge import facts, lists, rewrite, strict_json
from tidegate_edge.announcements import Announcement, ChangeKind
from tidegate_edge.edge import Edge
from tidegate_edge.looking_ahead import look_ahead
from tidegate_edge.messages import careful, decode_fields
from tidegate_edge.ruling import Ruling
from tidegate_edge.upstream.port import Caller, Talk, Wanted
from tidegate_edge.visit import Visit

UPDATED: Final = "notifications/resources/updated"
CHANGED: Final[dict[ChangeKind, str]] = {
    "tools": "notifications/tools/list_changed",
    "prompts": "notifications/prompts/list_changed",
    "resources": "notifications/resources/list_changed",
}
EARS_PER_SERVER_MAX: Final = 8
LISTEN_AGAIN_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
ERA_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)
_decode_text: Final = careful(msgspec.json.Decoder(str).decode)


class Need(NamedTuple):
    """What is to be heard at one server."""

    uris: frozenset[str] = frozenset()  # as the server names them
    session: str = ""  # names the upstream session whose own stream is heard, whatever it has subscribed to; "": none


class Ear(NamedTuple):
    """One listening under way."""

    need: Need
    task: asyncio.Task[None]


class Ears:
    """Listens at the servers that are needed, in tasks of `group`.

    What is heard already is not disturbed: an interrupted listening loses what is said meanwhile. So a subscription in
    a session that is listened to changes nothing here (the request itself has gone to the server), and elsewhere what
    is new is listened for in addition.
    """

    def __init__(
        self, edge: Edge, group: asyncio.TaskGroup, caller: Caller, modern: bool, talk_of: Callable[[str], Talk]
    ) -> None:
        self._edge = edge
        self._group = group
        self._caller = caller
        self._modern = modern
        self._talk_of = talk_of
        self._ears: dict[str, list[Ear]] = {}

    def need(self, needs: Mapping[str, Need]) -> None:
        """Listen for this, and for nothing that none of it wants."""
        for server in set(self._ears) | (set(needs) & set(self._edge.upstreams)):
            kept = self._settled(server, needs.get(server))
            for ear in self._ears.get(server, ()):
                if ear not in kept:
                    ear.task.cancel()
            self._ears[server] = kept
        self._ears = {server: ears for server, ears in self._ears.items() if ears}

    def _settled(self, server: str, need: Need | None) -> list[Ear]:
        if need is None:
            return []
        if need.session:
            kept = [ear for ear in self._ears.get(server, ()) if ear.need.session == need.session]
            return kept or [self._ear(server, need)]
        kept = [ear for ear in self._ears.get(server, ()) if not ear.need.session and ear.need.uris & need.uris]
        new = need.uris.difference(*[ear.need.uris for ear in kept])
        if not new:
            return kept
        if len(kept) >= EARS_PER_SERVER_MAX:
            return [self._ear(server, need)]
        return [*kept, self._ear(server, Need(new))]

    def _ear(self, server: str, need: Need) -> Ear:
        listening = self._listen(server, Wanted(uris=tuple(sorted(need.uris))))
        return Ear(need, self._group.create_task(listening, name=f"listen at {server} for a client"))

    def close(self) -> None:
        self.need({})

    async def _listen(self, server: str, what: Wanted) -> None:
        upstream, failures = self._edge.upstreams[server], 0
        while True:
            try:
                modern = await upstream.era(self._modern, ERA_TIMEOUT_S)
                if modern and not what.uris:  # list changes are told by the edge's own listening
                    return
                await upstream.listen(what, self._caller, modern, self._talk_of(server))
                return
            except Fault as fault:
                _log.debug("listening at %s for a client failed: %s", server, fault.sentence)
            await asyncio.sleep(LISTEN_AGAIN_S[min(failures, len(LISTEN_AGAIN_S) - 1)])
            failures += 1


def passed_on(edge: Edge, visit: Visit, server: str, method: str, params: bytes) -> bytes | None:
    """The params as the client may see them now; None where it may not hear of this."""
    principal = visit.principal
    ruling = edge.ruling_of(principal)
    if ruling is None or server not in lists.visible_servers(ruling, principal, visit.door):
        return None
    if _is_quarantined(edge, visit, server):
        return None
    if len(params) > NOTIFICATION_BYTES_MAX:
        edge.counters.refused_requests["notification-too-large"] += 1
        return None
    if not method.startswith("notifications/") or not strict_json.is_strict(params):
        return None
    if method == UPDATED and not may_read(edge, ruling, visit, server, updated_uri(params) or ""):
        return None
    scan = ruling.scanner.scan(params, "result")
    if scan.blocked is not None:
        edge.counters.refused_requests["notification-blocked"] += 1
        return None
    try:
        return rewrite.result(
            ruling.catalog, visit.door, server, method, params if scan.masked is None else scan.masked
        )
    except msgspec.DecodeError:
        return None


def may_read(edge: Edge, ruling: Ruling, visit: Visit, server: str, uri: str) -> bool:
    """As things are now: what was subscribed to may be forbidden since, or have been another server's elsewhere."""
    try:
        item, _ = ruling.catalog.of_server(server, uri)
    except MalformedUri:
        return False
    found = facts.known(edge, visit, ruling.needs(visit.principal, item))
    return ruling.decide(visit.principal, item, {"uri": uri}, found).effect == "allow"


def may_ever_read(ruling: Ruling, principal: Principal, server: str, uri: str) -> bool:
    """In some circumstances: worth listening for."""
    item, _ = ruling.catalog.of_server(server, uri)
    return ruling.hopeless(principal, item, {"uri": uri}) is None


def _is_quarantined(edge: Edge, visit: Visit, server: str) -> bool:
    principal = visit.principal
    found = edge.quarantines_of(principal.tenant).match(
        session_id=visit.session_id,
        subject_id=principal.subject_id,
        agent=principal.agent,
        server=server,
        tool="",
        now_us=now_us(),
    )
    return found is not None


async def changes(edge: Edge, visit: Visit, heard: Collection[Announcement]) -> list[ChangeKind]:
    """The lists that have changed for this client, each once."""
    principal = visit.principal
    ruling = edge.ruling_of(principal)
    if ruling is None:
        return []
    concerning = [one for one in heard if _concerns(one, principal)]
    if not concerning:
        return []
    await look_ahead(ruling, principal, visit.door)
    servers = lists.visible_servers(ruling, principal, visit.door)
    kinds = {one.kind for one in concerning if one.server in servers}
    return [kind for kind in CHANGED if kind in kinds]


def _concerns(one: Announcement, principal: Principal) -> bool:
    return one.tenant == principal.tenant and (one.touches is None or one.touches(principal))


def updated_uri(params: bytes) -> str | None:
    """The URI that an update names; None where the params are none."""
    try:
        return _decode_text(decode_fields(params)["uri"])
    except (msgspec.DecodeError, KeyError):
        return None


def is_wanted(uri: str, wanted: Collection[str]) -> bool:
    """A subscribed resource, or one below it: both eras let a server name a part of what was subscribed to."""
    return uri in wanted or any(uri.startswith(one if one.endswith("/") else f"{one}/") for one in wanted)
