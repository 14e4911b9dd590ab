"""Quarantines: a pure fold of `quarantine.imposed` and `quarantine.lifted`, asked once per call.

Applying an event twice changes nothing the second time; a lift seen before its imposition still lifts. On
`control-state` the key is `tenant|quarantine_id` and the value the imposing event as stored, None once it is lifted.
"""

from typing import Final

from tidegate.events import QuarantineImposed, QuarantineLifted
from tidegate.policy.resource_uris import is_uri, ruled

_Key = tuple[str, str]
NOTHING: Final = frozenset[str]()
ON_OFFERS: Final = frozenset({"server", "tool"})
"""The scopes of what servers offer; the others are of those who call."""
_NEVER_US: Final = 2**63


def scope_word(scope: str) -> str:
    """A scope in sentences: what events call a subject is a person to people."""
    return "person" if scope == "subject" else scope


class Quarantines:
    """What is quarantined now in one tenant. `match` is five dictionary look-ups, whatever the number in force."""

    def __init__(self) -> None:
        self.epoch = 0
        self._imposed: dict[str, QuarantineImposed] = {}
        self._lifted: set[str] = set()
        self._by_key: dict[_Key, dict[str, QuarantineImposed]] = {}
        self._stopped: tuple[int, int, frozenset[str]] = (0, 0, NOTHING)  # as of which epoch, until when, what

    def apply(self, event: QuarantineImposed | QuarantineLifted) -> bool:
        """Fold one event in; True, and a new `epoch`, where it changed anything."""
        changed = self._impose(event) if isinstance(event, QuarantineImposed) else self._lift(event.quarantine_id)
        self.epoch += changed
        return changed

    def drop(self, quarantine_id: str) -> bool:
        """The state topic says that this one is gone."""
        changed = self._lift(quarantine_id)
        self.epoch += changed
        return changed

    def match(
        self, session_id: str, subject_id: str, agent: str, server: str, tool: str, now_us: int
    ) -> QuarantineImposed | None:
        """The quarantine that stops such a call, if any: the narrowest scope first, within it the earliest."""
        if not self._by_key:
            return None
        for key in (
            ("session", session_id),
            ("subject", subject_id),
            ("tool", f"{server}/{tool}"),
            ("agent", agent),
            ("server", server),
        ):
            held = self._by_key.get(key)
            if held and (found := [event for event in held.values() if not has_expired(event, now_us)]):
                return min(found, key=lambda event: (event.time_us, event.quarantine_id))
        return None

    def stopped(self, now_us: int) -> frozenset[str]:
        """What nobody may use: servers, and `server/target` of tools, prompts and resources. The same object as long as
        it is the same.
        """
        if not self._by_key:
            return NOTHING
        epoch, until_us, found = self._stopped
        if epoch != self.epoch or now_us >= until_us:
            held = [one for one in self._imposed.values() if one.scope in ON_OFFERS and not has_expired(one, now_us)]
            found = frozenset(value for one in held for _, value in _keys(one))
            until_us = min((one.expires_us for one in held if one.expires_us), default=_NEVER_US)
            self._stopped = (self.epoch, until_us, found)
        return found

    def current(self, now_us: int) -> list[QuarantineImposed]:
        """All in force, oldest first."""
        return sorted(
            (event for event in self._imposed.values() if not has_expired(event, now_us)),
            key=lambda event: (event.time_us, event.quarantine_id),
        )

    def get(self, quarantine_id: str) -> QuarantineImposed | None:
        return self._imposed.get(quarantine_id)

    def expired(self, now_us: int) -> list[QuarantineImposed]:
        """Those past their time that nobody has lifted: whoever writes `control-state` removes them there."""
        return [event for event in self._imposed.values() if has_expired(event, now_us)]

    def forget_expired(self, now_us: int) -> int:
        """Free the memory of what is past its time; the number freed. No change of state: it matched nothing."""
        gone = self.expired(now_us)
        for event in gone:
            self._remove(event)
        return len(gone)

    def _impose(self, event: QuarantineImposed) -> bool:
        if event.quarantine_id in self._lifted or event.quarantine_id in self._imposed:
            return False
        self._imposed[event.quarantine_id] = event
        for key in _keys(event):
            self._by_key.setdefault(key, {})[event.quarantine_id] = event
        return True

    def _lift(self, quarantine_id: str) -> bool:
        new = quarantine_id not in self._lifted
        self._lifted.add(quarantine_id)
        event = self._imposed.get(quarantine_id)
        if event is not None:
            self._remove(event)
        return new

    def _remove(self, event: QuarantineImposed) -> None:
        del self._imposed[event.quarantine_id]
        for key in _keys(event):
            held = self._by_key[key]
            del held[event.quarantine_id]
            if not held:
                del self._by_key[key]


def named(scope: str, value: str) -> str:
    """The name that calls are compared with: of a resource its server's, and its URI as rules see it."""
    server, slash, target = value.partition("/")
    return f"{server}/{ruled(target)}" if scope == "tool" and slash and is_uri(target) else value


def _keys(event: QuarantineImposed) -> set[_Key]:
    """Under which a quarantine is found: a resource's URI in any spelling is also the one that rules see."""
    return {(event.scope, event.value), (event.scope, named(event.scope, event.value))}


def has_expired(event: QuarantineImposed, now_us: int) -> bool:
    return event.expires_us != 0 and event.expires_us <= now_us
