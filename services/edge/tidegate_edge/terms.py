"""How calls are recorded: durability and capture by tenant, server, tool and label. Pure.

The most particular rule counts (a tool's before its server's, before its tenant's, before the default); then every rule
for a label that the tool or its server has may make that stricter, and none laxer. Counterpart: `settings_checks.py`,
which refuses rules that could not hold.
"""

from collections.abc import Sequence
from typing import Final

from tidegate.events import Capture, Mode
from tidegate.settings import Audit, Rule
from tidegate_edge.calls import Terms

MODES: Final[tuple[Mode, ...]] = ("async", "spool", "strict-or-spool", "strict")
CAPTURES: Final[tuple[Capture, ...]] = ("full", "masked", "digest", "none")
"""From lax to strict."""


def terms_for(
    audit: Audit, rules: Sequence[Rule], tenant: str, server: str, tool: str | None, labels: Sequence[str]
) -> Terms:
    """`tool` None: what was called is not known; then only rules for the server or the tenant can match."""
    mode: Mode = "spool" if audit.mode == "async" else audit.mode
    capture = audit.capture
    for rule in sorted(rules, key=_particular):
        if rule.label or not _matches(rule, tenant, server, tool):
            continue
        if rule.durability != "async" or (rule.tool and "read-only" in labels):
            mode = rule.durability or mode
        capture = rule.capture or capture
    for rule in rules:
        if rule.label in labels and _matches(rule, tenant, server, tool):
            mode = max(mode, rule.durability or mode, key=MODES.index)
            capture = max(capture, rule.capture or capture, key=CAPTURES.index)
    return Terms(mode, capture)


def _matches(rule: Rule, tenant: str, server: str, tool: str | None) -> bool:
    return rule.tenant in ("", tenant) and rule.server in ("", server) and (not rule.tool or rule.tool == tool)


def _particular(rule: Rule) -> tuple[bool, bool, bool]:
    return bool(rule.tool), bool(rule.server), bool(rule.tenant)
