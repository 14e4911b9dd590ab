"""Approvals of calls that a rule wants a person to look at: what one is for (`binding_of`), and a pure fold of its
events, in any order and twice.

On `control-state` the key is `tenant|approval|approval_id` and the value the `Approval`, without anything personal; it
stays there, whatever became of it, until it expires. Counterparts: the edge asks and consumes, the policy service keeps
the state and takes a second person's decision.
"""

import bisect
import hashlib
import heapq
import hmac
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, Literal, TypeVar

import msgspec

from tidegate.events import (
    ApprovalConsumed,
    ApprovalDenied,
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRequested,
    Channel,
)
from tidegate.limits import APPROVAL_TTL_S_MAX, APPROVALS_KEPT_MAX

ANYBODY: Final = ""
SOMEBODY_ELSE: Final = "other"
State = Literal["pending", "granted", "denied", "expired", "consumed"]
ApprovalEvent = ApprovalRequested | ApprovalGranted | ApprovalDenied | ApprovalExpired | ApprovalConsumed
_Key = TypeVar("_Key", str, int)
_Later = ApprovalGranted | ApprovalDenied | ApprovalExpired | ApprovalConsumed

_PURPOSE: Final = b"tidegate approval v1\n"
_WORD: Final = b"approval"
_EARLY_PER_ID_MAX: Final = 8  # events that came before their request
_LOOKED_AT_MAX: Final = 256  # of one person's, when one of them is to be forgotten


class Decision(msgspec.Struct, frozen=True, order=True, omit_defaults=True):
    """What somebody said to a question. Of two, the lesser one stands: the earlier."""

    at_us: int
    actor: str
    channel: Channel
    reason: str = ""
    expires_us: int = 0  # of a grant


class Approval(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One question and what became of it. An edge of the next version must read it."""

    v: int = 1
    approval_id: str
    tenant: str
    binding: str
    subject_id: str  # of the requester
    agent: str
    session_id: str
    method: str
    server: str
    target: str
    call_id: str  # that first asked
    rules: tuple[str, ...] = ()
    message: str = ""
    bundle: str = ""
    approver: str = ANYBODY
    edge: str = ""
    masked: bool = False  # what is kept of the call is not all that is sent: nobody can judge by it
    requested_us: int
    asked_until_us: int
    granted: Decision | None = None
    denied: Decision | None = None
    expired: bool = False
    used_by: str = ""  # the call that consumed it

    @property
    def state(self) -> State:
        """As far as events say it: time alone is for the reader to compare (`expires_us`)."""
        if self.used_by:
            return "consumed"
        if self.expired:
            return "expired"
        return "denied" if self.denied else "granted" if self.granted else "pending"

    @property
    def expires_us(self) -> int:
        """Until when it means anything: a question may be decided, a grant used, a denial repeated."""
        return self.granted.expires_us if self.granted and not self.denied else self.asked_until_us

    @property
    def decision(self) -> Decision | None:
        """A denial wins over a grant, until that is used."""
        return self.granted if self.used_by else self.denied or self.granted

    @property
    def is_over(self) -> bool:
        """Nothing passes by it any more, and it refuses nobody."""
        return bool(self.used_by) or self.expired

    def serves(self, approver: str, rules: Iterable[str]) -> bool:
        """Whether it was asked of the one who must be asked now, and for every rule that asks now."""
        return approver in (ANYBODY, self.approver) and set(rules) <= set(self.rules)

    def is_open(self, now_us: int) -> bool:
        """Whether it can still be decided, or used."""
        return self.state in ("pending", "granted") and self.expires_us > now_us


class Approvals:
    """What is asked and decided in one tenant. Bounded: past `most`, one of the requester who has most is forgotten, so
    that whoever asks much loses their own: first what is used up, last what somebody else refused them, and of these
    what expires first. A call that it was for asks again.
    """

    def __init__(self, most: int = APPROVALS_KEPT_MAX) -> None:
        self._most = most
        self._known: dict[str, Approval] = {}
        self._by_binding: dict[str, dict[str, None]] = {}
        self._by_subject: dict[str, dict[str, None]] = {}
        self._pending: dict[str, dict[str, None]] = {}  # the same, of those that wait
        self._having: dict[int, dict[str, None]] = {}  # how many: the requesters who have so many
        self._most_had = 0
        self._order: list[tuple[int, str]] = []  # when requested, and which; oldest first
        self._due: list[tuple[int, str]] = []  # a heap of times to expire; the newest entry of each is the true one
        self._early: dict[str, list[_Later]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def apply(self, event: ApprovalEvent) -> Approval | None:
        """Fold one event in: the approval as it is now, or None where that changed nothing."""
        known = self._known.get(event.approval_id)
        if isinstance(event, ApprovalRequested):
            if known is not None:
                return None
            approval = _requested(event)
            for early in self._early.pop(event.approval_id, ()):
                approval = _after(approval, early)
            self._put(approval)
            return approval
        if known is None:
            self._keep_early(event)
            return None
        return self._replace(known, _after(known, event))

    def restore(self, approval: Approval) -> Approval | None:
        """Fold in what `control-state`, or another edge, says of one."""
        known = self._known.get(approval.approval_id)
        if known is not None:
            return self._replace(known, _joined(known, approval))
        for early in self._early.pop(approval.approval_id, ()):
            approval = _after(approval, early)
        self._put(approval)
        return approval

    def drop(self, approval_id: str) -> Approval | None:
        """`control-state` has it no more: it can be used no more. None where that changed nothing."""
        known = self._known.get(approval_id)
        return self._replace(known, msgspec.structs.replace(known, expired=True)) if known else None

    def get(self, approval_id: str) -> Approval | None:
        return self._known.get(approval_id)

    def find(self, binding: str, now_us: int, approver: str = ANYBODY, rules: Iterable[str] = ()) -> Approval | None:
        """What is known of such a call, as its rules ask now: a denial, then a grant, then what is still asked; each
        the earliest. None: nobody was asked, or all of it is used or past its time.
        """
        rules = tuple(rules)
        found = [
            one
            for approval_id in self._by_binding.get(binding, ())
            if (one := self._known[approval_id]).expires_us > now_us
            and (one.state == "denied" or (one.state in ("granted", "pending") and one.serves(approver, rules)))
        ]
        order = {"denied": 0, "granted": 1, "pending": 2}
        return min(found, key=lambda one: (order[one.state], one.requested_us, one.approval_id), default=None)

    def pending_of(self, subject_id: str, now_us: int) -> int:
        """How many questions of one requester wait."""
        waiting = self._pending.get(subject_id, ())
        return sum(self._known[approval_id].expires_us > now_us for approval_id in waiting)

    def kept_of(self, subject_id: str) -> int:
        """How many of one requester are known, whatever became of them."""
        return len(self._by_subject.get(subject_id, ()))

    def current(self, now_us: int) -> list[Approval]:
        """All that are within their time, whatever became of them; oldest first."""
        return [one for _, name in self._order if (one := self._known[name]).expires_us > now_us]

    def newest(self, now_us: int) -> Iterator[Approval]:
        """The same, newest first, one by one: who needs a few looks at a few."""
        return (one for _, name in reversed(self._order) if (one := self._known[name]).expires_us > now_us)

    def newest_of(self, subject_id: str, now_us: int) -> Iterator[Approval]:
        """Those of one requester, likewise; in the order in which they were learnt."""
        names = reversed(self._by_subject.get(subject_id, {}))
        return (one for name in names if (one := self._known[name]).expires_us > now_us)

    def lapsed(self, now_us: int) -> list[Approval]:
        """Those that passed their time undecided or unused, for `approval.expired` to be said of them."""
        return [one for one in self._known.values() if one.state in ("pending", "granted") and one.expires_us <= now_us]

    def forget_expired(self, now_us: int) -> list[Approval]:
        """Free the memory of what is past its time. No change of state: it let nothing pass any more."""
        gone = []
        while self._due and self._due[0][0] <= now_us:
            known = self._known.get(heapq.heappop(self._due)[1])
            if known is not None and known.expires_us <= now_us:
                self._remove(known)
                gone.append(known)
        return gone

    def _put(self, approval: Approval) -> None:
        while len(self._known) >= self._most:
            self._remove(self._least_needed())
        self._known[approval.approval_id] = approval
        bisect.insort(self._order, (approval.requested_us, approval.approval_id))
        self._expires(approval)
        self._by_binding.setdefault(approval.binding, {})[approval.approval_id] = None
        self._by_subject.setdefault(approval.subject_id, {})[approval.approval_id] = None
        self._counted(approval.subject_id, +1)
        if approval.state == "pending":
            self._pending.setdefault(approval.subject_id, {})[approval.approval_id] = None

    def _replace(self, known: Approval, now: Approval) -> Approval | None:
        if now == known:
            return None
        self._known[known.approval_id] = now
        if now.expires_us != known.expires_us:
            self._expires(now)
        if known.state == "pending" != now.state:
            _take_out(self._pending, known.subject_id, known.approval_id)
        return now

    def _expires(self, approval: Approval) -> None:
        heapq.heappush(self._due, (approval.expires_us, approval.approval_id))
        if len(self._due) > 2 * len(self._known) + 64:  # entries of what was forgotten before its time
            self._due = [(one.expires_us, one.approval_id) for one in self._known.values()]
            heapq.heapify(self._due)

    def _least_needed(self) -> Approval:
        subject_id = next(iter(self._having[self._most_had]))
        names = islice(self._by_subject[subject_id], _LOOKED_AT_MAX)
        return min((self._known[name] for name in names), key=_need)

    def _counted(self, subject_id: str, change: Literal[-1, 1]) -> None:
        """One more of this requester, or one less, is in `_by_subject`."""
        count = self.kept_of(subject_id)
        if count - change:
            _take_out(self._having, count - change, subject_id)
        if count:
            self._having.setdefault(count, {})[subject_id] = None
        if count > self._most_had or self._most_had not in self._having:
            self._most_had = count

    def _keep_early(self, event: _Later) -> None:
        """Another writer's word may come before the request that it is about."""
        while len(self._early) >= self._most:
            del self._early[next(iter(self._early))]
        kept = self._early.setdefault(event.approval_id, [])
        if event not in kept and len(kept) < _EARLY_PER_ID_MAX:
            kept.append(event)

    def _remove(self, approval: Approval) -> None:
        del self._known[approval.approval_id]
        del self._order[bisect.bisect_left(self._order, (approval.requested_us, approval.approval_id))]
        _take_out(self._by_binding, approval.binding, approval.approval_id)
        _take_out(self._by_subject, approval.subject_id, approval.approval_id)
        self._counted(approval.subject_id, -1)
        if approval.state == "pending":
            _take_out(self._pending, approval.subject_id, approval.approval_id)


def may_grant(approval: Approval, actor: str, channel: Channel) -> bool:
    """Whether this person may say yes by this way. Groups are for the policy service to know."""
    if approval.approver == ANYBODY:
        return channel == "api" or actor == approval.subject_id  # who is asked by the client is who called
    return channel == "api" and actor != approval.subject_id


def binding_of(
    key: bytes,
    *,
    tenant: str,
    subject_id: str,
    agent: str,
    method: str,
    server: str,
    target: str,
    arguments: bytes,
) -> str:
    """What an approval is for, as a keyed digest: `arguments` are those that rules decided on, as JSON. The order of an
    object's members, white space and the spelling of texts make no difference; every digit of a number does, for which
    number it is depends on who reads it. Raises ValueError: no JSON.
    """
    said = msgspec.json.encode([tenant, subject_id, agent, method, server, target, as_sent(arguments)], order="sorted")
    return hmac.digest(key, _PURPOSE + said, hashlib.sha256).hex()


def as_sent(arguments: bytes) -> Any:
    """JSON, read; its numbers as they are written. Raises ValueError: no JSON."""
    return json.loads(arguments, parse_int=_as_written, parse_float=_as_written, parse_constant=_refuse_constant)


def _as_written(number: str) -> msgspec.Raw:
    return msgspec.Raw(number.encode())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def state_key(tenant: str, approval_id: str) -> bytes:
    return b"%b|%b|%b" % (tenant.encode(), _WORD, approval_id.encode())


def approval_in(key: bytes) -> str:
    """The approval that a key of `control-state` names; "": the key is of something else."""
    parts = key.split(b"|")
    return parts[2].decode("utf-8", "replace") if len(parts) == 3 and parts[1] == _WORD else ""


def state_value(approval: Approval) -> bytes:
    return msgspec.json.encode(approval)


def read_state(value: bytes) -> Approval:
    """Raises msgspec.DecodeError."""
    try:
        return _decode(value)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


_decode: Final = msgspec.json.Decoder(Approval).decode


def _requested(event: ApprovalRequested) -> Approval:
    return Approval(
        approval_id=event.approval_id,
        tenant=event.tenant,
        binding=event.binding,
        subject_id=event.subject_id,
        agent=event.agent,
        session_id=event.session_id,
        method=event.method,
        server=event.server,
        target=event.target,
        call_id=event.call_id,
        rules=event.rules,
        message=event.message,
        bundle=event.bundle,
        approver=event.approver,
        edge=event.edge,
        masked=event.masked,
        requested_us=event.time_us,
        asked_until_us=_bounded(event.expires_us, event.time_us),
    )


def _bounded(expires_us: int, since_us: int) -> int:
    return min(expires_us, since_us + APPROVAL_TTL_S_MAX * 1_000_000)


def _after(approval: Approval, event: _Later) -> Approval:
    """The same approval once this is known of it."""
    if event.tenant != approval.tenant:
        return approval
    match event:
        case ApprovalGranted():
            in_time = event.time_us < approval.asked_until_us
            if not in_time or not may_grant(approval, event.actor, event.channel):
                return approval
            until_us = _bounded(event.expires_us, event.time_us)
            given = Decision(event.time_us, event.actor, event.channel, event.reason, until_us)
            return msgspec.structs.replace(approval, granted=_earlier(approval.granted, given))
        case ApprovalDenied():
            given = Decision(event.time_us, event.actor, event.channel, event.reason)
            return msgspec.structs.replace(approval, denied=_earlier(approval.denied, given))
        case ApprovalExpired():
            return msgspec.structs.replace(approval, expired=True)
        case ApprovalConsumed():
            return msgspec.structs.replace(approval, used_by=_first(approval.used_by, event.call_id))


def _joined(one: Approval, other: Approval) -> Approval:
    """All that either knows: the order in which they are learnt makes no difference."""
    return msgspec.structs.replace(
        one,
        granted=_earlier(one.granted, other.granted),
        denied=_earlier(one.denied, other.denied),
        expired=one.expired or other.expired,
        used_by=_first(one.used_by, other.used_by),
    )


def _need(approval: Approval) -> tuple[int, int, str]:
    """The less, the sooner it is forgotten. Nobody gets rid of another's refusal by asking for more."""
    denied = approval.denied
    refused = denied is not None and denied.actor != approval.subject_id
    return (0 if approval.is_over else 2 if refused else 1, approval.expires_us, approval.approval_id)


def _take_out(index: dict[_Key, dict[str, None]], key: _Key, name: str) -> None:
    del index[key][name]
    if not index[key]:
        del index[key]


def _earlier(one: Decision | None, other: Decision | None) -> Decision | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _first(one: str, other: str) -> str:
    return min((each for each in (one, other) if each), default="")
