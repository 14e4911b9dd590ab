"""A stdio server in a cluster: each of its processes is run by one edge, and every edge calls it as if it ran here.

The owner is found by a lease; where it is another edge, that one is asked. What was not sent because the owner is gone
is sent to the next one, as soon as the lease has passed on. Counterparts: `owners.py`, `peers.py`, `stdio.py`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, TypeVar

import msgspec

from tidegate.errors import Fault, UpstreamFault
from tidegate_edge.upstream.owners import LEASE_S, Owners, Peer
from tidegate_edge.upstream.peer_frames import PeerCall
from tidegate_edge.upstream.peers import Peers, answer_in
from tidegate_edge.upstream.port import SILENCE, Answer, Caller, Definitions, Outgoing, Paused, Talk, Wanted
from tidegate_edge.upstream.stdio import StdioUpstream, definitions_of
from tidegate_edge.upstream.stdio_handshake import Spoken
from tidegate_edge.upstream.stdio_kept import GIVEN_UP, HANDSHAKE_REFUSED, ProcessKey

TAKE_OVER_S: Final = LEASE_S + 25.0  # so long a call waits for a dead or draining owner's lease to pass on
HANDED_OVER_S: Final = 0.05
AGAIN_S: Final = 0.25
KEEP_S: Final = 2.0
LISTEN_AGAIN_S: Final = (0.25, 1.0, 5.0, 15.0)
_ELSEWHERE: Final = frozenset({"peer-moved", "peer-unreachable", GIVEN_UP})

_log = logging.getLogger(__name__)
T = TypeVar("T")
encode_spoken: Final = msgspec.msgpack.Encoder().encode
decode_spoken: Final = msgspec.msgpack.Decoder(Spoken).decode


class OwnedUpstream:
    """`local` runs the processes that this edge owns."""

    def __init__(self, local: StdioUpstream, owners: Owners, peers: Peers) -> None:
        self.name = local.name
        self.life = ""  # of the gateway's own process, when it was last asked
        self.here = Here(local, owners)
        self._local = local
        self._owners = owners
        self._peers = peers
        self._second = local.plan.second
        self._modern = local.known_era(True)
        self._keeper: asyncio.Task[None] | None = None
        self._is_leaving = False
        local.on_gone = self._gone

    async def start(self) -> None:
        """One edge of all begins to run a shared process; each of them takes over where it is gone."""
        self._local.reap()
        if self._local.plan.shared and not self._local.plan.idle_s:
            self._keeper = asyncio.create_task(self._keep(), name=f"own {self.name}")

    def known_era(self, client_modern: bool) -> bool | None:
        return self._modern

    async def era(self, client_modern: bool, timeout_s: float) -> bool:
        if self._modern is None:
            self._modern = (await self.spoken(timeout_s)).modern
        return self._modern

    async def request(self, outgoing: Outgoing, talk: Talk) -> Answer | Paused:
        async def there(peer: Peer) -> Answer | Paused:
            call = PeerCall(
                to=peer.bus,
                server=self.name,
                caller=outgoing.caller,
                method=outgoing.method,
                params=outgoing.params,
                modern=outgoing.modern,
                timeout_s=outgoing.timeout_s,
                progress_token=outgoing.progress_token,
                log_level=outgoing.log_level,
                pausable=talk.pausable,
                second=self._second,
            )
            return answer_in(await self._peers.ask(peer, "request", call, talk))

        try:
            return await self._at_owner(
                outgoing.caller, outgoing.timeout_s, lambda: self._local.request(outgoing, talk), there
            )
        except UpstreamFault as fault:
            if fault.code == "upstream-era-changed":
                self._modern = None  # to be asked for again
            raise

    async def resume(
        self, ticket: bytes, answers: Mapping[str, Answer], caller: Caller, talk: Talk, timeout_s: float
    ) -> Answer | Paused:
        """What this edge has paused; for another's, `Peers.resume`."""
        return await self._local.resume(ticket, answers, caller, talk, timeout_s)

    async def notify(self, method: str, params: bytes, caller: Caller) -> None:
        async def there(peer: Peer) -> None:
            call = PeerCall(
                to=peer.bus,
                server=self.name,
                caller=caller,
                method=method,
                params=params,
                timeout_s=5.0,
                second=self._second,
            )
            await self._peers.ask(peer, "notify", call)

        if not self._local.plan.shared:
            await self._at_owner(caller, 0.0, lambda: self._local.notify(method, params, caller), there)

    async def listen(self, wanted: Wanted, caller: Caller, modern: bool, talk: Talk) -> None:
        async def there(peer: Peer) -> None:
            call = PeerCall(
                to=peer.bus, server=self.name, caller=caller, wanted=wanted, modern=modern, second=self._second
            )
            await self._peers.ask(peer, "listen", call, talk)

        failures = 0
        while not self._is_leaving:
            began_s = asyncio.get_running_loop().time()
            try:
                await self._at_owner(
                    caller, TAKE_OVER_S, lambda: self._local.listen(wanted, caller, modern, talk), there
                )
                return
            except Fault as fault:
                if fault.code == HANDSHAKE_REFUSED:
                    raise
                _log.info("%s: listening again: %s", self.name, fault)
            failures = 1 if asyncio.get_running_loop().time() - began_s > LISTEN_AGAIN_S[-1] else failures + 1
            await asyncio.sleep(LISTEN_AGAIN_S[min(failures, len(LISTEN_AGAIN_S)) - 1])
        await asyncio.Event().wait()  # whoever listens here leaves with this edge

    async def end(self, caller: Caller) -> None:
        """Best effort: told to the owner where one is known."""

        async def there(peer: Peer) -> None:
            call = PeerCall(to=peer.bus, server=self.name, caller=caller, timeout_s=5.0, second=self._second)
            await self._peers.ask(peer, "end", call)

        try:
            await self._at_owner(caller, 0.0, lambda: self._local.end(caller), there)
        except Fault as fault:
            _log.info("%s: %s", self.name, fault)

    async def definitions(self, timeout_s: float) -> Definitions:
        spoken = await self.spoken(timeout_s)
        self._modern = spoken.modern
        return await definitions_of(self, self._local.own, spoken, timeout_s)

    async def hand_over(self, draining: asyncio.Event) -> None:
        """From `draining` on, end each process as soon as nobody waits for an answer of it: other edges wait for its
        lease.
        """
        await draining.wait()
        self._is_leaving = self.here.is_leaving = True
        if self._keeper is not None:
            self._keeper.cancel()
        while True:
            done = [key for key, kept in self._local.running().items() if not kept.is_working]
            await asyncio.gather(*[self._local.stop(key) for key in done])
            await asyncio.sleep(HANDED_OVER_S)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._local.close()

    async def spoken(self, timeout_s: float) -> Spoken:
        """What the process of the gateway's own says of itself, wherever it runs."""

        async def there(peer: Peer) -> Spoken:
            call = PeerCall(to=peer.bus, server=self.name, timeout_s=timeout_s, second=self._second)
            return decode_spoken((await self._peers.ask(peer, "spoken", call, SILENCE)).answer.result)

        found = await self._at_owner(self._local.own, timeout_s, lambda: self._local.spoken(timeout_s), there)
        self.life = found.life
        return found

    async def _at_owner(
        self,
        caller: Caller,
        timeout_s: float,
        here: Callable[[], Awaitable[T]],
        there: Callable[[Peer], Awaitable[T]],
    ) -> T:
        """Raises UpstreamFault or SessionsUnavailable. Nothing is done twice: only what was not sent goes elsewhere."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + min(timeout_s, TAKE_OVER_S)
        name, lost = self.here.lease_of(caller), self.here.lost_of(caller)
        while True:
            try:
                owner = await self._owners.owner_of(name, lost)
                if owner is not None:
                    return await there(owner)
                try:
                    return await here()
                finally:
                    await self.here.settle(caller)
            except UpstreamFault as fault:
                if fault.code not in _ELSEWHERE or fault.sent:
                    raise
                self._owners.forget(name)
                if loop.time() > until_s:
                    raise UpstreamFault(fault.sentence, code="upstream-unreachable", sent=False) from fault
            await asyncio.sleep(AGAIN_S)

    async def _gone(self, key: ProcessKey) -> None:
        await self._owners.give_up(self.here.lease_named(key))

    async def _keep(self) -> None:
        name, lost = self.here.lease_of(self._local.own), self.here.lost_of(self._local.own)
        while True:
            try:
                self._owners.forget(name)
                if await self._owners.owner_of(name, lost) is None:
                    self._local.run(self._local.own)
            except Fault as fault:
                _log.debug("%s: %s", self.name, fault)
            await asyncio.sleep(KEEP_S)


class Here:
    """What another edge may ask of this one: it is done here, or refused where this edge is not the owner."""

    def __init__(self, local: StdioUpstream, owners: Owners) -> None:
        self.local = local
        self.is_leaving = False
        self._owners = owners

    def lease_of(self, caller: Caller) -> str:
        return self.lease_named(self.local.key_of(caller))

    def lease_named(self, key: ProcessKey) -> str:
        parts = (self.local.name, *(key if key.era else key[:-1]))
        return "|".join(("stdio", *(part.replace("%", "%25").replace("|", "%7C") for part in parts)))

    def lost_of(self, caller: Caller) -> Callable[[], Awaitable[None]]:
        key = self.local.key_of(caller)

        async def lost() -> None:
            await self.local.stop(key, "this edge does not own the process any more; call again")

        return lost

    @contextlib.asynccontextmanager
    async def owning(self, caller: Caller) -> AsyncIterator[None]:
        """Raises UpstreamFault `peer-moved` where another edge owns the caller's process, or will."""
        name = self.lease_of(caller)
        if not self._owners.holds(name):
            self._owners.forget(name)
            if self.is_leaving or await self._owners.owner_of(name, self.lost_of(caller)) is not None:
                raise UpstreamFault(f"{self.local.name}: another edge runs the process", code="peer-moved", sent=False)
        try:
            yield
        finally:
            await self.settle(caller)

    async def settle(self, caller: Caller) -> None:
        """A lease without a process is of no use to anybody."""
        key = self.local.key_of(caller)
        if self.local.is_absent(key):
            await self._owners.give_up(self.lease_named(key))
