"""The work of `tidegate erase`: who is meant, what would go, the deed by the policy service, and what is left.

Counterpart: the policy service's `erasure.py`. ClickHouse is asked for logins and for what is left; without it a
subject id or issuer|subject still works.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from tidegate.analytics.port import Analytics
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, OurFault
from tidegate.settings import Settings
from tidegate_cli.management import open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.reaching import reaching
from tidegate_cli.subjects import subject_named

GONE_WITHIN_S: Final = 60.0
POLL_S: Final = 0.2

_KEYS: Final = (
    "SELECT count() FROM tidegate.subject_keys WHERE tenant = {tenant:String} AND subject_id = {subject:String} "
    "AND created_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
)
_LEFT: Final = (
    "SELECT count(), countIf(login != '' OR subject != '' OR arguments != '' OR result != '' OR inputs != ''), "
    "uniqExact(session_id), toString(min(requested_at)), toString(max(requested_at)) FROM tidegate.calls "
    "WHERE tenant = {tenant:String} AND subject_id = {subject:String} "
    "AND requested_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
)
_FAR_US: Final = 4_000_000_000_000_000  # the year 2096: all


@dataclass(frozen=True)
class Left:
    """Of a subject's calls. `readable`: those that still show something personal."""

    calls: int
    readable: int
    sessions: int
    first: str
    last: str


def erase_subject(
    config: Path, subject: str, reason: str, *, dry_run: bool, yes: bool, token: str, as_json: bool
) -> int:
    """The exit code: 1 where something personal is still readable. Raises Fault."""
    settings = live_settings(config)
    named = subject_named(settings, subject)
    management = open_management(settings, token)

    def post(*, dry: bool) -> dict[str, Any]:
        body = msgspec.json.encode({"subject": named, "reason": reason, "dry_run": dry})
        return dict(management.post("/erasures", body))

    planned = post(dry=True)
    subject_id = str(planned["subject_id"])
    before = _left(settings, subject_id, _FAR_US)
    if not as_json:
        _say_planned(planned, before)
    if dry_run:
        if as_json:
            print_document({"dry_run": True, **planned, "calls": asdict(before) if before else None})
        return 0
    if not yes:
        typer.confirm("Destroy them? Nobody can undo this.", abort=True, err=True)
    done = post(dry=False)
    until_us = int(done["erased_us"])
    if before is not None:
        asyncio.run(_wait_gone(settings, subject_id, until_us))
    left = _left(settings, subject_id, until_us) if before is not None else None
    if as_json:
        print_document({**done, "left": asdict(left) if left else None})
    else:
        _say_done(done, left)
    return int(left is not None and left.readable > 0)


def _left(settings: Settings, subject_id: str, until_us: int) -> Left | None:
    """None where ClickHouse cannot be asked: the keys are destroyed all the same."""
    try:
        rows = asyncio.run(
            _asked(settings, lambda analytics: _rows(analytics, _LEFT, settings, subject=subject_id, until=until_us))
        )
    except (AnalyticsUnavailable, AnalyticsRefused) as fault:
        typer.secho(f"ClickHouse was not asked: {fault.sentence}", fg=typer.colors.YELLOW, err=True)
        return None
    calls, readable, sessions, first, last = rows[0]
    return Left(int(calls), int(readable), int(sessions), str(first) if calls else "", str(last) if calls else "")


async def _wait_gone(settings: Settings, subject_id: str, until_us: int) -> None:
    """Until ClickHouse holds no key of then. Raises OurFault at the deadline."""
    async with reaching(settings) as analytics:
        try:
            async with asyncio.timeout(GONE_WITHIN_S):
                while (await _rows(analytics, _KEYS, settings, subject=subject_id, until=until_us))[0][0]:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise OurFault(
                f"the keys are off the log, and ClickHouse still has some after {GONE_WITHIN_S:.0f} s: is the audit "
                "consumer running? It removes them when it reads on; ask again then",
                code="not-gone-yet",
            ) from None


async def _asked(settings: Settings, ask: Callable[[Analytics], Any]) -> list[tuple[Any, ...]]:
    async with reaching(settings) as analytics:
        return list(await ask(analytics))


async def _rows(analytics: Analytics, sql: str, settings: Settings, **values: Any) -> list[tuple[Any, ...]]:
    return list((await analytics.query(sql, {"tenant": settings.tenant, **values})).rows)


def _say_planned(planned: dict[str, Any], before: Left | None) -> None:
    say(f"[bold]{plain(planned['subject_id'])}[/]")
    keys = planned["keys"]
    say(f"  {keys} key{'s' if keys != 1 else ''} on the log, and what edges have not published yet")
    if before is not None and before.calls:
        say(
            f"  {before.calls:,} calls from {plain(before.first)} to {plain(before.last)}, {before.readable:,} readable"
        )
    elif before is not None:
        say("  no call in ClickHouse")


def _say_done(done: dict[str, Any], left: Left | None) -> None:
    keys = done["keys"]
    say(f"[green]erased[/]  {keys} key{'s' if keys != 1 else ''} destroyed, recorded as {plain(done['erasure_id'])}")
    if left is None:
        return
    say(
        f"  left: the pseudonym {plain(done['subject_id'])}, {left.calls:,} calls in {left.sessions:,} sessions with "
        "their times, tools, decisions, sizes and digests"
    )
    if left.readable:
        say(
            f"  [yellow]{left.readable:,} calls were recorded in clear, before sealing was on: they stay readable "
            "until they expire[/]"
        )
