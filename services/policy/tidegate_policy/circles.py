"""Who is in which group by the `entities.json` of a bundle that asked: groups are within groups there, and people and
service accounts may be in groups beside those of their tokens. It is what `principal in Group::"…"` means to its rules.

Read from the log when it is first needed; bounded. Counterpart: `approvals.py` says who may decide.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Final

import msgspec

from tidegate.claims import Principal
from tidegate.errors import BundleFault
from tidegate.policy.approvals import Approval
from tidegate.policy.bundle import ENTITIES, Bundle
from tidegate.policy.entities import EntityBook, open_entities
from tidegate_policy.approvals import Person, named_group
from tidegate_policy.problems import ApiFault
from tidegate_policy.publish import Publisher

KEPT_MAX: Final = 16  # bundles; of a list, what the newest questions name counts
_NOTHING: Final = EntityBook()


class Circles:
    """Of one tenant's released bundles."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._books: OrderedDict[str, EntityBook] = OrderedDict()  # by digest, least wanted first
        self._reading = asyncio.Lock()

    async def around(self, who: Person, approvals: Iterable[Approval]) -> Person:
        """The same person, with the groups that they are in by the bundles which asked these. Raises LogUnavailable."""
        if who.is_admin:
            return who
        asking = (one for one in approvals if named_group(one) and named_group(one) not in who.principal.groups)
        digests = islice(dict.fromkeys(one.bundle for one in asking), KEPT_MAX)
        return who._replace(circles={name: _groups(await self._book(name), who.principal) for name in digests})

    async def _book(self, digest: str) -> EntityBook:
        if (known := self._books.get(digest)) is not None:
            self._books.move_to_end(digest)
            return known
        async with self._reading:
            if (known := self._books.get(digest)) is not None:
                return known
            try:
                bundle = await self._publisher.bundle(digest)
            except ApiFault:
                return _NOTHING  # never released here, or not heard of yet: the token's own groups count
            self._books[digest] = book = await asyncio.to_thread(_memberships, bundle)
            while len(self._books) > KEPT_MAX:
                self._books.popitem(last=False)
            return book


def _memberships(bundle: Bundle) -> EntityBook:
    """Parents alone: the rest of the entities is not kept."""
    try:
        book = open_entities(bundle.text(ENTITIES))
    except BundleFault:
        return _NOTHING
    bare = msgspec.structs.replace
    return EntityBook({uid: bare(one, attrs={}, tags={}) for uid, one in book.entities.items() if one.parents})


def _groups(book: EntityBook, principal: Principal) -> frozenset[str]:
    user = ("ServiceAccount" if principal.kind == "service" else "User", principal.user)
    parents = [*(("Group", name) for name in principal.groups), *book.parents(user)]
    return frozenset(name for kind, name in book.ancestors(parents) if kind == "Group")
