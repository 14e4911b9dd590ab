"""Subjects' keys from the log into ClickHouse, where the view `calls` opens sealed parts with them, and out again.

Follows the topics alone, from the start at each start. Until what was there is known nothing but missing keys is put in
and what an erasure on the log names or covers is taken out, so it does not matter for how long nobody looked. That the
log does not have a key is no erasure: it may be the wrong log, so such a key stays and is told of. A None value takes
its key away before the next record is looked at: first the erasure is written down, then the key deleted, and every
insertion is compared with the erasures afterwards, so that a consumer that lags puts back nothing. Counterparts:
`migrations/0008_sealed.sql` (the tables), `tidegate.privacy.ring` (the same topic, for readers of the log).
"""

import asyncio
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from tidegate.analytics.port import Analytics
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, KeyFault, LogUnavailable
from tidegate.log.port import Delivered, EventLog, Subscription
from tidegate.privacy.erasure import is_erasure, read_erasure
from tidegate.privacy.keys import SubjectKey, Wrapping, named_by
from tidegate.privacy.ring import TOPIC
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.metrics import KeyMetrics

ERASURES_TOPIC: Final = "control-state"
KEYS_AT_ONCE: Final = 1_000
SWEEP_WHOLE_MAX: Final = 50_000  # keys; of more ClickHouse is asked by the first two digits of their names
INSERTS_MAX: Final = 500  # each is a file of its own, until a deletion makes one of them
CHECK_S: Final = 30.0  # how often it is looked whether ClickHouse still has what it was given
COMPLAINTS_MAX: Final = 20  # in words, between two reports of how many there were

Subject = tuple[str, str]
"""Tenant and subject id."""

_KID = re.compile(r"[0-9a-f]{32}")
Faults = (AnalyticsUnavailable, AnalyticsRefused, LogUnavailable)
_log = logging.getLogger(__name__)


class Changes:
    """What a few records come to, the last word on each key alone."""

    def __init__(self) -> None:
        self.added: dict[str, SubjectKey] = {}
        self.removed: dict[str, tuple[str, str, int]] = {}  # by kid: tenant, subject, when the log took it
        self.erased: dict[Subject, int] = {}  # every key made up to then

    def add(self, key: SubjectKey) -> None:
        self.removed.pop(key.kid, None)
        self.added[key.kid] = key

    def remove(self, tenant: str, subject_id: str, kid: str, at_us: int) -> None:
        self.added.pop(kid, None)
        self.removed[kid] = (tenant, subject_id, at_us)


class Standing:
    """Which kids the topic has, eight bytes each: enough to tell what ClickHouse has besides."""

    def __init__(self) -> None:
        self._kids: dict[str, array[int]] = {}
        self._gone: set[int] = set()

    def add(self, kid: str) -> None:
        number = _number(kid)
        self._gone.discard(number)
        self._kids.setdefault(kid[:2], array("Q")).append(number)

    def remove(self, kid: str) -> None:
        self._gone.add(_number(kid))

    def missing_of(self, begin: str, kids: Iterable[str]) -> list[str]:
        """Those of `kids` (which begin so) that the topic does not have."""
        known = {number for first, some in self._kids.items() if first.startswith(begin) for number in some}
        known -= self._gone
        return [kid for kid in kids if _number(kid) not in known]


class KeyFeed:
    """`run` until `stop`. Without masters it opens no key, and takes away what is erased all the same."""

    def __init__(
        self,
        log: EventLog,
        analytics: Analytics,
        wrapping: Wrapping | None,
        bounds: Bounds,
        registry: CollectorRegistry,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._log = log
        self._analytics = analytics
        self._wrapping = wrapping
        self._bounds = bounds
        self._metrics = KeyMetrics(registry)
        self._ready = ready
        self._stopping = asyncio.Event()
        self._failures = 0
        self._inserts = 0
        self._expected = 0  # rows that ClickHouse has at least
        self._complaints = 0
        self._has_told_unknown = False
        self.is_current = False  # everything that was in the log when it began is in ClickHouse

    async def run(self) -> None:
        while not self._stopping.is_set():
            if not self._ready():
                await self._wait(self._bounds.backoff_min_s)
                continue
            try:
                subscription = await self._log.follow((TOPIC, ERASURES_TOPIC))
            except LogUnavailable as fault:
                await self._pause(fault)
                continue
            try:
                await self._follow(subscription)
            except Faults as fault:
                await self._pause(fault)
            finally:
                self.is_current = False
                await subscription.close()

    def stop(self) -> None:
        self._stopping.set()

    async def _follow(self, subscription: Subscription) -> None:
        """Until stopping, or until ClickHouse has lost keys. Raises Faults: then begin again."""
        await self._catch_up(subscription)
        self.is_current = True
        now = asyncio.get_running_loop().time
        checked = now()
        while not self._stopping.is_set():
            records = await subscription.poll(KEYS_AT_ONCE, self._bounds.idle_s)
            self._failures = 0
            if records:
                await self._patiently(await asyncio.to_thread(self._changes, records))
            if now() >= checked + CHECK_S:
                checked = now()
                if not await self._has_all():
                    _log.warning("ClickHouse has fewer keys of subjects than it was given; they are put in anew")
                    return

    async def _catch_up(self, subscription: Subscription) -> None:
        """What is not in ClickHouse waits until the end, for it may have been erased further on in the topic."""
        standing, waiting = Standing(), Changes()
        while not subscription.caught_up and not self._stopping.is_set():
            records = await subscription.poll(KEYS_AT_ONCE, self._bounds.idle_s)
            changes = await asyncio.to_thread(self._changes, records, standing)
            absent = await self._held(changes.added, False)
            for kid, (tenant, subject_id, at_us) in changes.removed.items():
                waiting.remove(tenant, subject_id, kid, at_us)
            for kid in absent:
                waiting.add(changes.added[kid])
            waiting.erased |= {who: max(at_us, waiting.erased.get(who, 0)) for who, at_us in changes.erased.items()}
            if len(waiting.added) + len(waiting.removed) >= SWEEP_WHOLE_MAX:
                await self._apply(waiting)
                waiting = Changes()
        if self._stopping.is_set():
            return
        await self._apply(waiting)
        await self._sweep(standing)
        await self._compact()
        self._expected = await self._count()
        self._metrics.keys.set(self._expected)

    def _changes(self, records: Sequence[Delivered], standing: Standing | None = None) -> Changes:
        changes = Changes()
        for record in records:
            if record.topic == ERASURES_TOPIC:
                self._note_erasure(record, changes)
                continue
            named = named_by(record.key)
            if named is None or not _KID.fullmatch(named[2]):
                if record.value is not None:
                    self._complain("key-malformed", "a record of the topic subject-keys names no key; it is left out")
            elif record.value is None:
                changes.remove(*named, record.time_us)
                if standing is not None:
                    standing.remove(named[2])
            else:
                if standing is not None:
                    standing.add(named[2])
                self._open(record.value, named, changes)
        return changes

    def _open(self, value: bytes, named: tuple[str, str, str], changes: Changes) -> None:
        if self._wrapping is None:
            self._complain("no-master", "privacy.key_file is not set here: sealed fields stay shut in ClickHouse")
            return
        try:
            key = self._wrapping.unwrap(value)
        except KeyFault as fault:
            self._complain(fault.code, fault.sentence)
            return
        if (key.tenant, key.subject_id, key.kid) != named:
            self._complain("key-misnamed", f"the record of subject key {key.kid} stands under another key's name")
            return
        changes.add(key)

    def _note_erasure(self, record: Delivered, changes: Changes) -> None:
        if record.value is None or not is_erasure(record.key):
            return
        try:
            event = read_erasure(record.value).event
        except msgspec.DecodeError:
            self._complain("erasure-malformed", "a state record of an erasure cannot be read; it is left out")
            return
        who = (event.tenant, event.subject_id)
        changes.erased[who] = max(event.erased_us, changes.erased.get(who, 0))
        for kid in event.keys:
            if _KID.fullmatch(kid):
                changes.remove(*who, kid, event.erased_us)

    async def _patiently(self, changes: Changes) -> None:
        """As often as it takes. Stopping comes first: the next start reads the records again."""
        while not self._stopping.is_set():
            try:
                await self._apply(changes)
                self._failures = 0
                return
            except (AnalyticsUnavailable, AnalyticsRefused) as fault:
                await self._pause(fault)

    async def _apply(self, changes: Changes) -> None:
        """Idempotent. Erasures first, so that a key that was put in meanwhile is found to be erased."""
        await self._write_down(changes)
        gone = await self._held(changes.removed, True) + await self._kids_of(changes.erased)
        if gone:
            await self._delete(gone)
        for some in _slices(await self._held(changes.added, False)):
            await self._insert([changes.added[kid] for kid in some])
        self._expected = await self._count()
        self._metrics.keys.set(self._expected)
        self._metrics.erased.inc(len(gone))
        if self._inserts >= INSERTS_MAX:
            await self._compact()

    async def _write_down(self, changes: Changes) -> None:
        rows = [(tenant, subject_id, kid, at_us) for kid, (tenant, subject_id, at_us) in changes.removed.items()]
        rows += [(tenant, subject_id, "", at_us) for (tenant, subject_id), at_us in changes.erased.items()]
        if rows:
            names = ("tenant", "subject_id", "kid", "erased_at")
            columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
            await self._analytics.insert("tidegate.erasures", columns)

    async def _insert(self, keys: Sequence[SubjectKey]) -> None:
        gone = await self._erased(keys)
        wanted = [key for key in keys if key.kid not in gone]
        if not wanted:
            return
        await self._analytics.insert("tidegate.subject_keys", columns_of(wanted))
        self._inserts += 1
        if late := await self._erased(wanted):
            await self._delete(list(late))

    async def _erased(self, keys: Sequence[SubjectKey]) -> set[str]:
        """Which of these another consumer knows to be erased, or this one knew before."""
        answer = await self._analytics.query(
            "SELECT tenant, subject_id, kid, toUnixTimestamp64Micro(max(erased_at)) FROM tidegate.erasures "
            "WHERE subject_id IN {subjects:Array(String)} GROUP BY tenant, subject_id, kid",
            {"subjects": sorted({key.subject_id for key in keys})},
        )
        until: Mapping[tuple[str, str, str], int] = {(row[0], row[1], row[2]): int(row[3]) for row in answer.rows}
        return {
            key.kid
            for key in keys
            if (key.tenant, key.subject_id, key.kid) in until
            or key.created_us <= until.get((key.tenant, key.subject_id, ""), -1)
        }

    async def _held(self, kids: Iterable[str], held: bool) -> list[str]:
        """Those that ClickHouse has, or those that it has not; in order."""
        found: list[str] = []
        for some in _slices(list(kids)):
            answer = await self._analytics.query(
                "SELECT kid FROM (SELECT arrayJoin({kids:Array(String)}) AS kid) "
                "WHERE (joinGet('tidegate.subject_keys', 'key', kid) != '') = {held:UInt8}",
                {"kids": some, "held": int(held)},
            )
            found += [str(kid) for (kid,) in answer.rows]
        return found

    async def _kids_of(self, erased: Mapping[Subject, int]) -> list[str]:
        """The keys of these subjects that were made up to then."""
        found: list[str] = []
        for some in _slices(sorted({subject_id for _, subject_id in erased})):
            answer = await self._analytics.query(
                "SELECT tenant, subject_id, kid, toUnixTimestamp64Micro(created_at) FROM tidegate.subject_keys "
                "WHERE subject_id IN {subjects:Array(String)}",
                {"subjects": some},
            )
            found += [
                str(kid)
                for tenant, subject_id, kid, created_us in answer.rows
                if created_us <= erased.get((tenant, subject_id), -1)
            ]
        return found

    async def _delete(self, kids: Sequence[str]) -> None:
        """The rows are gone on return, and the files that had them."""
        for some in _slices(kids):
            named = ", ".join([f"'{kid}'" for kid in some if _KID.fullmatch(kid)])
            await self._analytics.execute(f"ALTER TABLE tidegate.subject_keys DELETE WHERE kid IN ({named})")
            self._inserts = 0

    async def _compact(self) -> None:
        """One file of many: a deletion writes the table anew."""
        await self._analytics.execute("ALTER TABLE tidegate.subject_keys DELETE WHERE kid = ''")
        self._inserts = 0

    async def _sweep(self, standing: Standing) -> None:
        """Look at what the topic does not have. What was erased goes, though even its None value is compacted away by
        now. The rest stays: an empty or another topic must not cost anybody's key.
        """
        begins = [""] if await self._count() <= SWEEP_WHOLE_MAX else [f"{number:02x}" for number in range(256)]
        unknown = 0
        for begin in begins:
            answer = await self._analytics.query(
                "SELECT kid, tenant, subject_id, toUnixTimestamp64Micro(created_at) FROM tidegate.subject_keys "
                "WHERE startsWith(kid, {begin:String})",
                {"begin": begin},
            )
            held = {row[0]: SubjectKey(row[0], row[1], row[2], int(row[3]), b"") for row in answer.rows}
            for some in _slices(standing.missing_of(begin, filter(_KID.fullmatch, held))):
                erased = await self._erased([held[kid] for kid in some])
                await self._delete(sorted(erased))
                self._metrics.erased.inc(len(erased))
                unknown += len(some) - len(erased)
        self._tell_unknown(unknown)

    def _tell_unknown(self, count: int) -> None:
        self._metrics.unknown.set(count)
        if count and not self._has_told_unknown:
            _log.error(
                "ClickHouse has %d keys of subjects that the topic subject-keys does not have and nobody erased; they "
                "are kept. Is this the right log (kafka.prefix, a cluster or log.db that was replaced or restored)?",
                count,
            )
        self._has_told_unknown = count > 0

    async def _count(self) -> int:
        answer = await self._analytics.query("SELECT count() FROM tidegate.subject_keys")
        return int(answer.rows[0][0])

    async def _has_all(self) -> bool:
        """A server that was restored, or killed while it wrote the table, has fewer; one that is away has all."""
        try:
            return await self._count() >= self._expected
        except (AnalyticsUnavailable, AnalyticsRefused):
            return True

    def _complain(self, code: str, sentence: str) -> None:
        self._metrics.faults.labels(code).inc()
        self._complaints += 1
        if self._complaints <= COMPLAINTS_MAX:
            _log.warning("%s", sentence)

    async def _pause(self, fault: LogUnavailable | AnalyticsUnavailable | AnalyticsRefused) -> None:
        delay = min(self._bounds.backoff_max_s, self._bounds.backoff_min_s * 2 ** min(self._failures, 16))
        if self._failures % 10 == 0:
            _log.warning("keys of subjects wait, none is lost: %s", fault.sentence)
        self._failures += 1
        await self._wait(delay)

    async def _wait(self, delay_s: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        except TimeoutError:
            return


def columns_of(keys: Sequence[SubjectKey]) -> dict[str, list[str | bytes | int]]:
    """Rows of `tidegate.subject_keys`."""
    return {
        "tenant": [key.tenant for key in keys],
        "subject_id": [key.subject_id for key in keys],
        "kid": [key.kid for key in keys],
        "key": [key.key for key in keys],
        "created_at": [key.created_us for key in keys],
    }


def _slices(kids: Sequence[str]) -> Iterable[list[str]]:
    return [list(kids[at : at + KEYS_AT_ONCE]) for at in range(0, len(kids), KEYS_AT_ONCE)]


def _number(kid: str) -> int:
    """The first eight bytes."""
    return int(kid[:16], 16)
