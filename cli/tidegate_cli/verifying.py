"""The work of `tidegate verify`: roots, then every record that they cover, then what is under no root.

Nothing is believed but the audit key: roots must be signed and in one series, records must hash to their roots. What
ClickHouse is asked only brings bytes. What is absent is excused by a table's TTL or
by whoever verifies. Counterparts: `held_sources.py` (where records come from), `tidegate.audit`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tidegate.audit.history import History, RootProblem, merged, open_history, seams
from tidegate.audit.holdings import Wrong, as_rewrites, compare
from tidegate.audit.losses import explained
from tidegate.audit.roots import Trust
from tidegate.events import Leaf, RootSealed, SpoolDamaged
from tidegate_cli.expiry import Horizon, expired_in
from tidegate_cli.held_sources import (
    EVENTS_FILE,
    HORIZON_FILE,
    KEY_FILE,
    ROOTS_FILE,
    Found,
    Source,
    Stranger,
    Window,
)

WRONG_MAX = 10_000
DAY_US = 86_400_000_000
SPAN_RECORDS = 20_000
PENDING_MAX_US = 600_000_000  # how long a record may be under no root


class Report(msgspec.Struct, kw_only=True):
    """What was proven. `wrong` is in the order of time, so that its first is the first wrong record."""

    verdict: str = "whole"  # broken; unproven: nothing is wrong, and roots that should be there are not
    from_us: int
    to_us: int
    roots: int = 0
    latest: dict[str, int] = {}  # number of the last root, by sealer
    sealed_us: int = 0  # when the last root of the series that is furthest behind was sealed
    records: int = 0  # under roots, and found to be what was sealed
    unproven: int = 0  # under roots, and wrong, gone, or where too much is gone to tell
    pending: int = 0  # after the last root: chained, and not sealed yet
    expired: int = 0  # under roots, and older than what the table keeps
    expired_before_us: int = 0
    expired_why: str = ""
    claimed_by: str = ""  # who says, unproven, that what is missing from before `claimed_us` had expired; "": nobody
    claimed_us: int = 0
    claimed_why: str = ""
    nothing: str = ""  # why there was nothing to prove
    overdue: int = 0  # of these, so old that a root should cover them: roots were not sealed, or are not here
    losses: list[SpoolDamaged] = []  # told by edges whose disks lost records before these were in the log
    problems: list[RootProblem] = []
    wrong: list[Wrong] = []
    rows: list[Wrong] = []  # of tables that are made from the records; a wrong record makes a wrong row

    @property
    def first_wrong(self) -> Wrong | None:
        return next(iter((*self.wrong, *self.rows)), None)


class Saving:
    """Writes what is read into a directory, for a later proof without ClickHouse.

    Not the records that the next root will cover: the directory will not have it, and would prove nothing of them.
    """

    def __init__(self, directory: Path, roots: Sequence[RootSealed], keys: Sequence[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ROOTS_FILE).write_bytes(b"".join(msgspec.json.encode(root) + b"\n" for root in roots))
        (directory / KEY_FILE).write_text("".join(f"{key}\n" for key in keys))
        self._horizon = directory / HORIZON_FILE
        self._file = (directory / EVENTS_FILE).open("wb")
        self._pending: Stranger | None = None

    def take(self, found: Sequence[Found | Stranger]) -> None:
        self._file.writelines(one.raw + b"\n" for one in found)

    def take_stranger(self, stranger: Stranger, *, is_pending: bool) -> None:
        """One under no root; of those that wait for one, only the neighbour that shows why the next is wrong."""
        if is_pending:
            self._pending = stranger
            return
        if self._pending is not None and self._pending.writer == stranger.writer:
            self.take([self._pending])
        self._pending = None
        self.take([stranger])

    def keep(self, horizon: Horizon) -> None:
        """What had expired when this was saved: for people, and believed by nobody."""
        self._horizon.write_bytes(msgspec.json.encode(horizon))

    def close(self) -> None:
        self._file.close()


class Verification:
    """One run over one period."""

    def __init__(
        self, source: Source, trust: Trust, from_us: int, to_us: int, now_us: int, *, expired_before_us: int = 0
    ) -> None:
        self._source = source
        self._word_us = expired_before_us
        self._trust = trust
        self._now_us = now_us
        self._wrong: list[tuple[int, Wrong]] = []  # with the time that orders them
        self._horizon = Horizon()
        self._windows: dict[str, list[Window]] = {}  # what was read and compared
        self.report = Report(from_us=from_us, to_us=to_us)
        self.saving: Saving | None = None

    async def roots(self, more: Sequence[RootSealed] = ()) -> list[RootSealed]:
        """Those that may cover records of the period: sealed after its beginning, whatever its end."""
        since_us = max(0, self.report.from_us - DAY_US)
        found = [event async for event in self._source.roots(since_us)]
        return [*found, *(event for event in more if event.time_us >= since_us)]

    async def run(self, roots: Sequence[RootSealed]) -> Report:
        report, history = self.report, open_history(roots, self._trust)
        self._horizon = (await self._source.horizon(self._now_us)).with_word(self._word_us)
        report.expired_before_us, report.expired_why = self._horizon.events_us, self._horizon.why
        if self.saving is not None:
            self.saving.keep(self._horizon)
        report.roots = len(history.roots)
        report.problems = history.problems
        report.latest = {sealer: one.root.number for sealer, one in history.latest().items()}
        report.sealed_us = min((one.root.sealed_us for one in history.latest().values()), default=0)
        for leaves in history.leaves.values():
            await self._writer(leaves)
        await self._strangers(history)
        async for found in self._source.derived(report.from_us, report.to_us, self._now_us):
            if len(report.rows) < WRONG_MAX and not self._horizon.excuses(found[1].kind, found[0]):
                report.rows.append(found[1])
        report.wrong = [wrong for _, wrong in sorted(self._wrong, key=lambda one: (one[0], one[1].writer, one[1].seq))]
        del report.wrong[WRONG_MAX:]
        losses = await self._source.losses(max(0, report.from_us - DAY_US), self._now_us)  # told after they happened
        report.wrong = explained(report.wrong, losses)
        report.losses = [one for one in losses if report.from_us <= one.time_us <= report.to_us]
        self._conclude()
        return report

    def _conclude(self) -> None:
        """Nothing that was proven is no proof: where there is no root, or a copy holds no record under one."""
        report, horizon = self.report, self._horizon
        if not report.roots:
            report.nothing = "there is no root; give the published file with --roots, or see why nothing is sealed"
        elif self._source.is_copy and not report.records:
            report.nothing = "the copy holds no sealed record of this time"
        if report.wrong or report.rows or report.problems:
            report.verdict = "broken"
        elif report.overdue or report.nothing:
            report.verdict = "unproven"
        if any(wrong.kind == "missing" and time_us < horizon.claimed_us for time_us, wrong in self._wrong):
            report.claimed_by = "the copy" if self._source.is_copy else "ClickHouse"
            report.claimed_us, report.claimed_why = horizon.claimed_us, horizon.claimed_why

    async def _writer(self, leaves: Sequence[Leaf]) -> None:
        wanted = [leaf for leaf in leaves if self._is_wanted(leaf)]
        for wrong in seams(leaves):
            after = next((leaf for leaf in leaves if leaf.first > wrong.seq or leaf.first == wrong.seq), leaves[-1])
            if self._is_wanted(after):
                self._wrong.append((after.first_us, wrong))
        for span in spans(wanted):
            found = await self._source.records(span)
            self._windows.setdefault(span[0].writer, []).extend(windows_of(span))
            if self.saving is not None:
                self.saving.take(found)
            await self._compare(span, found)

    async def _compare(self, span: Sequence[Leaf], found: Sequence[Found]) -> None:
        judged: list[tuple[Leaf, Sequence[Wrong]]] = []
        for leaf in span:
            held = [one.held for one in found if leaf.first <= one.held.seq <= leaf.last]
            compared = compare(leaf, held)
            expired = expired_in(leaf, {one.seq for one in held}, self._horizon.events_us)
            wrong = [one for one in compared.wrong if one.kind != "missing" or one.seq not in expired]
            for one in compared.stood_for:
                if await self._source.has(one.id):
                    expired.discard(one.seq)
                    self.report.records += 1
                    self.report.unproven -= 1
                elif one.seq not in expired:
                    wrong.append(Wrong("missing", leaf.writer, one.seq, one.id, f"finding {one.id} is missing"))
            judged.append((leaf, wrong))
            self.report.records += compared.proven
            self.report.expired += len(expired)
            self.report.unproven += leaf.last - leaf.first + 1 - compared.proven - len(expired)
        self._wrong += [(leaf.first_us, wrong) for leaf, wrong in as_rewrites(judged)]

    async def _strangers(self, history: History) -> None:
        positions: dict[str, int] = {}
        for one in history.latest().values():
            for place, offset in one.root.positions.items():
                positions[place] = min(offset, positions.get(place, offset))
        heads = {(leaf.writer, leaf.last): leaf.head for leaves in history.leaves.values() for leaf in leaves}
        before: Stranger | None = None
        async for stranger in self._source.strangers(self.report.from_us, self.report.to_us, self._windows):
            is_sealed = any(first <= stranger.held.seq <= last for first, last in history.covers(stranger.writer))
            wrong = judge_stranger(stranger, before, heads, positions, is_sealed=is_sealed)
            is_overdue = self._source.is_copy or stranger.time_us < self._now_us - PENDING_MAX_US
            if wrong is None:
                self.report.pending += 1
                self.report.overdue += is_overdue
            else:
                self._wrong.append((stranger.time_us, wrong))
            if self.saving is not None:
                self.saving.take_stranger(stranger, is_pending=wrong is None and not is_overdue)
            before = stranger

    def _is_wanted(self, leaf: Leaf) -> bool:
        return leaf.last_us >= self.report.from_us and leaf.first_us <= self.report.to_us


def spans(leaves: Sequence[Leaf]) -> Iterator[list[Leaf]]:
    """Leaves of one writer that are read together: near each other, and no more than a page of records."""
    span: list[Leaf] = []
    for leaf in leaves:
        if span and leaf.last - span[0].first >= SPAN_RECORDS:
            yield span
            span = []
        span.append(leaf)
    if span:
        yield span


def windows_of(span: Sequence[Leaf]) -> list[Window]:
    """The numbers of these leaves, within the time in which sources look for them."""
    begin, end = min(leaf.first_us for leaf in span) - DAY_US, max(leaf.last_us for leaf in span) + DAY_US
    return [Window(first, last, begin, end) for first, last in merged((leaf.first, leaf.last) for leaf in span)]


def judge_stranger(
    stranger: Stranger,
    before: Stranger | None,
    heads: dict[tuple[str, int], str],
    positions: dict[str, int],
    *,
    is_sealed: bool,
) -> Wrong | None:
    """A record under no root: None where it is only too young for one."""
    writer, held = stranger.writer, stranger.held
    if not writer or held.seq == 0:
        return Wrong("unchained", writer, held.seq, held.id, f"event {held.id} belongs to no chain")
    if held.odd:
        return Wrong("misplaced", writer, held.seq, held.id, f"event {held.id}: {held.odd}")
    if is_sealed:
        sentence = f"event {held.id} claims the number {held.seq}, under which another record was sealed"
        return Wrong("fork", writer, held.seq, held.id, sentence)
    if stranger.place and stranger.offset < positions.get(stranger.place, 0):
        sentence = (
            f"event {held.id} says that it stood at {stranger.place}/{stranger.offset} of the log, which the roots "
            "cover, and is under none: it was not on the log"
        )
        return Wrong("unsealed", writer, held.seq, held.id, sentence)
    if before is not None and before.writer == writer and before.held.seq == held.seq:
        sentence = f"event {held.id} claims the number {held.seq}, which event {before.held.id} has"
        return Wrong("fork", writer, held.seq, held.id, sentence)
    follows = before is not None and before.writer == writer and before.held.seq == held.seq - 1
    expected = before.held.hash if follows and before is not None else heads.get((writer, held.seq - 1))
    if expected is not None and held.prev != expected:
        sentence = f"event {held.id} names another record before it than the one there"
        return Wrong("broken-link", writer, held.seq, held.id, sentence)
    return None
