"""URIs of one server as a door shows them, in what the server sends: results, notifications, links. Pure.

Counterpart: `Catalog.find_resource` leads a shown URI back. Bytes in which nothing needs a mark are returned as they
are, not even read; in others only the members that hold such URIs are written anew.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from tidegate_edge.catalog import Catalog
from tidegate_edge.messages import careful, decode_fields, encode
from tidegate_edge.uris import first_match, marked

LOOKED_UP_MAX: Final = 64  # URIs of one message, that are compared with what the servers offer
Raw = msgspec.Raw
Change = Callable[[Raw], Raw]
_LINK: Final = b"resource_link"
_URI: Final = b'"uri"'
_EMBEDDING: Final = frozenset({"tools/call", "prompts/get", "tasks/get"})
_UI_FLAT: Final = "ui/resourceUri"  # an older spelling of `_meta.ui.resourceUri` (MCP Apps)
_decode_text: Final = careful(msgspec.json.Decoder(str).decode)
_decode_list: Final = careful(msgspec.json.Decoder(list[Raw]).decode)


def uri(catalog: Catalog, door: str, server: str, uri: str) -> str:
    """A server's URI as this door shows it: as it is where it leads back to that server, else with its mark."""
    here = catalog.door(door)
    if not here.merges or server not in here.readers:
        return uri
    found = catalog.find_resource(door, uri)
    return uri if found and (found[0].server, found[1]) == (server, uri) else marked(server, uri)


def result(catalog: Catalog, door: str, server: str, method: str, raw: bytes) -> bytes:
    """A result, or a notification's params (then `method` is the notification's), as this door shows them.

    A URI that is no server's is left alone in embedded resources; what is there to be followed gets a mark.
    """
    here = catalog.door(door)
    change = _CHANGES.get(method)
    if change is None or not here.merges or server not in here.readers:
        return raw
    if method in _EMBEDDING and (_URI not in raw or (not here.shared and _LINK not in raw)):
        return raw
    given = Raw(raw)
    try:
        changed = change(_Uris(catalog, door, server), given)
    except msgspec.DecodeError:
        return raw  # not of the shape that has URIs: nothing to lead back
    return raw if changed is given else bytes(changed)


def tool_meta(catalog: Catalog, door: str, server: str, raw: Raw) -> Raw:
    """A tool definition's `_meta`: the URI of its user interface (MCP Apps)."""
    here = catalog.door(door)
    if not here.merges or server not in here.readers or b"resourceUri" not in bytes(raw):
        return raw
    uris = _Uris(catalog, door, server)
    try:
        changed = _member(raw, _UI_FLAT, uris.link)
        return _member(changed, "ui", lambda ui: _member(ui, "resourceUri", uris.link))
    except msgspec.DecodeError:
        return raw


class _Uris:
    """The changes for one server's words at one door."""

    def __init__(self, catalog: Catalog, door: str, server: str) -> None:
        self._catalog = catalog
        self._door = door
        self._server = server
        self._looked_up = 0

    def link(self, raw: Raw) -> Raw:
        """A URI to be followed. After so many, each gets a mark: with it a URI leads back in any case."""
        text = _text(raw)
        if text is None:
            return raw
        self._looked_up += 1
        known = self._looked_up <= LOOKED_UP_MAX
        shown = uri(self._catalog, self._door, self._server, text) if known else marked(self._server, text)
        return raw if shown == text else Raw(encode(shown))

    def told(self, raw: Raw) -> Raw:
        """A URI that names what is there; only one that would lead elsewhere changes."""
        text = _text(raw)
        if text is None:
            return raw
        self._looked_up += 1
        if self._looked_up > LOOKED_UP_MAX:
            return raw
        here = self._catalog.door(self._door)
        leads_nowhere = text not in here.shared and self._catalog.find_resource(self._door, text) is None
        return raw if leads_nowhere and not self._is_of_shared_template(text) else self.link(raw)

    def _is_of_shared_template(self, text: str) -> bool:
        here = self._catalog.door(self._door)
        own = self._catalog.door(self._server)
        shared = ((template, item) for template, item in own.matchers if item.name in here.shared)
        return first_match(shared, text, lambda item: item.server) is not None

    def contents(self, raw: Raw) -> Raw:
        """resources/read: `contents[].uri`."""
        return _member(raw, "contents", lambda many: _each(many, lambda one: _member(one, "uri", self.link)))

    def called(self, raw: Raw) -> Raw:
        """tools/call: `content[]`."""
        return _member(raw, "content", lambda many: _each(many, self.block))

    def prompted(self, raw: Raw) -> Raw:
        """prompts/get: `messages[].content`, of which a list is allowed."""
        return _member(raw, "messages", lambda many: _each(many, self._message))

    def _message(self, raw: Raw) -> Raw:
        return _member(raw, "content", lambda one: _each(one, self.block) if _opens(one, b"[") else self.block(one))

    def task(self, raw: Raw) -> Raw:
        """tasks/get: a finished task holds its call's result."""
        return _member(raw, "result", self.called)

    def updated(self, raw: Raw) -> Raw:
        """notifications/resources/updated."""
        return _member(raw, "uri", self.link)

    def block(self, raw: Raw) -> Raw:
        """A content block: a link, or an embedded resource."""
        kind = bytes(_fields(raw).get("type", b""))
        if kind == b'"resource_link"':
            return _member(raw, "uri", self.link)
        if kind == b'"resource"':
            return _member(raw, "resource", lambda one: _member(one, "uri", self.told))
        return raw


_CHANGES: Final[dict[str, Callable[[_Uris, Raw], Raw]]] = {
    "tools/call": _Uris.called,
    "prompts/get": _Uris.prompted,
    "resources/read": _Uris.contents,
    "tasks/get": _Uris.task,
    "notifications/resources/updated": _Uris.updated,
}


def _text(raw: Raw) -> str | None:
    try:
        return _decode_text(raw)
    except msgspec.DecodeError:
        return None


def _opens(raw: Raw, bracket: bytes) -> bool:
    return bytes(raw).lstrip()[:1] == bracket


def _fields(raw: Raw) -> dict[str, Any]:
    """An object's members; of anything else, none."""
    return decode_fields(raw) if _opens(raw, b"{") else {}


def _member(raw: Raw, name: str, change: Change) -> Raw:
    """The object with one member changed; `raw` itself where it has none, or it stays the same."""
    fields = _fields(raw)
    if name not in fields:
        return raw
    changed = change(fields[name])
    return raw if changed is fields[name] else Raw(encode({**fields, name: changed}))


def _each(raw: Raw, change: Change) -> Raw:
    if not _opens(raw, b"["):
        return raw
    entries = _decode_list(raw)
    changed = [change(entry) for entry in entries]
    same = all(one is other for one, other in zip(entries, changed, strict=True))
    return raw if same else Raw(encode(changed))
