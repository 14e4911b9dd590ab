"""The labels of a tool: its server's, the operator's for it, or what its own annotations suggest. Pure.

A server's own word may warn. It may not say `read-only`: that could widen what rules permit and `async` lets pass; nor
`read-private`: only the operator knows what is private. The operator's labels replace what is suggested, and one with a
minus in front takes one suggestion away and leaves the others.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

DESTRUCTIVE: Final = "destructive"  # it may delete or overwrite
OPEN_WORLD: Final = "open-world"  # it deals with more than its own server's data
RETURNS_UNTRUSTED: Final = "returns-untrusted"  # what it answers may be written by strangers
EGRESS: Final = "egress"  # what it is given may leave the house
READ_PRIVATE: Final = "read-private"  # it reads what is not public; the operator's word only
SENSITIVE: Final = "sensitive"  # what it answers must not be passed on; the operator's word only
TAINTING: Final = (
    SENSITIVE,
    READ_PRIVATE,
    RETURNS_UNTRUSTED,
)  # what a session takes on by itself
SUGGESTED: Final = (DESTRUCTIVE, OPEN_WORLD, RETURNS_UNTRUSTED, EGRESS)
TAKEN_AWAY: Final = "-"


def tool_labels(
    definition: dict[str, Any], server: Iterable[str], operator: Iterable[str], suggested: Iterable[str] | None = None
) -> tuple[str, ...]:
    """Sorted. `operator` are the labels for this tool; `suggested`, what its annotations suggested when that was
    recorded, and None what they suggest today. What is given, for the tool or its server, stays.
    """
    for_server, for_tool = tuple(server), tuple(operator)
    away = {label.removeprefix(TAKEN_AWAY) for label in (*for_server, *for_tool) if label.startswith(TAKEN_AWAY)}
    added = plain_labels(for_tool)
    hinted = suggested_labels(definition) if suggested is None else suggested
    left = set() if added else set(hinted) - away
    return tuple(sorted({*plain_labels(for_server), *added, *left}))


def suggested_labels(definition: dict[str, Any]) -> tuple[str, ...]:
    """By the tool's own annotations, sorted."""
    return tuple(sorted(_hinted(definition)))


def plain_labels(given: Iterable[str]) -> tuple[str, ...]:
    """Without those that take a suggestion away."""
    return tuple(label for label in given if not label.startswith(TAKEN_AWAY))


def _hinted(definition: dict[str, Any]) -> Iterator[str]:
    """A hint counts where it is said; the specification's own defaults are not taken for the server's word."""
    annotations = definition.get("annotations")
    if not isinstance(annotations, dict):
        return
    reads_only = annotations.get("readOnlyHint") is True
    if annotations.get("destructiveHint") is True:
        yield DESTRUCTIVE
    if annotations.get("openWorldHint") is True:
        yield OPEN_WORLD
        yield RETURNS_UNTRUSTED
        if not reads_only:
            yield EGRESS
