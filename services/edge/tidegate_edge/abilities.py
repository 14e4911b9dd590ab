"""What a client can be asked for: sampling, elicitation, roots. Declared to upstreams as far as the gateway relays it.

Pure. Legacy clients said it in `initialize`, modern ones say it in each request.
"""

from functools import lru_cache
from typing import Any, Final

import msgspec

from tidegate_edge.messages import CLIENT_CAPABILITIES_META
from tidegate_edge.upstream.port import NO_CAPABILITIES

ASKED_WITH: Final = {"elicitation/create": "elicitation", "roots/list": "roots", "sampling/createMessage": "sampling"}
"""Server requests that are relayed, and the capability that each needs."""
_RELAYED: Final = tuple(sorted(set(ASKED_WITH.values())))


class Abilities(msgspec.Struct, frozen=True):
    """`declared` is canonical JSON, fit to be declared to an upstream of either era."""

    declared: bytes = NO_CAPABILITIES
    names: frozenset[str] = frozenset()
    by_url: bool = False  # elicitation in URL mode

    def can_answer(self, method: str, params: dict[str, Any]) -> bool:
        """Whether the client can be asked this."""
        needed = ASKED_WITH.get(method)
        if needed is None or needed not in self.names:
            return False
        return self.by_url if needed == "elicitation" and params.get("mode") == "url" else True


NONE: Final = Abilities()


def of_modern(params: dict[str, Any]) -> Abilities:
    """Of one request's `_meta`. Lists of roots do not change within a request, so nobody is told of changes."""
    given = params["_meta"].get(CLIENT_CAPABILITIES_META)
    if not given:
        return NONE
    relayed = {name: given[name] for name in _RELAYED if isinstance(given.get(name), dict)}
    if "roots" in relayed:
        relayed["roots"] = {key: value for key, value in relayed["roots"].items() if key != "listChanged"}
    return _abilities(msgspec.json.encode(relayed, order="sorted"))


def of_legacy(capabilities: bytes) -> Abilities:
    """Of a session's record."""
    return NONE if capabilities in (b"{}", b"null") else _of_legacy(capabilities)


@lru_cache(1024)
def _of_legacy(capabilities: bytes) -> Abilities:
    given = msgspec.json.decode(capabilities)
    if not isinstance(given, dict):
        return NONE
    relayed = {name: given[name] for name in _RELAYED if isinstance(given.get(name), dict)}
    return _abilities(msgspec.json.encode(relayed, order="sorted"))


@lru_cache(1024)
def _abilities(declared: bytes) -> Abilities:
    relayed: dict[str, Any] = msgspec.json.decode(declared)
    elicitation = relayed.get("elicitation", {})
    return Abilities(declared, frozenset(relayed), "url" in elicitation)


def missing(asked: dict[str, tuple[str, dict[str, Any]]], abilities: Abilities) -> dict[str, Any]:
    """The capabilities that what is asked would need and the client lacks, as -32021 names them."""
    lacking: dict[str, Any] = {}
    for method, params in asked.values():
        if abilities.can_answer(method, params):
            continue
        name = ASKED_WITH.get(method)
        if name is not None:
            lacking[name] = {"url": {}} if name == "elicitation" and params.get("mode") == "url" else {}
    return lacking
