"""One line of rich text per event, for `log tail`. Pure; an event of an unknown type is told by its name."""

from collections.abc import Callable
from datetime import datetime

import msgspec

from tidegate_cli.matching import Seen
from tidegate_cli.output import DECISION_STYLES, SEVERITY_STYLES, plain

DECISION_WIDTH = 7


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Error


def line_of(seen: Seen) -> str:
    """`12:00:01.123  alice@example.com  claude-code  deny  git__git_log  rule … : reason`."""
    when = datetime.fromtimestamp(seen.time_us / 1e6).strftime("%H:%M:%S.%f")[:-3]
    tell = _TELLERS.get(seen.type.rpartition(".")[0], _any)
    return f"[dim]{when}[/]  {tell(seen)}"


def who(seen: Seen) -> str:
    """The person where the event names one, else the pseudonym, and why; and the agent."""
    sealed = seen.sealed
    name = (
        sealed.get("login")
        or sealed.get("subject")
        or " ".join(filter(None, (seen.shut, seen.text("subject_id")[:12])))
    )
    return f"{plain(name)} [dim]with[/] {plain(seen.text('agent'))}"


def tool_of(seen: Seen) -> str:
    """`server__tool`; a name that leads to no server as the caller wrote it."""
    names = (seen.text("server"), seen.text("target"))
    return f"[cyan]{plain('__'.join(name for name in names if name))}[/]"


def findings_of(seen: Seen) -> str:
    """`masked 2 aws-access-key in result`, …"""
    told = [
        f"{found.get('action')} {found.get('count')}× {found.get('rule')} in {found.get('direction')}"
        for found in seen.fields.get("findings", ())
    ]
    return f"  [magenta]{plain('; '.join(told))}[/]" if told else ""


def _call(seen: Seen, word: str, style: str, *told: str) -> str:
    """What every event of a call shows: a verdict, who, the tool, what is particular, the findings, the id."""
    middle = "  ".join(part for part in told if part)
    head = f"[{style}]{plain(word):{DECISION_WIDTH}}[/] {who(seen)}  {tool_of(seen)}"
    return f"{head}  {middle}{findings_of(seen)}  [dim]{plain(seen.text('call_id'))}[/]"


def _requested(seen: Seen) -> str:
    decision = seen.text("decision")
    rules = ", ".join(seen.fields.get("rules", ())) or seen.text("reason")
    message = plain(seen.text("message")) if decision != "allow" else ""
    return _call(seen, decision, DECISION_STYLES.get(decision, "white"), f"[dim]{plain(rules)}[/]", message)


def _completed(seen: Seen) -> str:
    outcome = seen.text("outcome")
    took = f"[dim]{int(seen.fields.get('total_us', 0)) / 1000:.1f} ms[/]"
    return _call(seen, outcome, "green" if outcome == "ok" else "yellow", took)


def _abandoned(seen: Seen) -> str:
    return _call(seen, "unknown", "yellow", "its edge ended before the answer was recorded")


def _session(seen: Seen) -> str:
    word = "opened" if "opened" in seen.type else f"closed ({plain(seen.text('cause'))})"
    return f"session {word}  {who(seen)}  [dim]{plain(seen.text('session_id'))}[/]"


def _refused(seen: Seen) -> str:
    told = f"HTTP {plain(seen.text('status'))}: {plain(_sentence_in(seen.text('message')))}"
    if "count" in seen.fields:
        told = f"{plain(seen.text('count'))} times  {told}"
    return "  ".join(part for part in (f"[red]refused[/] {who(seen)}", plain(seen.text("method")), told) if part)


def _sentence_in(body: str) -> str:
    """The error's sentence in a JSON-RPC body; the body itself where there is none."""
    try:
        return msgspec.json.decode(body, type=_Refusal).error.message
    except msgspec.DecodeError:
        return body


def _finding(seen: Seen) -> str:
    severity = seen.text("severity").lower()
    style = SEVERITY_STYLES.get(severity, "white")
    return f"[{style}]finding {plain(severity)}[/]  {plain(seen.text('title'))}: {plain(seen.text('message'))}"


def _quarantine(seen: Seen) -> str:
    if "lifted" in seen.type:
        return f"quarantine lifted  [dim]{plain(seen.text('quarantine_id'))}[/] by {plain(seen.text('actor'))}"
    what = f"{plain(seen.text('scope'))} {plain(seen.text('value'))}"
    return f"[bold red]quarantine[/] of {what}: {plain(seen.text('reason'))}"


def _approval(seen: Seen) -> str:
    """A question tells of the call; what became of it names the question."""
    word, name = seen.name.partition(".")[2], f"[dim]{plain(seen.text('approval_id'))}[/]"
    if word == "requested":
        of_whom = {"": "the requester, too", "other": "somebody else"}.get(seen.text("approver"), seen.text("approver"))
        return f"[yellow]approval[/] requested  {who(seen)}  {tool_of(seen)}  from {plain(of_whom)}  {name}"
    style = {"granted": "green", "denied": "red"}.get(word, "dim")
    by = f" by {plain(seen.text('actor'))} ({plain(seen.text('channel'))})" if seen.text("actor") else ""
    by += f" by {plain(seen.text('call_id'))}" if seen.text("call_id") else ""
    reason = f": {plain(seen.text('reason'))}" if seen.text("reason") else ""
    return f"approval [{style}]{plain(word)}[/]  {name}{by}{reason}"


def _erased(seen: Seen) -> str:
    keys = len(seen.fields.get("keys", ()))
    named = f"{keys} key{'s' if keys != 1 else ''}"
    return f"[bold red]erased[/] subject {plain(seen.text('subject_id'))}  {named}: {plain(seen.text('reason'))}"


def _bundle(seen: Seen) -> str:
    word = seen.type.split(".")[1]
    where = seen.text("edge") or seen.text("cause")
    reason = f": {plain(seen.text('reason'))}" if seen.text("reason") else ""
    which = f"release {plain(seen.text('number'))} of {plain(seen.text('ring'))}, {plain(seen.text('digest')[:12])}"
    return f"bundle {plain(word)}  {which}  [dim]{plain(where)}[/]{reason}"


def _tool(seen: Seen) -> str:
    changed = "[bold yellow]changed[/]" if seen.text("previous") else "first seen"
    word = "withdrawn" if "withdrawn" in seen.type else changed
    name = f"[cyan]{plain(seen.text('server'))}__{plain(seen.text('tool'))}[/]"
    return f"tool {word}  {name}  [dim]{plain(seen.text('digest')[:12])}[/]"


def _offer(seen: Seen) -> str:
    changed = "[bold yellow]changed[/]" if seen.text("previous") else "first seen"
    word = "withdrawn" if "withdrawn" in seen.type else changed
    name = f"[cyan]{plain(seen.text('server'))}[/]  {plain(seen.text('target'))}"
    return f"{plain(seen.text('kind'))} {word}  {name}  [dim]{plain(seen.text('digest')[:12])}[/]"


def _server(seen: Seen) -> str:
    labels = ", ".join(seen.fields.get("labels", ()))
    return f"server {plain(seen.text('server'))} registered, {plain(seen.text('transport'))}  [dim]{plain(labels)}[/]"


def _any(seen: Seen) -> str:
    return f"{plain(seen.type)}  [dim]{plain(seen.text('id'))}[/]"


_TELLERS: dict[str, Callable[[Seen], str]] = {
    "call.requested": _requested,
    "call.completed": _completed,
    "call.abandoned": _abandoned,
    "session.opened": _session,
    "session.closed": _session,
    "request.refused": _refused,
    "finding.raised": _finding,
    "approval.requested": _approval,
    "approval.granted": _approval,
    "approval.denied": _approval,
    "approval.expired": _approval,
    "approval.consumed": _approval,
    "quarantine.imposed": _quarantine,
    "quarantine.lifted": _quarantine,
    "subject.erased": _erased,
    "bundle.released": _bundle,
    "bundle.activated": _bundle,
    "bundle.rejected": _bundle,
    "tool.defined": _tool,
    "tool.withdrawn": _tool,
    "offer.defined": _offer,
    "offer.withdrawn": _offer,
    "server.registered": _server,
}
