"""Chooses the session store that the settings name."""

import contextlib
from collections.abc import AsyncIterator

from tidegate.sessions.memory import MemorySessions
from tidegate.sessions.port import Budgets, SessionStore
from tidegate.sessions.redis import RedisSessions
from tidegate.sessions.redis_budgets import RedisBudgets
from tidegate.sessions.redis_link import Link
from tidegate.settings import Settings


def open_sessions(settings: Settings) -> SessionStore:
    """Not started yet. Raises ConfigFault when the address is malformed."""
    per_subject_max = settings.limits.sessions_per_subject_max
    if settings.sessions == "memory":
        return MemorySessions(per_subject_max=per_subject_max)
    return RedisSessions(settings.sessions, per_subject_max=per_subject_max)


@contextlib.asynccontextmanager
async def open_budgets(settings: Settings) -> AsyncIterator[Budgets | None]:
    """The counters of limits alone, for who only looks at them; None where edges keep them in their own memory.

    Raises ConfigFault when the address is malformed.
    """
    if settings.sessions == "memory":
        yield None
        return
    link = Link(settings.sessions)
    try:
        yield RedisBudgets(link)
    finally:
        await link.close()
