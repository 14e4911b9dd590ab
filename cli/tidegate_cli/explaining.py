"""The work of `tidegate why`: a call's events, the findings that rest on it, the text of the rules.

Read from the log itself, so that an answer does not depend on anything that is derived from it.
"""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from tidegate.errors import BundleFault, CallerFault
from tidegate.log.port import EventLog
from tidegate.policy.argument_types import Document
from tidegate.settings import Settings
from tidegate_cli.deciding_again import decided_again
from tidegate_cli.defining import definitions
from tidegate_cli.matching import Seen, open_seen, tell_skipped, tenants_of
from tidegate_cli.options import live_settings
from tidegate_cli.output import print_document
from tidegate_cli.released import bundle_bytes

PREFIX_CHARS_MIN = 8
BEGUN_MAX = 2_000  # records of all calls whose ids begin as is asked: an id begins with its time
CALL_EVENTS = ("call.requested", "call.abandoned", "call.completed")


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a call; `rules` maps the determining rules to their text in the bundle that decided, `watching`
    those that would have determined what a shadow says, in their bundles; `again` says whether the bundle that decided
    decides the same from what the event keeps.
    """

    decision_id: str
    requested: Seen
    ended: Seen | None
    findings: tuple[Seen, ...]
    rules: dict[str, str]
    watching: dict[str, str] = {}
    again: str = ""
    approvals: tuple[Seen, ...] = ()  # what became of the question that a rule asked, in order

    def document(self) -> dict[str, Any]:
        return {
            "decision_id": self.decision_id,
            "requested": self.requested.fields,
            "ended": None if self.ended is None else self.ended.fields,
            "findings": [finding.fields for finding in self.findings],
            "rules": self.rules,
            "watching": self.watching,
            "again": self.again,
            "approvals": [event.fields for event in self.approvals],
        }


def explain(config: Path, decision_id: str, as_json: bool) -> None:
    """Raises CallerFault where the log has no such call."""
    settings = live_settings(config)
    if len(decision_id.strip()) < PREFIX_CHARS_MIN:
        raise CallerFault(
            f"give at least the first {PREFIX_CHARS_MIN} characters of the id; `tidegate log tail` shows ids"
        )
    story = asyncio.run(_story_of(settings, decision_id.strip()))
    if as_json:
        print_document(story.document())
        return
    from tidegate_cli.story import show

    show(msgspec.structs.replace(story, approvals=_named(settings, story.approvals)))


async def _story_of(settings: Settings, decision_id: str) -> Story:
    from tidegate_cli.reading import reading

    async with reading(settings) as log:
        stored, findings = await _about(log, decision_id, tenants_of(settings), settings.tenant)
        decision_id = _whole(decision_id, stored)
        stored = [seen for seen in stored if seen.text("call_id") == decision_id]
        findings = [seen for seen in findings if decision_id in seen.fields.get("call_ids", ())]
        events = await _opened(settings, log, stored)
        requested = next((seen for seen in events if seen.type.startswith("call.requested.")), None)
        ended = [seen for seen in events if not seen.type.startswith("call.requested.")]
        ended.sort(key=lambda seen: seen.type.startswith("call.completed."))  # a completion always wins
        first = requested or (ended[-1] if ended else None)
        if first is None:
            if await _is_approval(log, decision_id, tenants_of(settings)):
                raise CallerFault(f"that is an approval: `tidegate approvals show {decision_id}` tells of it")
            raise CallerFault(f"the log holds no call {decision_id}; `tidegate log tail` shows the ids of the latest")
        canonical = await _bundle_of(log, first)
        watching = await _watching(log, first)
        approvals = await _opened(settings, log, await _approvals(log, first))
        declared = await _definition_of(log, first)
    return Story(
        decision_id=decision_id,
        requested=first,
        ended=ended[-1] if ended else None,
        findings=tuple(findings),
        rules=_rule_texts(canonical, first),
        watching=watching,
        again=decided_again(canonical, first, declared),
        approvals=tuple(approvals),
    )


async def _about(log: EventLog, decision_id: str, tenants: frozenset[str], first: str) -> tuple[list[Seen], list[Seen]]:
    """The events of calls whose id begins so, and the findings that name them; of the first tenant, where several have
    such a call. Bytes are compared first: most records are others'. Raises CallerFault where they are too many.
    """
    from tidegate_cli.reading import records

    needle = decision_id.encode()
    events: list[Seen] = []
    findings: list[Seen] = []
    skipped = 0
    async for record in records(log, ("calls", "detections"), follow=False):
        if record is None or record.value is None or needle not in record.value:
            continue
        seen = open_seen(record.value)
        if seen is None:
            skipped += 1
        elif seen.text("tenant") not in tenants:
            continue
        elif seen.name in CALL_EVENTS and seen.text("call_id").startswith(decision_id):
            events.append(seen)
        elif seen.name == "finding.raised" and any(
            str(one).startswith(decision_id) for one in seen.fields.get("call_ids", ())
        ):
            findings.append(seen)
        if len(events) + len(findings) > BEGUN_MAX:
            raise CallerFault(f"more than {BEGUN_MAX} records begin with {decision_id}: give more of the id")
    tell_skipped(skipped)
    of = min((seen.text("tenant") for seen in events), key=lambda tenant: (tenant != first, tenant), default="")
    return [seen for seen in events if seen.text("tenant") == of], [one for one in findings if one.text("tenant") == of]


def _whole(decision_id: str, events: list[Seen]) -> str:
    """The one id that begins so; what is nobody's stays. Raises CallerFault where it is several calls'."""
    found = sorted({seen.text("call_id") for seen in events})
    if len(found) > 1:
        told = ", ".join(found[:3])
        raise CallerFault(f"{len(found)} calls' ids begin with {decision_id}: give more of it ({told}, …)")
    return found[0] if found else decision_id


async def _watching(log: EventLog, call: Seen) -> dict[str, str]:
    """The text of the rules that would have decided in shadow mode, or in a shadow."""
    found: dict[str, str] = {}
    for shadow in call.fields.get("shadows", ()):
        ids = {str(name) for name in shadow.get("rules", ())}
        canonical = await bundle_bytes(log, call.text("tenant"), str(shadow.get("bundle", ""))) if ids else None
        if canonical is not None:
            found |= rules_in(canonical, ids)
    return found


async def _approvals(log: EventLog, call: Seen) -> list[Seen]:
    """The events of the approval that the call waited for, or used."""
    from tidegate_cli.reading import records

    approval_id = call.text("approval_id")
    found: list[Seen] = []
    if not approval_id:
        return found
    async for record in records(log, ("control",), follow=False):
        if record is None or record.value is None or approval_id.encode() not in record.value:
            continue
        seen = open_seen(record.value)
        is_own = seen is not None and (seen.text("approval_id"), seen.text("tenant")) == (
            approval_id,
            call.text("tenant"),
        )
        if seen is not None and is_own and seen.name.startswith("approval."):
            found.append(seen)
    return sorted(found, key=lambda seen: seen.time_us)


async def _is_approval(log: EventLog, approval_id: str, tenants: frozenset[str]) -> bool:
    from tidegate_cli.reading import records

    needle = approval_id.encode()
    found = False
    async for record in records(log, ("control",), follow=False):
        if not found and record is not None and record.value is not None and needle in record.value:
            seen = open_seen(record.value)
            found = (
                seen is not None
                and seen.name.startswith("approval.")
                and seen.text("tenant") in tenants
                and seen.text("approval_id") == approval_id
            )
    return found


async def _opened(settings: Settings, log: EventLog, events: list[Seen]) -> list[Seen]:
    """With their personal parts, as far as keys and masters are here."""
    from tidegate_cli.boxes import open_boxes

    kids = {str(seen.sealed["kid"]) for seen in events if "kid" in seen.sealed}
    if not kids:
        return events
    boxes = await open_boxes(settings, log, kids)
    try:
        return [await boxes.shown_soon(seen) for seen in events]
    finally:
        await boxes.close()


async def _bundle_of(log: EventLog, call: Seen) -> bytes | None:
    """The bundle that decided; None where there was none, or the log has it no more."""
    digest = call.text("bundle")
    return await bundle_bytes(log, call.text("tenant"), digest) if digest else None


async def _definition_of(log: EventLog, call: Seen) -> dict[str, Document]:
    """What the tool declared of its arguments then, by the digest of its definition."""
    inputs = call.fields.get("inputs")
    digest = str(inputs.get("definition", "")) if isinstance(inputs, dict) else ""
    return await definitions(log, call.text("tenant"), digest) if digest else {}


def _named(settings: Settings, events: tuple[Seen, ...]) -> tuple[Seen, ...]:
    """With who decided as people know them."""
    from tidegate_cli.people import Known, logins

    known = Known(logins(settings, [seen.text("actor") for seen in events]))
    return tuple(known.named(seen) for seen in events)


def _rule_texts(canonical: bytes | None, call: Seen) -> dict[str, str]:
    """Of the rules that decided."""
    ids = {str(name) for name in call.fields.get("rules", ())}
    if canonical is None or not ids or call.text("stage") not in ("", "policy"):
        return {}
    return rules_in(canonical, ids)


def rules_in(canonical: bytes, ids: set[str]) -> dict[str, str]:
    """The Cedar text of these rules of a bundle."""
    from tidegate.policy.bundle import Bundle
    from tidegate.policy.rules import parse_rules, statements

    try:
        policies = Bundle.from_bytes(canonical).policies
    except BundleFault:
        return {}
    rules, _ = parse_rules(policies)
    wanted = {(rule.path, rule.line): rule.id for rule in rules if rule.id in ids}
    found: dict[str, str] = {}
    for path, text in policies.items():
        for start, statement in statements(text):
            if name := wanted.get((path, text.count("\n", 0, start) + 1)):
                found[name] = statement
    return found
