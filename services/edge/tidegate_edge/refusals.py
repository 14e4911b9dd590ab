"""What known principals were refused, as events: nobody's mistakes go unrecorded, and nobody's fill the log.

A principal's first refusals are an event each; past a burst they are summed, by method and reason, into one event a
second that says how many it stands for. Counterpart: `desk.py`.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from tidegate.claims import Principal
from tidegate.errors import LogUnavailable
from tidegate.events import RequestRefused
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply

BURST: Final = 20  # events of one principal; then one a second
SUMMED_S: Final = 1.0
PRINCIPALS_MAX: Final = 10_000
SUMS_MAX: Final = 2_000
MESSAGE_BYTES: Final = 300
METHOD_CHARS_MAX: Final = 64

_Who = tuple[str, str, str]  # tenant, subject, agent


class _Sum(NamedTuple):
    event: RequestRefused  # the first of them
    number: int


class Refusals:
    """The events of one edge's refusals. `known` are the methods by which they are summed; others are any method."""

    def __init__(self, edge: Edge, known: frozenset[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._edge = edge
        self._known = known
        self._clock = clock
        self._left: dict[_Who, tuple[float, float]] = {}  # events that may still be written each, and as of when
        self._sums: dict[tuple[_Who, str, str], _Sum] = {}
        self._has_ended = False

    async def note(self, principal: Principal, method: str, reply: Reply) -> None:
        """One refusal. What cannot be recorded is refused all the same."""
        reason = f"status-{reply.status}"
        self._edge.counters.refused_requests[reason] += 1
        who = (principal.tenant, principal.subject_id, principal.agent)
        if not self._may_write(who) and not self._has_ended:
            key = (who, method if method in self._known else "", reason)
            if (found := self._sums.get(key)) is not None:
                self._sums[key] = found._replace(number=found.number + 1)
                return
            if len(self._sums) < SUMS_MAX:
                self._sums[key] = _Sum(self._event(principal, key[1], reply), 1)
                return
        await self._record(self._event(principal, method, reply))

    async def run(self) -> None:
        """Writes the sums, once a second and at the end. Until cancelled; what a second cancellation leaves is counted
        as unrecorded, and what is refused after the end is an event each.
        """
        try:
            while True:
                await asyncio.sleep(SUMMED_S)
                await self.flush()
        finally:
            self._has_ended = True
            try:
                await self.flush()
            finally:
                self._edge.counters.unrecorded += sum([one.number for one in self._sums.values()])
                self._sums.clear()

    async def flush(self) -> None:
        """The sums so far become events: one after the other, so that a cancellation leaves the others as they are."""
        for key in list(self._sums):
            if (found := self._sums.pop(key, None)) is not None:
                await self._tell(*found)

    async def _tell(self, event: RequestRefused, number: int) -> None:
        """A cancellation waits for the one that is being written: nobody could say whether it was."""
        stamp = self._edge.place.stamp(event.tenant)  # its own: it is true of the whole second
        shared = {name: getattr(event, name) for name in _SHARED}
        telling = asyncio.ensure_future(self._record(RequestRefused(**stamp, **shared, count=number)))
        try:
            await asyncio.shield(telling)
        except asyncio.CancelledError:
            try:
                await telling
            except asyncio.CancelledError:
                self._edge.counters.unrecorded += number
            raise

    def _may_write(self, who: _Who) -> bool:
        now_s = self._clock()
        left, at_s = self._left.pop(who, (float(BURST), now_s))
        left = min(float(BURST), left + now_s - at_s)
        if len(self._left) >= PRINCIPALS_MAX:  # the one unheard of for longest has its burst back anyway
            del self._left[next(iter(self._left))]
        self._left[who] = (left - 1 if left >= 1 else left, now_s)
        return left >= 1

    def _event(self, principal: Principal, method: str, reply: Reply) -> RequestRefused:
        method, message = method[:METHOD_CHARS_MAX], reply.body[:MESSAGE_BYTES].decode(errors="replace")
        ruling = self._edge.ruling_of(principal)
        if ruling is not None:  # both may hold what the caller sent
            method, message = ruling.told(method, "arguments"), ruling.told(message, "arguments")
        return RequestRefused(
            **self._edge.place.stamp(principal.tenant),
            subject_id=principal.subject_id,
            agent=principal.agent,
            session_id="",
            edge=self._edge.place.edge,
            method=method,
            reason=f"status-{reply.status}",
            message=message,
            status=reply.status,
        )

    async def _record(self, event: RequestRefused) -> None:
        try:
            await self._edge.recorder.record(event, "spool")
        except LogUnavailable:
            self._edge.counters.unrecorded += event.count


_SHARED: Final = ("subject_id", "agent", "session_id", "edge", "method", "reason", "message", "status")
