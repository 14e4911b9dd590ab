"""What a principal is shown: initialize, server/discover and tools/list. A listed tool is callable, a callable tool is
listed.
"""

from typing import Any, Final

import msgspec
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tidegate import __version__
from tidegate.identity import Principal
from tidegate_edge.accept import LEGACY_VERSIONS
from tidegate_edge.catalog import renamed
from tidegate_edge.messages import SERVER_INFO_META, encode
from tidegate_edge.ruling import Ruling

SERVER_INFO: Final = {"name": "tidegate", "title": "Tidegate", "version": __version__}
LATEST_LEGACY: Final = max(LEGACY_VERSIONS)
SUPPORTED: Final = [*sorted(LEGACY_VERSIONS), *MODERN_PROTOCOL_VERSIONS]
LIST_TTL_MS: Final = 5_000
DISCOVER_TTL_MS: Final = 60_000
CAPABILITIES: Final[dict[str, Any]] = {"tools": {}}
LISTS_KEPT_MAX: Final = 2_000
_MODERN_TAIL: Final = b',"resultType":"complete","ttlMs":%d,"cacheScope":"private","_meta":%b}'
_OWN_META: Final = encode({SERVER_INFO_META: SERVER_INFO})


def initialized(requested: object) -> tuple[str, bytes]:
    """(negotiated version, InitializeResult): the requested revision where it is a legacy one that is known, else the
    latest legacy.
    """
    version = requested if isinstance(requested, str) and requested in LEGACY_VERSIONS else LATEST_LEGACY
    return version, encode({"protocolVersion": version, "capabilities": CAPABILITIES, "serverInfo": SERVER_INFO})


def discovered() -> bytes:
    """DiscoverResult (2026-07-28 server/discover)."""
    return b'{"supportedVersions":%b,"capabilities":%b' % (encode(SUPPORTED), encode(CAPABILITIES)) + _MODERN_TAIL % (
        DISCOVER_TTL_MS,
        _OWN_META,
    )


def tools_listed(ruling: Ruling, principal: Principal, server: str, modern: bool) -> bytes:
    """ListToolsResult: the tools this principal may see, in one page, sorted by server and name."""
    key = (principal.key, server, modern)
    kept = ruling.lists.get(key)
    if kept is None:
        visible = [
            msgspec.Raw(renamed(tool, tool.name if server else tool.exposed))
            for tool in ruling.catalog.tools
            if server in ("", tool.server) and ruling.is_visible(principal, tool)
        ]
        head = b'{"tools":%b' % encode(visible)
        kept = head + (_MODERN_TAIL % (LIST_TTL_MS, _OWN_META) if modern else b"}")
        if len(ruling.lists) >= LISTS_KEPT_MAX:
            ruling.lists.clear()
        ruling.lists[key] = kept
    return kept
