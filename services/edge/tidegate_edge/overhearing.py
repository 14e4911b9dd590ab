"""What servers say outside of requests, brought to one client's long-lived stream.

`Ears` listen at servers for the stream; `passed_on` decides what the client may hear of it: from a server that it can
see, not in quarantine, inspected like a result, under the URIs of its door. Counterparts: `streams.py`, `listen.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from tidegate.errors import Fault
from tidegate.ids import now_us
from tidegate_edge import lists, rewrite
from tidegate_edge.announcements import Announcement, ChangeKind
from tidegate_edge.edge import Edge
from tidegate_edge.messages import careful, decode_fields
from tidegate_edge.upstream.port import Caller, Talk, Wanted
from tidegate_edge.visit import Visit

UPDATED: Final = "notifications/resources/updated"
CHANGED: Final[dict[ChangeKind, str]] = {
    "tools": "notifications/tools/list_changed",
    "prompts": "notifications/prompts/list_changed",
    "resources": "notifications/resources/list_changed",
}
LISTEN_AGAIN_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
ERA_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)
_decode_text: Final = careful(msgspec.json.Decoder(str).decode)


class Ears:
    """Listens at the servers that are wanted, each in a task of `group`."""

    def __init__(
        self, edge: Edge, group: asyncio.TaskGroup, caller: Caller, modern: bool, talk_of: Callable[[str], Talk]
    ) -> None:
        self._edge = edge
        self._group = group
        self._caller = caller
        self._modern = modern
        self._talk_of = talk_of
        self._listening: dict[str, tuple[Wanted, asyncio.Task[None]]] = {}

    def want(self, wanted: Mapping[str, Wanted]) -> None:
        """Listen at exactly these servers for exactly this; what has not changed goes on undisturbed."""
        for server, (before, task) in list(self._listening.items()):
            if wanted.get(server) != before:
                task.cancel()
                del self._listening[server]
        for server, what in wanted.items():
            if server not in self._listening and server in self._edge.upstreams:
                task = self._group.create_task(self._listen(server, what), name=f"listen at {server} for a client")
                self._listening[server] = (what, task)

    def close(self) -> None:
        self.want({})

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
    ruling = edge.rulings.get(principal.tenant)
    if ruling is None or server not in lists.visible_servers(ruling, principal, visit.door):
        return None
    if _is_quarantined(edge, visit, server):
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


def changes(edge: Edge, visit: Visit, heard: Collection[Announcement]) -> list[ChangeKind]:
    """The lists that have changed for this client, each once."""
    principal = visit.principal
    ruling = edge.rulings.get(principal.tenant)
    if ruling is None:
        return []
    servers = lists.visible_servers(ruling, principal, visit.door)
    kinds = {one.kind for one in heard if one.tenant == principal.tenant and one.server in servers}
    return [kind for kind in CHANGED if kind in kinds]


def updated_uri(params: bytes) -> str | None:
    """The URI that an update names; None where the params are none."""
    try:
        return _decode_text(decode_fields(params)["uri"])
    except (msgspec.DecodeError, KeyError):
        return None


def is_wanted(uri: str, wanted: Collection[str]) -> bool:
    """A subscribed resource, or one below it: both eras let a server name a part of what was subscribed to."""
    return uri in wanted or any(uri.startswith(one if one.endswith("/") else f"{one}/") for one in wanted)
