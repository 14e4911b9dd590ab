"""The work of `tidegate log tail`: the past that was asked for, then events as they come."""

import asyncio
from collections import deque
from pathlib import Path

from tidegate.settings import Settings
from tidegate_cli.matching import Seen, Wanted, open_seen
from tidegate_cli.options import live_settings
from tidegate_cli.output import print_line, say


def show_tail(config: Path, wanted: Wanted, *, last: int, follow: bool, as_json: bool) -> None:
    """Until interrupted where it follows. Raises Fault."""
    asyncio.run(_tail(live_settings(config), wanted, last, follow, as_json))


async def _tail(settings: Settings, wanted: Wanted, last: int, follow: bool, as_json: bool) -> None:
    from tidegate_cli.reading import EVENT_TOPICS, reading, records

    past: deque[Seen] = deque(maxlen=None if wanted.since_us else last)
    caught_up = False
    async with reading(settings) as log:
        async for record in records(log, EVENT_TOPICS, follow=follow):
            if record is None:
                caught_up = True
                for seen in sorted(past, key=lambda seen: seen.time_us):
                    show(seen, as_json)
                past.clear()
                continue
            event = open_seen(record.value or b"")
            if event is None or not wanted.admits(event):
                continue
            if caught_up:
                show(event, as_json)
            else:
                past.append(event)


def show(seen: Seen, as_json: bool) -> None:
    from tidegate_cli.telling import line_of

    if as_json:
        print_line(seen.raw)
    else:
        say(line_of(seen))
