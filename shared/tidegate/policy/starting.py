"""A first bundle for the servers that one has: works as it is, and says in comments what to change.

It grants one team the tools of which their servers say that they only read; the others stand beside them, commented
out. Pure; everything that a server says is quoted. Counterpart: `schema_writing.py`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from tidegate.policy.bundle import CASES, ENTITIES, INSPECTION, MANIFEST, SCHEMA
from tidegate.policy.grants import ANY, GRANTS
from tidegate.policy.schema_writing import Json, Offer, OfferedTool, is_text, write_schema
from tidegate.policy.yaml_reading import NAME_MAX

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_NO_ID = re.compile(r"[^A-Za-z0-9._-]+")
_REMARK_MAX = 72
_SAMPLE_DEPTH_MAX = 4

_GRANTS_HEAD = """\
# Who may use which tools of which servers. What no grant allows does not exist for its caller.
# The Cedar that this means: tidegate bundle check DIR --show-cedar
v: 1
"""
_GRANTS_TAIL = """\
    # reason: A sentence for the refusal where a limit stops a call.
    # advice: How to get access.

# More grants, as they could be: several teams, one agent only, limits on arguments, a person who approves.
#  - id: {slug}-writes
#    team: [{team}, oncall]   # or user: alice@example.com, or team: '*' for everybody
#    agent: claude-code
#    tools: {{{server}: '*'}}   # all that the server offers; or by label: {{labels: [read-only]}}
#    limits:
#      path: {{below: docs}}   # the directory, or what lies in it
#      count: {{at_most: 50, optional: true}}
#    ask: true
#    approver: other   # anybody but the requester, or a team; left out: the requester, too
#    expires: 1h
#    mode: shadow   # grants nothing yet; what it would allow is recorded
"""
_RULES = """\
// Rules that grants.yaml has no words for, in Cedar: docs/policy-encoding.md tells how a call looks to them.
// A forbid rules over every grant:
//
// @id("no-secrets-in-arguments")
// @reason("Private keys stay where they are.")
// @advice("Ask the security team for a deploy key.")
// forbid (principal, action in Action::"call", resource)
// when { context.agent.id == "untrusted-agent" };
//
// What is not always known is asked for in `unless`, so that whoever hides it is refused, too:
//
// @id("from-the-office")
// @reason("Tools are used from the office's network.")
// forbid (principal, action in Action::"call", resource)
// unless { context has network && context.network.ip.isInRange(ip("10.0.0.0/8")) };
"""
_INSPECTION = """\
# What is looked for in arguments and results. Secrets in results are masked before the agent sees them.
packs: [secrets, personal-data, injection]
"""


def first_bundle(offers: Iterable[Offer], team: str, name: str) -> dict[str, str]:
    """Files by path."""
    listed = sorted(offers, key=lambda offer: offer.server)
    manifest = {"v": 1, "name": name, "version": "1", "description": f"{team} may use the tools that only read."}
    return {
        MANIFEST: msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode() + "\n",
        GRANTS: _grants(listed, team),
        "policies/rules.cedar": _RULES,
        SCHEMA: write_schema(listed),
        ENTITIES: "[]\n",
        INSPECTION: _INSPECTION,
        CASES: _cases(listed, team),
    }


def reads(tool: OfferedTool) -> bool:
    """Whether a first bundle grants it: the operator says so by a label, or the server of it. A name that means more
    than itself, or that a grant cannot hold, is never granted.
    """
    if tool.name == ANY or not tool.name.strip() or len(tool.name) > NAME_MAX or not is_text(tool.name):
        return False
    return tool.reads_only or "read-only" in tool.labels


def _grants(offers: Sequence[Offer], team: str) -> str:
    lines = [_GRANTS_HEAD.rstrip()]
    granted = any(reads(tool) for offer in offers for tool in offer.tools)
    hint = "" if granted else "# "
    lines.append(
        "grants:" if granted else "grants: []   # no tool says that it only reads: for some, take out '# ' below"
    )
    slug = _NO_ID.sub("-", team).strip("-._")[:40] or "team"
    lines += [f"  {hint}- id: {slug}-reads", f"  {hint}  team: {_yaml(team)}", f"  {hint}  tools:"]
    for offer in offers:
        chosen = any(reads(tool) for tool in offer.tools)
        lines.append(f"      {'' if chosen else '# '}{_yaml(offer.server)}:")
        for tool in sorted(offer.tools, key=lambda tool: tool.name):
            mark = "  - " if reads(tool) else "  # - " if chosen else "#   - "
            lines.append(f"      {mark}{_yaml(tool.name)}{_remark(tool.description)}")
    server = offers[0].server if offers else "server"
    return "\n".join(lines) + "\n" + _GRANTS_TAIL.format(slug=slug, team=_yaml(team), server=server)


def _cases(offers: Sequence[Offer], team: str) -> str:
    """One call that is granted for each server, one of a stranger, and one tool that is granted to nobody."""
    text = "# Decisions that must hold: run by `tidegate bundle check` and before each release.\n"
    return text + "".join(
        f"- note: {_yaml(note)}\n  user: someone@example.com\n  groups: {groups}\n  server: {_yaml(offer.server)}\n"
        f"  tool: {_yaml(tool.name)}\n  arguments: {_json(sample(tool.input_schema))}\n  expect: {expect}\n"
        for note, groups, offer, tool, expect in _decisions(offers, team)
    )


def _decisions(offers: Sequence[Offer], team: str) -> Iterator[tuple[str, str, Offer, OfferedTool, str]]:
    member = f"[{_json(team)}]"
    granted = [(offer, tool) for offer in offers for tool in offer.tools[:1_000] if reads(tool)]
    others = [(offer, tool) for offer in offers for tool in offer.tools if not reads(tool)]
    firsts = {offer.server: (offer, tool) for offer, tool in reversed(granted)}
    for server in sorted(firsts):
        yield f"{team} reads through {server}", member, *firsts[server], "allow"
    for offer, tool in granted[:1]:
        yield "nobody else does", "[]", offer, tool, "deny"
    for offer, tool in others[:1]:
        yield "what is not granted is refused", member, offer, tool, "deny"


def sample(schema: Json, depth: int = 0) -> dict[str, Any]:
    """Arguments of the right shape: what is required, nothing else."""
    properties = schema.get("properties")
    required = schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list) or depth > _SAMPLE_DEPTH_MAX:
        return {}
    names = [name for name in required if isinstance(name, str) and name in properties and is_text(name)]
    return {name: _sample(properties[name], depth) for name in names}


def _sample(schema: object, depth: int) -> Any:
    if not isinstance(schema, dict):
        return "text"
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    for key in ("const", "default"):
        if schema.get(key) is not None:
            return schema[key]
    kind = schema.get("type")
    first = kind[0] if isinstance(kind, list) and kind else kind
    if first == "object":
        return sample(schema, depth + 1)
    return {"integer": 1, "number": 1, "boolean": False, "array": []}.get(str(first), "text")


def _remark(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if not line:
        return ""
    return f"   # {line if len(line) <= _REMARK_MAX else line[: _REMARK_MAX - 1].rstrip() + '…'}"


def _yaml(text: str) -> str:
    """A name as YAML reads it back: plain where that is sure, else quoted."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS else _json(text)


def _json(value: Any) -> str:
    """On one line, whatever YAML takes for the end of one."""
    text = msgspec.json.encode(value).decode()
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
