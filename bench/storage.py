"""What an event takes in ClickHouse: bytes at rest by table and by column, with events as production writes them.

Events go through the consumer's own code into the embedded engine, in batches, and parts are merged to the end, as a
server has merged what is a day old. With `--sealed` personal parts are boxes of a key per subject: those do not
compress. Counterpart: `ingest_events.py`, which makes the events.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tests.parts.audit_events import delivered

from bench.ingest_events import Calls
from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.port import Analytics
from tidegate.events import CallCompleted, CallRequested
from tidegate.ids import now_us
from tidegate.log.port import Record
from tidegate.privacy.keys import Lock, SubjectKey
from tidegate_audit_consumer.migrate import migrate
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store

EVENTS_MAX: Final = 1_000_000
BATCH: Final = 20_000
DAY_US: Final = 86_400_000_000
COLUMNS: Final = 8  # shown of each table
A_DAY: Final = 1_000_000_000  # events: what the schema is made for
TABLES: Final = ("events_raw", "calls_raw")


class SealedCalls(Calls):
    """As an edge with sealing on writes them: a key per subject."""

    def __init__(self, begin_us: int) -> None:
        super().__init__(begin_us)
        self._locks: dict[tuple[str, str], Lock] = {}

    def _requested(self, same: dict[str, Any], at_us: int, *, found: bool) -> CallRequested:
        event = super()._requested(same, at_us, found=found)
        return msgspec.structs.replace(event, sealed=self._lock(same).seal(event.sealed))

    def _completed(self, same: dict[str, Any], at_us: int, *, found: bool) -> CallCompleted:
        event = super()._completed(same, at_us, found=found)
        return msgspec.structs.replace(event, sealed=self._lock(same).seal(event.sealed))

    def _lock(self, same: dict[str, Any]) -> Lock:
        of = (same["tenant"], same["subject_id"])
        if of not in self._locks:
            self._locks[of] = Lock(SubjectKey.generate(*of, now_us()))
        return self._locks[of]


async def fill(analytics: Analytics, events: int, *, sealed: bool) -> int:
    """Stored and merged; the bytes of the events as they are on the log."""
    begin_us = now_us() - DAY_US
    records: Iterator[Record] = (SealedCalls if sealed else Calls)(begin_us).records()
    written = 0
    for first in range(0, events, BATCH):
        batch = delivered(list(islice(records, min(BATCH, events - first))), first)
        written += sum([len(record.value or b"") for record in batch])
        await store(analytics, open_batch(batch), batch)
    for table in TABLES:
        await analytics.execute(f"OPTIMIZE TABLE tidegate.{table} FINAL")
    return written


async def measure(events: int, *, sealed: bool) -> tuple[int, dict[str, int], list[tuple[Any, ...]]]:
    """Bytes on the log, bytes by table, and (table, column, bytes, bytes before compression), the largest first."""
    with tempfile.TemporaryDirectory(prefix="tidegate-storage-") as name:
        async with EmbeddedEngine(Path(name)) as engine:
            await migrate(engine.analytics)
            logged = await fill(engine.analytics, events, sealed=sealed)
            tables = await engine.analytics.query(
                "SELECT table, sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'tidegate' "
                "AND table IN {tables:Array(String)} GROUP BY table",
                {"tables": list(TABLES)},
            )
            columns = await engine.analytics.query(
                "SELECT table, name, data_compressed_bytes AS bytes, data_uncompressed_bytes FROM system.columns "
                "WHERE database = 'tidegate' AND table IN {tables:Array(String)} ORDER BY bytes DESC",
                {"tables": list(TABLES)},
            )
            return logged, {str(table): int(size) for table, size in tables.rows}, columns.rows


def show(console: Console, events: int, logged: int, tables: dict[str, int], columns: list[tuple[Any, ...]]) -> None:
    total = sum(tables.values())
    console.print(f"{events:,} events; on the log {logged / events:,.0f} bytes each before compression")
    sizes = Table(title="At rest, compressed", title_justify="left", box=SIMPLE_HEAD)
    for name in ("table", "bytes an event", f"GB a day at {A_DAY:.0e} events"):
        sizes.add_column(name, justify="left" if name == "table" else "right")
    for table, size in [*tables.items(), ("together", total)]:
        sizes.add_row(table, f"{size / events:,.0f}", f"{size / events * A_DAY / 1e9:,.0f}")
    console.print(sizes)
    if not sum(size for _, _, size, _ in columns):
        return
    # A part below 128 MB is one file, of which no column's share is known.
    largest = Table(title="The largest columns", title_justify="left", box=SIMPLE_HEAD)
    for name in ("column", "bytes an event", "compressed to"):
        largest.add_column(name, justify="left" if name == "column" else "right")
    for table in TABLES:
        for _, name, size, plain in [one for one in columns if one[0] == table and one[2]][:COLUMNS]:
            largest.add_row(f"{table}.{name}", f"{size / events:.1f}", f"{size / max(plain, 1):.0%}")
        largest.add_section()
    console.print(largest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=400_000, help=f"at most {EVENTS_MAX:,} (default: 400,000)")
    parser.add_argument("--sealed", action="store_true", help="personal parts sealed per subject")
    options = parser.parse_args()
    events = max(BATCH, min(options.events, EVENTS_MAX))
    show(Console(), events, *asyncio.run(measure(events, sealed=options.sealed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
