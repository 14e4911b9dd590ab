"""Which stored events a reader wants, and what they have in common. Pure.

Events on the detections topic are OCSF objects, all others Tidegate's own; both become a `Seen`.
"""

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from tidegate.errors import ConfigFault
from tidegate.ids import now_us

_AGE = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


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
    def sealed(self) -> dict[str, Any]:
        """The personal part."""
        return self.fields.get("sealed") or {}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A reader's filter; empty fields admit everything."""

    user: str = ""
    agent: str = ""
    tool: str = ""
    server: str = ""
    decision: str = ""
    since_us: int = 0

    def admits(self, seen: Seen) -> bool:
        if seen.time_us < self.since_us:
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


def open_seen(value: bytes) -> Seen | None:
    """A stored event; None where the bytes are no event (the consumer keeps those as dead letters)."""
    try:
        fields = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    if "class_uid" in fields:
        return _finding(fields, value)
    if not isinstance(fields.get("type"), str) or not isinstance(fields.get("time_us"), int):
        return None
    return Seen(fields["type"], fields["time_us"], fields, value)


def _finding(fields: dict[str, Any], value: bytes) -> Seen | None:
    """OCSF 2004: Tidegate's own fields are under `unmapped.tidegate`, times are milliseconds."""
    own = fields.get("unmapped", {}).get("tidegate", {})
    info = fields.get("finding_info", {})
    time_us = own.get("time_us") or int(fields.get("time", 0)) * 1_000
    told = {
        "title": info.get("title", ""),
        "message": fields.get("message") or info.get("desc", ""),
        "severity": fields.get("severity", ""),
    }
    return Seen("finding.raised.v1", time_us, {**told, **own}, value)


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
