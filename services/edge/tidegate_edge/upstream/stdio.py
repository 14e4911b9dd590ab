"""An upstream that is run as a process and spoken to over stdio: one for all callers of a tenant, or one for each
principal and agent. Counterparts: `stdio_kept.py` keeps a process, `owned.py` finds the edge that runs it,
`stdio_eras.py` runs two such upstreams where a server speaks both eras.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tidegate.errors import UpstreamFault
from tidegate.settings import Settings
from tidegate_edge.messages import encode
from tidegate_edge.upstream.listing import drain
from tidegate_edge.upstream.port import (
    SILENCE,
    Answer,
    Caller,
    Definitions,
    Outgoing,
    Paused,
    Talk,
    Upstream,
    Wanted,
)
from tidegate_edge.upstream.stdio_child import Command
from tidegate_edge.upstream.stdio_handshake import ANYTHING, Spoken, own_meta
from tidegate_edge.upstream.stdio_kept import HANDSHAKE_REFUSED, Kept, Plan, ProcessKey, Room
from tidegate_edge.upstream.stdio_listening import Listeners
from tidegate_edge.upstream.stdio_session import pause_ended

REAPED_PARTS: Final = 4  # idle processes are looked for so often within the time that they may be idle


PER_PRINCIPAL_IDLE_S: Final = 900.0


def plan_of(settings: Settings, name: str, edge: str) -> Plan:
    """How a configured command is run. `edge` is this edge's address on the bus, which pauses are told with."""
    server = settings.servers[name]
    shared = server.process == "shared"
    command = Command(server.command, server.env, str(settings.path(server.cwd)) if server.cwd else "")
    idle_s = (0.0 if shared else PER_PRINCIPAL_IDLE_S) if server.idle_s is None else server.idle_s
    return Plan(name, command, server.era, shared, idle_s, edge, settings.limits.paused_s)


async def definitions_of(upstream: Upstream, own: Caller, spoken: Spoken, timeout_s: float) -> Definitions:
    """All that a server offers, as its lists tell the gateway."""

    async def fetch(method: str, cursor: str | None) -> Answer:
        params: dict[str, object] = {} if cursor is None else {"cursor": cursor}
        if spoken.modern:
            params["_meta"] = own_meta()
        answer = await upstream.request(Outgoing(method, encode(params), own, spoken.modern, timeout_s), SILENCE)
        assert isinstance(answer, Answer), "the gateway's own requests do not pause"
        return answer

    return await drain(
        upstream.name,
        fetch,
        capabilities=spoken.capabilities,
        server_info=spoken.server_info,
        instructions=spoken.instructions,
    )


class StdioUpstream:
    """One configured command, run by this edge."""

    def __init__(self, plan: Plan, tenant: str, room: Room) -> None:
        self.name = plan.name
        self.plan = plan
        self.own = Caller(tenant, "gateway", "tidegate")
        self._room = room
        self._kept: dict[ProcessKey, Kept] = {}
        self.life = ""  # of the gateway's own process, when it was last asked
        self.overheard = Listeners()  # they hear the list changes of all processes
        self._modern: bool | None = None if plan.era == "auto" else plan.era == "modern"
        self._leaving: dict[ProcessKey, asyncio.Task[None]] = {}
        self.on_gone: Callable[[ProcessKey], Awaitable[None]] | None = None  # told when no process of a key is left
        self._reaper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """A shared process begins to run, and is not waited for; a principal's own begins with its first call, and so
        does a second one.
        """
        if self.plan.shared and not self.plan.second:
            self.run(self.own)
        self.reap()

    def reap(self) -> None:
        """From now on, end what has been idle for too long."""
        if self.plan.idle_s:
            self._reaper = asyncio.create_task(self._reap(), name=f"stdio {self.name} idle")

    def key_of(self, caller: Caller) -> ProcessKey:
        era = self.plan.era if self.plan.second else ""
        if self.plan.shared:
            return ProcessKey(caller.tenant, era=era)
        return ProcessKey(caller.tenant, caller.subject_id, caller.agent, era)

    def run(self, caller: Caller) -> Kept:
        """The caller's process; begins to run where it did not. Raises UpstreamFault `upstream-busy`, or once
        `handshake-refused` where that was found while nobody waited.
        """
        key = self.key_of(caller)
        kept = self._kept.get(key)
        if kept is not None and kept.ended:
            self._drop(kept)
            if kept.refusal:
                raise UpstreamFault(kept.refusal, code=HANDSHAKE_REFUSED, sent=False)
            kept = None
        if kept is None:
            always = self.plan.shared and caller.tenant == self.own.tenant and not self.plan.idle_s
            capabilities = ANYTHING if self.plan.shared else caller.capabilities
            kept = Kept(self.plan, key, capabilities, self.overheard, always=always)
            self._room.take(kept, self._give_up)
            self._kept[key] = kept
            kept.start(self._leaving.get(key))
        return kept

    async def stop(self, key: ProcessKey, why: str = "") -> None:
        """End the process of this key; what is under way in it fails, with these words."""
        kept = self._kept.get(key)
        if kept is not None:
            await asyncio.wait([self._give_up(kept, why)])

    def is_absent(self, key: ProcessKey) -> bool:
        """Whether there is no process of this key, nor one that has not ended yet."""
        return key not in self._kept and key not in self._leaving

    def running(self) -> dict[ProcessKey, Kept]:
        """What is kept here now."""
        return {key: kept for key, kept in self._kept.items() if not kept.ended}

    def known_era(self, client_modern: bool) -> bool | None:
        return self._modern

    async def era(self, client_modern: bool, timeout_s: float) -> bool:
        """One process speaks one era, whoever calls; `StdioEras` has one for each."""
        return (await self.spoken(timeout_s)).modern if self._modern is None else self._modern

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        kept = self.run(outgoing.caller)
        try:
            return await kept.request(outgoing, talk)
        except UpstreamFault as fault:
            if fault.code == "upstream-era-changed" and kept.spoken is not None:
                self._modern = kept.spoken.modern
            self._refused(kept, fault)
            raise

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        kept = self._kept.get(self.key_of(caller))
        if kept is None or kept.session is None:
            raise pause_ended(self.name)
        with kept.used():
            return await kept.session.resume(ticket, answers, caller, talk, timeout_s)

    async def notify(self, method: str, params: bytes, caller: Caller) -> None:
        """Of a principal's own process; a shared one stands for nobody."""
        kept = self._kept.get(self.key_of(caller))
        if self.plan.shared or kept is None or kept.session is None or self._modern:
            return
        kept.session.notify(method, params)

    async def listen(self, wanted: Wanted, caller: Caller, modern: bool, talk: Talk) -> None:
        kept = self.run(caller)
        try:
            await kept.listen(wanted, talk)
        except UpstreamFault as fault:
            self._refused(kept, fault)
            raise

    async def end(self, caller: Caller) -> None:
        kept = self._kept.get(self.key_of(caller))
        if kept is not None and kept.session is not None:
            kept.session.drop_paused(caller)

    async def spoken(self, timeout_s: float) -> Spoken:
        """What the process of the gateway's own says of itself."""
        kept = self.run(self.own)
        try:
            with kept.used():
                await kept.ready(timeout_s)
        except UpstreamFault as fault:
            self._refused(kept, fault)
            raise
        assert kept.spoken is not None
        self._modern, self.life = kept.spoken.modern, kept.spoken.life
        return kept.spoken

    async def definitions(self, timeout_s: float) -> Definitions:
        return await definitions_of(self, self.own, await self.spoken(timeout_s), timeout_s)

    async def close(self) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait([self._reaper])
        await asyncio.gather(*[self.stop(key) for key in list(self._kept)])
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    async def _reap(self) -> None:
        """End what has been idle for too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.plan.idle_s / REAPED_PARTS)
            before_s = loop.time() - self.plan.idle_s
            for kept in list(self._kept.values()):
                if kept.is_idle and kept.used_s < before_s:
                    self._give_up(kept)

    def _refused(self, kept: Kept, fault: UpstreamFault) -> None:
        """What took no handshake is of no use any more."""
        if fault.code == HANDSHAKE_REFUSED and self._kept.get(kept.key) is kept:
            self._give_up(kept)

    def _give_up(self, kept: Kept, why: str = "") -> "asyncio.Task[None]":
        """End it beside what is being done."""
        key = kept.key
        self._drop(kept)
        task = asyncio.create_task(self._end(kept, self._leaving.get(key), why), name=f"stdio {self.name} ends")
        self._leaving[key] = task
        task.add_done_callback(lambda done: self._leaving.pop(key) if self._leaving.get(key) is done else None)
        return task

    async def _end(self, kept: Kept, before: "asyncio.Task[None] | None", why: str) -> None:
        await kept.end(why)
        if before is not None:
            await asyncio.wait([before])
        if self.on_gone is not None and kept.key not in self._kept:
            await self.on_gone(kept.key)

    def _drop(self, kept: Kept) -> None:
        self._room.leave(kept)
        if self._kept.get(kept.key) is kept:
            del self._kept[kept.key]
