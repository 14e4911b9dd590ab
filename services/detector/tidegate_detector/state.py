"""What the detector knows of one partition: per principal a history and a memory, in order of last use, bounded.

All of it can be made again by reading the partition from a little before the place where judging stands; nothing here
is stored. Pure: `observe` folds one event in. Counterparts: `burst.py`, `exfiltration.py` (the rules), `marks.py` (the
place).
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from tidegate.events import AnyEvent, CallCompleted, CallRequested, FindingRaised
from tidegate.settings import Detector
from tidegate_detector import burst, exfiltration
from tidegate_detector.findings import Principal, principal_of

PRINCIPALS_MAX = 20_000
PRINTS_MAX = 200_000


@dataclass(slots=True)
class Known:
    """One principal."""

    history: burst.History = field(default_factory=burst.History)
    memory: exfiltration.Memory = field(default_factory=exfiltration.Memory)


@dataclass(slots=True)
class PartitionState:
    """One partition's principals, the least recently seen first."""

    principals: OrderedDict[Principal, Known] = field(default_factory=OrderedDict)
    prints: int = 0
    evicted_principals: int = 0
    evicted_calls: int = 0


def observe(state: PartitionState, event: AnyEvent, settings: Detector) -> list[FindingRaised]:
    """What all rules conclude from the event, given those before it."""
    if not isinstance(event, CallRequested | CallCompleted):
        return []
    concerned = exfiltration.concerns(event)
    if isinstance(event, CallCompleted) and not concerned:
        return []
    known = _touch(state, principal_of(event))
    found: list[FindingRaised] = []
    if isinstance(event, CallRequested) and (finding := burst.observe(known.history, event, settings.burst)):
        found.append(finding)
    if concerned:
        found += _compare(state, known.memory, event, settings)
    return found


def _compare(
    state: PartitionState, memory: exfiltration.Memory, event: CallRequested | CallCompleted, settings: Detector
) -> list[FindingRaised]:
    held, evicted = memory.prints, memory.evicted
    found = exfiltration.observe(memory, event, settings.exfiltration)
    state.prints += memory.prints - held
    state.evicted_calls += memory.evicted - evicted
    _make_room(state)
    return found


def _touch(state: PartitionState, principal: Principal) -> Known:
    known = state.principals.get(principal)
    if known is None:
        known = state.principals[principal] = Known()
        if len(state.principals) > PRINCIPALS_MAX:
            _, oldest = state.principals.popitem(last=False)
            state.prints -= oldest.memory.prints
            state.evicted_principals += 1
    else:
        state.principals.move_to_end(principal)
    return known


def _make_room(state: PartitionState) -> None:
    """Past the bound of fingerprints the longest unseen principals lose theirs; their baselines stay."""
    if state.prints <= PRINTS_MAX:
        return
    for known in list(state.principals.values())[:-1]:
        if state.prints <= PRINTS_MAX:
            return
        calls = len(known.memory.reads.calls) + len(known.memory.sends.calls)
        state.evicted_calls += calls
        state.prints -= known.memory.prints
        known.memory = exfiltration.Memory(reported=known.memory.reported)
