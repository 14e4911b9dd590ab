"""What an edge knows of approvals: the fold of `control-state`, of its own events, and of what other edges tell.

Edges tell each other at once, sealed with the cluster's key, so that a person's yes at one edge counts at the next
request, wherever that goes; what is lost on the way comes by the log. Counterparts: `watch.py` (the log),
`approvals.py` (asks), `approval_page.py`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import msgspec

from tidegate.errors import OurFault
from tidegate.ids import now_us
from tidegate.limits import APPROVALS_PENDING_MAX, APPROVALS_PER_SUBJECT_MAX
from tidegate.policy.approvals import Approval, ApprovalEvent, Approvals, read_state, state_value
from tidegate.sealing import Sealer
from tidegate.sessions.port import Bus

KIND: Final = "approval"
PURPOSE: Final = "approval-news"
NEWS_TTL_S: Final = 60  # an older message is not believed
TIDY_S: Final = 10.0
WAITERS_MAX: Final = 4_096

_log = logging.getLogger(__name__)


class _News(msgspec.Struct, frozen=True):
    """On the bus, sealed. An edge of the next version must read it."""

    at_s: float
    approval: msgspec.Raw
    v: int = 1


_decode_news: Final = msgspec.json.Decoder(_News).decode


class ApprovalBook:
    """Of one edge, all tenants. `is_current` once the log has been read: before that nothing is known to be unused."""

    def __init__(self, bus: Bus, sealer: Sealer) -> None:
        self.is_current = False
        self._bus = bus
        self._sealer = sealer
        self._of: dict[str, Approvals] = {}
        self._waiting: dict[str, list[asyncio.Event]] = {}
        self._waiters = 0
        self._turns: dict[str, list[asyncio.Lock]] = {}  # by binding: the lock, once for each that wants it
        self._tidied_s = 0.0
        self._opening: dict[tuple[str, str], set[str]] = {}  # by tenant and requester
        bus.on_message(KIND, self._heard)

    def of(self, tenant: str) -> Approvals:
        found = self._of.get(tenant)
        if found is None:
            found = self._of[tenant] = Approvals()
        return found

    def apply(self, event: ApprovalEvent) -> Approval | None:
        """Fold in an event of this edge, or of the history."""
        return self._news(self.of(event.tenant).apply(event))

    def restore(self, tenant: str, approval_id: str, value: bytes | None) -> None:
        """Fold in a record of `control-state`."""
        if value is None:
            self._news(self.of(tenant).drop(approval_id))
            return
        try:
            approval = read_state(value)
        except msgspec.DecodeError as error:
            _log.error("an approval cannot be read: %s", error)
            return
        if (approval.tenant, approval.approval_id) == (tenant, approval_id):
            self.learn(approval)

    def learn(self, approval: Approval) -> None:
        """What somebody who may be believed says of one."""
        if approval.expires_us > now_us():
            self._news(self.of(approval.tenant).restore(approval))

    def used(self, approval: Approval, call_id: str) -> None:
        """Another call was faster, wherever that was."""
        self.learn(msgspec.structs.replace(approval, used_by=call_id))

    async def tell(self, approval: Approval) -> None:
        """To the other edges, as far as they can be reached."""
        news = _News(time.time(), msgspec.Raw(state_value(approval)))
        try:
            sealed = self._sealer.seal(PURPOSE, msgspec.json.encode(news), b"")
            await self._bus.tell_all(f"{KIND}\n{sealed}".encode())
        except (OurFault, ValueError) as error:
            _log.warning("other edges hear of approval %s by the log alone: %s", approval.approval_id, error)

    async def decided(self, approval: Approval, within_s: float) -> None:
        """Wait until it is not pending any more, but not for longer than this."""
        if self._waiters >= WAITERS_MAX:
            return
        with self._hearing(approval.approval_id) as changed:
            try:
                async with asyncio.timeout(within_s):
                    while (now := self.of(approval.tenant).get(approval.approval_id)) and now.state == "pending":
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                return

    def is_awaited(self, approval_id: str) -> bool:
        """Whether a call waits here for its decision."""
        return approval_id in self._waiting

    @asynccontextmanager
    async def turn(self, binding: str) -> AsyncIterator[None]:
        """One at a time, of calls that are the same: so that a person is asked once about them."""
        turns = self._turns.setdefault(binding, [])
        lock = turns[0] if turns else asyncio.Lock()
        turns.append(lock)
        try:
            async with lock:
                yield
        finally:
            turns.pop()
            if not turns:
                del self._turns[binding]

    @contextmanager
    def opening(self, tenant: str, subject_id: str, approval_id: str) -> Iterator[None]:
        """A question of this person is on its way into the log: it counts already."""
        opening = self._opening.setdefault((tenant, subject_id), set())
        opening.add(approval_id)
        try:
            yield
        finally:
            opening.discard(approval_id)
            if not opening:
                del self._opening[tenant, subject_id]

    def is_full_for(self, tenant: str, subject_id: str) -> str:
        """Why no further question of this person is put, in a sentence; "": it may be."""
        approvals = self.of(tenant)
        opening = sum(approvals.get(one) is None for one in self._opening.get((tenant, subject_id), ()))
        if approvals.pending_of(subject_id, now_us()) + opening >= APPROVALS_PENDING_MAX:
            return f"{APPROVALS_PENDING_MAX} calls of yours wait for approval already. Try again when some are decided."
        if approvals.kept_of(subject_id) + opening >= APPROVALS_PER_SUBJECT_MAX:
            return (
                f"{APPROVALS_PER_SUBJECT_MAX} approvals of yours, decided ones too, are within their time. Try again "
                "when some are past it; a rule with a shorter @expires makes room sooner."
            )
        return ""

    def tidy(self) -> None:
        """Now and then: free what is past its time."""
        if time.monotonic() - self._tidied_s > TIDY_S:
            self._tidied_s = time.monotonic()
            for approvals in self._of.values():
                approvals.forget_expired(now_us())

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @contextmanager
    def _hearing(self, approval_id: str) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._waiting.setdefault(approval_id, []).append(changed)
        self._waiters += 1
        try:
            yield changed
        finally:
            self._waiters -= 1
            self._waiting[approval_id].remove(changed)
            if not self._waiting[approval_id]:
                del self._waiting[approval_id]

    def _news(self, changed: Approval | None) -> Approval | None:
        for waiter in self._waiting.get(changed.approval_id, ()) if changed else ():
            waiter.set()
        return changed

    def _heard(self, message: bytes) -> None:
        opened = self._sealer.unseal(PURPOSE, message.decode("latin-1"), b"")
        if opened is None:
            return
        try:
            news = _decode_news(opened)
            approval = read_state(bytes(news.approval))
        except msgspec.DecodeError:
            return
        if abs(time.time() - news.at_s) <= NEWS_TTL_S:
            self.learn(approval)
