"""All that the service knows, folded from the histories `policy`, `control` and `catalog`. Pure; twice is once.

Counterpart: `journal.py` appends. What is appended here is folded at once and again when it is read back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from tidegate.chain import open_event
from tidegate.events import (
    BundleActivated,
    BundleObserved,
    BundleRejected,
    BundleReleased,
    OfferDefined,
    OfferWithdrawn,
    QuarantineImposed,
    QuarantineLifted,
    Role,
    ServerRegistered,
    SubjectErased,
    ToolDefined,
    ToolWithdrawn,
)
from tidegate.policy.argument_types import Document
from tidegate.policy.control import Quarantines, named
from tidegate.policy.entities import ToolFacts
from tidegate.policy.resource_uris import is_uri, ruled
from tidegate.policy.signing import Release, SignedRelease
from tidegate.policy.trusting import Trusting
from tidegate_policy.observed import Observations

ROLES: Final[tuple[Role, ...]] = ("ruling", "canary", "shadow")
HISTORIES = ("policy", "control", "catalog")
EDGES_MAX = 10_000


@dataclass(frozen=True)
class RoleStatus:
    """What an edge runs in one role since when, and the last release that it refused, if it has not run a later one
    since. `digest` "": nothing any more.
    """

    number: int = 0
    digest: str = ""
    since_us: int = 0
    seen_us: int = 0
    rejected: BundleRejected | None = None


@dataclass(frozen=True)
class EdgeStatus:
    """One edge, by what it last said."""

    edge: str
    ring: str
    roles: Mapping[Role, RoleStatus] = field(default_factory=dict)

    def role(self, role: Role) -> RoleStatus:
        return self.roles.get(role, _NOTHING)


_NOTHING: Final = RoleStatus()


@dataclass
class ControlPlane:
    """The state of one tenant's control plane."""

    tenant: str
    releases: dict[str, dict[int, BundleReleased]] = field(default_factory=dict)  # by ring, by number, of any role
    observations: Observations = field(default_factory=Observations)
    edges: dict[str, EdgeStatus] = field(default_factory=dict)
    quarantines: Quarantines = field(default_factory=Quarantines)
    erasures: dict[str, SubjectErased] = field(default_factory=dict)  # by their id, oldest first
    erased: dict[str, int] = field(default_factory=dict)  # subject id → keys made up to then are destroyed
    tools: dict[tuple[str, str], str] = field(default_factory=dict)  # (server, tool) → digest of its definition
    offers: dict[tuple[str, str, str], None] = field(default_factory=dict)  # (server, kind, name or URI)
    servers: dict[str, ServerRegistered] = field(default_factory=dict)
    trust: Trusting = field(init=False)  # which definitions of tools are trusted
    _newest: dict[tuple[str, Role], BundleReleased] = field(default_factory=dict)  # by ring and role

    def __post_init__(self) -> None:
        self.trust = Trusting(self.tenant)

    def apply(self, value: bytes) -> None:
        """Fold one stored event in. What cannot be read is a newer version's fact and changes nothing here."""
        try:
            event = open_event(value)
        except msgspec.DecodeError:
            return
        if event.tenant != self.tenant:
            return
        self.trust.apply(event)
        match event:
            case BundleReleased():
                self._released(event)
            case BundleActivated():
                self._activated(event)
                self.observations.activated(event)
            case BundleObserved():
                self.observations.observed(event)
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

    def newest(self, ring: str, role: Role) -> BundleReleased | None:
        """The latest release of a role, which may be one that ends it."""
        return self._newest.get((ring, role))

    def current(self, ring: str, role: Role = "ruling") -> BundleReleased | None:
        """The release that is in force in a role of a ring: by default, the one that rules it."""
        newest = self.newest(ring, role)
        return newest if newest is not None and newest.digest else None

    def before(self, release: BundleReleased) -> BundleReleased | None:
        """The release that ruled the ring before this one did."""
        ring = self.releases.get(release.ring, {})
        ruled = (number for number, one in ring.items() if one.role == "ruling" and number < release.number)
        found = max(ruled, default=None)
        return None if found is None else ring[found]

    def number_of(self, ring: str) -> int:
        """The highest number that the ring has had, in any role."""
        return max(self.releases.get(ring, ()), default=0)

    def listed(self, ring: str = "") -> list[BundleReleased]:
        """Releases, newest first, of one ring or of all."""
        rings = [ring] if ring else list(self.releases)
        found = [release for name in rings for release in self.releases.get(name, {}).values()]
        return sorted(found, key=lambda release: (release.time_us, release.number), reverse=True)

    def tool_facts(self) -> list[ToolFacts] | None:
        """The tools seen so far; None while none was, so that nothing is said to be unknown."""
        return [self._facts(*name) for name in self.tools] or None

    def _facts(self, server: str, tool: str) -> ToolFacts:
        known = self.trust.of(server, tool)
        raw = known.definitions.get(known.current) if known is not None else None
        return ToolFacts(server, tool, (), None if raw is None else Document.of_definition(raw))

    def knows(self, scope: str, value: str) -> bool | None:
        """Whether something bears the name that a quarantine gives; None where the histories cannot tell."""
        if scope == "server":
            return value in self.servers or any(server == value for server, _ in self.tools)
        if scope != "tool":
            return None
        server, _, target = value.partition("/")
        if (server, target) in self.tools or (server, "prompt", target) in self.offers:
            return True
        if not is_uri(target):
            return False
        uri = ruled(target)
        known = any(own == server and kind == "resource" and ruled(name) == uri for own, kind, name in self.offers)
        return known or None  # it may be one that a template makes

    def stopped_as(self, scope: str, value: str) -> str:
        """What a quarantine of it says: a resource's URI as rules see it."""
        server, _, target = value.partition("/")
        return value if (server, target) in self.tools else named(scope, value)

    def _released(self, event: BundleReleased) -> None:
        self.releases.setdefault(event.ring, {}).setdefault(event.number, event)
        newest = self.newest(event.ring, event.role)
        if newest is None or event.number > newest.number:
            self._newest[event.ring, event.role] = event

    def _activated(self, event: BundleActivated) -> None:
        before = self._edge(event).role(event.role)
        if self._is_past(event):
            return
        same = (before.number, before.digest) == (event.number, event.digest)
        since_us = before.since_us if same else event.time_us
        self._see(event, RoleStatus(event.number, event.digest, since_us, event.time_us))

    def _rejected(self, event: BundleRejected) -> None:
        before = self._edge(event).role(event.role)
        if not self._is_past(event):
            self._see(event, replace(before, seen_us=event.time_us, rejected=event))

    def _edge(self, event: BundleActivated | BundleRejected) -> EdgeStatus:
        """As it is known; in another ring than before it has nothing of the old one."""
        known = self.edges.get(event.edge)
        return known if known is not None and known.ring == event.ring else EdgeStatus(event.edge, event.ring)

    def _is_past(self, event: BundleActivated | BundleRejected) -> bool:
        known = self.edges.get(event.edge)
        if known is None:
            return False
        if known.ring != event.ring:
            return event.time_us < max(role.seen_us for role in known.roles.values())
        return event.time_us < known.role(event.role).seen_us

    def _see(self, event: BundleActivated | BundleRejected, status: RoleStatus) -> None:
        """Edges come and go: past the bound the one unheard of for longest is forgotten."""
        edge = self._edge(event)
        self.edges.pop(edge.edge, None)
        self.edges[edge.edge] = replace(edge, roles={**edge.roles, event.role: status})
        if len(self.edges) > EDGES_MAX:
            del self.edges[next(iter(self.edges))]


def terms_of(event: BundleReleased) -> Release | None:
    """What was signed, its stage and guard included; None where a newer version wrote what this one cannot read."""
    try:
        signed = msgspec.json.decode(bytes(event.release), type=SignedRelease)
        return msgspec.json.decode(bytes(signed.release), type=Release)
    except msgspec.DecodeError:
        return None


def signer_of(event: BundleReleased) -> str:
    """The id of the key that signed it; "" where that cannot be read."""
    try:
        return msgspec.json.decode(bytes(event.release), type=SignedRelease).key_id
    except msgspec.DecodeError:
        return ""
