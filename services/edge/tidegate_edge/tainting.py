"""Taint: what a server labelled so has said is noted in the client's session before the client is told any of it.

Noted means: in the session store, at every edge, and (once for each session and label) in the log. Where that cannot be
done nothing is passed on. Rules read it as `context.taint`; counterpart `facts.py`. Most calls are of servers and tools
without such labels, or in sessions that have them already: they have no `Tainting`.
"""

import asyncio
import logging
from typing import Final

import msgspec

from tidegate.errors import Fault
from tidegate.events import SessionTainted
from tidegate_edge import reply, targets
from tidegate_edge.calls import Ended, Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.facts import UNAVAILABLE
from tidegate_edge.messages import Reply
from tidegate_edge.upstream.port import Answer, Paused

HELD_MAX: Final = 256  # messages of one call that wait until the taint is noted
HELD_BYTES_MAX: Final = 1024 * 1024

_log = logging.getLogger(__name__)


def of(edge: Edge, call: Ongoing) -> "Tainting | None":
    """What must be noted before the client hears of this call's content; None: nothing that is not noted already."""
    brought = edge.taint_labels.intersection(call.labels)
    if not brought or call.method in targets.SUBSCRIBING:
        return None
    known = edge.sessions.known_taint(call.principal.tenant, call.visit.session_id)
    return None if known is not None and brought <= known else Tainting(edge, call, brought)


class Tainting:
    """Of one call: holds back what its server says until the session's taint is noted."""

    def __init__(self, edge: Edge, call: Ongoing, brought: frozenset[str]) -> None:
        self._edge, self._call, self._brought = edge, call, brought
        self._noting = asyncio.Lock()
        self._is_noted = self._is_closed = False
        self._held: list[bytes] = []
        self._held_bytes = 0

    def say(self, message: bytes) -> None:
        """A message for the client, in its turn once the taint is noted. Past the bounds the call's messages are lost,
        as any may be.
        """
        if self._is_noted:
            self._call.visit.outlet.send(message)
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
            self._call.visit.outlet.send(message)

    def close(self) -> None:
        """The call is over: what is still held back is not said after its answer."""
        self._is_closed = True
        self._held.clear()

    async def before(self, ended: Ended, answer: Answer | Paused | Reply) -> tuple[Ended, Answer | Paused | Reply]:
        """The answer once its taint is noted; else a refusal in its place, and how the call ended then."""
        if isinstance(answer, Reply):  # the inspection keeps it back: nothing of it is passed on
            return ended, answer
        try:
            await self.note()
        except Fault as fault:
            sentence = (
                f"{self._call.server} answered, but its answer is kept back, for what this session has read could not "
                f"be noted: {fault.sentence}. The call was carried out."
            )
            refused = reply.refused(self._call, sentence, decision="deny", reason=UNAVAILABLE)
            return msgspec.structs.replace(ended, outcome="blocked", reason=UNAVAILABLE, message=sentence), refused
        return ended, answer

    async def _say_held(self) -> None:
        try:
            await self.note()
        except Fault as fault:
            self._held.clear()
            _log.warning("what %s said meanwhile is not passed on: %s", self._call.server, fault.sentence)
        except Exception:  # this task's own loop: nobody else could catch it
            self._held.clear()
            _log.exception("what %s said meanwhile is not passed on", self._call.server)

    async def _note(self) -> None:
        edge, call = self._edge, self._call
        visit, principal, limits = call.visit, call.principal, edge.limits
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
            call_id=call.call_id,
            server=call.server,
            target=call.dimensions["target"],
        )
        await edge.recorder.record(event, "spool")
