"""Rulings that decide no more, let go of in a thread, piece by piece, once calls under way are over.

Python clears a thing and all that it alone holds in one go, and lets nothing else run meanwhile: for an engine of
thousands of rules and entities that is longer than calls may stand still. Counterpart: `releases.py`.
"""

import asyncio
import time
from collections import deque
from typing import Final, Protocol

from tidegate_edge.preparing import beside_calls

CALLS_END_S: Final = 30.0  # a call that goes on for longer keeps what it needs, and clears it at its end
WAITING_MAX: Final = 16


class Large(Protocol):
    """Something made of very many small things."""

    def parts(self) -> list[list[object]]: ...


class Retired:
    """What waits to be let go of."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Large]] = deque()

    def add(self, large: Large) -> None:
        self._waiting.append((time.monotonic() + CALLS_END_S, large))

    async def sweep(self) -> None:
        """Let go of what has waited long enough, and of the oldest where too many wait."""
        while self._waiting and (self._waiting[0][0] <= time.monotonic() or len(self._waiting) > WAITING_MAX):
            await asyncio.to_thread(let_go, [self._waiting.popleft()[1]])


def let_go(held: list[Large]) -> None:
    """Clear the list, and what nobody else holds of its members. Blocks."""
    with beside_calls:
        piles = [part for large in held for part in large.parts()]
        held.clear()
        for pile in piles:
            while pile:
                pile.pop()
