"""The long-lived streams of this edge: how many a subject holds, which GET stream is a session's, and what stirs it.

A session has one GET stream over all edges: a later one takes its place, because a client that opens another has lost
the first, whether or not its edge has noticed. Counterparts: `streams.py` (GET), `listen.py` (subscriptions/listen).
"""

import contextlib
from asyncio import Event
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tidegate.claims import Principal
from tidegate.errors import Fault
from tidegate.ids import now_us
from tidegate.sessions.port import SessionStore, UpstreamKey

KIND: Final = "get-stream"
_Key = tuple[str, str]  # tenant, session


class Standing:
    """The GET stream of a session, as far as others may touch it."""

    __slots__ = ("is_replaced", "opened_us", "stirred")

    def __init__(self) -> None:
        self.is_replaced = False
        self.opened_us = now_us()
        self.stirred = Event()  # it was replaced, or its session has changed: look again

    def replace(self) -> None:
        self.is_replaced = True
        self.stirred.set()


class OpenStreams:
    """Of one edge."""

    def __init__(self, sessions: SessionStore, per_subject_max: int) -> None:
        self._sessions = sessions
        self._per_subject_max = per_subject_max
        self._held: Counter[_Key] = Counter()
        self._standing: dict[_Key, Standing] = {}
        sessions.on_message(KIND, self._replaced_elsewhere)
        sessions.on_amended(self._stir)
        sessions.on_upstream_opened(self._opened)

    def __len__(self) -> int:
        return sum(self._held.values())

    @contextlib.contextmanager
    def held(self, principal: Principal) -> Iterator[bool]:
        """Counts a stream while the block lasts; False, and nothing is counted, where the subject holds its most."""
        key = (principal.tenant, principal.subject_id)
        if self._held[key] >= self._per_subject_max:
            yield False
            return
        self._held[key] += 1
        try:
            yield True
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    @contextlib.contextmanager
    def standing(self, tenant: str, session: str) -> Iterator[Standing]:
        """The block's is the session's GET stream on this edge, until another takes its place."""
        key, mine = (tenant, session), Standing()
        before = self._standing.get(key)
        self._standing[key] = mine
        if before is not None:
            before.replace()
        try:
            yield mine
        finally:
            if self._standing.get(key) is mine:
                del self._standing[key]

    async def replace_elsewhere(self, tenant: str, session: str, standing: Standing) -> None:
        """Tell the other edges that the session's GET stream is here now."""
        with contextlib.suppress(Fault):  # then two may stand for a while, which harms less than none
            await self._sessions.tell_all(f"{KIND}\n{standing.opened_us}|{tenant}|{session}".encode())

    def _replaced_elsewhere(self, message: bytes) -> None:
        """An edge tells late at times: what it tells of may itself have been replaced by the one that stands here."""
        opened, _, key = message.decode(errors="replace").partition("|")
        tenant, _, session = key.rpartition("|")
        found = self._standing.get((tenant, session))
        if found is not None and opened.isdecimal() and found.opened_us < int(opened):
            found.replace()

    def _stir(self, tenant: str, session: str) -> None:
        if not session:  # something may have been missed: everybody looks again
            for standing in self._standing.values():
                standing.stirred.set()
        elif (found := self._standing.get((tenant, session))) is not None:
            found.stirred.set()

    def _opened(self, key: UpstreamKey) -> None:
        self._stir(key.tenant, key.session)
