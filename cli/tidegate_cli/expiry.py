"""What a table no longer has to hold: its TTL says so, or a rebuild from a log that had forgotten it.

A record that expired is not a loss, and its roots still prove that it was there. Counterparts: `verifying.py`, which
asks for this; `tidegate_audit_consumer.rebuilding`, which leaves the time before which the log had nothing.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from tidegate.analytics.port import Analytics
from tidegate.events import Leaf

FORGOTTEN = "log_begins_us"  # of tidegate.parameters
SLACK_US = 3_600_000_000  # between a call's request, by which its row expires, and its last record
TTL = re.compile(r"\bTTL\s+(.*?)(?=\s+SETTINGS\b|$)", re.DOTALL)
AGE = re.compile(
    r"^(?:to(?:DateTime|Date)\()?(?:time|logged_at|ingested_at|requested_at)\)?\s*\+\s*"
    r"toInterval(Second|Minute|Hour|Day|Week|Month|Quarter|Year)\((\d{1,9})\)(?:\s+DELETE)?$"
)


class Horizon(NamedTuple):
    """Records before `events_us` and rows of calls before `calls_us` may be gone; `why` is "" where nothing may."""

    events_us: int = 0
    calls_us: int = 0
    why: str = ""

    def excuses(self, kind: str, time_us: int) -> bool:
        """Whether a row of `calls` and its records may differ so: one of them expired before the other."""
        return time_us < (self.calls_us + SLACK_US if kind == "missing" and self.calls_us else self.events_us)


async def horizon_of(analytics: Analytics) -> Horizon:
    """As ClickHouse's own definitions have it now."""
    events_us, why = await _by_age(analytics, "events_raw")
    calls_us, _ = await _by_age(analytics, "calls_raw")
    answer = await analytics.query(
        "SELECT max(value) FROM tidegate.parameters WHERE name = {name:String}", {"name": FORGOTTEN}
    )
    forgotten = int(answer.rows[0][0] or 0)
    if forgotten > events_us:
        events_us, why = forgotten, "the log no longer had them when ClickHouse was rebuilt from it"
    return Horizon(events_us, calls_us, why)


def age_in(definition: str) -> tuple[str, int] | None:
    """Unit and number of the age at which rows are deleted; None where nothing is, or under conditions."""
    found = TTL.search(definition)
    for rule in re.split(r",(?![^()]*\))", found[1]) if found else ():
        if match := AGE.match(rule.strip()):
            return match[1], int(match[2])
    return None


def expired_in(leaf: Leaf, held: Collection[int], horizon_us: int) -> set[int]:
    """Numbers of the leaf that are not held and need not be. Where the leaf reaches beyond the horizon, those before
    the first that is held.
    """
    if leaf.first_us >= horizon_us:
        return set()
    end = leaf.last + 1
    if leaf.last_us >= horizon_us:
        end = min((seq for seq in held if leaf.first <= seq <= leaf.last), default=leaf.first)
    return {seq for seq in range(leaf.first, end) if seq not in held}


async def _by_age(analytics: Analytics, table: str) -> tuple[int, str]:
    answer = await analytics.query(
        "SELECT engine_full FROM system.tables WHERE database = 'tidegate' AND name = {name:String}", {"name": table}
    )
    age = age_in(answer.rows[0][0]) if answer.rows else None
    if age is None:
        return 0, ""
    unit, number = age
    answer = await analytics.query(f"SELECT toUnixTimestamp64Micro(now64(6, 'UTC') - toInterval{unit}({number}))")
    return int(answer.rows[0][0]), f"expired by TTL: {table} keeps {number} {unit.lower()}{'s' * (number != 1)}"
