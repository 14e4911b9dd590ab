"""What this edge holds of the counters of limits: leases, so that the common call asks nobody.

A call takes from the lease. Where that does not reach, one exchange with the store asks for all that lacks. What is not
used goes back after a moment, and a tick tells the store what was used. Counterparts: `tidegate.sessions.budgets`,
`budgets.py`. Rules: a lease is let go of before the store counts it as lost; what may have been told is never told
twice in our favour; an exchange that has begun is received whatever becomes of the call that began it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from tidegate.ids import now_us
from tidegate.policy.budgeting import Meter
from tidegate.sessions.budgets import DRAWS_AT_ONCE_MAX, LEASE_S, MARKS_AT_ONCE_MAX, Counter, Draw, Share, day_at
from tidegate.sessions.port import Budgets, SessionsUnavailable

PURSES_MAX: Final = 50_000
TICK_S: Final = 0.5
SETTLED_S: Final = LEASE_S / 2  # a lease is told of, and what is left of it given back, when it is so old …
IDLE_S: Final = 2.0  # … or nobody has used it for so long
FORGOTTEN_S: Final = 60.0
AWAY_S: Final = 1.0  # for so long a store that failed is not asked again
DRY_S: Final = 1.0  # for so long, at most, an empty counter is taken to be empty still
DRY_PLACES_S: Final = 0.05
FRESH_S: Final = 1.0  # for so long the number of different things is taken to be as it was
WANT_MIN: Final = 4
WANT_MAX: Final = 4_096
MARKS_KEPT_MAX: Final = 10_000  # of one counter
MARKS_PENDING_MAX: Final = 100_000
SLICE: Final = 1_000

Clock = Callable[[], float]
T = TypeVar("T")


class Purse:
    """What is held of one counter. `units` below zero are a debt: used, and not told yet."""

    __slots__ = (
        "counter",
        "date",
        "day",
        "drawn_s",
        "dry",
        "dry_until_s",
        "in_use",
        "is_known",
        "left",
        "lock",
        "pending",
        "seen",
        "spare",
        "typical",
        "units",
        "until_s",
        "used_s",
        "want",
    )

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.units = 0
        self.spare = 0  # of it, to be given back with the next word
        self.in_use = 0  # places that calls under way have
        self.day = 0  # of which the lease is
        self.until_s = 0.0
        self.drawn_s = 0.0
        self.used_s = 0.0
        self.is_known = False  # the store counts something as held by us
        self.want = WANT_MIN  # in calls
        self.typical = 1  # what a call takes
        self.dry: Share | None = None
        self.dry_until_s = 0.0
        self.left = 0  # of different things, as told last
        self.date = ""
        self.seen: set[bytes] = set()  # that the store has been told of, of that date
        self.pending: set[bytes] = set()  # that it could not be told of
        self.lock = asyncio.Lock()

    @property
    def is_places(self) -> bool:
        return self.counter.kind == "places"

    def take(self, amount: int, now_s: float) -> bool:
        """From what is held. Of 0 it is enough that something is left."""
        self.used_s = now_s
        if self.counter.kind == "distinct":
            return now_s - self.drawn_s <= FRESH_S and self.left > self.counter.most // 4
        if now_s >= self.until_s and self.units > 0:
            self.units = 0
        if self.units < (amount or 1):
            return False
        self.units -= amount
        if self.is_places:
            self.in_use += amount
        return True

    def change(self, counter: Counter) -> None:
        """Another bundle bounds it otherwise: what is held was measured by the old bound, and goes back."""
        self.counter, self.dry = counter, None
        if not self.is_places:
            self.spare += max(self.units, 0)
        self.units = min(self.units, 0)

    def give_back(self, amount: int) -> None:
        """What was taken and not used; of places, used no more."""
        self.units += amount
        if self.is_places:
            self.in_use -= amount

    def put_back(self, amount: int) -> None:
        """What was got for a call that was withdrawn meanwhile. It goes back and nobody takes it: the store has counted
        it as used, so that of a bucket it may have come again."""
        if self.is_places:
            self.give_back(amount)
        else:
            self.spare += amount

    def wanted(self, now_s: float) -> int:
        """In calls. It grows while asking is frequent, and shrinks when it is not; kept once it was got."""
        is_frequent = now_s - self.drawn_s < FRESH_S
        return min(self.want * 2, WANT_MAX) if is_frequent else max(self.want // 2, WANT_MIN)

    def draw(self, amount: int, now_s: float) -> Draw:
        """What to ask for."""
        self.typical = max(amount, self.typical if amount == 0 else 1)
        if now_s >= self.until_s and self.units > 0:
            self.units = 0
        rest = self.units + self.in_use if self.is_places else self.units
        need = amount or 1
        want = 0 if self.counter.kind == "distinct" else max(need, self.wanted(now_s) * self.typical)
        back, self.spare = self.spare, 0
        return Draw(self.counter, need, want, rest, back, self.day)

    def settle(self) -> Draw:
        """Tell what is used, and give back what is not."""
        back = max(self.units, 0) + self.spare
        self.units, self.spare = min(self.units, 0), 0
        rest = self.in_use if self.is_places else self.units
        return Draw(self.counter, rest=rest, back=0 if self.is_places else back, day=self.day)

    def is_due(self, now_s: float) -> bool:
        if not (self.units or self.spare or self.is_known or self.pending):
            return False
        return self.units < 0 or now_s - self.drawn_s >= SETTLED_S or now_s - self.used_s >= IDLE_S


class Shortage(NamedTuple):
    """Why a call may not go on. `share` None: the store is away."""

    meter: Meter
    share: Share | None


class Hold(NamedTuple):
    """What one call has taken of one counter, and of whose."""

    purse: Purse
    meter: Meter
    owner: "Purses"


class Purses:
    """All that this edge holds of one store."""

    def __init__(self, store: Budgets, holder: str, clock: Clock = time.monotonic) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._purses: dict[tuple[str, str], Purse] = {}  # by tenant and name of the counter
        self._active: dict[Purse, None] = {}
        self._away_until_s = 0.0
        self._swept_s = 0.0
        self._under_way: set[asyncio.Task[Any]] = set()  # exchanges: each has the locks of its purses, so few fit
        self.exchanges = 0  # since start
        self.failures = 0

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def is_asking(self) -> bool:
        """An exchange is under way, be it for nobody any more."""
        return bool(self._under_way)

    def take_known(self, meters: Sequence[Meter], held: list[Hold]) -> list[Meter]:
        """Take what leases have; what lacks comes back."""
        now_s, purses = self._clock(), self._purses
        lacking: list[Meter] = []
        for meter in meters:
            counter = meter.counter
            purse = purses.get((counter.tenant, counter.name))
            if purse is not None and purse.counter is not counter and purse.counter != counter:
                purse.change(counter)
            if purse is not None and purse.take(meter.amount, now_s):
                held.append(Hold(purse, meter, self))
            else:
                lacking.append(meter)
        return lacking

    async def take(self, meters: Sequence[Meter], held: list[Hold]) -> Shortage | None:
        """Ask for what lacks. Where anything is short, nothing of these is taken. Raises SessionsUnavailable."""
        wanted = {meter.counter: meter for meter in meters}
        for start in range(0, len(meters), DRAWS_AT_ONCE_MAX):
            part = sorted(wanted)[start : start + DRAWS_AT_ONCE_MAX]  # in one order, so that nobody waits in a circle
            async with contextlib.AsyncExitStack() as stack:
                for counter in part:
                    await stack.enter_async_context(self._purse(counter).lock)
                short = await self._take([wanted[counter] for counter in part], held, stack)
            if short is not None:
                return short
        return None

    async def _take(self, meters: list[Meter], held: list[Hold], locks: contextlib.AsyncExitStack) -> Shortage | None:
        """With the locks of all of them."""
        meters = self.take_known(meters, held)  # others may have asked meanwhile
        now_s = self._clock()
        for meter in meters:
            if (share := self._dry(meter, now_s)) is not None:
                return Shortage(meter, share)
        if not meters:
            return None
        self._check_is_there()
        lending = self._start(self._lend(meters, now_s, locks.pop_all()))
        try:
            lent = await asyncio.shield(lending)
        except asyncio.CancelledError:
            lending.add_done_callback(self._withdraw)
            raise
        if isinstance(lent, Shortage):
            return lent
        held += lent
        return None

    async def _lend(self, meters: list[Meter], now_s: float, locks: contextlib.AsyncExitStack) -> list[Hold] | Shortage:
        """Ask for these, and take what they need of it; the locks are let go of then."""
        async with locks:
            purses = [self._purse(meter.counter) for meter in meters]
            draws = [purse.draw(meter.amount, now_s) for purse, meter in zip(purses, meters, strict=True)]
            wants = [purse.wanted(now_s) for purse in purses]
            for purse in purses:
                purse.want = WANT_MIN  # unless the answer comes: little is lost with the next one
            shares = await self._exchange(draws)
            short: list[Shortage] = []
            for purse, meter, draw, share, want in zip(purses, meters, draws, shares, wants, strict=True):
                purse.want = want
                self._receive(purse, draw, share, now_s)
                if share.is_short:
                    purse.dry, purse.dry_until_s = share, now_s + _dry_s(purse, share)
                    short.append(Shortage(meter, share))
            if short:
                return max(short, key=lambda one: one.share.retry_ms if one.share else 0)
            for purse, meter in zip(purses, meters, strict=True):
                purse.units -= meter.amount
                purse.in_use += meter.amount if purse.is_places else 0
            return [Hold(purse, meter, self) for purse, meter in zip(purses, meters, strict=True)]

    def _withdraw(self, lending: "asyncio.Task[list[Hold] | Shortage]") -> None:
        """Nobody waits any more for what this exchange got."""
        if lending.cancelled() or lending.exception() is not None:
            return
        lent = lending.result()
        for purse, meter, _ in () if isinstance(lent, Shortage) else lent:
            purse.put_back(meter.amount)
            self._active[purse] = None

    def _start(self, exchange: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """By itself: a caller may go, what the store has counted stays counted."""
        task = asyncio.create_task(exchange, name="ask for leases of limits")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    def _dry(self, meter: Meter, now_s: float) -> Share | None:
        purse = self._purse(meter.counter)
        if purse.dry is None or now_s >= purse.dry_until_s:
            return None
        passed_ms = int((now_s - purse.drawn_s) * 1000)
        retry_ms = purse.dry.retry_ms
        return purse.dry._replace(retry_ms=max(1, retry_ms - passed_ms) if retry_ms else 0)

    def _receive(self, purse: Purse, draw: Draw, share: Share, at_s: float) -> None:
        if share.day != purse.day:  # what was left of the day before is lost
            purse.day, purse.units, purse.spare = share.day, min(purse.units, 0), 0
        purse.units += share.granted - min(draw.rest, 0)  # a debt is told now
        purse.drawn_s, purse.until_s = at_s, at_s + share.lease_ms / 1000
        purse.left = share.left
        purse.is_known = share.granted > 0 or draw.rest > 0
        self._active[purse] = None

    def _check_is_there(self) -> None:
        """Before purses are emptied into a word to the store. Raises SessionsUnavailable where it just failed."""
        if self._clock() < self._away_until_s:
            raise SessionsUnavailable("the session store did not answer a moment ago")

    async def _exchange(self, draws: list[Draw]) -> list[Share]:
        """Raises SessionsUnavailable: whether the store has counted these is not known then."""
        self.exchanges += 1
        try:
            return await self._store.draw(self._holder, draws)
        except SessionsUnavailable:
            self.failures += 1
            self._away_until_s = self._clock() + AWAY_S
            raise

    def charge(self, purse: Purse, amount: int) -> None:
        """What a call turned out to use beyond what it took."""
        if amount > 0:
            purse.units -= amount
            purse.typical = max(amount, 1)
            self._active[purse] = None

    async def mark(self, purse: Purse, marks: Iterable[bytes]) -> None:
        """Tell of things that were seen; again later, where the store is away."""
        date = day_at(purse.counter.zone, now_us() // 1000).date
        if date != purse.date:
            purse.date, purse.seen = date, set()
        fresh = [mark for mark in marks if mark not in purse.seen]
        for start in range(0, len(fresh), MARKS_AT_ONCE_MAX):
            part = fresh[start : start + MARKS_AT_ONCE_MAX]
            at_s, draw = self._clock(), Draw(purse.counter, marks=tuple(part))
            try:
                self._check_is_there()
                (share,) = await self._exchange([draw])
            except (SessionsUnavailable, asyncio.CancelledError) as error:  # told twice, they count once
                purse.pending.update(fresh[start : start + max(0, MARKS_PENDING_MAX - len(purse.pending))])
                self._active[purse] = None
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            self._receive(purse, draw, share, at_s)
            if len(purse.seen) < MARKS_KEPT_MAX:
                purse.seen.update(part)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            await self.tick()

    async def tick(self) -> None:
        """Tell the store what is due; a store that is away is told later."""
        now_s = self._clock()
        due: dict[str, list[Purse]] = {}
        for number, purse in enumerate(list(self._active)):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)  # others have their turn
            if purse.lock.locked():
                continue
            if purse.is_due(now_s):
                due.setdefault(purse.counter.tenant, []).append(purse)
            elif not (purse.units or purse.spare or purse.is_known or purse.pending or purse.in_use):
                self._active.pop(purse, None)
        with contextlib.suppress(SessionsUnavailable):
            for purses in due.values():
                for start in range(0, len(purses), DRAWS_AT_ONCE_MAX):
                    await self._settle(purses[start : start + DRAWS_AT_ONCE_MAX])
        if now_s - self._swept_s > FORGOTTEN_S:
            self._sweep(now_s)

    async def _settle(self, purses: list[Purse]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for purse in sorted(purses, key=lambda purse: purse.counter):
                await stack.enter_async_context(purse.lock)
            self._check_is_there()
            await asyncio.shield(self._start(self._tell(purses, stack.pop_all())))
        for purse in purses:
            if purse.pending:
                pending, purse.pending = purse.pending, set()
                await self.mark(purse, pending)

    async def _tell(self, purses: list[Purse], locks: contextlib.AsyncExitStack) -> None:
        """What they used; the locks are let go of then. Where the answer is lost, what went back counts as used: it may
        be another edge's by now."""
        async with locks:
            at_s = self._clock()
            draws = [purse.settle() for purse in purses]
            for purse, draw, share in zip(purses, draws, await self._exchange(draws), strict=True):
                if purse.counter.kind != "distinct":
                    self._receive(purse, draw, share, at_s)

    async def close(self) -> None:
        """Give back all that is held, as far as the store can be told."""
        with contextlib.suppress(SessionsUnavailable):
            by_tenant: dict[str, list[Purse]] = {}
            for purse in self._active:
                by_tenant.setdefault(purse.counter.tenant, []).append(purse)
            for purses in by_tenant.values():
                for start in range(0, len(purses), DRAWS_AT_ONCE_MAX):
                    await self._settle(purses[start : start + DRAWS_AT_ONCE_MAX])

    def _purse(self, counter: Counter) -> Purse:
        key = (counter.tenant, counter.name)
        purse = self._purses.get(key)
        if purse is None:
            if len(self._purses) >= PURSES_MAX:
                self._sweep(self._clock())
            if len(self._purses) >= PURSES_MAX:
                raise SessionsUnavailable(f"this edge holds {PURSES_MAX} counters of limits, and no more fit")
            purse = self._purses[key] = Purse(counter)
        return purse

    def _sweep(self, now_s: float) -> None:
        """Forget counters that nobody has used for a while."""
        self._swept_s = now_s
        for key, purse in list(self._purses.items()):
            if purse not in self._active and now_s - purse.used_s > FORGOTTEN_S and not purse.lock.locked():
                del self._purses[key]


def _dry_s(purse: Purse, share: Share) -> float:
    if purse.is_places:
        return DRY_PLACES_S
    return min(share.retry_ms / 1000 - 0.0005 if share.retry_ms else DRY_S, DRY_S)
