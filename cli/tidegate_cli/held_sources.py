"""Where `tidegate verify` finds records: ClickHouse, or a directory that an earlier `verify --save` wrote.

Hashes are made here from the bytes, whoever keeps them; what a store says besides (its columns) is compared with what
the bytes say. Counterpart: `verifying.py`.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from tidegate.analytics.port import Analytics
from tidegate.audit.holdings import Held, Wrong
from tidegate.audit.links import link_of
from tidegate.chain import open_event
from tidegate.errors import ConfigFault
from tidegate.events import Leaf, RootSealed, SpoolDamaged
from tidegate.log.port import Delivered
from tidegate_cli.derived_calls import wrong_calls
from tidegate_cli.expiry import Horizon, horizon_of

EVENTS_FILE, ROOTS_FILE, KEY_FILE = "events.jsonl", "roots.jsonl", "audit.pub"
HORIZON_FILE = "expired.json"
HORIZON_BYTES_MAX = 4_096
WHY_MAX = 200
LOSSES_MAX = 10_000
LOSS = b'"type":"spool.damaged.v1"'
DAY_US = 86_400_000_000
PAGE_ROWS = 20_000
PAGE_BYTES = 32 * 1024 * 1024  # of records in one answer, which has them in hexadecimal
STRANGERS_MAX = 10_000  # of one writer
COLUMNS = (
    *("event_id", "type", "tenant", "region", "writer", "seq", "prev", "hash", "subject_id", "agent", "session_id"),
    *("call_id", "server", "target", "decision", "reason", "topic", "partition", "offset"),
)
COMPARED = tuple(name for name in COLUMNS if name not in ("topic", "partition", "offset"))


class Window(NamedTuple):
    """What was read of a writer: these numbers, within this time."""

    first: int
    last: int
    from_us: int
    to_us: int


class Found(NamedTuple):
    """A record, and the bytes it was judged by."""

    held: Held
    raw: bytes


class Stranger(NamedTuple):
    """A record under no root. `place` is "topic/partition" of the log, "" where the source does not know."""

    writer: str
    held: Held
    raw: bytes
    time_us: int
    place: str
    offset: int


class Source(Protocol):
    """Records and roots. Raises Fault where they cannot be read."""

    @property
    def is_copy(self) -> bool:
        """Whether no root comes any more: what is under none stays so."""
        ...

    def roots(self, since_us: int) -> AsyncIterator[RootSealed]: ...

    async def records(self, leaves: Sequence[Leaf]) -> list[Found]:
        """Of leaves of one writer, in order: everything with its numbers."""
        ...

    async def has(self, event_id: str) -> bool: ...

    def strangers(self, from_us: int, to_us: int, covered: Mapping[str, Sequence[Window]]) -> AsyncIterator[Stranger]:
        """Records of this time that were not read: no window of their writer has them."""
        ...

    async def horizon(self, now_us: int) -> Horizon:
        """What it need not hold any more."""
        ...

    async def losses(self, from_us: int, to_us: int) -> list[SpoolDamaged]:
        """What edges told of this time that their disks lost, LOSSES_MAX at most."""
        ...

    def derived(self, from_us: int, to_us: int, now_us: int) -> AsyncIterator[tuple[int, Wrong]]:
        """What is wrong with tables that are made from the records, each with the time of what it is about."""
        ...


class ClickHouseSource:
    """The view `tidegate.events`, which shows what people query."""

    is_copy = False

    def __init__(self, analytics: Analytics) -> None:
        self._analytics = analytics

    async def roots(self, since_us: int) -> AsyncIterator[RootSealed]:
        sealer, number = "", 0
        while True:
            answer = await self._analytics.query(
                "SELECT sealer, number, hex(raw) FROM tidegate.roots "
                "WHERE sealed_at >= fromUnixTimestamp64Micro({since:Int64}) "
                "AND (sealer, number) > ({sealer:String}, {number:UInt64}) "
                "ORDER BY sealer, number LIMIT {limit:UInt32} WITH TIES",
                {"since": since_us, "sealer": sealer, "number": number, "limit": 1_000},
            )
            for row in answer.rows:
                if (event := _root(bytes.fromhex(row[2]))) is not None:
                    yield event
            if not answer.rows:
                return
            sealer, number = answer.rows[-1][:2]

    async def records(self, leaves: Sequence[Leaf]) -> list[Found]:
        first, last = min(leaf.first for leaf in leaves), max(leaf.last for leaf in leaves)
        rows = await self._rows(
            "writer = {writer:String} AND seq BETWEEN {first:UInt64} AND {last:UInt64} "
            "AND time BETWEEN fromUnixTimestamp64Micro({from:Int64}) AND fromUnixTimestamp64Micro({to:Int64})",
            {
                "writer": leaves[0].writer,
                "first": first,
                "last": last,
                "from": min(leaf.first_us for leaf in leaves) - DAY_US,
                "to": max(leaf.last_us for leaf in leaves) + DAY_US,
            },
        )
        return [found_of(row) for row in told(rows)]

    async def has(self, event_id: str) -> bool:
        answer = await self._analytics.query(
            "SELECT count() FROM tidegate.events WHERE event_id = {id:String}", {"id": event_id}
        )
        return bool(answer.rows[0][0])

    async def losses(self, from_us: int, to_us: int) -> list[SpoolDamaged]:
        answer = await self._analytics.query(
            "SELECT hex(raw) FROM tidegate.events WHERE type = 'spool.damaged.v1' "
            "AND time BETWEEN fromUnixTimestamp64Micro({from:Int64}) AND fromUnixTimestamp64Micro({to:Int64}) "
            "ORDER BY time LIMIT {limit:UInt32}",
            {"from": from_us, "to": to_us, "limit": LOSSES_MAX},
        )
        return [event for row in answer.rows if (event := _loss(bytes.fromhex(row[0]))) is not None]

    async def strangers(
        self, from_us: int, to_us: int, covered: Mapping[str, Sequence[Window]]
    ) -> AsyncIterator[Stranger]:
        when = "time BETWEEN fromUnixTimestamp64Micro({from:Int64}) AND fromUnixTimestamp64Micro({to:Int64})"
        period = {"from": from_us, "to": to_us}
        writers = await self._analytics.query(f"SELECT DISTINCT writer FROM tidegate.events WHERE {when}", period)  # noqa: S608
        for (writer,) in sorted(writers.rows):
            known = covered.get(writer, ())
            rows = await self._rows(
                f"{when} AND writer = {{writer:String}} AND NOT arrayExists("
                "(first, last, begin, end) -> seq >= first AND seq <= last AND time >= fromUnixTimestamp64Micro(begin) "
                "AND time <= fromUnixTimestamp64Micro(end), {firsts:Array(UInt64)}, {lasts:Array(UInt64)}, "
                "{begins:Array(Int64)}, {ends:Array(Int64)})",
                period
                | {
                    "writer": writer,
                    "firsts": [one.first for one in known],
                    "lasts": [one.last for one in known],
                    "begins": [one.from_us for one in known],
                    "ends": [one.to_us for one in known],
                },
                STRANGERS_MAX,
            )
            for row in told(rows):
                found = found_of(row)
                place = f"{row['topic']}/{row['partition']}"
                yield Stranger(writer, found.held, found.raw, row["time"], place, row["offset"])

    async def horizon(self, now_us: int) -> Horizon:
        return await horizon_of(self._analytics, now_us)

    def derived(self, from_us: int, to_us: int, now_us: int) -> AsyncIterator[tuple[int, Wrong]]:
        return wrong_calls(self._analytics, from_us, to_us, now_us)

    async def of_call(self, call_id: str) -> list[tuple[str, int, bytes]]:
        """Writer, number and bytes of a call's events."""
        answer = await self._analytics.query(
            "SELECT writer, seq, hex(raw) FROM tidegate.events WHERE call_id = {id:String} "
            "ORDER BY time, seq LIMIT 100",
            {"id": call_id},
        )
        return [(writer, seq, bytes.fromhex(raw)) for writer, seq, raw in answer.rows]

    async def root_over(self, writer: str, seq: int) -> RootSealed | None:
        """The first root that has this record."""
        answer = await self._analytics.query(
            "SELECT hex(raw) FROM tidegate.roots WHERE (sealer, number) IN (SELECT sealer, min(number) "
            "FROM tidegate.leaves WHERE writer = {writer:String} AND first <= {seq:UInt64} AND last >= {seq:UInt64} "
            "GROUP BY sealer) LIMIT 1",
            {"writer": writer, "seq": seq},
        )
        return _root(bytes.fromhex(answer.rows[0][0])) if answer.rows else None

    async def _rows(self, where: str, parameters: Mapping[str, Any], limit: int = 0) -> list[dict[str, Any]]:
        """In order, asked for in pieces of PAGE_BYTES: one answer holds only so much."""
        bound = f" LIMIT {limit:d}" if limit else ""
        sizes = await self._analytics.query(
            f"SELECT length(raw) FROM tidegate.events WHERE {where} ORDER BY seq, event_id{bound}",  # noqa: S608
            parameters,
        )
        rows: list[dict[str, Any]] = []
        for count in _pieces([int(size) for (size,) in sizes.rows]):
            past = " AND (seq, event_id) > ({past_seq:UInt64}, {past_id:String})" if rows else ""
            given = {"past_seq": rows[-1]["seq"], "past_id": rows[-1]["event_id"]} if rows else {}
            answer = await self._analytics.query(
                f"SELECT {', '.join(COLUMNS)}, toUnixTimestamp64Micro(time), hex(raw) FROM tidegate.events "  # noqa: S608
                f"WHERE {where}{past} ORDER BY seq, event_id LIMIT {count:d}",
                {**parameters, **given},
            )
            rows += [dict(zip((*COLUMNS, "time", "raw"), row, strict=True)) for row in answer.rows]
        return rows


def _pieces(sizes: Sequence[int]) -> Iterator[int]:
    """How many rows each, so that none but a lone row passes PAGE_BYTES."""
    count = held = 0
    for size in sizes:
        if count and held + size > PAGE_BYTES:
            yield count
            count = held = 0
        count, held = count + 1, held + size
    if count:
        yield count


class DirectorySource:
    """What `verify --save` wrote: one stored record a line, in any order."""

    is_copy = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writers: dict[str, dict[int, list[tuple[int, int]]]] = {}  # places in the file by writer and number
        self._ids: set[str] = set()
        self._losses: list[SpoolDamaged] = []
        self._file = directory / EVENTS_FILE
        if not self._file.is_file():
            raise ConfigFault(f"{self._file} does not exist; `tidegate verify --save {directory}` writes it")
        with self._file.open("rb") as file:
            place = 0
            for line in file:
                link = link_of(line.rstrip(b"\n"))
                if LOSS in line and len(self._losses) < LOSSES_MAX and (event := _loss(line)) is not None:
                    self._losses.append(event)
                if link is not None:
                    self._writers.setdefault(link.writer, {}).setdefault(link.seq, []).append((place, len(line)))
                    self._ids.add(link.id)
                place += len(line)

    async def roots(self, since_us: int) -> AsyncIterator[RootSealed]:
        for event in read_roots_of(self._directory / ROOTS_FILE):
            if event.time_us >= since_us:
                yield event

    async def records(self, leaves: Sequence[Leaf]) -> list[Found]:
        numbered = self._writers.get(leaves[0].writer, {})
        first, last = min(leaf.first for leaf in leaves), max(leaf.last for leaf in leaves)
        places = [place for seq in range(first, last + 1) for place in numbered.get(seq, ())]
        return [held for _, held in self._read(places)]

    async def has(self, event_id: str) -> bool:
        return event_id in self._ids

    async def strangers(
        self, from_us: int, to_us: int, covered: Mapping[str, Sequence[Window]]
    ) -> AsyncIterator[Stranger]:
        for writer, numbered in self._writers.items():
            known = covered.get(writer, ())
            outside = [
                place
                for seq, places in sorted(numbered.items())
                if not any(one.first <= seq <= one.last for one in known)
                for place in places
            ]
            for time_us, found in self._read(outside):
                if from_us <= time_us <= to_us:
                    yield Stranger(writer, found.held, found.raw, time_us, "", 0)

    async def horizon(self, now_us: int) -> Horizon:
        """Nothing is excused: the file is not signed, and only claims what had expired when the directory was saved."""
        try:
            with (self._directory / HORIZON_FILE).open("rb") as file:
                saved = msgspec.json.decode(file.read(HORIZON_BYTES_MAX), type=Horizon)
        except (OSError, msgspec.DecodeError):
            return Horizon()
        return Horizon(claimed_us=max(0, saved.events_us), claimed_why=saved.why[:WHY_MAX])

    async def losses(self, from_us: int, to_us: int) -> list[SpoolDamaged]:
        return [event for event in self._losses if from_us <= event.time_us <= to_us]

    async def derived(self, from_us: int, to_us: int, now_us: int) -> AsyncIterator[tuple[int, Wrong]]:
        """Nothing is: a directory holds records alone."""
        nothing: tuple[tuple[int, Wrong], ...] = ()
        for one in nothing:
            yield one

    def _read(self, places: Iterable[tuple[int, int]]) -> list[tuple[int, Found]]:
        found = []
        with self._file.open("rb") as file:
            for place, size in places:
                file.seek(place)
                raw = file.read(size).rstrip(b"\n")
                link = link_of(raw)
                if link is not None:
                    found.append((link.time_us, Found(Held(link.seq, link.id, link.hash, link.prev), raw)))
        return found


def _loss(raw: bytes) -> SpoolDamaged | None:
    try:
        event = open_event(raw)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event, SpoolDamaged) else None


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with `odd`: the columns that do not say what the bytes say, in the audit consumer's own reading."""
    from tidegate_audit_consumer.rows import open_batch

    records = [
        Delivered(row["topic"], 0, index, b"", bytes.fromhex(row["raw"]), (), 0) for index, row in enumerate(rows)
    ]
    opened = open_batch(records)
    for letter in opened.unreadable:
        rows[letter.record.offset]["odd"] = f"its bytes cannot be read ({letter.reason})"
    for place, index in enumerate(opened.events.get("offset", ())):
        row = rows[index]
        differing = [name for name in (*COMPARED, "time") if row[name] != opened.events[name][place]]
        if differing:
            row["odd"] = f"the columns {', '.join(differing)} do not say what its bytes say"
    return rows


def found_of(row: Mapping[str, Any]) -> Found:
    raw = bytes.fromhex(row["raw"])
    link = link_of(raw)
    odd = row.get("odd", "")
    if link is None:
        return Found(Held(row["seq"], row["event_id"], "0" * 64, "", row["hash"], odd), raw)
    return Found(Held(row["seq"], row["event_id"], link.hash, link.prev, row["hash"], odd), raw)


def read_roots_of(path: Path) -> Iterable[RootSealed]:
    from tidegate_audit_consumer.roots_file import read_roots

    return read_roots(path)


def _root(raw: bytes) -> RootSealed | None:
    try:
        event = open_event(raw)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event, RootSealed) else None
