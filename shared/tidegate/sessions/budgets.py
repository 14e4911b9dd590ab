"""Counters that all edges share, and what passes between an edge and the store that keeps them. Pure.

A counter is a token bucket (`bucket`), a day's quota (`day`), places that are taken and given back (`places`), or the
number of different things seen in a day (`distinct`). Edges hold parts of it on lease: what is leased is gone from the
counter, so all edges together never take more than there is. Counterparts: `memory_budgets.py`, `redis_budgets.py`.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

Kind = Literal["bucket", "day", "places", "distinct"]

LEASE_S: Final = 10.0
"""For how long an edge may use what it holds without asking again. The store keeps it `GRACE_S` longer: whatever the
two clocks do meanwhile, the edge has let go first."""
GRACE_S: Final = 1.0
PART: Final = 4
"""A lease is at most this part of what is left: it shrinks as the rest shrinks."""
HELD_RETRY_MS: Final = 2_000
"""When to ask again where other edges hold what is missing: they give back what they do not use."""
DRAWS_AT_ONCE_MAX: Final = 128
MARKS_AT_ONCE_MAX: Final = 2_000


class Counter(NamedTuple):
    """Which one, and how much it may hold. A changed `most` counts from the next draw on, for what was used, too."""

    tenant: str
    name: str  # as `counter_name` makes it
    kind: Kind
    most: int  # a bucket's size, a day's quota, the number of places or of different things
    refill: int = 0  # of a bucket: so many units …
    every_ms: int = 0  # … in this time
    zone: str = "UTC"  # in which a day is a day


class Draw(NamedTuple):
    """What a holder asks of one counter, and what it tells of its lease."""

    counter: Counter
    need: int = 0  # refused where there is less; counts as used at once, places aside
    want: int = 0  # taken where there is plenty
    rest: int = 0  # what the holder has of it after this, without what it gets now; below zero: a debt, to be counted
    back: int = 0  # what it gives back unused
    day: int = 0  # as the share said of which `rest` and `back` are: what is left of a day is not of the next one
    marks: tuple[bytes, ...] = ()  # of things seen: MARKS_AT_ONCE_MAX at most


class Share(NamedTuple):
    """What was got. Where any draw of a request lacks what it needs, none gets anything."""

    granted: int
    left: int  # in the counter, after this
    is_short: bool
    retry_ms: int  # of a short one: when there is enough again at the latest; 0: that cannot be told
    lease_ms: int = int(LEASE_S * 1000)  # for how long it may be used
    day: int = 0  # of a day's quota: which day


class Standing(msgspec.Struct, frozen=True):
    """One counter as it stands. `held`: part of `used` that edges have on lease and may give back."""

    name: str
    kind: Kind
    most: int
    used: int
    held: int
    full_ms: int  # until nothing is used any more; 0: that cannot be told
    refill: int = 0
    every_ms: int = 0


class Day(NamedTuple):
    """One day of a zone, in milliseconds since the epoch."""

    date: str
    start_ms: int
    end_ms: int


def counter_name(limit: str, measure: str, values: dict[str, str]) -> str:
    """`values` by what the counter is kept per: a subject id, an agent, a server, server/tool."""
    return msgspec.json.encode((limit, measure, values)).decode()


def read_name(name: str) -> tuple[str, str, dict[str, str]]:
    """What `counter_name` was made of. Raises msgspec.DecodeError."""
    return msgspec.json.decode(name, type=tuple[str, str, dict[str, str]])


def day_at(zone: str, now_ms: int) -> Day:
    """The day that it is in this zone; 23 or 25 hours where its clocks are set."""
    known = _day_of(zone, now_ms // 3_600_000)
    return known if known.start_ms <= now_ms < known.end_ms else _day(zone, now_ms)


@lru_cache(maxsize=256)
def _day_of(zone: str, hour: int) -> Day:
    return _day(zone, hour * 3_600_000)


def _day(zone: str, now_ms: int) -> Day:
    local = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(zone))
    start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return Day(start.date().isoformat(), _ms(start), _ms(start + timedelta(days=1)))


def _ms(at: datetime) -> int:
    """Of a wall time: its offset is that of this moment of its zone."""
    return int(at.timestamp()) * 1000


def granted(need: int, want: int, left: int) -> int:
    """How much a holder gets of what is left, where that is enough."""
    return max(need, min(want, left // PART))


def bucket_ms(counter: Counter, units: float) -> int:
    """How long so many units take to come."""
    return -int(-units * counter.every_ms // counter.refill)
