"""Legacy requests under way, so that `notifications/cancelled` ends them, whichever edge it reaches.

The notification and the request may meet different edges: what is not found here is told to all. A cancelled request
gets no response (2025-11-25 basic/utilities/cancellation). Counterpart: `exchange.py`, which ends its HTTP answer.
"""

import asyncio
from types import TracebackType
from typing import Final

import msgspec

from tidegate.sessions.port import Bus, SessionsUnavailable
from tidegate_edge.messages import RequestId, encode

KIND: Final = "cancel"
CAUSE: Final = "client-cancelled"


class ClientCancelled(Exception):
    """The client withdrew its request: there is nothing to answer. Raised where `running` ends, by then all is told."""


class Cancellation(msgspec.Struct, frozen=True):
    """On the bus."""

    session: str
    id: RequestId


_decode: Final = msgspec.json.Decoder(Cancellation).decode


class Running:
    """One request under way; ends with its block."""

    __slots__ = ("_key", "_of", "_task", "_was_cancelled")

    def __init__(self, of: dict[tuple[str, RequestId], "Running"], key: tuple[str, RequestId]) -> None:
        self._of = of
        self._key = key
        self._task: asyncio.Task[object] | None = None
        self._was_cancelled = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._of[self._key] = self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._of.get(self._key) is self:  # a client may use an id twice; then the later one is found by it
            del self._of[self._key]
        task, self._task = self._task, None
        if not self._was_cancelled or task is None:
            return
        others = task.uncancel()  # cancelled by somebody else, too: then it stays so
        if others == 0 and isinstance(error, asyncio.CancelledError):
            raise ClientCancelled from error

    def cancel(self) -> None:
        if self._task is not None and not self._was_cancelled:
            self._was_cancelled = True
            self._task.cancel(CAUSE)


class InFlight:
    """Of one edge."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._running: dict[tuple[str, RequestId], Running] = {}
        bus.on_message(KIND, self._heard)

    def __len__(self) -> int:
        return len(self._running)

    def running(self, session: str, request_id: RequestId) -> Running:
        """A block in which the current task may be cancelled by the client; then it ends with ClientCancelled."""
        return Running(self._running, (session, request_id))

    async def cancel(self, session: str, request_id: RequestId) -> None:
        """Here, or at the edge where the request is under way. Nothing where it has ended already."""
        if self._cancel_here(session, request_id):
            return
        try:
            await self._bus.tell_all(KIND.encode() + b"\n" + encode(Cancellation(session, request_id)))
        except SessionsUnavailable:  # a cancellation is advice: the request ends by itself
            return

    def _cancel_here(self, session: str, request_id: RequestId) -> bool:
        found = self._running.get((session, request_id))
        if found is not None:
            found.cancel()
        return found is not None

    def _heard(self, message: bytes) -> None:
        try:
            cancellation = _decode(message)
        except msgspec.DecodeError:
            return
        self._cancel_here(cancellation.session, cancellation.id)
