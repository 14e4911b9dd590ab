"""What the management API says about releases, bundles, rings and edges. Times are microseconds since the epoch, UTC.

Counterpart: `rings.py` makes them.
"""

from typing import Literal

from pydantic import BaseModel, Field

from tidegate.events import Role
from tidegate.policy.bundle import Bundle
from tidegate_policy.guarding import Watching
from tidegate_policy.problems import BundleProblem

State = Literal["ruling", "canary", "shadow", "retired", "withdrawal"]


class StageView(BaseModel):
    """For whom a canary rules: whoever fits all of it. Empty lists fit everybody."""

    percent: float
    regions: list[str]
    groups: list[str]
    labels: dict[str, str] = Field(description="Of the edge")


class GuardView(BaseModel):
    """How much worse a release may be. Shares are between 0 and 1; null: not looked at."""

    denials: float | None
    errors: float | None
    slow: float | None
    slow_us: int
    calls_min: int
    watch_s: float


class ReleaseView(BaseModel):
    """A release to a ring. `current`: its bundle rules now. `state`: what its role makes of it now; `withdrawal` is a
    release that ended a canary or a shadow. `followed_by`: what took its place in its role; 0: nothing did.
    """

    ring: str
    number: int
    role: Role
    digest: str
    previous: str = Field(description="Digest of the bundle that had the role before; empty for the first")
    cause: Literal["published", "rolled-back", "promoted", "withdrawn"]
    actor: str = Field(description="Subject id of who released it; 'guard'; or 'policy-service' at a local start")
    reason: str
    released_us: int
    current: bool
    state: State
    stage: StageView | None = None
    guard: GuardView | None = None
    followed_by: int = 0


class Made(ReleaseView):
    """`warnings`: sentences about what was probably not meant."""

    warnings: list[str] = []


class Published(Made):
    """`created` is false where that was in force already. `problems` holds what is worth a look and not fatal.
    `replaced`: the canary or shadow that ended for it.
    """

    created: bool
    problems: list[BundleProblem] = []
    replaced: ReleaseView | None = None


class BundleView(BaseModel):
    """`state`: the most that it is in any ring; retired: nowhere anything."""

    digest: str
    state: State
    first_released_us: int
    releases: list[ReleaseView]


class BundleContent(BundleView):
    """A bundle with its files as text."""

    files: dict[str, str]


class RejectedView(BaseModel):
    number: int
    digest: str
    reason: str
    at_us: int


class EdgeRole(BaseModel):
    """What an edge runs in one role. `silent`: it has neither obeyed nor refused the newest release for a while."""

    edge: str
    role: Role
    number: int
    digest: str
    since_us: int
    state: Literal["current", "behind", "refused", "silent"]
    rejected: RejectedView | None = None


class CountsView(BaseModel):
    """Calls, over all edges that have said so; edges count for this while a guard watches, and for shadows. Of what
    rules and of a canary, one caller's calls count up to a share, so these are not all calls.
    """

    decided: int
    denied: int
    asked: int
    errors: int
    slow: int
    differed: int
    callers: int = Field(description="At least so many people and services called; 0 where no edge says")


class AwaitedView(BaseModel):
    """What a guarded release would be taken back for, had more callers met it. Where as many as needed have, those
    beyond the one or two who have most of it have met it too rarely.
    """

    reason: str = Field(description="What is over its bound")
    callers: int = Field(description="At least so many people and services have met it; 3 are three or more")
    callers_needed: int


class RoleView(BaseModel):
    """A release that is in force, what it has decided, and what its guard thinks of it so far."""

    release: ReleaseView
    counts: CountsView
    compared_with: CountsView = Field(description="What rules beside a canary; what ruled before a guarded release")
    watching: Watching
    reason: str = Field("", description="Why the guard takes it back")
    awaited: AwaitedView | None = Field(None, description="Why it would, had more callers met it")
    watched_until_us: int = Field(description="0: without an end, or unwatched")
    edges: list[EdgeRole]


class RingView(BaseModel):
    """`ended`: the last canary or shadow, where none is in force now."""

    ring: str
    ruling: RoleView | None
    canary: RoleView | None = None
    shadow: RoleView | None = None
    ended: list[ReleaseView] = []


class StatusView(BaseModel):
    now_us: int
    rings: list[RingView]


class EdgeView(BaseModel):
    """What rules on an edge. `behind`: its ring's ruling release is another one. `beside`: its canary and shadow."""

    edge: str
    ring: str
    number: int
    digest: str
    since_us: int
    behind: bool
    rejected: RejectedView | None = Field(
        None, description="The last release that it refused and has not replaced since"
    )
    beside: list[EdgeRole] = []


def bundle_content(bundle: Bundle, view: BundleView) -> BundleContent:
    files = {path: content.decode() for path, content in bundle.files.items()}
    return BundleContent(**view.model_dump(), files=files)
