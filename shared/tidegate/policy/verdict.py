"""What the engine says: the effect, the rules that determined it, and a sentence for the model. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from tidegate.policy.annotations import ANYBODY_ELSE
from tidegate.policy.argument_types import Unlike
from tidegate.policy.arguments import NotRepresentable
from tidegate.policy.rules import Rule

Effect = Literal["allow", "deny", "ask"]
Reason = Literal[
    "granted",
    "tool-not-granted",
    "forbidden-by-rule",
    "approval-required",
    "evaluation-error",
    "argument-not-representable",
    "arguments-unlike-schema",
]

_ERRED = re.compile(r"while evaluating policy `([^`]+)`: (.*)", re.DOTALL)
_TELLING = re.compile(r"(?:record|`.*`) does not have the attribute `\w+`|type error: expected [\w, ]+, got \w+")


class Verdict(msgspec.Struct, frozen=True):
    """A decision. `rules` are the ids of the determining rules; `message` and `advice` are sentences for the model."""

    effect: Effect
    reason: Reason
    rules: tuple[str, ...] = ()
    message: str = ""
    advice: str = ""
    approver: str = ""  # of an ask: "" the requester may approve, too; "other": anybody else; else a group's name
    expires_s: int = 0  # of an ask: for how long it stands; 0: APPROVAL_TTL_S

    @property
    def told(self) -> str:
        """What the model reads: the reason, then the way out where a rule names one."""
        return f"{self.message} {self.advice}".rstrip()


def verdict_of(
    satisfied: Sequence[str], errors: Sequence[str], rules: Mapping[str, Rule], server: str, tool: str
) -> Verdict:
    """The verdict on satisfied rules and Cedar's errors: forbid, then error, then ask, then permit, else deny.

    `rules` holds the rules by Cedar's names for them, in which `satisfied` and `errors` speak.
    """
    found = sorted((rules[name] for name in satisfied), key=lambda rule: rule.id)
    forbids = [rule for rule in found if rule.effect == "forbid"]
    if hard := [rule for rule in forbids if not rule.ask]:
        return _worded("deny", "forbidden-by-rule", forbids, hard, f"forbids this call of {server}/{tool}")
    if errors:
        return _erred(errors, rules, server, tool)
    if forbids:
        verb = f"wants a person to approve this call of {server}/{tool} first"
        return _asking(_worded("ask", "approval-required", forbids, forbids, verb), forbids)
    if found:
        return Verdict("allow", "granted", tuple(rule.id for rule in found))
    return Verdict("deny", "tool-not-granted", (), f"No rule grants you this call of {server}/{tool}.")


def unrepresentable(fault: NotRepresentable, server: str, tool: str, rules: Sequence[str]) -> Verdict:
    """The denial of a call whose argument a rule needs and cannot be given."""
    message = (
        f"The argument '{fault.path}' of {server}/{tool} {fault.why}, and a rule needs its value; the call is denied."
    )
    return Verdict("deny", "argument-not-representable", tuple(sorted(rules)), message)


def unlike_schema(odd: Unlike, server: str, tool: str, rules: Sequence[str]) -> Verdict:
    """The denial of a call with an argument that a rule looks at and that is of another type than was declared: to the
    rule it is another value than its server may take it for.
    """
    declared = f"declared as {odd.declared}" if odd.declared else "declared in a way that cannot be compared with"
    message = (
        f"The argument '{odd.path}' of {server}/{tool} is {declared} ({odd.by}), and what came is {odd.came}; a rule "
        "looks at it, so the call is denied. Send it as it is declared."
    )
    return Verdict("deny", "arguments-unlike-schema", tuple(sorted(rules)), message)


def _worded(
    effect: Effect, reason: Reason, determining: Sequence[Rule], speaking: Sequence[Rule], verb: str
) -> Verdict:
    speaker = next((rule for rule in speaking if rule.reason), speaking[0])
    advice = next((rule.advice for rule in speaking if rule.advice), "")
    message = speaker.reason or f"The rule '{speaker.id}' {verb}."
    return Verdict(effect, reason, tuple(rule.id for rule in determining), message, advice)


def _asking(verdict: Verdict, rules: Sequence[Rule]) -> Verdict:
    """By whom and for how long: what the strictest of the asking rules says. `rules` in the order of their ids."""
    named = [rule.approver for rule in rules if rule.approver]
    group = next((name for name in named if name != ANYBODY_ELSE), "")
    expiries = [rule.expires_s for rule in rules if rule.expires_s]
    return msgspec.structs.replace(
        verdict, approver=group or (named[0] if named else ""), expires_s=min(expiries, default=0)
    )


def _erred(errors: Sequence[str], rules: Mapping[str, Rule], server: str, tool: str) -> Verdict:
    """Cedar's own words are repeated only where they cannot hold an argument's value."""
    matches = [match for error in errors if (match := _ERRED.search(error)) and match[1] in rules]
    erred = sorted({rules[match[1]].id: match[2] for match in matches}.items())
    if not erred:
        return Verdict(
            "deny", "evaluation-error", (), f"This call of {server}/{tool} could not be evaluated, so it is denied."
        )
    name, detail = erred[0]
    because = f" ({detail})" if _TELLING.fullmatch(detail) else ""
    message = f"The rule '{name}' could not be evaluated for this call of {server}/{tool}{because}, so it is denied."
    return Verdict("deny", "evaluation-error", tuple(name for name, _ in erred), message)
