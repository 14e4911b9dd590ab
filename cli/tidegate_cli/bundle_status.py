"""The work of `tidegate bundle status`: by ring what rules, what is tried beside it and with which counts, which edges
run what, who refuses and why.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tidegate.settings import Settings
from tidegate_cli.bundle_releasing import guard_told, stage_told
from tidegate_cli.bundles import as_clause, bundle_link, calls_told, when
from tidegate_cli.management import open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import console, plain, print_document, print_line, say
from tidegate_cli.people import logins, person

LOOK_S: Final = 1.0
TOKEN_S: Final = 60.0  # a token of the local issuer lives longer than that
EDGES_SHOWN_MAX: Final = 20
_NAMES: Final = {"ruling": "rules", "canary": "canary", "shadow": "shadow"}


def show_status(ring: str, follow: bool, config: Path, token: str, as_json: bool) -> None:
    """Once, or again whenever it has changed, until interrupted. JSON: one document, or a line for each change."""
    asked, settings = {"ring": ring} if ring else {}, live_settings(config)
    management, opened_s, before = open_management(settings, token), time.monotonic(), None
    while True:
        found = management.get("/status", **asked)
        if found["rings"] != before:
            before = found["rings"]
            _show(found, settings, follow, as_json)
        if not follow:
            return
        time.sleep(LOOK_S)
        if time.monotonic() - opened_s > TOKEN_S:
            management, opened_s = open_management(live_settings(config), token), time.monotonic()


def _show(found: dict[str, Any], settings: Settings, follow: bool, as_json: bool) -> None:
    if as_json:
        (print_line if follow else print_document)(found)
        return
    if follow and console().is_terminal:
        console().clear()
    if not found["rings"]:
        say("Nothing was released yet; `tidegate bundle publish DIR` does.")
    names = logins(settings, [release["actor"] for ring in found["rings"] for release in ring["ended"]])
    for ring in found["rings"]:
        for line in ring_lines(ring, names):
            say(line)


def ring_lines(ring: dict[str, Any], names: Mapping[str, str]) -> list[str]:
    """What people see of one ring; `names`: logins by subject id."""
    lines = [f"[bold]ring {plain(ring['ring'])}[/]"]
    for role, name in _NAMES.items():
        held = ring[role]
        if held is not None:
            lines += _role_lines(name, held)
        elif role == "ruling":
            lines.append("  [red]nothing rules[/]  every call is refused")
    for release in ring["ended"]:
        why = f": {plain(as_clause(release['reason']))}" if release["reason"] else ""
        by = plain(person(names, release["actor"]))
        lines.append(f"  [dim]ended[/]    {release['role']}, by release {release['number']} of {by}{why}")
    return lines


def _role_lines(name: str, held: dict[str, Any]) -> list[str]:
    release = held["release"]
    staged = f", for {stage_told(release['stage'])}" if release["stage"] else ""
    style = {"rules": "green", "canary": "yellow", "shadow": "cyan"}[name]
    head = f"release {release['number']}, bundle {bundle_link(release['digest'])}, {when(release['released_us'])}"
    lines = [f"  [{style}]{name:<7}[/]  {head}{staged}"]
    if release["reason"]:
        lines.append(f"           {release['cause'].replace('-', ' ')}: {plain(as_clause(release['reason']))}")
    lines += [f"           {line}" for line in _counted(name, held)]
    lines += [f"           {line}" for line in _edges(held["edges"])]
    return lines


def _counted(name: str, held: dict[str, Any]) -> list[str]:
    counts, other, guard = held["counts"], held["compared_with"], held["release"]["guard"]
    lines: list[str] = []
    if name == "shadow":
        share = _share(counts["differed"], counts["decided"])
        lines.append(f"would have decided {counts['differed']} of {calls_told(counts['decided'])} otherwise{share}")
    elif counts["decided"] or guard:
        lines.append(_sum(counts, guard))
    if guard:
        if other["decided"]:
            lines.append(f"{'beside it' if name == 'canary' else 'before it'} {_sum(other)}")
        lines.append(f"guard{_guard(held, guard)}; {guard_told(guard)}")
    return lines


def _sum(counts: dict[str, int], guard: dict[str, Any] | None = None) -> str:
    """Slow decisions are told where a guard bounds them: without one nobody has said what is slow."""
    parts = [
        f"{counts[name]} {what}{_share(counts[name], counts['decided'])}"
        for name, what in (("denied", "denied"), ("asked", "asked"), ("errors", "with errors"))
        if counts[name]
    ]
    if guard and guard["slow"] is not None and counts["slow"]:
        slow = f"{counts['slow']} slower than {guard['slow_us'] / 1e3:g} ms"
        parts.append(f"{slow}{_share(counts['slow'], counts['decided'])}")
    return ", ".join([f"{calls_told(counts['decided'])} decided", *parts])


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if part else ""


def _guard(held: dict[str, Any], guard: dict[str, Any]) -> str:
    if held.get("awaited"):  # an older service does not say
        return f" [yellow]waits[/]: {awaited_told(held['awaited'])}"
    decided = held["counts"]["decided"]
    until = f" until {when(held['watched_until_us'])}" if held["watched_until_us"] else ""
    told = {
        "waiting": f"{decided} of the {calls_told(guard['calls_min'])} that it needs",
        "watching": f"within its bounds{until}",
        "failed": f"[red]takes it back[/]: {plain(held['reason'])}",
        "passed": "[green]passed[/], it watches no more",
        "nothing-before": "nothing ruled before, so there is nothing to return to",
    }
    return f": {told.get(str(held['watching']), str(held['watching']))}"


def awaited_told(found: dict[str, Any]) -> str:
    """What is over a bound, and why that does not count yet."""
    callers, needed, reason = found["callers"], found["callers_needed"], plain(found["reason"])
    if callers < needed:
        return f"{callers} of {needed} callers so far: {reason}"
    most = "the caller who has" if needed == 2 else "the two callers who have"
    return f"too few calls beyond {most} most of them: {reason}"


def _edges(edges: list[dict[str, Any]]) -> list[str]:
    if not edges:
        return ["[dim]no edge has been heard of[/]"]
    current = [plain(edge["edge"]) for edge in edges if edge["state"] == "current"]
    more = f" and {len(current) - EDGES_SHOWN_MAX} more" if len(current) > EDGES_SHOWN_MAX else ""
    lines = [f"obeyed by {', '.join(current[:EDGES_SHOWN_MAX])}{more}"] if current else []
    others = [edge for edge in edges if edge["state"] != "current"]
    lines += [_lagging(edge) for edge in others[:EDGES_SHOWN_MAX]]
    return lines + ([f"and {len(others) - EDGES_SHOWN_MAX} more"] if len(others) > EDGES_SHOWN_MAX else [])


def _lagging(edge: dict[str, Any]) -> str:
    name = plain(edge["edge"])
    runs = f"runs release {edge['number']}" if edge["digest"] else "runs none"
    if edge["state"] == "refused":
        return f"[red]refused by {name}[/], which {runs}: {plain(edge['rejected']['reason'])}"
    if edge["state"] == "silent":
        return f"[yellow]{name} is silent[/]: it {runs}, and has said nothing since"
    return f"[yellow]{name} is behind[/]: it {runs}"
