"""What the management API takes about releases: in which role, for whom, and who watches. Checked here, once."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictInt

from tidegate.events import Role
from tidegate.policy.signing import Guard, Stage
from tidegate_policy.guard import is_judged_by
from tidegate_policy.models import Strict
from tidegate_policy.problems import ApiFault
from tidegate_policy.publish import Terms

SLOW_MS_MIN = 0.001
Share = Annotated[float | None, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class RollBack(Strict):
    """Either `to`, or the `role` to withdraw."""

    ring: str = "main"
    to: StrictInt | str | None = Field(
        None, description="The number of an earlier release of the ring, or a bundle's digest"
    )
    role: Literal["canary", "shadow"] | None = Field(None, description="Ends the ring's canary or shadow")


class Bounds(Strict):
    """How much worse a release may be before it is taken back. Name one of denials, errors and slow at least."""

    denials: Share = Field(None, description="Share of calls denied (0 to 1), above that of what it is compared with")
    errors: Share = Field(None, description="Share of calls that met a rule which cannot be evaluated, above the same")
    slow: Share = Field(None, description="Share of decisions slower than slow_ms")
    slow_ms: float = Field(5, ge=SLOW_MS_MIN, le=60_000, description="Decisions are timed in microseconds")
    calls: int = Field(50, ge=1, le=1_000_000_000, description="Nothing is concluded from fewer")
    watch: float = Field(600, ge=1, le=7 * 24 * 3600, description="Seconds; a canary is watched while it lasts")

    def guard(self) -> Guard:
        made = Guard(
            denials=self.denials,
            errors=self.errors,
            slow=self.slow,
            slow_us=round(self.slow_ms * 1e3),
            calls_min=self.calls,
            watch_s=self.watch,
        )
        if not is_judged_by(made):
            raise ApiFault(422, "guard-empty", "a guard needs a bound: one of denials, errors and slow")
        return made


class PublishOptions(Strict):
    """The query of `POST /bundles`. A guard is set by `guard_denials`, `guard_errors` or `guard_slow`."""

    ring: str = "main"
    role: Role = "ruling"
    percent: float | None = Field(None, gt=0, le=100, description="Of a canary: the share of principals, in percent")
    region: list[Name] = Field([], max_length=50, description="Of a canary: edges of these regions alone")
    group: list[Name] = Field([], max_length=50, description="Of a canary: principals in one of these groups alone")
    edge_label: list[Name] = Field([], max_length=20, description="Of a canary, 'key=value': edges labelled so alone")
    guard_denials: Share = None
    guard_errors: Share = None
    guard_slow: Share = None
    guard_slow_ms: float | None = Field(None, ge=SLOW_MS_MIN, le=60_000)
    guard_calls: int | None = Field(None, ge=1, le=1_000_000_000)
    watch: float | None = Field(None, ge=1, le=7 * 24 * 3600, description="Seconds")
    replace: bool = Field(False, description="End a canary, or shadow, of another bundle that is in force; else 409")

    def terms(self) -> Terms:
        """Raises ApiFault where they do not go together."""
        if self.role != "canary" and (self.percent is not None or self.region or self.group or self.edge_label):
            raise ApiFault(422, "stage-without-canary", "percent, region, group and edge_label are a canary's")
        return Terms(self.ring, self.role, self._stage(), self._guard())

    def _stage(self) -> Stage | None:
        if self.role != "canary":
            return None
        pairs = [label.partition("=") for label in self.edge_label]
        if not all(key and mark and value for key, mark, value in pairs):
            raise ApiFault(422, "request-malformed", "edge_label: say key=value, as in `edge.labels`")
        labels = {key: value for key, _, value in pairs}
        if len(labels) < len(pairs):
            raise ApiFault(422, "request-malformed", "edge_label: one value for each key; an edge has no more")
        percent = 100.0 if self.percent is None else self.percent
        return Stage(percent=percent, regions=_once(self.region), groups=_once(self.group), labels=labels)

    def _guard(self) -> Guard | None:
        given = {
            "denials": self.guard_denials,
            "errors": self.guard_errors,
            "slow": self.guard_slow,
            "slow_ms": self.guard_slow_ms,
            "calls": self.guard_calls,
            "watch": self.watch,
        }
        named = {key: value for key, value in given.items() if value is not None}
        if not named:
            return None
        if self.role == "shadow":
            raise ApiFault(422, "guard-without-ruling", "a shadow decides nothing that a guard could watch")
        return Bounds.model_validate(named).guard()


class Promote(Strict):
    """`from`: "canary", or the name of a ring whose ruling bundle is meant."""

    model_config = ConfigDict(extra="forbid", validate_by_name=True)
    ring: str = "main"
    source: str = Field("canary", alias="from", max_length=64)
    release: StrictInt | str | None = Field(
        None, description="Number or digest of what is meant; 409 where that is another"
    )
    guard: Bounds | None = None


def _once(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
