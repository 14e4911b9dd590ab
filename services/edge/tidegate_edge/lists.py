"""What a principal is shown: initialize, server/discover and the four lists. What is listed can be called, and what can
be called is listed.

Lists are rendered once per principal's facts, door and era, in pages with cursors of our own, and kept with the ruling.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, Final

import msgspec
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tidegate import __version__
from tidegate.claims import Principal
from tidegate.limits import (
    INSTRUCTIONS_CHARS_MAX,
    INSTRUCTIONS_PER_SERVER_CHARS_MAX,
    LIST_PAGE_BYTES_MAX,
    LISTS_KEPT_BYTES_MAX,
)
from tidegate.policy.control import NOTHING
from tidegate.policy.resource_uris import ruled
from tidegate_edge import rewrite
from tidegate_edge.accept import LEGACY_VERSIONS
from tidegate_edge.catalog import Catalog, Door, Item, Kind, Shelf
from tidegate_edge.cursors import BadCursor, Pages, open_cursor, seal_cursor
from tidegate_edge.messages import SERVER_INFO_META, encode
from tidegate_edge.ruling import Ruling

if TYPE_CHECKING:
    from tidegate_edge.edge import Edge

__all__ = ["BadCursor", "discovered", "initialized", "items_at", "listed", "visible_servers"]

SERVER_INFO: Final = {"name": "tidegate", "title": "Tidegate", "version": __version__}
LATEST_LEGACY: Final = max(LEGACY_VERSIONS)
SUPPORTED: Final = [*sorted(LEGACY_VERSIONS), *MODERN_PROTOCOL_VERSIONS]
LIST_TTL_MS: Final = 5_000
DEGRADED_TTL_MS: Final = 1_000  # a server is in trouble: the list may soon be another
DISCOVER_TTL_MS: Final = 60_000
TASKS: Final = "io.modelcontextprotocol/tasks"  # of 2026-07-28 alone
LISTS_KEPT_MAX: Final = 2_000
OFFERS_AT_ONCE: Final = 8  # prompts and resources, where rules may look at each
MEMBERS: Final[dict[Kind, str]] = {
    "tool": "tools",
    "prompt": "prompts",
    "resource": "resources",
    "template": "resourceTemplates",
}
_NAMES: Final[dict[Kind, str]] = {"tool": "name", "prompt": "name", "resource": "uri", "template": "uriTemplate"}
_MODERN_TAIL: Final = b',"resultType":"complete","ttlMs":%d,"cacheScope":"private","_meta":%b}'
_OWN_META: Final = encode({SERVER_INFO_META: SERVER_INFO})


def listed(
    edge: "Edge",
    ruling: Ruling,
    principal: Principal,
    door: str,
    kind: Kind,
    modern: bool,
    cursor: str | None,
    stopped: frozenset[str] = NOTHING,
) -> bytes:
    """The result of tools/list, prompts/list, resources/list or resources/templates/list: one page of what this
    principal may see. `stopped`: what is in quarantine, as `Quarantines.stopped` has it. Raises BadCursor.
    """
    troubled = bool(edge.discovery.troubles) and _is_troubled(edge.discovery.troubles.keys(), door, ruling.catalog)
    key = (principal.key, door, kind, modern, troubled, stopped)
    pages = ruling.lists.get(key)
    if pages is None:
        ttl_ms = DEGRADED_TTL_MS if troubled else LIST_TTL_MS
        pages = _rendered(edge, ruling, principal, door, kind, modern, ttl_ms, stopped)
        _keep(ruling.lists, key, pages)
    if cursor is None:
        return pages.bodies[0]
    page = open_cursor(edge.sealer, cursor, principal, door, kind, pages.digest, len(pages.bodies))
    return pages.bodies[page]


def _is_troubled(troubles: Set[str], door: str, catalog: Catalog) -> bool:
    """Whether one of the servers at a door is in trouble, those that have told nothing so far included."""
    toolset = catalog.door(door).toolset
    if toolset is None:
        return not door or door in troubles
    return not troubles.isdisjoint({*(tool.server for tool in toolset.tools), *toolset.prompts, *toolset.resources})


def _rendered(
    edge: "Edge",
    ruling: Ruling,
    principal: Principal,
    door: str,
    kind: Kind,
    modern: bool,
    ttl_ms: int,
    stopped: frozenset[str],
) -> Pages:
    catalog = ruling.catalog
    shown = _shown(catalog.door(door), kind)
    entries = [
        definition(catalog, door, item, name, modern)
        for name, item in shown.items()
        if not (stopped and _is_stopped(stopped, item)) and is_visible(ruling, principal, item)
    ]
    chunks = list(_chunks(entries, edge.limits.list_page_size))
    digest = hashlib.sha256(b"".join(hashlib.sha256(entry).digest() for entry in entries)).hexdigest()
    tail = _MODERN_TAIL % (ttl_ms, _OWN_META) if modern else b"}"
    bodies: list[bytes] = []
    for page, chunk in enumerate(chunks, 1):
        more = b""
        if page < len(chunks):
            more = b',"nextCursor":"%b"' % seal_cursor(edge.sealer, principal, door, kind, digest, page).encode()
        bodies.append(b'{"%b":[%b]' % (MEMBERS[kind].encode(), b",".join(chunk)) + more + tail)
    return Pages(tuple(bodies), digest)


def _shown(door: Door, kind: Kind) -> dict[str, Item]:
    return dict(
        {"tool": door.tools, "prompt": door.prompts, "resource": door.resources, "template": door.templates}[kind]
    )


def _chunks(entries: list[bytes], count_max: int) -> Iterator[list[bytes]]:
    """At least one, perhaps empty."""
    chunk: list[bytes] = []
    size = 0
    for entry in entries:
        if chunk and (len(chunk) >= count_max or size + len(entry) > LIST_PAGE_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += len(entry)
    yield chunk


def _keep(lists: dict[Any, Pages], key: object, pages: Pages) -> None:
    size = sum(len(body) for body in pages.bodies)
    if len(lists) >= LISTS_KEPT_MAX or size + _size(lists.values()) > LISTS_KEPT_BYTES_MAX:
        lists.clear()
    lists[key] = pages


def _size(many: Iterable[Pages]) -> int:
    return sum(len(body) for pages in many for body in pages.bodies)


def definition(catalog: Catalog, door: str, item: Item, shown: str, modern: bool) -> bytes:
    """A definition as a door shows it: under the name or URI that leads back, all else byte for byte.

    `execution` speaks of the tasks of 2025-11-25, which 2026-07-28 does not have. An `outputSchema` may describe any
    value since 2026-07-28; before, it is of an object, and clients refuse a whole list for one that is not.
    """
    fields = item.fields
    if item.kind == "tool":
        gone = "execution" if modern else "outputSchema" if not _describes_object(fields) else ""
        fields = {key: value for key, value in fields.items() if key != gone} if gone in fields else fields
    if "_meta" in fields and item.kind == "tool":
        meta = rewrite.tool_meta(catalog, door, item.server, fields["_meta"])
        fields = {**fields, "_meta": meta}
    return encode(fields if shown == item.name else {**fields, _NAMES[item.kind]: msgspec.Raw(encode(shown))})


def _describes_object(fields: Mapping[str, msgspec.Raw]) -> bool:
    schema = fields.get("outputSchema")
    read = None if schema is None else msgspec.json.decode(schema)
    return schema is None or (isinstance(read, dict) and read.get("type") == "object")


def _is_stopped(stopped: frozenset[str], item: Item) -> bool:
    name = ruled(item.name) if item.kind in ("resource", "template") else item.name
    return item.server in stopped or f"{item.server}/{name}" in stopped


def is_visible(ruling: Ruling, principal: Principal, item: Item) -> bool:
    """Whether the principal may know of it. Of prompts and resources the name or URI counts, too: rules look at it."""
    if not ruling.is_visible(principal, item):
        return False
    if item.kind == "tool" or ruling.standing(principal, item) is not None:
        return True
    denied = ruling.hopeless_offer(principal, item)
    return denied is None or denied.reason == "evaluation-error"  # a rule asks for what only a call has


def visible_servers(ruling: Ruling, principal: Principal, door: str) -> frozenset[str]:
    """The servers at a door of which the principal may use something."""
    key = (principal.key, door)
    found = ruling.servers.get(key)
    if found is None:
        seen: set[str] = set()
        for item in items_at(ruling.catalog, door):
            if item.server not in seen and ruling.is_visible(principal, item):
                seen.add(item.server)
        found = frozenset(seen)
        if len(ruling.servers) >= LISTS_KEPT_MAX:
            ruling.servers.clear()
        ruling.servers[key] = found
    return found


def items_at(catalog: Catalog, door: str) -> Iterator[Item]:
    """Everything at a door that rules decide about."""
    here = catalog.door(door)
    servers = frozenset(here.servers)
    for items in (here.tools, here.prompts):
        yield from (item for item in items.values() if item.server in servers)
    for server in here.servers:
        shelf = catalog.shelves[server]
        if server in here.readers:
            yield shelf.any_resource
        if shelf.prompting and here.toolset is None:
            yield shelf.any_prompt


def initialized(ruling: Ruling | None, principal: Principal, door: str, requested: object) -> tuple[str, bytes]:
    """(negotiated version, InitializeResult): the requested revision where it is a legacy one that is known, else the
    latest legacy.
    """
    version = requested if isinstance(requested, str) and requested in LEGACY_VERSIONS else LATEST_LEGACY
    head = {
        "protocolVersion": version,
        "capabilities": _capabilities(ruling, principal, door, modern=False),
        "serverInfo": SERVER_INFO,
    }
    return version, encode({**head, **_instructions(ruling, principal, door)})


def discovered(ruling: Ruling | None, principal: Principal, door: str) -> bytes:
    """DiscoverResult (2026-07-28 server/discover)."""
    head = {"supportedVersions": SUPPORTED, "capabilities": _capabilities(ruling, principal, door, modern=True)}
    return encode({**head, **_instructions(ruling, principal, door)})[:-1] + _MODERN_TAIL % (DISCOVER_TTL_MS, _OWN_META)


def _visible_shelves(ruling: Ruling | None, principal: Principal, door: str) -> list[Shelf]:
    if ruling is None:
        return []
    return [ruling.catalog.shelves[server] for server in sorted(visible_servers(ruling, principal, door))]


def _capabilities(ruling: Ruling | None, principal: Principal, door: str, *, modern: bool) -> dict[str, Any]:
    """What really works here, for this principal. Changes of lists are told also where a server does not tell them:
    the gateway finds them.
    """
    shelves = _visible_shelves(ruling, principal, door)
    toolset = ruling.catalog.door(door).toolset if ruling else None
    prompting = {shelf.server for shelf in shelves if shelf.prompting}
    readers = {shelf.server for shelf in shelves if shelf.readable}
    if toolset is not None:
        prompting &= set(toolset.prompts)
        readers &= set(toolset.resources)
    found: dict[str, Any] = {}
    if not shelves or any(shelf.tools or "tools" in shelf.capabilities for shelf in shelves):
        found["tools"] = {"listChanged": True}
    if prompting:
        found["prompts"] = {"listChanged": True}
    if readers:
        subscribe = any(_says(shelf, "resources", "subscribe") for shelf in shelves if shelf.server in readers)
        found["resources"] = {**({"subscribe": True} if subscribe else {}), "listChanged": True}
    for name, servers in (("completions", prompting | readers), ("logging", {shelf.server for shelf in shelves})):
        if any(isinstance(shelf.capabilities.get(name), dict) for shelf in shelves if shelf.server in servers):
            found[name] = {}
    extensions = _extensions(shelves, modern=modern)
    return {**found, **({"extensions": extensions} if extensions else {})}


def _says(shelf: Shelf, capability: str, what: str) -> bool:
    given = shelf.capabilities.get(capability)
    return isinstance(given, dict) and given.get(what) is True


def _extensions(shelves: Iterable[Shelf], *, modern: bool) -> dict[str, Any]:
    """All that a server speaks; of two servers' settings those of the first."""
    found: dict[str, Any] = {}
    for shelf in shelves:
        given = shelf.capabilities.get("extensions")
        if isinstance(given, dict):
            found = {**given, **found}
    if not modern:
        found.pop(TASKS, None)
    return found


def _instructions(ruling: Ruling | None, principal: Principal, door: str) -> dict[str, str]:
    """A server's own are untouched at its door; several servers' are sections under their names, within bounds."""
    shelves = [shelf for shelf in _visible_shelves(ruling, principal, door) if shelf.instructions]
    toolset = ruling.catalog.door(door).toolset if ruling else None
    if toolset is not None and toolset.instructions:
        return {"instructions": toolset.instructions}
    if shelves and door == shelves[0].server:
        return {"instructions": shelves[0].instructions}
    sections = [toolset.description] if toolset is not None and toolset.description else []
    sections += [
        f"## {shelf.server}\n\n{_cut(shelf.instructions, INSTRUCTIONS_PER_SERVER_CHARS_MAX)}" for shelf in shelves
    ]
    text = _cut("\n\n".join(sections), INSTRUCTIONS_CHARS_MAX)
    return {"instructions": text} if text else {}


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"
