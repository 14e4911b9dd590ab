"""The work of `tidegate bundle diff`: two bundles, from directories or releases, and what they decide differently."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tidegate.errors import CallerFault
from tidegate.policy.bundle import Bundle, bundle_of, load_bundle
from tidegate.policy.differences import Change, Differences, Example, compare
from tidegate.policy.facts import Facts
from tidegate_cli.bundles import whole_digest
from tidegate_cli.management import Management, open_management, segment
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say

SHOWN_MAX = 40
RULING = "ruling"  # what rules the ring now


def show_differences(old: str, new: str, ring: str, config: Path, token: str, as_json: bool) -> None:
    """Raises Fault where one of them cannot be had or cannot decide."""
    before, after = (bundle_named(name, ring, config, token) for name in (old, new))
    found = compare(before, after)
    if as_json:
        print_document(found)
    else:
        say_differences(found)


def say_differences(found: Differences) -> None:
    _say_changes("[yellow]more permissive[/]", found.of("more-permissive"))
    _say_changes("[cyan]stricter[/]", found.of("stricter"))
    _say_unreachable(found)
    _say_files(found)
    tried = f"{found.decisions} calls that rules and cases mention, decided by both"
    if not found.changes:
        say(f"[green]no decision differs[/]  {tried}")
    else:
        say(f"[dim]{tried}[/]")
    _say_whole(found)


def say_wider(found: Differences) -> None:
    """What becomes more permissive, and whether that may not be all."""
    _say_changes("[yellow]more permissive[/]", found.of("more-permissive"))
    _say_files(found)
    _say_whole(found)


def bundle_named(name: str, ring: str, config: Path, token: str) -> Bundle:
    """In a directory, or released: RULING, its number in the ring, or its digest. Raises Fault."""
    if Path(name).is_dir():
        return load_bundle(name)
    if name == RULING:
        management = open_management(live_settings(config), token)
        return released_bundle(management, whole_digest(management, "", ring))
    if not all(char in "0123456789abcdef" for char in name) or not name:
        raise CallerFault(
            f"{name} is neither a directory nor a release, nor 'ruling'; `tidegate bundle list` shows releases"
        )
    management = open_management(live_settings(config), token)
    digest = name
    if len(name) < 12 and name.isdecimal():
        releases = management.get("/releases", ring=ring, limit=1000)
        digest = next((str(release["digest"]) for release in releases if release["number"] == int(name)), "")
        if not digest:
            raise CallerFault(f"the ring '{ring}' has no release {name}; `tidegate bundle list` shows them")
    return released_bundle(management, whole_digest(management, digest, ring))


def released_bundle(management: Management, digest: str) -> Bundle:
    """Raises Fault."""
    files = management.get(f"/bundles/{segment(digest)}")["files"]
    return bundle_of({path: text.encode() for path, text in files.items()})


def _say_changes(title: str, changes: list[Change]) -> None:
    for change in changes[:SHOWN_MAX]:
        rules = ", ".join(change.rules_after) or f"no rule; before by {', '.join(change.rules_before)}"
        say(f"{title}  {plain(f'{change.server}/{change.tool}')}  {plain(_turn(change))}, by {plain(rules)}")
        say(f"    for example {plain(_told(change.example))}")
    if len(changes) > SHOWN_MAX:
        say(f"and {len(changes) - SHOWN_MAX} more; --json lists all")


def _turn(change: Change) -> str:
    """ "deny → allow", or what differs between two questions."""
    before, after = change.asked_before, change.asked_after
    if before is None or after is None:
        return f"{change.before} → {change.after}"
    told = []
    if before.approver != after.approver:
        told.append(f"approver {before.approver or 'requester'} → {after.approver or 'requester'}")
    if before.expires_s != after.expires_s:
        told.append(f"expires {_duration(before.expires_s)} → {_duration(after.expires_s)}")
    return f"ask: {', '.join(told)}"


def _duration(seconds: int) -> str:
    """As in `@expires`."""
    size, unit = next((one for one in ((86_400, "d"), (3600, "h"), (60, "m")) if seconds % one[0] == 0), (1, "s"))
    return f"{seconds // size}{unit}"


def _say_whole(found: Differences) -> None:
    if not found.whole:
        say(
            "[yellow]not all of it[/]  is compared: the bundles mention more than is tried; give cases for what "
            "matters most"
        )


def _say_files(found: Differences) -> None:
    titles = {"more-permissive": "[yellow]more permissive[/]", "stricter": "[cyan]stricter[/]", "other": "changed"}
    for change in found.limits:
        named = f"limit {change.limit}  " if change.limit else ""
        say(f"{titles[change.direction]}  {plain(f'{named}{change.sentence}')}")
    for other in found.files[:SHOWN_MAX]:
        say(f"{titles[other.direction]}  {plain(f'{other.file}  {other.sentence}')}")
    if len(found.files) > SHOWN_MAX:
        say(f"and {len(found.files) - SHOWN_MAX} more; --json lists all")


def _say_unreachable(found: Differences) -> None:
    for rule in found.unreachable:
        where = plain(f"{rule.rule} ({rule.path}:{rule.line})")
        if rule.example is None:
            say(f"[magenta]unreachable[/]  {where} decides none of the calls tried")
            continue
        now = f"now by {', '.join(rule.now)}" if rule.now else "by no rule now"
        say(f"[magenta]unreachable[/]  {where} decides nothing any more")
        say(f"    before for example {plain(_told(rule.example))}, {plain(now)}")


def _told(example: Example) -> str:
    groups = f" of {', '.join(example.groups)}" if example.groups else ""
    agent = f" through {example.agent}" if example.agent else ""
    labels = f" [{', '.join(example.labels)}]" if example.labels else ""
    arguments = msgspec.json.encode(example.arguments).decode()
    service = "the service account " if example.kind == "service" else ""
    who = f"{service}{example.user}{groups}{agent}"
    return f"{who}: {example.server}/{example.tool}{labels} {arguments}{_around(example.facts)}"


def _around(facts: Facts) -> str:
    at = f"{datetime.fromtimestamp(facts.now_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC" if facts.now_us else ""
    told = (
        f"at {at}" if at else "",
        f"from {facts.address}" if facts.address else "",
        f"tainted {', '.join(facts.taint)}" if facts.taint else "",
        f"MCP {facts.protocol}" if facts.protocol else "",
    )
    return "".join(f", {part}" for part in told if part)
