"""What the management API says and takes, in JSON. Times are microseconds since the epoch, UTC."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tidegate.events import BundleReleased, QuarantineImposed, SubjectErased
from tidegate.policy.bundle import Bundle
from tidegate_policy.problems import BundleProblem
from tidegate_policy.state import EdgeStatus

Scope = Literal["session", "subject", "agent", "server", "tool"]


class Strict(BaseModel):
    """A request body: unknown members are refused, as slips."""

    model_config = ConfigDict(extra="forbid")


class ReleaseView(BaseModel):
    """A release of a bundle to a ring. `current`: it rules now."""

    ring: str
    number: int
    digest: str
    previous: str = Field(description="Digest of the bundle that ruled before; empty for the first")
    cause: Literal["published", "rolled-back", "promoted", "withdrawn"]
    actor: str = Field(description="Subject id of who released it, or 'policy-service' at a local start")
    released_us: int
    current: bool


class Published(ReleaseView):
    """`created` is false where the bundle ruled already. `problems` holds what is worth a look and not fatal."""

    created: bool
    problems: list[BundleProblem] = []


class BundleView(BaseModel):
    digest: str
    first_released_us: int
    releases: list[ReleaseView]


class BundleContent(BundleView):
    """A bundle with its files as text."""

    files: dict[str, str]


class RollBack(Strict):
    ring: str = "main"
    to: int | str = Field(description="The number of an earlier release of the ring, or a bundle's digest")


class RejectedView(BaseModel):
    number: int
    digest: str
    reason: str
    at_us: int


class EdgeView(BaseModel):
    """What an edge runs. `behind`: its ring's current release is another one."""

    edge: str
    ring: str
    number: int
    digest: str
    since_us: int
    behind: bool
    rejected: RejectedView | None = Field(
        None, description="The last release that it refused and has not replaced since"
    )


class Impose(Strict):
    scope: Scope
    value: str = Field(
        min_length=1,
        max_length=512,
        description="Session id, subject id or 'issuer|subject', agent, server, or 'server/tool'",
    )
    reason: str = Field(min_length=1, max_length=500, description="The sentence that the refused caller is given")
    ttl_s: float = Field(0, ge=0, le=366 * 24 * 3600, description="0: until lifted")


class QuarantineView(BaseModel):
    quarantine_id: str
    scope: Scope
    value: str
    reason: str
    actor: str
    imposed_us: int
    expires_us: int = Field(description="0: until lifted")
    finding_id: str


class Imposed(QuarantineView):
    known: bool | None = Field(
        description="Whether a server, or a tool of one, is called so now; null for other scopes. It rules all the same"
    )


class Erase(Strict):
    subject: str = Field(
        min_length=1, max_length=2_048, description="Subject id (32 hex digits), or 'issuer|subject' as its tokens say"
    )
    reason: str = Field("", max_length=500, description="Recorded for good: name nobody in it. A dry run needs none")
    dry_run: bool = Field(False, description="Only tell what would be destroyed")


class ErasureView(BaseModel):
    """`keys`: on the log when it was asked for. Those that an edge had not published yet are destroyed with them."""

    erasure_id: str = Field(description="Empty for a dry run")
    subject_id: str
    reason: str
    actor: str
    erased_us: int = Field(description="Keys made up to then are destroyed; 0 for a dry run")
    keys: int


def erasure_view(event: SubjectErased) -> ErasureView:
    return ErasureView(
        erasure_id=event.erasure_id,
        subject_id=event.subject_id,
        reason=event.reason,
        actor=event.actor,
        erased_us=event.erased_us,
        keys=len(event.keys),
    )


def release_view(release: BundleReleased, current: BundleReleased | None) -> ReleaseView:
    return ReleaseView(
        ring=release.ring,
        number=release.number,
        digest=release.digest,
        previous=release.previous,
        cause=release.cause,
        actor=release.actor,
        released_us=release.time_us,
        current=current is not None and current.number == release.number,
    )


def edge_view(status: EdgeStatus, current: BundleReleased | None) -> EdgeView:
    rejected = status.rejected
    return EdgeView(
        edge=status.edge,
        ring=status.ring,
        number=status.number,
        digest=status.digest,
        since_us=status.since_us,
        behind=current is not None and current.number != status.number,
        rejected=None
        if rejected is None
        else RejectedView(
            number=rejected.number, digest=rejected.digest, reason=rejected.reason, at_us=rejected.time_us
        ),
    )


def quarantine_view(event: QuarantineImposed) -> QuarantineView:
    return QuarantineView(
        quarantine_id=event.quarantine_id,
        scope=event.scope,
        value=event.value,
        reason=event.reason,
        actor=event.actor,
        imposed_us=event.time_us,
        expires_us=event.expires_us,
        finding_id=event.finding_id,
    )


def bundle_content(bundle: Bundle, view: BundleView) -> BundleContent:
    files = {path: content.decode() for path, content in bundle.files.items()}
    return BundleContent(**view.model_dump(), files=files)
