"""The catalogue: every server's tools as last seen, their exposed names and labels. Immutable; swapped whole.

Definitions are kept byte for byte but for the name. A digest over the canonical definition tells a change. A failed or
partial list is never taken as a withdrawal. Counterpart: `discovery.py` fetches; `lists.py` renders.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from mcp.shared.inbound import encode_header_value, find_invalid_x_mcp_header, x_mcp_header_map

from tidegate_edge import strict_json
from tidegate_edge.messages import decode_fields, encode

NAME_MAX: Final = 64  # clients and model APIs cut or refuse longer tool names
SEPARATOR: Final = "__"
DEFINITION_BYTES_MAX: Final = 256 * 1024  # it must fit into an event
# A server's own word may warn. It may not say `read-only`: that could widen what rules permit and `async` lets pass.
_HINTS: Final = (("destructiveHint", "destructive"), ("openWorldHint", "open-world"))
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Tool(msgspec.Struct, frozen=True):
    """One tool of one server. `fields` are its definition's members, byte for byte."""

    server: str
    name: str  # the upstream's own
    exposed: str  # at /mcp; untouched at /mcp/{server}
    digest: str
    labels: tuple[str, ...]
    fields: dict[str, msgspec.Raw]
    raw_name: msgspec.Raw = msgspec.Raw(b"null")  # `name` as JSON
    routing_name: str = ""  # `name` as Mcp-Name carries it
    input_schema: Any = None  # decoded; kept only where it asks for Mcp-Param-* headers
    param_headers: dict[tuple[str, ...], str] = {}  # argument path → header token, from `x-mcp-header`

    @property
    def read_only(self) -> bool:
        return "read-only" in self.labels


class Shelf(msgspec.Struct, frozen=True):
    """One server's tools."""

    server: str
    tools: tuple[Tool, ...]
    digest: str


class Catalog:
    """All shelves, with the maps that the hot path needs."""

    def __init__(self, shelves: Mapping[str, Shelf] | None = None) -> None:
        self.shelves: dict[str, Shelf] = dict(shelves or {})
        self.tools: tuple[Tool, ...] = tuple(tool for _, shelf in sorted(self.shelves.items()) for tool in shelf.tools)
        self.by_exposed: dict[str, Tool] = {tool.exposed: tool for tool in self.tools}
        self.by_server: dict[str, dict[str, Tool]] = {
            name: {tool.name: tool for tool in shelf.tools} for name, shelf in self.shelves.items()
        }

    def with_shelf(self, shelf: Shelf) -> "Catalog":
        return Catalog({**self.shelves, shelf.server: shelf})

    def find(self, server: str, name: str) -> Tool | None:
        """The tool that a client means: by exposed name at /mcp (server ""), by its own name at /mcp/{server}."""
        if not server:
            return self.by_exposed.get(name)
        return self.by_server.get(server, {}).get(name)


def shelve(
    server: str, definitions: Iterable[bytes], labels: Mapping[str, tuple[str, ...]], own: tuple[str, ...]
) -> Shelf:
    """Read a server's definitions. `own` are the server's labels, `labels` the operator's by tool. Invalid ones are
    left out.
    """
    tools: dict[str, Tool] = {}  # by exposed name: a cut one can be equal to another tool's whole one
    for raw in definitions:
        tool = _read_tool(server, raw, labels, own)
        if tool is not None:
            tools.setdefault(tool.exposed, tool)
    ordered = tuple(sorted(tools.values(), key=lambda tool: tool.name))
    digest = hashlib.sha256("".join(f"{tool.name}:{tool.digest};" for tool in ordered).encode()).hexdigest()
    return Shelf(server, ordered, digest)


def _read_tool(server: str, raw: bytes, labels: Mapping[str, tuple[str, ...]], own: tuple[str, ...]) -> Tool | None:
    try:
        definition = strict_json.read(raw)  # one reading: what is digested, inspected and shown is the same
        fields = decode_fields(raw)
    except (strict_json.NotStrictJson, msgspec.DecodeError):
        return None
    if len(raw) > DEFINITION_BYTES_MAX:
        return None
    name = definition.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 128 or _CONTROL.search(name):
        return None
    canonical = msgspec.json.encode(definition, order="sorted")
    given = labels.get(name, ())
    all_labels = tuple(sorted({*own, *given, *(_hinted(definition) if not given else ())}))
    schema = definition.get("inputSchema")
    if not isinstance(schema, dict) or schema.get("type") != "object":  # clients refuse a whole list for one such tool
        return None
    if find_invalid_x_mcp_header(schema) is not None:  # 2026-07-28 transports: such a tool must be left out
        return None
    headers = x_mcp_header_map(schema)
    digest = hashlib.sha256(canonical).hexdigest()
    return Tool(
        server=server,
        name=name,
        exposed=exposed_name(server, name),
        digest=digest,
        labels=all_labels,
        fields=fields,
        raw_name=msgspec.Raw(encode(name)),
        routing_name=encode_header_value(name),
        input_schema=schema if headers else None,
        param_headers=headers,
    )


def _hinted(definition: dict[str, Any]) -> list[str]:
    """Labels that the server's own annotations suggest; an operator's labels for the tool replace them."""
    annotations = definition.get("annotations")
    if not isinstance(annotations, dict):
        return []
    return [label for hint, label in _HINTS if annotations.get(hint) is True]


def exposed_name(server: str, name: str) -> str:
    """`server__tool`; past 64 characters cut, with a stable hash of the whole name at the end."""
    full = f"{server}{SEPARATOR}{name}"
    if len(full) <= NAME_MAX:
        return full
    return f"{full[: NAME_MAX - 9]}_{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def renamed(tool: Tool, name: str) -> bytes:
    """The definition under another name, all else byte for byte."""
    return encode({**tool.fields, "name": msgspec.Raw(encode(name))})
