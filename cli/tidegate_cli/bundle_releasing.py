"""The work of `tidegate bundle publish`, `promote`, `rollback` and `list`: releases made and shown."""

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from tidegate_cli.bundles import CANONICAL, as_clause, bundle_link, release_line, release_named, say_problems, when
from tidegate_cli.management import ManagementRefused, open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import console, plain, print_document, say
from tidegate_cli.people import logins, person

STYLES = {"ruling": "green", "canary": "yellow", "shadow": "cyan", "retired": "dim", "withdrawal": "dim"}


def show_publish(
    directory: Path,
    ring: str,
    stage: dict[str, Any],
    guard: dict[str, Any],
    replace: bool,
    yes: bool,
    config: Path,
    token: str,
    as_json: bool,
) -> int:
    """The exit code: 1 where it was not released. What lets more pass than what rules is told first."""
    from tidegate.policy.bundle import load_bundle
    from tidegate_cli.bundle_widening import as_document, look_at, widened

    bundle = load_bundle(directory)
    bounds = {name if name == "watch" else f"guard_{name}": value for name, value in guard.items()}
    replacing = {"replace": "true"} if replace else {}
    query = urlencode({"ring": ring, **stage, **bounds, **replacing}, doseq=True)
    try:
        management = open_management(live_settings(config), token)
        with console().status("Comparing with what rules"):  # 2,000 rules take ten seconds
            wider = None if stage.get("role") == "shadow" else widened(management, bundle, ring)
        if wider is not None and not as_json:
            look_at(wider, ask=not yes)
        released = management.post(f"/bundles?{query}", bundle.canonical, CANONICAL)
    except ManagementRefused as refused:
        if as_json:
            print_document({"error": {"code": refused.code, "message": refused.sentence, "problems": refused.problems}})
        else:
            say_problems(refused.problems, directory)
            say(f"[red]not released[/]  {_why_not(refused)}")
        return 1
    if as_json:
        print_document(released | as_document(wider))
    elif released["created"]:
        say(f"[green]released[/]  {release_line(released)}{terms_told(released)}")
        if released["replaced"]:
            say(f"[yellow]in place of[/] {_replaced_told(released['replaced'], released['digest'])}")
    else:
        say(f"{_stands(released['role'])} already  {release_line(released)}")
    if not as_json:
        say_warnings(released)
    return 0


def say_warnings(released: dict[str, Any]) -> None:
    for sentence in released["warnings"]:
        say(f"[yellow]look at[/]  {plain(sentence)}")


def _why_not(refused: ManagementRefused) -> str:
    """Without the problems, which are listed already."""
    fatal = sum(bool(problem["fatal"]) for problem in refused.problems)
    if not fatal:
        return plain(refused.sentence)
    return f"the bundle has {fatal} problem{'s' if fatal != 1 else ''}"


def _replaced_told(replaced: dict[str, Any], digest: str) -> str:
    bundle = "the same bundle" if replaced["digest"] == digest else f"bundle {bundle_link(replaced['digest'])}"
    guarded = ", guarded" if replaced["guard"] else ""
    return f"the {replaced['role']} of release {replaced['number']} ({bundle}{guarded})"


def show_rollback(to: str, ring: str, config: Path, token: str, as_json: bool) -> None:
    management = open_management(live_settings(config), token)
    wanted = {"ring": ring, "to": release_named(management, to, ring)}
    released = management.post("/rollback", msgspec.json.encode(wanted))
    if as_json:
        print_document(released)
    else:
        say(f"[green]rolled back[/]  {release_line(released)}")


def show_withdrawal(role: str, ring: str, config: Path, token: str, as_json: bool) -> None:
    management = open_management(live_settings(config), token)
    released = management.post("/rollback", msgspec.json.encode({"ring": ring, "role": role}))
    if as_json:
        print_document(released)
    else:
        say(f"[green]withdrawn[/]  the {role} of {plain(ring)}, by release {released['number']}")


def show_releases(ring: str, config: Path, token: str, as_json: bool) -> None:
    settings = live_settings(config)
    found = open_management(settings, token).get("/releases", **({"ring": ring} if ring else {}))
    if as_json:
        print_document(found)
        return
    from rich.table import Table

    names = logins(settings, [release["actor"] for release in found])
    heads = ("", "ring", "number", "role", "bundle", "released", "by", "why")
    table = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for release in found:
        mark = f"[{STYLES[release['state']]}]{_stands(release['state'])}[/]"
        row = (
            release["ring"],
            release["number"],
            release["role"],
            bundle_link(release["digest"]),
            when(release["released_us"]),
            person(names, release["actor"]),
            _why(release),
        )
        table.add_row(mark, *(plain(cell) for cell in row))
    console().print(table)


def _why(release: dict[str, Any]) -> str:
    why = as_clause(release["reason"]) or release["cause"].replace("-", " ")
    return f"{why}; release {release['followed_by']} took its place" if release["followed_by"] else why


def terms_told(release: dict[str, Any]) -> str:
    """ ", a canary for 10 % …; watched: …" of a release."""
    told = ", a shadow: it decides nothing" if release["role"] == "shadow" else ""
    if release["role"] == "canary":
        told = f", a canary for {stage_told(release.get('stage') or {})}"
    return told + (f"; {guard_told(release['guard'])}" if release.get("guard") else "")


def stage_told(stage: dict[str, Any]) -> str:
    percent = stage.get("percent", 100)
    parts = [f"{percent:g} % of users and agents" if percent < 100 else "everybody"]
    parts += [f"in {', '.join(map(plain, stage['groups']))}"] if stage.get("groups") else []
    parts += [f"at edges in {', '.join(map(plain, stage['regions']))}"] if stage.get("regions") else []
    labels = [f"{plain(key)}={plain(value)}" for key, value in (stage.get("labels") or {}).items()]
    return " ".join([*parts, *([f"at edges with {', '.join(labels)}"] if labels else [])])


def guard_told(guard: dict[str, Any]) -> str:
    bounds = [
        f"{guard[name] * 100:g} % {what}"
        for name, what in (("denials", "more denied"), ("errors", "more with errors"))
        if guard[name] is not None
    ]
    if guard["slow"] is not None:
        bounds.append(f"{guard['slow'] * 100:g} % slower than {guard['slow_us'] / 1e3:g} ms")
    return f"taken back over {' or '.join(bounds)}, from {guard['calls_min']} calls on"


def _stands(state: str) -> str:
    return {"ruling": "rules", "withdrawal": "withdrawn"}.get(state, state)
