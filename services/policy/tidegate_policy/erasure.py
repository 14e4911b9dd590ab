"""Erasing subjects: every data key of one is taken off the log, and the event tells the edges to destroy theirs.

Order: the event is durable, with its state record `done: false`; then each key gets a None value; then `done: true`.
Whatever a crash left undone is finished at the next start. A key that comes late, from an edge that had not heard yet,
is taken off as soon as it is seen: one made before the erasure, or one that was destroyed, whenever its record says it
was made. It takes no master: no key is opened for it. Counterparts:
`tidegate/privacy/erasure.py` (the state record), the edge's `vault.py`.
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from tidegate.chain import Chain, open_event
from tidegate.errors import KeyFault
from tidegate.events import SubjectErased
from tidegate.ids import subject_id as pseudonym
from tidegate.ids import uuid7
from tidegate.limits import ERASED_KEYS_NAMED_MAX
from tidegate.log.port import Delivered, EventLog, Record
from tidegate.privacy.erasure import is_erasure, read_erasure, state_key, state_value
from tidegate.privacy.keys import named_by, published, topic_key
from tidegate.privacy.ring import TOPIC
from tidegate.secrets import ClusterSecrets
from tidegate_policy.journal import Journal
from tidegate_policy.problems import ApiFault
from tidegate_policy.state import ControlPlane

STATE_TOPIC: Final = "control-state"
AT_ONCE: Final = 1_000
GONE_MAX: Final = 200_000  # names of destroyed keys that are remembered; the latest
ROLL_AFTER_US: Final = 3_700 * 1_000_000  # a little over the topic's max.compaction.lag.ms

_SUBJECT_ID = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """What an erasure did, or would do. `kids`: the keys that the log held."""

    subject_id: str
    kids: tuple[str, ...]
    event: SubjectErased | None = None


class Eraser:
    """Writes erasures, under the one turn of the journal."""

    def __init__(
        self,
        state: ControlPlane,
        journal: Journal,
        log: EventLog,
        region: str,
        clock: Callable[[], int],
        secrets: ClusterSecrets | None = None,
        issuers: Collection[str] = (),
        on_key: Callable[[Delivered], None] = lambda record: None,
    ) -> None:
        self._state = state
        self._journal = journal
        self._log = log
        self._region = region
        self._clock = clock
        self._secrets = secrets
        self._issuers = issuers  # of the tenant; (): not known
        self._on_key = on_key  # is told of each record of the topic
        self._busy = asyncio.Lock()
        self._undone: dict[str, bytes] = {}  # by subject: the last erasure as stored, until its state record is done
        self._gone: OrderedDict[str, None] = OrderedDict()  # kids that were destroyed
        self._stored: dict[str, tuple[str, bool]] = {}  # by subject: which erasure the state record tells, and if done

    @property
    def unfinished(self) -> int:
        """Erasures of which a key may still be on the log."""
        return len(self._undone)

    def resolve(self, subject: str) -> str:
        """The subject id of what an operator wrote: itself, or issuer|subject. Raises ApiFault."""
        if _SUBJECT_ID.fullmatch(subject):
            return subject
        issuer, bar, name = subject.rpartition("|")
        if not (issuer and bar and name) or self._secrets is None:
            raise ApiFault(
                422,
                "subject-malformed",
                "a subject is its id (32 hex digits) or 'issuer|subject' as its tokens say; a login is looked up by "
                "the command line",
            )
        if self._issuers and not any(subject.startswith(f"{one}|") for one in self._issuers):
            known = ", ".join(sorted(self._issuers))
            raise ApiFault(422, "issuer-unknown", f"'{issuer[:200]}' is no issuer of this tenant; there are {known}")
        return pseudonym(self._secrets.pepper(self._state.tenant), issuer, name)

    async def erase(self, subject_id: str, reason: str, actor: str, *, dry_run: bool = False) -> Done:
        """Destroy every key of the subject; on return none is on the log. Raises LogUnavailable: it may be half done,
        and is finished by itself.
        """
        kids = tuple(await self._kids(subject_id))
        if dry_run:
            return Done(subject_id, kids)
        async with self._busy:
            event = await self._announce(subject_id, kids, reason, actor)
            await self._finish(event, {*kids, *await self._kids(subject_id, event.erased_us)})
        return Done(subject_id, kids, event)

    def note(self, record: Delivered) -> None:
        """See a record of `control` or `control-state` pass by; `reconcile` then acts on what is undone."""
        if record.value is None:
            return
        if record.topic == STATE_TOPIC and is_erasure(record.key):
            self._note_state(record.value)
        elif record.topic == "control" and b'"type":"subject.erased' in record.value:
            event = _erased_in(record.value)
            if event is not None and event.tenant == self._state.tenant:
                self._remember(*event.keys)
                self._undone[event.subject_id] = record.value

    async def reconcile(self) -> None:
        """Finish what a crash left undone. Raises LogUnavailable."""
        if self._busy.locked() or self._journal.is_fenced:
            return  # an erasure is under way and finishes itself, or another process writes now
        for subject_id, value in list(self._undone.items()):
            event = _erased_in(value)
            if event is None or self._stored.get(subject_id) == (event.erasure_id, True):
                self._undone.pop(subject_id, None)
                continue
            async with self._busy:
                await self._finish(event, {*event.keys, *await self._kids(subject_id, event.erased_us)})
            _log.info("the erasure %s of subject %s is finished", event.erasure_id, subject_id)

    async def watch(self) -> None:
        """Take off the log what is published late, until cancelled. Begin when every erasure is known.

        Raises LogUnavailable: begin again.
        """
        subscription = await self._log.follow([TOPIC])
        late: dict[str, bytes] = {}  # by kid: the log key
        rolling = Rolling()
        try:
            while True:
                for record in await subscription.poll(AT_ONCE, 1.0):
                    rolling.note(record)
                    self._on_key(record)
                    self._judge(record, late)
                if not subscription.caught_up or self._journal.is_fenced:
                    continue
                if late:
                    await self._take_off(late.values())
                    _log.info("%d keys of erased subjects came late, and are gone", len(late))
                    late.clear()
                if rolling.is_due(self._clock()):
                    await self._take_off([topic_key(self._state.tenant, "compaction", "now")])
        finally:
            await subscription.close()

    def _judge(self, record: Delivered, late: dict[str, bytes]) -> None:
        tenant, subject_id, kid = named_by(record.key) or ("", "", "")
        if tenant != self._state.tenant or (until_us := self._state.erased.get(subject_id)) is None:
            return
        if record.value is None:
            late.pop(kid, None)
            self._remember(kid)
        elif kid in self._gone or _made_us(record.value) <= until_us:
            late[kid] = record.key

    def _remember(self, *kids: str) -> None:
        for kid in kids:
            self._gone[kid] = None
            self._gone.move_to_end(kid)
        while len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)

    async def _announce(self, subject_id: str, kids: tuple[str, ...], reason: str, actor: str) -> SubjectErased:
        now_us = self._clock()
        event = SubjectErased(
            id=uuid7(now_us),
            time_us=now_us,
            tenant=self._state.tenant,
            region=self._region,
            subject_id=subject_id,
            erasure_id=uuid7(now_us),
            actor=actor,
            reason=reason,
            erased_us=now_us,
            keys=kids[:ERASED_KEYS_NAMED_MAX],
        )

        def compose(chain: Chain) -> list[Record]:
            record = chain.seal(event)
            assert record.value is not None
            self._undone[subject_id] = record.value
            return [record, self._state_record(record.value, done=False)]

        async with self._journal.turn:
            await self._journal.append(compose)
        return event

    async def _finish(self, event: SubjectErased, kids: Iterable[str]) -> None:
        await self._take_off([topic_key(event.tenant, event.subject_id, kid) for kid in kids])
        value = self._undone.get(event.subject_id)
        if value is not None:
            async with self._journal.turn:
                await self._journal.append(lambda _: [self._state_record(value, done=True)])
            self._stored[event.subject_id] = (event.erasure_id, True)
            self._undone.pop(event.subject_id, None)

    async def _take_off(self, keys: Iterable[bytes]) -> None:
        records = [Record(TOPIC, key, None) for key in keys]
        for some in _chunks(records):
            async with self._journal.turn:
                await self._journal.append(lambda _, some=some: some)  # type: ignore[misc]

    async def _kids(self, subject_id: str, up_to_us: int | None = None) -> list[str]:
        """The subject's keys that the log holds now, oldest first. Read through: there are too many to remember."""
        subscription = await self._log.follow([TOPIC])
        prefix = topic_key(self._state.tenant, subject_id, "")
        found: dict[str, None] = {}
        try:
            while not subscription.caught_up:
                for record in await subscription.poll(AT_ONCE, 1.0):
                    if not record.key.startswith(prefix):
                        continue
                    kid = record.key[len(prefix) :].decode(errors="replace")
                    if record.value is None:
                        found.pop(kid, None)
                    elif up_to_us is None or _made_us(record.value) <= up_to_us:
                        found[kid] = None
        finally:
            await subscription.close()
        return list(found)

    def _note_state(self, value: bytes) -> None:
        try:
            told = read_erasure(value)
        except msgspec.DecodeError:
            return  # a newer version's
        subject_id, finished = told.event.subject_id, (told.event.erasure_id, True)
        if told.event.tenant != self._state.tenant:
            return
        self._remember(*told.event.keys)
        if self._stored.get(subject_id) != finished:
            self._stored[subject_id] = (told.event.erasure_id, told.done)  # what is read back lags behind what was done

    def _state_record(self, event: bytes, done: bool) -> Record:
        told = _erased_in(event)
        assert told is not None
        return Record(STATE_TOPIC, state_key(told.tenant, told.subject_id), state_value(event, done))


class Rolling:
    """A log compacts what lies behind its newest segment, and begins a new segment only when a record comes. So one
    comes, where none did for long after a key was destroyed.
    """

    def __init__(self) -> None:
        self._destroyed_us = 0
        self._latest_us = 0

    def note(self, record: Delivered) -> None:
        self._latest_us = max(self._latest_us, record.time_us)
        named = named_by(record.key)
        if record.value is None and named is not None and named[1] != "compaction":
            self._destroyed_us = max(self._destroyed_us, record.time_us)

    def is_due(self, now_us: int) -> bool:
        """True once after each destruction, unless something else came meanwhile."""
        due_us = self._destroyed_us + ROLL_AFTER_US
        if not self._destroyed_us or now_us < due_us:
            return False
        needed = self._latest_us < due_us
        self._destroyed_us = 0
        return needed


def _made_us(value: bytes) -> int:
    """When the key was made; always, for one that cannot be read: nobody can use it."""
    try:
        return published(value).created_us
    except KeyFault:
        return 0


def _erased_in(value: bytes) -> SubjectErased | None:
    try:
        event = open_event(value)
    except msgspec.DecodeError:
        return None
    return event if isinstance(event, SubjectErased) else None


def _chunks(records: list[Record]) -> Iterator[list[Record]]:
    for at in range(0, len(records), AT_ONCE):
        yield records[at : at + AT_ONCE]
