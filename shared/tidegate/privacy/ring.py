"""Published data keys, folded from the topic `subject-keys`: what a reader of sealed events opens them with.

Bounded: the keys longest unused leave first and come back through the caller's `load`. Applying a record twice changes
nothing the second time. Counterpart: `keys.py` has what a record is.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from tidegate.errors import KeyFault
from tidegate.events import Sealed
from tidegate.log.port import ERASING_TOPIC, Delivered, EventLog
from tidegate.privacy.keys import Lock, SubjectKey, Wrapping, named_by

TOPIC: Final = ERASING_TOPIC
KEYS_MAX: Final = 100_000
LOADED_MAX: Final = 1_000_000  # that a command keeps, which reads the topic once and has no loader
_READ_AT_ONCE: Final = 2_000

_log = logging.getLogger(__name__)

Load = Callable[[str], SubjectKey | None]
"""The key of a kid from where all of them are; None where it is gone."""


class Added(NamedTuple):
    """A key that can be used from now on; `value` is the record's, as it is wrapped."""

    key: SubjectKey
    value: bytes


class Removed(NamedTuple):
    """A key that was destroyed."""

    tenant: str
    subject_id: str
    kid: str


class KeyRing:
    """Keys by kid. One thread."""

    def __init__(self, wrapping: Wrapping, load: Load | None = None, keys_max: int = KEYS_MAX) -> None:
        self._wrapping = wrapping
        self._load = load
        self._keys_max = keys_max
        self._locks: OrderedDict[str, Lock] = OrderedDict()
        self.is_whole = True  # no key had to leave: what is not found is gone, or not published yet

    def __len__(self) -> int:
        return len(self._locks)

    def find(self, kid: str) -> SubjectKey | None:
        """The key, or None: destroyed, or not seen yet."""
        lock = self._lock(kid)
        return lock.key if lock is not None else None

    def open(self, sealed: Sealed) -> Sealed | None:
        """The plain personal part, or None where its key is not to be found. Raises KeyFault (`box-altered`)."""
        if not sealed.kid:
            return sealed
        lock = self._lock(sealed.kid)
        return lock.open(sealed) if lock is not None else None

    def apply(self, record: Delivered) -> Added | Removed | None:
        """Fold one record of the topic in; what it says. Raises KeyFault: such a record changes nothing."""
        named = named_by(record.key)
        if named is None:
            return None
        if record.value is None:
            self._locks.pop(named[2], None)
            return Removed(*named)
        key = self._wrapping.unwrap(record.value)
        if (key.tenant, key.subject_id, key.kid) != named:
            raise KeyFault(f"the record of subject key {key.kid} stands under another key's name; it is left out")
        if key.kid not in self._locks:
            self._keep(Lock(key))
        return Added(key, record.value)

    def _lock(self, kid: str) -> Lock | None:
        lock = self._locks.get(kid)
        if lock is not None:
            self._locks.move_to_end(kid)
        elif self._load is not None and (key := self._load(kid)) is not None:
            lock = Lock(key)
            self._keep(lock)
        return lock

    def _keep(self, lock: Lock) -> None:
        self._locks[lock.key.kid] = lock
        if len(self._locks) > self._keys_max:
            self._locks.popitem(last=False)
            self.is_whole = False


async def load_ring(log: EventLog, wrapping: Wrapping) -> KeyRing:
    """Every key that is on the log now. A record that cannot be opened is told and left out. Raises LogUnavailable."""
    ring = KeyRing(wrapping, keys_max=LOADED_MAX)
    subscription = await log.follow([TOPIC])
    try:
        while not subscription.caught_up:
            for record in await subscription.poll(_READ_AT_ONCE, 1.0):
                try:
                    ring.apply(record)
                except KeyFault as fault:
                    _log.warning("%s", fault.sentence)
    finally:
        await subscription.close()
    return ring
