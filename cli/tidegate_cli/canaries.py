"""Which release decides for somebody where a canary rules beside another one, for `tidegate can`. Pure.

Counterpart: `rings.py` of the edge, which decides by the same stage.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from tidegate.events import BundleReleased
from tidegate.policy.history import World
from tidegate.policy.signing import Stage
from tidegate.policy.staging import fits, is_here
from tidegate_cli.bundle_releasing import stage_told


class Member(NamedTuple):
    """Whose part is asked for; `subject_id` "": not known."""

    tenant: str
    subject_id: str
    agent: str
    groups: tuple[str, ...]


class Ruled(NamedTuple):
    """By which release; and what is to be said of the canary, where it does not decide and might elsewhere."""

    release: BundleReleased | None
    note: str = ""


def ruled(world: World, who: Member, region: str, labels: Mapping[str, str]) -> Ruled:
    """At an edge of this region with these labels."""
    canary, stage = world.canary, world.stage
    if canary is None or world.release is None:
        return Ruled(world.release)
    named = f"the canary, release {canary.number}"
    everywhere = None if stage is None else msgspec.structs.replace(stage, percent=100.0)
    if not fits(everywhere, canary.digest, who):
        return Ruled(world.release)
    if stage is not None and stage.percent < 100 and not who.subject_id:
        told = f"whether {named} for {stage_told(msgspec.to_builtins(stage))}, decides for them is not known"
        told = f"{told}: no recorded call shows their subject id; this is the answer for those whom it leaves out"
        return Ruled(world.release, told)
    if not fits(stage, canary.digest, who):
        return Ruled(world.release)
    if stage is not None and not is_here(stage, region, labels):
        at = stage_told(msgspec.to_builtins(Stage(regions=stage.regions, labels=stage.labels)))
        told = f"{named}, decides for them {at.removeprefix('everybody ')} alone"
        return Ruled(world.release, f"{told}; --region and --edge-label say which edge is meant")
    return Ruled(canary)
