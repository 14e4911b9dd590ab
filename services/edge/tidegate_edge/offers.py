"""Prompts, resources and templates as events: seen first, changed, withdrawn. Counterparts: `discovery.py`, which does
it for tools; `watch.py` knows what any edge has recorded.

A server that offers others every minute fills no log: past a bound per hour its changes wait, and are recorded when
they still stand.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from tidegate.events import AnyEvent, Offer, OfferDefined, OfferWithdrawn
from tidegate.limits import TOOLS_PER_SERVER_MAX
from tidegate_edge.calls import Place
from tidegate_edge.messages import encode
from tidegate_edge.shelves import Item, Shelf
from tidegate_edge.upstream.port import ListKind

CHANGES_MAX: Final = 3 * TOOLS_PER_SERVER_MAX  # of one server: all that it may offer, then a tenth of it an hour
CHANGES_PER_S: Final = CHANGES_MAX / 10 / 3_600
LISTS: Final[Mapping[Offer, ListKind]] = {"prompt": "prompts", "resource": "resources", "template": "templates"}

Key = tuple[str, Offer, str]
"""Server, kind, name or URI."""

_log = logging.getLogger(__name__)


class Offers:
    """Of all servers. `recorded` maps to the digest last recorded by any edge; the log's watcher keeps it."""

    def __init__(
        self, place: Place, tenant: str, recorded: Mapping[Key, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place = place
        self._tenant = tenant
        self._recorded = recorded
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # by server: changes that may still be recorded, and as of when
        self._whole: set[str] = set()  # servers whose changes were all given
        self.owed: set[str] = set()  # servers of which something is not recorded

    def changes(self, shelf: Shelf, partial: Collection[ListKind]) -> list[AnyEvent]:
        """What differs from what the log holds, as far as the bound goes; of a list that is not whole nothing is
        withdrawn. The server is owed until `settled`.
        """
        self.owed.add(shelf.server)
        found = [event for kind in LISTS for event in self._of_kind(shelf, kind, LISTS[kind] not in partial)]
        room = self._room(shelf.server)
        if len(found) <= room:
            self._whole.add(shelf.server)
        else:
            self._whole.discard(shelf.server)
            told = "%s: changes what it offers too often: %d changes wait to be recorded"
            _log.warning(told, shelf.server, len(found) - room)
        left, at_s = self._left[shelf.server]
        self._left[shelf.server] = (left - len(found[:room]), at_s)
        return found[:room]

    def settled(self, server: str) -> None:
        """What `changes` gave last is durable."""
        if server in self._whole:
            self.owed.discard(server)

    def _room(self, server: str) -> int:
        now_s = self._clock()
        left, at_s = self._left.get(server, (float(CHANGES_MAX), now_s))
        left = min(float(CHANGES_MAX), left + (now_s - at_s) * CHANGES_PER_S)
        self._left[server] = (left, now_s)
        return int(left)

    def _of_kind(self, shelf: Shelf, kind: Offer, whole: bool) -> list[AnyEvent]:
        items: dict[Offer, tuple[Item, ...]] = {
            "prompt": shelf.prompts,
            "resource": shelf.resources,
            "template": shelf.templates,
        }
        server, events = shelf.server, list[AnyEvent]()
        for item in items[kind]:
            previous = self._recorded.get((server, kind, item.name), "")
            if previous != item.digest:
                events.append(
                    OfferDefined(
                        **self._place.stamp(self._tenant),
                        server=server,
                        kind=kind,
                        target=item.name,
                        digest=item.digest,
                        previous=previous,
                        definition=msgspec.Raw(encode(item.fields)),
                    )
                )
        here = {item.name for item in items[kind]}
        for (of, what, target), digest in list(self._recorded.items()) if whole else ():
            if (of, what) == (server, kind) and target not in here:
                stamp = self._place.stamp(self._tenant)
                events.append(OfferWithdrawn(**stamp, server=server, kind=kind, target=target, previous=digest))
        return events
