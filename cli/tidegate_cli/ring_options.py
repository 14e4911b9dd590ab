"""What `bundle publish` and `bundle promote` take to say for whom a canary rules and how much worse a release may be.

Counterpart: `release_requests.py` of the policy service, which has the same words and checks them again.
"""

import re
from typing import Annotated, Any, Final

import typer

from tidegate.errors import ConfigFault

_PERCENT: Final = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%")
_SPAN: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s|m|h|d)")
CALLS_DEFAULT: Final = 50
WATCH_MOST_S: Final = 7 * 24 * 3_600
SLOW_MOST_S: Final = 60
NO_BOUND: Final = "a guard needs a bound: --guard-denials, --guard-errors or --guard-slow"
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}

CanaryOption = Annotated[
    str, typer.Option("--canary", metavar="PERCENT", help="Rule that share of users and agents alone: 10%.")
]
ShadowOption = Annotated[
    bool, typer.Option("--shadow", help="Rule nobody: only record what would have been decided otherwise.")
]
RegionOption = Annotated[list[str], typer.Option("--region", help="A canary on edges of this region alone.")]
GroupOption = Annotated[list[str], typer.Option("--group", help="A canary for members of this group alone.")]
EdgeLabelOption = Annotated[
    list[str], typer.Option("--edge-label", metavar="KEY=VALUE", help="A canary on edges with this label alone.")
]
DenialsOption = Annotated[
    str, typer.Option("--guard-denials", metavar="PERCENT", help="Take it back where that many more are denied: 5%.")
]
ErrorsOption = Annotated[
    str,
    typer.Option("--guard-errors", metavar="PERCENT", help="Where that many more meet a rule that fails."),
]
SlowOption = Annotated[
    str, typer.Option("--guard-slow", metavar="PERCENT@TIME", help="Where more than that are decided slower: 1%@5ms.")
]
CallsOption = Annotated[
    int | None,
    typer.Option("--guard-calls", min=1, help="Conclude nothing from fewer calls.", show_default=str(CALLS_DEFAULT)),
]
WatchOption = Annotated[
    str,
    typer.Option(
        "--watch",
        metavar="TIME",
        help="How long a release for everybody is watched: 30s, 10m, 1h.",
        show_default="10m",
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="End the canary, or shadow, of another bundle that is in force.")
]


def stage_query(canary: str, shadow: bool, regions: list[str], groups: list[str], labels: list[str]) -> dict[str, Any]:
    """The query that says the role and for whom. A region, group or label alone means a canary for all of them.

    Raises ConfigFault.
    """
    staged = bool(canary or regions or groups or labels)
    if shadow and staged:
        raise ConfigFault("--shadow rules nobody: leave out --canary, --region, --group and --edge-label")
    if shadow:
        return {"role": "shadow"}
    if not staged:
        return {}
    percent = {"percent": _percent_of(canary)} if canary else {}
    return {"role": "canary", **percent, "region": regions, "group": groups, "edge_label": _labels_of(labels)}


def _percent_of(canary: str) -> float:
    percent = share_of(canary, "--canary") * 100
    if not percent:
        raise ConfigFault(
            "--canary takes a share above 0%; --shadow tries a bundle that rules nobody, and "
            "`tidegate bundle rollback --canary` ends a canary"
        )
    return percent


def _labels_of(labels: list[str]) -> list[str]:
    pairs = [label.partition("=") for label in labels]
    for label, (key, _, value) in zip(labels, pairs, strict=True):
        if not (key and value):
            raise ConfigFault(f"--edge-label takes KEY=VALUE, as in the edge's `edge.labels`, not '{label[:40]}'")
    if len({key for key, _, _ in pairs}) < len(pairs):
        raise ConfigFault("--edge-label: one value for each key; an edge has no more")
    return labels


def guard_query(denials: str, errors: str, slow: str, calls: int | None, watch: str) -> dict[str, Any]:
    """The bounds as `POST /promote` takes them; {} where none is given. Raises ConfigFault."""
    found: dict[str, Any] = {}
    watched_s = _watch_of(watch, alone=not (denials or errors or slow)) if watch else 0.0
    if denials:
        found["denials"] = share_of(denials, "--guard-denials")
    if errors:
        found["errors"] = share_of(errors, "--guard-errors")
    if slow:
        share, _, limit = slow.partition("@")
        found["slow"] = share_of(share, "--guard-slow")
        if limit:
            found["slow_ms"] = _bounded(seconds_of(limit, "--guard-slow"), SLOW_MOST_S, "--guard-slow", "1m") * 1e3
    if not found and (calls or watch):
        raise ConfigFault(NO_BOUND)
    return found | ({"calls": calls} if calls else {}) | ({"watch": watched_s} if watch else {})


def _watch_of(watch: str, *, alone: bool) -> float:
    """Seconds. `alone`: no bound is given, which is said with what else is wrong."""
    try:
        return _bounded(seconds_of(watch, "--watch"), WATCH_MOST_S, "--watch", "7d", least_s=1)
    except ConfigFault as fault:
        raise ConfigFault(f"{fault.sentence}; and {NO_BOUND}") if alone else fault from None


def _bounded(seconds: float, most_s: float, option: str, most: str, least_s: float = 0) -> float:
    if not least_s <= seconds <= most_s or not seconds:
        least = f"{least_s:g}s" if least_s else "above 0"
        raise ConfigFault(f"{option} takes a time of {least} to {most}")
    return seconds


def share_of(text: str, option: str) -> float:
    """0.05 of "5%". Raises ConfigFault."""
    found = _PERCENT.fullmatch(text.strip())
    if found is None or not 0 <= float(found[1]) <= 100:
        raise ConfigFault(f"{option} takes a share such as 5% or 0.1%, not '{text[:40]}'")
    return float(found[1]) / 100


def seconds_of(text: str, option: str) -> float:
    """600.0 of "10m". Raises ConfigFault."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ConfigFault(f"{option} takes a time such as 5ms, 30s, 10m or 2h, not '{text[:40]}'")
    return float(found[1]) * _SECONDS[found[2]]
