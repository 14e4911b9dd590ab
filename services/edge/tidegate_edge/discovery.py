"""Keeps the catalogue: asks every upstream for its definitions at start and from time to time, and records what changed
as events.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from tidegate.errors import Fault, UpstreamFault
from tidegate.events import AnyEvent, ServerRegistered, ToolDefined, ToolWithdrawn
from tidegate.settings import Settings
from tidegate_edge.calls import Place
from tidegate_edge.catalog import Catalog, Shelf, shelve
from tidegate_edge.messages import encode
from tidegate_edge.upstream.port import Upstream

REFRESH_S: Final = 60.0
RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
LIST_TIMEOUT_S: Final = 30.0
AWAITED_S: Final = 15.0  # readiness waits so long for a server's tools

_log = logging.getLogger(__name__)
Append = Callable[[Sequence[AnyEvent]], Awaitable[None]]


class Discovery:
    """One task per upstream. `recorded` maps (server, tool) to the digest last recorded by any edge; the log's watcher
    keeps it.
    """

    def __init__(
        self,
        settings: Settings,
        place: Place,
        upstreams: Mapping[str, Upstream],
        append: Append,
        recorded: Mapping[tuple[str, str], str],
    ) -> None:
        self._settings = settings
        self._place = place
        self._upstreams = upstreams
        self._append = append
        self._recorded = recorded
        self._tool_labels: dict[str, dict[str, tuple[str, ...]]] = {}
        self.server_labels = {name: server.labels for name, server in settings.servers.items()}
        for rule in settings.rules:
            if rule.tool and rule.labels:
                self._tool_labels.setdefault(rule.server, {})[rule.tool] = rule.labels
            elif rule.labels:
                self.server_labels[rule.server] = (*self.server_labels[rule.server], *rule.labels)
        self.catalog = Catalog()
        self.troubles: dict[str, str] = {}  # server → why its list could not be fetched
        self.awaiting = set(upstreams)  # servers that were not tried yet

    async def run(self, on_change: Callable[[Catalog], None]) -> None:
        """Until cancelled; `on_change` gets each new catalogue, after its events are durable."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._upstreams:
                tasks.create_task(self._watch(name, on_change), name=f"discover {name}")
            tasks.create_task(self._stop_awaiting(), name="stop awaiting")

    async def _stop_awaiting(self) -> None:
        """A server that does not answer must not keep the others' tools from those who wait for readiness."""
        await asyncio.sleep(AWAITED_S)
        for name in sorted(self.awaiting):
            self.troubles.setdefault(name, f"{name}: has not told its tools within {AWAITED_S:g} s")
            _log.warning("%s; the other servers are served", self.troubles[name])
        self.awaiting.clear()

    async def _watch(self, name: str, on_change: Callable[[Catalog], None]) -> None:
        failures = 0
        while True:
            try:
                await self._refresh(name, on_change)
                failures = 0
                self.troubles.pop(name, None)
            except Exception as fault:  # one server's list must not end the watch over the others
                failures += 1
                sentence = fault.sentence if isinstance(fault, Fault) else f"{name}: the list cannot be read: {fault!r}"
                if self.troubles.get(name) != sentence:
                    _log.warning("%s", sentence)
                self.troubles[name] = sentence
            self.awaiting.discard(name)
            await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1] if failures else REFRESH_S)

    async def _refresh(self, name: str, on_change: Callable[[Catalog], None]) -> None:
        found = await self._upstreams[name].definitions(LIST_TIMEOUT_S)
        shelf = shelve(name, found.tools, self._tool_labels.get(name, {}), self.server_labels[name])
        before = self.catalog.shelves.get(name)
        if before is not None and (
            before.digest == shelf.digest or (found.partial and len(shelf.tools) < len(before.tools))
        ):
            return
        if not shelf.tools and found.partial:
            raise UpstreamFault(f"{name}: {found.partial}")
        await self._append(self._changes(name, before is None, shelf))
        self.catalog = self.catalog.with_shelf(shelf)
        on_change(self.catalog)

    def _changes(self, name: str, first: bool, shelf: Shelf) -> list[AnyEvent]:
        """What differs from the definitions that the log holds."""
        settings = self._settings
        tenant = settings.tenant
        events: list[AnyEvent] = []
        if first:
            transport: Literal["http", "stdio"] = "http" if settings.servers[name].url else "stdio"
            events.append(
                ServerRegistered(
                    **self._place.stamp(tenant), server=name, transport=transport, labels=self.server_labels[name]
                )
            )
        for tool in shelf.tools:
            previous = self._recorded.get((name, tool.name), "")
            if previous != tool.digest:
                definition = msgspec.Raw(encode(tool.fields))
                events.append(
                    ToolDefined(
                        **self._place.stamp(tenant),
                        server=name,
                        tool=tool.name,
                        digest=tool.digest,
                        previous=previous,
                        definition=definition,
                    )
                )
        here = {tool.name for tool in shelf.tools}
        events.extend(
            ToolWithdrawn(**self._place.stamp(tenant), server=name, tool=tool, previous=digest)
            for (server, tool), digest in list(self._recorded.items())
            if server == name and tool not in here
        )
        return events
