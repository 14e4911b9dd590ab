"""Rules that do not rule, asked beside those that do: what they would have said goes into the call's record.

A shadow changes no answer: it runs after the verdict, waits for nothing, and whatever goes wrong with it is counted and
no more. Counterparts: `releases.py` puts shadows beside a ruling, `tallies.py` counts for them.
"""

from typing import Any

from tidegate.events import Shadowed
from tidegate.policy.facts import Facts
from tidegate.policy.verdict import Verdict
from tidegate_edge.calls import Ongoing
from tidegate_edge.catalog import Item
from tidegate_edge.edge import Edge
from tidegate_edge.facts import facts_of
from tidegate_edge.tallies import Shadow


def ask(edge: Edge, call: Ongoing, arguments: dict[str, Any], verdict: Verdict) -> None:
    """All that stand beside what decided this call. Only where there are any: most calls have none, and pay nothing."""
    assert call.ruling is not None
    assert call.item is not None
    found = []
    for shadow in call.ruling.shadows:
        try:
            other = _compared(edge, call, call.item, arguments, verdict, shadow)
        except Exception:  # whatever is wrong with rules that do not rule, the call goes its way
            edge.counters.shadows_failed += 1
            continue
        if other is not None:
            found.append(other)
    call.shadows = tuple(found)


def _compared(
    edge: Edge, call: Ongoing, item: Item, arguments: dict[str, Any], verdict: Verdict, shadow: Shadow
) -> Shadowed | None:
    needs = shadow.engine.needs_facts(call.principal, item.server, item.action)
    facts = _facts(edge, call, needs) if needs else call.facts
    if facts is None:  # nobody can say now what the session has read, and no call waits for a shadow
        edge.counters.shadows_failed += 1
        return None
    return shadow.compare(verdict, call.principal, item.server, item.action, arguments, facts)


def _facts(edge: Edge, call: Ongoing, needs: frozenset[str]) -> Facts | None:
    taint = call.taint if "taint" in needs else frozenset()
    return None if taint is None else facts_of(edge, call.visit, needs, call.requested_us, taint)
