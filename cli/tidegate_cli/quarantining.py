"""The work of `tidegate quarantine`: stop somebody or something now, whatever the rules say; see it; let it go on."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import typer

from tidegate.errors import ConfigFault
from tidegate_cli.management import open_management, segment
from tidegate_cli.matching import age_us
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.subjects import subject_named

Scope = Literal["session", "user", "agent", "server", "tool"]


def impose_quarantine(
    scope: Scope, value: str, reason: str, lasts: str, config: Path, token: str, as_json: bool
) -> None:
    """Raises Fault: nothing was stopped then."""
    settings = live_settings(config)
    meant = subject_named(settings, value) if scope == "user" else value
    wanted = {
        "scope": "subject" if scope == "user" else scope,
        "value": meant,
        "reason": reason,
        "ttl_s": _seconds(lasts),
    }
    began = time.monotonic()
    imposed = open_management(settings, token).post("/quarantines", msgspec.json.encode(wanted))
    if as_json:
        print_document(imposed)
        return
    say(f"[red]stopped[/]  {quarantine_line(imposed)}")
    if imposed.get("known") is False:
        say(
            f"[yellow]no {plain(scope)} is called '{plain(value)}' now[/]: it is stopped should one come; `tidegate "
            f"quarantine lift {plain(imposed['quarantine_id'])}` takes a misspelt one back"
        )
    took_ms = (time.monotonic() - began) * 1e3
    say(f"[dim]in the log after {took_ms:.0f} ms; every edge that follows it refuses from now on[/]")


def show_quarantines(config: Path, token: str, ids: bool, as_json: bool) -> None:
    found = open_management(live_settings(config), token).get("/quarantines")
    if as_json:
        print_document(found)
        return
    if ids:
        for quarantine in found:
            typer.echo(quarantine["quarantine_id"])
        return
    if not found:
        say("Nothing is quarantined.")
    for quarantine in found:
        say(quarantine_line(quarantine))


def lift_quarantine(quarantine_id: str, reason: str, config: Path, token: str, as_json: bool) -> None:
    management = open_management(live_settings(config), token)
    management.delete(f"/quarantines/{segment(quarantine_id)}", **({"reason": reason} if reason else {}))
    if as_json:
        print_document({"lifted": quarantine_id})
    else:
        say(f"[green]lifted[/]  {plain(quarantine_id)}")


def quarantine_line(quarantine: dict[str, Any]) -> str:
    until = f"until {_when(quarantine['expires_us'])}" if quarantine["expires_us"] else "until lifted"
    what = f"[bold red]{plain(quarantine['scope'])} {plain(quarantine['value'])}[/]"
    return f"{what}  {plain(quarantine['reason'])}  [dim]{until}, id {plain(quarantine['quarantine_id'])}[/]"


def _seconds(lasts: str) -> float:
    """Of --for; 0 of "". Raises ConfigFault."""
    if not lasts:
        return 0
    try:
        return -age_us(lasts, 0) / 1e6
    except ConfigFault:
        raise ConfigFault(f"--for {lasts}: give a duration like 15m, 2h or 7d") from None


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).strftime("%Y-%m-%d %H:%M:%S")
