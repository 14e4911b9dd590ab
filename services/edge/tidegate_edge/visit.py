"""A visit: what is known of whoever sent a request, before it is known what they want. Made in `sessions.py`."""

from typing import TYPE_CHECKING, Final

import msgspec

from tidegate.claims import Principal
from tidegate.sessions.port import SessionRecord
from tidegate_edge import abilities
from tidegate_edge.abilities import Abilities
from tidegate_edge.accept import Request
from tidegate_edge.messages import LOG_LEVEL_META, RequestId
from tidegate_edge.upstream.port import Caller

if TYPE_CHECKING:
    from tidegate_edge.exchange import Exchange
    from tidegate_edge.outlet import Outlet


class Mute:
    """The outlet of a batch's member: sends nothing, for the members share one answer."""

    resumable = False
    is_open = False

    def send(self, message: bytes) -> None: ...

    def rest(self, retry_ms: int) -> None: ...


MUTE: Final = Mute()


class Visit(msgspec.Struct, frozen=True):
    """Who came, through which door, in which session, and how to talk to them while a request is served."""

    principal: Principal
    door: str  # "" at /mcp; the rest of the path at /mcp/…
    session_id: str  # the governance session
    protocol_session: str = ""
    protocol: str = ""
    record: SessionRecord | None = None  # of a legacy session
    exchange: "Exchange | None" = None  # none for a member of a batch, which cannot be spoken to
    request_id: RequestId | None = None
    source: "Exchange | None" = None  # the connection that it came by, of a batch's member, too

    @property
    def outlet(self) -> "Outlet":
        """The way to the client before the answer; made when there is something to say."""
        if self.exchange is None:
            return MUTE
        return self.exchange.outlet(self.principal, self.protocol_session, self.protocol, self.request_id)

    def abilities(self, request: Request) -> Abilities:
        """What this client can be asked for."""
        if self.record is None:
            return abilities.of_modern(request.params)
        return abilities.of_legacy(bytes(self.record.capabilities))

    @property
    def declared(self) -> bytes:
        """What a legacy session's client can be asked for, as declared to upstreams."""
        return abilities.of_legacy(bytes(self.record.capabilities)).declared if self.record else abilities.NONE.declared

    def caller(self, declared: bytes) -> Caller:
        principal = self.principal
        return Caller(principal.tenant, principal.subject_id, principal.agent, self.protocol_session, declared)

    def log_level(self, request: Request) -> str:
        """The least severe level that the client wants to hear of; "": a legacy client that never said."""
        if self.record is not None:
            return self.record.log_level
        level = request.params["_meta"].get(LOG_LEVEL_META)
        return level if isinstance(level, str) else ""
