"""The work of `tidegate bundle check` and `show`, and what the commands about releases share."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.errors import BundleFault, CallerFault, ConfigFault, Problem
from tidegate_cli.management import Management, open_management, segment
from tidegate_cli.options import live_settings
from tidegate_cli.output import lines, plain, print_document, say

if TYPE_CHECKING:
    from tidegate.policy.differences import Differences

CANONICAL = "application/vnd.tidegate.bundle+json"
DIGEST_SHOWN = 12
MANIFEST = "manifest.json"
PROBLEMS_SHOWN_MAX = 20


def show_check(
    directory: Path, show_cedar: bool, against: str, strict: bool, ring: str, config: Path, token: str, as_json: bool
) -> int:
    """The exit code: 1 where a problem is fatal or, if strict, more may pass. `against`: a release or directory; "":
    compared with nothing.
    """
    if strict and not against:
        raise ConfigFault("--fail-on-more-permissive: say with --against than what, for example --against ruling")
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
    differences = _differences(directory, against, ring, config, token) if against and not fatal else None
    failed = fatal or (strict and differences is not None and has_wider(differences))
    if as_json:
        shown: dict[str, Any] = {"cedar": cedar} if show_cedar else {}
        shown |= {"against": differences} if against else {}
        print_document({"releasable": not fatal, "digest": digest, "cases": cases, "problems": listed, **shown})
        return int(failed)
    if show_cedar:
        say(lines(cedar) if cedar else "There is no grants.yaml that compiles: the rules are in policies/*.cedar.\n")
    say_problems(listed, directory)
    if not fatal:
        passed = f", {cases} case{'s' if cases != 1 else ''} passed" if cases else ""
        say(f"[green]can be released[/]  {plain(directory)}  {digest[:DIGEST_SHOWN]}{passed}")
    if differences is not None:
        from tidegate_cli.bundle_comparing import say_differences

        say(f"against {plain(against)}:")
        say_differences(differences)
    return int(failed)


def has_wider(found: "Differences") -> bool:
    """Whether anything more may pass by the newer one."""
    others = {one.direction for one in found.limits} | {one.direction for one in found.files}
    return "more-permissive" in others or bool(found.of("more-permissive"))


def _differences(directory: Path, against: str, ring: str, config: Path, token: str) -> "Differences":
    from tidegate.policy.bundle import load_bundle
    from tidegate.policy.differences import compare
    from tidegate_cli.bundle_comparing import bundle_named

    return compare(bundle_named(against, ring, config, token), load_bundle(directory))


def show_bundle(digest: str, ring: str, config: Path, token: str, as_json: bool) -> None:
    """The one with this digest or beginning of one; of "", the one that rules the ring."""
    management = _management(config, token)
    found = management.get(f"/bundles/{segment(whole_digest(management, digest, ring))}")
    if as_json:
        print_document(found)
        return
    say(f"[bold]{plain(found['digest'])}[/]")
    for release in found["releases"]:
        say(f"  {release_line(release)}{'  [green]rules[/]' if release['current'] else ''}")
    for path, text in found["files"].items():
        say(f"\n[bold cyan]── {plain(path)}[/]\n{lines(text.rstrip())}")


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


def release_named(management: Management, name: str, ring: str) -> int | str:
    """A release's number as it is; a digest, or its beginning, whole. Raises CallerFault."""
    return int(name) if name.isdecimal() and len(name) < DIGEST_SHOWN else whole_digest(management, name, ring)


def calls_told(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"


def as_clause(sentence: str) -> str:
    """A reason of the service's own, to stand within a line: "it was release 4, the canary"."""
    return f"{sentence[:1].lower()}{sentence[1:].removesuffix('.')}" if sentence[1:2].islower() else sentence


def say_problems(problems: list[dict[str, Any]], directory: Path) -> None:
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


def release_line(release: dict[str, Any]) -> str:
    bundle = f"bundle {bundle_link(release['digest'])}"
    return f"release {release['number']} of {plain(release['ring'])}, {bundle}, {when(release['released_us'])}"


def bundle_link(digest: str) -> str:
    """As much of a digest as people need; a release that ends something has none."""
    return digest[:DIGEST_SHOWN] or "-"


def when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).strftime("%Y-%m-%d %H:%M:%S")
