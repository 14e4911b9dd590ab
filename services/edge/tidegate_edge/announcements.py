"""What has changed at servers, told on this edge: from `discovery.py` and the talks of requests to open streams.

No bus: every edge listens to the servers by itself. Equal announcements that wait are one: a list that changed twice
has changed.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from tidegate.claims import Principal

HEARD_MAX: Final = 1_000  # kinds of changes that wait for one listener
ChangeKind = Literal["tools", "prompts", "resources", "updated"]


class Announcement(msgspec.Struct, frozen=True):
    """A list of a server has changed, or one of its resources was updated."""

    tenant: str
    server: str
    kind: ChangeKind
    uri: str = ""  # of `updated`: the upstream's own
    touches: Callable[[Principal], bool] | None = None  # whom it concerns; None: everybody of the tenant


class Hearing:
    """One listener's queue; `with` bounds its life."""

    def __init__(self, hearings: set["Hearing"]) -> None:
        self._hearings = hearings
        self._waiting: dict[Announcement, None] = {}  # in the order of telling
        self._some = asyncio.Event()

    def __enter__(self) -> Self:
        self._hearings.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hearings.discard(self)

    def hear(self, announcement: Announcement) -> None:
        """Past the bound, a resource's update is dropped; list changes are few and always fit."""
        if announcement.kind == "updated" and len(self._waiting) >= HEARD_MAX:
            return
        self._waiting[announcement] = None
        self._some.set()

    async def heard(self) -> list[Announcement]:
        """All that wait, at least one, each once."""
        await self._some.wait()
        waiting, self._waiting = list(self._waiting), {}
        self._some.clear()
        return waiting


class Announcements:
    """Of one edge."""

    def __init__(self) -> None:
        self._hearings: set[Hearing] = set()

    def tell(self, announcement: Announcement) -> None:
        for hearing in self._hearings:
            hearing.hear(announcement)

    def hearing(self) -> Hearing:
        """`with announcements.hearing() as hearing:` hears what is told from then on."""
        return Hearing(self._hearings)
