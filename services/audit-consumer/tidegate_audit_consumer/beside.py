"""The tables that a rebuild fills beside those that people query, and how they take their place.

`tidegate_rebuild` holds a copy of the definition of each table, and `positions`: every record that was read, which is
the record of progress as well. A table takes over partition by partition (REPLACE PARTITION), each at once and whole:
parts are linked, not copied, no reader ever meets an empty table, and views, grants and row policies stay as they are.
Counterpart: `rebuilding.py`, which says when.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tidegate.analytics.port import DATABASE, Analytics, Answer
from tidegate.log.port import Delivered, Partition
from tidegate_audit_consumer.migrate import migrations
from tidegate_audit_consumer.reading import Unreadable

BESIDE = f"{DATABASE}_rebuild"
CLAIM = "^claim_[0-9]{1,9}$"  # the tables of `claim.py`, which are not part of what is built
GROUPS: Mapping[str, tuple[str, ...]] = {
    "integrity": ("checks", "roots", "leaves"),
    "findings": ("findings_raw",),
    "calls": ("calls_raw",),
    "events": ("events_raw",),
    "rollups": (),
}
"""What can be rebuilt by itself, in the order in which it takes over: roots go before the records that they cover, so
that nobody compares a root with records that are still to come.
"""
TOPICS_OF: Mapping[str, tuple[str, ...]] = {
    "integrity": ("integrity",),
    "findings": ("detections",),
    "calls": ("calls",),
    "rollups": (),
}
ROLLUPS = (("minutes", "minute", "toStartOfMinute"), ("hours", "hour", "toStartOfHour"))
FEED = re.compile(
    rf"CREATE MATERIALIZED VIEW IF NOT EXISTS {DATABASE}\.(\w+)\s+TO {DATABASE}\.(\w+).*?FROM {DATABASE}\.(\w+)",
    re.DOTALL,
)
OWN = {
    "runs": "(at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC'), phase LowCardinality(String), only String, "
    "digest String) ENGINE = MergeTree ORDER BY at",
    "positions": "(topic LowCardinality(String), partition UInt32, offset UInt64 CODEC(Delta, ZSTD(1)), "
    "event_id String CODEC(ZSTD(1)), reason LowCardinality(String)) "
    "ENGINE = ReplacingMergeTree ORDER BY (topic, partition, offset)",
}


class _Uid(msgspec.Struct, frozen=True):
    uid: str = ""


class _Named(msgspec.Struct):
    """An event's id, where it stands in an event and in a finding."""

    id: str = ""
    metadata: _Uid = _Uid()


_named = msgspec.json.Decoder(_Named)


class Feed(NamedTuple):
    """A materialized view of the migrations."""

    name: str
    target: str
    source: str
    sql: str


class Compared(NamedTuple):
    """One partition of the log beside the table."""

    at: Partition
    records: int  # on the log
    unreadable: int
    repeated: int  # events that the log has more than once; the table has them once
    rows: int
    missing: int
    strange: int  # rows that the log does not have


class Filling:
    """Analytics whose inserts go to the tables beside, and with `both` to those that people query as well.

    Only the wanted tables are written. Tables that people query get no deduplication token: the rows of one that was
    seen before may have gone with the partitions that were replaced.
    """

    def __init__(self, analytics: Analytics, wanted: frozenset[str], *, both: bool) -> None:
        self._analytics = analytics
        self._wanted = wanted
        self._both = both
        self._laid_out: set[str] = set()

    async def insert(self, table: str, columns: Mapping[str, Sequence[Any]], *, token: str = "") -> None:
        name = table.removeprefix(f"{DATABASE}.")
        if self._wanted and name not in self._wanted:
            return
        if name not in self._laid_out:  # tables that a later version of the consumer fills as well
            await self._analytics.execute(f"CREATE TABLE IF NOT EXISTS {BESIDE}.{name} AS {DATABASE}.{name}")
            self._laid_out.add(name)
        await self._analytics.insert(f"{BESIDE}.{name}", columns, token=token)
        if self._both:
            await self._analytics.insert(table, columns)

    async def execute(self, sql: str) -> None:
        await self._analytics.execute(sql)

    async def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
        return await self._analytics.query(sql, parameters)

    async def close(self) -> None:
        """The connection is its owner's."""


def feeds() -> list[Feed]:
    """Those that are filled from `events_raw`, directly or not."""
    found = []
    reached = {"events_raw"}
    for migration in migrations():
        for sql in migration.statements:
            if (match := FEED.match(sql)) and match[3] in reached:
                found.append(Feed(match[1], match[2], match[3], sql))
                reached.add(match[2])
    return found


async def lay_out(analytics: Analytics, tables: Iterable[str]) -> None:
    """Database, tables and feeds; what is there stays."""
    await analytics.execute(f"CREATE DATABASE IF NOT EXISTS {BESIDE}")
    for table, definition in OWN.items():
        await analytics.execute(f"CREATE TABLE IF NOT EXISTS {BESIDE}.{table} {definition}")
    fed = feeds()
    for table in dict.fromkeys((*tables, "events_raw", *(feed.target for feed in fed))):
        await analytics.execute(f"CREATE TABLE IF NOT EXISTS {BESIDE}.{table} AS {DATABASE}.{table}")
    for feed in fed:
        await analytics.execute(feed.sql.replace(f"{DATABASE}.", f"{BESIDE}."))


async def tables(analytics: Analytics) -> dict[str, str]:
    """Name and engine of whatever stands beside, claims excepted."""
    answer = await analytics.query(
        "SELECT name, engine FROM system.tables WHERE database = {name:String} AND NOT match(name, {claim:String})",
        {"name": BESIDE, "claim": CLAIM},
    )
    return dict(answer.rows)


async def is_complete(analytics: Analytics, wanted: Iterable[str]) -> bool:
    """Whether all that `lay_out` makes is there."""
    fed = feeds()
    names = {*OWN, *wanted, "events_raw", *(one.target for one in fed), *(one.name for one in fed)}
    return names <= set(await tables(analytics))


async def clear(analytics: Analytics) -> None:
    """Whatever stands beside goes, whoever made it; the claims and the empty database stay, because a rebuild that
    begins may be making its claim just now. What says that a run can be continued goes first: cut off in between,
    nobody goes on with half of it. Never waits for the files to go (SYNC): the embedded engine would wait for ever.
    """
    there = await tables(analytics)
    order = [name for name in OWN if name in there]
    order += sorted(name for name, engine in there.items() if name not in order and engine.endswith("View"))
    order += sorted(set(there) - set(order))
    for name in order:
        kind = "DICTIONARY" if there[name] == "Dictionary" else "TABLE"
        quoted = name.replace("\\", "\\\\").replace("`", "\\`")
        await analytics.execute(f"DROP {kind} IF EXISTS {BESIDE}.`{quoted}`")


async def exists(analytics: Analytics) -> bool:
    """Whether anything stands beside, be it a claim."""
    answer = await analytics.query("SELECT count() FROM system.tables WHERE database = {name:String}", {"name": BESIDE})
    return bool(answer.rows[0][0])


async def note(analytics: Analytics, records: Sequence[Delivered], unreadable: Sequence[Unreadable]) -> None:
    """These were stored: progress moves on."""
    reasons = {(one.record.topic, one.record.partition, one.record.offset): one.reason for one in unreadable}
    found = [reasons.get((one.topic, one.partition, one.offset), "") for one in records]
    await analytics.insert(
        f"{BESIDE}.positions",
        {
            "topic": [one.topic for one in records],
            "partition": [one.partition for one in records],
            "offset": [one.offset for one in records],
            "event_id": ["" if why else _id_in(one) for one, why in zip(records, found, strict=True)],
            "reason": found,
        },
    )


def _id_in(record: Delivered) -> str:
    """Of a record that can be read."""
    named = _named.decode(record.value or b"{}")
    return named.metadata.uid if record.topic == "detections" else named.id


async def positions(analytics: Analytics) -> dict[Partition, int]:
    """The next offset to read of each partition."""
    answer = await analytics.query(
        f"SELECT topic, partition, max(offset) + 1 FROM {BESIDE}.positions GROUP BY topic, partition"  # noqa: S608
    )
    return {Partition(topic, number): next_offset for topic, number, next_offset in answer.rows}


async def take_over(analytics: Analytics, tables: Iterable[str]) -> None:
    """Each of the tables' partitions in one step. The same again does no harm."""
    for table in tables:
        built, old = await _partitions(analytics, BESIDE, table), await _partitions(analytics, DATABASE, table)
        for part in sorted(built):
            await analytics.execute(
                f"ALTER TABLE {DATABASE}.{table} REPLACE PARTITION ID '{part}' FROM {BESIDE}.{table}"
            )
        for part in sorted(old - built):
            await analytics.execute(f"ALTER TABLE {DATABASE}.{table} DROP PARTITION ID '{part}'")


async def mark_rollups(analytics: Analytics) -> None:
    """Every minute and hour is counted anew from the calls: by the views at once, in the background for good."""
    for name, column, begin in ROLLUPS:
        marks = f"INSERT INTO {DATABASE}.{name}_marks (tenant, {column}, marked_at)"
        for part in sorted(await _partitions(analytics, DATABASE, "calls_raw")):
            await analytics.execute(
                f"{marks} SELECT tenant, {begin}(requested_at) AS {column}, now64(6, 'UTC') "  # noqa: S608
                f"FROM {DATABASE}.calls_raw WHERE _partition_id = '{part}' GROUP BY tenant, {column}"
            )
        counted = f"SELECT DISTINCT tenant, {column}, now64(6, 'UTC') FROM {DATABASE}.{name}_raw"  # noqa: S608
        await analytics.execute(f"{marks} {counted}")


async def compare(analytics: Analytics, ends: Mapping[Partition, int]) -> list[Compared]:
    """What the log had before these offsets beside the rows that say they stood there; one pass over either, and a
    second look where they differ.
    """
    seen = "sumWithOverflow(cityHash64(offset, event_id))"
    read = await analytics.query(
        f"SELECT topic, partition, count(), countIf(reason != ''), "  # noqa: S608
        f"sumWithOverflow(if(reason = '', cityHash64(offset, event_id), toUInt64(0))) FROM {BESIDE}.positions FINAL "
        "GROUP BY topic, partition ORDER BY topic, partition"
    )
    held = await analytics.query(
        f"SELECT topic, partition, count(), {seen} FROM {DATABASE}.events "  # noqa: S608
        "WHERE offset < transform((topic || '/') || toString(partition), {places:Array(String)}, {ends:Array(UInt64)}, "
        "toUInt64(0)) GROUP BY topic, partition",
        {"places": [f"{at.topic}/{at.partition}" for at in ends], "ends": list(ends.values())},
    )
    rows = {Partition(topic, number): (count, digest) for topic, number, count, digest in held.rows}
    found = []
    for topic, number, records, unreadable, digest in read.rows:
        at = Partition(topic, number)
        count, same = rows.get(at, (0, 0))
        if (count, same) == (records - unreadable, digest):
            found.append(Compared(at, records, unreadable, 0, count, 0, 0))
        else:
            found.append(await _differing(analytics, at, ends.get(at, 0), records, unreadable, count))
    return found


async def _differing(
    analytics: Analytics, at: Partition, end: int, records: int, unreadable: int, rows: int
) -> Compared:
    """An event that the log has again, at a later place, is one row: told from one that is missing by its id."""
    here = "topic = {topic:String} AND partition = {partition:UInt32} AND offset < {end:UInt64}"
    table, read = f"FROM {DATABASE}.events WHERE {here}", f"FROM {BESIDE}.positions FINAL WHERE {here}"
    absent = f"SELECT event_id {read} AND reason = '' AND offset NOT IN (SELECT offset {table})"
    answer = await analytics.query(
        f"SELECT (SELECT count() FROM ({absent})), (SELECT count() FROM ({absent}) WHERE event_id NOT IN "  # noqa: S608
        f"(SELECT event_id FROM {DATABASE}.events_raw WHERE event_id IN ({absent}))), "
        f"(SELECT count() {table} AND offset NOT IN (SELECT offset {read}))",
        {"topic": at.topic, "partition": at.partition, "end": end},
    )
    elsewhere, missing, strange = answer.rows[0]
    return Compared(at, records, unreadable, elsewhere - missing, rows, missing, strange)


async def swappable(analytics: Analytics, group: str, names: Sequence[str]) -> list[str]:
    """The group's tables; with the events go those that consumers fill besides, and keep parts."""
    wanted = list(GROUPS[group])
    if group == "events":
        known = {table for tables in GROUPS.values() for table in tables} | set(OWN)
        wanted = [*(name for name in names if name not in known), *wanted]
    answer = await analytics.query(
        "SELECT name FROM system.tables WHERE database IN ({beside:String}, {own:String}) "
        "AND engine LIKE '%MergeTree' GROUP BY name HAVING count() = 2",
        {"beside": BESIDE, "own": DATABASE},
    )
    there = {name for (name,) in answer.rows}
    return [name for name in wanted if name in there]


async def _partitions(analytics: Analytics, database: str, table: str) -> set[str]:
    answer = await analytics.query(f"SELECT DISTINCT _partition_id FROM {database}.{table}")  # noqa: S608
    return {part for (part,) in answer.rows}
