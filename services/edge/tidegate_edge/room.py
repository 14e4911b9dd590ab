"""How much of large request bodies may be held at once, over all connections: callers whose token is known share one
amount, strangers a small one. Small bodies are not counted. One event loop.
"""

from typing import Final

UNCOUNTED_BYTES: Final = 64 * 1024  # per body
STRANGERS_BYTES_MAX: Final = 64 * 1024 * 1024
CALLERS_BYTES_MAX: Final = 512 * 1024 * 1024


class Room:
    """An amount of bytes that is handed out and comes back."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0

    def take(self, size: int) -> bool:
        """False where there is no room for so much."""
        if self.held + size > self.bytes_max:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        self.held -= size


class Rooms:
    """One for callers, one for strangers."""

    def __init__(self, callers: int = CALLERS_BYTES_MAX, strangers: int = STRANGERS_BYTES_MAX) -> None:
        self.callers = Room(callers)
        self.strangers = Room(strangers)
