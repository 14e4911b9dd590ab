"""Which release decides for whom, on this edge: the ruling one, or the canary for the principals of its stage. Pure.

Counterparts: `tidegate/policy/staging.py` says who is in a stage; `releases.py` makes rings and swaps them;
`edge.ruling_of` asks.
"""

from typing import Final

from tidegate.claims import Principal
from tidegate.policy.signing import Stage
from tidegate.policy.staging import fits
from tidegate_edge.ruling import Ruling

CHOSEN_MAX: Final = 200_000  # principals whose part is remembered


class Rings:
    """What has a role in one tenant's ring; swapped whole. Without a ruling release nothing decides."""

    def __init__(self, ruling: Ruling | None, canary: Ruling | None = None, stage: Stage | None = None) -> None:
        """`canary`: None where there is none, or its stage leaves this edge out."""
        self.ruling = ruling
        self.canary = canary if ruling is not None else None
        self.stage = stage
        self._chosen: dict[str, Ruling] = {}

    def of(self, principal: Principal) -> Ruling | None:
        """What decides for this principal."""
        canary, ruling = self.canary, self.ruling
        if canary is None or ruling is None:
            return ruling
        chosen = self._chosen.get(principal.key)
        if chosen is None:
            if len(self._chosen) >= CHOSEN_MAX:
                self._chosen.clear()
            chosen = canary if fits(self.stage, canary.digest, principal) else ruling
            self._chosen[principal.key] = chosen
        return chosen

    def decides_as(self, other: "Rings", principal: Principal) -> bool:
        """Whether the same bundle decides for this principal there."""
        one, two = self.of(principal), other.of(principal)
        return (one.digest if one else "") == (two.digest if two else "")

    @property
    def digests(self) -> frozenset[str]:
        """Of the bundles that decide for somebody."""
        return frozenset(one.digest for one in (self.ruling, self.canary) if one is not None)
