"""The edge's state that a call reads: swapped whole by the watchers, never changed in place. Made in `wiring.py`."""

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tidegate.claims import Principal
from tidegate.identity import TokenVerifier
from tidegate.lifecycle import Background
from tidegate.limits import Limits
from tidegate.policy.control import Quarantines
from tidegate.sealing import Sealer
from tidegate.secrets import ClusterSecrets
from tidegate.sessions.port import RENEWED_AFTER, SessionStore
from tidegate.settings import Settings
from tidegate_edge.addresses import Proxies
from tidegate_edge.announcements import Announcements
from tidegate_edge.approval_book import ApprovalBook
from tidegate_edge.asks import Asks
from tidegate_edge.budgets import Budgets
from tidegate_edge.calls import Place, Terms
from tidegate_edge.catalog import Item
from tidegate_edge.counters import Counters
from tidegate_edge.holding import Holding
from tidegate_edge.inflight import InFlight
from tidegate_edge.open_streams import OpenStreams
from tidegate_edge.recorder import Recorder
from tidegate_edge.renewals import Renewals
from tidegate_edge.rings import Rings
from tidegate_edge.ruling import Ruling
from tidegate_edge.taking_turns import Aside
from tidegate_edge.terms import terms_for
from tidegate_edge.upstream.port import Upstream
from tidegate_edge.vault import Vault

if TYPE_CHECKING:
    from tidegate_edge.discovery import Discovery
    from tidegate_edge.upstream.peers import Peers

TERMS_KEPT_MAX: Final = 10_000


class Edge:
    """Everything that a request needs, in one place."""

    def __init__(
        self,
        settings: Settings,
        place: Place,
        secrets: ClusterSecrets,
        verifier: TokenVerifier,
        sessions: SessionStore,
        recorder: Recorder,
        upstreams: Mapping[str, Upstream],
    ) -> None:
        self.settings = settings
        self.limits: Limits = settings.limits
        self.place = place
        self.verifier = verifier
        self.sessions = sessions
        self.recorder = recorder
        self.upstreams = upstreams
        self.sealer: Sealer = secrets.sealer()
        self.counters = Counters()
        self.rulings: dict[str, Ruling] = {}  # by tenant: of the ruling release
        self.rings: dict[str, Rings] = {}  # by tenant: who is decided for by what
        self.quarantines: dict[str, Quarantines] = {}  # by tenant
        self.renewals = Renewals(settings.limits.session_idle_s * RENEWED_AFTER)
        self.proxies = Proxies(settings.trusted_proxies, settings.forwarded_header)
        self.taint_labels = frozenset(settings.taint_labels)
        self.calls_in_flight = 0
        self.calls_waiting = 0  # between two rounds, for their clients
        self.asks = Asks(sessions)
        self.budgets = Budgets(sessions, sessions.address, self.fingerprint_key, time.monotonic, self.counters.limited)
        self.approvals = ApprovalBook(sessions, self.sealer)
        self.inflight = InFlight(sessions)
        self.streams = OpenStreams(sessions, settings.limits.streams_per_subject_max)
        self.announcements = Announcements()
        self.holding = Holding(settings.tenant)
        self.aside = Aside()  # where large bodies are worked on
        self.vault: Vault | None = None  # set once, in `wiring.py`
        self.draining = asyncio.Event()  # streams end: the edge is about to stop
        self.processes = frozenset(name for name, server in settings.servers.items() if server.command)
        self.discovery: Discovery  # set once, in `wiring.py`
        self.peers: Peers
        self.tasks: Background
        self._secrets = secrets
        self._fingerprint_keys: dict[str, bytes] = {}
        self._terms: dict[tuple[str, str, str | None, tuple[str, ...]], Terms] = {}

    def fingerprint_key(self, tenant: str) -> bytes:
        key = self._fingerprint_keys.get(tenant)
        if key is None:
            key = self._fingerprint_keys[tenant] = self._secrets.fingerprint_key(tenant)
        return key

    def quarantines_of(self, tenant: str) -> Quarantines:
        found = self.quarantines.get(tenant)
        if found is None:
            found = self.quarantines[tenant] = Quarantines()
        return found

    def ruling_of(self, principal: Principal) -> Ruling | None:
        """What decides for this principal now; None before any bundle rules. Read it once a request."""
        rings = self.rings.get(principal.tenant)
        return rings.of(principal) if rings is not None else None

    def timeout_of(self, server: str) -> float:
        """Seconds that a call of this server may take."""
        return self.settings.servers[server].timeout_s or self.limits.call_timeout_s

    def terms_of(self, tenant: str, server: str, tool: Item | None) -> Terms:
        """How calls of this tool are recorded, by the rules that match it."""
        name, labels = (tool.name, tool.labels) if tool else (None, ())
        key = (tenant, server, name, labels)
        terms = self._terms.get(key)
        if terms is None:
            if len(self._terms) >= TERMS_KEPT_MAX:
                self._terms.clear()  # URIs that servers make up are without end
            terms = terms_for(self.settings.audit, self.settings.rules, tenant, server, name, labels)
            self._terms[key] = terms
        return terms
