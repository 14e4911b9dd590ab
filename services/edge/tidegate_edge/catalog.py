"""The catalogue: what every server offers, as last seen, and what of it is behind each door. Immutable; swapped whole.

A name or URI that a client sends resolves here, through maps, to a server and the server's own name. A failed or
partial list is never taken as a withdrawal. Counterpart: `discovery.py` fetches; `lists.py` renders.
"""

from collections.abc import Mapping

import msgspec

from tidegate.limits import URI_CHARS_MAX
from tidegate.policy.resource_uris import MalformedUri, normal
from tidegate_edge.doors import EMPTY, Door, Plan, open_doors
from tidegate_edge.messages import encode
from tidegate_edge.shelves import DEFINITION_BYTES_MAX, Item, Kind, Shelf, made_up, shelve
from tidegate_edge.uris import first_match, parted

__all__ = ["DEFINITION_BYTES_MAX", "Catalog", "Door", "Item", "Kind", "Plan", "Shelf", "renamed", "shelve"]


class Catalog:
    """All shelves, with the maps that the hot path needs."""

    def __init__(self, shelves: Mapping[str, Shelf] | None = None, plan: Plan | None = None) -> None:
        self.plan = plan or Plan()
        self.shelves: dict[str, Shelf] = dict(shelves or {})
        opened = open_doors(self.shelves, self.plan)
        self._doors = opened.by_path
        self.tools: tuple[Item, ...] = opened.tools
        self.troubles = opened.troubles  # what is configured and cannot be shown, and why

    def with_shelf(self, shelf: Shelf) -> "Catalog":
        return Catalog({**self.shelves, shelf.server: shelf}, self.plan)

    def door(self, door: str) -> Door:
        return self._doors.get(door, EMPTY)

    def find(self, door: str, name: str) -> Item | None:
        """The tool that a client means at a door: "" for /mcp, a server's name, `sets/x`."""
        return self._doors.get(door, EMPTY).tools.get(name)

    def shows(self, door: str, tool: Item) -> bool:
        """Whether a server's tool is at this door, under whatever name."""
        if door == tool.server:
            return True
        shown = self._doors.get(door, EMPTY).tools.values()
        return any((item.server, item.name) == (tool.server, tool.name) for item in shown)

    def find_prompt(self, door: str, name: str) -> Item | None:
        """The prompt that a client means at a door."""
        return self._doors.get(door, EMPTY).prompts.get(name)

    def find_resource(self, door: str, uri: str) -> tuple[Item, str] | None:
        """(what a client means by a URI at a door, the URI as it is sent to its server). None for what is malformed.

        By the map, by our mark, by a template; else it is of the one server that has resources here, if it is one.
        What several servers have is found under its marked URIs alone. What no server has listed in this very spelling
        is meant, and sent, in its normal form.
        """
        if len(uri) > URI_CHARS_MAX:
            return None
        here = self._doors.get(door, EMPTY)
        try:
            return self._written(here, uri) or self._found(here, normal(uri))
        except MalformedUri:
            return None

    def _written(self, here: Door, uri: str) -> tuple[Item, str] | None:
        """What is listed in this very spelling, or carries our mark. Raises MalformedUri."""
        item = here.resources.get(uri)
        if item is not None:
            return item, item.name
        part = parted(uri) if here.merges else None
        return self.of_server(*part) if part is not None and part[0] in here.readers else None

    def _found(self, here: Door, uri: str) -> tuple[Item, str] | None:
        """The same for what is in normal form."""
        if (written := self._written(here, uri)) is not None:
            return written
        if uri in here.shared:
            return None
        item = first_match(here.matchers, uri, _server_of)
        if item is not None:
            return item, uri
        sole = next(iter(here.readers)) if len(here.readers) == 1 else None
        return self.of_server(sole, uri) if sole else None

    def find_template(self, door: str, template: str) -> tuple[Item, str] | None:
        """The same of a template as its server lists it, by the map or by our mark."""
        here = self._doors.get(door, EMPTY)
        item = here.templates.get(template)
        part = parted(template) if item is None and here.merges else None
        if part is not None and part[0] in here.readers:
            item = self._doors[part[0]].templates.get(part[1])
        return None if item is None else (item, item.name)

    def of_server(self, server: str, uri: str) -> tuple[Item, str]:
        """What a server of this catalogue means by a URI of its own, and the URI as it is sent. Raises MalformedUri."""
        own = self._doors[server]
        item = own.resources.get(uri)
        if item is None:
            uri = normal(uri)
            item = own.resources.get(uri) or first_match(own.matchers, uri, _server_of)
        return item or made_up(self.shelves[server], uri), uri


def _server_of(item: Item) -> str:
    return item.server


def renamed(item: Item, name: str) -> bytes:
    """A tool's or prompt's definition under another name, all else byte for byte."""
    return encode({**item.fields, "name": msgspec.Raw(encode(name))})
