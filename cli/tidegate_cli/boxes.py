"""Opens the personal part of events for people who read the log: with the published keys and this machine's masters.

Where a part stays shut, `Seen.shut` says why: `erased`, or `sealed` where its key is not here: there is no
privacy.key_file, it is the wrong one, or the key is still on its way. Counterpart: `matching.py`.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Any, Final

import msgspec

from tidegate.errors import KeyFault
from tidegate.events import Sealed
from tidegate.ids import now_us
from tidegate.log.port import Delivered, EventLog, Subscription
from tidegate.privacy.erasure import is_erasure, read_erasure
from tidegate.privacy.keys import named_by
from tidegate.privacy.master import open_wrapping
from tidegate.privacy.ring import LOADED_MAX, TOPIC, KeyRing
from tidegate.settings import Settings
from tidegate_cli.matching import Seen, is_shallow

ERASURES_TOPIC: Final = "control-state"
AT_ONCE: Final = 2_000
KEY_WAIT_S: Final = 3.0  # for the key of an event that is just coming
YOUNG_US: Final = 60_000_000  # an older event's key is not on its way any more

_PARTS: Final = ("arguments", "result", "inputs")
_TEXTS: Final = ("issuer", "subject", "user", "login", "claimed_client", "address")
_log = logging.getLogger(__name__)


class Boxes:
    """What is known of keys. `close` it."""

    def __init__(self, ring: KeyRing | None, subscription: Subscription, only: Collection[str]) -> None:
        self._ring = ring
        self._subscription = subscription
        self._only = only
        self._gone: set[str] = set()  # kids
        self._erased: set[tuple[str, str]] = set()  # tenants and subject ids
        self._missed: set[str] = set()  # kids that were waited for once

    def shown(self, seen: Seen) -> Seen:
        """With its personal part open, or with the word for why it is not. As it is where nothing is sealed."""
        kid, box = seen.sealed.get("kid"), seen.sealed.get("box")
        if not isinstance(kid, str) or not isinstance(box, str):
            return seen
        plain, shut = self._opened(Sealed(kid=kid, box=box)), ""
        if plain is None:
            who = (seen.text("tenant"), seen.text("subject_id"))
            shut = "erased" if kid in self._gone or who in self._erased else "sealed"
        part = {"kid": kid, "box": box, "shut": shut} if plain is None else {"kid": kid, **told(plain)}
        return msgspec.structs.replace(seen, fields=seen.fields | {"sealed": part}, shut=shut)

    async def shown_soon(self, seen: Seen) -> Seen:
        """The same of an event that has just come: waits a little for a key that comes after it."""
        shown, kid = self.shown(seen), seen.sealed.get("kid")
        is_awaited = self._ring is not None and kid not in self._missed and seen.time_us >= now_us() - YOUNG_US
        if shown.shut != "sealed" or not is_awaited:
            return shown
        deadline = asyncio.get_running_loop().time() + KEY_WAIT_S
        while shown.shut == "sealed" and (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._apply(await self._subscription.poll(AT_ONCE, left))
            shown = self.shown(seen)
        if shown.shut:
            self._missed.add(str(kid))
        return shown

    async def close(self) -> None:
        await self._subscription.close()

    async def catch_up(self) -> None:
        """Every key that is on the log now. Raises LogUnavailable."""
        while not self._subscription.caught_up:
            self._apply(await self._subscription.poll(AT_ONCE, 1.0))

    def _opened(self, sealed: Sealed) -> Sealed | None:
        try:
            return self._ring.open(sealed) if self._ring is not None else None
        except KeyFault as fault:
            _log.warning("%s", fault.sentence)
            return None

    def _apply(self, records: Collection[Delivered]) -> None:
        for record in records:
            if record.topic == ERASURES_TOPIC:
                self._note_erasure(record)
                continue
            named = named_by(record.key)
            if named is None or (self._only and named[2] not in self._only):
                continue
            if record.value is None:
                self._gone.add(named[2])
            try:
                if self._ring is not None:
                    self._ring.apply(record)
            except KeyFault as fault:
                _log.warning("%s", fault.sentence)

    def _note_erasure(self, record: Delivered) -> None:
        if record.value is None or not is_erasure(record.key):
            return
        try:
            event = read_erasure(record.value).event
        except msgspec.DecodeError:
            return
        self._erased.add((event.tenant, event.subject_id))


async def open_boxes(settings: Settings, log: EventLog, only: Collection[str] = ()) -> Boxes:
    """With the keys that are on the log now; `only` some kids, so that no other key is opened. Raises Fault."""
    wrapping = open_wrapping(settings)
    ring = None if wrapping is None else KeyRing(wrapping, keys_max=LOADED_MAX)
    boxes = Boxes(ring, await log.follow((TOPIC, ERASURES_TOPIC)), only)
    await boxes.catch_up()
    return boxes


def told(plain: Sealed) -> dict[str, Any]:
    """What a part says, as decoded JSON; content that cannot be decoded here stays a text."""
    said = {name: getattr(plain, name) for name in _TEXTS if getattr(plain, name)}
    for name in _PARTS:
        raw = bytes(getattr(plain, name))
        if raw != b"null":
            said[name] = _decoded(raw)
    return said


def _decoded(raw: bytes) -> Any:
    try:
        value = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        value = None
    return raw.decode(errors="replace") if value is None or not is_shallow(value) else value
