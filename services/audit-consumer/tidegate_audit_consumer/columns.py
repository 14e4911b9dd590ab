"""docs/columns.md, written from the comments in the database itself.

`python -m tidegate_audit_consumer.columns > docs/columns.md` writes it; a test compares.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from tidegate.analytics.clickhouse import open_embedded
from tidegate.analytics.port import Analytics
from tidegate_audit_consumer.migrate import migrate

VIEWS = {
    "calls": "One row per call. Query this view; it is exact at any time, also while events are delivered again. "
    "`message` is the decision's sentence: the caller is given it unless the tool is hidden from it, and then only "
    '"Unknown tool".',
    "events": "Every event, one row each, with the bytes as they were stored.",
    "findings": "The detector's conclusions, one row each.",
    "shadow_differences": "One row per call that rules which only watch would have decided otherwise.",
    "approvals": "One row per approval: who asked, who decided, and the call that used it.",
    "denials": "One row per call that was not let through.",
    "tool_usage": "One row per tool and day.",
    "agents": "One row per agent, over all time.",
    "servers": "One row per upstream server, over all time.",
    "latency": "One row per tool and hour: how long completed calls took.",
    "data_volume": "One row per agent, tool and hour: bytes in and out.",
    "policy_hits": "One row per rule, decision, bundle and day.",
    "calls_by_hour": "Calls with a last word, counted by hour and combination; exact at any time, as `calls` is.",
    "calls_by_minute": "The same by minute, of the last 90 days.",
    "integrity": "Signed roots, one row each, and whether ClickHouse held what was sealed when it was compared.",
}
TABLES = {
    "calls_raw": "Under `calls`: parts of a call, not yet put together. Do not count here.",
    "events_raw": "Under `events`. Do not count here.",
    "findings_raw": "Under `findings`. Do not count here.",
    "roots": "Under `integrity`: signed roots, with the bytes that `tidegate verify` reads.",
    "leaves": "The runs of records that each root covers.",
    "checks": "Under `integrity`: comparisons with roots.",
    "integrity_events": "On the way to `roots`, `leaves` and `checks`; always empty.",
    "integrity_feed": "Fills `integrity_events` from `events_raw`.",
    "roots_feed": "Fills `roots` from `integrity_events`.",
    "leaves_feed": "Fills `leaves` from `integrity_events`.",
    "checks_feed": "Fills `checks` from `integrity_events`.",
    "minutes_raw": "Under `calls_by_minute`: counted minutes, a row each. Do not read it by itself.",
    "minutes_marks": "When calls of a minute were last inserted: what is younger than the count is counted while "
    "reading.",
    "minutes_marks_feed": "Fills `minutes_marks` from `calls_raw`.",
    "minutes_live": "Under `calls_by_minute`: any minute, counted while reading.",
    "minutes_refresh": "Fills `minutes_raw`, every minute.",
    "hours_raw": "Under `calls_by_hour`, as `minutes_raw`.",
    "hours_marks": "As `minutes_marks`, by hour.",
    "hours_marks_feed": "Fills `hours_marks` from `calls_raw`.",
    "hours_live": "Under `calls_by_hour`: any hour, counted while reading.",
    "hours_refresh": "Fills `hours_raw`, every five minutes.",
    "subject_keys": "Opens the sealed parts of calls while `calls` is read. Secret; readers never need it.",
    "erasures": "Whose personal parts were erased, and when.",
    "parameters": "What the views need to know of the configuration.",
    "migrations": "Which migrations made this database.",
}

HEADER = """# Columns of the database `tidegate`

Written from the database's own comments by `python -m tidegate_audit_consumer.columns`. Times are UTC with
microseconds; durations are microseconds, sizes bytes. What can identify a person is in the columns marked
"Personal" and in `raw`, which holds whole events; nowhere else. Where personal fields are sealed, ciphertext is
stored, and `calls` opens it while it is read: a query that names no personal column does nothing for them.
"""


async def describe(analytics: Analytics) -> str:
    """The page. The database must be migrated."""
    parts = [HEADER, "## To query\n"]
    for table, words in VIEWS.items():
        parts.append(await _section(analytics, table, words))
    parts.append("## Underneath\n")
    for table, words in TABLES.items():
        parts.append(await _section(analytics, table, words))
    return "\n".join(parts)


async def _section(analytics: Analytics, table: str, words: str) -> str:
    answer = await analytics.query(
        "SELECT name, type, comment FROM system.columns WHERE database = 'tidegate' AND table = {table:String} "
        "ORDER BY position",
        {"table": table},
    )
    rows = [f"| `{name}` | {_cell(kind)} | {_cell(comment)} |" for name, kind, comment in answer.rows]
    return "\n".join([f"### {table}\n", words, "", "| column | type | meaning |", "|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


async def _main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        analytics = open_embedded(Path(directory))
        try:
            await migrate(analytics)
            sys.stdout.write(await describe(analytics))
        finally:
            await analytics.close()


if __name__ == "__main__":
    asyncio.run(_main())
