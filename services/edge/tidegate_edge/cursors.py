"""The cursors of our own lists: sealed, and good for one principal and one list at one door, as long as that list is
the same. Every edge opens them.
"""

from typing import Final

import msgspec

from tidegate.claims import Principal
from tidegate.sealing import Sealer

PURPOSE: Final = "cursor"


class Pages(msgspec.Struct, frozen=True):
    """A rendered list. `digest` names its content: a cursor of another content is none of this list."""

    bodies: tuple[bytes, ...]
    digest: str


class BadCursor(Exception):
    """Not a cursor of this list: altered, another principal's, another list's, or the list has changed since."""


def seal_cursor(sealer: Sealer, principal: Principal, door: str, kind: str, digest: str, page: int) -> str:
    """A cursor to page `page` (from 0) of the list with this digest."""
    return sealer.seal(PURPOSE, b"%d" % page, _binding(principal, door, kind, digest))


def open_cursor(
    sealer: Sealer, cursor: str, principal: Principal, door: str, kind: str, digest: str, pages: int
) -> int:
    """The page that a cursor means. Raises BadCursor."""
    opened = sealer.unseal(PURPOSE, cursor, _binding(principal, door, kind, digest))
    page = int(opened) if opened is not None and opened.isdigit() else 0
    if not 0 < page < pages:
        raise BadCursor("invalid cursor: it is not of this list, or the list has changed; list again without one")
    return page


def _binding(principal: Principal, door: str, kind: str, digest: str) -> bytes:
    return "|".join((principal.tenant, principal.subject_id, principal.agent, door, kind, digest)).encode()
