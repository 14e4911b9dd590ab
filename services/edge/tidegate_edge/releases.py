"""The releases of each tenant's ring on this edge: from records of `policy-state` to what decides.

Counterparts: `watch.py` brings the records, `tidegate/policy/release.py` folds them, `preparing.py` makes bundles
ready, `rings.py` chooses. A release has its role once its bundle is ready; a broken one leaves what was, and says so as
an event. Bundles are made ready one after another beside the log's other records: a quarantine does not wait for them.
"""

import asyncio
import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tidegate.claims import Principal
from tidegate.errors import BundleFault, Fault, LogUnavailable
from tidegate.events import BundleActivated, BundleRejected, Role
from tidegate.ids import now_us
from tidegate.log.port import Delivered
from tidegate.policy.argument_types import INPUT_SCHEMA, Document
from tidegate.policy.engine import ToolFacts
from tidegate.policy.release import ROLES, Activation, PolicyState, Rejection, Withdrawal, pointer_key
from tidegate.policy.signing import Guard, Release, Trust
from tidegate.policy.staging import is_here
from tidegate_edge.announcements import Announcement, ChangeKind
from tidegate_edge.catalog import Catalog, Item
from tidegate_edge.edge import Edge
from tidegate_edge.kept import keep, kept_release
from tidegate_edge.observing import LOOK_S, Make, Observer, Watched
from tidegate_edge.preparing import Prepared, prepared
from tidegate_edge.retiring import Retired
from tidegate_edge.rings import Rings
from tidegate_edge.ruling import Ruling
from tidegate_edge.tallies import Shadow, Tally

ADVANCE_S: Final = 1.0
COMPARING_S: Final = 1.0  # so long what is held may stay as it was
WAITING_MAX: Final = 64  # outcomes that wait for their turn; past it the log is read no further
READY_PER_TENANT: Final = 4  # bundles that are kept ready: those with a role, and one to roll back to

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """What has a role, over the catalogue as it stands."""

    release: Release
    prepared: Prepared
    ruling: Ruling  # of a shadow: what it would be if it ruled

    @property
    def tally(self) -> Tally:
        return self.ruling.tally


class Releases:
    """Folds releases into the edge's rings."""

    def __init__(self, edge: Edge, trust: Trust, tenants: Iterable[str]) -> None:
        self._edge = edge
        self._ring = edge.settings.edge.ring
        self._kept = edge.settings.data_dir / "releases"
        self._states = {tenant: PolicyState(tenant, self._ring, trust) for tenant in tenants}
        self._running: dict[str, dict[Role, Running]] = {tenant: {} for tenant in self._states}
        self._superseded: dict[str, Running | None] = {}  # what ruled before a release that a guard watches
        self._ready: OrderedDict[str, Prepared] = OrderedDict()  # by digest
        self._retired = Retired()
        self._catalog = Catalog()
        self._facts: list[ToolFacts] = []
        self._server_labels: dict[str, tuple[str, ...]] = {}
        self._waiting: asyncio.Queue[tuple[str, Activation | Withdrawal | Rejection]] = asyncio.Queue(WAITING_MAX)
        self._behind = True  # reading what was in the log before this subscription
        self._last_rejected: dict[tuple[str, Role], Rejection] = {}  # while behind
        self._read_again: set[tuple[str, Role, int]] = set()  # releases whose bytes were looked for again
        self._observer = Observer(edge, self._tell)

    async def restore(self) -> None:
        """Begin with what had its role last, from this edge's disk."""
        for tenant, state in self._states.items():
            for role in ROLES:
                kept = kept_release(self._kept, tenant, role)
                outcome = state.restore(*kept, now_us(), role) if kept else None
                if isinstance(outcome, Rejection):
                    _log.warning("the %s release kept on disk is not used: %s", role, outcome.sentence)
                elif outcome is not None:
                    await self._settle(tenant, outcome)

    def follow(self) -> None:
        """From now on the log is read from its start."""
        self._behind = True
        self._last_rejected.clear()

    async def apply(self, record: Delivered) -> None:
        """One record of `policy-state`."""
        tenant = record.key.split(b"|", 1)[0].decode(errors="replace")
        state = self._states.get(tenant)
        if state is None:
            return  # a tenant that no issuer of ours names
        outcome = state.apply(record, now_us())
        if self._behind and outcome is None:
            self._passed(tenant, record.key)
        while outcome is not None:
            await self._take(tenant, outcome)
            outcome = state.advance(now_us())

    def _passed(self, tenant: str, key: bytes) -> None:
        """A release that is as it should be follows the refused ones."""
        for role in ROLES:
            if key == pointer_key(tenant, self._ring, role):
                self._last_rejected.pop((tenant, role), None)

    async def _take(self, tenant: str, outcome: Activation | Withdrawal | Rejection) -> None:
        if self._behind and isinstance(outcome, Rejection):
            self._last_rejected[tenant, outcome.role] = outcome
            return
        if not isinstance(outcome, Rejection):
            self._last_rejected.pop((tenant, outcome.release.role), None)
        await self._waiting.put((tenant, outcome))

    def must_read_again(self) -> bool:
        """At the log's end: whether a release lacks bytes that the log may hold nearer to its start. Once for each."""
        missing = {(tenant, *one) for tenant, state in self._states.items() for one in state.incomplete}
        fresh = missing - self._read_again
        self._read_again = missing
        return bool(fresh)

    async def catch_up(self) -> None:
        """What the log holds from before is history: of its refused releases only those that stand are reported.
        Returns once all that was there has its role.
        """
        self._behind = False
        for (tenant, _), rejection in self._last_rejected.items():
            await self._waiting.put((tenant, rejection))
        await self._waiting.join()

    async def run(self) -> None:
        """Give what waits its role, one after another. Until cancelled."""
        while True:
            tenant, outcome = await self._waiting.get()
            await self._settle(tenant, outcome, keeps=True)
            self._waiting.task_done()

    async def advance(self) -> None:
        """Take up what was held back until its time (`not_before`), and let go of what has ruled. Until cancelled."""
        while True:
            await asyncio.sleep(ADVANCE_S)
            await self._retired.sweep()
            for tenant, state in self._states.items():
                while state.awaited and (outcome := state.advance(now_us())) is not None:
                    await self._take(tenant, outcome)

    async def observe(self) -> None:
        """Tell the log what releases decide. Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for tenant in self._running:
                await self._observer.look(tenant, self._watched(tenant))

    async def _settle(self, tenant: str, outcome: Activation | Withdrawal | Rejection, *, keeps: bool = False) -> None:
        if isinstance(outcome, Rejection):
            await self._reject(tenant, outcome)
            return
        before = self._running[tenant].get("ruling")
        if isinstance(outcome, Activation) and not await self._activate(tenant, outcome):
            return
        if isinstance(outcome, Withdrawal):
            self._end(tenant, outcome.release.role)
        release = outcome.release
        if keeps:  # at once: an edge that is killed now begins with it
            canonical = outcome.canonical if isinstance(outcome, Activation) else b""
            await self._keep(tenant, release.role, outcome.signed, canonical)
        _log.info(
            "release %d of tenant %s: %s is bundle %s",
            release.number,
            tenant,
            release.role,
            release.digest[:12] or "none any more",
        )
        await self._tell(
            tenant,
            lambda common: BundleActivated(
                **common,
                edge=self._edge.place.edge,
                ring=release.ring,
                number=release.number,
                digest=release.digest,
                role=release.role,
            ),
        )
        await self._mark(tenant, release, before)

    async def _keep(self, tenant: str, role: Role, signed: bytes, canonical: bytes) -> None:
        try:
            await asyncio.to_thread(keep, self._kept, tenant, role, signed, canonical)
        except OSError as error:  # it decides all the same, and the log has the release for the next start
            _log.error("the %s release could not be kept on disk: %s", role, error)

    async def _activate(self, tenant: str, activation: Activation) -> bool:
        """Swap what the tenant's ring is. False where no engine can be made of the bundle: all stays as it was."""
        release = activation.release
        try:
            ready = await self._prepared(activation)
            ruling = self._made(ready, release)
        except Exception as error:  # whatever is wrong with a bundle, the edge goes on with what it has
            if rejection := self._rejected(tenant, activation, error):
                await self._reject(tenant, rejection)
            return False
        self._swap(tenant, {**self._running[tenant], release.role: Running(release, ready, ruling)})
        return True

    def _rejected(self, tenant: str, activation: Activation, error: Exception) -> Rejection | None:
        """What to say of a bundle that cannot be made ready; None where it was said before."""
        release = activation.release
        if isinstance(error, BundleFault) and error.code == "digest-mismatch":
            return self._states[tenant].doubt(activation)
        reason = error.code if isinstance(error, Fault) else "bundle-unusable"
        return Rejection(reason, str(error), tenant, release.ring, release.number, release.digest, release.role)

    def _end(self, tenant: str, role: Role) -> None:
        self._swap(tenant, {other: one for other, one in self._running[tenant].items() if other != role})

    async def _prepared(self, activation: Activation) -> Prepared:
        """Made in a thread, where it is not at hand: promoted, rolled back, or restored and read again."""
        digest = activation.release.digest
        ready = self._ready.get(digest)
        if ready is None:
            ready = await asyncio.to_thread(lambda: prepared(activation.bundle))
        self._ready[digest] = ready
        self._ready.move_to_end(digest)
        while len(self._ready) > READY_PER_TENANT * len(self._states):
            self._retired.add(self._ready.popitem(last=False)[1].engine)
        return ready

    def _made(self, ready: Prepared, release: Release) -> Ruling:
        """The bundle over the catalogue as it stands."""
        engine = ready.engine.with_tools(self._facts, self._server_labels)
        slow_us = (release.guard or Guard()).slow_us
        number, digest = release.number, release.digest
        own = (Shadow(engine.unshadowed(), digest, number, Tally(now_us())),) if engine.shadowing else ()
        return Ruling(
            engine,
            ready.scanner,
            self._catalog,
            number=number,
            digest=digest,
            role=release.role,
            shadows=own,
            tally=Tally(now_us(), slow_us),
            held=self._held(ready, release),
            budgeting=ready.budgeting,
        )

    def _swap(self, tenant: str, running: dict[Role, Running]) -> None:
        """Whole: what decides, for whom, and what is evaluated beside it."""
        edge, place = self._edge, self._edge.settings
        shadow = running.get("shadow")
        running = {role: one if role == "shadow" else _beside(one, shadow) for role, one in running.items()}
        superseded = self._superseded_by(tenant, running.get("ruling"))
        used = {id(one.ruling.engine) for one in (*running.values(), superseded) if one}
        for one in (*self._running[tenant].values(), self._superseded.get(tenant)):
            if one and id(one.ruling.engine) not in used:
                self._retired.add(one.ruling)
        self._running[tenant], self._superseded[tenant] = running, superseded
        before = edge.rings.get(tenant) or Rings(None)
        ruling, canary = running.get("ruling"), running.get("canary")
        if ruling is not None:
            ruling.ruling.compared_with = superseded.ruling if superseded else None
        if canary is not None:
            canary.ruling.compared_with = ruling.ruling if ruling else None
        stage = canary.release.stage if canary else None
        here = canary is not None and is_here(stage, place.region, place.edge.labels)
        after = Rings(ruling.ruling if ruling else None, canary.ruling if canary and here else None, stage)
        edge.rings[tenant] = after
        if ruling is not None:
            edge.rulings[tenant] = ruling.ruling
        if before.ruling is not None and before.digests != after.digests:
            self._tell_clients(tenant, lambda principal: not before.decides_as(after, principal))

    def _superseded_by(self, tenant: str, ruling: Running | None) -> Running | None:
        """What a guard compares the ruling release with, while it does."""
        if ruling is None or not _is_watched(ruling):
            return None
        before = self._running[tenant].get("ruling")
        if before is None or before.release.number == ruling.release.number:
            return self._superseded.get(tenant)
        before.ruling.compared_with = None
        return before

    def _tell_clients(self, tenant: str, touches: Callable[[Principal], bool]) -> None:
        """Other rules may show other lists."""
        kinds: tuple[ChangeKind, ...] = ("tools", "prompts", "resources")
        for server in self._catalog.shelves:
            for kind in kinds:
                self._edge.announcements.tell(Announcement(tenant, server, kind, touches=touches))

    def catalog_changed(self, catalog: Catalog, server_labels: dict[str, tuple[str, ...]]) -> None:
        """The same bundles over another catalogue, swapped whole."""
        self._catalog, self._server_labels, self._facts = catalog, server_labels, facts_of(catalog)
        for tenant, running in self._running.items():
            self._swap(tenant, {role: self._over_catalog(one) for role, one in running.items()})

    async def hold_again(self) -> None:
        """What is trusted has changed, or who approved it: the same rulings, with the tools that are held now.
        Definitions are compared in a thread; those that take longer than COMPARING_S count as the gravest until then.
        """
        holding = self._edge.holding
        holding.is_stirred = False
        if waiting := holding.uncompared(self._catalog):
            comparing = asyncio.create_task(asyncio.to_thread(holding.compare, waiting))
            if not (await asyncio.wait({comparing}, timeout=COMPARING_S))[0]:
                self._hold()
            await comparing
            holding.is_stirred = False
        self._hold()

    def _hold(self) -> None:
        for tenant, running in self._running.items():
            fresh = {role: self._holding(one) for role, one in running.items()}
            changed = {
                server
                for role, one in running.items()
                for server, _ in one.ruling.held.keys() ^ fresh[role].ruling.held.keys()
            }
            if any(fresh[role] is not one for role, one in running.items()):
                self._swap(tenant, fresh)
            for server in sorted(changed):
                self._edge.announcements.tell(Announcement(tenant, server, "tools"))

    def _holding(self, running: Running) -> Running:
        held = self._held(running.prepared, running.release)
        return running if held == running.ruling.held else replace(running, ruling=running.ruling.holding(held))

    def _held(self, ready: Prepared, release: Release) -> Mapping[tuple[str, str], str]:
        tells = release.role != "shadow"
        return self._edge.holding.held(release.tenant, ready.definitions, self._catalog, tells=tells)

    def _over_catalog(self, running: Running) -> Running:
        made = self._made(running.prepared, running.release)
        made.tally = running.tally
        return replace(running, ruling=made)

    def _watched(self, tenant: str) -> list[Watched]:
        """Whose decisions are told: what a guard watches, what rules beside a guarded canary, and shadows."""
        running, rings = self._running[tenant], self._edge.rings.get(tenant)
        listed = []
        ruling, canary, shadow = running.get("ruling"), running.get("canary"), running.get("shadow")
        beside = False
        if canary is not None and rings is not None and rings.canary is not None:
            beside = canary.release.guard is not None
            listed.append(Watched(canary.release, canary.tally, beside))
        if ruling is not None and (beside or _is_watched(ruling)):
            listed.append(Watched(ruling.release, ruling.tally, closely=True))
        if shadow is not None:
            listed.append(Watched(shadow.release, shadow.tally, closely=False))
        return listed

    async def _mark(self, tenant: str, release: Release, before: Running | None) -> None:
        """What a release that a guard watches will be compared with, as it stands when that begins."""
        listed = {one.release.role: one for one in self._watched(tenant)}
        if release.digest and release.role != "shadow" and _is_guarded(listed.get("canary")) and "ruling" in listed:
            listed["ruling"].tally.compare_from(now_us())
            await self._observer.say(tenant, listed["ruling"])
        if release.role == "ruling" and release.guard is not None and before is not None:
            await self._observer.say(tenant, Watched(before.release, before.tally, closely=True))

    async def _reject(self, tenant: str, rejection: Rejection) -> None:
        _log.error("release %d (%s) is refused: %s", rejection.number, rejection.role, rejection.sentence)
        await self._tell(
            tenant,
            lambda common: BundleRejected(
                **common,
                edge=self._edge.place.edge,
                ring=rejection.ring,
                number=rejection.number,
                digest=rejection.digest,
                reason=f"{rejection.reason}: {rejection.sentence}",
                role=rejection.role,
            ),
        )

    async def _tell(self, tenant: str, make: Make) -> None:
        try:
            await self._edge.recorder.record(make(self._edge.place.stamp(tenant)), "spool")
        except LogUnavailable as fault:
            _log.error("could not record what a release does: %s", fault.sentence)


def _is_guarded(watched: Watched | None) -> bool:
    return watched is not None and watched.closely


def _is_watched(ruling: Running) -> bool:
    guard = ruling.release.guard
    return guard is not None and now_us() - ruling.tally.since_us < guard.watch_s * 1e6


def _beside(running: Running, shadow: Running | None) -> Running:
    """The same with this shadow release evaluated beside it. Decisions and lists that are kept stay."""
    own = tuple(one for one in running.ruling.shadows if one.number == running.release.number)
    other = shadow and Shadow(shadow.ruling.engine, shadow.release.digest, shadow.release.number, shadow.tally)
    wanted = (*own, other) if other else own
    if [one.engine for one in wanted] == [one.engine for one in running.ruling.shadows]:
        return running
    ruling = copy.copy(running.ruling)
    ruling.shadows = wanted
    return replace(running, ruling=ruling)


def facts_of(catalog: Catalog) -> list[ToolFacts]:
    """One per tool; of each server one for all its prompts, for all its resources, and for all that it asks."""
    items = list(catalog.tools)
    for shelf in catalog.shelves.values():
        items += [shelf.any_prompt] if shelf.prompting else []
        items += [shelf.any_resource] if shelf.readable else []
        items.append(shelf.any_question)
    return [ToolFacts(item.server, item.action, item.labels, _takes(item)) for item in items]


def _takes(item: Item) -> Document | None:
    schema = item.fields.get(INPUT_SCHEMA) if item.kind == "tool" else None
    return None if schema is None else Document.of_json(schema)
