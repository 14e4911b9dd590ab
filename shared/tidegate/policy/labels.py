"""The labels of a tool: its server's, the operator's for it, or what its own annotations suggest. Pure.

A server's own word may warn. It may not say `read-only`: that could widen what rules permit and `async` lets pass.
"""

from collections.abc import Iterable
from typing import Any, Final

HINTS: Final = (("destructiveHint", "destructive"), ("openWorldHint", "open-world"))


def tool_labels(definition: dict[str, Any], server: Iterable[str], operator: Iterable[str]) -> tuple[str, ...]:
    """Sorted. The operator's labels for a tool replace those that its annotations suggest."""
    given = tuple(operator)
    return tuple(sorted({*server, *given, *(() if given else _hinted(definition))}))


def _hinted(definition: dict[str, Any]) -> list[str]:
    annotations = definition.get("annotations")
    if not isinstance(annotations, dict):
        return []
    return [label for hint, label in HINTS if annotations.get(hint) is True]
