"""What the log tells the edge: releases and bundles, quarantines, erasures, and the definitions seen before. One
subscription, folded for ever.

A release rules once its engine is built; a broken one leaves the old one ruling, and says so as an event. The last good
bundle is kept on disk, so that an edge decides before the log has answered.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from tidegate.chain import open_event
from tidegate.errors import Fault, LogUnavailable
from tidegate.events import (
    AnyEvent,
    BundleActivated,
    BundleRejected,
    OfferDefined,
    OfferWithdrawn,
    QuarantineImposed,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.ids import now_us
from tidegate.inspection.rules import load_inspection
from tidegate.inspection.scanner import Scanner
from tidegate.log.port import Delivered, EventLog
from tidegate.policy.bundle import INSPECTION, Bundle
from tidegate.policy.engine import Engine, ToolFacts
from tidegate.policy.release import Activation, PolicyState, Rejection, pointer_key
from tidegate.policy.signing import Trust
from tidegate.privacy.erasure import is_erasure, read_erasure
from tidegate_edge.announcements import Announcement, ChangeKind
from tidegate_edge.catalog import Catalog
from tidegate_edge.edge import Edge
from tidegate_edge.kept import keep, kept_release
from tidegate_edge.offers import Key
from tidegate_edge.ruling import Ruling

TOPICS: Final = ("policy-state", "control-state", "catalog")
RETRY_S: Final = 1.0
ADVANCE_S: Final = 1.0
BATCH_MAX: Final = 1_000

_log = logging.getLogger(__name__)


class Watch:
    """Folds the log into the edge's rulings and quarantines."""

    def __init__(self, edge: Edge, log: EventLog, trust: Trust, tenants: Iterable[str]) -> None:
        self._edge = edge
        self._log = log
        self._kept = edge.settings.data_dir / "releases"
        self._states = {tenant: PolicyState(tenant, edge.settings.edge.ring, trust) for tenant in tenants}
        self._server_labels: dict[str, tuple[str, ...]] = {}
        self._catalog = Catalog()
        self._activating = asyncio.Lock()
        self._behind = True  # reading what was in the log before this subscription
        self._last_rejected: dict[str, Rejection] = {}  # by tenant, while behind
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
        subscription = await self._log.follow(TOPICS)
        self._behind = True
        self._last_rejected.clear()
        try:
            while True:
                for record in await subscription.poll(BATCH_MAX, 0.5):
                    await self._apply(record)
                if self._behind and subscription.caught_up:
                    await self._catch_up()
        finally:
            await subscription.close()

    async def _catch_up(self) -> None:
        """What the log holds from before is history: of its refused releases only the one that stands is reported."""
        self._behind = False
        for tenant, rejection in self._last_rejected.items():
            await self._reject(tenant, rejection)
        self.caught_up.set()

    async def _apply(self, record: Delivered) -> None:
        if record.topic == "policy-state":
            await self._apply_policy(record)
        elif record.topic == "control-state" and is_erasure(record.key):
            await self._apply_erasure(record)
        elif record.topic == "control-state":
            self._apply_control(record)
        elif record.value is not None:
            self._apply_catalog(record.value)

    def _apply_catalog(self, value: bytes) -> None:
        try:
            event = open_event(value)
        except msgspec.DecodeError:
            return  # a newer edge's fact: not ours to judge
        if event.tenant != self._edge.settings.tenant:
            return
        if isinstance(event, ToolDefined):
            self.definitions[event.server, event.tool] = event.digest
        elif isinstance(event, ToolWithdrawn):
            self.definitions.pop((event.server, event.tool), None)
        elif isinstance(event, OfferDefined):
            self.offers[event.server, event.kind, event.target] = event.digest
        elif isinstance(event, OfferWithdrawn):
            self.offers.pop((event.server, event.kind, event.target), None)

    def _apply_control(self, record: Delivered) -> None:
        tenant, _, quarantine_id = record.key.decode(errors="replace").partition("|")
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

    async def _apply_policy(self, record: Delivered) -> None:
        tenant = record.key.split(b"|", 1)[0].decode(errors="replace")
        state = self._states.get(tenant)
        if state is None:
            return  # a tenant that no issuer of ours names
        outcome = state.apply(record, now_us())
        if self._behind and isinstance(outcome, Rejection):
            self._last_rejected[tenant] = outcome
        elif isinstance(outcome, Rejection):
            await self._reject(tenant, outcome)
        elif self._behind and record.key == pointer_key(tenant, self._edge.settings.edge.ring):
            self._last_rejected.pop(tenant, None)
        if isinstance(outcome, Activation) and await self._activate(tenant, outcome):
            keep(self._kept, tenant, outcome)

    async def restore(self) -> None:
        """Begin with what ruled last, from this edge's disk."""
        for tenant, state in self._states.items():
            kept = kept_release(self._kept, tenant)
            outcome = state.restore(*kept, now_us()) if kept else None
            if isinstance(outcome, Activation):
                await self._activate(tenant, outcome)
            elif isinstance(outcome, Rejection):
                _log.warning("the bundle kept on disk is not used: %s", outcome.sentence)

    async def advance(self) -> None:
        """Activate what was held back until its time (`not_before`). Runs until cancelled."""
        while True:
            await asyncio.sleep(ADVANCE_S)
            for tenant, state in self._states.items():
                outcome = state.advance(now_us()) if state.awaited else None
                if isinstance(outcome, Activation) and await self._activate(tenant, outcome):
                    keep(self._kept, tenant, outcome)

    async def _activate(self, tenant: str, activation: Activation) -> bool:
        """Swap the tenant's ruling whole. False where no engine can be made of the bundle: the old one rules on."""
        release = activation.release
        async with self._activating:
            try:
                await self._rule(tenant, activation.bundle, release.number)
            except Exception as error:  # whatever is wrong with a bundle, the edge goes on with the old one
                reason = error.code if isinstance(error, Fault) else "bundle-unusable"
                await self._reject(
                    tenant, Rejection(reason, str(error), tenant, release.ring, release.number, release.digest)
                )
                return False
        _log.info("release %d rules tenant %s (bundle %.12s)", release.number, tenant, release.digest)
        await self._tell(
            tenant,
            lambda common: BundleActivated(
                **common, edge=self._edge.place.edge, ring=release.ring, number=release.number, digest=release.digest
            ),
        )
        return True

    async def _reject(self, tenant: str, rejection: Rejection) -> None:
        _log.error("release %d is refused: %s", rejection.number, rejection.sentence)
        await self._tell(
            tenant,
            lambda common: BundleRejected(
                **common,
                edge=self._edge.place.edge,
                ring=rejection.ring,
                number=rejection.number,
                digest=rejection.digest,
                reason=f"{rejection.reason}: {rejection.sentence}",
            ),
        )

    async def _tell(self, tenant: str, make: Callable[[dict[str, Any]], AnyEvent]) -> None:
        try:
            await self._edge.recorder.record(make(self._edge.place.stamp(tenant)), "spool")
        except LogUnavailable as fault:
            _log.error("could not record an activation: %s", fault.sentence)

    async def _rule(self, tenant: str, bundle: Bundle, number: int) -> None:
        """Let the bundle rule over the catalogue as it stands. Parsed and compiled in a thread: calls go on."""
        engine, scanner = await asyncio.to_thread(_prepared, bundle)
        engine = engine.with_tools(facts_of(self._catalog), self._server_labels)
        before = self._edge.rulings.get(tenant)
        self._edge.rulings[tenant] = Ruling(engine, scanner, self._catalog, number=number, digest=bundle.digest)
        if before is not None and before.digest != bundle.digest:
            self._tell_clients(tenant)

    def _tell_clients(self, tenant: str) -> None:
        """Other rules may show other lists."""
        kinds: tuple[ChangeKind, ...] = ("tools", "prompts", "resources")
        for server in self._catalog.shelves:
            for kind in kinds:
                self._edge.announcements.tell(Announcement(tenant, server, kind))

    def catalog_changed(self, catalog: Catalog, server_labels: dict[str, tuple[str, ...]]) -> None:
        """The same bundles over another catalogue, swapped whole."""
        self._catalog, self._server_labels = catalog, server_labels
        for tenant, ruling in self._edge.rulings.items():
            engine = ruling.engine.with_tools(facts_of(catalog), server_labels)
            self._edge.rulings[tenant] = Ruling(
                engine, ruling.scanner, catalog, number=ruling.number, digest=ruling.digest
            )


def _prepared(bundle: Bundle) -> tuple[Engine, Scanner]:
    engine = Engine.build(bundle, (), {})
    return engine, Scanner(load_inspection(bundle.files.get(INSPECTION, b"")))


def facts_of(catalog: Catalog) -> list[ToolFacts]:
    """One per tool; one for all prompts of a server, and one for all its resources."""
    items = list(catalog.tools)
    for shelf in catalog.shelves.values():
        items += [shelf.any_prompt] if shelf.prompting else []
        items += [shelf.any_resource] if shelf.readable else []
    return [ToolFacts(item.server, item.action, item.labels) for item in items]
