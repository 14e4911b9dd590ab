"""A call as one line of ArcSight's Common Event Format (CEF:0), for SIEMs that read syslog. Pure.

In the header `\\` and `|` are escaped, in extensions `\\`, `=` and line ends; other control characters, which end or
change a line for some readers, become U+FFFD. What is escaped can be read back exactly. Counterpart:
`ocsf/activity.py`.
"""

import re
from collections.abc import Mapping
from typing import Final

from tidegate import __version__
from tidegate.ocsf.activity import Activity
from tidegate.ocsf.api_activity import control_of

SEVERITY: Final = {"info": 1, "low": 3, "medium": 5, "high": 8, "critical": 10}
_VALUE_CHARS_MAX: Final = 4_000  # of one value; what CEF's longest fields hold
_CONTROL: Final = re.compile("[\x00-\x08\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def cef_line(activity: Activity) -> str:
    """Without a line end."""
    name = f"{activity.method} {activity.status}"
    header = ("Tidegate", "Tidegate", __version__, f"call:{activity.status}", name, str(SEVERITY[activity.severity]))
    return cef(header, _extensions(activity))


def cef(header: tuple[str, ...], extensions: Mapping[str, str | int]) -> str:
    """`header`: vendor, product, version, signature id, name, severity. Empty extensions are left out."""
    opening = "|".join(["CEF:0", *map(escaped_header, header)])
    told = " ".join(f"{key}={escaped(str(value))}" for key, value in extensions.items() if value != "")
    return f"{opening}|{told}"


def escaped_header(text: str) -> str:
    """A header cannot hold line ends: they become spaces."""
    flat = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", re.sub("[\r\n]", " ", text))
    return flat.replace("\\", "\\\\").replace("|", "\\|")


def escaped(text: str) -> str:
    """An extension's value."""
    safe = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text[:_VALUE_CHARS_MAX])
    return safe.replace("\\", "\\\\").replace("=", "\\=").replace("\n", "\\n").replace("\r", "\\r")


def _extensions(activity: Activity) -> dict[str, str | int]:
    """Keys of CEF's dictionary; what it has no key for is in the custom strings, each with its label."""
    told: dict[str, str | int] = {
        "rt": activity.requested_us // 1000,
        "start": activity.requested_us // 1000,
        "end": activity.ended_us // 1000 if activity.ended_us else "",
        "act": control_of(activity).disposition,
        "outcome": activity.status,
        "reason": activity.reason,
        "msg": activity.message,
        "externalId": activity.uid,
        "suid": activity.subject_id,
        "suser": activity.login,
        "requestClientApplication": activity.agent,
        "requestMethod": activity.method,
        "destinationServiceName": activity.server,
        "fname": activity.target,
        "dvchost": activity.edge,
        "in": activity.arguments_bytes,
        "out": activity.result_bytes,
        "cat": ",".join(activity.labels),
    }
    custom = {
        "call": activity.call_id,
        "session": activity.session_id,
        "tenant": activity.tenant,
        "rules": ",".join(activity.rules),
        "bundle": activity.bundle,
        "findings": ",".join(dict.fromkeys(finding.rule for finding in activity.findings)),
    }
    for number, (label, value) in enumerate(custom.items(), 1):
        if value:
            told |= {f"cs{number}": value, f"cs{number}Label": label}
    if activity.is_erased:
        told |= {"flexString1": "erased", "flexString1Label": "person"}
    if activity.total_us:
        told |= {"cn1": activity.total_us, "cn1Label": "totalMicroseconds"}
    if activity.masked:
        told |= {"cn2": activity.masked, "cn2Label": "masked"}
    return told
