"""Hears what a server says of its lists outside of requests. Counterpart: `discovery.py` asks for them then."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, cast

from tidegate.errors import Fault
from tidegate_edge.upstream.port import ACKNOWLEDGED, Caller, Silence, Upstream, Wanted

ListChange = Literal["tools", "prompts", "resources"]
LIST_CHANGES: Final[Mapping[str, ListChange]] = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
}
ERA_TIMEOUT_S: Final = 30.0
AGAIN_S: Final = 30.0  # after a server refused, or had nothing to say: what it offers may change

PATIENCE: Final = 20  # so many changes at once are followed as they come
PATIENCE_BACK_S: Final = 3.0  # then one in so many seconds: each makes every principal's lists anew
PACE_S: Final = 0.5  # and never more often than this
DEBOUNCE_S: Final = 0.05  # a server that changes three lists says so three times

_log = logging.getLogger(__name__)


class Patience:
    """How long to wait before a server that says its lists have changed is asked again."""

    def __init__(self) -> None:
        self._left = float(PATIENCE)
        self._asked_s = 0.0

    def asked(self, at_s: float) -> None:
        """The server was asked; the moments grow."""
        self._left = min(float(PATIENCE), self._left + (at_s - self._asked_s) / PATIENCE_BACK_S)
        self._asked_s = at_s

    def wait_s(self, at_s: float) -> float:
        """For one more change, `PATIENCE_BACK_S` at most: what comes meanwhile is the same wait."""
        since_s = at_s - self._asked_s
        left = max(-1.0, min(float(PATIENCE), self._left + since_s / PATIENCE_BACK_S) - 1.0)
        self._left = max(-1.0, self._left - 1.0)
        return max(DEBOUNCE_S, PACE_S - since_s, -left * PATIENCE_BACK_S)


class Ears(Silence):
    """The gateway's own side of a server's stream: it notes list changes and answers nothing."""

    def __init__(self, heard: Callable[[ListChange], None], began: Callable[[], None]) -> None:
        self._heard = heard
        self._began = began

    def notified(self, method: str, params: bytes) -> None:
        if method == ACKNOWLEDGED:
            self._began()
            return
        kind = LIST_CHANGES.get(method)
        if kind is not None:
            self._heard(kind)


def wanted(capabilities: Mapping[str, Any]) -> Wanted | None:
    """The list changes that a server with these capabilities tells; None: it tells none."""
    told = {
        kind: isinstance(capabilities.get(kind), dict) and capabilities[kind].get("listChanged") is True
        for kind in LIST_CHANGES.values()
    }
    return Wanted(**cast(dict[str, Any], told)) if any(told.values()) else None


async def keep_listening(
    upstream: Upstream,
    tenant: str,
    capabilities: Callable[[], Mapping[str, Any]],
    heard: Callable[[ListChange], None],
    began: Callable[[], None],
) -> None:
    """Until cancelled. The upstream connects again by itself; here is only waited where it gives up. `began`: from now
    on it is heard; what changed before, nobody has said.
    """
    caller = Caller(tenant, "gateway", "tidegate")
    ears = Ears(heard, began)
    last = ""
    while True:
        wants = wanted(capabilities())
        try:
            if wants is not None:
                modern = await upstream.era(True, ERA_TIMEOUT_S)
                await upstream.listen(wants, caller, modern, ears)
        except Exception as fault:  # its lists are asked for from time to time all the same
            sentence = fault.sentence if isinstance(fault, Fault) else f"{upstream.name}: cannot be heard: {fault!r}"
            if sentence != last:
                _log.warning("%s", sentence)
            last = sentence
        await asyncio.sleep(AGAIN_S)
