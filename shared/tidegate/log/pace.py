"""Where a batch is written: on the event loop while the medium is fast, in a thread while it is not. Pure.

Handing a batch to a thread and back costs more CPU than a sync on a local NVMe disk takes (two wake-ups and two
changes of the interpreter lock), and those who wait for the batch could do nothing else anyway. A medium that is
slow, or was once, is written to from the thread: then the loop never waits for it, and batches are large by
themselves. Counterpart: `commit.py`.
"""

from typing import Final

SMOOTHING: Final = 1 / 16
SAMPLES_MIN: Final = 16  # in the thread, before the loop is trusted with a sync
PENALTY_S: Final = 5.0  # in the thread, after a sync on the loop took too long


class Pace:
    """Judges from what appends took. `inline_below_s` 0 means: always the thread."""

    def __init__(self, inline_below_s: float) -> None:
        self._inline_below_s = inline_below_s
        self._mean_s = inline_below_s  # a medium must first show that it is fast
        self._samples = 0
        self._banned_until_s = 0.0

    def is_inline(self, now_s: float) -> bool:
        """Whether the next batch is to be written on the loop."""
        return self._samples >= SAMPLES_MIN and self._mean_s < self._inline_below_s and now_s >= self._banned_until_s

    def took(self, seconds: float, now_s: float) -> None:
        """An append took so long; ten times the bound bans the loop for a while."""
        self._samples += 1
        self._mean_s += SMOOTHING * (seconds - self._mean_s)
        if seconds > 10 * self._inline_below_s:
            self._banned_until_s = now_s + PENALTY_S
