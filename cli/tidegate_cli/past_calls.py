"""Recorded decisions for `tidegate bundle replay`, page by page: from ClickHouse, or from the log itself.

Both give the events as stored; personal parts are opened with the ring. An event that cannot be read is counted, and is
a dead letter already. Counterpart: `replaying.py`.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from tidegate.analytics.port import Analytics
from tidegate.chain import open_event
from tidegate.errors import KeyFault
from tidegate.events import CallRequested, Sealed
from tidegate.ids import now_us
from tidegate.log.port import EventLog
from tidegate.policy.replaying import Past, past_of

PAGE_ROWS: Final = 5_000
STRETCH_US: Final = 3_600_000_000
STRETCH_MAX_US: Final = 30 * 86_400_000_000
_REQUESTED: Final = b'"type":"call.requested.'

OpenSealed = Callable[[Sealed], Sealed | None]
"""The plain personal part; None where its key is gone. Raises KeyFault."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls: requested in [since, until), of one tenant. `until_us` 0: now."""

    tenant: str
    since_us: int
    until_us: int = 0
    server: str = ""
    tool: str = ""
    agent: str = ""

    def settled(self) -> "Span":
        return self if self.until_us else msgspec.structs.replace(self, until_us=now_us())

    def admits(self, event: CallRequested) -> bool:
        wanted = (("server", self.server), ("target", self.tool), ("agent", self.agent))
        return (
            event.tenant == self.tenant
            and self.since_us <= event.requested_us < self.until_us
            and all(not value or getattr(event, name) == value for name, value in wanted)
        )


class Page(msgspec.Struct, frozen=True):
    calls: list[Past]
    unreadable: int
    done: float  # how much of all has been read, 0 to 1


async def from_clickhouse(analytics: Analytics, span: Span, opened: OpenSealed) -> AsyncIterator[Page]:
    """In the order of their ids, which is that of their times. Raises AnalyticsUnavailable, AnalyticsRefused."""
    after, at_us, stretch = _id_at(span.since_us), span.since_us, STRETCH_US
    whole = max(1, span.until_us - span.since_us)
    while at_us < span.until_us:
        end_us = min(span.until_us, at_us + stretch)
        rows = await _rows(analytics, span, after, _id_at(end_us))
        if len(rows) == PAGE_ROWS:
            after = str(rows[-1][0])
            at_us = max(at_us, int(after.replace("-", "")[:12], 16) * 1_000)
            stretch = max(1_000_000, stretch // 2)
        else:
            after, at_us, stretch = _id_at(end_us), end_us, min(STRETCH_MAX_US, stretch * 4)
        yield _page([str(row[1]).encode() for row in rows], span, opened, min(1.0, (at_us - span.since_us) / whole))


async def from_log(log: EventLog, span: Span, opened: OpenSealed) -> AsyncIterator[Page]:
    """In the log's order; reads the topic `calls` from its start. Raises LogUnavailable."""
    subscription = await log.follow(["calls"])
    read = 0
    try:
        while not subscription.caught_up:
            records = await subscription.poll(PAGE_ROWS, 1.0)
            read += len(records)
            values = [record.value for record in records if record.value and _REQUESTED in record.value[:400]]
            yield _page(values, span, opened, read / max(1, read + await subscription.lag()))
    finally:
        await subscription.close()


async def _rows(analytics: Analytics, span: Span, after: str, until: str) -> list[tuple[Any, ...]]:
    wanted = (("server", span.server), ("target", span.tool), ("agent", span.agent))
    given = {name: value for name, value in wanted if value}
    conditions = "".join(f" AND {name} = {{{name}:String}}" for name in given)
    answer = await analytics.query(
        "SELECT event_id, raw FROM tidegate.events "  # noqa: S608  names of ours
        "WHERE tenant = {tenant:String} AND event_id > {after:String} AND event_id < {until:String} "
        f"AND startsWith(type, 'call.requested.'){conditions} ORDER BY event_id LIMIT {{size:UInt32}}",
        {"tenant": span.tenant, "after": after, "until": until, "size": PAGE_ROWS, **given},
    )
    return answer.rows


def _id_at(time_us: int) -> str:
    """Not above any UUIDv7 of that millisecond, as text."""
    digits = f"{time_us // 1_000:012x}"
    return f"{digits[:8]}-{digits[8:]}-"


def _page(values: list[bytes], span: Span, opened: OpenSealed, done: float) -> Page:
    calls: list[Past] = []
    unreadable = 0
    for value in values:
        try:
            event = open_event(value)
        except msgspec.DecodeError:
            unreadable += 1
            continue
        if isinstance(event, CallRequested) and span.admits(event):
            calls.append(past_of(event, _opened(event.sealed, opened)))
    return Page(calls, unreadable, done)


def _opened(sealed: Sealed, opened: OpenSealed) -> Sealed | None:
    """What was altered since it was sealed is as good as gone here; `tidegate verify` finds it."""
    if not sealed.kid:
        return sealed
    try:
        return opened(sealed)
    except KeyFault:
        return None
