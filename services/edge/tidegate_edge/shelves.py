"""A server's definitions as last seen, read strictly and kept byte for byte. A digest over the canonical definition
tells a change. Pure. Counterparts: `discovery.py` fetches; `catalog.py` puts the shelves of all servers behind doors.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from mcp.shared.inbound import encode_header_value, find_invalid_x_mcp_header, x_mcp_header_map

from tidegate.limits import URI_CHARS_MAX
from tidegate.policy.labels import suggested_labels, tool_labels
from tidegate_edge import strict_json
from tidegate_edge.messages import decode_fields, encode
from tidegate_edge.upstream.port import Definitions

Kind = Literal["tool", "prompt", "resource", "template", "question"]
PROMPTS_GET: Final = "prompts/get"
RESOURCES_READ: Final = "resources/read"
QUESTIONS_ASK: Final = "questions/ask"
RESERVED: Final = frozenset({PROMPTS_GET, RESOURCES_READ, QUESTIONS_ASK})
"""What policy decides on for prompts and resources: a tool of such a name could borrow their rules."""
DEFINITION_BYTES_MAX: Final = 256 * 1024  # it must fit into an event
NAME_CHARS_MAX: Final = 128
LEFT_OUT_MAX: Final = 20
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _Unfit(Exception):
    """Why a definition is left out."""


class Item(msgspec.Struct, frozen=True):
    """One tool, prompt, resource or template of one server. `fields` are its definition's members, byte for byte."""

    server: str
    name: str  # the upstream's own: a name; of resources the URI, of templates the template
    exposed: str  # at /mcp, or at the set it is of; untouched at /mcp/{server}. "": not there
    digest: str
    labels: tuple[str, ...]
    fields: dict[str, msgspec.Raw]
    raw_name: msgspec.Raw = msgspec.Raw(b"null")  # `name` as JSON
    routing_name: str = ""  # `name` as Mcp-Name carries it
    input_schema: Any = None  # decoded; kept only where it asks for Mcp-Param-* headers
    param_headers: dict[tuple[str, ...], str] = {}  # argument path → header token, from `x-mcp-header`
    kind: Kind = "tool"
    action: str = ""  # what policy decides on: a tool's own name, `prompts/get`, `resources/read`
    suggested: tuple[str, ...] = ()  # labels, by a tool's own annotations
    fixed: dict[str, msgspec.Raw] = {}  # a set's: laid over the client's arguments before anything is decided

    @property
    def read_only(self) -> bool:
        return "read-only" in self.labels


class Shelf(msgspec.Struct, frozen=True):
    """One server: its definitions and what it says of itself."""

    server: str
    tools: tuple[Item, ...]
    digest: str
    prompts: tuple[Item, ...] = ()
    resources: tuple[Item, ...] = ()
    templates: tuple[Item, ...] = ()
    labels: tuple[str, ...] = ()  # the server's own
    capabilities: dict[str, Any] = {}
    instructions: str = ""
    left_out: tuple[str, ...] = ()  # definitions that cannot be shown: which, and why

    @property
    def prompting(self) -> bool:
        """It has prompts, or may come to have some."""
        return bool(self.prompts) or isinstance(self.capabilities.get("prompts"), dict)

    @property
    def readable(self) -> bool:
        """It has resources: listed ones, or such as are made when they are read."""
        return bool(self.resources or self.templates) or isinstance(self.capabilities.get("resources"), dict)

    @property
    def any_prompt(self) -> Item:
        """What policy knows of all prompts of this server."""
        return _any(self.server, "prompt", PROMPTS_GET, _with(self.labels, "prompt"))

    @property
    def any_resource(self) -> Item:
        """What policy knows of all resources of this server."""
        return _any(self.server, "resource", RESOURCES_READ, _with(self.labels, "resource"))

    @property
    def any_question(self) -> Item:
        """What policy knows of all that this server asks its clients outside of calls."""
        return _any(self.server, "question", QUESTIONS_ASK, _with(self.labels, "question"))


def shelve(
    server: str, found: Definitions, labels: Mapping[str, tuple[str, ...]] = {}, own: tuple[str, ...] = ()
) -> Shelf:
    """Read a server's definitions. `own` are the server's labels, `labels` the operator's by tool. Invalid ones are
    left out; of equal names the first stands.
    """
    out: list[str] = []
    tools = _ordered("tool", found.tools, lambda raw: _read_tool(server, raw, labels, own), out)
    prompts = _ordered("prompt", found.prompts, lambda raw: _read_prompt(server, raw, own), out)
    resources = _ordered("resource", found.resources, lambda raw: _read_resource(server, raw, own, "resource"), out)
    templates = _ordered("template", found.templates, lambda raw: _read_resource(server, raw, own, "template"), out)
    capabilities = _read_object(found.capabilities)
    parts = [
        *(f"{item.kind}:{item.name}:{item.digest}" for item in (*tools, *prompts, *resources, *templates)),
        msgspec.json.encode(capabilities, order="sorted").decode(),
        found.instructions,
    ]
    digest = hashlib.sha256(encode(parts)).hexdigest()
    shelf = Shelf(server, tools, digest, prompts, resources, templates, own, capabilities, found.instructions)
    return msgspec.structs.replace(shelf, left_out=tuple(out[:LEFT_OUT_MAX]))


def made_up(shelf: Shelf, uri: str) -> Item:
    """A resource that its server has not listed."""
    return Item(
        shelf.server,
        uri,
        uri,
        "",
        _with(shelf.labels, "resource"),
        {},
        msgspec.Raw(encode(uri)),
        encode_header_value(uri),
        kind="resource",
        action=RESOURCES_READ,
    )


def _any(server: str, kind: Kind, action: str, labels: tuple[str, ...]) -> Item:
    return Item(server, "", "", "", labels, {}, kind=kind, action=action)


def _ordered(kind: Kind, raws: Iterable[bytes], read: Callable[[bytes], Item], left_out: list[str]) -> tuple[Item, ...]:
    items: dict[str, Item] = {}
    for raw in raws:
        try:
            item = read(raw)
        except _Unfit as unfit:
            left_out.append(f"a {kind} is left out: {unfit}: {raw[:80].decode(errors='replace')!r}")
            continue
        items.setdefault(item.name, item)
    return tuple(sorted(items.values(), key=lambda item: item.name))


def _read(raw: bytes) -> tuple[dict[str, Any], dict[str, msgspec.Raw]]:
    """(definition, its members as bytes), where it reads in one way only and fits."""
    if len(raw) > DEFINITION_BYTES_MAX:
        raise _Unfit(f"it is longer than {DEFINITION_BYTES_MAX} bytes")
    try:
        definition = strict_json.read(raw)  # one reading: what is digested, inspected and shown is the same
        return definition, decode_fields(raw)
    except (strict_json.NotStrictJson, msgspec.DecodeError) as error:
        raise _Unfit(str(error)) from error


def _read_tool(server: str, raw: bytes, labels: Mapping[str, tuple[str, ...]], own: tuple[str, ...]) -> Item:
    definition, fields = _read(raw)
    name = _text(definition, "name", NAME_CHARS_MAX)
    if name in RESERVED:
        raise _Unfit("policy decides on prompts and resources under this name")
    schema = definition.get("inputSchema")
    if not isinstance(schema, dict) or schema.get("type") != "object":  # clients refuse a whole list for one such tool
        raise _Unfit("its inputSchema is not of type object")
    if (problem := find_invalid_x_mcp_header(schema)) is not None:  # 2026-07-28 transports: it must be left out
        raise _Unfit(f"x-mcp-header: {problem}")
    headers = x_mcp_header_map(schema)
    return Item(
        server=server,
        name=name,
        exposed=name,
        digest=_digest(definition),
        labels=tool_labels(definition, own, labels.get(name, ())),
        fields=fields,
        raw_name=msgspec.Raw(encode(name)),
        routing_name=encode_header_value(name),
        input_schema=schema if headers else None,
        param_headers=headers,
        action=name,
        suggested=suggested_labels(definition),
    )


def _read_prompt(server: str, raw: bytes, own: tuple[str, ...]) -> Item:
    definition, fields = _read(raw)
    name = _text(definition, "name", NAME_CHARS_MAX)
    return _plain(server, name, definition, fields, _with(own, "prompt"), "prompt", PROMPTS_GET)


def _read_resource(server: str, raw: bytes, own: tuple[str, ...], kind: Literal["resource", "template"]) -> Item:
    definition, fields = _read(raw)
    uri = _text(definition, "uri" if kind == "resource" else "uriTemplate", URI_CHARS_MAX)
    if not isinstance(definition.get("name"), str):
        raise _Unfit("it has no name")
    return _plain(server, uri, definition, fields, _with(own, "resource"), kind, RESOURCES_READ)


def _plain(
    server: str,
    name: str,
    definition: dict[str, Any],
    fields: dict[str, msgspec.Raw],
    labels: tuple[str, ...],
    kind: Kind,
    action: str,
) -> Item:
    return Item(
        server,
        name,
        name,
        _digest(definition),
        labels,
        fields,
        msgspec.Raw(encode(name)),
        encode_header_value(name),
        kind=kind,
        action=action,
    )


def _text(definition: dict[str, Any], key: str, chars_max: int) -> str:
    value = definition.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= chars_max or _CONTROL.search(value):
        raise _Unfit(f"its {key} is not 1 to {chars_max} characters, none of them a control character")
    return value


def _digest(definition: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(definition, order="sorted")).hexdigest()


def _with(own: tuple[str, ...], label: str) -> tuple[str, ...]:
    return tuple(sorted({*own, label}))


def _read_object(raw: bytes) -> dict[str, Any]:
    try:
        value = strict_json.read(raw)
    except strict_json.NotStrictJson:
        return {}
    return value if isinstance(value, dict) else {}
