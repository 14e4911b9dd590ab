"""Keeps the catalogue: asks every upstream for its definitions at start, from time to time and when it says that they
have changed, and records what changed as events.

Counterpart: `listening.py` hears servers outside of requests. One server's failure leaves the others alone, and leaves
its own last lists standing.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal, cast, get_args

import msgspec

from tidegate.errors import Fault, UpstreamFault
from tidegate.events import AnyEvent, ServerRegistered, ToolDefined, ToolWithdrawn
from tidegate.sessions.port import Bus
from tidegate.settings import Settings
from tidegate_edge.calls import Place
from tidegate_edge.catalog import Catalog, Item, Plan, Shelf, shelve
from tidegate_edge.listening import ListChange, Patience, keep_listening
from tidegate_edge.messages import encode
from tidegate_edge.offers import Key, Offers
from tidegate_edge.upstream.port import Definitions, ListKind, Upstream

REFRESH_S: Final = 60.0  # give or take a tenth, so that edges do not ask all at once
RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
LIST_TIMEOUT_S: Final = 30.0
AWAITED_S: Final = 15.0  # readiness waits so long for a server's tools
CHANGES: Final = frozenset(get_args(ListChange))

BUS_KIND: Final = "list-change"

_log = logging.getLogger(__name__)
Append = Callable[[Sequence[AnyEvent]], Awaitable[None]]
Tell = Callable[[str, ListChange], None]


class _Change(msgspec.Struct, frozen=True):
    """On the bus."""

    server: str
    kinds: list[ListChange]


_decode_change: Final = msgspec.json.Decoder(_Change).decode


class Discovery:
    """One task per upstream, and one that listens to it. `recorded` maps (server, tool) to the digest last recorded by
    any edge, `offered` likewise what is no tool; the log's watcher keeps them. `tell` hears (server, kind) of every
    change of a list. `look` sees what a server offers before it is recorded, in a thread.
    """

    def __init__(
        self,
        settings: Settings,
        place: Place,
        upstreams: Mapping[str, Upstream],
        append: Append,
        recorded: Mapping[tuple[str, str], str],
        tell: Tell = lambda server, kind: None,
        bus: Bus | None = None,
        offered: Mapping[Key, str] = {},
        look: Callable[[Shelf], None] = lambda shelf: None,
    ) -> None:
        self._settings = settings
        self._place = place
        self._upstreams = upstreams
        self._append = append
        self._recorded = recorded
        self._tell = tell
        self._bus = bus
        self._look = look
        self._offers = Offers(place, settings.tenant, offered)
        self._tool_labels: dict[str, dict[str, tuple[str, ...]]] = {}
        self.server_labels = {name: server.labels for name, server in settings.servers.items()}
        for rule in settings.rules:
            if rule.tool and rule.labels:
                self._tool_labels.setdefault(rule.server, {})[rule.tool] = rule.labels
            elif rule.labels and rule.server:
                self.server_labels[rule.server] = (*self.server_labels[rule.server], *rule.labels)
        self.catalog = Catalog(plan=Plan.of(settings))
        self.troubles: dict[str, str] = {}  # server → why its lists could not be fetched, or not whole
        self.awaiting = set(upstreams)  # servers that were not tried yet
        self._warned: set[str] = set()
        self._heard: dict[str, set[ListChange]] = {name: set() for name in upstreams}
        self._unshared: dict[str, set[ListChange]] = {name: set() for name in upstreams}
        self._patience = {name: Patience() for name in upstreams}
        self._stirred = {name: asyncio.Event() for name in upstreams}
        self._shelved = {name: asyncio.Event() for name in upstreams}  # what a server offers is known

    @property
    def degraded(self) -> set[str]:
        """What is served without: servers' lists, and names that cannot be shown."""
        return {f"tools of {name}" for name in self.troubles} | set(self.catalog.troubles)

    def heard(self, server: str, kind: str) -> None:
        """A server said, on a client's stream, that its `tools`, `prompts` or `resources` have changed. Other edges may
        have no stream on which it says so: they are told.
        """
        if server in self._unshared and kind in CHANGES:
            self._unshared[server].add(cast(ListChange, kind))
            self._stir(server, cast(ListChange, kind))

    def _stir(self, server: str, kind: ListChange) -> None:
        self._heard[server].add(kind)
        self._stirred[server].set()

    def _heard_elsewhere(self, message: bytes) -> None:
        """What another edge has heard is not passed on."""
        try:
            change = _decode_change(message)
        except msgspec.DecodeError:
            return  # a newer edge's
        if change.server in self._heard:
            for kind in change.kinds:
                self._stir(change.server, kind)

    async def _share(self, name: str) -> None:
        kinds, self._unshared[name] = self._unshared[name], set()
        if kinds and self._bus is not None:
            try:
                await self._bus.tell_all(BUS_KIND.encode() + b"\n" + encode(_Change(name, sorted(kinds))))
            except Fault as fault:  # the others ask from time to time
                _log.warning("%s", fault.sentence)

    async def run(self, on_change: Callable[[Catalog], None]) -> None:
        """Until cancelled; `on_change` gets each new catalogue, after its events are durable."""
        if self._bus is not None:
            self._bus.on_message(BUS_KIND, self._heard_elsewhere)
        async with asyncio.TaskGroup() as tasks:
            for name, upstream in self._upstreams.items():
                tasks.create_task(self._watch(name, on_change), name=f"discover {name}")
                tasks.create_task(self._listen(name, upstream), name=f"listen to {name}")
            tasks.create_task(self._stop_awaiting(), name="stop awaiting")

    async def _stop_awaiting(self) -> None:
        """A server that does not answer must not keep the others' tools from those who wait for readiness."""
        await asyncio.sleep(AWAITED_S)
        for name in sorted(self.awaiting):
            self.troubles.setdefault(name, f"{name}: has not told its tools within {AWAITED_S:g} s")
            _log.warning("%s; the other servers are served", self.troubles[name])
        self.awaiting.clear()
        self._warn()

    async def _listen(self, name: str, upstream: Upstream) -> None:
        await self._shelved[name].wait()
        await keep_listening(
            upstream,
            self._settings.tenant,
            lambda: self.catalog.shelves[name].capabilities,
            lambda kind: self._stir(name, kind),
            self._stirred[name].set,
        )

    async def _watch(self, name: str, on_change: Callable[[Catalog], None]) -> None:
        failures = 0
        while True:
            heard = set(self._heard[name])
            self._heard[name].clear()
            await self._share(name)
            try:
                changed = await self._refresh(name, on_change)
                failures = 0
                self.troubles.pop(name, None)
            except Exception as fault:  # one server's list must not end the watch over the others
                failures += 1
                changed = set()
                sentence = fault.sentence if isinstance(fault, Fault) else f"{name}: the list cannot be read: {fault!r}"
                if self.troubles.get(name) != sentence:
                    _log.warning("%s", sentence)
                self.troubles[name] = sentence
            self.awaiting.discard(name)
            for kind in sorted(heard | changed):  # also where nothing visible changed: the server said so
                self._tell(name, kind)
            await self._rest(name, RETRY_S[min(failures, len(RETRY_S)) - 1] if failures else _about(REFRESH_S))

    async def _rest(self, name: str, seconds: float) -> None:
        """Until it is time again, or the server has said something; then a moment more for the rest of it."""
        stirred, patience, clock = self._stirred[name], self._patience[name], asyncio.get_running_loop().time
        patience.asked(clock())
        try:
            async with asyncio.timeout(seconds):
                await stirred.wait()
        except TimeoutError:
            return
        await asyncio.sleep(patience.wait_s(clock()))
        stirred.clear()

    async def _refresh(self, name: str, on_change: Callable[[Catalog], None]) -> set[ListChange]:
        """Ask once; the lists that differ from before. Raises where a list is not whole, with what is whole taken."""
        found = await self._upstreams[name].definitions(LIST_TIMEOUT_S)
        before = self.catalog.shelves.get(name)
        if before is None and found.partial and not (found.tools or found.prompts or found.resources):
            raise UpstreamFault("; ".join(found.partial.values()))
        kept = _with_kept(found, before)
        shelf = shelve(name, kept, self._tool_labels.get(name, {}), self.server_labels[name])
        changed: set[ListChange] = set()
        if before is None or before.digest != shelf.digest:
            await asyncio.to_thread(self._look, shelf)
            await self._append(self._changes(name, before is None, shelf, whole="tools" not in found.partial))
            self.catalog = self.catalog.with_shelf(shelf)
            on_change(self.catalog)
            self._warn()
            for what in shelf.left_out:
                _log.warning("%s: %s", name, what)
            changed = _changed(before, shelf)
        if before is None or before.digest != shelf.digest or name in self._offers.owed:
            await self._append(self._offers.changes(shelf, found.partial.keys()))
            self._offers.settled(name)
        self._shelved[name].set()
        if found.partial:
            for kind in changed:
                self._tell(name, kind)
            raise UpstreamFault("; ".join(found.partial.values()))
        return changed

    def _warn(self) -> None:
        """Say once what cannot be shown; not while servers that could change it are still awaited."""
        troubles = self.catalog.troubles
        if self.awaiting - self.catalog.shelves.keys():
            return
        for what in troubles.keys() - self._warned:
            _log.warning("%s", troubles[what])
        self._warned = set(troubles)

    def _changes(self, name: str, first: bool, shelf: Shelf, *, whole: bool) -> list[AnyEvent]:
        """What differs from the definitions that the log holds; of a list that is not whole nothing is withdrawn."""
        settings = self._settings
        tenant = settings.tenant
        events: list[AnyEvent] = []
        if first:
            transport: Literal["http", "stdio"] = "http" if settings.servers[name].url else "stdio"
            events.append(
                ServerRegistered(
                    **self._place.stamp(tenant),
                    server=name,
                    transport=transport,
                    labels=self.server_labels[name],
                    tool_labels=self._tool_labels.get(name, {}),
                    suggested={one.name: one.suggested for one in shelf.tools if one.suggested},
                    suggested_known=whole,
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
                        suggested=tool.suggested,
                        suggested_known=True,
                    )
                )
        here = {tool.name for tool in shelf.tools}
        if whole:
            events.extend(
                ToolWithdrawn(**self._place.stamp(tenant), server=name, tool=tool, previous=digest)
                for (server, tool), digest in list(self._recorded.items())
                if server == name and tool not in here
            )
        return events


def _with_kept(found: Definitions, before: Shelf | None) -> Definitions:
    """What was found; of lists that are not whole also what was there before, behind it (of equal names the first
    stands).
    """
    if before is None:
        return found
    kept: dict[ListKind, tuple[Item, ...]] = {
        "tools": before.tools,
        "prompts": before.prompts,
        "resources": before.resources,
        "templates": before.templates,
    }
    more = {kind: (*getattr(found, kind), *(encode(item.fields) for item in kept[kind])) for kind in found.partial}
    return msgspec.structs.replace(found, **more) if more else found


def _changed(before: Shelf | None, after: Shelf) -> set[ListChange]:
    """The lists that differ; of a server that is new all that it has."""
    lists: dict[ListChange, tuple[ListKind, ...]] = {
        "tools": ("tools",),
        "prompts": ("prompts",),
        "resources": ("resources", "templates"),
    }
    return {
        kind
        for kind, members in lists.items()
        if any(_digests(getattr(before, member, ())) != _digests(getattr(after, member)) for member in members)
    }


def _digests(items: tuple[Item, ...]) -> list[tuple[str, str]]:
    return [(item.name, item.digest) for item in items]


def _about(seconds: float) -> float:
    return seconds * random.uniform(0.9, 1.1)  # noqa: S311 - it guards nothing
