"""Opens personal parts for commands that read stored events: with the published keys and this machine's masters."""

from collections.abc import Callable

from tidegate.events import Sealed
from tidegate.log.port import EventLog
from tidegate.privacy.master import open_wrapping
from tidegate.privacy.ring import load_ring
from tidegate.settings import Settings


async def opener(settings: Settings, log: EventLog) -> Callable[[Sealed], Sealed | None]:
    """Gives the plain personal part, or None where its key is gone or no master is here. Raises Fault."""
    wrapping = open_wrapping(settings)
    if wrapping is None:
        return lambda sealed: None if sealed.kid else sealed
    return (await load_ring(log, wrapping)).open
