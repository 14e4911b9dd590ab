"""One line of rich text per event, for `log tail`. Pure; an event of an unknown type is told by its name."""

from collections.abc import Callable, Iterator
from datetime import datetime

import msgspec

from tidegate.policy.control import scope_word
from tidegate_cli.matching import Seen
from tidegate_cli.output import DECISION_STYLES, SEVERITY_STYLES, plain, soon

DECISION_WIDTH = 7
QUIET = frozenset({"bundle.observed"})
"""What every edge says every few seconds while a guard watches; `tidegate bundle status` has what it comes to."""


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
    style = DECISION_STYLES.get(decision, "white")
    return _call(seen, decision, style, f"[dim]{plain(rules)}[/]", *_beside(seen), message)


def _beside(seen: Seen) -> Iterator[str]:
    """A canary that decided, the approval, when there is room again, and shadows that would have said otherwise."""
    inputs = seen.fields.get("inputs") or {}
    if inputs.get("role", "ruling") != "ruling":
        yield f"[yellow]by {plain(str(inputs['role']))} release {plain(str(inputs.get('release', 0)))}[/]"
    if seen.text("approval_id"):
        yield f"[dim]approval {plain(seen.text('approval_id'))}[/]"
    if again := soon(int(seen.fields.get("retry_after_ms", 0)) / 1000):
        yield f"again {again}"
    for one in seen.fields.get("shadows", ()):
        by = ", ".join(one.get("rules", ())) or str(one.get("reason", ""))
        yield f"[magenta]a shadow: {plain(str(one.get('decision', '')))}, {plain(by)}[/]"


def _completed(seen: Seen) -> str:
    outcome = seen.text("outcome")
    took = f"[dim]{int(seen.fields.get('total_us', 0)) / 1000:.1f} ms[/]"
    return _call(seen, outcome, "green" if outcome == "ok" else "yellow", took)


def _abandoned(seen: Seen) -> str:
    return _call(seen, "unknown", "yellow", "its edge ended before the answer was recorded")


def _session(seen: Seen) -> str:
    word = "opened" if "opened" in seen.type else f"closed ({plain(seen.text('cause'))})"
    return f"session {word}  {who(seen)}  [dim]{plain(seen.text('session_id'))}[/]"


def _tainted(seen: Seen) -> str:
    labels = ", ".join(seen.fields.get("labels", ()))
    by = seen.text("call_id") or seen.text("session_id")
    return f"[magenta]tainted[/] session  {who(seen)}  {tool_of(seen)}  {plain(labels)}  [dim]{plain(by)}[/]"


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
    reason = f": {plain(seen.text('reason'))}" if seen.text("reason") else ""
    name, by = f"[dim]{plain(seen.text('quarantine_id'))}[/]", f" by {plain(seen.text('actor'))}"
    by = by if seen.text("actor") else ""
    if "lifted" in seen.type:
        return f"quarantine lifted  {name}{by}{reason}"
    what = f"{plain(scope_word(seen.text('scope')))} {plain(seen.text('value'))}"
    ends = int(seen.fields.get("expires_us", 0))
    until = f"until {datetime.fromtimestamp(ends / 1e6):%Y-%m-%d %H:%M:%S}" if ends else "until lifted"
    return f"[bold red]quarantine[/] of {what}{reason}  {until}{by}  {name}"


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
    role = f"{seen.text('role')} " if seen.text("role") not in ("", "ruling") else ""
    which = f"{role}release {seen.text('number')} of {seen.text('ring')}, {seen.text('digest')[:12] or 'which ends it'}"
    return f"bundle {plain(word)}  {plain(which)}  [dim]{plain(where)}[/]{reason}"


def _observed(seen: Seen) -> str:
    counted = ("denied", "asked", "errors", "slow", "differed")
    told = [f"{number} {name}" for name in counted if (number := int(seen.fields.get(name, 0)))]
    which = f"{seen.text('role') or 'ruling'} release {seen.text('number')} of {seen.text('ring')}"
    decided = ", ".join([f"{seen.text('decided')} decided", *told])
    return f"bundle observed  {plain(which)}, {plain(decided)}  [dim]{plain(seen.text('edge'))}[/]"


def _held(seen: Seen) -> str:
    word = "[bold yellow]held back[/]" if seen.text("action") == "hold" else "[yellow]alert[/]"
    changes = [str(change) for change in seen.fields.get("changes", ())]
    more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
    why = f": {plain(changes[0])}{more}" if changes else ""
    name = f"[cyan]{plain(seen.text('server'))}__{plain(seen.text('tool'))}[/]"
    return f"tool {word}  {name}  {plain(seen.text('rank'))}{why}  [dim]{plain(seen.text('digest')[:12])}[/]"


def _trusted(seen: Seen) -> str:
    name = f"[cyan]{plain(seen.text('server'))}__{plain(seen.text('tool'))}[/]"
    reason = f": {plain(seen.text('reason'))}" if seen.text("reason") else ""
    return f"tool trusted  {name}  [dim]{plain(seen.text('digest')[:12])}[/] by {plain(seen.text('actor'))}{reason}"


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
    "session.tainted": _tainted,
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
    "bundle.observed": _observed,
    "tool.approved": _trusted,
    "tool.held": _held,
    "tool.defined": _tool,
    "tool.withdrawn": _tool,
    "offer.defined": _offer,
    "offer.withdrawn": _offer,
    "server.registered": _server,
}
