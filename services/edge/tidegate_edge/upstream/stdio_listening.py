"""Who hears what a server process says outside of requests. Counterparts: `stdio_session.py` brings what is said,
`stdio_kept.py` keeps a listener through restarts.

Legacy: list changes go to all who want them, updates to those who subscribed. Modern: each listener has a
`subscriptions/listen` of its own, and what is said carries its id.
"""

from typing import Final

import msgspec

from tidegate_edge import messages
from tidegate_edge.upstream.port import Talk, Wanted

SUBSCRIPTION_META: Final = "io.modelcontextprotocol/subscriptionId"
_CHANGES: Final = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
}


class Listener:
    """One who listens; `subscription` is the id of its subscriptions/listen, 0 at a legacy server."""

    __slots__ = ("subscription", "talk", "wanted")

    def __init__(self, wanted: Wanted, talk: Talk, subscription: int = 0) -> None:
        self.wanted = wanted
        self.talk = talk
        self.subscription = subscription


class Listeners:
    """All who listen to one process, and which resources it was asked to tell about."""

    def __init__(self) -> None:
        self._all: list[Listener] = []
        self._subscribed: dict[str, int] = {}  # URI → by how many

    def __len__(self) -> int:
        return len(self._all)

    def add(self, listener: Listener) -> None:
        self._all.append(listener)

    def remove(self, listener: Listener) -> None:
        self._all.remove(listener)

    def subscribe(self, uri: str) -> bool:
        """True: the server must be told."""
        self._subscribed[uri] = self._subscribed.get(uri, 0) + 1
        return self._subscribed[uri] == 1

    def unsubscribe(self, uri: str) -> bool:
        """True: the server must be told."""
        self._subscribed[uri] -= 1
        if self._subscribed[uri]:
            return False
        del self._subscribed[uri]
        return True

    def hear(self, method: str, params: bytes) -> bool:
        """Whether somebody listens for this notification, and has heard it."""
        if not self._all:
            return False
        subscription = _subscription_in(params)
        if subscription is not None:
            found = [one for one in self._all if one.subscription == subscription]
        elif method == "notifications/resources/updated":
            uri = _uri_in(params)
            found = [one for one in self._all if uri in one.wanted.uris and not one.subscription]
        elif method in _CHANGES:
            found = [one for one in self._all if getattr(one.wanted, _CHANGES[method]) and not one.subscription]
        else:
            return False
        for listener in found:
            listener.talk.notified(method, params)
        return bool(found) or subscription is not None

    def hear_all(self, method: str, params: bytes) -> None:
        """What belongs to no request, told to every listener: only where all are the same principal."""
        for listener in self._all:
            listener.talk.notified(method, params)


class _Told(msgspec.Struct):
    uri: str = ""
    meta: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict, name="_meta")


_decode_told: Final = messages.careful(msgspec.json.Decoder(_Told).decode)
_decode_id: Final = messages.careful(msgspec.json.Decoder(int | str).decode)


def _subscription_in(params: bytes) -> int | str | None:
    if b"subscriptionId" not in params:
        return None
    try:
        raw = _decode_told(params).meta.get(SUBSCRIPTION_META)
        return None if raw is None else _decode_id(raw)
    except msgspec.DecodeError:
        return None


def _uri_in(params: bytes) -> str:
    try:
        return _decode_told(params).uri
    except msgspec.DecodeError:
        return ""


def offers(capabilities: bytes, wanted: Wanted) -> bool:
    """Whether a legacy server with these capabilities says anything of what is wanted."""
    try:
        told = msgspec.json.decode(capabilities, type=dict[str, msgspec.Raw])
        has = {
            name: msgspec.json.decode(raw) for name, raw in told.items() if name in ("tools", "prompts", "resources")
        }
    except msgspec.DecodeError:
        return False
    changes = any(
        getattr(wanted, name) and isinstance(has.get(name), dict) and has[name].get("listChanged") for name in has
    )
    resources = has.get("resources")
    return changes or bool(wanted.uris and isinstance(resources, dict) and resources.get("subscribe"))
