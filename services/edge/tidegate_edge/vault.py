"""Seals the personal part of events under keys of their subjects, which this edge makes for itself.

On the hot path a dictionary look-up and one encryption; a subject's first call waits until its new key is on this
edge's disk. Keys are published to the log beside calls; at the start it is looked whether the log still has those that
were, since it may be another log by now. An erased subject's keys are destroyed here and leave memory;
the next call of it makes a new one. One event loop. Counterparts: `tidegate/privacy/key_file.py` (the disk),
`watch.py` (hears of erasures), the policy service's `erasure.py`.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import msgspec

from tidegate.errors import LogUnavailable
from tidegate.events import AnyEvent, ApprovalRequested, CallAbandoned, CallCompleted, CallRequested, SessionOpened
from tidegate.ids import now_us
from tidegate.limits import SUBJECT_KEYS_CACHED_MAX
from tidegate.log.port import EventLog, Record
from tidegate.privacy.key_file import KEY_LIFE_US, Subject, SubjectKeyFile
from tidegate.privacy.keys import Lock, named_by
from tidegate.privacy.master import open_wrapping
from tidegate.privacy.ring import TOPIC
from tidegate.settings import Settings

FILE: Final = "subject-keys.db"
PUBLISHED_AT_ONCE: Final = 500
COMPARED_AT_ONCE: Final = 200_000  # keys in memory while the topic is read through
READ_AT_ONCE: Final = 1_000
RETRY_S: Final = 1.0
LAST_TRY_S: Final = 5.0
PUBLISHED_WITHIN_S: Final = 5.0
TIDY_S: Final = 3_600.0

PERSONAL: Final = (CallRequested, CallCompleted, CallAbandoned, SessionOpened, ApprovalRequested)
_Personal = CallRequested | CallCompleted | CallAbandoned | SessionOpened | ApprovalRequested

_log = logging.getLogger(__name__)


class Vault:
    """Keys of subjects. `file` is this edge's own; `clock` is in microseconds."""

    def __init__(
        self, file: SubjectKeyFile, clock: Callable[[], int] = now_us, cached_max: int = SUBJECT_KEYS_CACHED_MAX
    ) -> None:
        self._file = file
        self._clock = clock
        self._cached_max = cached_max
        self._locks: OrderedDict[Subject, Lock] = OrderedDict()
        self._wanted: set[Subject] = set()
        self._turn = asyncio.Lock()  # of the file and what is kept of it: taking and destroying never overlap
        self._to_publish = asyncio.Event()
        self._withdrawn: list[Record] = []  # destroyed while they were being published: the log is to forget them
        self._absent: list[str] = []  # the log was found not to have them
        self._may_publish = False
        self._unpublished = {kid: asyncio.Event() for kid in file.unpublished_kids()}  # set once published or destroyed

    @property
    def pending(self) -> int:
        """Keys that the log does not have yet."""
        return len(self._unpublished)

    def seal(self, event: AnyEvent) -> AnyEvent | None:
        """The event as it is to be recorded; None where its subject's key must be awaited first: `sealed` does."""
        if not isinstance(event, PERSONAL) or event.sealed.kid:  # sealed: of an event before this one, as it was
            return event
        subject = (event.tenant, event.subject_id)
        lock = self._locks.get(subject)
        if lock is None or lock.key.created_us + KEY_LIFE_US < event.time_us:
            return None
        self._locks.move_to_end(subject)
        return _with(lock, event)

    async def sealed(self, event: AnyEvent) -> AnyEvent:
        """The event as it is to be recorded. Raises LogUnavailable where no key can be kept: then nothing is."""
        if not isinstance(event, PERSONAL) or event.sealed.kid:
            return event
        subject = (event.tenant, event.subject_id)
        while True:
            await self._await_key(subject)
            if (lock := self._locks.get(subject)) is not None:  # else it was destroyed just now
                return _with(lock, event)

    async def published(self, event: AnyEvent) -> None:
        """Until the log has the key of a sealed event, so that this edge's disk may be lost. Raises LogUnavailable."""
        waits = self._unpublished.get(event.sealed.kid) if isinstance(event, PERSONAL) else None
        if waits is None:
            return
        try:
            async with asyncio.timeout(PUBLISHED_WITHIN_S):
                await waits.wait()
        except TimeoutError:
            raise LogUnavailable(
                "the log has not taken the key that seals this record; see tidegate_subject_keys_unpublished",
                code="key-unpublished",
            ) from None

    async def destroy(self, tenant: str, subject_id: str, up_to_us: int, kids: Iterable[str] = ()) -> int:
        """The subject was erased: its keys of up to then, and those named, are gone on return. How many there were.

        Raises LogUnavailable: ask again.
        """
        subject = (tenant, subject_id)
        async with self._turn:
            self._locks.pop(subject, None)
            gone = await asyncio.to_thread(self._file.destroy, subject, up_to_us, kids)
        self._settled(gone)
        if gone:
            _log.info("%d keys of the erased subject %s are destroyed here", len(gone), subject_id)
        return len(gone)

    async def publish(self, log: EventLog) -> None:
        """Bring new keys to the log, until cancelled. Begin once the erasures that the log knows are obeyed."""
        self._may_publish = True
        self._to_publish.set()
        comparing = asyncio.create_task(self._compare(log))
        try:
            while True:
                await self._publish_next(log)
        finally:
            comparing.cancel()
            await asyncio.gather(comparing, return_exceptions=True)

    async def _publish_next(self, log: EventLog) -> None:
        try:
            async with asyncio.timeout(TIDY_S):
                await self._to_publish.wait()
        except TimeoutError:
            await asyncio.to_thread(self._file.drop_old, self._clock())
            return
        try:
            await self._publish_all(log)
        except LogUnavailable as fault:
            _log.warning("keys of subjects wait to be published: %s", fault.sentence)
            await asyncio.sleep(RETRY_S)

    async def _compare(self, log: EventLog) -> None:
        """Once, and beside all else: find the published keys that this log never had."""
        before: int | None = None
        while before != 0:
            try:
                kids, next_before = await asyncio.to_thread(self._file.published_kids, before, COMPARED_AT_ONCE)
                absent = await _not_on(log, kids) if kids else []
            except LogUnavailable as fault:
                _log.warning("it is not known yet whether the log has this edge's keys: %s", fault.sentence)
                await asyncio.sleep(RETRY_S)
                continue
            before = next_before
            if absent:
                _log.warning(
                    "%d keys of subjects that this edge had published are not on the log: it is a new or an older "
                    "one. They are published again",
                    len(absent),
                )
                self._absent += absent
                self._to_publish.set()

    async def close(self, log: EventLog) -> None:
        """What the log does not take now is published at the next start of an edge with this disk."""
        if self._may_publish:
            with contextlib.suppress(LogUnavailable, TimeoutError):
                async with asyncio.timeout(LAST_TRY_S):
                    await self._publish_all(log)
        if self.pending:
            _log.warning("%d keys of subjects are not published; keep this edge's disk until they are", self.pending)
        await asyncio.to_thread(self._file.close)

    async def _publish_all(self, log: EventLog) -> None:
        """Calls never wait for it. A key that is destroyed while the log takes it is taken back."""
        while True:
            self._to_publish.clear()
            if self._absent:
                await self._take_back_marks()
            known = set(self._unpublished)
            try:
                found = await asyncio.to_thread(self._file.unpublished, PUBLISHED_AT_ONCE)
                if len(found) < PUBLISHED_AT_ONCE:
                    self._settled(known - {kid for kid, _, _ in found})
                records = [Record(TOPIC, key, value) for _, key, value in found] + self._withdrawn
                if not records:
                    return
                await log.append(records)
                self._withdrawn.clear()
                destroyed = set(await asyncio.to_thread(self._file.mark_published, [kid for kid, _, _ in found]))
            except BaseException:
                self._to_publish.set()
                raise
            self._settled(kid for kid, _, _ in found)
            self._withdrawn += [Record(TOPIC, key, None) for kid, key, _ in found if kid in destroyed]

    async def _take_back_marks(self) -> None:
        """What was destroyed meanwhile stays gone."""
        async with self._turn:
            absent, self._absent = self._absent, []
            try:
                found = await asyncio.to_thread(self._file.mark_unpublished, absent)
            except BaseException:
                self._absent += absent
                self._to_publish.set()
                raise
            self._unpublished.update((kid, asyncio.Event()) for kid in found)

    async def _await_key(self, subject: Subject) -> None:
        """Until the subject's key was in memory: whoever has the turn writes for all who wait, in one transaction."""
        self._wanted.add(subject)
        try:
            async with self._turn:
                if subject not in self._wanted:
                    return
                wanted = list(self._wanted)
                for key in await asyncio.to_thread(self._file.take, wanted, self._clock()):
                    self._keep(Lock(key))
                self._unpublished.update((kid, asyncio.Event()) for kid in self._file.made())
                self._wanted.difference_update(wanted)
        finally:
            self._wanted.discard(subject)
        self._to_publish.set()

    def _settled(self, kids: Iterable[str]) -> None:
        for kid in kids:
            if (waits := self._unpublished.pop(kid, None)) is not None:
                waits.set()

    def _keep(self, lock: Lock) -> None:
        subject = (lock.key.tenant, lock.key.subject_id)
        self._locks[subject] = lock
        self._locks.move_to_end(subject)
        if len(self._locks) > self._cached_max:
            self._locks.popitem(last=False)


async def _not_on(log: EventLog, kids: list[str]) -> list[str]:
    """Those of which the topic tells nothing, neither the key nor that it was destroyed. In order."""
    absent = dict.fromkeys(kids)
    subscription = await log.follow([TOPIC])
    try:
        while not subscription.caught_up and absent:
            for record in await subscription.poll(READ_AT_ONCE, 1.0):
                if (named := named_by(record.key)) is not None:
                    absent.pop(named[2], None)
    finally:
        await subscription.close()
    return list(absent)


def _with(lock: Lock, event: _Personal) -> AnyEvent:
    sealed = lock.seal(event.sealed)
    return event if sealed is event.sealed else msgspec.structs.replace(event, sealed=sealed)


@contextlib.asynccontextmanager
async def open_vault(settings: Settings, log: EventLog) -> AsyncIterator[Vault | None]:
    """Where nothing is sealed it is still opened if there are keys from before, which erasures must reach.

    Raises ConfigFault, LogUnavailable. Leave it after the last record.
    """
    path = settings.data_dir / FILE
    if not settings.seals and not settings.is_local:
        _log.warning(
            "personal fields are recorded in clear and cannot be erased from the log: set privacy.key_file, the same "
            "for every service (or privacy.sealing: on), to have them sealed per subject"
        )
    if not settings.seals and not path.exists():
        yield None
        return
    wrapping = open_wrapping(settings, create=settings.seals)
    vault = Vault(await asyncio.to_thread(SubjectKeyFile, path, wrapping, now_us()))
    try:
        yield vault
    finally:
        await vault.close(log)
