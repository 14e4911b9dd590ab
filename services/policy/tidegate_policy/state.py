"""All that the service knows, folded from the histories `policy`, `control` and `catalog`. Pure; twice is once.

Counterpart: `journal.py` appends. What is appended here is folded at once and again when it is read back.
"""

from dataclasses import dataclass, field

import msgspec

from tidegate.chain import open_event
from tidegate.events import (
    BundleActivated,
    BundleRejected,
    BundleReleased,
    OfferDefined,
    OfferWithdrawn,
    QuarantineImposed,
    QuarantineLifted,
    ServerRegistered,
    SubjectErased,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.policy.control import Quarantines
from tidegate.policy.entities import ToolFacts

HISTORIES = ("policy", "control", "catalog")
EDGES_MAX = 10_000


@dataclass(frozen=True)
class EdgeStatus:
    """What an edge runs since when, and the last release that it refused, if it has not run a later one since."""

    edge: str
    ring: str
    number: int = 0
    digest: str = ""
    since_us: int = 0
    seen_us: int = 0
    rejected: BundleRejected | None = None


@dataclass
class ControlPlane:
    """The state of one tenant's control plane."""

    tenant: str
    releases: dict[str, dict[int, BundleReleased]] = field(default_factory=dict)  # by ring, by number
    edges: dict[str, EdgeStatus] = field(default_factory=dict)
    quarantines: Quarantines = field(default_factory=Quarantines)
    erasures: dict[str, SubjectErased] = field(default_factory=dict)  # by their id, oldest first
    erased: dict[str, int] = field(default_factory=dict)  # subject id → keys made up to then are destroyed
    tools: dict[tuple[str, str], str] = field(default_factory=dict)  # (server, tool) → digest of its definition
    offers: dict[tuple[str, str, str], None] = field(default_factory=dict)  # (server, kind, name or URI)
    servers: dict[str, ServerRegistered] = field(default_factory=dict)

    def apply(self, value: bytes) -> None:
        """Fold one stored event in. What cannot be read is a newer version's fact and changes nothing here."""
        try:
            event = open_event(value)
        except msgspec.DecodeError:
            return
        if event.tenant != self.tenant:
            return
        match event:
            case BundleReleased():
                self.releases.setdefault(event.ring, {}).setdefault(event.number, event)
            case BundleActivated():
                self._activated(event)
            case BundleRejected():
                self._rejected(event)
            case QuarantineImposed() | QuarantineLifted():
                self.quarantines.apply(event)
            case SubjectErased():
                self.erasures[event.erasure_id] = event
                self.erased[event.subject_id] = max(self.erased.get(event.subject_id, 0), event.erased_us)
            case ToolDefined():
                self.tools[event.server, event.tool] = event.digest
            case ToolWithdrawn():
                self.tools.pop((event.server, event.tool), None)
            case OfferDefined():
                self.offers[event.server, event.kind, event.target] = None
            case OfferWithdrawn():
                self.offers.pop((event.server, event.kind, event.target), None)
            case ServerRegistered():
                self.servers[event.server] = event

    def current(self, ring: str) -> BundleReleased | None:
        """The release that rules a ring."""
        numbers = self.releases.get(ring)
        return numbers[max(numbers)] if numbers else None

    def listed(self, ring: str = "") -> list[BundleReleased]:
        """Releases, newest first, of one ring or of all."""
        rings = [ring] if ring else list(self.releases)
        found = [release for name in rings for release in self.releases.get(name, {}).values()]
        return sorted(found, key=lambda release: (release.time_us, release.number), reverse=True)

    def tool_facts(self) -> list[ToolFacts] | None:
        """The tools seen so far; None while none was, so that nothing is said to be unknown."""
        return [ToolFacts(server, tool) for server, tool in self.tools] or None

    def knows(self, scope: str, value: str) -> bool | None:
        """Whether something bears the name that a quarantine gives; None where the histories cannot tell."""
        if scope == "server":
            return value in self.servers or any(server == value for server, _ in self.tools)
        if scope != "tool":
            return None
        server, _, target = value.partition("/")
        if (server, target) in self.tools or any(
            (server, kind, target) in self.offers for kind in ("prompt", "resource")
        ):
            return True
        return None if "://" in target else False  # a URI may be one that a template makes

    def _activated(self, event: BundleActivated) -> None:
        before = self.edges.get(event.edge) or EdgeStatus(event.edge, event.ring)
        if event.time_us < before.seen_us:
            return
        same = (before.ring, before.number, before.digest) == (event.ring, event.number, event.digest)
        since_us = before.since_us if same else event.time_us
        self._see(EdgeStatus(event.edge, event.ring, event.number, event.digest, since_us, event.time_us))

    def _rejected(self, event: BundleRejected) -> None:
        before = self.edges.get(event.edge) or EdgeStatus(event.edge, event.ring)
        if event.time_us < before.seen_us:
            return
        self._see(
            EdgeStatus(event.edge, before.ring, before.number, before.digest, before.since_us, event.time_us, event)
        )

    def _see(self, status: EdgeStatus) -> None:
        """Edges come and go: past the bound the one unheard of for longest is forgotten."""
        self.edges.pop(status.edge, None)
        self.edges[status.edge] = status
        if len(self.edges) > EDGES_MAX:
            del self.edges[next(iter(self.edges))]
