"""Which release decides for whom, on this edge: the ruling one, or the canary for the principals of its stage. Pure.

Counterparts: `releases.py` makes and swaps them; `edge.ruling_of` asks. Equal principals are always in the same part,
on every edge: membership depends on the digest, the tenant, the subject and the agent alone, so a canary that grows
keeps those that it had.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from tidegate.claims import Principal
from tidegate.policy.signing import Stage
from tidegate_edge.ruling import Ruling

CHOSEN_MAX: Final = 200_000  # principals whose part is remembered
_SPACE: Final = 2**64


def part_of(digest: str, tenant: str, subject_id: str, agent: str) -> float:
    """Where a principal stands for this bundle, from 0 to below 100, evenly spread."""
    text = "\0".join((digest, tenant, subject_id, agent))
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()) / _SPACE * 100


def is_here(stage: Stage | None, region: str, labels: Mapping[str, str]) -> bool:
    """Whether the canary rules anybody on an edge of this region with these labels."""
    if stage is None:
        return True
    in_region = not stage.regions or region in stage.regions
    return in_region and all(labels.get(name) == value for name, value in stage.labels.items())


def fits(stage: Stage | None, digest: str, principal: Principal) -> bool:
    """Whether the canary rules this principal, on the edges where it rules."""
    if stage is None:
        return True
    if stage.groups and not set(stage.groups) & set(principal.groups):
        return False
    if stage.percent >= 100:
        return True
    return part_of(digest, principal.tenant, principal.subject_id, principal.agent) < stage.percent


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
