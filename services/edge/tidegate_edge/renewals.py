"""When a session in use is due to be renewed in the store, so that the common request asks nobody."""

import time
from collections.abc import Callable
from typing import Final

KEPT_MAX: Final = 100_000


class Renewals:
    """Remembers, per session, when this edge renewed it last. Forgetting one only renews it early."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due_s: dict[str, float] = {}

    def is_due(self, session_id: str) -> bool:
        """True at the first use here and then once per `every_s`; asking counts as renewing."""
        now_s = self._clock()
        if now_s < self._due_s.get(session_id, 0.0):
            return False
        if len(self._due_s) >= KEPT_MAX:
            self._due_s.clear()
        self._due_s[session_id] = now_s + self._every_s
        return True
