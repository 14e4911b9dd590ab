"""Which definitions of tools are trusted, as the rules of a ring judge them, and approving what servers offer now.

Counterparts: `tidegate/policy/trusting.py` folds and judges, as the edges do; `catalogue_api.py` shows. An approval is
an event of the history `catalog`, which every edge folds.
"""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from tidegate.events import ToolApproved
from tidegate.ids import uuid7
from tidegate.policy.definition_rules import DEFINITIONS, NO_RULES, DefinitionRules, load_definition_rules
from tidegate.policy.trusting import Judge, Judgement, Known
from tidegate_policy.journal import Journal
from tidegate_policy.problems import ApiFault
from tidegate_policy.publish import Publisher, check_ring
from tidegate_policy.state import ControlPlane

ALL: Final = "*"
RULES_KEPT_MAX: Final = 16
DIGEST_CHARS_MIN: Final = 8  # of a digest that is given in part
_NONE: Final = b"null"


@dataclass(frozen=True)
class Shown:
    """A tool that is offered now: what is known of it, and what its ring's rules say to it."""

    known: Known
    judgement: Judgement


class Curator:
    """Judges what is offered, and writes approvals."""

    def __init__(
        self, state: ControlPlane, journal: Journal, publisher: Publisher, region: str, clock: Callable[[], int]
    ) -> None:
        self._state = state
        self._journal = journal
        self._publisher = publisher
        self._region = region
        self._clock = clock
        self._judge = Judge(threading.Lock())
        self._rules: OrderedDict[str, DefinitionRules] = OrderedDict()  # by the bundle's digest

    async def offered(self, ring: str, server: str = "") -> list[Shown]:
        """Every tool that is offered now, of one server or of all, by server and name."""
        rules = await self._rules_of(ring)
        offered = [known for known in self._state.trust.all(server) if known.current]
        return await asyncio.to_thread(lambda: [self._shown(known, rules) for known in offered])

    async def tool(self, ring: str, server: str, tool: str) -> Shown:
        """One that is offered now. Raises ApiFault where there is none."""
        known = self._offered(server, tool)
        rules = await self._rules_of(ring)
        return await asyncio.to_thread(self._shown, known, rules)

    async def approve(self, server: str, tool: str, digest: str, reason: str, actor: str) -> list[ToolApproved]:
        """Trust what is offered now: one tool, or ALL of a server. `digest`, where it is given, is of what was looked
        at: the tool's, or the server's. Raises ApiFault where that is not offered any more.
        """
        async with self._journal.turn:
            chosen = self._chosen(server) if tool == ALL else [self._offered(server, tool)]
            now = digest_of(chosen) if tool == ALL else chosen[0].current
            if digest and (len(digest) < DIGEST_CHARS_MIN or not now.startswith(digest)):
                raise ApiFault(
                    409,
                    "definition-changed",
                    f"what {server}{'' if tool == ALL else f'/{tool}'} offers now is {now[:12]}, not {digest[:12]}: "
                    "look at it again before you approve it",
                )
            events = [self._event(known, reason, actor) for known in chosen if known.approved != known.current]
            if events:
                await self._journal.append(lambda chain: [chain.seal(event) for event in events])
        return events

    def _event(self, known: Known, reason: str, actor: str) -> ToolApproved:
        now_us = self._clock()
        return ToolApproved(
            id=uuid7(now_us),
            time_us=now_us,
            tenant=self._state.tenant,
            region=self._region,
            server=known.server,
            tool=known.tool,
            digest=known.current,
            actor=actor,
            reason=reason,
        )

    def _chosen(self, server: str) -> list[Known]:
        found = [known for known in self._state.trust.all(server) if known.current]
        if not server or not found:
            raise ApiFault(
                404, "server-unknown", f"no server '{server}' offers tools; `tidegate catalog list` shows all"
            )
        return found

    def _offered(self, server: str, tool: str) -> Known:
        known = self._state.trust.of(server, tool)
        if known is None or not known.current:
            raise ApiFault(
                404, "tool-unknown", f"no server offers '{server}/{tool}' now; `tidegate catalog list` shows what is"
            )
        return known

    def _shown(self, known: Known, rules: DefinitionRules) -> Shown:
        judgement = self._judge.judge(
            rules.of(known.server),
            known,
            known.server,
            known.tool,
            known.current,
            lambda: known.definitions.get(known.current, _NONE),
        )
        return Shown(known, judgement)

    async def _rules_of(self, ring: str) -> DefinitionRules:
        """Those of the bundle that rules the ring; the lax ones where none does."""
        check_ring(ring)
        current = self._publisher.current(ring)
        if current is None or not current.digest:
            return NO_RULES
        found = self._rules.get(current.digest)
        if found is None:
            bundle = await self._publisher.bundle(current.digest)
            found = self._rules[current.digest] = load_definition_rules(bundle.files.get(DEFINITIONS))
            while len(self._rules) > RULES_KEPT_MAX:
                self._rules.popitem(last=False)
        return found


def digest_of(offered: Iterable[Known]) -> str:
    """Of all that a server offers now."""
    pairs = sorted((known.tool, known.current) for known in offered)
    return hashlib.sha256(msgspec.json.encode(pairs)).hexdigest()
