"""Messages between edges where there is but one: to itself. Part of `memory.py`; counterpart `redis_bus.py`."""

import asyncio
import uuid
from collections.abc import Callable

from tidegate.sessions.takers import Takers, check_message


class MemoryBus:
    def __init__(self) -> None:
        self.address = uuid.uuid4().hex
        self._takers = Takers()

    async def post(self, address: str, message: bytes) -> bool:
        check_message(message)
        if address != self.address:
            return False
        asyncio.get_running_loop().call_soon(self._takers.take, message)
        return True

    async def tell_all(self, message: bytes) -> None:
        """There is no other edge."""
        check_message(message)

    def on_message(self, kind: str, take: Callable[[bytes], None]) -> None:
        self._takers.on_message(kind, take)
