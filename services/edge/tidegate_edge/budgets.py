"""Limits and budgets of calls: what a call takes before it is forwarded, and what it is charged when it has ended.

    plan → draw → (forward) → count → charge

Counterparts: `tidegate/policy/budgeting.py` says which limits a call meets, `purses.py` holds the leases, `shortage.py`
the words of a refusal. A call that is refused, for whatever reason, uses nothing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tidegate.policy.budget_records import marks_in
from tidegate.policy.budgeting import NO_PLAN, Meter, Plan
from tidegate.policy.budgets import Counted
from tidegate.sessions.memory_budgets import MemoryBudgets
from tidegate.sessions.port import Budgets as BudgetStore
from tidegate.sessions.port import SessionsUnavailable
from tidegate_edge import shortage, targets
from tidegate_edge.calls import Ended, Ongoing
from tidegate_edge.messages import decode_fields
from tidegate_edge.purses import TICK_S, Clock, Hold, Purses, Shortage

_COUNTED: Final = ("ok", "tool-error", "blocked")  # outcomes whose result was read by the gateway or the client
_LOCAL_HOLDER: Final = "here"
TURN_S: Final = 0.002  # for so long records are counted at a stretch


class Budgets:
    """Of one edge. `mark_key` gives the key under which a tenant's records are counted; refusals count in `limited`."""

    def __init__(
        self,
        store: BudgetStore,
        holder: str,
        mark_key: Callable[[str], bytes],
        clock: Clock,
        limited: Counter[tuple[str, str]],
    ) -> None:
        self._shared = Purses(store, holder, clock)
        self._local = Purses(MemoryBudgets(), _LOCAL_HOLDER, clock)  # for `away: local`
        self._mark_key = mark_key
        self._limited = limited
        self.uncounted = 0  # that passed by `away: allow`

    @staticmethod
    def plan(call: Ongoing) -> Plan | None:
        """What the call meets; None for the common call, which meets nothing."""
        ruling, item = call.ruling, call.item
        if ruling is None or item is None or call.method == targets.CANCEL:
            return None
        plan = ruling.budgeting.plan(call.principal, item.server, item.action, item.labels)
        if call.method == targets.TASK_ASKED:
            plan = plan.of_task
        return plan if plan is not NO_PLAN and plan else None

    async def draw(self, call: Ongoing, plan: Plan) -> None:
        """Take what the call needs, or refuse it. With a lease at hand nobody is asked."""
        call.plan = plan
        held: list[Hold] = []
        lacking = self._shared.take_known(plan.meters, held)
        try:
            short = await self._ask(lacking, held) if lacking else None
        except BaseException:
            _release(held)
            raise
        if short is None:
            call.held = held
            return
        _release(held)
        self._limited[short.meter.limit.id, shortage.refuse(call, short)] += 1

    async def _ask(self, lacking: list[Meter], held: list[Hold]) -> Shortage | None:
        try:
            return await self._shared.take(lacking, held)
        except SessionsUnavailable:
            taken = {hold.meter.counter for hold in held}
            lacking = [meter for meter in lacking if meter.counter not in taken]
        refusing = next((meter for meter in lacking if meter.limit.away == "refuse"), None)
        if refusing is not None:
            return Shortage(refusing, None)
        local = [meter for meter in lacking if meter.limit.away == "local"]
        try:
            short = await self._local.take(local, held) if local else None
        except SessionsUnavailable:  # no room for more counters
            return Shortage(local[0], None)
        self.uncounted += short is None and len(local) < len(lacking)
        return short

    @staticmethod
    def undo(call: Ongoing) -> None:
        """The call is not forwarded after all."""
        _release(call.held)
        call.held = []

    async def count(self, call: Ongoing, ended: Ended) -> None:
        """Tell which records the answer holds, before it leaves."""
        plan = call.plan
        if plan is None or plan.counted is None or ended.outcome not in _COUNTED:
            return
        if call.method != "tools/call" and call.task is None:
            return
        marks = await _marks(plan.counted, _result_of(call, ended), self._mark_key(call.principal.tenant))
        call.records = len(marks)
        for hold in call.held:
            if marks and hold.meter.measure.of == "daily-records":
                await hold.owner.mark(hold.purse, marks)

    @staticmethod
    def charge(call: Ongoing, ended: Ended) -> None:
        """What the ended call used, beyond what it took. Of one that was never forwarded, nothing."""
        plan = call.plan
        if plan is None or not call.forwarded_us:
            return
        held, call.held = call.held, []
        size = len(call.arguments) + len(call.members.get("inputResponses", b"")) + len(ended.result)
        call.cost_micros = plan.cost(size)
        for purse, meter, owner in held:
            if meter.measure.of == "daily-bytes":
                owner.charge(purse, size)
            elif meter.measure.of == "daily-cost":
                owner.charge(purse, call.cost_micros - meter.amount)
            elif purse.is_places:
                purse.give_back(meter.amount)

    async def run(self) -> None:
        """Tell the stores what was used. Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            for purses in (self._shared, self._local):
                await purses.tick()

    async def close(self) -> None:
        await self._shared.close()

    def gauges(self) -> dict[str, float]:
        return {
            "tidegate_limit_leases": self._shared.active,
            "tidegate_limit_exchanges": self._shared.exchanges,
            "tidegate_limit_exchanges_failed": self._shared.failures,
            "tidegate_limit_uncounted": self.uncounted,
        }


def _result_of(call: Ongoing, ended: Ended) -> bytes:
    """The tool's result: that of a task stands within what is told of the task."""
    if call.task is None and call.result_type != "task":
        return ended.result
    return bytes(decode_fields(ended.result).get("result", ended.result))


async def _marks(counted: Counted, result: bytes, key: bytes) -> set[bytes]:
    """Of the records in a result. Where it is large, others have their turn meanwhile."""
    marks: set[bytes] = set()
    began_s = time.perf_counter()
    for mark in marks_in(counted, result, key):
        if mark is not None:
            marks.add(mark)
        if time.perf_counter() - began_s > TURN_S:
            await asyncio.sleep(0)
            began_s = time.perf_counter()
    return marks


def _release(held: list[Hold]) -> None:
    for purse, meter, _ in held:
        purse.give_back(meter.amount)
