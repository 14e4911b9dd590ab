"""Where a batch is written: on the event loop while the medium is fast, in a thread while it is not. Pure.

Handing a batch to a thread and back costs more CPU than a sync on a local NVMe disk takes (two wake-ups and two changes
of the interpreter lock), and those who wait for the batch could do nothing else anyway. After syncs that were slow, the
thread takes over for a while; then the loop tries again. Counterpart: `commit.py`.
"""

from typing import Final

SMOOTHING: Final = 1 / 16
PENALTY_S: Final = 5.0  # in the thread, after syncs on the loop took too long
OUTLIER: Final = 20  # one sync that took so many times the bound is reason enough


class Pace:
    """Judges from what appends on the loop took. `inline_below_s` 0 means: always the thread."""

    def __init__(self, inline_below_s: float) -> None:
        self._inline_below_s = inline_below_s
        self._mean_s = 0.0
        self._threaded_until_s = 0.0

    def is_inline(self, now_s: float) -> bool:
        """Whether the next batch is to be written on the loop."""
        return self._inline_below_s > 0.0 and now_s >= self._threaded_until_s

    def took(self, seconds: float, now_s: float) -> None:
        """An append on the loop took so long."""
        self._mean_s += SMOOTHING * (seconds - self._mean_s)
        if self._mean_s > self._inline_below_s or seconds > OUTLIER * self._inline_below_s:
            self._mean_s = 0.0
            self._threaded_until_s = now_s + PENALTY_S
