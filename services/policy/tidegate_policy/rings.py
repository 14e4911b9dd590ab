"""What the API shows of releases, bundles, rings and edges, made from the state. Pure.

Counterpart: `models.py` says what each member means.
"""

from typing import Final, Literal

from tidegate.events import BundleRejected, BundleReleased, Role
from tidegate.policy.signing import Guard, Stage
from tidegate_policy.guard import Awaited, Counts
from tidegate_policy.guarding import opinion_of
from tidegate_policy.release_models import (
    AwaitedView,
    BundleView,
    CountsView,
    EdgeRole,
    EdgeView,
    GuardView,
    RejectedView,
    ReleaseView,
    RingView,
    RoleView,
    StageView,
    State,
    StatusView,
)
from tidegate_policy.state import ROLES, ControlPlane, EdgeStatus, RoleStatus, terms_of

Lagging = Literal["behind", "refused", "silent"]
OBEYED_WITHIN_US: Final = 10_000_000
"""An edge that has said nothing about a release for so long is called silent."""

_RINGS_NAMED: Final = 5
_BEST: Final[tuple[State, ...]] = ("ruling", "canary", "shadow", "retired", "withdrawal")


def release_view(release: BundleReleased, state: ControlPlane) -> ReleaseView:
    now = _state_of(release, state)
    terms = terms_of(release)
    return ReleaseView(
        ring=release.ring,
        number=release.number,
        role=release.role,
        digest=release.digest,
        previous=release.previous,
        cause=release.cause,
        actor=release.actor,
        reason=release.reason,
        released_us=release.time_us,
        current=now == "ruling",
        state=now,
        stage=_stage_view(terms.stage) if terms and terms.stage else None,
        guard=_guard_view(terms.guard) if terms and terms.guard else None,
        followed_by=_follower(release, state) if now == "retired" else 0,
    )


def ring_warnings(ring: str, state: ControlPlane) -> list[str]:
    """Where nobody is there to obey a release of this ring."""
    rings = {edge.ring for edge in state.edges.values()}
    if ring in rings:
        return []
    others = f"; there are edges of {', '.join(sorted(rings)[:_RINGS_NAMED])}" if rings else ""
    return [f"no edge of ring '{ring}' has been heard of{others}"]


def bundle_views(state: ControlPlane) -> list[BundleView]:
    """By the time of the latest release, newest first."""
    by_digest: dict[str, list[ReleaseView]] = {}
    for release in state.listed():
        if release.digest:
            by_digest.setdefault(release.digest, []).append(release_view(release, state))
    return [
        BundleView(
            digest=digest,
            state=min((release.state for release in releases), key=_BEST.index),
            first_released_us=releases[-1].released_us,
            releases=releases,
        )
        for digest, releases in by_digest.items()
    ]


def edge_view(edge: EdgeStatus, state: ControlPlane, now_us: int) -> EdgeView:
    ruling = edge.role("ruling")
    newest = state.newest(edge.ring, "ruling")
    beside = [_edge_role(edge, role, state, now_us) for role in ROLES if role != "ruling" and role in edge.roles]
    return EdgeView(
        edge=edge.edge,
        ring=edge.ring,
        number=ruling.number,
        digest=ruling.digest,
        since_us=ruling.since_us,
        behind=newest is not None and newest.number != ruling.number,
        rejected=_rejected(ruling.rejected),
        beside=beside,
    )


def status_view(state: ControlPlane, ring: str, now_us: int) -> StatusView:
    """Of one ring, or of all."""
    names = [ring] if ring else sorted({*state.releases, *(edge.ring for edge in state.edges.values())})
    return StatusView(now_us=now_us, rings=[_ring_view(state, name, now_us) for name in names])


def _ring_view(state: ControlPlane, ring: str, now_us: int) -> RingView:
    roles = {role: _role_view(state, ring, role, now_us) for role in ROLES}
    newest = [state.newest(ring, role) for role in ROLES]
    ended = [release_view(release, state) for release in newest if release is not None and not release.digest]
    return RingView(ring=ring, ended=ended, **roles)


def _role_view(state: ControlPlane, ring: str, role: Role, now_us: int) -> RoleView | None:
    release = state.current(ring, role)
    if release is None:
        return None
    found = opinion_of(state, release, now_us)
    edges = [edge for _, edge in sorted(state.edges.items()) if edge.ring == ring]
    return RoleView(
        release=release_view(release, state),
        counts=_counts_view(found.own),
        compared_with=_counts_view(found.other),
        watching=found.watching,
        reason=found.reason,
        awaited=_awaited_view(found.awaited),
        watched_until_us=found.until_us,
        edges=[_edge_role(edge, role, state, now_us) for edge in edges],
    )


def _edge_role(edge: EdgeStatus, role: Role, state: ControlPlane, now_us: int) -> EdgeRole:
    runs, newest = edge.role(role), state.newest(edge.ring, role)
    return EdgeRole(
        edge=edge.edge,
        role=role,
        number=runs.number,
        digest=runs.digest,
        since_us=runs.since_us,
        state="current" if newest is None or _obeys(runs, newest) else _lagging(runs, newest, now_us),
        rejected=_rejected(runs.rejected),
    )


def _obeys(runs: RoleStatus, newest: BundleReleased) -> bool:
    return runs.number == newest.number or (not newest.digest and not runs.digest)


def _lagging(runs: RoleStatus, newest: BundleReleased, now_us: int) -> Lagging:
    if runs.rejected is not None and (runs.rejected.number >= newest.number or not runs.rejected.number):
        return "refused"  # without a number: it could not be read, or not verified, and nothing was obeyed since
    return "behind" if now_us < newest.time_us + OBEYED_WITHIN_US else "silent"


def _state_of(release: BundleReleased, state: ControlPlane) -> State:
    if not release.digest:
        return "withdrawal"
    current = state.current(release.ring, release.role)
    return release.role if current is not None and current.number == release.number else "retired"


def _follower(release: BundleReleased, state: ControlPlane) -> int:
    """The next release of its role; there is one, since it is not in force any more."""
    ring, newest = state.releases[release.ring], state.newest(release.ring, release.role)
    last = newest.number if newest is not None else 0
    numbers = range(release.number + 1, last + 1)
    return next((number for number in numbers if number in ring and ring[number].role == release.role), 0)


def _rejected(event: BundleRejected | None) -> RejectedView | None:
    if event is None:
        return None
    return RejectedView(number=event.number, digest=event.digest, reason=event.reason, at_us=event.time_us)


def _stage_view(stage: Stage) -> StageView:
    return StageView(
        percent=stage.percent, regions=list(stage.regions), groups=list(stage.groups), labels=dict(stage.labels)
    )


def _guard_view(guard: Guard) -> GuardView:
    return GuardView(
        denials=guard.denials,
        errors=guard.errors,
        slow=guard.slow,
        slow_us=guard.slow_us,
        calls_min=guard.calls_min,
        watch_s=guard.watch_s,
    )


def _awaited_view(found: Awaited | None) -> AwaitedView | None:
    if found is None:
        return None
    return AwaitedView(reason=found.reason, callers=found.callers, callers_needed=found.needed)


def _counts_view(counts: Counts) -> CountsView:
    return CountsView(
        decided=counts.decided,
        denied=counts.denied,
        asked=counts.asked,
        errors=counts.errors,
        slow=counts.slow,
        differed=counts.differed,
        callers=counts.callers,
    )
