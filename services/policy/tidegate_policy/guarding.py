"""Watching guarded releases: what their guards have to say by now, and taking back what they find too bad.

A canary is compared with what rules beside it since it came, a ruling release with what ruled before. All of it is
folded from the log, so a service that restarts goes on watching. Counterpart: `guard.py` judges.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tidegate.errors import Fault
from tidegate.events import BundleReleased, Role
from tidegate.policy.signing import Guard
from tidegate_policy.guard import Awaited, Counts, awaited, judge
from tidegate_policy.journal import Journal
from tidegate_policy.publish import Publisher
from tidegate_policy.state import ControlPlane, terms_of

ACTOR: Final = "guard"
LATE_US: Final = 10_000_000  # an edge's last word on a watched release may come that much after the watch
_GUARDED: Final[tuple[Role, ...]] = ("canary", "ruling")
_LOOK_S: Final = 0.5
_RETRY_S: Final = 5.0

_log = logging.getLogger(__name__)

Watching = Literal["unguarded", "waiting", "watching", "failed", "passed", "nothing-before"]


@dataclass(frozen=True)
class Opinion:
    """What a release has decided, what it is compared with, and what its guard makes of it.

    `waiting`: for enough calls. `passed`: the watch of a ruling release is over. `nothing-before`: there is nothing to
    return to. `failed`: `reason` says why it must be taken back. `awaited`: it would be, had more callers met it.
    """

    own: Counts
    other: Counts
    watching: Watching
    reason: str = ""
    until_us: int = 0  # when the watch ends; 0: it does not, or nobody watches
    awaited: Awaited | None = None


def opinion_of(state: ControlPlane, release: BundleReleased, now_us: int) -> Opinion:
    """Of a release that is in force. Pure."""
    terms = terms_of(release)
    guard = terms.guard if terms is not None else None
    if guard is None or release.role == "shadow":
        own = state.observations.total(release.ring, release.role, release.number)
        return Opinion(own, Counts(), "unguarded")
    if release.role == "canary":
        return _of_canary(state, release, guard)
    return _of_ruling(state, release, guard, now_us)


def _of_canary(state: ControlPlane, release: BundleReleased, guard: Guard) -> Opinion:
    observations, ring = state.observations, release.ring
    own = observations.total(ring, "canary", release.number)
    ruling = state.current(ring)
    other = Counts()
    if ruling is not None:
        other = observations.beside(ring, release.number, ruling.number)
        if other.decided < guard.calls_min:  # few are decided beside it: with all that was, then
            other = observations.total(ring, "ruling", ruling.number)
    return _judged(guard, own, other, 0)


def _of_ruling(state: ControlPlane, release: BundleReleased, guard: Guard, now_us: int) -> Opinion:
    until_us = release.time_us + int(guard.watch_s * 1e6)
    observations, ring = state.observations, release.ring
    own = observations.total(ring, "ruling", release.number, until_us + LATE_US)
    before = state.before(release)
    if before is None or before.digest == release.digest:
        return Opinion(own, Counts(), "nothing-before")
    found = _judged(guard, own, observations.total(ring, "ruling", before.number), until_us)
    if not found.reason and now_us > until_us + LATE_US:
        return Opinion(own, found.other, "passed")
    return found


def _judged(guard: Guard, own: Counts, other: Counts, until_us: int) -> Opinion:
    if reason := judge(guard, own, other):
        return Opinion(own, other, "failed", reason, until_us)
    watching: Watching = "waiting" if own.decided < guard.calls_min else "watching"
    return Opinion(own, other, watching, "", until_us, awaited(guard, own, other))


class Guardian:
    """Takes back what its guard finds too bad."""

    def __init__(self, state: ControlPlane, publisher: Publisher, journal: Journal, clock: Callable[[], int]) -> None:
        self._state = state
        self._publisher = publisher
        self._journal = journal
        self._clock = clock

    async def run(self, caught_up: asyncio.Event) -> None:
        """Until cancelled; what the log holds from before counts, nothing is judged before all of it is read."""
        await caught_up.wait()
        while True:
            try:
                if not self._journal.is_fenced:
                    await self.look()
            except Fault as fault:
                _log.error("a release could not be taken back, it is tried again: %s", fault.sentence)
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Judge every guarded release that is in force, once. Raises LogUnavailable, BundleFault."""
        for ring in list(self._state.releases):
            for role in _GUARDED:
                release = self._state.current(ring, role)
                if release is None:
                    continue
                found = opinion_of(self._state, release, self._clock())
                if found.watching == "failed":
                    await self._take_back(release, found.reason)

    async def _take_back(self, release: BundleReleased, reason: str) -> None:
        made = await self._publisher.take_back(release, ACTOR, reason)
        if made is not None:
            _log.error(
                "release %d (%s) of ring '%s' is taken back by release %d: %s",
                release.number,
                release.role,
                release.ring,
                made.number,
                reason,
            )
