"""The work of `tidegate log tail`: the past that was asked for, then events as they come."""

import asyncio
import contextlib
import heapq
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from tidegate.settings import Settings
from tidegate_cli.matching import Seen, Wanted, open_seen, tell_skipped, tenants_of
from tidegate_cli.options import live_settings
from tidegate_cli.output import print_line, say

if TYPE_CHECKING:
    from tidegate_cli.people import Known

SINCE_EVENTS_MAX = 200_000


def show_tail(config: Path, wanted: Wanted, *, last: int, follow: bool, as_json: bool) -> None:
    """Until interrupted where it follows. Raises Fault."""
    asyncio.run(_tail(live_settings(config), wanted, last, follow, as_json))


class Past:
    """The youngest events of what was there. Topics arrive one after the other, so time must order them."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._heap: list[tuple[int, int, Seen]] = []
        self._number = 0

    def add(self, seen: Seen) -> None:
        self._number += 1
        entry = (seen.time_us, self._number, seen)
        if len(self._heap) < self._events_max:
            heapq.heappush(self._heap, entry)
        elif self._heap:
            heapq.heappushpop(self._heap, entry)

    @property
    def left_out(self) -> int:
        return self._number - len(self._heap)

    def in_order(self) -> list[Seen]:
        return [seen for _, _, seen in sorted(self._heap)]


async def _tail(settings: Settings, wanted: Wanted, last: int, follow: bool, as_json: bool) -> None:
    from tidegate_cli.boxes import open_boxes
    from tidegate_cli.people import Known, own
    from tidegate_cli.reading import EVENT_TOPICS, reading, records
    from tidegate_cli.telling import QUIET

    past = Past(SINCE_EVENTS_MAX if wanted.since_us else last)
    wanted = msgspec.structs.replace(wanted, tenants=wanted.tenants or tenants_of(settings))
    caught_up, skipped, known = False, 0, Known(own(settings))
    async with reading(settings) as log, contextlib.AsyncExitStack() as stack:
        boxes = await open_boxes(settings, log)
        stack.push_async_callback(boxes.close)
        async for record in records(log, EVENT_TOPICS, follow=follow):
            if record is None:
                caught_up = True
                _show_past(past, known, as_json, told=wanted.since_us > 0)
                tell_skipped(skipped)
                continue
            event = open_seen(record.value or b"")
            if event is None:
                skipped += 1
                if caught_up:
                    tell_skipped(1)
                continue
            if event.time_us < wanted.since_us or event.text("tenant") not in wanted.tenants:
                continue
            event = await boxes.shown_soon(event)
            known.note(event)
            if not wanted.admits(event) or (event.name in QUIET and not as_json):
                continue
            if caught_up:
                show(event if as_json else known.named(event), as_json)
            else:
                past.add(event)


def _show_past(past: Past, known: "Known", as_json: bool, *, told: bool) -> None:
    if told and past.left_out:
        typer.echo(f"{past.left_out} older events are left out; a younger --since shows all of its time", err=True)
    for seen in past.in_order():
        show(seen if as_json else known.named(seen), as_json)


def show(seen: Seen, as_json: bool) -> None:
    from tidegate_cli.telling import line_of

    if as_json:
        print_line(msgspec.json.encode(seen.fields) if "kid" in seen.sealed else seen.raw)
    else:
        say(line_of(seen))
