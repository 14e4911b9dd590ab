"""The work of `tidegate approvals`: see which calls wait for a person, and say yes or no to one.

Arguments are what is judged: they are shown as they were captured, digit by digit, and what cannot be seen is made
visible.
Counterpart: services/policy/tidegate_policy/approvals_api.py.
"""

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import typer

from tidegate.errors import ConfigFault, OurFault
from tidegate.ids import now_us
from tidegate_cli.management import Management, ManagementRefused, open_management, segment
from tidegate_cli.options import live_settings, names_of
from tidegate_cli.output import console, plain, print_document, print_line, say, seen
from tidegate_cli.people import logins, person, with_logins

if TYPE_CHECKING:
    from rich.table import Table

    from tidegate.settings import Settings

WATCH_EVERY_S: Final = 1.0
LISTED_MAX: Final = 1_000
STYLES: Final = {"pending": "yellow", "granted": "green", "denied": "red", "consumed": "cyan", "expired": "dim"}
WORDS: Final = {"pending": "waits", "granted": "approved", "denied": "denied", "consumed": "used", "expired": "over"}


class Asker(NamedTuple):
    """Who asks, and where."""

    config: Path
    token: str
    user: str
    groups: tuple[str, ...]

    def management(self, settings: "Settings | None" = None) -> Management:
        """Raises ConfigFault."""
        groups = names_of(list(self.groups))
        if groups and not self.user:
            raise ConfigFault("--groups are those of --user; name both, or neither to ask as an administrator")
        return open_management(settings or live_settings(self.config), self.token, self.user, groups)

    @property
    def nothing(self) -> str:
        """What to say where no call waits that they may see: others may wait."""
        groups = ", ".join(names_of(list(self.groups))) or "none"
        if self.user:
            return f"No call waits that {plain(self.user)} (groups {plain(groups)}) may decide."
        return (
            "No call waits that the bearer of this token may decide." if self.token else "No call waits for a person."
        )


def show_approvals(asker: Asker, state: str, ids: bool, as_json: bool) -> None:
    """Raises Fault."""
    found = _listed(asker.management(), state)
    if as_json:
        print_document(found)
    elif ids:
        for one in found:
            typer.echo(one["approval_id"])
    elif not found:
        say(asker.nothing)
    else:
        console().print(_table(found))


def watch_approvals(asker: Asker, state: str, as_json: bool) -> None:
    """Until interrupted: a table that stays current, or a line a change where stdout is no terminal. Raises Fault."""
    if not sys.stdout.isatty() or as_json:
        for one in _changes(asker, state):
            if as_json:
                print_line(one)
            else:
                say(_line(one))
        return
    from rich.live import Live

    with Live(console=console(), auto_refresh=False) as live:
        for found in _polled(asker, state):
            live.update(_table(found) if found else asker.nothing, refresh=True)


def show_approval(asker: Asker, approval_id: str, as_json: bool) -> None:
    """Raises Fault."""
    settings = live_settings(asker.config)
    answer = asker.management(settings).read(f"/approvals/{segment(approval_id)}")
    if as_json:
        typer.echo(msgspec.json.format(answer, indent=2))
    else:
        _show(answer, settings)


def decide(
    asker: Asker, approval_id: str, said: Literal["grant", "deny"], reason: str, yes: bool, as_json: bool
) -> None:
    """After a look at the call. Raises Fault: nothing was decided then, or somebody was faster."""
    settings = live_settings(asker.config)
    path = f"/approvals/{segment(approval_id)}"
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigFault("nobody can be asked here: give --yes to decide; nothing was decided")
        _show(asker.management(settings).read(path), settings)
        reason = reason or typer.prompt("Why (may be empty)", default="", show_default=False, err=True)
        typer.confirm("Let this one call pass?" if said == "grant" else "Refuse it?", abort=True, err=True)
    body = msgspec.json.encode({"decision": said, "reason": reason})
    try:
        decided = asker.management(settings).post(path, body)
    except ManagementRefused as refused:
        sentence = with_logins(settings, refused.sentence)
        raise ManagementRefused(sentence, refused.status, refused.code, refused.problems) from refused
    if as_json:
        print_document(decided)
    elif said == "grant":
        say(
            f"[green]approved[/]  {_what(decided)}: once, when {_who(decided)} calls again with the same arguments "
            f"before {_clock(decided['expires_us'])}"
        )
    else:
        say(f"[red]denied[/]  {_what(decided)} of {_who(decided)}")


def _listed(management: Management, state: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = management.get("/approvals", state=state, limit=LISTED_MAX)
    return found


def _polled(asker: Asker, state: str) -> Iterator[list[dict[str, Any]]]:
    """The list, every second; what the service cannot say now it says later."""
    settings = live_settings(asker.config)
    while True:
        try:
            yield _listed(asker.management(settings), state)
        except ManagementRefused as refused:
            if refused.status < 500:
                raise
        except OurFault as fault:
            typer.echo(f"tidegate: {seen(fault.sentence)}", err=True)
        time.sleep(WATCH_EVERY_S)


def _changes(asker: Asker, state: str) -> Iterator[dict[str, Any]]:
    """Each approval when it first shows, and again with each other state."""
    known: dict[str, str] = {}
    for found in _polled(asker, state):
        for one in reversed(found):
            if known.get(one["approval_id"]) != one["state"]:
                yield one
        known = {one["approval_id"]: one["state"] for one in found}


def _table(found: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("id", no_wrap=True)
    for name in ("state", "asked", "left"):
        table.add_column(name, no_wrap=True)
    for name in ("who", "what", "who may decide", "why"):
        table.add_column(name, overflow="fold")
    for one in found:
        style = STYLES.get(one["state"], "white")
        table.add_row(
            plain(one["approval_id"]),
            f"[{style}]{WORDS.get(one['state'], plain(one['state']))}[/]",
            span(now_us() - one["requested_us"]) + " ago",
            span(one["expires_us"] - now_us()),
            _who(one),
            _what(one),
            _approver(one),
            plain(one["message"]),
        )
    return table


def _line(one: dict[str, Any]) -> str:
    style = STYLES.get(one["state"], "white")
    left = f"{span(one['expires_us'] - now_us())} left, id {plain(one['approval_id'])}"
    word = WORDS.get(one["state"], plain(one["state"]))
    return f"[{style}]{word}[/]  {_who(one)}  {_what(one)}  {plain(one['message'])}  [dim]{left}[/]"


def _show(answer: bytes, settings: "Settings") -> None:
    one = msgspec.json.decode(answer)
    style, word = STYLES.get(one["state"], "white"), WORDS.get(one["state"], plain(one["state"]))
    say(f"[bold {style}]{word}[/]  {_what(one)}  for {_who(one)}")
    told = [
        ("why", plain(one["message"])),
        ("rules", plain(", ".join(one["rules"]))),
        ("decides", plain(one["who_decides"])),
        ("asked", f"{_clock(one['requested_us'])}, {span(now_us() - one['requested_us'])} ago"),
        ("until", f"{_clock(one['expires_us'])}, {span(one['expires_us'] - now_us())} left"),
        ("call", f"tidegate why {plain(one['call_id'])}"),
    ]
    if (decision := one["decision"]) is not None:
        reason = f": {plain(decision['reason'])}" if decision["reason"] else ""
        actor = person(logins(settings, [decision["actor"]]), decision["actor"], short=32)
        told.append((decision["decision"], f"by {plain(actor)} ({plain(decision['channel'])}){reason}"))
    if one["used_by"]:
        told.append(("used by", f"tidegate why {plain(one['used_by'])}"))
    for name, text in told:
        say(f"  {name:<9} {text}")
    if one["shut"]:
        say(f"  [yellow]login and arguments stay sealed: {plain(one['shut_message'])}[/]")
        return
    if one.get("masked") and one["state"] == "pending":
        say("  [yellow]what is masked here would be sent in full: it can be denied, and approved at no place but the")
        say("  requester's own client[/]")
    say("  arguments")
    arguments = msgspec.json.decode(answer, type=_Arguments).arguments
    text = msgspec.json.format(bytes(arguments), indent=2).decode("utf-8", "replace")
    say("\n".join(f"    {plain(line)}" for line in text.split("\n")))


class _Arguments(msgspec.Struct):
    arguments: msgspec.Raw = msgspec.Raw(b"null")


def _who(one: dict[str, Any]) -> str:
    return f"{plain(one['login'] or one['subject_id'][:12])} [dim]with[/] {plain(one['agent'])}"


def _what(one: dict[str, Any]) -> str:
    return f"[cyan]{plain(one['server'])}__{plain(one['target'])}[/]"


def _approver(one: dict[str, Any]) -> str:
    names = {"": "requester, admins", "other": "another admin"}
    return names.get(one["approver"], plain(one["approver"]))


def span(us: int) -> str:
    """`48s`, `12m`, `3h 05m`, `2d 4h`; never below 0."""
    seconds = max(0, us // 1_000_000)
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7_200:
        return f"{seconds // 60}m"
    if seconds < 172_800:
        return f"{seconds // 3_600}h {seconds % 3_600 // 60:02d}m"
    return f"{seconds // 86_400}d {seconds % 86_400 // 3_600}h"


def _clock(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).strftime("%Y-%m-%d %H:%M:%S")
