"""What the log tells the edge: releases and bundles, quarantines, erasures, and the definitions seen before. One
subscription, folded for ever. Counterpart: `releases.py` lets releases rule.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from tidegate.chain import open_event
from tidegate.errors import LogUnavailable
from tidegate.events import (
    OfferDefined,
    OfferWithdrawn,
    QuarantineImposed,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.log.port import Delivered, EventLog
from tidegate.policy.approvals import ApprovalEvent, approval_in
from tidegate.policy.signing import Trust
from tidegate.privacy.erasure import is_erasure, read_erasure
from tidegate_edge.edge import Edge
from tidegate_edge.offers import Key
from tidegate_edge.releases import Releases

TOPICS: Final = ("policy-state", "control-state", "catalog")
LOCAL_TOPICS: Final = (*TOPICS, "control")  # where leases end with the process, the history says what was used
RETRY_S: Final = 1.0
BATCH_MAX: Final = 1_000

_log = logging.getLogger(__name__)


class Watch:
    """Folds the log into the edge's rulings and quarantines."""

    def __init__(self, edge: Edge, log: EventLog, trust: Trust, tenants: Iterable[str]) -> None:
        self._edge = edge
        self._log = log
        self._behind = True  # reading what was in the log before this subscription
        self._is_holding = False  # again, beside the log's other records
        self.releases = Releases(edge, trust, tenants)
        self.caught_up = asyncio.Event()
        self.offers: dict[Key, str] = {}  # what is no tool → digest last recorded by any edge
        self.definitions: dict[tuple[str, str], str] = {}  # (server, tool) → digest last recorded by any edge

    async def run(self) -> None:
        """Until cancelled; a log that went away is awaited."""
        while True:
            try:
                await self._follow()
            except LogUnavailable as fault:
                _log.warning("log: %s", fault.sentence)
                await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Until the log goes away, or must be read from its start again."""
        subscription = await self._log.follow(LOCAL_TOPICS if self._edge.settings.is_local else TOPICS)
        self._behind = True
        self.releases.follow()
        try:
            while True:
                for record in await subscription.poll(BATCH_MAX, 0.5):
                    await self._apply(record)
                if self._edge.holding.is_stirred and not self._behind:
                    self._hold_again()
                if self._behind and subscription.caught_up:
                    if self.releases.must_read_again():
                        return
                    await self._catch_up()
        finally:
            await subscription.close()

    async def _catch_up(self) -> None:
        self._behind = False
        self._hold_again()
        await self.releases.catch_up()
        self._edge.approvals.is_current = True
        self.caught_up.set()

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
        self._edge.holding.apply(event)
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
        tenant, _, quarantine_id = record.key.decode(errors="replace").partition("|")
        if approval_id := approval_in(record.key):
            self._edge.approvals.restore(tenant, approval_id, record.value)
            return
        quarantines = self._edge.quarantines_of(tenant)
        if record.value is None:
            quarantines.drop(quarantine_id)
            return
        try:
            event = open_event(record.value)
        except msgspec.DecodeError as error:
            _log.error("a quarantine cannot be read: %s", error)
            return
        if isinstance(event, QuarantineImposed):
            quarantines.apply(event)

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
