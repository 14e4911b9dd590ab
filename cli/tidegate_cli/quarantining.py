"""The work of `tidegate quarantine`: stop somebody or something now, whatever the rules say; see it; let it go on."""

import time
from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import typer

from tidegate.errors import ConfigFault
from tidegate.policy.control import scope_word
from tidegate.settings import Settings
from tidegate_cli.management import open_management, segment
from tidegate_cli.matching import age_us
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.people import logins, person
from tidegate_cli.seeing import alike, is_recorded
from tidegate_cli.subjects import subject_named

Scope = Literal["session", "user", "agent", "server", "tool"]


def scope_named(word: str) -> Scope:
    """What people say may be stopped. Raises ConfigFault."""
    scopes: tuple[Scope, ...] = get_args(Scope)
    if (found := next((scope for scope in scopes if scope == word), None)) is not None:
        return found
    like = "user" if word in ("person", "subject") else next(iter(get_close_matches(word, scopes, 1)), "")
    meant = f"did you mean '{like}'? There are" if like else "say one of"
    raise ConfigFault(f"'{word:.40}' is nothing that can be stopped: {meant} {', '.join(scopes)}")


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
    took_ms = (time.monotonic() - began) * 1e3
    say(f"[red]stopped[/]  {quarantine_line(imposed, logins(settings, [imposed['value']]))}")
    say(f"[dim]in the log after {took_ms:.0f} ms; every edge that follows it refuses from now on[/]")
    if (doubt := _doubted(settings, scope, value, imposed)) != "":
        back = f"`tidegate quarantine lift {plain(imposed['quarantine_id'])}` takes a misspelt one back"
        say(f"[yellow]{plain(doubt)}[/]: it is stopped should one come; {back}")


def _doubted(settings: Settings, scope: Scope, value: str, imposed: dict[str, Any]) -> str:
    """Why the name may be misspelt; "" where nothing says so. What the service cannot tell, recorded calls may."""
    if imposed.get("known") is False:
        return f"no {scope} is called '{value}' now"
    if scope in ("server", "tool") or is_recorded(settings, imposed["scope"], imposed["value"]) is not False:
        return ""
    like = alike(settings, value) if scope == "agent" else ""
    meant = f" (did you mean '{like}'?)" if like else ""
    return f"no recorded call names this {scope_word(imposed['scope'])}{meant}"


def show_quarantines(config: Path, token: str, ids: bool, as_json: bool) -> None:
    settings = live_settings(config)
    found = open_management(settings, token).get("/quarantines")
    if as_json:
        print_document(found)
        return
    if ids:
        for quarantine in found:
            typer.echo(quarantine["quarantine_id"])
        return
    if not found:
        say("Nothing is quarantined.")
    names = logins(settings, [one["value"] for one in found if one["scope"] == "subject"])
    for quarantine in found:
        say(quarantine_line(quarantine, names))


def lift_quarantine(quarantine_id: str, reason: str, config: Path, token: str, as_json: bool) -> None:
    management = open_management(live_settings(config), token)
    management.delete(f"/quarantines/{segment(quarantine_id)}", **({"reason": reason} if reason else {}))
    if as_json:
        print_document({"lifted": quarantine_id})
    else:
        say(f"[green]lifted[/]  {plain(quarantine_id)}")


def quarantine_line(quarantine: dict[str, Any], names: Mapping[str, str]) -> str:
    """`names`: logins by subject id."""
    until = f"until {_when(quarantine['expires_us'])}" if quarantine["expires_us"] else "until lifted"
    value = person(names, quarantine["value"], short=32) if quarantine["scope"] == "subject" else quarantine["value"]
    what = f"[bold red]{plain(scope_word(quarantine['scope']))} {plain(value)}[/]"
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
