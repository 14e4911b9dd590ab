"""When a server that fails again and again is left alone for a while. Pure: the time is an argument.

closed → open after `failures_max` failures in a row → half-open when the wait is over: one request tries, the others
are refused → closed when it succeeds, else open for twice as long.
"""

from typing import Final

WAIT_S_FIRST: Final = 1.0
WAIT_S_MAX: Final = 30.0


class Breaker:
    """Of one upstream. Each `admit` that lets a request go is followed by `succeeded`, `failed` or `abandoned`."""

    __slots__ = ("_failures_max", "_open_until_s", "_trying", "_wait_s", "failures")

    def __init__(self, failures_max: int) -> None:
        self._failures_max = failures_max
        self.failures = 0  # in a row
        self._open_until_s = 0.0
        self._wait_s = 0.0  # 0: closed
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Open or half-open."""
        return self._wait_s > 0

    def admit(self, now_s: float) -> float:
        """0: go ahead. Else refused: seconds until a request may try again."""
        if not self._wait_s:
            return 0.0
        if self._trying:
            return WAIT_S_FIRST
        if now_s < self._open_until_s:
            return self._open_until_s - now_s
        self._trying = True
        return 0.0

    def succeeded(self) -> None:
        """The server answered, whatever it said."""
        self.failures = 0
        self._wait_s = 0.0
        self._trying = False

    def failed(self, now_s: float) -> None:
        """It could not be reached, or did not answer."""
        self.failures += 1
        if self._trying or (not self._wait_s and self.failures >= self._failures_max):
            self._wait_s = min(WAIT_S_MAX, self._wait_s * 2 or WAIT_S_FIRST)
            self._open_until_s = now_s + self._wait_s
        self._trying = False

    def abandoned(self) -> None:
        """The caller gave up before anything was known."""
        self._trying = False
