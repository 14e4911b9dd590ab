"""The work of `tidegate bundle replay`: recorded calls decided again by a candidate, and what would have changed."""

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from tidegate.errors import ConfigFault
from tidegate.policy.bundle import Bundle
from tidegate.policy.replaying import Replayer
from tidegate.policy.tally import Change, Replayed, Tally
from tidegate.settings import Settings
from tidegate_cli.bundle_comparing import bundle_named
from tidegate_cli.defining import definitions
from tidegate_cli.opening_sealed import opener
from tidegate_cli.options import live_settings
from tidegate_cli.output import console, plain, print_document, say
from tidegate_cli.past_calls import Page, Span, from_clickhouse, from_log
from tidegate_cli.reaching import reaching
from tidegate_cli.reading import reading

Store = Literal["clickhouse", "log"]
SHOWN_MAX = 40
PEOPLE_SHOWN = 3
GARBAGE_AFTER = 100_000  # things more than before: about two pages of calls
_TITLES = {
    "newly-allowed": "[yellow]newly allowed[/]",
    "newly-asked": "[cyan]newly asked[/]",
    "newly-denied": "[red]newly denied[/]",
}


def show_replay(
    candidate: str, ring: str, span: Span, store: Store, config: Path, token: str, fail_on_change: bool, as_json: bool
) -> int:
    """The exit code: 1 where something would change and that was to fail. Raises Fault."""
    settings = live_settings(config)
    span = msgspec.structs.replace(span, tenant=settings.tenant).settled()
    if span.since_us >= span.until_us:
        raise ConfigFault("--until is not after --since: give an older --since, or a younger --until")
    found, unreadable = asyncio.run(_replay(settings, span, store, bundle_named(candidate, ring, config, token)))
    if as_json:
        print_document(found)
    else:
        _show(found, span, unreadable)
    return int(fail_on_change and found.changed > 0)


async def _replay(settings: Settings, span: Span, store: Store, candidate: Bundle) -> tuple[Replayed, int]:
    """And how many records could not be read."""
    unreadable = 0
    async with reading(settings) as log:
        declared = await definitions(log, span.tenant)
    tally = Tally(Replayer(candidate, declared))
    async with _pages(settings, span, store) as pages:
        with _progress() as told, seldom_collecting():
            async for page in pages:
                unreadable += page.unreadable
                tally.add_all(page.calls)
                told(tally, page.done)
    return tally.replayed(), unreadable


@contextlib.contextmanager
def seldom_collecting() -> Iterator[None]:
    """Python's search for garbage leaves alone what is there now, rules and entities above all, and comes seldom: a
    page holds tens of thousands of things, all of them in use until it is done.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextlib.asynccontextmanager
async def _pages(settings: Settings, span: Span, store: Store) -> AsyncIterator[AsyncIterator[Page]]:
    async with reading(settings) as log:
        opened = await opener(settings, log)
        if store == "log":
            yield from_log(log, span, opened)
            return
        async with reaching(settings) as analytics:
            yield from_clickhouse(analytics, span, opened)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Tally, float], None]]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _tally, _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 calls", total=1.0)
        yield lambda tally, done: bar.update(
            task, completed=done, description=f"{tally.calls:,} calls, {tally.changed:,} would change"
        )


def _show(found: Replayed, span: Span, unreadable: int) -> None:
    for change in found.changes[:SHOWN_MAX]:
        _show_change(change)
    if len(found.changes) > SHOWN_MAX:
        say(f"and {len(found.changes) - SHOWN_MAX} more groups; --json lists all")
    if found.changes:
        _show_sums(found)
    when = f"{_day(span.since_us)} to {_day(span.until_us)} UTC"
    verdict = f"{found.changed:,} would change" if found.changed else "[green]nothing would change[/]"
    say(f"[bold]{found.calls:,} calls[/] of {when}, by {plain(found.bundle[:12])}: {verdict}, {found.same:,} the same")
    for count, words in (
        (found.other_rules, "of the same are decided by other rules"),
        (found.elsewhere, "stopped by something else than rules (inspection, quarantine, a limit, unknown names)"),
        (found.erased, "are of erased people or of people whose key is not here, and cannot be decided again"),
        (unreadable, "records could not be read: `tidegate dead-letters list`"),
    ):
        if count:
            say(f"[dim]{count:>9,}[/]  {words}")
    if found.not_kept:
        tools = ", ".join(f"{plain(tool)} ({count:,})" for tool, count in found.not_kept_tools)
        say(
            f"[yellow]{found.not_kept:>9,}[/]  depend on arguments or circumstances that were not kept: {tools}; "
            "`capture: full` keeps arguments (masked ones are not those that were decided on); an address or a taint "
            "is kept where the bundle of then looked at it"
        )
    if not found.calls:
        say("[yellow]no call was recorded then[/]; `tidegate log tail` shows the latest")


def _show_change(change: Change) -> None:
    rules = ", ".join(change.rules_after) or f"no rule; before by {', '.join(change.rules_before) or 'none'}"
    calls = f"{change.calls:,} call{'' if change.calls == 1 else 's'}"
    say(f"{_TITLES[change.kind]}  {plain(f'{change.server}/{change.tool}')}  {calls}, by {plain(rules)}")
    people = ", ".join(f"{person} {count:,}×" for person, count in change.people[:PEOPLE_SHOWN])
    more = change.people_total - min(PEOPLE_SHOWN, len(change.people))
    say(f"    {change.before} → {change.after} for {plain(people)}{f' and {more} more' if more > 0 else ''}")
    for example in change.examples[:2]:
        agent = f" through {plain(example.agent)}" if example.agent else ""
        say(f"    [dim]{_time(example.time_us)}  {plain(example.person)}{agent}  tidegate why {example.decision_id}[/]")


def _show_sums(found: Replayed) -> None:
    from rich.table import Table

    table = Table("", "calls", "tools", "people", box=None, header_style="bold", pad_edge=False)
    for kind, title in _TITLES.items():
        changes = [change for change in found.changes if change.kind == kind]
        people = {person for change in changes for person, _ in change.people}
        tools = {(change.server, change.tool) for change in changes}
        table.add_row(title, f"{sum(change.calls for change in changes):,}", str(len(tools)), str(len(people)))
    console().print(table)


def _day(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M}"


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).astimezone().isoformat(timespec="seconds")
