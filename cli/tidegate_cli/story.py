"""How a call's story is shown: a few labelled lines, then the rules' own text."""

from datetime import datetime
from typing import Any

import msgspec

from tidegate_cli.deciding_again import AGREES
from tidegate_cli.explaining import Story
from tidegate_cli.matching import Seen
from tidegate_cli.output import DECISION_STYLES, lines, plain, say, soon
from tidegate_cli.telling import line_of

LABEL_WIDTH = 11
VALUE_CHARS_MAX = 2_000
TIMES = ("policy", "upstream", "total")


def show(story: Story) -> None:
    call = story.requested
    again = [("again", _again(story.again))]
    for label, value in [*_asked(call), *_decided(call), *again, *_ending(story.ended, call.text("decision"))]:
        _say(label, value)
    for seen in story.approvals:
        _say("approval", line_of(seen))
    for seen in story.findings:
        told = f"{plain(seen.text('title'))}: {plain(seen.text('message'))}"
        _say("finding", f"[red]{plain(seen.text('severity'))}[/] {told}")
    for name, text in story.rules.items():
        say(f"\n[bold]rule {plain(name)}[/] in bundle {plain(call.text('bundle')[:12])}\n[cyan]{lines(text)}[/]")
    for name, text in story.watching.items():
        say(f"\n[bold]rule {plain(name)}[/], which did not rule\n[cyan]{lines(text)}[/]")


def _say(label: str, value: str) -> None:
    if value:
        say(f"[dim]{label:>{LABEL_WIDTH}}[/]  {value}")


def _decided(call: Seen) -> list[tuple[str, str]]:
    inputs = call.fields.get("inputs") or {}
    decision = call.text("decision")
    style = DECISION_STYLES.get(decision, "white")
    role = "" if inputs.get("role", "ruling") == "ruling" else f"{plain(str(inputs['role']))} "
    release = f"{role}release {inputs.get('release', 0)}, bundle {plain(call.text('bundle')[:12])}"
    return [
        ("decision", f"[bold {style}]{plain(decision)}[/]  {plain(call.text('reason'))}"),
        ("stage", f"{plain(call.text('stage') or 'policy')}  [dim]{release}[/]"),
        ("rules", plain(", ".join(call.fields.get("rules", ())))),
        ("says", plain(call.text("message"))),
        ("room", f"again {room}" if (room := soon(int(call.fields.get("retry_after_ms", 0)) / 1000)) else ""),
        ("approval", plain(call.text("approval_id"))),
        ("found", _findings(call)),
        *(("shadow", _shadowed(one, call.text("bundle"))) for one in call.fields.get("shadows", ())),
    ]


def _shadowed(one: dict[str, Any], ruling: str) -> str:
    """What rules that do not rule would have said."""
    bundle = str(one.get("bundle", ""))
    whose = "its own rules in shadow mode" if bundle == ruling else f"the bundle {bundle[:12]}"
    rules = ", ".join(one.get("rules", ()))
    said = f"{one.get('decision', '')}  {one.get('reason', '')}{f' by {rules}' if rules else ''}"
    return f"{plain(said)}  [dim]by {plain(whose)}, which did not rule[/]"


def _again(told: str) -> str:
    if told == AGREES:
        return "[green]agrees[/]  [dim]decided again by the same bundle, from what the event keeps[/]"
    return f"[bold red]{plain(told)}[/]" if told.startswith("DIFFERS") else f"[dim]{plain(told)}[/]"


def _asked(call: Seen) -> list[tuple[str, str]]:
    sealed, inputs = call.sealed, call.fields.get("inputs") or {}
    login = sealed.get("login") or sealed.get("subject") or call.shut
    groups = ", ".join(inputs.get("groups", ()))
    client = str(sealed.get("claimed_client", ""))
    labels = plain(", ".join(call.fields.get("labels", ())))
    named = f"  groups {plain(groups)}" if groups else ""
    said = f"  [dim]says it is {plain(client)}[/]" if client else ""
    return [
        ("call", plain(call.text("call_id"))),
        ("when", _when(call.time_us)),
        ("who", f"{plain(login)}  [dim]{plain(call.text('subject_id'))}[/]{named}"),
        ("agent", f"{plain(call.text('agent'))}{said}"),
        ("session", plain(call.text("session_id"))),
        ("facts", _facts(call)),
        ("tool", f"[cyan]{plain(call.text('server'))}__{plain(call.text('target'))}[/]  [dim]{labels}[/]"),
        ("arguments", call.shut or _captured(sealed.get("arguments"))),
        ("answered", _captured(sealed.get("inputs"))),
    ]


def _facts(call: Seen) -> str:
    """The circumstances that the rules were told, beside the moment."""
    inputs = call.fields.get("inputs") or {}
    taint = ", ".join(inputs.get("taint", ()))
    told = (
        ("a service account" if inputs.get("kind") == "service" else ""),
        (f"from {call.sealed['address']}" if call.sealed.get("address") else ""),
        (f"session tainted: {taint}" if taint else ""),
        (f"MCP {call.text('protocol')}" if call.text("protocol") else ""),
    )
    return plain("; ".join(part for part in told if part))


def _ending(ended: Seen | None, decision: str) -> list[tuple[str, str]]:
    if ended is None and decision != "allow":
        return [("outcome", "not forwarded")]
    if ended is None:
        return [("outcome", "[yellow]unknown: no completion is recorded (yet)[/]")]
    if ended.type.startswith("call.abandoned"):
        return [("outcome", "[yellow]unknown: its edge ended before the answer was recorded[/]")]
    outcome = ended.text("outcome")
    times = ", ".join(f"{name} {int(ended.fields.get(f'{name}_us', 0)) / 1000:.2f} ms" for name in TIMES)
    return [
        ("outcome", f"[{'green' if outcome == 'ok' else 'yellow'}]{plain(outcome)}[/]  {times}"),
        ("counted", _counted(ended)),
        ("found", _findings(ended)),
        ("result", ended.shut or _captured(ended.sealed.get("result"))),
    ]


def _counted(ended: Seen) -> str:
    """What limits were charged beside the call itself."""
    records, cost = (int(ended.fields.get(name, 0)) for name in ("records", "cost_micros"))
    told = [*([f"{records:,} records"] if records else []), *([f"a cost of {cost / 1e6:.6f}"] if cost else [])]
    return ", ".join(told)


def _findings(seen: Seen) -> str:
    told = [
        f"{found['rule']} ({found['severity']}) {found['count']}× in the {found['direction']}: {found['action']}"
        for found in seen.fields.get("findings", ())
    ]
    return f"[magenta]{plain('; '.join(told))}[/]" if told else ""


def _captured(value: Any) -> str:
    if value is None:
        return ""
    text = msgspec.json.encode(value).decode()
    cut = (
        text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}… ({len(text)} characters; --json has all)"
    )
    return plain(cut)


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).astimezone().isoformat(timespec="milliseconds")
