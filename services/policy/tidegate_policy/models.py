"""What the management API says and takes, in JSON. Times are microseconds since the epoch, UTC.

What it says and takes about releases is in `release_models.py` and `release_requests.py`.
"""

from typing import Annotated, Literal
from unicodedata import bidirectional, category

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from tidegate.events import QuarantineImposed, SubjectErased

Scope = Literal["session", "subject", "agent", "server", "tool"]


def _one_line(text: str) -> str:
    if any(category(char) in _BREAKING or bidirectional(char) in _TURNING for char in text):
        raise ValueError("holds a control character, or one that turns or breaks lines: write plain text on one line")
    return text


_BREAKING = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
OneLine = Annotated[str, AfterValidator(_one_line)]
"""A text that people are shown later: by command lines, pages, models."""


class Strict(BaseModel):
    """A request body: unknown members are refused, as slips."""

    model_config = ConfigDict(extra="forbid")


class Impose(Strict):
    scope: Scope
    value: OneLine = Field(
        min_length=1,
        max_length=512,
        description="Session id, subject id or 'issuer|subject', agent, server, or 'server/tool'",
    )
    reason: OneLine = Field(min_length=1, max_length=500, description="The sentence that the refused caller is given")
    ttl_s: float = Field(0, ge=0, le=366 * 24 * 3600, description="Seconds, 1 at least; 0: until lifted")

    @field_validator("ttl_s")
    @classmethod
    def _lasts(cls, ttl_s: float) -> float:
        if 0 < ttl_s < 1:
            raise ValueError("a quarantine lasts 1 second at least; 0 is until it is lifted")
        return ttl_s


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
    reason: OneLine = Field(
        "", max_length=500, description="Recorded for good: name nobody in it. A dry run needs none"
    )
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
