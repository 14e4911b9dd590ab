"""Deciding what a rule wants a person to approve, and keeping `control-state` true of it: it holds each approval as the
history leaves it, until it expires.

Edges append questions, answers given in the client, and uses; a second person decides here. What only the history holds
is written to the state here, and what nobody decided or used in time is said to have expired. Counterparts:
`tidegate/policy/approvals.py` (the fold), `approvals_api.py` (the routes).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from tidegate.chain import Chain, open_event
from tidegate.claims import Principal
from tidegate.events import (
    ApprovalConsumed,
    ApprovalDenied,
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRequested,
    Sealed,
)
from tidegate.ids import uuid7
from tidegate.log.port import Delivered, Record
from tidegate.policy.approvals import (
    ANYBODY,
    SOMEBODY_ELSE,
    Approval,
    Approvals,
    approval_in,
    may_grant,
    read_state,
    state_key,
    state_value,
)
from tidegate_policy.journal import Journal
from tidegate_policy.problems import ApiFault
from tidegate_policy.state import ControlPlane

STATE_TOPIC: Final = "control-state"
AT_ONCE: Final = 500  # records of one append
PRUNE_FROM: Final = 5_000  # while the history is read: from so many on, what is finished is forgotten between batches
ASKED_BYTES_MAX: Final = 64 * 1024 * 1024  # of personal parts that are kept to be shown

UNSEEN: Final = (
    "what is kept of this call is masked in places that would be sent in full, so nobody approves it here: its "
    "requester can, at a client that is asked; it can be denied"
)
LOOK_EVERY_US: Final = 250_000  # for what has expired, where nothing else is to be done

Said = Literal["grant", "deny"]
_T = TypeVar("_T")
_EVENTS: Final = (ApprovalRequested, ApprovalGranted, ApprovalDenied, ApprovalExpired, ApprovalConsumed)


class Person(NamedTuple):
    """Who asks, as their token says. `circles`: by digest of a bundle, the groups that they are in by its entities."""

    principal: Principal
    is_admin: bool
    circles: Mapping[str, frozenset[str]] = MappingProxyType({})

    @property
    def subject_id(self) -> str:
        return self.principal.subject_id


class Approver:
    """Writes decisions and the state, under the one turn of the journal."""

    def __init__(self, state: ControlPlane, journal: Journal, region: str, clock: Callable[[], int]) -> None:
        self._state = state
        self._journal = journal
        self._region = region
        self._clock = clock
        self._stored: dict[str, Approval] = {}  # by id, as `control-state` has it
        self._touched: set[str] = set()  # ids whose state record may be another than it should be
        self._asked: OrderedDict[str, Sealed] = OrderedDict()  # personal parts of questions, oldest first
        self._asked_bytes = 0
        self._look_us = 0  # when to look again for what has expired
        self.approvals = Approvals()

    def asked(self, approval_id: str) -> Sealed | None:
        """The personal part of a question, as it was recorded; None where it is not kept."""
        return self._asked.get(approval_id)

    async def decide(self, approval_id: str, said: Said, reason: str, who: Person) -> Approval:
        """What stands now. Raises ApiFault: one decision counts, and not everybody's. Raises LogUnavailable."""
        async with self._journal.turn:
            now_us = self._clock()
            approval = self.approvals.get(approval_id)
            if approval is None or not may_see(approval, who):
                raise unknown()
            _check_may_decide(approval, who)
            agent = who.principal.agent
            if self._state.quarantines.match("", who.subject_id, agent, "", "", now_us) is not None:
                raise ApiFault(403, "approver-quarantined", "you are quarantined: somebody else has to decide")
            if not approval.is_open(now_us) or approval.state != "pending":
                raise ApiFault(409, f"approval-{state_at(approval, now_us)}", _standing(approval, now_us))
            if said == "grant" and approval.masked:
                raise ApiFault(409, "approval-arguments-masked", UNSEEN)
            event = self._event(approval, said, reason, who.subject_id, now_us)
            decided = _after(approval, event)

            def compose(chain: Chain) -> list[Record]:
                return [chain.seal(event), self._record(approval_id, decided)]

            await self._journal.append(compose)
            self.approvals.apply(event)
            self._stored[approval_id] = decided
            return self.approvals.get(approval_id) or decided  # an edge's word may have come meanwhile

    def note(self, record: Delivered) -> None:
        """See a record of `control` or `control-state` pass by; `reconcile` then acts on what differs."""
        if record.topic == STATE_TOPIC:
            self._note_state(record)
        elif record.value is not None and b'"type":"approval.' in record.value:
            self._apply(record.value)

    def prune(self) -> None:
        """Between batches of a history that is being read, which is as long as the tenant is old."""
        if len(self.approvals) < PRUNE_FROM:
            return
        now_us = self._clock()
        waiting = self.approvals.lapsed(now_us)  # perhaps nobody has said yet that they expired
        for gone in self.approvals.forget_expired(now_us):
            self._touched.add(gone.approval_id)
            self._drop_asked(gone.approval_id)
        for one in waiting:
            self.approvals.restore(one)
        self._touched = {name for name in self._touched if name in self._stored or self.approvals.get(name)}

    async def reconcile(self) -> None:
        """Say what has expired; write the state records that are missing or behind, remove those past their time.

        Raises LogUnavailable.
        """
        now_us = self._clock()
        if self._journal.is_fenced or (not self._touched and now_us < self._look_us):
            return
        self._look_us = now_us + LOOK_EVERY_US
        if not (self._touched or len(self.approvals)):
            return
        async with self._journal.turn:
            for some in _chunks(self.approvals.lapsed(now_us)):
                await self._say_expired([one.approval_id for one in some], now_us)
            for gone in self.approvals.forget_expired(now_us):
                self._touched.add(gone.approval_id)
                self._drop_asked(gone.approval_id)
            await self._write_state()

    async def _say_expired(self, approval_ids: list[str], now_us: int) -> None:
        events = [
            ApprovalExpired(
                id=uuid7(now_us), time_us=now_us, tenant=self._state.tenant, region=self._region, approval_id=name
            )
            for name in approval_ids
        ]

        def compose(chain: Chain) -> list[Record]:
            return [*(chain.seal(event) for event in events), *(self._record(name, None) for name in approval_ids)]

        await self._journal.append(compose)
        for event in events:
            self.approvals.apply(event)
            self._stored.pop(event.approval_id, None)

    async def _write_state(self) -> None:
        """Of what was touched; what the fold has forgotten is not to be there."""
        changes = [
            (name, wanted) for name in self._touched if (wanted := self.approvals.get(name)) != self._stored.get(name)
        ]
        for some in _chunks(changes):
            records = [self._record(name, wanted) for name, wanted in some]
            await self._journal.append(lambda _, records=records: records)  # type: ignore[misc]
            for name, wanted in some:
                if wanted is None:
                    self._stored.pop(name, None)
                else:
                    self._stored[name] = wanted
        self._touched.clear()

    def _event(
        self, approval: Approval, said: Said, reason: str, actor: str, now_us: int
    ) -> ApprovalGranted | ApprovalDenied:
        common = {"id": uuid7(now_us), "time_us": now_us, "tenant": self._state.tenant, "region": self._region}
        by = {"approval_id": approval.approval_id, "actor": actor, "channel": "api", "reason": reason}
        if said == "deny":
            return ApprovalDenied(**common, **by)  # type: ignore[arg-type]
        # As long again as the question stood: whoever agrees in the last second has not agreed in vain.
        until_us = now_us + approval.asked_until_us - approval.requested_us
        return ApprovalGranted(**common, **by, expires_us=until_us)  # type: ignore[arg-type]

    def _note_state(self, record: Delivered) -> None:
        approval_id = approval_in(record.key)
        if not approval_id or record.key != state_key(self._state.tenant, approval_id):
            return
        self._touched.add(approval_id)
        self._stored.pop(approval_id, None)
        if record.value is not None:
            try:
                self._stored[approval_id] = read_state(record.value)
            except msgspec.DecodeError:
                return  # of a newer version, or broken: written anew

    def _apply(self, value: bytes) -> None:
        """Fold a stored event in. What cannot be read is a newer version's fact and changes nothing here."""
        try:
            event = open_event(value)
        except msgspec.DecodeError:
            return
        if event.tenant != self._state.tenant or not isinstance(event, _EVENTS):
            return
        self.approvals.apply(event)
        self._touched.add(event.approval_id)
        if isinstance(event, ApprovalRequested) and event.approval_id not in self._asked:
            self._keep(event)

    def _keep(self, event: ApprovalRequested) -> None:
        self._asked[event.approval_id] = event.sealed
        self._asked_bytes += _size(event.sealed)
        while self._asked_bytes > ASKED_BYTES_MAX:
            self._drop_asked(next(iter(self._asked)))

    def _drop_asked(self, approval_id: str) -> None:
        dropped = self._asked.pop(approval_id, None)
        if dropped is not None:
            self._asked_bytes -= _size(dropped)

    def _record(self, approval_id: str, approval: Approval | None) -> Record:
        value = None if approval is None else state_value(approval)
        return Record(STATE_TOPIC, state_key(self._state.tenant, approval_id), value)


def may_see(approval: Approval, who: Person) -> bool:
    """Whoever may decide, and the requester."""
    return who.is_admin or approval.subject_id == who.subject_id or _is_member(approval, who)


def may_decide(approval: Approval, who: Person) -> bool:
    """Requesters decide their own questions where the rule lets them; the others' are for administrators, and for
    members of the group that the rule names.
    """
    if approval.subject_id == who.subject_id:
        return approval.approver == ANYBODY
    return (who.is_admin or _is_member(approval, who)) and may_grant(approval, who.subject_id, "api")


def state_at(approval: Approval, now_us: int) -> str:
    """Its state, time considered."""
    is_past = approval.state in ("pending", "granted") and approval.expires_us <= now_us
    return "expired" if is_past else approval.state


def unknown() -> ApiFault:
    return ApiFault(
        404,
        "approval-unknown",
        "no approval with this id waits, or none that you may see; a question arrives a moment after it was asked, and "
        "goes when its time is over; `tidegate approvals list` shows those that wait",
    )


def named_group(approval: Approval) -> str:
    """The group whose members decide; "": the rule names none."""
    return "" if approval.approver in (ANYBODY, SOMEBODY_ELSE) else approval.approver


def _is_member(approval: Approval, who: Person) -> bool:
    group = named_group(approval)
    return bool(group) and (group in who.principal.groups or group in who.circles.get(approval.bundle, ()))


def _check_may_decide(approval: Approval, who: Person) -> None:
    if may_decide(approval, who):
        return
    if approval.subject_id == who.subject_id:
        raise ApiFault(403, "requester-may-not-approve", "this call is your own: somebody else has to decide")
    raise ApiFault(403, "not-an-approver", f"deciding this takes {wanted(approval)}")


def wanted(approval: Approval) -> str:
    """Who may decide, in words."""
    if approval.approver == ANYBODY:
        return "the requester or an administrator"
    if approval.approver == SOMEBODY_ELSE:
        return "an administrator who is not the requester"
    return f"a member of '{approval.approver}' or an administrator, who is not the requester"


def _standing(approval: Approval, now_us: int) -> str:
    """What stands, for who comes too late."""
    decision = approval.decision
    match state_at(approval, now_us):
        case "expired":
            return "its time is over; the call has to be made again, which asks again"
        case "consumed":
            return f"it was granted, and the call {approval.used_by} used it"
        case state if decision is not None:
            return f"it was {state} already by {decision.actor} ({decision.channel}): {decision.reason or 'no reason'}"
        case state:
            return f"it is {state} already"


def _after(approval: Approval, event: ApprovalGranted | ApprovalDenied) -> Approval:
    fold = Approvals(most=1)
    fold.restore(approval)
    return fold.apply(event) or approval


def _size(sealed: Sealed) -> int:
    return 512 + len(sealed.box) + len(bytes(sealed.arguments)) + len(sealed.login)


def _chunks(items: list[_T]) -> list[list[_T]]:
    return [items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE)]
