"""What each release has decided on this edge, and what those that do not rule would have said. No I/O.

Counterparts: `ruling.py` holds a release's tally and its shadows, `shadows.py` asks those; `observing.py` tells the
tallies to the log.
"""

import time
from collections.abc import Mapping
from typing import Final

from tidegate.events import Shadowed
from tidegate.policy.engine import Engine, PolicyPrincipal
from tidegate.policy.facts import Facts
from tidegate.policy.signing import Guard
from tidegate.policy.verdict import Verdict

ERRORS: Final = frozenset({"evaluation-error", "argument-not-representable"})
_SLOW_US: Final = Guard().slow_us


class Tally:
    """Plain integers, since the release has its role here."""

    __slots__ = ("asked", "decided", "denied", "differed", "errors", "since_us", "slow", "slow_us")

    def __init__(self, since_us: int, slow_us: int = _SLOW_US) -> None:
        self.since_us = since_us
        self.slow_us = slow_us
        self.decided = self.denied = self.asked = self.errors = self.slow = self.differed = 0

    def add(self, verdict: Verdict, took_us: float) -> None:
        self.decided += 1
        if verdict.effect == "deny":
            self.denied += 1
            if verdict.reason in ERRORS:
                self.errors += 1
        elif verdict.effect == "ask":
            self.asked += 1
        if took_us > self.slow_us:
            self.slow += 1

    def counts(self) -> dict[str, int]:
        """As `BundleObserved` names them."""
        return {name: getattr(self, name) for name in ("decided", "denied", "asked", "errors", "slow", "differed")}


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
