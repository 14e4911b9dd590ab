"""What every OCSF object of ours has in common: the schema's version, who speaks, severities, and leaving out what is
not known. Times are milliseconds (OCSF timestamp_t).
"""

from collections.abc import Mapping
from typing import Any, Final

from tidegate import __version__

SCHEMA: Final = "1.8.0"
PRODUCT: Final = {"name": "Tidegate", "vendor_name": "Tidegate", "version": __version__}
SEVERITIES: Final = ("info", "low", "medium", "high", "critical")
SEVERITY_OF_ID: Final = {1: "info", 2: "low", 3: "medium", 4: "high", 5: "critical", 6: "critical"}


def severity_id(severity: str) -> int:
    """1 Informational … 5 Critical."""
    return SEVERITIES.index(severity) + 1


def severity_caption(severity: str) -> str:
    return "Informational" if severity == "info" else severity.capitalize()


def known(members: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not known: None, empty texts, empty lists and objects. Numbers stay, 0 included."""
    return {name: value for name, value in members.items() if value is not None and value not in ("", (), [], {})}


def clipped(value: Any, chars: int, items: int) -> Any:
    """A copy whose texts have at most `chars` characters, a clipped one ends in "…", and lists at most `items`."""
    if isinstance(value, str):
        return value if len(value) <= chars else value[: chars - 1] + "…"
    if isinstance(value, Mapping):
        return {name: clipped(one, chars, items) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([clipped(one, chars, items) for one in value[:items]])
    return value
