"""Room in the maps of `memory.py`: what has ended is swept out when they are full, and a full map refuses."""

from collections.abc import Callable
from typing import Final, TypeVar

from tidegate.sessions.expiring import Expiring
from tidegate.sessions.port import Clock, SessionsUnavailable

K = TypeVar("K")
V = TypeVar("V")

ENTRIES_MAX: Final = 200_000  # of each kind
_SWEEP_EVERY_S: Final = 1.0  # looking for ended entries costs milliseconds when there are many


class Room:
    """`sweep` is called at most once a second."""

    def __init__(self, clock: Clock, entries_max: int, sweep: Callable[[float], None]) -> None:
        self._clock, self._entries_max, self._sweep = clock, entries_max, sweep
        self._swept_at = -_SWEEP_EVERY_S

    def make(self, held: Callable[[], int]) -> None:
        """Raises SessionsUnavailable when there is none."""
        now = self._clock()
        if held() >= self._entries_max and now >= self._swept_at + _SWEEP_EVERY_S:
            self._swept_at = now
            self._sweep(now)
        if held() >= self._entries_max:
            raise SessionsUnavailable(f"{self._entries_max} sessions are held in memory; use `sessions: redis://…`")


def room_in(entries: Expiring[K, V], clock: Clock, entries_max: int) -> Callable[[], None]:
    """To be called before something is put into the map."""
    room = Room(clock, entries_max, entries.sweep)
    return lambda: room.make(entries.__len__)
