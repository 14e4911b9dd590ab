"""Buses of several edges in one process, as `sessions/port.py` promises them: messages arrive at once and in order."""

from collections.abc import Callable

from tidegate.sessions.takers import Takers, check_message


class Lan:
    """`lan["a"]` is the bus of edge a. A dead edge hears nothing."""

    def __init__(self, *addresses: str) -> None:
        self._ends = {address: End(self, address) for address in addresses}

    def __getitem__(self, address: str) -> "End":
        return self._ends[address]

    def die(self, address: str) -> None:
        del self._ends[address]

    def deliver(self, address: str, message: bytes) -> bool:
        end = self._ends.get(address)
        if end is not None:
            end.takers.take(message)
        return end is not None

    def tell(self, sender: str, message: bytes) -> None:
        for address in list(self._ends):
            if address != sender:
                self.deliver(address, message)


class End:
    """One edge's bus."""

    def __init__(self, lan: Lan, address: str) -> None:
        self._lan = lan
        self.address = address
        self.takers = Takers()

    async def post(self, address: str, message: bytes) -> bool:
        check_message(message)
        return self._lan.deliver(address, message)

    async def tell_all(self, message: bytes) -> None:
        check_message(message)
        self._lan.tell(self.address, message)

    def on_message(self, kind: str, take: Callable[[bytes], None]) -> None:
        self.takers.on_message(kind, take)
