"""Budgets in this process. Part of `memory.py`; counterpart `redis_budgets.py`, whose script does the same sums."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tidegate.ids import now_us
from tidegate.sessions.budgets import (
    GRACE_S,
    HELD_RETRY_MS,
    LEASE_S,
    Counter,
    Day,
    Draw,
    Share,
    Standing,
    bucket_ms,
    day_at,
    granted,
)
from tidegate.sessions.memory_room import ENTRIES_MAX
from tidegate.sessions.port import SessionsUnavailable

_LEASE_MS: Final = int((LEASE_S + GRACE_S) * 1000)
_KEPT_MS: Final = 60_000  # of a day that is over
_EPSILON: Final = 1e-6

WallClock = Callable[[], int]
"""Milliseconds since the epoch."""


def wall_ms() -> int:
    return now_us() // 1000


@dataclass(slots=True)
class _State:
    """One counter. `free`: of a bucket; `used`: of a day, leases included."""

    counter: Counter
    free: float
    at_ms: int
    used: int = 0
    ends_ms: int = 0  # of its day
    until_ms: int = 0
    leases: dict[str, tuple[int, int]] = field(default_factory=dict)  # holder → units, until
    marks: set[bytes] = field(default_factory=set)

    @property
    def day(self) -> int:
        return self.ends_ms if self.counter.kind == "day" else 0

    def held(self, now_ms: int, beside: str = "") -> int:
        return sum(units for who, (units, until) in self.leases.items() if until > now_ms and who != beside)


class MemoryBudgets:
    """Nothing is forgotten to make room: where there is none, it raises SessionsUnavailable."""

    def __init__(self, wall: WallClock = wall_ms, entries_max: int = ENTRIES_MAX) -> None:
        self._wall = wall
        self._entries_max = entries_max
        self._states: dict[tuple[str, str, str], _State] = {}

    async def draw(self, holder: str, draws: Sequence[Draw]) -> list[Share]:
        now = self._wall()
        states = [self._state(draw.counter, now) for draw in draws]
        lefts = [_settled(state, draw, holder, now) for state, draw in zip(states, draws, strict=True)]
        short = any(left < draw.need for left, draw in zip(lefts, draws, strict=True))
        return [
            _share(state, draw, holder, now, left, short)
            for state, draw, left in zip(states, draws, lefts, strict=True)
        ]

    async def standings(self, tenant: str, most: int) -> tuple[list[Standing], bool]:
        now = self._wall()
        found = [
            _standing(state, now)
            for (whose, _, _), state in self._states.items()
            if whose == tenant and state.until_ms > now and not (state.ends_ms and state.ends_ms <= now)
        ]
        return found[:most], len(found) <= most

    def _state(self, counter: Counter, now_ms: int) -> _State:
        day = day_at(counter.zone, now_ms) if counter.kind in ("day", "distinct") else Day("", 0, 0)
        key = (counter.tenant, counter.name, day.date)
        state = self._states.get(key)
        if state is None or state.until_ms <= now_ms:
            if state is None and len(self._states) >= self._entries_max:
                self._make_room(now_ms)
            state = self._states[key] = _State(counter, counter.most, now_ms, ends_ms=day.end_ms)
        state.counter = counter
        return state

    def _make_room(self, now_ms: int) -> None:
        for key in [key for key, state in self._states.items() if state.until_ms <= now_ms]:
            del self._states[key]
        if len(self._states) >= self._entries_max:
            raise SessionsUnavailable(f"there are {self._entries_max} counters of limits; no more fit into memory")


def _settled(state: _State, draw: Draw, holder: str, now_ms: int) -> int:
    """What is left, once what the holder tells of its lease is counted."""
    counter, rest, back = state.counter, max(draw.rest, 0), draw.back if draw.day == state.day else 0
    others, own = state.held(now_ms, holder), state.leases.get(holder, (0, 0))
    if counter.kind == "places":
        return counter.most - others - rest
    if counter.kind == "distinct":
        state.marks.update(draw.marks)
        return counter.most - len(state.marks)
    debt = max(-draw.rest, 0)
    if counter.kind == "day":
        state.used = max(0, state.used - back) + debt
        return counter.most - state.used
    passed = max(0, now_ms - state.at_ms)
    kept = own[0] if own[1] > now_ms else 0
    full = max(counter.most - others - kept, state.free)  # of a bound that was wider before, nothing is lost here
    came = min(state.free + passed * counter.refill / counter.every_ms, full)
    state.free = max(0.0, min(came + back - debt, counter.most - others - rest))
    state.at_ms = now_ms
    return math.floor(state.free + _EPSILON)


def _share(state: _State, draw: Draw, holder: str, now_ms: int, left: int, short: bool) -> Share:
    counter = state.counter
    got = 0 if short or counter.kind == "distinct" else granted(draw.need, draw.want, left)
    if counter.kind == "day":
        state.used += got
    elif counter.kind == "bucket":
        state.free = max(0.0, state.free - got)
    spent = 0 if counter.kind == "places" else draw.need
    units = (max(draw.rest, 0) if draw.day == state.day else 0) + max(got - spent, 0)
    state.leases = {who: lease for who, lease in state.leases.items() if lease[1] > now_ms and who != holder}
    held = sum(units for units, _ in state.leases.values())
    if units:
        state.leases[holder] = (units, now_ms + _LEASE_MS)
    state.until_ms = _until_ms(state, now_ms)
    lasts = min(int(LEASE_S * 1000), state.ends_ms - now_ms if state.ends_ms else _LEASE_MS)
    if left >= draw.need:
        return Share(got, left - got, False, 0, lasts, state.day)
    retry = _retry_ms(state, draw.need - left, now_ms)
    if left + held >= draw.need and counter.kind != "distinct":
        retry = min(retry or HELD_RETRY_MS, HELD_RETRY_MS)
    return Share(0, max(left, 0), True, 0 if counter.kind == "places" else retry, lasts, state.day)


def _until_ms(state: _State, now_ms: int) -> int:
    counter = state.counter
    if state.ends_ms:
        return state.ends_ms + _KEPT_MS
    return now_ms + _LEASE_MS + (bucket_ms(counter, counter.most) if counter.kind == "bucket" else 0)


def _retry_ms(state: _State, lacking: int, now_ms: int) -> int:
    counter = state.counter
    if counter.kind == "bucket":
        exact = lacking + math.floor(state.free + _EPSILON) - state.free
        return max(1, bucket_ms(counter, exact))
    return max(1, state.ends_ms - now_ms) if state.ends_ms else 0


def _standing(state: _State, now_ms: int) -> Standing:
    counter = state.counter
    held = state.held(now_ms)
    used, full = held, 0
    if counter.kind == "day":
        used, full = state.used, state.ends_ms - now_ms
    elif counter.kind == "distinct":
        used, full = len(state.marks), state.ends_ms - now_ms
    elif counter.kind == "bucket":
        came = max(0, now_ms - state.at_ms) * counter.refill / counter.every_ms
        free = min(state.free + came, counter.most - held)
        used, full = counter.most - math.floor(free + _EPSILON), bucket_ms(counter, counter.most - free)
    return Standing(counter.name, counter.kind, counter.most, used, held, full, counter.refill, counter.every_ms)
