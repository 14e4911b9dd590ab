"""What the log tells the edge: releases and bundles, quarantines, erasures, and the definitions seen before. One
subscription, folded for ever. Where the log is away at the start the edge begins with what it kept of it, and is
corrected when the log is back. Counterparts: `releases.py` lets releases rule, `remembering.py` keeps.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from tidegate.chain import open_event
from tidegate.errors import ConfigFault, LogUnavailable
from tidegate.events import (
    OfferDefined,
    OfferWithdrawn,
    QuarantineImposed,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.ids import now_us
from tidegate.log.port import Delivered, EventLog, Subscription
from tidegate.policy.approvals import ApprovalEvent, approval_in
from tidegate.policy.control import ON_OFFERS
from tidegate.policy.signing import Trust
from tidegate.privacy.erasure import is_erasure, read_erasure
from tidegate_edge.announcements import Announcement
from tidegate_edge.edge import Edge
from tidegate_edge.kept_state import Definitions, Recalled
from tidegate_edge.offers import Key
from tidegate_edge.releases import Releases
from tidegate_edge.remembering import Remembering

TOPICS: Final = ("policy-state", "control-state", "catalog")
LOCAL_TOPICS: Final = (*TOPICS, "control")  # where leases end with the process, the history says what was used
RETRY_S: Final = 1.0
QUIET_S: Final = 15.0  # at the start: a log that has told nothing for so long, and is not at its end, is away
BATCH_MAX: Final = 1_000

_log = logging.getLogger(__name__)


class Watch:
    """Folds the log into the edge's rulings and quarantines."""

    def __init__(
        self, edge: Edge, log: EventLog, trust: Trust, tenants: Iterable[str], remembering: Remembering
    ) -> None:
        self._edge = edge
        self._log = log
        self.remembering = remembering
        self._behind = True  # reading what was in the log before this subscription
        self._is_holding = False  # again, beside the log's other records
        self._is_prepared = True
        self._subscription: Subscription | None = None  # while all that it brought is folded
        self._unconfirmed: set[bytes] = set()  # quarantines begun with, which the log has not named yet
        self._told = ""  # why the log is away, as it was last said
        self.releases = Releases(edge, trust, tenants)
        self.caught_up = asyncio.Event()
        self.begun = asyncio.Event()  # calls may be served: the log has been read, or it is away and was read before
        self.offers: dict[Key, str] = {}  # what is no tool → digest last recorded by any edge
        self.definitions: dict[tuple[str, str], str] = {}  # (server, tool) → digest last recorded by any edge
        remembering.definitions = lambda: Definitions(edge.holding.trust.snapshot(), tuple(self.offers.items()))

    @property
    def is_deaf(self) -> bool:
        """Calls are served, and what the log tells is not heard."""
        return self.begun.is_set() and not self.remembering.is_heard

    async def begin_without_log(self, recalled: Recalled) -> None:
        """Serve by what this disk has of the log, and by what was read before it left, until it has been read."""
        self._is_prepared = False
        for key, value in recalled.quarantines.items():
            self._unconfirmed.add(key)
            self._apply_quarantine(key, value)
        trust = self._edge.holding.trust
        trust.restore(recalled.definitions.trusting)
        self.definitions.clear()
        self.definitions.update({(known.server, known.tool): known.current for known in trust.all() if known.current})
        for offer, digest in recalled.definitions.offers:
            self.offers.setdefault(offer, digest)
        self._edge.holding.is_stirred = True
        await self.remembering.settled()
        self.begun.set()
        _log.warning(
            "the log is away: this edge serves by what it kept of it at %s (%d quarantines, %d definitions). Of "
            "quarantines, approvals and releases since then it hears when the log is back",
            datetime.fromtimestamp(recalled.heard_us / 1e6, UTC).isoformat(timespec="seconds"),
            len(recalled.quarantines),
            len(self.definitions),
        )

    async def run(self) -> None:
        """Until cancelled; a log that went away is awaited."""
        while True:
            try:
                await self._follow()
            except LogUnavailable as fault:
                await self._miss(fault)
                await asyncio.sleep(RETRY_S)

    async def listen(self) -> None:
        """Know whether the log is heard. Until cancelled."""
        await self.remembering.hear(lambda: None if self._behind else self._subscription)

    async def _miss(self, fault: LogUnavailable) -> None:
        """The log is away."""
        self.remembering.is_heard = False
        if not self.begun.is_set():
            try:
                await self.begin_without_log(await self.remembering.recall(fault))
            except LogUnavailable as more:
                fault = more
        if self.begun.is_set() and self._edge.holding.is_stirred:
            self._hold_again()
        if fault.sentence != self._told:
            self._told = fault.sentence
            _log.warning("log: %s", fault.sentence)

    async def _follow(self) -> None:
        """Until the log goes away, or must be read from its start again."""
        await self._prepare()
        opened_us, heard_s = now_us(), time.monotonic()
        subscription = await self._log.follow(LOCAL_TOPICS if self._edge.settings.is_local else TOPICS)
        self._behind = True
        self.releases.follow()
        try:
            while True:
                self._subscription = subscription
                records = await subscription.poll(BATCH_MAX, 0.5)
                if records:
                    self._subscription, heard_s = None, time.monotonic()
                    await self._take(records)
                if self._edge.holding.is_stirred and self.begun.is_set():
                    self._hold_again()
                if self._behind and subscription.caught_up:
                    if self.releases.must_read_again():
                        return
                    await self._catch_up(opened_us)
                if not self.begun.is_set() and time.monotonic() - heard_s > QUIET_S:
                    raise LogUnavailable(f"the log has told nothing for {QUIET_S:g} s")
        finally:
            self._subscription = None
            await subscription.close()

    async def _prepare(self) -> None:
        """A log that was away at the start. What is wrong with its topics is not a reason to end a serving edge."""
        if not self._is_prepared:
            try:
                await self._log.prepare()
            except ConfigFault as fault:
                raise LogUnavailable(fault.sentence) from fault
            self._is_prepared = True

    async def _take(self, records: list[Delivered]) -> None:
        """Quarantines are on the disk before they are obeyed, definitions before tools are held again by them."""
        self.remembering.note(records)
        await self.remembering.settled()
        for record in records:
            await self._apply(record)
        await self.remembering.settled()

    async def _catch_up(self, opened_us: int) -> None:
        self._behind = False
        self._told = ""
        self._drop_unconfirmed()
        self._hold_again()
        await self.releases.catch_up()
        self._edge.approvals.is_current = True
        await self.remembering.caught_up(opened_us)
        if self.begun.is_set() and not self.caught_up.is_set():
            _log.warning("the log is back, and all that it held is known")
        self.caught_up.set()
        self.begun.set()

    def _drop_unconfirmed(self) -> None:
        """What was begun with and is not in the log any more was lifted, and its tombstone is gone, too."""
        for key in self._unconfirmed:
            self.remembering.drop(key)
            self._apply_quarantine(key, None)
        self._unconfirmed.clear()

    async def _apply(self, record: Delivered) -> None:
        if record.topic == "policy-state":
            await self.releases.apply(record)
        elif record.topic == "control-state" and is_erasure(record.key):
            await self._apply_erasure(record)
        elif record.topic == "control-state":
            self._apply_control(record)
        elif record.topic == "control":
            self._apply_approval(record)
        elif record.value is not None:
            self._apply_catalog(record.value)

    def _apply_catalog(self, value: bytes) -> None:
        try:
            event = open_event(value)
        except msgspec.DecodeError:
            return  # a newer edge's fact: not ours to judge
        self.remembering.redefine(matters=self._edge.holding.apply(event))
        if event.tenant != self._edge.settings.tenant:
            return
        if isinstance(event, ToolDefined | ToolWithdrawn):
            known = self._edge.holding.trust.of(event.server, event.tool)
            if known is not None and known.current:
                self.definitions[event.server, event.tool] = known.current
            else:
                self.definitions.pop((event.server, event.tool), None)
        elif isinstance(event, OfferDefined):
            self.offers[event.server, event.kind, event.target] = event.digest
        elif isinstance(event, OfferWithdrawn):
            self.offers.pop((event.server, event.kind, event.target), None)

    def _hold_again(self) -> None:
        """Beside the log's other records: a quarantine does not wait for definitions to be compared. What changes in
        the meantime stirs, and is looked at after.
        """
        if not self._is_holding:
            self._is_holding = True
            self._edge.tasks.start(self._hold(), "hold tools")

    async def _hold(self) -> None:
        try:
            await self.releases.hold_again()
        finally:
            self._is_holding = False

    def _apply_control(self, record: Delivered) -> None:
        if approval_id := approval_in(record.key):
            tenant = record.key.decode(errors="replace").partition("|")[0]
            self._edge.approvals.restore(tenant, approval_id, record.value)
            return
        self._unconfirmed.discard(record.key)
        self._apply_quarantine(record.key, record.value)

    def _apply_quarantine(self, key: bytes, value: bytes | None) -> None:
        tenant, _, quarantine_id = key.decode(errors="replace").partition("|")
        quarantines = self._edge.quarantines_of(tenant)
        if value is None:
            ended = quarantines.get(quarantine_id)
            quarantines.drop(quarantine_id)
            if ended is not None:
                self._announce(ended)
            return
        try:
            event = open_event(value)
        except msgspec.DecodeError as error:
            _log.error("a quarantine cannot be read: %s", error)
            return
        if isinstance(event, QuarantineImposed) and quarantines.apply(event):
            self._announce(event)

    def _announce(self, quarantine: QuarantineImposed) -> None:
        """What a server offers is listed no more, or again."""
        if quarantine.scope in ON_OFFERS:
            server = quarantine.value.partition("/")[0]
            for kind in ("tools", "prompts", "resources"):
                self._edge.announcements.tell(Announcement(quarantine.tenant, server, kind))

    def _apply_approval(self, record: Delivered) -> None:
        try:
            event = open_event(record.value or b"")
        except msgspec.DecodeError:
            return
        if isinstance(event, ApprovalEvent):
            self._edge.approvals.apply(event)

    async def _apply_erasure(self, record: Delivered) -> None:
        """A subject's keys of this edge are destroyed. Raises LogUnavailable: then it is read, and tried, again."""
        if record.value is None or self._edge.vault is None:
            return
        try:
            event = read_erasure(record.value).event
        except msgspec.DecodeError as error:
            _log.error("an erasure cannot be read: %s", error)
            return
        await self._edge.vault.destroy(event.tenant, event.subject_id, event.erased_us, event.keys)
