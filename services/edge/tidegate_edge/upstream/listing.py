"""All pages of all lists that a server offers, bounded: pages, items and bytes, and a stop at a cursor seen before.

Counterpart: the adapters give `fetch`; `shelves.py` reads what is found. A list that is not whole is said to be
partial, and one list's failure leaves the others whole.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.limits import LIST_BYTES_MAX, LIST_PAGES_MAX, TOOLS_PER_SERVER_MAX
from tidegate_edge.messages import METHOD_NOT_FOUND, careful, decode_error, decode_fields
from tidegate_edge.upstream.answers import error_message
from tidegate_edge.upstream.port import Answer, Definitions, ListKind

Fetch = Callable[[str, str | None], Awaitable[Answer]]
METHODS: Final[dict[ListKind, str]] = {
    "tools": "tools/list",
    "prompts": "prompts/list",
    "resources": "resources/list",
    "templates": "resources/templates/list",
}
_CAPABILITY: Final[dict[ListKind, str]] = {
    "tools": "tools",
    "prompts": "prompts",
    "resources": "resources",
    "templates": "resources",
}
_MEMBER: Final[dict[ListKind, str]] = {
    "tools": "tools",
    "prompts": "prompts",
    "resources": "resources",
    "templates": "resourceTemplates",
}
_KEY: Final[dict[ListKind, str]] = {"tools": "name", "prompts": "name", "resources": "uri", "templates": "uriTemplate"}
_ENDLESS: Final = f"more than {LIST_PAGES_MAX} pages, {TOOLS_PER_SERVER_MAX} entries or {LIST_BYTES_MAX} bytes"


class _Page(msgspec.Struct):
    tools: list[msgspec.Raw] = []
    prompts: list[msgspec.Raw] = []
    resources: list[msgspec.Raw] = []
    resourceTemplates: list[msgspec.Raw] = []
    nextCursor: str | None = None


class _Changed(Exception):
    """The list is not the one that the paging began with."""


_decode_page: Final = careful(msgspec.json.Decoder(_Page).decode)


async def drain(
    name: str, fetch: Fetch, *, capabilities: bytes = b"{}", server_info: bytes = b"null", instructions: str = ""
) -> Definitions:
    """`fetch(method, cursor)` answers one list request; `capabilities` are the server's, as it declared them.

    Raises UpstreamFault where not one of the lists can be had. A server that declares none is asked for tools.
    """
    found: dict[ListKind, tuple[bytes, ...]] = {}
    partial: dict[ListKind, str] = {}
    first: UpstreamFault | None = None
    for kind in offered(capabilities):
        try:
            found[kind], why = await _drain_list(name, kind, fetch)
        except UpstreamFault as fault:
            first = first or fault
            why = fault.sentence
        if why:
            partial[kind] = why
    if first is not None and not found:
        raise first
    return Definitions(
        tools=found.get("tools", ()),
        prompts=found.get("prompts", ()),
        resources=found.get("resources", ()),
        templates=found.get("templates", ()),
        capabilities=capabilities,
        server_info=server_info,
        instructions=instructions,
        partial=partial,
    )


def offered(capabilities: bytes) -> list[ListKind]:
    """The lists that a server with these capabilities has."""
    try:
        declared = decode_fields(capabilities)
    except msgspec.DecodeError:
        declared = {}
    kinds = [kind for kind, capability in _CAPABILITY.items() if bytes(declared.get(capability, b"null")) != b"null"]
    return kinds or ["tools"]


async def _drain_list(name: str, kind: ListKind, fetch: Fetch) -> tuple[tuple[bytes, ...], str]:
    """(definitions, why they are not all). A list that changes while it is paged is fetched again once, and then taken
    as it comes.
    """
    try:
        return await _drain_pages(name, kind, fetch, settled=False)
    except _Changed:
        return await _drain_pages(name, kind, fetch, settled=True)


async def _drain_pages(name: str, kind: ListKind, fetch: Fetch, *, settled: bool) -> tuple[tuple[bytes, ...], str]:
    entries: list[bytes] = []
    names: set[bytes] = set()
    size = 0
    cursor: str | None = None
    seen: set[str | None] = set()
    while cursor not in seen:
        if len(seen) >= LIST_PAGES_MAX:
            return tuple(entries), f"{name}: {METHODS[kind]} has {_ENDLESS}"
        answer = await fetch(METHODS[kind], cursor)
        if answer.error and seen:
            if not settled:
                raise _Changed  # the cursor holds no more
            return tuple(entries), f"{name}: {METHODS[kind]} refuses the cursors that it gave"
        seen.add(cursor)
        page = _read_page(name, kind, answer)
        fresh = [bytes(entry) for entry in getattr(page, _MEMBER[kind])]
        if not settled:
            _compare(kind, fresh, names)
        entries += fresh
        size += sum(map(len, fresh))
        cursor = page.nextCursor  # "" is a cursor like any other
        if len(entries) > TOOLS_PER_SERVER_MAX or size > LIST_BYTES_MAX:
            return _within(entries), f"{name}: {METHODS[kind]} has {_ENDLESS}"
        if cursor is None:
            return tuple(entries), ""
    return tuple(entries), f"{name}: {METHODS[kind]} gives a cursor twice: its pages go round in a circle"


def _within(entries: list[bytes]) -> tuple[bytes, ...]:
    kept: list[bytes] = []
    size = 0
    for entry in entries[:TOOLS_PER_SERVER_MAX]:
        size += len(entry)
        if size > LIST_BYTES_MAX:
            break
        kept.append(entry)
    return tuple(kept)


def _compare(kind: ListKind, fresh: list[bytes], names: set[bytes]) -> None:
    """An entry of an earlier page that comes again tells that the list has moved under the cursor."""
    here: set[bytes] = set()
    for entry in fresh:
        try:
            here.add(bytes(decode_fields(entry).get(_KEY[kind], b"")))
        except msgspec.DecodeError:
            continue  # judged where definitions are read
    here.discard(b"")
    if not names.isdisjoint(here):
        raise _Changed
    names |= here


def _read_page(name: str, kind: ListKind, answer: Answer) -> _Page:
    if answer.error:
        if kind == "templates" and _code(answer.error) == METHOD_NOT_FOUND:
            return _Page()  # `resources` is one capability; many servers have no templates
        raise UpstreamFault(f"{name}: {METHODS[kind]} failed: {error_message(answer.error)}")
    try:
        return _decode_page(answer.result)
    except msgspec.DecodeError as error:
        raise UpstreamFault(f"{name}: {METHODS[kind]} is malformed: {error}") from error


def _code(error: bytes) -> int:
    try:
        return decode_error(error).code
    except msgspec.DecodeError:
        return 0
