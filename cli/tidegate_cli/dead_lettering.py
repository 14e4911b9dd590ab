"""The work of `tidegate dead-letters`: the letters as the log has them; whether they are stored by now is asked of
ClickHouse, so that nobody keeps a list of what was retried.

Counterpart: `tidegate_audit_consumer.retrying`, which does what the consumer does with every record.
"""

import asyncio
import base64
import heapq
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import typer

from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, CallerFault, ConfigFault
from tidegate.settings import Settings
from tidegate_audit_consumer.dead_letters import TOPIC, Letter, open_letter
from tidegate_audit_consumer.retrying import Retried, retry, unstored
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.reaching import reaching
from tidegate_cli.reading import reading, records

BATCH_LETTERS: Final = 500
BATCH_BYTES: Final = 16 * 1024 * 1024
REMEMBERED: Final = 10_000  # positions of the latest letters: doubles are near each other
SHOWN_BYTES_MAX: Final = 8 * 1024
STATE_STYLES: Final = {"stored": "green", "dead": "red", "not known": "yellow"}

Wanted = Callable[[Letter], bool]


def show_list(config: Path, *, reason: str, topic: str, last: int, as_json: bool) -> None:
    """Raises Fault where the log cannot be read."""

    def wanted(letter: Letter) -> bool:
        return reason in ("", letter.reason) and topic in ("", letter.record.topic)

    settings = live_settings(config)
    letters = asyncio.run(_latest(settings, wanted, last))
    states = asyncio.run(_states(settings, letters))
    if as_json:
        print_document([_told(letter) | {"state": state} for letter, state in zip(letters, states, strict=True)])
        return
    for letter, state in zip(letters, states, strict=True):
        size = len(letter.record.value or b"")
        say(
            f"[bold]{plain(letter.id)}[/]  {_time(letter.buried_us)}  [{STATE_STYLES[state]}]{state}[/]  "
            f"{plain(letter.reason)}  {size:,} bytes  {plain(letter.message)}"
        )
    if not letters:
        say("No dead letter: everything so far could be read." if not (reason or topic) else "No such dead letter.")


def show_letter(config: Path, letter_id: str, *, raw: bool, as_json: bool) -> None:
    """Raises CallerFault where the log has no such letter."""
    _check(letter_id)
    letters = asyncio.run(_latest(live_settings(config), lambda letter: letter.id == letter_id, 1))
    if not letters:
        raise _unknown([letter_id])
    letter = letters[0]
    if raw:
        sys.stdout.buffer.write(letter.record.value or b"")
        sys.stdout.buffer.flush()
    elif as_json:
        print_document(_told(letter) | _content(letter))
    else:
        _show(letter)


def retry_letters(config: Path, ids: Sequence[str], *, everything: bool, reason: str, as_json: bool) -> int:
    """The exit code: 1 where something still cannot be read. Raises Fault."""
    if not (ids or everything or reason):
        raise ConfigFault(
            "which dead letters? give their ids, --reason REASON or --all; `dead-letters list` shows them"
        )
    for one in ids:
        _check(one)
    missing = set(ids)

    def wanted(letter: Letter) -> bool:
        missing.discard(letter.id)
        return (not ids or letter.id in ids) and reason in ("", letter.reason)

    counts = {"stored": 0, "stored-before": 0, "unreadable": 0}
    told: list[dict[str, Any]] = []

    def show(results: Sequence[Retried]) -> None:
        for result in results:
            counts[result.outcome] += 1
            if not as_json:
                _show_result(result)
            elif len(told) < REMEMBERED:
                told.append(_result(result))

    asyncio.run(_retry(live_settings(config), wanted, show))
    if missing:
        raise _unknown(sorted(missing))
    if as_json:
        print_document({"counts": counts, "letters": told})
    else:
        say(f"{counts['stored']} stored, {counts['stored-before']} before, {counts['unreadable']} still unreadable")
    return 1 if counts["unreadable"] else 0


async def _letters(settings: Settings, wanted: Wanted) -> AsyncIterator[Letter]:
    """In the log's order, each position once."""
    seen: dict[str, None] = {}
    async with reading(settings) as log:
        async for record in records(log, (TOPIC,), follow=False):
            letter = open_letter(record) if record is not None else None
            if letter is None or letter.id in seen or not wanted(letter):
                continue
            seen[letter.id] = None
            if len(seen) > REMEMBERED:
                del seen[next(iter(seen))]
            yield letter


async def _latest(settings: Settings, wanted: Wanted, last: int) -> list[Letter]:
    """The youngest, oldest of them first. Partitions arrive one beside the other, so time must order them."""
    heap: list[tuple[int, int, Letter]] = []
    number = 0
    async for letter in _letters(settings, wanted):
        number += 1
        heapq.heappush(heap, (letter.buried_us, number, letter))
        if len(heap) > last:
            heapq.heappop(heap)
    return [letter for _, _, letter in sorted(heap)]


async def _states(settings: Settings, letters: Sequence[Letter]) -> list[str]:
    """ "stored" once a retry has read it, else "dead"; "not known" while ClickHouse does not answer."""
    if not letters:
        return []
    try:
        async with reaching(settings) as analytics:
            dead = {letter.id for letter in await unstored(analytics, letters)}
    except (AnalyticsUnavailable, AnalyticsRefused) as fault:
        typer.echo(f"whether they are stored by now is not known: {fault.sentence}", err=True)
        return ["not known"] * len(letters)
    return ["dead" if letter.id in dead else "stored" for letter in letters]


async def _retry(settings: Settings, wanted: Wanted, show: Callable[[Sequence[Retried]], None]) -> None:
    batch: list[Letter] = []
    size = 0
    async with reaching(settings, "writer") as analytics:
        async for letter in _letters(settings, wanted):
            batch.append(letter)
            size += len(letter.record.value or b"")
            if len(batch) >= BATCH_LETTERS or size >= BATCH_BYTES:
                show(await retry(analytics, batch))
                batch, size = [], 0
        if batch:
            show(await retry(analytics, batch))


def _check(letter_id: str) -> None:
    topic, _, rest = letter_id.partition("/")
    partition, _, offset = rest.partition("/")
    if not topic or not partition.isdecimal() or not offset.isdecimal():
        raise ConfigFault(f"'{letter_id}' is no position: give topic/partition/offset, as calls/0/17")


def _unknown(ids: Sequence[str]) -> CallerFault:
    named = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
    return CallerFault(f"the log holds no dead letter {named}; `tidegate dead-letters list` shows those it has")


def _told(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "message": letter.message,
        "logged_at": _time(letter.record.time_us),
        "buried_at": _time(letter.buried_us),
        "bytes": len(letter.record.value or b""),
    }


def _content(letter: Letter) -> dict[str, Any]:
    return {
        "key": _document(letter.record.key),
        "headers": [[name, _document(value)] for name, value in letter.record.headers],
        "value": None if letter.record.value is None else _document(letter.record.value),
    }


def _document(value: bytes) -> dict[str, str]:
    """Bytes inside JSON: as text where they are UTF-8, else in base64."""
    try:
        return {"text": value.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _show(letter: Letter) -> None:
    say(f"[bold]{plain(letter.id)}[/]  [red]{plain(letter.reason)}[/]  {plain(letter.message)}")
    say(f"logged {_time(letter.record.time_us)}  buried {_time(letter.buried_us)}")
    say(f"key  {plain(_line(letter.record.key))}")
    for name, content in letter.record.headers:
        say(f"header  {plain(name)}  {plain(_line(content))}")
    value = letter.record.value
    if value is None:
        say("no value")
        return
    say(f"value  {len(value):,} bytes")
    say(plain(_line(value[:SHOWN_BYTES_MAX])))
    if len(value) > SHOWN_BYTES_MAX:
        say(f"… the rest is left out; `tidegate dead-letters show {plain(letter.id)} --raw` prints all of it")


def _line(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode(errors="backslashreplace")


def _show_result(result: Retried) -> None:
    told = {"stored": "[green]stored[/]", "stored-before": "[green]stored before[/]"}.get(result.outcome)
    said = told or f"[red]still unreadable[/]  {plain(result.reason)}  {plain(result.message)}"
    say(f"[bold]{plain(result.letter.id)}[/]  {said}")


def _result(result: Retried) -> dict[str, Any]:
    return {
        "id": result.letter.id,
        "outcome": result.outcome,
        "reason": result.reason,
        "message": result.message,
    }


def _time(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"
