"""Reading the log beside the processes that write it: the file of local mode, opened for reading only, or Kafka."""

import contextlib
from collections.abc import AsyncIterator, Sequence

from tidegate.log.port import Delivered, EventLog
from tidegate.settings import Settings

BATCH_MAX = 1_000
POLL_S = 1.0
EVENT_TOPICS = ("calls", "sessions", "detections", "policy", "control", "catalog")


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[EventLog]:
    """The log, to be followed without a group. Raises LogUnavailable."""
    log = _open(settings)
    try:
        yield log
    finally:
        await log.close()


async def records(log: EventLog, topics: Sequence[str], *, follow: bool) -> AsyncIterator[Delivered | None]:
    """From the start; None once what was there has been delivered. Then ends, or goes on for ever."""
    subscription = await log.follow(topics)
    told = False
    try:
        while True:
            for record in await subscription.poll(BATCH_MAX, POLL_S if told else 0.05):
                yield record
            if subscription.caught_up and not told:
                told = True
                yield None
                if not follow:
                    return
    finally:
        await subscription.close()


def _open(settings: Settings) -> EventLog:
    if settings.is_local:
        from tidegate.log.sqlite import open_readonly

        return open_readonly(settings.data_dir / "log.db")
    from tidegate.log.opening import open_log

    return open_log(settings)
