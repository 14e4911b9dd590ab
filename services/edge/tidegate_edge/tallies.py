"""What each release has decided on this edge, and what those that do not rule would have said. No I/O.

Of what rules, or is a canary, one caller's calls count up to a share: by these tallies releases are taken back, and no
single caller may do that by calling more often than others. A caller is a person or a service, whatever agents it uses.
Counterparts: `ruling.py` holds a release's tally and its shadows, `shadows.py` asks those; `observing.py` tells the
tallies to the log.
"""

import heapq
import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from tidegate.events import Shadowed
from tidegate.policy.engine import Engine, PolicyPrincipal
from tidegate.policy.facts import Facts
from tidegate.policy.signing import Guard
from tidegate.policy.verdict import Verdict

SHARE: Final = 20
"""Calls of one caller that count until the shares begin anew."""
FIRST_US: Final = 2_000_000
"""So long after a release got its role the shares begin anew for the first time; then each time its age has doubled."""
CALLERS_MAX: Final = 10_000
BUCKETS: Final = 4_096
"""Whoever comes when `CALLERS_MAX` are known shares one of so many shares with others."""
ERROR: Final = "evaluation-error"
_SLOW_US: Final = Guard().slow_us


class Sums(msgspec.Struct, frozen=True):
    """What is told of a tally; as `BundleObserved` names it."""

    decided: int = 0
    denied: int = 0
    asked: int = 0
    errors: int = 0
    slow: int = 0
    differed: int = 0
    callers: int = 0
    most_denied: tuple[int, ...] = ()
    most_errors: tuple[int, ...] = ()
    most_slow: tuple[int, ...] = ()


class _Share:
    """Of one caller: what of its calls may still count until `turn` is over, and what has counted in all."""

    __slots__ = ("denied", "errors", "hidden", "left", "slow", "turn")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.left = SHARE
        self.hidden = False  # whether a hidden call has counted in this turn
        self.denied = self.errors = self.slow = 0

    def renew(self, turn: int) -> None:
        self.turn, self.left, self.hidden = turn, SHARE, False


class Tally:
    """Plain integers, since the release has its role here."""

    __slots__ = (
        "_begun_us",
        "_renews_us",
        "_shares",
        "_turn",
        "asked",
        "decided",
        "denied",
        "differed",
        "errors",
        "since_us",
        "slow",
        "slow_us",
    )

    def __init__(self, since_us: int, slow_us: int = _SLOW_US) -> None:
        self.since_us = since_us
        self.slow_us = slow_us
        self.decided = self.denied = self.asked = self.errors = self.slow = self.differed = 0
        self._shares: dict[str | int, _Share] = {}
        self._turn = 0
        self.compare_from(since_us)

    def compare_from(self, at_us: int) -> None:
        """Another release is compared with this one from now on: shares begin anew, and as often as that one's."""
        self._begun_us, self._renews_us, self._turn = at_us, at_us + FIRST_US, self._turn + 1

    def add(self, verdict: Verdict, took_us: float) -> None:
        """Whoever calls, and however often."""
        self.decided += 1
        if verdict.effect == "deny":
            self.denied += 1
            if verdict.reason == ERROR:
                self.errors += 1
        elif verdict.effect == "ask":
            self.asked += 1
        if took_us > self.slow_us:
            self.slow += 1

    def add_share(self, caller: str, at_us: int, verdict: Verdict, took_us: float, *, hidden: bool) -> None:
        """A call of `caller`, as far as its share reaches: beyond that nothing grows. `hidden`: it asked for what it
        may see under no release that is compared, of which one call counts as long as others count `SHARE`.
        """
        if at_us >= self._renews_us:
            self._turn += 1
            self._renews_us = at_us + max(FIRST_US, at_us - self._begun_us)
        share = self._shares.get(caller) or self._share(caller)
        if share.turn != self._turn:
            share.renew(self._turn)
        if not share.left or (hidden and share.hidden):
            return
        share.left -= 1
        self.decided += 1
        if verdict.effect == "deny":
            self.denied += 1
            share.denied += 1
            share.hidden = share.hidden or hidden
            if verdict.reason == ERROR:
                self.errors += 1
                share.errors += 1
        elif verdict.effect == "ask":
            self.asked += 1
        if took_us > self.slow_us:
            self.slow += 1
            share.slow += 1

    def _share(self, caller: str) -> _Share:
        key = caller if len(self._shares) < CALLERS_MAX else hash(caller) % BUCKETS
        return self._shares.setdefault(key, _Share(self._turn))

    def sums(self) -> Sums:
        shares = self._shares.values()
        return Sums(
            self.decided,
            self.denied,
            self.asked,
            self.errors,
            self.slow,
            self.differed,
            len(shares),
            _two_most(share.denied for share in shares) if self.denied else (),
            _two_most(share.errors for share in shares) if self.errors else (),
            _two_most(share.slow for share in shares) if self.slow else (),
        )


def _two_most(counts: Iterable[int]) -> tuple[int, ...]:
    return tuple(heapq.nlargest(2, filter(None, counts)))


class Shadow:
    """Rules that are evaluated beside those that rule: another release's, or a bundle's own in shadow mode."""

    def __init__(self, engine: Engine, digest: str, number: int, tally: Tally) -> None:
        self.engine = engine
        self.digest = digest
        self.number = number
        self.tally = tally

    def compare(
        self,
        verdict: Verdict,
        principal: PolicyPrincipal,
        server: str,
        action: str,
        arguments: Mapping[str, object],
        facts: Facts,
    ) -> Shadowed | None:
        """What would have been decided, where that is not what was."""
        began_ns = time.perf_counter_ns()
        would = self.engine.evaluate(principal, server, action, arguments, facts)
        self.tally.add(would, (time.perf_counter_ns() - began_ns) / 1_000)
        if would.effect == verdict.effect:
            return None
        self.tally.differed += 1
        return Shadowed(
            bundle=self.digest, release=self.number, decision=would.effect, reason=would.reason, rules=would.rules
        )
