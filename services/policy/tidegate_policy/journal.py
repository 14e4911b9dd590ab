"""The one way in which the service writes: events through its own chain, with the state records that go with them.

One append at a time. After an append whose outcome is unknown a new chain begins, so that no gap can look like a loss.
"""

import asyncio
from collections.abc import Callable, Sequence

from tidegate.chain import Chain
from tidegate.errors import LogUnavailable
from tidegate.ids import uuid7
from tidegate.log.port import EventLog, Record
from tidegate_policy.state import ControlPlane

Compose = Callable[[Chain], Sequence[Record]]


class Journal:
    """Appends, then folds what it appended into the state."""

    def __init__(self, log: EventLog, state: ControlPlane, name: str) -> None:
        self._log = log
        self._state = state
        self._name = name
        self._chain = self._new_chain()
        self.turn = asyncio.Lock()
        self.is_fenced = False  # another process writes under this name now; this one never will again

    async def append(self, compose: Compose) -> None:
        """Append what `compose` seals, all or nothing, durable on return; hold `turn`. Raises LogUnavailable."""
        records = compose(self._chain)
        try:
            await self._log.append(records)
        except (LogUnavailable, asyncio.CancelledError) as fault:
            self._chain = self._new_chain()
            self.is_fenced |= isinstance(fault, LogUnavailable) and fault.code == "writer-fenced"
            raise
        for record in records:
            if record.value is not None and not record.topic.endswith("-state"):
                self._state.apply(record.value)

    def _new_chain(self) -> Chain:
        return Chain(f"policy.{self._name}.{uuid7()}")
