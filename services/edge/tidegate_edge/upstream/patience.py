"""How long to wait before trying again: longer each time, and never the same for all edges."""

import asyncio
import secrets
from typing import Final

WAITS_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Patience:
    """Of one thing that is tried again and again."""

    def __init__(self) -> None:
        self._tried = 0

    def reset(self) -> None:
        """It went well: the next wait is a short one."""
        self._tried = 0

    async def wait(self) -> None:
        await asyncio.sleep(self.next_s())

    def next_s(self) -> float:
        wait_s = WAITS_S[min(self._tried, len(WAITS_S) - 1)]
        self._tried += 1
        return wait_s * (0.5 + secrets.randbelow(1_000) / 1_000)
