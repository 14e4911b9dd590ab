"""For whom a canary decides: the edges and the principals of its stage. Pure.

Equal principals are always in the same part, on every edge: membership depends on the digest, the tenant, the subject
and the agent alone, so a canary that grows keeps those that it had. Counterparts: the edge's `rings.py` decides by it;
`tidegate can` tells by it.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, Protocol

from tidegate.policy.signing import Stage

_SPACE: Final = 2**64


class Staged(Protocol):
    """What membership depends on."""

    @property
    def tenant(self) -> str: ...
    @property
    def subject_id(self) -> str: ...
    @property
    def agent(self) -> str: ...
    @property
    def groups(self) -> tuple[str, ...]: ...


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


def fits(stage: Stage | None, digest: str, principal: Staged) -> bool:
    """Whether the canary rules this principal, on the edges where it rules."""
    if stage is None:
        return True
    if stage.groups and not set(stage.groups) & set(principal.groups):
        return False
    if stage.percent >= 100:
        return True
    return part_of(digest, principal.tenant, principal.subject_id, principal.agent) < stage.percent
