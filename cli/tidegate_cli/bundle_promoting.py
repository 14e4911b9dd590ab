"""The work of `tidegate bundle promote`: what is promoted is looked at first, named, and refused where it is another.

Counterpart: `publish.py` of the policy service, which looks again.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec
import typer

from tidegate_cli.bundle_releasing import say_warnings, terms_told
from tidegate_cli.bundle_status import awaited_told
from tidegate_cli.bundles import bundle_link, calls_told, release_line, release_named
from tidegate_cli.management import Management, open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say

CANARY = "canary"


def show_promotion(
    meant: str, ring: str, source: str, guard: dict[str, Any], yes: bool, config: Path, token: str, as_json: bool
) -> None:
    """`meant`: a number or digest, or its beginning; "": what there is. Raises Fault where nothing was promoted."""
    management = open_management(live_settings(config), token)
    wanted: dict[str, Any] = {"ring": ring, "from": source, **({"guard": guard} if guard else {})}
    if meant:
        wanted["release"] = release_named(management, meant, ring if source == CANARY else source)
    found = _canary(management, ring) if source == CANARY else None
    doubt = ""
    if found is not None and wanted.setdefault("release", found["release"]["number"]) in _names(found):
        doubt = _doubt(found)
        if not as_json:
            _look(found, doubt, ask=not (yes or meant))
    released = management.post("/promote", msgspec.json.encode(wanted))
    if as_json:
        print_document({**released, "warnings": [*([doubt] if doubt else []), *released["warnings"]]})
        return
    say(f"[green]promoted[/]  {release_line(released)}{terms_told(released)}")
    say_warnings(released)


def _canary(management: Management, ring: str) -> dict[str, Any] | None:
    rings = management.get("/status", ring=ring)["rings"]
    return rings[0][CANARY] if rings else None


def _names(found: dict[str, Any]) -> tuple[int, str]:
    return found["release"]["number"], found["release"]["digest"]


def _look(found: dict[str, Any], doubt: str, *, ask: bool) -> None:
    """Shows the canary. Raises typer.Abort where somebody was asked, and said no."""
    release = found["release"]
    bundle = f"bundle {bundle_link(release['digest'])}"
    decided = calls_told(found["counts"]["decided"])
    say(f"[yellow]canary[/]  release {release['number']} of {plain(release['ring'])}, {bundle}, decided {decided}")
    if doubt:
        say(f"[yellow]look at[/]  {doubt}")
    if doubt and ask and sys.stdin.isatty():
        typer.confirm("Promote it all the same (--yes does not ask)?", abort=True, err=True)


def _doubt(found: dict[str, Any]) -> str:
    """Why too little may be known of it; "" where it was tried."""
    decided, guard = found["counts"]["decided"], found["release"]["guard"]
    if guard and decided < guard["calls_min"]:
        return f"its guard concludes nothing from fewer than {calls_told(guard['calls_min'])}"
    if found.get("awaited"):
        return f"its guard waits: {awaited_told(found['awaited'])}"
    return "" if decided or guard else "it decided no call that an edge has told of, and has no guard"
