"""The work of `tidegate spool`. Shipping does what an edge does at its start: the writer goes on under a new epoch.

Counterparts: `tidegate.log.spool_survey` (reads without owning), `tidegate_edge.records` (an edge's own start).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from tidegate.chain import Chain
from tidegate.errors import ConfigFault, LogUnavailable
from tidegate.events import AnyEvent
from tidegate.ids import now_us
from tidegate.log.port import BlockingAppender
from tidegate.log.spool import Spool
from tidegate.log.spool_survey import Survey, spools_below, survey
from tidegate.settings import Settings
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_edge.calls import Place
from tidegate_edge.records import abandoned, lost_events

DELIVERY_S: Final = 30.0
RECORDS_AT_ONCE: Final = 5_000
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
UNBOUNDED: Final = 1 << 62  # what says how its calls ended must find room
SHOWN_MAX: Final = 20

Told = Callable[[int], None]


class Shipped(msgspec.Struct, frozen=True):
    """What `ship` did."""

    records: int
    abandoned: int
    losses: int


def show_list(root: Path | None, config: Path, *, as_json: bool) -> None:
    where = root or live_settings(config).data_dir
    if not where.is_dir():
        raise ConfigFault(f"{where} is no directory; give one that holds spools, for example /var/lib/tidegate")
    found: list[Survey | tuple[Path, str]] = []
    for directory in spools_below(where):
        try:
            found.append(survey(directory))
        except LogUnavailable as fault:
            found.append((directory, fault.sentence))
    if as_json:
        print_document([_told(one) if isinstance(one, Survey) else _unread(*one) for one in found])
        return
    for one in found:
        if isinstance(one, Survey):
            say(_line(one))
        else:
            say(f"[red]{plain(one[0])}[/]  {plain(one[1])}")
    if not found:
        say(f"No spool below {plain(where)}.")


def show_one(directory: Path, *, as_json: bool) -> None:
    """Raises LogUnavailable where there is none."""
    found = survey(spool_in(directory))
    if as_json:
        print_document(_told(found))
        return
    say(_line(found))
    say(f"{found.open_calls} calls were permitted and have no end here")
    for part in found.segments[:SHOWN_MAX]:
        say(f"  {part.file}: records {part.first} to {part.first + part.records - 1}, {part.bytes:,} bytes")
    if len(found.segments) > SHOWN_MAX:
        say(f"  and {len(found.segments) - SHOWN_MAX} segments more")
    for report in found.reports:
        say(f"  [yellow]{plain(report)}[/]")
    for damage in found.damages:
        if damage.sentence not in found.reports:
            say(f"  [red]{plain(damage.sentence)}[/]")
    for name in found.set_aside:
        say(f"  {plain(name)} keeps bytes that could not be read")


def ship_one(directory: Path, config: Path, *, as_json: bool) -> None:
    """Raises Fault; what was shipped until then is not shipped again."""
    from tidegate.log.kafka_appender import KafkaAppender

    settings = live_settings(config)
    if settings.is_local:
        raise ConfigFault(
            f"{config}: log is sqlite, which has no spool; give the configuration of the cluster (--config)"
        )
    found = survey(spool_in(directory))
    appender = KafkaAppender(settings, DELIVERY_S)
    try:
        with _bar(found.records) as told:
            done = ship(found, settings, appender, told)
    finally:
        appender.close()
    if as_json:
        print_document(done)
        return
    say(
        f"[green]Shipped[/] {done.records:,} records to {plain(settings.log)}; {done.abandoned} calls that never ended "
        f"are recorded as abandoned, {done.losses} losses reported. The spool {plain(found.directory)} is empty."
    )


def ship(found: Survey, settings: Settings, appender: BlockingAppender, told: Told = lambda _: None) -> Shipped:
    """Own the spool, add what its edge would have added at its next start, and empty it. Raises LogUnavailable."""
    place = Place(settings.tenant, settings.region, found.edge or settings.edge.id or "spool-ship")
    spool = Spool(found.directory, UNBOUNDED, edge=place.edge)
    try:
        chain = Chain(spool.writer)
        ends = [abandoned(request, place) for request in spool.unfinished()]
        _add(spool, chain, ends)
        records = losses = 0
        while True:
            if damages := spool.damages():  # found by now: shipping finds more
                events = [event for damage in damages for event in lost_events(damage, place)]
                _add(spool, chain, events)
                spool.told(damages)
                losses += len(events)
            chunk = spool.take(RECORDS_AT_ONCE, BYTES_AT_ONCE, 0)
            if chunk is None:
                return Shipped(records, len(ends), losses)
            if chunk.records:
                appender.append(chunk.records)
            spool.shipped(chunk)
            records += len(chunk.records)
            told(len(chunk.records))
    finally:
        spool.close()


def _add(spool: Spool, chain: Chain, events: Sequence[AnyEvent]) -> None:
    if events:
        spool.append([chain.seal(event) for event in events])


def spool_in(directory: Path) -> Path:
    """A data directory is taken for the spool in it."""
    inside = directory / "spool"
    return inside if not (directory / "spool.json").exists() and inside.is_dir() else directory


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Told]:
    """On stderr; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("shipping"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("shipping", total=total)
        yield lambda number: progress.update(task, advance=number)


def _line(one: Survey) -> str:
    age = f", the oldest begun {(now_us() - one.oldest_us) / 1e6:,.0f} s ago" if one.oldest_us else ""
    used = f"in use by process {one.owner}" if one.owner else "[yellow]used by nobody[/]" if one.records else "idle"
    loss = f", [red]{len(one.damages)} losses not reported yet[/]" if one.damages else ""
    aside = f", {len(one.set_aside)} files set aside" if one.set_aside else ""
    edge = f" of {plain(one.edge)}" if one.edge else ""
    return (
        f"[bold]{plain(one.directory)}[/]{edge}: {one.records:,} records to ship, {one.bytes:,} bytes{age}; {used}"
        f"{loss}{aside}"
    )


def _told(one: Survey) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(one)
    return fields | {"sentences": [damage.sentence for damage in one.damages]}


def _unread(directory: Path, why: str) -> dict[str, Any]:
    typer.echo(f"{directory}: {why}", err=True)
    return {"directory": str(directory), "problem": why}
