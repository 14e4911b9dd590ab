"""Opens personal parts for those who decide: with the keys that the log has now, where this service has the masters.

Keys are kept as they are published, wrapped, and go when they are destroyed. Counterparts: `erasure.py`, whose watch
tells of keys; `tidegate/privacy/keys.py`.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from tidegate.errors import ConfigFault, KeyFault
from tidegate.events import Sealed
from tidegate.log.port import Delivered
from tidegate.privacy.keys import Wrapping, named_by, open_sealed
from tidegate_policy.state import ControlPlane

KEYS_MAX: Final = 50_000  # the latest

WHY: Final[Mapping[str, str]] = {
    "erased": "the person was erased",
    "no-key-file": "this service has no privacy.key_file; `tidegate why` opens the call where there is one",
    "key-not-here": "the key is not known here: it is on its way, or wrapped by another master",
    "altered": "it was altered since it was recorded; `tidegate verify` finds where",
    "not-kept": "it is not kept any more; `tidegate why` shows the call",
}
"""Why a part stays shut, in words."""


class Opened(NamedTuple):
    """`shut` is "" where `part` is plain; else a key of `WHY`."""

    part: Sealed
    shut: str = ""


class Opener:
    """Published keys of the tenant, newest first to stay."""

    def __init__(self, state: ControlPlane, masters: Callable[[], Wrapping | None]) -> None:
        self._state = state
        self._masters = masters
        self._wrapping: Wrapping | None = None
        self._values: OrderedDict[str, bytes] = OrderedDict()  # by kid, wrapped

    def note(self, record: Delivered) -> None:
        """Fold a record of `subject-keys`."""
        named = named_by(record.key)
        if named is None or named[0] != self._state.tenant:
            return
        if record.value is None:
            self._values.pop(named[2], None)
            return
        self._values[named[2]] = record.value
        while len(self._values) > KEYS_MAX:
            self._values.popitem(last=False)

    def open(self, subject_id: str, sealed: Sealed | None) -> Opened:
        """Never raises."""
        if sealed is None:
            return Opened(Sealed(), "not-kept")
        if not sealed.kid:
            return Opened(sealed)
        value = self._values.get(sealed.kid)
        until_us = self._state.erased.get(subject_id, 0)
        if value is None and until_us:
            return Opened(Sealed(), "erased")
        wrapping = self._unwrapping()
        if wrapping is None:
            return Opened(Sealed(), "no-key-file")
        if value is None:
            return Opened(Sealed(), "key-not-here")
        try:
            key = wrapping.unwrap(value)
            if key.subject_id != subject_id or key.created_us <= until_us:
                return Opened(Sealed(), "erased")
            return Opened(open_sealed(sealed, key))
        except KeyFault as fault:
            return Opened(Sealed(), "key-not-here" if fault.code == "wrapping-unknown" else "altered")

    def _unwrapping(self) -> Wrapping | None:
        """In local mode the file comes with the first key that an edge makes."""
        if self._wrapping is None:
            try:
                self._wrapping = self._masters()
            except ConfigFault:
                return None
        return self._wrapping
