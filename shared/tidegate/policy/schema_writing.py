"""schema.cedarschema from what servers offer: each tool an action, its arguments typed by its own input schema.

Types as docs/policy-encoding.md gives them. An argument of no single type is left out, and named in a comment: a rule
over it would not be checked, so it must be declared by hand. Pure and repeatable; everything that a server says is
escaped. Counterpart: `starting.py` writes the rest of a first bundle.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tidegate.policy.arguments import RESERVED_KEYS
from tidegate.policy.grants_cedar import escaped, is_bare

TYPE_DEPTH_MAX = 6
PROPERTIES_MAX = 200
MARK = "// ---- from here on written by `tidegate bundle init`; what stands above is yours ----"
HEAD = """\
// What there is to write rules over, so that a misspelt tool or argument is an error of `tidegate bundle check`.
// After a server has changed, `tidegate bundle init DIR --schema-only` writes the lower part anew.
entity Group in [Group];
entity User in [Group];
entity ServiceAccount in [Group];
entity AgentClass in [AgentClass];
entity Agent in [AgentClass];
entity Server { labels: Set<String> };
"""
CONTEXT = """\
type Acting = { id: String, classes: Set<String> };
type Clock = { hour: Long, minute: Long, weekday: Long, date: String };
type Network = { ip: ipaddr };
"""
_AROUND = "now: datetime, time: Clock, network?: Network, taint: Set<String>, protocol: String"
Json: TypeAlias = Mapping[str, Any]
_DECLARED = re.compile(r"^(entity|type) +(\w+)", re.MULTILINE)
_PRIMITIVES = {"string": "String", "boolean": "Bool", "integer": "Long"}


@dataclass(frozen=True)
class OfferedTool:
    """A tool as its server defines it. `reads_only` is the server's word."""

    name: str
    input_schema: Json
    labels: tuple[str, ...] = ()
    description: str = ""
    reads_only: bool = False


@dataclass(frozen=True)
class Offer:
    """What one server offers. `prompts`: the names of all their arguments, None without prompts."""

    server: str
    labels: tuple[str, ...]
    tools: tuple[OfferedTool, ...]
    prompts: tuple[str, ...] | None = None
    resources: bool = False


def write_schema(offers: Iterable[Offer], before: str = "") -> str:
    """The schema; of one that was written `before`, what stands above the mark is kept, and what it lacks is added."""
    listed = sorted(offers, key=lambda offer: offer.server)
    kept = before.partition(MARK)[0].rstrip() if MARK in before else HEAD.rstrip()
    labels = sorted({label for offer in listed for label in _labels(offer)})
    groups = [f'action "{escaped(label)}" in ["call"];' for label in labels if label != "call"]
    declared = {match.groups() for match in _DECLARED.finditer(kept)}
    lacking = [
        line
        for line in (HEAD + CONTEXT).splitlines()
        if (found := _DECLARED.match(line)) and found.groups() not in declared
    ]
    parts = [kept, "", MARK, *lacking, "", 'action "call";', *groups]
    for offer in listed:
        parts += ["", f"// {offer.server}", *_actions(offer)]
    return "\n".join(parts) + "\n"


def _labels(offer: Offer) -> Iterator[str]:
    yield from offer.labels
    for tool in offer.tools:
        yield from tool.labels
    yield from (["prompt"] if offer.prompts is not None else [])
    yield from (["resource"] if offer.resources else [])


def _actions(offer: Offer) -> Iterator[str]:
    for tool in sorted(offer.tools, key=lambda tool: tool.name):
        args, left_out = record_type(tool.input_schema)
        for what in left_out:
            yield f"// left out of {escaped(tool.name)}: {what}"
        yield _action(offer, tool.name, tool.labels, args)
    if offer.prompts is not None:
        names = ", ".join(f"{_attribute(name)}?: String" for name in sorted(set(offer.prompts)))
        yield _action(offer, "prompts/get", ("prompt",), f"{{ name: String, arguments?: {{ {names} }} }}")
    if offer.resources:
        yield _action(offer, "resources/read", ("resource",), "{ uri: String }")


def _action(offer: Offer, name: str, labels: Iterable[str], args: str) -> str:
    parents = ", ".join(f'"{escaped(label)}"' for label in ["call", *sorted({*offer.labels, *labels} - {"call"})])
    return (
        f'action "{escaped(f"{offer.server}/{name}")}" in [{parents}] appliesTo {{\n'
        "  principal: [User, ServiceAccount], resource: [Server],\n"
        f"  context: {{ agent: Acting, args: {args}, {_AROUND} }}\n}};"
    )


def record_type(schema: Json) -> tuple[str, list[str]]:
    """The type of `context.args` for an input schema, and what has no type, each with the reason."""
    typing = _Typing(schema)
    return typing.record(schema, ()), typing.left_out


class _Untyped(Exception):
    """Completes "NAME …"."""


class _Typing:
    """Types of one input schema; `left_out` grows."""

    def __init__(self, root: Json) -> None:
        self._root = root
        self.left_out: list[str] = []

    def record(self, schema: Json, at: tuple[str, ...], *, listed: bool = False) -> str:
        properties = schema.get("properties")
        given = list(properties.items()) if isinstance(properties, dict) else []
        required = schema.get("required")
        needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        parts: list[str] = []
        for number, (name, inner) in enumerate(given):
            try:
                if number >= PROPERTIES_MAX:
                    raise _Untyped(f"is beyond the first {PROPERTIES_MAX}")
                if not is_text(name):
                    raise _Untyped("has a name that holds half a character")
                if name in RESERVED_KEYS:
                    raise _Untyped("has a name that the policy language keeps for itself")
                type_, nullable = self.type(inner, (*at, name), listed)
            except _Untyped as why:
                self.left_out.append(f"{escaped('.'.join((*at, name)))[:100]} {why}")
                continue
            parts.append(f"{_attribute(name)}{'' if name in needed and not nullable else '?'}: {type_}")
        return f"{{ {', '.join(parts)} }}" if parts else "{}"

    def type(self, schema: object, at: tuple[str, ...], listed: bool) -> tuple[str, bool]:
        """The type, and whether null, which is as absent, may stand for it. Raises _Untyped."""
        if len(at) > TYPE_DEPTH_MAX:
            raise _Untyped(f"lies more than {TYPE_DEPTH_MAX} levels deep")
        found: set[str] = set()
        nullable = False
        for kind, part in self._kinds(schema, 0):
            if kind == "null":
                nullable = True
            else:
                found.add(self._one(kind, part, at, listed))
        if found == {"Long", "decimal"}:
            found = {"decimal"}
        if len(found) != 1:
            raise _Untyped("may have any type" if not found else f"has several types ({', '.join(sorted(found))})")
        return found.pop(), nullable

    def _one(self, kind: str, schema: Json, at: tuple[str, ...], listed: bool) -> str:
        if kind in _PRIMITIVES:
            return _PRIMITIVES[kind]
        if kind == "number":
            if listed:
                raise _Untyped("holds numbers in a list, which are whole or decimal as they come")
            return "decimal"
        if kind == "array":
            inner, _ = self.type(schema.get("items"), (*at, "[]"), True)
            return f"Set<{inner}>"
        if kind == "object" and isinstance(schema.get("properties"), dict):
            return self.record(schema, at, listed=listed)
        raise _Untyped("is an object of any keys" if kind == "object" else "has a type that JSON Schema does not know")

    def _kinds(self, schema: object, depth: int) -> Iterator[tuple[str, Json]]:
        """Each JSON type that the schema admits, with the schema that describes it."""
        if not isinstance(schema, dict) or depth > TYPE_DEPTH_MAX:
            raise _Untyped("may have any type")
        if isinstance(schema.get("$ref"), str):
            yield from self._kinds(self._resolved(schema["$ref"]), depth + 1)
            return
        branches = schema.get("anyOf") or schema.get("oneOf") or []
        alone = schema.get("allOf")
        if isinstance(alone, list) and len(alone) == 1 and "type" not in schema:
            branches = alone
        if isinstance(branches, list) and branches and "type" not in schema:
            for branch in branches:
                yield from self._kinds(branch, depth + 1)
            return
        named = schema.get("type")
        if named is None:
            values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const", schema)]
            named = [_kind_of(value) for value in values]
        for kind in named if isinstance(named, list) else [named]:
            yield str(kind), schema

    def _resolved(self, reference: str) -> object:
        node: object = self._root
        if not reference.startswith("#/"):
            raise _Untyped("refers to another document")
        for part in reference[2:].split("/"):
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
        return node


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case _:
            raise _Untyped("may have any type")


def _attribute(name: str) -> str:
    return name if is_bare(name) else f'"{escaped(name)}"'


def is_text(name: str) -> bool:
    """Whether it has a UTF-8 form: JSON can name what has none."""
    return not any("\ud800" <= char <= "\udfff" for char in name)
