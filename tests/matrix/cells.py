"""A cell of the matrix: one client at one server, as the exercises see it. Counterparts: features.py, running.py."""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from tests.matrix.driving import Connection, Sdk, Wire

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
SEEN_DEADLINE_S: Final = 10.0
Server = Literal["legacy", "resumable", "dual", "modern"]
SERVERS: Final[tuple[Server, ...]] = ("legacy", "resumable", "dual", "modern")
Kind = Literal["tools", "prompts", "resources", "templates"]


_MEMBERS: Final[dict[Kind, str]] = {"resources": "uri", "templates": "uriTemplate"}


class Client(NamedTuple):
    """A column of the matrix."""

    key: str
    title: str
    sdk: Sdk
    mode: str
    modern: bool


CLIENTS: Final[tuple[Client, ...]] = (
    Client("py130", "Python 1.30", "py130", "legacy", False),
    Client("ts1", "TypeScript 1.x", "ts1", "legacy", False),
    Client("py23-legacy", "Python 2.3, legacy", "py23", "legacy", False),
    Client("ts2-legacy", "TypeScript 2.x, legacy", "ts2", "legacy", False),
    Client("py23", "Python 2.3", "py23", "auto", True),
    Client("ts2", "TypeScript 2.x", "ts2", "auto", True),
)


class Seen:
    """What a server has written down."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open()
        self._lines: list[Wire] = []
        self._begun = ""  # a line whose end has not been written yet

    async def find(self, wanted: Callable[[Wire], bool]) -> Wire:
        """The first line that is wanted. Raises AssertionError where it does not come in time."""
        end = time.monotonic() + SEEN_DEADLINE_S
        while True:
            *whole, self._begun = (self._begun + self._file.read()).split("\n")
            self._lines.extend(json.loads(line) for line in whole)
            for line in self._lines:
                if wanted(line):
                    return line
            assert time.monotonic() < end, "the server has not seen it"
            await asyncio.sleep(0.01)

    async def call(self, nonce: str) -> Wire:
        """The one call whose arguments hold this nonce."""
        found = await self.find(lambda line: line["what"] == "call" and line["arguments"].get("nonce") == nonce)
        same = [one for one in self._lines if one["what"] == "call" and one["arguments"].get("nonce") == nonce]
        assert len(same) == 1, f"the server has seen the call {len(same)} times"
        return found


@dataclass
class Cell:
    """`prefix` stands before names where several servers share the door."""

    client: Client
    server: Server
    full: Connection  # declares elicitation, sampling and roots
    bare: Connection  # declares nothing
    seen: Seen
    prefix: str = ""
    _uris: dict[str, str] = field(default_factory=dict)

    @property
    def modern(self) -> bool:
        """Whether the server meets this client's requests in the modern era: mirrored where it speaks both."""
        return self.client.modern if self.server == "dual" else self.server == "modern"

    @property
    def is_translated(self) -> bool:
        return self.client.modern is not self.modern

    def name(self, name: str) -> str:
        return self.prefix + name

    def nonce(self) -> str:
        return uuid.uuid4().hex[:12]

    async def call(self, tool: str, **arguments: Any) -> Wire:
        return await self.full.call(self.name(tool), **arguments)

    async def items(self, kind: Kind, connection: Connection | None = None) -> list[Wire]:
        """Of all pages, each once."""
        member = "resourceTemplates" if kind == "templates" else kind
        found: list[Wire] = []
        cursor: str | None = None
        for _ in itertools.repeat(None, 50):
            page = await (connection or self.full).do("page", kind=kind, cursor=cursor)
            found += page[member]
            cursor = page.get("nextCursor")
            if cursor is None:
                return found
        raise AssertionError("the pages do not end")

    async def learn(self) -> None:
        """The URIs that this door has for the server's: told apart by name, which is the server's own."""
        if self.prefix:
            for kind, member in _MEMBERS.items():
                for item in await self.own(kind):
                    self._uris[item["name"]] = item[member]

    async def own(self, kind: Kind) -> list[Wire]:
        """The items of a list that are this cell's server's: several servers may share the door."""
        items = await self.items(kind)
        if not self.prefix:
            return items
        server = self.prefix.removesuffix("__")
        member = _MEMBERS.get(kind)
        return [one for one in items if (server in one[member] if member else one["name"].startswith(self.prefix))]

    def uri(self, uri: str, name: str) -> str:
        """What the server calls `uri`, by this door's name; `name` is the resource's or, filled in, the template's."""
        known = self._uris.get(name, uri)
        return known.replace("{id}", uri.rpartition("/")[2])
