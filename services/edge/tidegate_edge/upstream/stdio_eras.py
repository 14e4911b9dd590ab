"""A stdio server that may speak both eras, asked in the era of the client who calls: modern clients by its first
process, legacy clients by a second one of the same command that was started with `initialize`, when one comes.

On a pipe the first message settles the era for good, so it takes two. Where the second takes no handshake, the server
is modern alone: its legacy clients are translated, until the first process is started again. A server whose first
process is a legacy one has no second. Counterparts: `stdio.py`, `owned.py` (each process may run at another edge).
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate_edge.upstream.owned import OwnedUpstream
from tidegate_edge.upstream.port import Answer, Caller, Definitions, Outgoing, Paused, Talk, Upstream, Wanted
from tidegate_edge.upstream.stdio import PER_PRINCIPAL_IDLE_S, StdioUpstream
from tidegate_edge.upstream.stdio_kept import HANDSHAKE_REFUSED, Plan
from tidegate_edge.upstream.stdio_listening import Listener

SECOND_START_S: Final = 15.0  # the first process runs, so a second one is soon there
_log = logging.getLogger(__name__)


def second_of(plan: Plan) -> Plan:
    """How the second process is run: until it is idle for long, also where the first one runs for good."""
    idle_s = plan.idle_s or PER_PRINCIPAL_IDLE_S
    return plan._replace(era="legacy", idle_s=idle_s, second=True, start_s=SECOND_START_S)


def owned_in(upstream: Upstream) -> tuple[OwnedUpstream, ...]:
    """What of it the edges of a cluster share."""
    parts = (upstream.first, upstream.second) if isinstance(upstream, StdioEras) else (upstream,)
    return tuple(one for one in parts if isinstance(one, OwnedUpstream))


class StdioEras:
    """`first` finds its era out; `second` is planned by `second_of`."""

    def __init__(self, first: StdioUpstream | OwnedUpstream, second: StdioUpstream | OwnedUpstream) -> None:
        self.name = first.name
        self.first = first
        self.second = second
        self._second_here = second.here.local if isinstance(second, OwnedUpstream) else second
        self._both: bool | None = None  # whether the second process takes a handshake; None: not tried
        self._life = ""  # of the first process, when that was found
        self._trying = asyncio.Lock()

    async def start(self) -> None:
        await self.first.start()
        await self.second.start()

    def known_era(self, client_modern: bool) -> bool | None:
        modern = self.first.known_era(True)
        if client_modern or not modern:
            return modern
        return None if self._both is None else not self._both

    async def era(self, client_modern: bool, timeout_s: float) -> bool:
        """The first legacy client of a modern server waits for a handshake with the second process."""
        modern = await self.first.era(True, timeout_s)
        if client_modern or not modern:
            return modern
        if self._both is None:
            try:
                async with asyncio.timeout(timeout_s), self._trying:
                    await self._try_second(timeout_s)
            except TimeoutError:
                pass  # it tells nothing: for now, the era that is known to be spoken
        return not self._both

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        if not self._is_second(outgoing.modern):
            return await self.first.request(outgoing, talk)
        try:
            return await self.second.request(outgoing, talk)
        except UpstreamFault as fault:
            self._heed(fault)
            if fault.code == HANDSHAKE_REFUSED:
                raise UpstreamFault(fault.sentence, code="upstream-era-changed", sent=False) from fault
            raise

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        """Only modern clients' calls pause, and none of them is in the second process."""
        return await self.first.resume(ticket, answers, caller, talk, timeout_s)

    async def notify(self, method: str, params: bytes, caller: Caller) -> None:
        if not self._is_second(False):
            await self.first.notify(method, params, caller)
        elif self._both:
            await self.second.notify(method, params, caller)

    async def listen(self, wanted: Wanted, caller: Caller, modern: bool, talk: Talk) -> None:
        """At the process of that era. Who listens at the first hears of list changes by the second as well, where it
        runs at this edge.
        """
        if self._is_second(modern):
            try:
                await self.second.listen(wanted, caller, modern, talk)
            except UpstreamFault as fault:
                self._heed(fault)
                raise
            return
        listener, overheard = Listener(msgspec.structs.replace(wanted, uris=()), talk), self._second_here.overheard
        overheard.add(listener)
        try:
            await self.first.listen(wanted, caller, modern, talk)
        finally:
            overheard.remove(listener)

    async def end(self, caller: Caller) -> None:
        """A caller holds nothing but what is paused; see `resume`."""
        await self.first.end(caller)

    async def definitions(self, timeout_s: float) -> Definitions:
        """The first process's; after a new start of it, what was found of a second one must be found again."""
        found = await self.first.definitions(timeout_s)
        if self.first.life != self._life:
            self._both = None
        return found

    async def close(self) -> None:
        await self.first.close()
        await self.second.close()

    def _is_second(self, modern: bool) -> bool:
        return not modern and self.first.known_era(True) is True

    async def _try_second(self, timeout_s: float) -> None:
        if self._both is not None:
            return
        try:
            await self.second.spoken(timeout_s)
        except UpstreamFault as fault:
            self._heed(fault)  # others tell nothing
        else:
            self._both, self._life = True, self.first.life

    def _heed(self, fault: UpstreamFault) -> None:
        if fault.code == HANDSHAKE_REFUSED:
            self._both, self._life = False, self.first.life
            _log.info("%s: legacy clients are translated: a second process takes no handshake (%s)", self.name, fault)
