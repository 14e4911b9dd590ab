"""What need not be there any more: a table's TTL says so, or whoever verifies does, with `--expired-before`.

A record that expired is not a loss, and its roots still prove that it was there. Whoever deletes records can write
down an excuse as well, so what is written beside the records (a row of a rebuild, a file in a saved directory) excuses
nothing: it is a claim, and the report quotes it. Counterparts: `verifying.py`, which asks for this;
`tidegate_audit_consumer.rebuilding`, which leaves the time before which the log had nothing.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from tidegate.analytics.port import Analytics
from tidegate.events import Leaf

FORGOTTEN = "log_begins_us"  # of tidegate.parameters
WORD = "so says --expired-before, the word of who verifies; nothing here proves it"
REBUILT = "the log no longer had them when ClickHouse was rebuilt from it"
SLACK_US = 3_600_000_000  # between a call's request, by which its row expires, and its last record
DAY_US = 86_400_000_000
LEAST_US = {  # a cut-off younger than its age allows is none
    "Second": 1_000_000,
    "Minute": 60_000_000,
    "Hour": 3_600_000_000,
    "Day": DAY_US,
    "Week": 7 * DAY_US,
    "Month": 28 * DAY_US,
    "Quarter": 89 * DAY_US,
    "Year": 365 * DAY_US,
}
TTL = re.compile(r"\bTTL\s+(.*?)(?=\s+SETTINGS\b|$)", re.DOTALL)
AGE = re.compile(
    r"^(?:to(?:DateTime|Date)\()?(?:time|logged_at|ingested_at|requested_at)\)?\s*\+\s*"
    r"toInterval(Second|Minute|Hour|Day|Week|Month|Quarter|Year)\((\d{1,9})\)(?:\s+DELETE)?$"
)


class Horizon(NamedTuple):
    """Records before `events_us` and rows of calls before `calls_us` may be gone; `why` is "" where nothing may.

    `claimed_us` and `claimed_why` are what somebody wrote down who need not be believed.
    """

    events_us: int = 0
    calls_us: int = 0
    why: str = ""
    claimed_us: int = 0
    claimed_why: str = ""

    def excuses(self, kind: str, time_us: int) -> bool:
        """Whether a row of `calls` and its records may differ so: one of them expired before the other."""
        return time_us < (self.calls_us + SLACK_US if kind == "missing" and self.calls_us else self.events_us)

    def with_word(self, before_us: int) -> "Horizon":
        """The same where whoever verifies says that records before this time have expired; 0: nothing was said."""
        return self._replace(events_us=before_us, why=WORD) if before_us > self.events_us else self


async def horizon_of(analytics: Analytics, now_us: int) -> Horizon:
    """As ClickHouse's own definitions have it, by the clock of whoever asks: ClickHouse's own may be set to excuse."""
    events_us, why = await _by_age(analytics, "events_raw", now_us)
    calls_us, _ = await _by_age(analytics, "calls_raw", now_us)
    answer = await analytics.query(
        "SELECT max(value) FROM tidegate.parameters WHERE name = {name:String}", {"name": FORGOTTEN}
    )
    return Horizon(events_us, calls_us, why, int(answer.rows[0][0] or 0), REBUILT)


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


async def _by_age(analytics: Analytics, table: str, now_us: int) -> tuple[int, str]:
    answer = await analytics.query(
        "SELECT engine_full FROM system.tables WHERE database = 'tidegate' AND name = {name:String}", {"name": table}
    )
    age = age_in(answer.rows[0][0]) if answer.rows else None
    if age is None:
        return 0, ""
    unit, number = age
    answer = await analytics.query(
        f"SELECT toUnixTimestamp64Micro(fromUnixTimestamp64Micro({{now:Int64}}, 'UTC') - toInterval{unit}({number}))",
        {"now": now_us},
    )
    before_us = int(answer.rows[0][0])
    if before_us > now_us - number * LEAST_US[unit]:  # ages out of ClickHouse's range of times wrap around
        return 0, ""
    return before_us, f"expired by TTL: {table} keeps {number} {unit.lower()}{'s' * (number != 1)}"
