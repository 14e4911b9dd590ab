"""Chooses the session store that the settings name."""

from tidegate.sessions.memory import MemorySessions
from tidegate.sessions.port import SessionStore
from tidegate.sessions.redis import RedisSessions
from tidegate.settings import Settings


def open_sessions(settings: Settings) -> SessionStore:
    """Not started yet. Raises ConfigFault when the address is malformed."""
    per_subject_max = settings.limits.sessions_per_subject_max
    if settings.sessions == "memory":
        return MemorySessions(per_subject_max=per_subject_max)
    return RedisSessions(settings.sessions, per_subject_max=per_subject_max)
