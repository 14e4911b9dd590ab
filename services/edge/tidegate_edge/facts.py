"""gather: the circumstances of a call that rules look at, before they are asked. Most calls have none, and pay nothing.

What a session has read is known on this edge in the common case and asked of the session store in the other; where
the store cannot say, the call is refused, for a rule over what nobody knows must not let it pass. Counterparts:
`tainting.py` writes what is read here, `addresses.py` finds the caller's address.
"""

import msgspec

from tidegate.ids import now_us
from tidegate.policy.facts import NO_FACTS, Facts
from tidegate.policy.verdict import Verdict
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge import targets
from tidegate_edge.calls import Ongoing
from tidegate_edge.catalog import Item
from tidegate_edge.edge import Edge
from tidegate_edge.ruling import Ruling
from tidegate_edge.visit import Visit

UNAVAILABLE = "facts-unavailable"


def matter(call: Ongoing) -> bool:
    """Whether there may be anything to gather: most bundles look at arguments alone."""
    return call.ruling is not None and (call.ruling.looks_around or bool(call.ruling.shadows))


async def gather(edge: Edge, call: Ongoing) -> None:
    """Fill in `call.facts`; refuse the call where a rule needs what cannot be known now."""
    ruling, item = call.ruling, call.item
    if ruling is None or item is None or call.method == targets.CANCEL:  # to stop needs no permission
        return
    needs = ruling.needs(call.principal, item)
    looks = "taint" in needs
    if looks or (ruling.shadows and _shadows_look(call, ruling, item)):
        try:
            call.taint = await taint_of(edge, call.visit)
        except SessionsUnavailable as fault:  # nobody is refused for a shadow: it goes without
            if looks:
                told = (
                    f"A rule for {call.server} looks at what this session has read before, and that cannot be known "
                    f"now: {fault.sentence}. Try again shortly."
                )
                call.refuse("policy", UNAVAILABLE, told)
                call.hidden = not ruling.is_visible(call.principal, item)
                return
    if not needs:
        return
    taint: frozenset[str] = (call.taint or frozenset()) if looks else frozenset()
    call.facts = facts_of(edge, call.visit, needs, call.requested_us, taint)


async def denied_since(edge: Edge, call: Ongoing) -> Verdict | None:
    """Why nothing more may go to the server of a call that was permitted: the session has read something meanwhile, and
    a rule looks at it. Raises SessionsUnavailable.
    """
    ruling, item = call.ruling, call.item
    if ruling is None or item is None:
        return None
    if "taint" not in ruling.needs(call.principal, item):
        return None
    taint = await taint_of(edge, call.visit)
    if taint.issubset(call.facts.taint):
        return None
    now = msgspec.structs.replace(call.facts, taint=tuple(sorted(taint)))
    verdict = ruling.decide(call.principal, item, targets.decided_on(call) or {}, now)
    return verdict if verdict.effect == "deny" else None


def known(edge: Edge, visit: Visit, needs: frozenset[str]) -> Facts:
    """What can be told at once, outside of calls. A session of which this edge does not know what it has read counts as
    one that has read everything.
    """
    if not needs:
        return NO_FACTS
    taint: frozenset[str] = frozenset()
    if "taint" in needs:
        held = edge.sessions.known_taint(visit.principal.tenant, visit.session_id)
        taint = edge.taint_labels if held is None else held
    return facts_of(edge, visit, needs, now_us(), taint)


def _shadows_look(call: Ongoing, ruling: Ruling, item: Item) -> bool:
    """Whether rules that do not rule look at what the session has read."""
    who, server, action = call.principal, item.server, item.action
    return any("taint" in shadow.engine.needs_facts(who, server, action) for shadow in ruling.shadows)


async def taint_of(edge: Edge, visit: Visit) -> frozenset[str]:
    """Labels of what the visit's session has read. Raises SessionsUnavailable."""
    tenant, session_id = visit.principal.tenant, visit.session_id
    known = edge.sessions.known_taint(tenant, session_id)
    return await edge.sessions.taint_of(tenant, session_id) if known is None else known


def facts_of(edge: Edge, visit: Visit, needs: frozenset[str], at_us: int, taint: frozenset[str]) -> Facts:
    """What is needed, and the time; an address that no rule looks at is not even found out."""
    source = visit.source
    address = ""
    if "network" in needs and source is not None and source.client is not None:
        address = edge.proxies.address(source.client[0], source.headers)
    return Facts(at_us, address, tuple(sorted(taint)), visit.protocol)
