"""What edges share about sessions. Adapters: `memory.py` (one process) and `redis.py` (any number of edges).

The synchronous `known_…` and `is_live` answer from this process alone, for the hot path; None means: ask the
asynchronous one. Every method that asks raises SessionsUnavailable within a short deadline when the store is away.
Tenants never meet.
"""

from collections.abc import Callable, Sequence, Set
from typing import NamedTuple, Protocol

import msgspec

from tidegate.errors import OurFault
from tidegate.sessions.budgets import Draw, Share, Standing


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
    log_level: str = ""  # as logging/setLevel said last; "": never said
    uris: tuple[str, ...] = ()  # resources it subscribed to, as it names them


class UpstreamKey(NamedTuple):
    """Whose session at which upstream: never shared between principals, nor between sessions of legacy clients."""

    tenant: str
    server: str
    subject_id: str
    agent: str
    session: str = ""  # of a legacy client; "" where the principal's calls share one
    capabilities: str = ""  # a digest of what was declared; "" for none


class UpstreamSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A session that Tidegate holds at an upstream server; every edge may use it."""

    v: int = 1
    session_id: str  # the upstream's own; "" where it gave none
    protocol: str
    capabilities: msgspec.Raw = msgspec.Raw(b"null")
    opened_us: int
    edge: str
    replica: str = ""  # the URL of the upstream's replica that holds it; "": there is but one
    log_level: str = ""  # the most verbose level asked for in it


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

    async def amend(
        self, tenant: str, session_id: str, *, log_level: str | None = None, subscribe: str = "", unsubscribe: str = ""
    ) -> SessionRecord | None:
        """Change what a session may change of its record; its time to live stays. Every edge forgets its copy and
        tells its `on_amended` listeners. None: it is gone. Raises CallerFault when the record grows too large.
        """
        ...

    def on_amended(self, listener: Callable[[str, str], None]) -> None:
        """`listener(tenant, session_id)` is called on this edge when a session was amended or ended at any edge.

        ("", ""): this edge may have missed some, and opened upstream sessions as well; look again. Must not block.
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
        """The one that stands; it lives on for the time it was put with. Until it is claimed, it stands."""
        ...

    async def put_upstream(self, key: UpstreamKey, session: UpstreamSession, ttl_s: float) -> UpstreamSession:
        """The one that stands: the given one, or the one that another edge had put before (then end yours)."""
        ...

    async def drop_upstream(self, key: UpstreamKey, session_id: str) -> None:
        """Forget it if it is still this one."""
        ...

    async def claim_idle(self, idle_s: float, most: int) -> list[tuple[UpstreamKey, UpstreamSession]]:
        """Take upstream sessions that nobody has used for `idle_s` out of the store, each for one claimer alone: it
        ends them upstream. A record outlives its `ttl_s` by CLAIMABLE_S. Use = get_upstream or put_upstream: what an
        edge uses from its copy counts each eighth of `ttl_s`, so `idle_s` lies between that and `ttl_s`.
        """
        ...

    async def sessions_of(self, tenant: str, session: str) -> list[tuple[UpstreamKey, UpstreamSession]]:
        """The upstream sessions of one legacy client's session; to end them with it."""
        ...

    def on_upstream_opened(self, listener: Callable[[UpstreamKey], None]) -> None:
        """`listener(key)` is called on every edge when a session with `key.session` was put by any edge. Must not
        block.
        """
        ...

    def known_upstream(self, key: UpstreamKey) -> UpstreamSession | None:
        """What this process was told a short while ago; it may be gone upstream all the same."""
        ...


class Windows(Protocol):
    """Governance sessions of clients without a protocol session: one id while calls keep coming, on every edge.

    `sid` is the token's session, "" where it has none. The window ends `idle_s` after the last call, or up to an eighth
    of that earlier: a process renews it only when an eighth has passed, so that the common call asks nobody.

    While the store cannot be asked, a process goes on with a window that it has known within the idle time, as long as
    calls keep coming to it. What the store answers next rules: the same id where it has lost the window and nobody has
    opened another meanwhile, and what it has put in the place of one never comes back.
    """

    async def window(self, tenant: str, subject_id: str, agent: str, sid: str, idle_s: float, now_us: int) -> str:
        """The id of the window that this call falls in; a new UUIDv7 when it opens one.

        Raises SessionsUnavailable where the store cannot be asked and this process does not know the window.
        """
        ...

    def known_window(self, tenant: str, subject_id: str, agent: str, sid: str) -> str | None: ...


class Taints(Protocol):
    """What governance sessions have read: labels of tools whose content reached the client. They are only ever added,
    and last as long as their session: what renews a session or a window renews its taint, ending it ends the taint.
    """

    async def taint(self, tenant: str, session_id: str, labels: Set[str], ttl_s: float) -> frozenset[str]:
        """Stored, and known to every live edge, when it returns. Those of the labels that were new; of edges that
        taint at once, one is told so. `ttl_s`: the session's own, from now.
        """
        ...

    async def taint_of(self, tenant: str, session_id: str) -> frozenset[str]: ...

    def known_taint(self, tenant: str, session_id: str) -> frozenset[str] | None:
        """All labels, if this process knows them without asking; None: ask `taint_of`."""
        ...


class Bus(Protocol):
    """Messages between edges: at most once, in order per sender; lost where nobody listens."""

    @property
    def address(self) -> str:
        """Of this process, new with each start; safe within ids (letters, digits, at most 32)."""
        ...

    async def post(self, address: str, message: bytes) -> bool:
        """To one edge, this one included. False: nobody is there. A message has BUS_MESSAGE_BYTES_MAX at most."""
        ...

    async def tell_all(self, message: bytes) -> None:
        """To every other edge."""
        ...

    def on_message(self, kind: str, take: Callable[[bytes], None]) -> None:
        """Messages are told apart by their first line, `kind`; `take` gets what follows it. Must not block."""
        ...


class Leases(Protocol):
    """Who owns a thing that only one edge may own. `value` is the owner's word for where it is found.

    Names begin with the tenant: `tenant|…`.
    """

    async def take(self, name: str, value: str, ttl_s: float) -> str:
        """The value that stands: the given one where nobody held it (or held by this value: renewed)."""
        ...

    async def renew(self, names: Sequence[str], value: str, ttl_s: float) -> frozenset[str]:
        """The names that are still held by this value; the others are lost."""
        ...

    async def give_up(self, name: str, value: str) -> None: ...


class Budgets(Protocol):
    """Counters of limits that all edges share (`budgets.py`): whatever they draw, together they get no more than there
    is. What a counter holds is lost with the store.
    """

    async def draw(self, holder: str, draws: Sequence[Draw]) -> list[Share]:
        """All draws of one tenant at once, in one exchange; DRAWS_AT_ONCE_MAX at most, no counter twice. What they tell
        of leases counts in any case; where one is short, none gets anything. A holder that is heard of no more loses
        what it held: places are free again, all else counts as used.
        """
        ...

    async def standings(self, tenant: str, most: int) -> tuple[list[Standing], bool]:
        """The tenant's counters of which something is used or was a while ago; False: there are more."""
        ...


class KeptEvent(NamedTuple):
    """One event of a kept stream. `number` grows by any steps; `message` is empty for the priming event."""

    number: str
    message: bytes


class KeptStreams(Protocol):
    """Events of server-sent streams, kept for clients that come back for them (Last-Event-ID), at any edge.

    A stream is bound to `owner` (whose it is, `tenant|…`): another owner finds nothing.
    """

    async def keep(self, owner: str, stream: str, message: bytes, ttl_s: float) -> str:
        """The number of the event. Past KEPT_EVENTS_MAX or KEPT_STREAM_BYTES_MAX the oldest of the stream are
        forgotten; an event that is larger alone is forgotten at once.
        """
        ...

    async def kept_after(self, owner: str, stream: str, number: str, wait_s: float) -> list[KeptEvent] | None:
        """Events after `number`, waiting so long for the first one; [] when none came. "0-0" stands before the first.

        None: no such stream, or what followed `number` is forgotten, or the stream is finished and nothing follows. A
        batch may be a part of what follows: ask again after its last.
        """
        ...

    async def finish(self, owner: str, stream: str, ttl_s: float) -> None:
        """Nothing more will come; what is kept stays for `ttl_s`."""
        ...


class SessionStore(ClientSessions, UpstreamSessions, Windows, Taints, Bus, Leases, Budgets, KeptStreams, Protocol):
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

CLAIMABLE_S = 120.0
"""How long an upstream session's record outlives its time to live, for an edge to claim and end it."""

RENEWED_AFTER = 1 / 8
"""The part of a time to live after which a process asks again, so that what is in use does not expire elsewhere."""
