"""Exfiltration: text read from a server labelled sensitive appears in arguments to a server labelled egress.

The edges put keyed fingerprints of both texts into the events; equal fingerprints are equal passages, nothing else is
known of them. A result may be read here after the request that used it, so both sides are remembered, and their own
times tell which came first. Pure: `observe` folds one event into one principal's memory. One finding per egress call.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from tidegate.events import CallCompleted, FindingRaised, Sealed
from tidegate.settings import Exfiltration
from tidegate_detector.findings import CallEvent, raised

RULE = "exfiltration"
SENSITIVE = "sensitive"
EGRESS = "egress"
SIDE_MAX = 512  # remembered calls of a principal on each side; the oldest go first
CLOCK_SKEW_US = 2_000_000  # by which the clocks of two edges may differ


class Kept(NamedTuple):
    """A call of one side, without its content. `prints` are 64-bit fingerprints."""

    event: CallEvent  # without the sealed part
    at_us: int
    prints: frozenset[int]


@dataclass(slots=True)
class Side:
    """Calls by id, oldest first, and which of them holds a fingerprint."""

    calls: dict[str, Kept] = field(default_factory=dict)
    holders: dict[int, dict[str, None]] = field(default_factory=dict)
    prints: int = 0

    def add(self, kept: Kept) -> None:
        self.calls[kept.event.call_id] = kept
        self.prints += len(kept.prints)
        for one in kept.prints:
            self.holders.setdefault(one, {})[kept.event.call_id] = None

    def drop(self, call_id: str) -> None:
        kept = self.calls.pop(call_id)
        self.prints -= len(kept.prints)
        for one in kept.prints:
            holders = self.holders[one]
            del holders[call_id]
            if not holders:
                del self.holders[one]

    def sharing(self, prints: Iterable[int]) -> Counter[str]:
        """How many of these fingerprints each remembered call holds."""
        return Counter(call_id for one in prints for call_id in self.holders.get(one, ()))


@dataclass(slots=True)
class Memory:
    """What one principal read and sent lately."""

    reads: Side = field(default_factory=Side)
    sends: Side = field(default_factory=Side)
    reported: dict[str, None] = field(default_factory=dict)  # ids of egress calls with a finding
    newest_us: int = 0
    evicted: int = 0  # calls forgotten for want of room, not of age

    @property
    def prints(self) -> int:
        """Fingerprints held, a measure of the memory used."""
        return self.reads.prints + self.sends.prints


def concerns(event: CallEvent) -> bool:
    """Whether the event is of one of the two sides. A result that was blocked has not been read by anybody."""
    if not event.fingerprints:
        return False
    if isinstance(event, CallCompleted):
        return SENSITIVE in event.labels and event.outcome != "blocked"
    return EGRESS in event.labels


def observe(memory: Memory, event: CallEvent, settings: Exfiltration) -> list[FindingRaised]:
    """Remember the call and compare it with what is remembered of the other side. `concerns(event)` holds."""
    reading = isinstance(event, CallCompleted)
    own, other = (memory.reads, memory.sends) if reading else (memory.sends, memory.reads)
    if event.call_id in own.calls:
        return []
    kept = _kept(event)
    memory.newest_us = max(memory.newest_us, kept.at_us)
    _forget(memory, settings)
    own.add(kept)
    pairs: dict[str, tuple[int, Kept, Kept]] = {}
    for call_id, shared in other.sharing(kept.prints).items():
        read, send = (kept, other.calls[call_id]) if reading else (other.calls[call_id], kept)
        if shared < settings.shared_min or not _in_order(read, send, settings):
            continue
        best = pairs.get(send.event.call_id)
        if send.event.call_id not in memory.reported and (best is None or shared > best[0]):
            pairs[send.event.call_id] = (shared, read, send)
    memory.reported |= dict.fromkeys(pairs)
    return [_finding(shared, read.event, send.event, settings) for shared, read, send in pairs.values()]


def _kept(event: CallEvent) -> Kept:
    at_us = event.completed_us if isinstance(event, CallCompleted) else event.requested_us
    facts = msgspec.structs.replace(event, sealed=Sealed(), fingerprints=())
    return Kept(facts, at_us, frozenset(_numbers(event.fingerprints)))


def _numbers(prints: Iterable[str]) -> list[int]:
    numbers = []
    for one in prints:
        try:
            numbers.append(int(one, 16))
        except ValueError:  # another edge's format: nothing to compare it with
            continue
    return numbers


def _in_order(read: Kept, send: Kept, settings: Exfiltration) -> bool:
    """The result was there before the request was made, and not too long before."""
    return -CLOCK_SKEW_US <= send.at_us - read.at_us <= settings.memory_s * 1e6


def _forget(memory: Memory, settings: Exfiltration) -> None:
    oldest_us = memory.newest_us - int(settings.memory_s * 1e6) - CLOCK_SKEW_US
    for side in (memory.reads, memory.sends):
        for call_id in [call_id for call_id, kept in side.calls.items() if kept.at_us < oldest_us]:
            side.drop(call_id)
        while len(side.calls) >= SIDE_MAX:
            side.drop(next(iter(side.calls)))
            memory.evicted += 1
    while len(memory.reported) > SIDE_MAX:
        del memory.reported[next(iter(memory.reported))]


def _finding(shared: int, read: CallEvent, send: CallEvent, settings: Exfiltration) -> FindingRaised:
    refused = "" if send.decision == "allow" else f" The call was refused ({send.decision})."
    return raised(
        RULE,
        send,
        (send.call_id,),
        severity=settings.severity,
        title="Sensitive text in arguments to an egress server",
        message=(
            f"Text that {read.agent} read from {read.server}/{read.target} appears in its arguments to "
            f"{send.server}/{send.target} ({shared} passages in common).{refused}"
        ),
        call_ids=(read.call_id, send.call_id),
    )
