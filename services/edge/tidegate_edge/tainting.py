"""Taint: what a server labelled so has said is noted in the client's session before the client is told any of it.

Noted means: in the session store, at every edge, and (once for each session and label) in the log. Where that cannot be
done nothing is passed on; where that is known beforehand, nothing is sent. Rules read it as `context.taint`;
counterpart `facts.py`. Most calls are of servers and tools without such labels, or in sessions that have them already:
they have no `Tainting`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from tidegate.errors import Fault
from tidegate.events import SessionTainted
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge import reply, targets
from tidegate_edge.calls import Ended, Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.facts import UNAVAILABLE, taint_of
from tidegate_edge.messages import Reply
from tidegate_edge.upstream.port import Answer, Paused
from tidegate_edge.visit import Visit

HELD_MAX: Final = 256  # messages of one call that wait until the taint is noted
HELD_BYTES_MAX: Final = 1024 * 1024
_NOTHING: Final = frozenset[str]()

_log = logging.getLogger(__name__)


def of(edge: Edge, call: Ongoing) -> "Tainting | None":
    """What must be noted before the client hears of this call's content; None: nothing that is not noted already."""
    brought = _brought(edge, call)
    if not brought:
        return None
    cause = Cause(call.call_id, call.server, call.dimensions["target"])
    return Tainting(edge, call.visit, brought, cause, lambda message: call.visit.outlet.send(message))


async def foresee(edge: Edge, call: Ongoing) -> None:
    """Refuse a call whose answer would have to be kept back, for the session store is away; it is not sent then."""
    if not _brought(edge, call):
        return
    try:
        await taint_of(edge, call.visit)
    except SessionsUnavailable as fault:
        told = (
            f"What {call.server} says must be noted in this session before it is passed on, and that cannot be done "
            f"now: {fault.sentence}. The call was not made. Try again shortly."
        )
        call.refuse("policy", UNAVAILABLE, told)


def of_server(edge: Edge, visit: Visit, server: str, send: Callable[[bytes], None]) -> "Tainting | None":
    """The same for what a server says outside of calls, by the labels of the whole server."""
    ruling = edge.ruling_of(visit.principal)
    shelf = ruling.catalog.shelves.get(server) if ruling is not None else None
    brought = edge.taint_labels.intersection(shelf.labels if shelf is not None else ())
    if not brought or _is_noted(edge, visit, brought):
        return None
    return Tainting(edge, visit, brought, Cause("", server, ""), send)


def _brought(edge: Edge, call: Ongoing) -> frozenset[str]:
    """Labels that the call's content brings to its session, and that are not known to be noted."""
    if edge.taint_labels.isdisjoint(call.labels) or call.method in targets.SILENT:
        return _NOTHING
    brought = edge.taint_labels.intersection(call.labels)
    return _NOTHING if _is_noted(edge, call.visit, brought) else brought


def _is_noted(edge: Edge, visit: Visit, brought: frozenset[str]) -> bool:
    known = edge.sessions.known_taint(visit.principal.tenant, visit.session_id)
    return known is not None and brought <= known


class Cause(NamedTuple):
    """What brought a taint."""

    call_id: str  # "": the server said something outside of any call
    server: str
    target: str


class Tainting:
    """Of one call, or of a server on a standing stream: holds back what is said until the session's taint is noted."""

    def __init__(
        self, edge: Edge, visit: Visit, brought: frozenset[str], cause: Cause, send: Callable[[bytes], None]
    ) -> None:
        self._edge, self._visit, self._brought, self._cause, self._send = edge, visit, brought, cause, send
        self._noting = asyncio.Lock()
        self._is_noted = self._is_closed = False
        self._held: list[bytes] = []
        self._held_bytes = 0

    @property
    def is_done(self) -> bool:
        """The taint has been noted and nothing waits for it: what is said next may go by what is known then."""
        return self._is_noted and not self._held

    def say(self, message: bytes) -> None:
        """A message for the client, in its turn once the taint is noted. Past the bounds messages are lost, as any may
        be.
        """
        if self._is_noted:
            self._send(message)
            return
        if self._is_closed or len(self._held) >= HELD_MAX or self._held_bytes + len(message) > HELD_BYTES_MAX:
            return
        self._held.append(message)
        self._held_bytes += len(message)
        if len(self._held) == 1:
            self._edge.tasks.start(self._say_held(), "note a session's taint")

    async def note(self) -> None:
        """Once, whoever asks; what was held back is said. Raises SessionsUnavailable or LogUnavailable."""
        async with self._noting:
            if not self._is_noted:
                await self._note()
                self._is_noted = True
        held, self._held = self._held, []
        for message in held:
            self._send(message)

    def close(self) -> None:
        """The call is over: what is still held back is not said after its answer."""
        self._is_closed = True
        self._held.clear()

    async def before(
        self, call: Ongoing, ended: Ended, answer: Answer | Paused | Reply
    ) -> tuple[Ended, Answer | Paused | Reply]:
        """The answer once its taint is noted; else a refusal in its place, and how the call ended then."""
        if isinstance(answer, Reply):  # the inspection keeps it back: nothing of it is passed on
            return ended, answer
        try:
            await self.note()
        except Fault as fault:
            sentence = (
                f"{call.server} answered, but its answer is kept back, for what this session has read could not "
                f"be noted: {fault.sentence}. The call was carried out."
            )
            refused = reply.refused(call, sentence, decision="deny", reason=UNAVAILABLE)
            return msgspec.structs.replace(ended, outcome="blocked", reason=UNAVAILABLE, message=sentence), refused
        return ended, answer

    async def _say_held(self) -> None:
        try:
            await self.note()
        except Fault as fault:
            self._held.clear()
            _log.warning("what %s said meanwhile is not passed on: %s", self._cause.server, fault.sentence)
        except Exception:  # this task's own loop: nobody else could catch it
            self._held.clear()
            _log.exception("what %s said meanwhile is not passed on", self._cause.server)

    async def _note(self) -> None:
        edge, visit, limits = self._edge, self._visit, self._edge.limits
        principal = visit.principal
        ttl_s = limits.session_window_s if visit.record is None else limits.session_idle_s
        fresh = await edge.sessions.taint(principal.tenant, visit.session_id, self._brought, ttl_s)
        if not fresh:
            return
        event = SessionTainted(
            **edge.place.stamp(principal.tenant),
            session_id=visit.session_id,
            subject_id=principal.subject_id,
            agent=principal.agent,
            labels=tuple(sorted(fresh)),
            call_id=self._cause.call_id,
            server=self._cause.server,
            target=self._cause.target,
        )
        await edge.recorder.record(event, "spool")
