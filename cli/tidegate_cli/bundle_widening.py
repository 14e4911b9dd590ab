"""What a bundle lets pass that the ruling one does not, told before `tidegate bundle publish` releases it.

A guard sees that more is denied, never that more is allowed: that is seen here, or by nobody. Counterpart:
`bundle_comparing.py` tells all differences.
"""

import sys
from typing import Any

import msgspec
import typer

from tidegate.errors import BundleFault
from tidegate.policy.bundle import Bundle
from tidegate.policy.differences import Differences, compare
from tidegate_cli.bundle_comparing import released_bundle, say_wider
from tidegate_cli.management import Management


def widened(management: Management, bundle: Bundle, ring: str) -> Differences | None:
    """Beside what rules the ring, what becomes more permissive alone; None: nothing rules, the same does, or one of
    them cannot decide, which is for the check to say. Raises Fault.
    """
    rings = management.get("/status", ring=ring)["rings"]
    ruling = rings[0]["ruling"] if rings else None
    if ruling is None or ruling["release"]["digest"] == bundle.digest:
        return None
    try:
        found = compare(released_bundle(management, ruling["release"]["digest"]), bundle)
    except BundleFault:
        return None
    return msgspec.structs.replace(
        found,
        changes=tuple(found.of("more-permissive")),
        limits=tuple(one for one in found.limits if one.direction == "more-permissive"),
        files=tuple(one for one in found.files if one.direction == "more-permissive"),
    )


def look_at(wider: Differences, *, ask: bool) -> None:
    """Asks where something is wider. Raises typer.Abort where somebody was asked, and said no."""
    say_wider(wider)
    if ask and (wider.changes or wider.limits or wider.files) and sys.stdin.isatty():
        typer.confirm("Release it all the same (--yes does not ask)?", abort=True, err=True)


def as_document(wider: Differences | None) -> dict[str, Any]:
    """For programs, beside the release; lists of nothing where nothing is wider, of what was tried: `whole` where that
    was all.
    """
    parts = ("changes", "limits", "files")
    found = {name: list(getattr(wider, name)) if wider else [] for name in parts}
    return {"more_permissive": {**found, "whole": wider is None or wider.whole}}
