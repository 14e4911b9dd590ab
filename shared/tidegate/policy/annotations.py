"""What the annotations of a rule say: its id, whether it asks or only watches, and its sentences. Pure.

Counterparts: `rules.py` reads Cedar, `verdict.py` words what is said here. Rules: a value that is not known is a fault,
for a rule that is taken for a weaker one lets calls through; a name that is not known is told by `check.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tidegate.limits import APPROVAL_TTL_S_MAX

RULE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
KNOWN: Final = frozenset({"id", "effect", "mode", "reason", "advice", "approver", "expires"})
UNTIL_SHADOW: Final = "until_shadow"
"""Of compiled rules: where those in shadow mode count, another one of them stands in the place of this one."""
ANYBODY_ELSE: Final = "other"
APPROVER_MAX: Final = 256
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_UNITS_S: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class Notes:
    """The annotations of one rule. `unread`: names that mean nothing here, sorted."""

    id: str
    ask: bool
    shadow: bool
    until_shadow: bool
    reason: str
    advice: str
    approver: str
    expires_s: int
    unread: tuple[str, ...]


def read_notes(given: Mapping[str, str], effect: Literal["permit", "forbid"], *, compiled: bool = False) -> Notes:
    """`compiled`: of a rule that grants.yaml means. Raises ValueError with a sentence."""
    name = given.get("id", "")
    if not RULE_ID.fullmatch(name):
        what = f'@id("{name}") is not 1 to 128 of letters, digits and . _ : / -' if name else 'the rule has no @id("…")'
        raise ValueError(f"{what}; the id is what denials and the audit trail name")
    ask = "effect" in given
    if ask and (given["effect"] != "ask" or effect != "forbid"):
        raise ValueError('@effect takes only "ask", and only on a forbid')
    if "mode" in given and given["mode"] != "shadow":
        raise ValueError('@mode takes only "shadow": the rule is evaluated and told, and rules nothing')
    if not ask and (stray := sorted(given.keys() & {"approver", "expires"})):
        raise ValueError(f'@{stray[0]} has a meaning only beside @effect("ask")')
    if UNTIL_SHADOW in given and not compiled:
        raise ValueError(f'@{UNTIL_SHADOW} is of compiled grants alone; to try a rule out write @mode("shadow")')
    return Notes(
        id=name,
        ask=ask,
        shadow="mode" in given,
        until_shadow=UNTIL_SHADOW in given,
        reason=given.get("reason", ""),
        advice=given.get("advice", ""),
        approver=_approver(given),
        expires_s=duration_s(given["expires"], "@expires") if "expires" in given else 0,
        unread=tuple(sorted(given.keys() - KNOWN - {UNTIL_SHADOW})),
    )


def duration_s(text: str, what: str) -> int:
    """Seconds of "30s", "10m", "2h" or "1d", up to APPROVAL_TTL_S_MAX. Raises ValueError with a sentence."""
    match = _DURATION.fullmatch(text)
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not 1 <= seconds <= APPROVAL_TTL_S_MAX:
        days = APPROVAL_TTL_S_MAX // 86_400
        raise ValueError(
            f'{what} takes a time such as "30s", "10m", "2h" or "1d", up to {days} days; not "{text[:40]}"'
        )
    return seconds


def _approver(given: Mapping[str, str]) -> str:
    name = given.get("approver", "")
    if "approver" in given and (name != name.strip() or not 1 <= len(name) <= APPROVER_MAX):
        raise ValueError('@approver takes "other" (anybody but the requester) or the name of a group')
    return name
