"""Which tools are held back at this edge because of their definitions, and telling the log of it, once over all edges.

Counterparts: `watch.py` brings the history `catalog`, `discovery.py` shows what servers offer before it is recorded,
`releases.py` asks for what a bundle holds; `tidegate/policy/trusting.py` judges. An edge that cannot ask who tells
tells itself: rather twice than never.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from tidegate.errors import Fault, LogUnavailable
from tidegate.events import AnyEvent, ToolHeld
from tidegate.ids import now_us
from tidegate.policy.definition_rules import LAX, DefinitionRules, Rules
from tidegate.policy.trusting import Judge, Judgement, Trusting
from tidegate_edge.catalog import Catalog, Item, Shelf
from tidegate_edge.messages import encode

if TYPE_CHECKING:
    from tidegate_edge.edge import Edge

UNTOLD_MAX: Final = 10_000
LEASE_S: Final = 30.0  # so long another edge may take to tell
ACTIONS: Final = ("hold", "alert")

_log = logging.getLogger(__name__)
Target = tuple[str, str]
"""Server and action."""


class Holding:
    """Of one edge. The catalogue is that of `tenant`; each tenant's bundles judge it by their own rules."""

    def __init__(self, tenant: str) -> None:
        self.trust = Trusting(tenant)
        self.is_stirred = False  # something may be held, or not be held any more, since this was set to False
        self._judge = Judge(threading.Lock(), brief=True)
        self._later: dict[tuple[str, str], bool] = {}  # seen here, and not in the log's history yet
        self._untold: OrderedDict[tuple[str, str, str, str, str], tuple[str, Judgement]] = OrderedDict()
        self._some = asyncio.Event()

    def apply(self, event: AnyEvent) -> bool:
        """One event of the history. Whether it changed what is trusted, or offered."""
        changed = self.trust.apply(event)
        if changed is not None:
            self._later.pop(changed, None)
            self.is_stirred = True
        return changed is not None

    def look(self, shelf: Shelf) -> None:
        """See what a server offers, before it is recorded; comparing takes its time, so this is for a thread."""
        at_us = now_us()
        for key in [key for key in list(self._later) if key[0] == shelf.server]:
            if not any(item.name == key[1] for item in shelf.tools):
                self._later.pop(key, None)
        for item in shelf.tools:
            if self.trust.of(item.server, item.name) is None:
                self._later.setdefault((item.server, item.name), self.trust.is_later(item.server, at_us))
            self._judged(item, LAX)
            time.sleep(0)  # lets calls go on: a comparison holds the interpreter

    def uncompared(self, catalog: Catalog) -> list[Item]:
        """What was not compared yet with what is trusted now."""
        return [item for item in catalog.tools if self._judged(item, LAX, compares=False).pending]

    def compare(self, items: Iterable[Item]) -> None:
        """So that `held` knows; for a thread."""
        for item in items:
            self._judged(item, LAX)
            time.sleep(0)  # lets calls go on

    def held(self, tenant: str, rules: DefinitionRules, catalog: Catalog, *, tells: bool) -> Mapping[Target, str]:
        """Why which tools are held. `tells`: the log is told of what is held and what alerts. Compares nothing: what
        was not compared yet counts as the gravest, is not told, and is looked at again (`is_stirred`).
        """
        found: dict[Target, str] = {}
        for item in catalog.tools:
            judgement = self._judged(item, rules.of(item.server), compares=False)
            if judgement.action == "hold":
                found[item.server, item.action] = judgement.sentence
            if judgement.pending:
                self.is_stirred = True
            elif tells and judgement.action in ACTIONS:
                self._note(tenant, judgement)
        return found

    async def run(self, edge: "Edge") -> None:
        """Tell the log. Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LEASE_S if self._untold else None):
                    await self._some.wait()
            except TimeoutError:
                pass
            self._some.clear()
            for key, (tenant, judgement) in list(self._untold.items()):
                if self.trust.is_told(tenant, judgement) or await self._tell(edge, tenant, judgement):
                    self._untold.pop(key, None)

    def _judged(self, item: Item, rules: Rules, *, compares: bool = True) -> Judgement:
        known = self.trust.of(item.server, item.name)
        later = self._later.get((item.server, item.name), False)
        stranger = known is None and self.trust.is_full(item.server)
        now = lambda: encode(item.fields)  # noqa: E731 - most definitions are known, and not asked for
        one = (item.server, item.name, item.digest, now)
        return self._judge.judge(rules, known, *one, later=later, stranger=stranger, compares=compares)

    def _note(self, tenant: str, judgement: Judgement) -> None:
        key = (tenant, judgement.server, judgement.tool, judgement.digest, judgement.action)
        if key in self._untold or self.trust.is_told(tenant, judgement):
            return
        self._untold[key] = (tenant, judgement)
        while len(self._untold) > UNTOLD_MAX:
            self._untold.popitem(last=False)
        self._some.set()

    async def _tell(self, edge: "Edge", tenant: str, judgement: Judgement) -> bool:
        """False: another edge tells, or it cannot be told now."""
        if not await _is_ours(edge, tenant, judgement):
            return False
        assert judgement.action != "allow"
        event = ToolHeld(
            **edge.place.stamp(tenant),
            server=judgement.server,
            tool=judgement.tool,
            digest=judgement.digest,
            trusted=judgement.trusted,
            action=judgement.action,
            rank=judgement.rank or "new",
            changes=judgement.sentences,
            edge=edge.place.edge,
        )
        try:
            await edge.recorder.record_all([event])
        except LogUnavailable as fault:
            _log.error("could not record what is held: %s", fault.sentence)
            return False
        self.trust.apply(event)
        _log.warning("%s", judgement.sentence)
        return True


async def _is_ours(edge: "Edge", tenant: str, judgement: Judgement) -> bool:
    """Whether this edge is the one to tell, for a while."""
    said = (judgement.server, judgement.tool, judgement.digest, judgement.action)
    name = f"{tenant}|told|{hashlib.sha256(encode(said)).hexdigest()}"
    try:
        return await edge.sessions.take(name, edge.sessions.address, LEASE_S) == edge.sessions.address
    except Fault:
        return True
