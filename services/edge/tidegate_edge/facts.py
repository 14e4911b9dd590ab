"""gather: the circumstances of a call that rules look at, before they are asked. Most calls have none, and pay nothing.

What a session has read is known on this edge in the common case and asked of the session store in the other; where
the store cannot say, the call is refused, for a rule over what nobody knows must not let it pass. Counterparts:
`tainting.py` writes what is read here, `addresses.py` finds the caller's address.
"""

from tidegate.policy.facts import Facts
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge.calls import Ongoing
from tidegate_edge.edge import Edge
from tidegate_edge.visit import Visit

UNAVAILABLE = "facts-unavailable"


async def gather(edge: Edge, call: Ongoing) -> None:
    """Fill in `call.facts`; refuse the call where a rule needs what cannot be known now."""
    ruling, item = call.ruling, call.item
    if ruling is None or item is None:
        return
    needs = ruling.needs(call.principal, item)
    if not needs:
        return
    taint: frozenset[str] = frozenset()
    if "taint" in needs:
        try:
            taint = await taint_of(edge, call.visit)
        except SessionsUnavailable as fault:
            told = (
                f"A rule for {call.server} looks at what this session has read before, and that cannot be known now: "
                f"{fault.sentence}. Try again shortly."
            )
            call.refuse("policy", UNAVAILABLE, told)
            call.hidden = not ruling.is_visible(call.principal, item)
            return
    call.facts = facts_of(edge, call.visit, needs, call.requested_us, taint)


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
