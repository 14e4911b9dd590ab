"""Laws of limits: whatever edges do and in whatever order, together they never get more than there is."""

import asyncio
import json
from collections import Counter as Counted
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.policy.budgeting import Meter
from tidegate.policy.budgets import BudgetLimit, Measure, Measured, read_limits
from tidegate.sessions.budgets import GRACE_S, LEASE_S, Counter, Draw, Kind, Share, Standing, day_at
from tidegate.sessions.memory_budgets import MemoryBudgets
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge.purses import TICK_S, Hold, Purse, Purses

START_MS = 1_790_000_000_000


class Time:
    """One time for everybody: the store's wall clock and the edges' monotonic ones."""

    def __init__(self) -> None:
        self.ms = START_MS

    def wall(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return (self.ms - START_MS) / 1000


class Slow:
    """A store whose answers take a few turns of the loop, and that may be away or lose an answer."""

    def __init__(self, store: MemoryBudgets, turns: Sequence[int]) -> None:
        self._store = store
        self._turns = list(turns)
        self._asked = 0
        self.is_away = False
        self.loses = False

    async def draw(self, holder: str, draws: Sequence[Draw]) -> list[Share]:
        await self._wait()
        if self.is_away:
            raise SessionsUnavailable("away")
        shares = await self._store.draw(holder, draws)
        await self._wait()
        if self.loses:
            raise SessionsUnavailable("the answer was lost")
        return shares

    async def standings(self, tenant: str, most: int) -> tuple[list[Standing], bool]:
        return await self._store.standings(tenant, most)

    async def _wait(self) -> None:
        self._asked += 1
        for _ in range(self._turns[self._asked % len(self._turns)]):
            await asyncio.sleep(0)


def meter(of: Measured, kind: Kind, most: int, refill: int = 0, every_ms: int = 0, amount: int = 1) -> Meter:
    limit = BudgetLimit("x", 1, (), (), (), (), (), ("user",), (), "refuse", "", "")
    counter = Counter("acme", f"{of}-x", kind, most, refill, every_ms)
    return Meter(limit, Measure(of, most, refill, every_ms), counter, amount)


@dataclass
class World:
    """Edges, and what they let pass: when and how much."""

    purses: list[Purses]
    store: Slow
    time: Time
    passed: list[tuple[int, int]] = field(default_factory=list)
    under_way: list[tuple[Purses, list[Hold], int]] = field(default_factory=list)

    async def call(self, edge: int, meters: list[Meter]) -> bool:
        purses, held = self.purses[edge], list[Hold]()
        lacking = purses.take_known(meters, held)
        try:
            short = await purses.take(lacking, held) if lacking else None
        except SessionsUnavailable:
            short = True  # type: ignore[assignment]
        except asyncio.CancelledError:
            _release(held)
            raise
        if short is not None:
            _release(held)
            return False
        self.passed.append((self.time.ms, meters[0].amount))
        self.under_way.append((purses, held, self.time.ms))
        return True

    def all_purses(self) -> list[Purse]:
        return [purse for purses in self.purses for purse in purses._active]

    def held(self) -> dict[str, int]:
        """By kind, of all edges."""
        held = Counted[str]()
        for purse in self.all_purses():
            held[purse.counter.kind] += purse.units + purse.spare + purse.in_use
        return held

    async def used(self) -> dict[str, int]:
        standings, _ = await self.store.standings("acme", 10)
        return {"day": 0, "bucket": 0, "places": 0} | {one.kind: one.used for one in standings}

    def end(self, index: int) -> None:
        _, held, _ = self.under_way.pop(index % len(self.under_way))
        for hold in held:
            if hold.purse.is_places:
                hold.purse.give_back(hold.meter.amount)

    async def withdraw(self, number: int, works: Sequence[Coroutine[Any, Any, Any]]) -> None:
        """Begin all of these; after some turns of the loop, cancel those that a bit of `number` names."""
        tasks = [asyncio.ensure_future(work) for work in works]
        for _ in range(number % 9):
            await asyncio.sleep(0)
        for index, task in enumerate(tasks):
            if number >> index & 1:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for purses in self.purses:
            for _ in range(1_000):
                if not purses.is_asking:
                    break
                await asyncio.sleep(0)
            assert not purses.is_asking

    async def pass_ticks(self, number: int) -> None:
        """As time passes on edges that live."""
        for _ in range(number):
            self.time.ms += int(TICK_S * 1000)
            await asyncio.gather(*[purses.tick() for purses in self.purses])

    async def do(self, step: tuple[str, int], meters: list[Meter]) -> None:
        what, number = step
        edge = number % len(self.purses)
        match what:
            case "call":
                await self.call(edge, meters)
            case "burst":
                await asyncio.gather(*[self.call((edge + n) % len(self.purses), meters) for n in range(8)])
            case "end" if self.under_way:
                self.end(number)
            case "tick":
                await asyncio.gather(self.purses[edge].tick(), self.call(edge, meters))
            case "close":
                await self.purses[edge].close()
            case "wait":
                self.time.ms += number * 37
            case "die":  # its calls end with it; what it held is not told
                self.under_way = [one for one in self.under_way if one[0] is not self.purses[edge]]
                self.purses[edge] = Purses(self.store, f"edge-{edge}-{self.time.ms}", self.time.monotonic)
            case "away":
                self.store.is_away = number % 2 == 0
            case "loses":
                self.store.loses = number % 3 == 0


def _release(held: list[Hold]) -> None:
    for hold in held:
        hold.purse.give_back(hold.meter.amount)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "burst", "end", "tick", "close", "wait", "wait", "die", "away", "loses"]),
        st.integers(0, 400),
    ),
    max_size=60,
)
TURNS = st.lists(st.integers(0, 3), min_size=1, max_size=7)


def world(edges: int, turns: Sequence[int]) -> World:
    time = Time()
    store = Slow(MemoryBudgets(time.wall), turns)
    return World([Purses(store, f"edge-{n}", time.monotonic) for n in range(edges)], store, time)


def run(work: Any) -> None:
    asyncio.run(work)


@settings(max_examples=60, deadline=None)
@given(STEPS, TURNS, st.integers(1, 4), st.integers(1, 40), st.integers(1, 30), st.sampled_from([500, 1_000, 60_000]))
def test_no_stretch_of_time_sees_more_than_the_burst_and_what_came_meanwhile(
    steps: list[tuple[str, int]], turns: list[int], edges: int, most: int, refill: int, every_ms: int
) -> None:
    async def law() -> None:
        here = world(edges, turns)
        meters = [meter("calls", "bucket", most, refill, every_ms)]
        for step in steps:
            await here.do(step, meters)
        lowest = 0.0  # over all stretches that end with a call, of what came less what was let pass, before their first
        for number, (at, _) in enumerate(here.passed):
            came = (at - START_MS) * refill / every_ms
            lowest = max(lowest, came - number) if number else came
            assert number + 1 - came + lowest <= most + 1e-6

    run(law())


@settings(max_examples=60, deadline=None)
@given(TURNS, st.integers(1, 4), st.integers(1, 60), st.integers(1, 9_000))
def test_leases_that_are_kept_while_a_bucket_fills_do_not_come_on_top(
    turns: list[int], edges: int, most: int, wait_ms: int
) -> None:
    async def law() -> None:
        here = world(edges, turns)
        meters = [meter("calls", "bucket", most, 1, 1)]
        for edge in range(edges):
            await here.call(edge, meters)
        here.time.ms += wait_ms
        here.passed.clear()
        for edge in range(edges):
            while await here.call(edge, meters):
                pass
        assert len(here.passed) <= most

    run(law())


@settings(max_examples=60, deadline=None)
@given(STEPS, TURNS, st.integers(1, 4), st.integers(1, 60), st.integers(1, 7))
def test_no_day_sees_more_than_its_quota(
    steps: list[tuple[str, int]], turns: list[int], edges: int, most: int, amount: int
) -> None:
    async def law() -> None:
        here = world(edges, turns)
        meters = [meter("daily-calls", "day", most, amount=amount)]
        for step in steps:
            if step[0] == "wait" and step[1] % 3 == 0:
                here.time.ms = day_at("UTC", here.time.ms).end_ms - step[1] * 10  # about midnight
            await here.do(step, meters)
        by_day: dict[str, int] = {}
        for at, units in here.passed:
            date = day_at("UTC", at).date
            by_day[date] = by_day.get(date, 0) + units
        assert all(units <= most for units in by_day.values()), by_day

    run(law())


@settings(max_examples=60, deadline=None)
@given(STEPS, TURNS, st.integers(1, 4), st.integers(1, 12))
def test_no_more_calls_are_under_way_than_there_are_places(
    steps: list[tuple[str, int]], turns: list[int], edges: int, most: int
) -> None:
    """Of edges that can tell the store that they live: a call that outlasts its edge's word may be one too many."""

    async def law() -> None:
        here = world(edges, turns)
        meters = [meter("concurrent", "places", most)]
        for what, number in steps:
            if what in ("away", "loses"):
                continue
            if what == "wait":
                await here.pass_ticks(number // 10)
                continue
            await here.do((what, number), meters)
            assert len(here.under_way) <= most

    run(law())


@settings(max_examples=60, deadline=None)
@given(STEPS, TURNS, st.integers(1, 4), st.integers(1, 60))
def test_what_no_edge_uses_is_there_again_for_any_of_them(
    steps: list[tuple[str, int]], turns: list[int], edges: int, most: int
) -> None:
    async def law() -> None:
        here = world(edges, turns)
        meters = [meter("daily-calls", "day", most)]
        for what, number in steps:
            if what == "wait":
                await here.pass_ticks(number // 10)
            elif what not in ("die", "away", "loses"):
                await here.do((what, number), meters)
        await here.pass_ticks(24)
        while await here.call(0, meters):
            pass
        assert len(here.passed) == most, "every unit is used once, and none is lost"

    run(law())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["calls", "calls", "ticks", "close", "end", "wait"]), st.integers(0, 2**9))),
    TURNS,
    st.integers(1, 3),
    st.integers(1, 90),
)
def test_whatever_is_withdrawn_when_the_store_has_counted_what_was_used_and_what_is_held(
    steps: list[tuple[str, int]], turns: list[int], edges: int, most: int
) -> None:
    async def law() -> None:
        here = world(edges, turns)
        day, places = meter("daily-calls", "day", most, amount=2), meter("concurrent", "places", most)
        meters = [day, meter("calls", "bucket", most, 1, 10**15), places]  # which gets nothing meanwhile
        for what, number in steps:
            edge = number % edges
            match what:
                case "calls":
                    await here.withdraw(number, [here.call((edge + n) % edges, meters) for n in range(8)])
                case "ticks":
                    await here.withdraw(number, [here.purses[edge].tick(), here.call(edge, meters)])
                case "close":
                    await here.withdraw(number, [here.purses[edge].close()])
                case "end" if here.under_way:
                    here.end(number)
                case "wait":
                    await here.pass_ticks(number % 12)
            held = here.held()
            passed = len(here.passed)
            assert await here.used() == {
                "day": passed * 2 + held["day"],
                "bucket": passed + held["bucket"],
                "places": held["places"],
            }
            assert sum(purse.in_use for purse in here.all_purses()) == len(here.under_way)
        while here.under_way:
            here.end(0)
        await here.pass_ticks(24)
        assert await here.used() == {"day": len(here.passed) * 2, "bucket": len(here.passed), "places": 0}

    run(law())


@pytest.mark.parametrize("kind", ["day", "bucket"])
def test_calls_that_are_withdrawn_while_the_store_is_asked_use_nothing(kind: Kind) -> None:
    async def law() -> None:
        here = world(1, [1])
        meters = [meter("calls", kind, 5_000, 1, 10**15)]
        assert await here.call(0, meters)
        for _ in range(200):
            for purse in here.all_purses():
                purse.change(purse.counter)  # what is held goes back: the next call must ask
            await here.withdraw(0b11, [here.call(0, meters)])
        held = here.held()[kind]
        assert (await here.used())[kind] == 1 + held
        await here.pass_ticks(12)
        assert (await here.used())[kind] == 1

    run(law())


def test_a_store_that_was_away_a_moment_ago_is_told_nothing_so_that_what_is_held_is_kept() -> None:
    async def law() -> None:
        here = world(1, [0])
        meters = [meter("daily-calls", "day", 5_000)]
        assert await here.call(0, meters)
        before = here.held()
        here.store.is_away = True
        assert not await here.call(0, [meter("calls", "day", 100)])
        here.time.ms += 900
        await here.purses[0].close()
        assert here.held() == before
        here.store.is_away = False
        await here.pass_ticks(12)
        assert (await here.used())["day"] == 1

    run(law())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1_000, 60_000, 3_600_000]), st.integers(1, 3))
def test_after_the_time_that_was_told_there_is_room(most: int, refill: int, every_ms: int, edges: int) -> None:
    async def law() -> None:
        here = world(edges, [0])
        one = meter("calls", "bucket", most, refill, every_ms)
        while await here.call(0, [one]):
            pass
        purses, held = here.purses[0], list[Hold]()
        for _ in range(3):
            short = await purses.take(purses.take_known([one], held), held)
            assert short is not None
            assert short.share is not None
            here.time.ms += max(short.share.retry_ms, 1)
            assert await here.call(0, [one])

    run(law())


def test_a_dead_edge_s_places_come_back_when_its_word_has_run_out() -> None:
    async def law() -> None:
        here = world(2, [0])
        meters = [meter("concurrent", "places", 4)]
        for _ in range(4):
            assert await here.call(0, meters)
        await here.do(("die", 0), meters)
        assert not await here.call(1, meters)
        here.time.ms += int((LEASE_S + GRACE_S) * 1000)
        assert await here.call(1, meters)

    run(law())


def test_a_limit_that_becomes_narrower_holds_at_once_and_what_was_on_lease_does_not_count() -> None:
    async def law() -> None:
        here = world(2, [0])
        wide, narrow = meter("calls", "bucket", 400, 1, 60_000), meter("calls", "bucket", 7, 1, 60_000)
        for _ in range(3):
            await here.call(0, [wide])
        here.passed.clear()
        assert await here.call(0, [narrow]), "what this edge had on lease has gone back with the same word"
        for edge in (0, 1, 0, 1):
            await asyncio.gather(*[here.call(edge, [narrow]) for _ in range(8)])
        assert len(here.passed) == 7

    run(law())


WORDS = st.sampled_from(
    [
        "v",
        "limits",
        "prices",
        "records",
        "id",
        "team",
        "tools",
        "per",
        "calls",
        "daily",
        "bytes",
        "cost",
        "concurrent",
        "away",
        "user",
        "git/x",
        "items[].id",
        "100/minute",
        "5MB",
        "*",
        "refuse",
        "per_call",
        "tenant",
    ]
)
SCALARS = WORDS | st.integers(-5, 10**16) | st.booleans() | st.none() | st.floats(allow_nan=False) | st.text(max_size=6)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6), max_leaves=25
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["limits", "prices", "records"]), TREES))
def test_whatever_a_file_holds_it_is_read_or_its_line_is_told(parts: dict[str, Any]) -> None:
    read = read_limits(json.dumps({"v": 1, **parts}))
    assert all(problem.path == "limits.yaml" and problem.sentence for problem in read.problems)
    for limit in read.limits:
        assert limit.per
        assert all(measure.most >= 1 for measure in limit.measures)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    read_limits(text)
