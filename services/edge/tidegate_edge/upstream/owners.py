"""Which edge owns what only one may own, by leases in the session store; and where an edge is found.

A lease that was not renewed in time counts as lost here before it can be had elsewhere: the renewals are counted from
when they were asked for. Counterparts: `sessions.port.Leases`, `owned.py`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from tidegate.errors import Fault
from tidegate.sessions.port import Leases

LEASE_S: Final = 5.0
RENEWALS: Final = 5  # within the life of a lease
ELSEWHERE_MAX: Final = 10_000
_ABSENT: Final = "absent"

_log = logging.getLogger(__name__)
Lost = Callable[[], Awaitable[None]]


class Peer(NamedTuple):
    """Another edge: its address on the bus (new with each start), and where its HTTP is."""

    bus: str
    address: str

    @classmethod
    def of(cls, value: str) -> "Peer":
        bus, _, address = value.partition(" ")
        return cls(bus, address)

    @property
    def value(self) -> str:
        return f"{self.bus} {self.address}"


class _Held(NamedTuple):
    renewed_s: float
    lost: Lost


class Owners:
    """What this edge owns, and what it knows of others."""

    def __init__(self, leases: Leases, me: Peer, *, lease_s: float = LEASE_S) -> None:
        self.me = me
        self._lease_s = lease_s
        self._leases = leases
        self._held: dict[str, _Held] = {}
        self._elsewhere: dict[str, Peer] = {}
        self._losing: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # taking and giving up, by name
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="renew leases")

    async def stop(self) -> None:
        """Give up what is still held; whoever owned it has ended it before."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._losing:
            await asyncio.wait(self._losing)
        for name in [*self._held, _edge(self.me.bus)]:
            await self.give_up(name)

    def holds(self, name: str) -> bool:
        held = self._held.get(name)
        return held is not None and asyncio.get_running_loop().time() - held.renewed_s < self._lease_s

    async def owner_of(self, name: str, lost: Lost) -> Peer | None:
        """None: this edge, from now on if nobody did; `lost` is called when it does no more. Raises
        SessionsUnavailable.
        """
        if self.holds(name):
            return None
        known = self._elsewhere.get(name)
        if known is not None:
            return known
        async with self._turn(name):
            asked_s = asyncio.get_running_loop().time()
            standing = Peer.of(await self._leases.take(name, self.me.value, self._lease_s))
            if standing == self.me:
                self._held[name] = _Held(asked_s, lost)
                return None
        self._remember(name, standing)
        return standing

    def forget(self, name: str) -> None:
        """What was known of its owner does not hold."""
        self._elsewhere.pop(name, None)

    async def give_up(self, name: str) -> None:
        async with self._turn(name):
            self._held.pop(name, None)
            with contextlib.suppress(Fault):  # then it expires by itself
                await self._leases.give_up(name, self.me.value)

    async def find(self, bus: str) -> Peer | None:
        """The edge that has this address on the bus; None where there is none any more. Raises SessionsUnavailable."""
        name = _edge(bus)
        known = self._elsewhere.get(name)
        if known is not None:
            return known
        value = await self._leases.take(name, _ABSENT, self._lease_s)
        if value == _ABSENT:
            await self._leases.give_up(name, _ABSENT)
            return None
        self._remember(name, Peer.of(value))
        return self._elsewhere[name]

    def forget_edge(self, bus: str) -> None:
        self.forget(_edge(bus))

    def _turn(self, name: str) -> asyncio.Lock:
        turn = self._turns.get(name)
        if turn is None:
            turn = self._turns[name] = asyncio.Lock()
        return turn

    def _remember(self, name: str, peer: Peer) -> None:
        while len(self._elsewhere) >= ELSEWHERE_MAX:
            del self._elsewhere[next(iter(self._elsewhere))]
        self._elsewhere[name] = peer

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        renew_s = self._lease_s / RENEWALS
        while True:
            began_s = loop.time()
            try:
                await self._leases.take(_edge(self.me.bus), self.me.value, self._lease_s)
                if self._held:
                    await self._renew()
            except Fault as fault:
                _log.debug("leases were not renewed: %s", fault)
            now_s = loop.time()
            for name, held in list(self._held.items()):
                if now_s - held.renewed_s >= self._lease_s - renew_s:
                    self._lose(name, "could not be renewed")
            await asyncio.sleep(max(0.0, renew_s - (now_s - began_s)))

    async def _renew(self) -> None:
        names = list(self._held)
        asked_s = asyncio.get_running_loop().time()
        still = await self._leases.renew(names, self.me.value, self._lease_s)
        for name in names:
            held = self._held.get(name)
            if held is not None and name in still:
                self._held[name] = held._replace(renewed_s=asked_s)
            elif held is not None and held.renewed_s < asked_s:
                self._lose(name, "is another edge's now")

    def _lose(self, name: str, why: str) -> None:
        held = self._held.pop(name)
        _log.warning("the lease %s %s; its process ends here", name, why)
        task = asyncio.create_task(_call(held.lost), name="lose a lease")
        self._losing.add(task)
        task.add_done_callback(self._losing.discard)


async def _call(lost: Lost) -> None:
    await lost()


def _edge(bus: str) -> str:
    return f"edge|{bus}"
