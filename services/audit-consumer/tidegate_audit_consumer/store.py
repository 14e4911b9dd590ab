"""Writes an opened batch: the derived tables first, `events_raw` last, because its offsets are the record of progress.

If it is cut off in between, the batch comes again; every table's key makes the repeated rows one.
"""

import hashlib
from array import array
from collections.abc import Sequence

from tidegate.analytics.port import Analytics, rows_of
from tidegate.log.port import Delivered
from tidegate_audit_consumer.rows import Opened


async def store(analytics: Analytics, opened: Opened, records: Sequence[Delivered]) -> dict[str, int]:
    """Rows by table. `records` are those that were opened: the same ones again give the same deduplication token."""
    token = token_of(records)
    written = {}
    for table, columns in (
        ("calls_raw", opened.calls),
        ("findings_raw", opened.findings),
        ("events_raw", opened.events),
    ):
        if columns:
            await analytics.insert(f"tidegate.{table}", columns, token=f"{table}-{token}")
            written[table] = rows_of(columns)
    return written


def token_of(records: Sequence[Delivered]) -> str:
    """Names exactly this set of records, in this order."""
    topics = ";".join([record.topic for record in records]).encode()
    partitions = array("Q", [record.partition for record in records])
    offsets = array("Q", [record.offset for record in records])
    return hashlib.sha256(b"%b;%b%b" % (topics, partitions.tobytes(), offsets.tobytes())).hexdigest()
