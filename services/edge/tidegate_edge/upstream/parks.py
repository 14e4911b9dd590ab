"""Calls whose server's stream must stay open on this edge while their clients think: bounded in number and time."""

import asyncio
import secrets
from typing import Final

from tidegate_edge.upstream.errands import Errands
from tidegate_edge.upstream.legacy_call import LegacyCall

ID_BYTES: Final = 16


class Parks:
    """Of one upstream on this edge."""

    def __init__(self, errands: Errands, *, calls_max: int, kept_s: float) -> None:
        self._errands = errands
        self._calls_max = calls_max
        self._kept_s = kept_s
        self._calls: dict[str, tuple[LegacyCall, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def are_full(self) -> bool:
        return len(self._calls) >= self._calls_max

    def keep(self, call: LegacyCall) -> str:
        """Under which name it is found again, once."""
        name = secrets.token_hex(ID_BYTES)
        call.stay()
        timer = asyncio.get_running_loop().call_later(self._kept_s, self._expired, name)
        self._calls[name] = (call, timer)
        return name

    def take(self, name: str, owner: str) -> LegacyCall | None:
        """None where it has ended, was taken before, or is another's."""
        found = self._calls.get(name)
        if found is None or found[0].where.owner != owner:
            return None
        del self._calls[name]
        found[1].cancel()
        return found[0]

    def _expired(self, name: str) -> None:
        call, _ = self._calls.pop(name)
        self._errands.start(call.give_up(), "give up a paused call")

    def close(self) -> None:
        """The edge ends: the streams end with it."""
        for call, timer in self._calls.values():
            timer.cancel()
            call.leave()
        self._calls.clear()
