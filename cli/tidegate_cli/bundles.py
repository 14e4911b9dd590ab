"""The work of `tidegate bundle`: check, publish, list, show, roll back."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tidegate.errors import BundleFault, CallerFault, Problem
from tidegate_cli.management import Management, ManagementRefused, open_management, segment
from tidegate_cli.options import live_settings
from tidegate_cli.output import console, plain, print_document, say

CANONICAL = "application/vnd.tidegate.bundle+json"
DIGEST_SHOWN = 12
MANIFEST = "manifest.json"
PROBLEMS_SHOWN_MAX = 20


def show_check(directory: Path, show_cedar: bool, as_json: bool) -> int:
    """The exit code: 1 where a problem is fatal."""
    from tidegate.policy.bundle import load_bundle
    from tidegate.policy.cases import load_cases
    from tidegate.policy.check import check_bundle

    digest, cases, cedar = "", 0, ""
    try:
        bundle = load_bundle(directory)
        digest, cedar = bundle.digest, bundle.grants.cedar
        problems: Sequence[Problem] = check_bundle(bundle)
        cases = len(load_cases(bundle.text("cases.yaml"))) if not problems else 0
    except BundleFault as fault:
        problems = fault.problems or (Problem("", fault.sentence),)
    fatal = any(problem.fatal for problem in problems)
    listed = [problem._asdict() for problem in problems]
    if as_json:
        shown = {"cedar": cedar} if show_cedar else {}
        print_document({"releasable": not fatal, "digest": digest, "cases": cases, "problems": listed, **shown})
        return int(fatal)
    if show_cedar:
        say(plain(cedar) if cedar else "There is no grants.yaml that compiles: the rules are in policies/*.cedar.\n")
    _say_problems(listed, directory)
    if not fatal:
        passed = f", {cases} case{'s' if cases != 1 else ''} passed" if cases else ""
        say(f"[green]can be released[/]  {plain(directory)}  {digest[:DIGEST_SHOWN]}{passed}")
    return int(fatal)


def show_publish(directory: Path, ring: str, config: Path, token: str, as_json: bool) -> int:
    from tidegate.policy.bundle import load_bundle

    bundle = load_bundle(directory)
    try:
        path = f"/bundles?ring={segment(ring)}"
        released = _management(config, token).post(path, bundle.canonical, CANONICAL)
    except ManagementRefused as refused:
        if as_json:
            print_document({"error": {"code": refused.code, "message": refused.sentence, "problems": refused.problems}})
        else:
            _say_problems(refused.problems, directory)
            say(f"[red]not released[/]  {plain(refused.sentence)}")
        return 1
    if as_json:
        print_document(released)
    elif released["created"]:
        say(f"[green]released[/]  {_release(released)}")
    else:
        say(f"rules already  {_release(released)}")
    return 0


def show_releases(ring: str, config: Path, token: str, as_json: bool) -> None:
    found = _management(config, token).get("/releases", **({"ring": ring} if ring else {}))
    if as_json:
        print_document(found)
        return
    from rich.table import Table

    table = Table("", "ring", "number", "bundle", "released", "by", box=None, header_style="bold", pad_edge=False)
    for release in found:
        mark = "[green]rules[/]" if release["current"] else ""
        by = release["actor"] if len(release["actor"]) < 24 else release["actor"][:DIGEST_SHOWN]
        how = " (rolled back)" if release["cause"] == "rolled-back" else ""
        row = (
            release["ring"],
            release["number"],
            release["digest"][:DIGEST_SHOWN],
            _when(release["released_us"]),
            by + how,
        )
        table.add_row(mark, *(plain(cell) for cell in row))
    console().print(table)


def show_bundle(digest: str, ring: str, config: Path, token: str, as_json: bool) -> None:
    """The one with this digest or beginning of one; of "", the one that rules the ring."""
    management = _management(config, token)
    found = management.get(f"/bundles/{segment(whole_digest(management, digest, ring))}")
    if as_json:
        print_document(found)
        return
    say(f"[bold]{plain(found['digest'])}[/]")
    for release in found["releases"]:
        say(f"  {_release(release)}{'  [green]rules[/]' if release['current'] else ''}")
    for path, text in found["files"].items():
        say(f"\n[bold cyan]── {plain(path)}[/]\n{plain(text.rstrip())}")


def show_rollback(to: str, ring: str, config: Path, token: str, as_json: bool) -> None:
    management = _management(config, token)
    wanted: int | str = int(to) if to.isdecimal() and len(to) < 12 else whole_digest(management, to, ring)
    released = management.post("/rollback", msgspec.json.encode({"ring": ring, "to": wanted}))
    if as_json:
        print_document(released)
    else:
        say(f"[green]rolled back[/]  {_release(released)}")


def _management(config: Path, token: str) -> Management:
    return open_management(live_settings(config), token)


def whole_digest(management: Management, wanted: str, ring: str) -> str:
    """A whole digest. Raises CallerFault where none, or more than one, is meant."""
    releases = management.get("/releases", ring=ring, limit=1000)
    if not wanted:
        current = [release["digest"] for release in releases if release["current"]]
        if not current:
            raise CallerFault(f"no bundle rules the ring '{ring}' yet; publish one with `tidegate bundle publish DIR`")
        return str(current[0])
    found = {str(release["digest"]) for release in releases if release["digest"].startswith(wanted)}
    if len(found) != 1:
        many = "no release has" if not found else f"{len(found)} bundles have"
        raise CallerFault(f"{many} a digest that begins with {wanted}; `tidegate bundle list` shows them")
    return found.pop()


def _say_problems(problems: list[dict[str, Any]], directory: Path) -> None:
    for problem in problems[:PROBLEMS_SHOWN_MAX]:
        style, word = ("red", "wrong") if problem["fatal"] else ("yellow", "look at")
        line = f":{problem['line']}" if problem["line"] else ""
        where = f"{plain(directory / problem['path'])}{line}: " if problem["path"] else ""
        say(f"[{style}]{word}[/]  {where}{plain(problem['sentence'])}")
    if len(problems) > PROBLEMS_SHOWN_MAX:
        say(f"and {len(problems) - PROBLEMS_SHOWN_MAX} more; --json lists all")
    if problems and (meant := bundle_below(directory)):
        say(f"did you mean {plain(meant)}?")


def bundle_below(directory: Path) -> Path | None:
    """The one bundle right below a directory that is none itself: the example's directory, given for its policy."""
    if (directory / MANIFEST).exists() or not directory.is_dir():
        return None
    found = [manifest.parent for manifest in directory.glob(f"*/{MANIFEST}")]
    return found[0] if len(found) == 1 else None


def _release(release: dict[str, Any]) -> str:
    digest = str(release["digest"])[:DIGEST_SHOWN]
    return f"release {release['number']} of {plain(release['ring'])}, bundle {digest}, {_when(release['released_us'])}"


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).strftime("%Y-%m-%d %H:%M:%S")
