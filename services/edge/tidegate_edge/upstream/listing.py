"""All pages of an upstream's tool list, bounded: a page cap, a tool cap, and a stop at a cursor seen before."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tidegate.errors import UpstreamFault
from tidegate.limits import LIST_PAGES_MAX, TOOLS_PER_SERVER_MAX
from tidegate_edge.messages import careful
from tidegate_edge.upstream.port import Answer, Definitions


class _Page(msgspec.Struct):
    tools: list[msgspec.Raw] = []
    nextCursor: str | None = None


_decode_page: Final = careful(msgspec.json.Decoder(_Page).decode)


async def drain_tools(name: str, fetch: Callable[[str | None], Awaitable[Answer]]) -> Definitions:
    """`fetch(cursor)` answers one tools/list. Raises UpstreamFault where a page fails or is malformed."""
    tools: list[bytes] = []
    cursor: str | None = None
    seen: set[str | None] = set()
    while cursor not in seen and len(seen) < LIST_PAGES_MAX and len(tools) <= TOOLS_PER_SERVER_MAX:
        seen.add(cursor)
        page = _read_page(name, await fetch(cursor))
        tools.extend(bytes(tool) for tool in page.tools)
        cursor = page.nextCursor
        if cursor is None and len(tools) <= TOOLS_PER_SERVER_MAX:
            return Definitions(tuple(tools))
    return Definitions(
        tuple(tools[:TOOLS_PER_SERVER_MAX]), partial="the list has a cycle, too many pages or too many tools"
    )


def _read_page(name: str, answer: Answer) -> _Page:
    if answer.error:
        raise UpstreamFault(f"{name}: tools/list failed: {answer.error[:200].decode(errors='replace')}")
    try:
        return _decode_page(answer.result)
    except msgspec.DecodeError as error:
        raise UpstreamFault(f"{name}: tools/list is malformed: {error}") from error
