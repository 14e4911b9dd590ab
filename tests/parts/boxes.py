"""Opens the personal parts of stored events, as a reader with the masters does, for tests that look into them."""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from tidegate.events import AnyEvent
from tidegate.log.port import EventLog
from tidegate.privacy.master import open_wrapping
from tidegate.privacy.ring import KeyRing, load_ring
from tidegate.settings import Settings

PUBLISHED_WITHIN_S = 20.0


async def opened(events: Iterable[AnyEvent], settings: Settings, log: EventLog) -> list[AnyEvent]:
    """The events with plain personal parts. Waits for keys that are not published yet: an erased one never comes."""
    found = list(events)
    kids = {event.sealed.kid for event in found if getattr(event, "sealed", None) is not None} - {""}  # type: ignore[union-attr]
    if not kids:
        return found
    async with asyncio.timeout(PUBLISHED_WITHIN_S):
        ring = await ring_of(settings, log)
        while any(ring.find(kid) is None for kid in kids):
            await asyncio.sleep(0.01)
            ring = await ring_of(settings, log)
    return [plain(event, ring) for event in found]


async def ring_of(settings: Settings, log: EventLog) -> KeyRing:
    """The keys that are published now."""
    wrapping = open_wrapping(settings)
    assert wrapping is not None, "there are boxes and no master"
    return await load_ring(log, wrapping)


def plain(event: AnyEvent, ring: KeyRing) -> AnyEvent:
    """The event with its personal part opened; as it is where there is none, or its key is gone."""
    sealed: Any = getattr(event, "sealed", None)
    content = ring.open(sealed) if sealed is not None else None
    return event if content is None else msgspec.structs.replace(event, sealed=content)
