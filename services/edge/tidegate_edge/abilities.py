"""What a client can be asked for: sampling, elicitation, roots. Declared to upstreams as far as the gateway relays it.

Pure. Legacy clients said it in `initialize`, modern ones say it in each request.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec

from tidegate_edge.messages import CLIENT_CAPABILITIES_META
from tidegate_edge.upstream.port import NO_CAPABILITIES

ASKED_WITH: Final = {"elicitation/create": "elicitation", "roots/list": "roots", "sampling/createMessage": "sampling"}
"""Server requests that are relayed, and the capability that each needs."""
_RELAYED: Final = {"elicitation": ("form", "url"), "roots": (), "sampling": ("context", "tools")}
"""By capability, the parts of it that are relayed. Nothing else of a client's own making goes on: each shade would be
another upstream session.
"""
_UI: Final = "io.modelcontextprotocol/ui"  # MCP Apps, the one extension that means the same in both eras
_UI_TYPES: Final = ("text/html;profile=mcp-app",)


class Abilities(msgspec.Struct, frozen=True):
    """`declared` is canonical JSON, fit to be declared to an upstream of either era."""

    declared: bytes = NO_CAPABILITIES
    names: frozenset[str] = frozenset()
    by_url: bool = False  # elicitation in URL mode
    by_form: bool = False  # elicitation in form mode
    with_tools: bool = False  # sampling in which the model is given tools

    def can_answer(self, method: str, params: dict[str, Any]) -> bool:
        """Whether the client can be asked this."""
        needed = ASKED_WITH.get(method)
        if needed is None or needed not in self.names:
            return False
        if needed == "elicitation":
            return self.by_url if params.get("mode") == "url" else self.by_form
        return self.with_tools or needed != "sampling" or not _gives_tools(params)


NONE: Final = Abilities()


def _gives_tools(params: dict[str, Any]) -> bool:
    """2025-11-25 and 2026-07-28 client/sampling: only where the client has declared `sampling.tools`."""
    return params.get("tools") is not None or params.get("toolChoice") is not None


def of_modern(params: dict[str, Any]) -> Abilities:
    """Of one request's `_meta`. Lists of roots do not change within a request, so nobody is told of changes."""
    given = params["_meta"].get(CLIENT_CAPABILITIES_META)
    return _abilities(_relayed(given, changing=False)) if given and isinstance(given, dict) else NONE


def of_legacy(capabilities: bytes) -> Abilities:
    """Of a session's record."""
    return NONE if capabilities in (b"{}", b"null") else _of_legacy(capabilities)


@lru_cache(1024)
def _of_legacy(capabilities: bytes) -> Abilities:
    given = msgspec.json.decode(capabilities)
    if not isinstance(given, dict):
        return NONE
    changing = isinstance(given.get("roots"), dict) and given["roots"].get("listChanged") is True
    return _abilities(_relayed(given, changing=changing))


def _relayed(given: dict[str, Any], *, changing: bool) -> bytes:
    """Canonical JSON of what is known. `changing`: the client tells when its roots change."""
    declared: dict[str, Any] = {
        name: {part: {} for part in parts if isinstance(given[name].get(part), dict)}
        for name, parts in _RELAYED.items()
        if isinstance(given.get(name), dict)
    }
    if "roots" in declared and changing:
        declared["roots"] = {"listChanged": True}
    extensions = given.get("extensions")
    if isinstance(extensions, dict) and isinstance(extensions.get(_UI), dict):
        types = extensions[_UI].get("mimeTypes")
        shown = [one for one in _UI_TYPES if one in types] if isinstance(types, list) else []
        declared["extensions"] = {_UI: {"mimeTypes": shown} if shown else {}}
    return msgspec.json.encode(declared, order="sorted")


@lru_cache(1024)
def _abilities(declared: bytes) -> Abilities:
    relayed: dict[str, Any] = msgspec.json.decode(declared)
    elicitation = relayed.get("elicitation")
    by_form = elicitation is not None and ("form" in elicitation or not elicitation)  # {} has always meant forms
    with_tools = "tools" in relayed.get("sampling", {})
    return Abilities(declared, frozenset(relayed) - {"extensions"}, "url" in (elicitation or {}), by_form, with_tools)


def missing(asked: Iterable[tuple[str, dict[str, Any]]], abilities: Abilities) -> dict[str, dict[str, Any]]:
    """The capabilities that what is asked would need and the client lacks, as -32021 names them."""
    lacking: dict[str, dict[str, Any]] = {}
    for method, params in asked:
        name = ASKED_WITH.get(method)
        if name is None or abilities.can_answer(method, params):
            continue
        part = "" if name not in abilities.names else "tools" if name == "sampling" else "form"
        part = "url" if name == "elicitation" and params.get("mode") == "url" else part
        lacking.setdefault(name, {}).update({part: {}} if part else {})
    return lacking
