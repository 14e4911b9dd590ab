"""Compares ClickHouse with each root soon after it was sealed: is every record there, as the log had it, in one chain?

A query over (writer, seq) brings the hashes that ClickHouse computes from its bytes; only a leaf that they do not add
up to is read whole, to name the wrong records. What is not there yet is waited for. The verdict is an event, and what
is wrong a finding each. Counterparts: `sealing.py`, and `tidegate verify`, which believes no hash that it did not make.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

import msgspec

from tidegate.analytics.port import Analytics
from tidegate.audit.history import seams
from tidegate.audit.holdings import Held, Wrong, as_rewrites, compare
from tidegate.audit.links import link_of
from tidegate.audit.merkle import root_of
from tidegate.audit.roots import Opened, RootFault, Trust, open_root
from tidegate.chain import open_event
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable
from tidegate.events import Leaf, RootChecked, RootSealed
from tidegate_audit_consumer.journal import Journal
from tidegate_audit_consumer.metrics import IntegrityMetrics

PATIENCE_S = 20.0  # for records that other consumers are still to insert, while ClickHouse answers
ROOTS_AT_ONCE = 10
TOLD_AFTER = 10  # faults in a row
SEAMS_ROOTS = 200  # how many roots back the leaves of a writer must fit
HELD_MAX = 200_000
DAY_US = 86_400_000_000

_log = logging.getLogger(__name__)


class Checker:
    """`watch` runs beside the sealer."""

    def __init__(
        self,
        analytics: Analytics,
        trust: Trust,
        sealer: str,
        every_s: float,
        metrics: IntegrityMetrics,
    ) -> None:
        self.checked: dict[int, str] = {}  # verdicts since the start, by root
        self.patience_s = PATIENCE_S
        self._waiting: dict[int, float] = {}  # roots that are not told yet → when they were first compared
        self._analytics = analytics
        self._trust = trust
        self._sealer = sealer
        self._every_s = every_s
        self._metrics = metrics

    async def watch(self, journal: Journal) -> None:
        """Until cancelled. ClickHouse's faults are waited out, and told once they last: at the first start its tables
        are made a moment later. The log's faults end it.
        """
        faults = 0
        while True:
            try:
                for number, event_id, value in await self._unchecked():
                    await self._check(number, event_id, value, journal)
                faults = 0
            except (AnalyticsUnavailable, AnalyticsRefused) as fault:
                self._metrics.faults.inc()
                faults += 1
                if faults == TOLD_AFTER:
                    _log.warning("ClickHouse is not compared with the roots for now: %s", fault.sentence)
            await asyncio.sleep(min(1.0, self._every_s / 4))

    async def _unchecked(self) -> list[tuple[int, str, bytes]]:
        answer = await self._analytics.query(
            "SELECT number, event_id, hex(raw) FROM tidegate.roots FINAL WHERE sealer = {sealer:String} "
            "AND number NOT IN (SELECT number FROM tidegate.checks WHERE sealer = {sealer:String}) "
            "AND number NOT IN {done:Array(UInt64)} ORDER BY number LIMIT {limit:UInt32}",
            {"sealer": self._sealer, "done": list(self.checked)[-1_000:], "limit": ROOTS_AT_ONCE},
        )
        return [(number, event_id, bytes.fromhex(value)) for number, event_id, value in answer.rows]

    async def _check(self, number: int, event_id: str, value: bytes, journal: Journal) -> None:
        opened = None
        try:
            opened = open_root(_root_in(value), self._trust)
            wrong = await self._wrong_in(opened)
        except RootFault as fault:
            wrong = [Wrong("altered", f"roots of {self._sealer}", number, event_id, f"root {number}: {fault.sentence}")]
        now_s = time.monotonic()
        waited_s = now_s - self._waiting.setdefault(number, now_s)
        if not wrong or opened is None or waited_s >= self._patience_for(wrong):
            await self._tell(number, opened, wrong, journal)

    def _patience_for(self, wrong: Sequence[Wrong]) -> float:
        """A gap may be filled by the next root: partitions are read one after the other."""
        return max(self.patience_s, 2 * self._every_s) if {one.kind for one in wrong} <= {"gap"} else self.patience_s

    async def _tell(self, number: int, opened: Opened | None, wrong: list[Wrong], journal: Journal) -> None:
        verdict = "broken" if wrong else "whole"
        first = wrong[0] if wrong else None
        if first is not None:
            _log.error("root %d of '%s': %d records wrong: %s", number, self._sealer, len(wrong), first.sentence)
            self._metrics.breaches.inc(len(wrong))
            await journal.report(wrong)
        checked = RootChecked(
            **journal.common(),
            sealer=self._sealer,
            number=number,
            digest=opened.digest if opened else "",
            verdict="broken" if wrong else "whole",
            events=opened.root.events if opened else 0,
            wrong=len(wrong),
            problem=first.kind if first else "",
            of_writer=first.writer if first else "",
            of_seq=first.seq if first else 0,
            message=first.sentence if first else "",
        )
        await journal.add(checked)
        self._waiting.pop(number, None)
        self.checked[number] = verdict
        while len(self.checked) > 10_000:
            del self.checked[next(iter(self.checked))]
        self._metrics.checked.labels(verdict).inc()

    async def _wrong_in(self, opened: Opened) -> list[Wrong]:
        writers: dict[str, list[tuple[Leaf, list[Wrong]]]] = {}
        suspects = set(map(id, await self._suspects(opened.leaves)))
        for leaf in opened.leaves:
            wrong = await self._wrong_under(leaf) if id(leaf) in suspects else []
            writers.setdefault(leaf.writer, []).append((leaf, wrong))
        found = [one for judged in writers.values() for _, one in as_rewrites(judged)]
        return found + await self._broken_seams(opened)

    async def _wrong_under(self, leaf: Leaf) -> list[Wrong]:
        found = compare(leaf, await self._held(leaf))
        absent = [one for one in found.stood_for if not await self._has(one.id)]
        return found.wrong + [
            Wrong("missing", leaf.writer, one.seq, one.id, f"finding {one.id} is missing") for one in absent
        ]

    async def _suspects(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        """Leaves to which the hashes that ClickHouse computes do not add up."""
        if not leaves:
            return []
        answer = await self._analytics.query(
            "SELECT writer, seq, lower(hex(SHA256(raw))) FROM tidegate.events "
            "WHERE time >= fromUnixTimestamp64Micro({first:Int64}) AND time <= fromUnixTimestamp64Micro({last:Int64}) "
            "AND writer IN {writers:Array(String)} ORDER BY writer, seq LIMIT {limit:UInt32}",
            {
                "first": min(leaf.first_us for leaf in leaves),
                "last": max(leaf.last_us for leaf in leaves),
                "writers": sorted({leaf.writer for leaf in leaves}),
                "limit": HELD_MAX,
            },
        )
        return await asyncio.to_thread(suspects_among, leaves, answer.rows)

    async def _held(self, leaf: Leaf) -> list[Held]:
        """Around the leaf's time, so that a record whose own time was changed is still found."""
        answer = await self._analytics.query(
            "SELECT seq, event_id, hash, hex(raw) FROM tidegate.events WHERE writer = {writer:String} "
            "AND seq BETWEEN {first:UInt64} AND {last:UInt64} "
            "AND time BETWEEN fromUnixTimestamp64Micro({from:Int64}) AND fromUnixTimestamp64Micro({to:Int64}) "
            "ORDER BY seq, event_id LIMIT {limit:UInt32}",
            {
                "writer": leaf.writer,
                "first": leaf.first,
                "last": leaf.last,
                "from": leaf.first_us - DAY_US,
                "to": leaf.last_us + DAY_US,
                "limit": HELD_MAX,
            },
        )
        return [
            held_of(seq, event_id, claimed, bytes.fromhex(raw), leaf) for seq, event_id, claimed, raw in answer.rows
        ]

    async def _has(self, event_id: str) -> bool:
        answer = await self._analytics.query(
            "SELECT count() FROM tidegate.events WHERE event_id = {id:String}", {"id": event_id}
        )
        return bool(answer.rows[0][0])

    async def _broken_seams(self, opened: Opened) -> list[Wrong]:
        """Gaps and breaks between this root's leaves and earlier ones of the same writers."""
        answer = await self._analytics.query(
            "SELECT writer, first, last, prev, head, tree, toUnixTimestamp64Micro(first_at), "
            "toUnixTimestamp64Micro(last_at) FROM tidegate.leaves FINAL WHERE writer IN {writers:Array(String)} "
            "AND sealer = {sealer:String} AND number >= {since:UInt64} ORDER BY writer, first, last",
            {
                "writers": sorted({leaf.writer for leaf in opened.leaves}),
                "sealer": opened.root.sealer,
                "since": max(0, opened.root.number - SEAMS_ROOTS),
            },
        )
        writers: dict[str, list[Leaf]] = {}
        names = ("writer", "first", "last", "prev", "head", "tree", "first_us", "last_us")
        for row in answer.rows:
            leaf = msgspec.convert(dict(zip(names, row, strict=True)), Leaf)
            writers.setdefault(leaf.writer, []).append(leaf)
        own = {(leaf.writer, leaf.first) for leaf in opened.leaves}
        firsts = {writer: min(leaf.first for leaf in opened.leaves if leaf.writer == writer) for writer, _ in own}
        return [
            one for writer, leaves in writers.items() for one in seams(leaves) if _concerns(one, leaves, firsts[writer])
        ]


def _root_in(value: bytes) -> RootSealed:
    """Raises RootFault: what is in ClickHouse may have been changed."""
    try:
        event = open_event(value)
    except msgspec.DecodeError as error:
        raise RootFault(f"cannot be read ({error})") from error
    if not isinstance(event, RootSealed):
        raise RootFault("is another event")
    return event


def _concerns(wrong: Wrong, leaves: Sequence[Leaf], first: int) -> bool:
    """A root is blamed for the seam in front of its own leaves, not for those that earlier roots were blamed for."""
    following = [leaf.first for leaf in leaves if leaf.first > wrong.seq] if wrong.kind == "gap" else [wrong.seq]
    return bool(following) and min(following) >= first


def suspects_among(leaves: Sequence[Leaf], rows: Sequence[tuple[str, int, str]]) -> list[Leaf]:
    """`rows`: writer, number and hash, in order."""
    writers: dict[str, dict[int, list[str]]] = {}
    for writer, seq, digest in rows:
        writers.setdefault(writer, {}).setdefault(seq, []).append(digest)
    return [leaf for leaf in leaves if not _adds_up(leaf, writers.get(leaf.writer, {}))]


def _adds_up(leaf: Leaf, numbered: dict[int, list[str]]) -> bool:
    same = [numbered.get(seq, []) for seq in range(leaf.first, leaf.last + 1)]
    if any(len(hashes) != 1 for hashes in same):
        return False
    return root_of(bytes.fromhex(hashes[0]) for hashes in same).hex() == leaf.tree


def held_of(seq: int, event_id: str, claimed: str, raw: bytes, leaf: Leaf) -> Held:
    """A row as ClickHouse has it, beside what its bytes say."""
    link = link_of(raw)
    if link is None:
        return Held(seq, event_id, "0" * 64, "", claimed, "its bytes are no record of a chain")
    odd = ""
    if (link.writer, link.seq, link.id) != (leaf.writer, seq, event_id):
        odd = f"its bytes are record {link.seq} of {link.writer}, event {link.id}"
    return Held(seq, event_id, link.hash, link.prev, claimed, odd)
