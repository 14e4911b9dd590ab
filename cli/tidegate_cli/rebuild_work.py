"""The work of `tidegate rebuild` around the rebuilding itself: what is said before, the bar, and what came of it.

Counterpart: `tidegate_audit_consumer.rebuilding`.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from tidegate.analytics.port import Analytics
from tidegate.errors import ConfigFault
from tidegate.log.extents import open_extents
from tidegate.settings import Settings
from tidegate_audit_consumer.beside import BESIDE, GROUPS
from tidegate_audit_consumer.consumer import prepare_database
from tidegate_audit_consumer.rebuilding import Found, Loss, Phase, Rebuild, Result
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.reaching import reaching
from tidegate_cli.reading import reading
from tidegate_cli.verify_telling import shown_time
from tidegate_cli.verify_work import public_keys, verify
from tidegate_cli.verifying import Report

SHOWN_MAX = 20
WORDS: dict[Phase, str] = {
    "building": "building beside",
    "replacing": "taking over",
    "filling": "filling in what came meanwhile",
}


class Wishes(NamedTuple):
    """What the command line asks for."""

    only: Sequence[str]
    keep: bool
    accept_loss: bool
    check: bool
    yes: bool


def show_rebuild(config: Path, wishes: Wishes, *, as_json: bool) -> int:
    """The exit code. Raises Fault; then the same command goes on."""
    if unknown := [name for name in wishes.only if name not in GROUPS]:
        raise ConfigFault(f"--only {unknown[0]}: there is no such table; of {', '.join(GROUPS)}")
    settings = live_settings(config)
    result, report = asyncio.run(_rebuild(settings, wishes))
    if as_json:
        print_document(_document(result, report))
    else:
        _show(result, report)
    return 0 if result.is_whole and (report is None or report.verdict == "whole") else 1


async def _rebuild(settings: Settings, wishes: Wishes) -> tuple[Result, Report | None]:
    async with _writing(settings) as analytics, reading(settings) as log, open_extents(settings) as extents:
        await prepare_database(analytics, settings)
        rebuild = Rebuild(log, extents, analytics, wishes.only, keep=wishes.keep)
        found = await rebuild.find()
        try:
            _agree(found, wishes)
            with _Bar(found.records) as bar:
                result = await rebuild.run(found, bar.tell)
        finally:
            await rebuild.leave()
        return result, await _verified(settings, found) if wishes.check else None


def _agree(found: Found, wishes: Wishes) -> None:
    """Raises ConfigFault or Abort where nobody wants it so."""
    _tell(found, wishes)
    if found.losses and not wishes.accept_loss:
        raise ConfigFault(
            "the log no longer has all that ClickHouse holds (above): --keep takes these records from ClickHouse "
            "itself, --accept-loss goes on without them; nothing was touched"
        )
    if not wishes.yes:
        _ask()


@contextlib.asynccontextmanager
async def _writing(settings: Settings) -> AsyncIterator[Analytics]:
    """ClickHouse; where it is embedded and nobody owns it now, this process does meanwhile."""
    from tidegate.analytics.chdb_server import AnalyticsOwned, EmbeddedEngine

    async with contextlib.AsyncExitStack() as stack:
        if settings.analytics == "chdb":
            with contextlib.suppress(AnalyticsOwned):
                engine = await stack.enter_async_context(EmbeddedEngine(settings.data_dir))
                yield engine.analytics
                return
        yield await stack.enter_async_context(reaching(settings, "writer"))


async def _verified(settings: Settings, found: Found) -> Report | None:
    """None where no audit key is known: nothing is sealed here. A loss that was accepted excuses what it took."""
    try:
        keys = public_keys(settings, (), None)
    except ConfigFault:
        return None
    accepted_us = max((loss.to_us + 1 for loss in found.losses), default=0)
    return await verify(settings, 0, _now_us(), (), keys, None, None, expired_before_us=accepted_us)


def _now_us() -> int:
    import time

    return time.time_ns() // 1000


def _tell(found: Found, wishes: Wishes) -> None:
    """On stderr: stdout holds the answer alone."""
    begun = sum(found.positions.values()) > 0
    typer.echo(f"{'Going on: ' if begun else ''}{found.records:,} records to read from the log.", err=True)
    if found.leftover:
        typer.echo(
            f"An earlier rebuild left tables in {BESIDE} that cannot be continued ({found.leftover}): they are "
            "cleared.",
            err=True,
        )
    for loss in found.losses[:SHOWN_MAX]:
        typer.echo(_told_loss(loss), err=True)
    if len(found.losses) > SHOWN_MAX:
        typer.echo(f"… and {len(found.losses) - SHOWN_MAX} more partitions", err=True)
    if found.losses:
        typer.echo(f"In all {sum(loss.rows for loss in found.losses):,} records would be gone.", err=True)


def _told_loss(loss: Loss) -> str:
    return (
        f"{loss.at.topic}/{loss.at.partition}: ClickHouse holds {loss.rows:,} records from "
        f"{shown_time(loss.from_us)} to {shown_time(loss.to_us)} that the log no longer has; it begins at offset "
        f"{loss.log_begins}"
    )


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigFault("nobody can be asked here: give --yes to rebuild; nothing was touched")
    typer.confirm("Rebuild ClickHouse from the log?", abort=True, err=True)


class _Bar:
    """On stderr; plain where that is no terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task(WORDS["building"], total=total)
        self._total = total
        self._done = 0

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, phase: Phase, more: int) -> None:
        self._done += more
        total = max(self._total, self._done)
        self._progress.update(self._task, advance=more, total=total, description=WORDS.get(phase, phase))


def _document(result: Result, report: Report | None) -> dict[str, Any]:
    return {
        "records": result.records,
        "unreadable": result.unreadable,
        "tables": result.tables,
        "whole": result.is_whole,
        "partitions": [
            {"topic": one.at.topic, "partition": one.at.partition} | _counts(one._asdict()) for one in result.compared
        ],
        "verdict": None if report is None else report.verdict,
        "verified": None if report is None else report.records,
    }


def _counts(fields: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in fields.items() if name != "at"}


def _show(result: Result, report: Report | None) -> None:
    for one in result.compared:
        wrong = f"[bold red]{one.missing:,} missing, {one.strange:,} that the log does not have[/]"
        say(
            f"{plain(one.at.topic)}/{one.at.partition}: {one.records:,} records on the log, {one.unreadable:,} of them "
            f"unreadable, {one.repeated:,} again; {one.rows:,} rows"
            + (f"; {wrong}" if one.missing or one.strange else "")
        )
    say("[green]What the log says is what ClickHouse holds.[/]" if result.is_whole else "[bold red]Not whole.[/]")
    if report is None:
        say("Not verified against roots.")
    elif report.verdict == "whole":
        say(f"[green]Whole[/]: {report.records:,} records are what was sealed, under {report.roots:,} roots.")
    else:
        say(f"[bold red]{report.verdict}[/]: `tidegate verify` names what is wrong.")
