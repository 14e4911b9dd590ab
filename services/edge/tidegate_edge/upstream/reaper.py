"""Ends sessions at upstream servers that nobody uses any more. Every edge looks; each session is claimed by one of
them, which DELETEs it at its server.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Final, Protocol, runtime_checkable

from tidegate.errors import Fault
from tidegate.sessions.port import SessionStore, UpstreamKey, UpstreamSession
from tidegate_edge.upstream.port import Upstream

EVERY_S: Final = 15.0
CLAIMED_MAX: Final = 100  # at a time

_log = logging.getLogger(__name__)


@runtime_checkable
class HoldsSessions(Protocol):
    """An upstream whose sessions are kept in the store."""

    async def end_claimed(self, key: UpstreamKey, session: UpstreamSession) -> None: ...


async def reap(store: SessionStore, upstreams: Mapping[str, Upstream], idle_s: float) -> None:
    """Until cancelled."""
    every_s = min(EVERY_S, idle_s / 4)
    while True:
        await asyncio.sleep(every_s)
        try:
            while await _reap_once(store, upstreams, idle_s) == CLAIMED_MAX:
                pass
        except Fault as fault:
            _log.debug("idle upstream sessions are not looked for now: %s", fault.sentence)


async def _reap_once(store: SessionStore, upstreams: Mapping[str, Upstream], idle_s: float) -> int:
    claimed = await store.claim_idle(idle_s, CLAIMED_MAX)
    ends: list[Coroutine[Any, Any, None]] = []
    for key, session in claimed:
        upstream = upstreams.get(key.server)
        if isinstance(upstream, HoldsSessions):
            ends.append(upstream.end_claimed(key, session))
    await asyncio.gather(*ends)
    return len(claimed)
