"""The work of `tidegate status`: readiness of the services, edges and releases, what is stopped, held or waits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tidegate.errors import Fault
from tidegate.settings import Settings
from tidegate_cli.gateway import exchange
from tidegate_cli.management import Management, open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.people import logins
from tidegate_cli.quarantining import quarantine_line

TIMEOUT_S = 5.0
APPROVALS_MAX = 1_000
BACKLOG = (
    "tidegate_pending_records",
    "tidegate_spool_backlog_records",
    "tidegate_spool_backlog_bytes",
    "tidegate_calls_in_flight",
)


def show_status(config: Path, as_json: bool) -> int:
    """The exit code: 0 when all that was asked is ready."""
    settings = live_settings(config)
    services = {name: _readiness(url) for name, url in _addresses(settings).items()}
    found: dict[str, Any] = {"url": settings.url, "services": services, "backlog": _backlog(settings.url)}
    try:
        management = open_management(settings)
        found |= {"edges": management.get("/edges"), "quarantines": management.get("/quarantines")}
        found["held_tools"] = _held(management)
        found["waiting_approvals"] = len(management.get("/approvals", limit=APPROVALS_MAX))
    except Fault as fault:
        found["management"] = fault.sentence
    if as_json:
        print_document(found)
    else:
        names = logins(settings, [one["value"] for one in found.get("quarantines", ())])
        _show(found, names)
    return 0 if all(service["ready"] for service in services.values()) else 1


def _addresses(settings: Settings) -> dict[str, str]:
    if settings.is_local:
        return {"up": settings.url}
    services = settings.services
    own = {"policy": services.policy, "audit-consumer": services.audit_consumer, "detector": services.detector}
    return {"edge": settings.url, **{name: f"http://{service.listen}" for name, service in own.items()}}


def _readiness(url: str) -> dict[str, Any]:
    try:
        _, body = exchange("GET", f"{url}/readyz", {}, None, TIMEOUT_S)
        told = msgspec.json.decode(body)
        ready, awaiting, degraded = bool(told["ready"]), told.get("awaiting", {}), told.get("degraded", {})
        return {"url": url, "ready": ready, "awaiting": awaiting, "degraded": degraded}
    except Fault as fault:
        return {"url": url, "ready": False, "error": fault.sentence}
    except (msgspec.DecodeError, KeyError, TypeError):
        return {"url": url, "ready": False, "error": f"{url}/readyz does not answer like a Tidegate service"}


def _backlog(url: str) -> dict[str, float]:
    """What the edge's metrics say about records on their way; {} where they cannot be had."""
    try:
        status, body = exchange("GET", f"{url}/metrics", {}, None, TIMEOUT_S)
    except Fault:
        return {}
    found: dict[str, float] = {}
    for line in body.decode(errors="replace").splitlines() if status == 200 else ():
        name, _, value = line.partition(" ")
        if name in BACKLOG:
            found[name.removeprefix("tidegate_")] = float(value)
    return found


def _held(management: Management) -> int:
    """Tools whose calls are refused until somebody has looked at their definitions."""
    return sum(tool["state"] == "held" for server in management.get("/catalog") for tool in server["tools"])


def _show(found: dict[str, Any], names: Mapping[str, str]) -> None:
    for name, service in found["services"].items():
        say(f"[bold]{plain(name)}[/]  {plain(service['url'])}  {_state(service)}")
    for edge in found.get("edges", ()):
        say(_edge(edge))
    for quarantine in found.get("quarantines", ()):
        say(f"quarantine  {quarantine_line(quarantine, names)}")
    if waiting := found.get("waiting_approvals", 0):
        told = "1 call waits" if waiting == 1 else f"{waiting} calls wait"
        say(f"[yellow]{told} for a person[/]: tidegate approvals list")
    if held := found.get("held_tools", 0):
        told = "1 tool is" if held == 1 else f"{held} tools are"
        say(f"[yellow]{told} held[/]: tidegate catalog list --pending")
    if backlog := found["backlog"]:
        say("  ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in backlog.items()))
    if "management" in found:
        say(f"[yellow]edges, quarantines, held tools or approvals are not known:[/] {plain(found['management'])}")


def _state(service: dict[str, Any]) -> str:
    if service["ready"]:
        lacking = ", ".join(item for items in service.get("degraded", {}).values() for item in items)
        return f"[green]ready[/]  [yellow]without {plain(lacking)}[/]" if lacking else "[green]ready[/]"
    awaited = ", ".join(item for items in service.get("awaiting", {}).values() for item in items)
    return f"[red]not ready[/]  {plain(service.get('error') or f'awaiting {awaited}')}"


def _edge(edge: dict[str, Any]) -> str:
    state = "[yellow]behind[/]" if edge["behind"] else "[green]current[/]"
    runs = f"release {edge['number']} of {plain(edge['ring'])}, {plain(edge['digest'][:12])}"
    refused = edge["rejected"]
    told = f"  [red]refused release {refused['number']}: {plain(refused['reason'])}[/]" if refused else ""
    return f"edge {plain(edge['edge'])}  {runs}  {state}{told}"
