"""What edges share about sessions. Adapters: `memory.py` (one process) and `redis.py` (any number of edges).

The synchronous `known_…` and `is_live` answer from this process alone, for the hot path; None means: ask the
asynchronous one. Every method that asks raises SessionsUnavailable within a short deadline when the store is away.
Tenants never meet.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from tidegate.errors import OurFault


class SessionsUnavailable(OurFault):
    """The session store cannot be asked now; what depended on the answer must not happen."""

    code = "sessions-unavailable"


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A client's session of a protocol revision that has them. Older and newer edges read each other's records."""

    v: int = 1
    session_id: str
    tenant: str
    subject_id: str
    agent: str
    protocol: str
    client_info: msgspec.Raw = msgspec.Raw(b"null")  # self-reported
    capabilities: msgspec.Raw = msgspec.Raw(b"null")
    opened_us: int
    edge: str


class UpstreamKey(NamedTuple):
    """Whose session at which upstream: never shared between principals."""

    tenant: str
    server: str
    subject_id: str
    agent: str


class UpstreamSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session that Tidegate holds at an upstream server; every edge may use it."""

    v: int = 1
    session_id: str  # the upstream's own; "" where it gave none
    protocol: str
    capabilities: msgspec.Raw = msgspec.Raw(b"null")
    opened_us: int
    edge: str


class ClientSessions(Protocol):
    """Sessions of clients. A session that was ended is live nowhere once `end` has returned True."""

    async def open(self, record: SessionRecord, ttl_s: float) -> bool:
        """Store it. False: the subject holds as many sessions as it may. Raises CallerFault when it is too large."""
        ...

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None: ...

    async def touch(self, tenant: str, session_id: str, ttl_s: float) -> bool:
        """It lives for `ttl_s` from now; False when it is gone. Call it now and then, not on each call."""
        ...

    async def end(self, tenant: str, session_id: str, acknowledged_within_s: float) -> bool:
        """Delete it and tell every live edge. True: all of them have acknowledged; False: not within the given time.

        Ending what is gone is well. An edge that may not have heard of it asks the store again, 2 s later at most.
        """
        ...

    def known(self, tenant: str, session_id: str) -> SessionRecord | None:
        """The record, if this process knows without asking that the session is live."""
        ...

    def is_live(self, tenant: str, session_id: str) -> bool | None:
        """True: live, as far as anybody has told us, and we would have been told. None: ask `get`. Never False."""
        ...


class UpstreamSessions(Protocol):
    """Sessions held at upstream servers. The first writer wins."""

    async def get_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        """The one that stands; it lives on for the time it was put with."""
        ...

    async def put_upstream(self, key: UpstreamKey, session: UpstreamSession, ttl_s: float) -> UpstreamSession:
        """The one that stands: the given one, or the one that another edge had put before (then end yours)."""
        ...

    async def drop_upstream(self, key: UpstreamKey, session_id: str) -> None:
        """Forget it if it is still this one."""
        ...

    def known_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        """What this process was told a short while ago; it may be gone upstream all the same."""
        ...


class Windows(Protocol):
    """Governance sessions of clients without a protocol session: one id while calls keep coming, on every edge.

    `sid` is the token's session, "" where it has none. The window ends `idle_s` after the last call, or up to an eighth
    of that earlier: a process renews it only when an eighth has passed, so that the common call asks nobody.
    """

    async def window(self, tenant: str, subject_id: str, agent: str, sid: str, idle_s: float, now_us: int) -> str:
        """The id of the window that this call falls in; a new UUIDv7 when it opens one."""
        ...

    def known_window(self, tenant: str, subject_id: str, agent: str, sid: str) -> str | None: ...


class SessionStore(ClientSessions, UpstreamSessions, Windows, Protocol):
    """All of it, with a life: `start`, then use, then `stop`."""

    @property
    def awaiting(self) -> frozenset[str]:
        """What readiness still waits for: empty, or {"sessions"}."""
        ...

    async def start(self) -> None:
        """Returns at once; an absent store is awaited in the background (see `awaiting`)."""
        ...

    async def stop(self) -> None: ...


Clock = Callable[[], float]
"""Monotonic seconds."""

RENEWED_AFTER = 1 / 8
"""The part of a time to live after which a process asks again, so that what is in use does not expire elsewhere."""
