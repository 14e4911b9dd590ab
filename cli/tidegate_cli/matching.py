"""Which stored events a reader wants, and what they have in common.

Events on the detections topic are OCSF objects, all others Tidegate's own; both become a `Seen`. What a `Seen` has is
of its schema's types: whoever shows it need not look. Newer versions of an event are held against the one known here.
"""

import re
from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Final

import msgspec
import typer

from tidegate.errors import ConfigFault
from tidegate.events import AnyEvent, CallAbandoned, CallCompleted, CallRequested, type_of
from tidegate.ids import now_us
from tidegate.limits import JSON_DEPTH_MAX
from tidegate.ocsf.finding import FindingInfo, Own
from tidegate.settings import Settings

_AGE = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TIME_MAX_US: Final = 4_102_444_800_000_000  # 2100-01-01
_DEPTH_MAX: Final = 4 * JSON_DEPTH_MAX  # what can be decoded can be encoded again
_CALL_KINDS: Final = (CallRequested, CallAbandoned, CallCompleted)
_INT: Final = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Seen(msgspec.Struct, frozen=True):
    """A stored event: its type, its fields as decoded JSON (once `boxes.py` has had it: opened), and its bytes."""

    type: str
    time_us: int
    fields: dict[str, Any]
    raw: bytes
    shut: str = ""  # why the personal part is not open: "erased", "sealed"; "" where it is, or where there is none

    def text(self, name: str) -> str:
        return str(self.fields.get(name, ""))

    @property
    def name(self) -> str:
        """The type without its version; one that is not known here has fields of any type."""
        return self.type.rpartition(".")[0]

    @property
    def sealed(self) -> dict[str, Any]:
        """The personal part."""
        part = self.fields.get("sealed")
        return part if isinstance(part, dict) else {}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A reader's filter; empty fields admit everything."""

    user: str = ""
    agent: str = ""
    tool: str = ""
    server: str = ""
    decision: str = ""
    since_us: int = 0
    tenants: frozenset[str] = frozenset()

    def admits(self, seen: Seen) -> bool:
        if seen.time_us < self.since_us or (self.tenants and seen.text("tenant") not in self.tenants):
            return False
        names = (self._is_user(seen), self._is_tool(seen), *self._equal(seen))
        return all(names)

    def _equal(self, seen: Seen) -> list[bool]:
        asked = (("agent", self.agent), ("server", self.server), ("decision", self.decision))
        return [not wanted or seen.text(name) == wanted for name, wanted in asked]

    def _is_user(self, seen: Seen) -> bool:
        sealed = seen.sealed
        return not self.user or self.user in (sealed.get("login"), sealed.get("subject"), seen.text("subject_id"))

    def _is_tool(self, seen: Seen) -> bool:
        target = seen.text("target") or seen.text("tool")
        return not self.tool or self.tool in (target, f"{seen.text('server')}__{target}")


def tenants_of(settings: Settings) -> frozenset[str]:
    """Whose events the readers of this configuration are shown."""
    return frozenset({settings.tenant, *(issuer.tenant for issuer in settings.identity.issuers if issuer.tenant)})


def open_seen(value: bytes) -> Seen | None:
    """A stored event; None where the bytes are no event (the consumer keeps those as dead letters)."""
    try:
        fields = msgspec.json.decode(value)
        if not isinstance(fields, dict) or not _is_shallow(value, fields):
            return None
        seen = _finding(value, fields) if "class_uid" in fields else _own(value, fields)
    except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError
        return None
    return seen if 0 <= seen.time_us < _TIME_MAX_US else None


def tell_skipped(count: int) -> None:
    """On stderr, that so many records were passed over."""
    if count:
        records = "1 record is" if count == 1 else f"{count} records are"
        typer.echo(f"{records} no event and left out; see `tidegate dead-letters list`", err=True)


def _own(value: bytes, fields: dict[str, Any]) -> Seen:
    """Raises msgspec.ValidationError."""
    head = _HEAD.decode(value)
    if (decoder := _decoders().get(head.type.rpartition(".")[0])) is not None:
        decoder.decode(value)
    return Seen(head.type, head.time_us, fields, value)


def _finding(value: bytes, fields: dict[str, Any]) -> Seen:
    """OCSF 2004: Tidegate's own fields are under `unmapped.tidegate`, times are milliseconds. Raises
    msgspec.ValidationError.
    """
    found = _FINDING.decode(value)
    own = fields.get("unmapped", {}).get("tidegate", {})
    told = {
        "title": found.finding_info.title,
        "message": found.message or found.finding_info.desc,
        "severity": found.severity,
    }
    return Seen("finding.raised.v1", own.get("time_us") or found.time * 1_000, {**told, **own}, value)


class _Head(msgspec.Struct):
    type: str
    time_us: int
    tenant: str = ""
    id: str = ""


def _partial(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The same fields with the same types, none of which must be there. An event of a call may be shown for another of
    its events, so it has all their fields.
    """
    kinds = (*_CALL_KINDS, kind) if kind in _CALL_KINDS else (kind,)
    types = {field.name: field.type for one in kinds for field in msgspec.structs.fields(one)}
    return msgspec.defstruct(
        f"Partial{kind.__name__}",
        [(name, (_INT if of is int else of) | msgspec.UnsetType, msgspec.UNSET) for name, of in types.items()],
    )


@cache
def _decoders() -> dict[str, msgspec.json.Decoder[msgspec.Struct]]:
    """By a type's name without its version."""
    kinds: Collection[type] = AnyEvent.__args__
    return {type_of(kind).rpartition(".")[0]: msgspec.json.Decoder(_partial(kind)) for kind in kinds}


class _Unmapped(msgspec.Struct):
    tidegate: _partial(Own) = msgspec.field(default_factory=_partial(Own))  # type: ignore[valid-type]


class _StoredFinding(msgspec.Struct):
    class_uid: int
    time: int = 0
    severity: str = ""
    message: str = ""
    finding_info: FindingInfo = FindingInfo()
    unmapped: _Unmapped = msgspec.field(default_factory=_Unmapped)


_HEAD: Final = msgspec.json.Decoder(_Head)
_FINDING: Final = msgspec.json.Decoder(_StoredFinding)


def is_shallow(value: Any) -> bool:
    """Whether decoded JSON nests little enough to be written anew, wherever that is done."""
    level: list[Any] = [value]
    for _ in range(_DEPTH_MAX):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return True
    return False


def _is_shallow(value: bytes, fields: dict[str, Any]) -> bool:
    """Few brackets cannot nest deeply."""
    return value.count(b"[") + value.count(b"{") <= _DEPTH_MAX or is_shallow(fields)


def age_us(text: str, at_us: int | None = None, *, option: str = "--since") -> int:
    """`--since` or its like as microseconds since the epoch; 0 of "". Raises ConfigFault."""
    if not text:
        return 0
    if age := _AGE.fullmatch(text):
        return (now_us() if at_us is None else at_us) - int(age[1]) * _SECONDS[age[2]] * 1_000_000
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigFault(
            f"{option} {text}: give an age like 90s, 15m, 2h, 7d, or a time like 2026-03-01T12:00:00Z"
        ) from None
    return int(when.replace(tzinfo=when.tzinfo or UTC).timestamp() * 1_000_000)
