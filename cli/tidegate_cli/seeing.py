"""Whether recorded calls show a name that somebody typed, and which name is like it. Best effort: None, "" where the
records cannot be asked.
"""

import asyncio
import time
from difflib import get_close_matches
from typing import Any, Final

from tidegate.errors import Fault
from tidegate.settings import Settings
from tidegate_cli.reaching import reaching

_CALL: Final = "SELECT 1 FROM tidegate.calls WHERE tenant = {tenant:String} AND "
_OF: Final = {
    "agent": _CALL + "agent = {value:String} LIMIT 1",
    "session": _CALL + "session_id = {value:String} LIMIT 1",
    "subject": _CALL + "subject_id = {value:String} LIMIT 1",
}
_WAIT_S: Final = 3.0
_YOUNG_S: Final = 2.0  # a call that has just been made is there by then
_AGAIN_S: Final = 0.3
_AGENTS: Final = (
    "SELECT agent FROM tidegate.calls WHERE tenant = {tenant:String} GROUP BY agent "
    "ORDER BY max(requested_at) DESC LIMIT 1000"
)


def is_recorded(settings: Settings, scope: str, value: str) -> bool | None:
    """Whether some call was of this agent, session or subject id."""
    return asyncio.run(_is_recorded(settings, _OF[scope], value))


def alike(settings: Settings, agent: str) -> str:
    """The recorded agent whose name is most like it."""
    rows = asyncio.run(_asked(settings, _AGENTS, {"tenant": settings.tenant})) or []
    return next(iter(get_close_matches(agent, [str(row[0]) for row in rows], 1)), "")


async def _is_recorded(settings: Settings, asked: str, value: str) -> bool | None:
    late = time.monotonic() + _YOUNG_S
    while True:
        rows = await _asked(settings, asked, {"tenant": settings.tenant, "value": value})
        if rows is None:
            return None
        if rows or time.monotonic() > late:
            return bool(rows)
        await asyncio.sleep(_AGAIN_S)


async def _asked(settings: Settings, sql: str, values: dict[str, str]) -> list[tuple[Any, ...]] | None:
    try:
        async with asyncio.timeout(_WAIT_S), reaching(settings) as analytics:
            return list((await analytics.query(sql, values)).rows)
    except (Fault, TimeoutError):
        return None
