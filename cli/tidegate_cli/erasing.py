"""The work of `tidegate erase`: who is meant, what would go, the deed by the policy service, and what is left.

Counterpart: the policy service's `erasure.py`. ClickHouse is asked for logins and for what is left; without it a
subject id or issuer|subject still works.
"""

import asyncio
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from tidegate.analytics.port import Analytics
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, ConfigFault, OurFault
from tidegate.settings import Settings
from tidegate_cli.management import open_management
from tidegate_cli.options import live_settings
from tidegate_cli.output import plain, print_document, say
from tidegate_cli.reaching import reaching
from tidegate_cli.subjects import SUBJECT_ID, subject_named

GONE_WITHIN_S: Final = 60.0
POLL_S: Final = 0.2

_KEYS: Final = (
    "SELECT count() FROM tidegate.subject_keys WHERE tenant = {tenant:String} AND subject_id = {subject:String} "
    "AND created_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
)
_LEFT: Final = (
    "SELECT count(), countIf(login != '' OR subject != '' OR issuer != '' OR claimed_client != '' OR address != '' "
    "OR arguments != '' OR result != '' OR inputs != ''), "
    "uniqExact(session_id), toString(min(requested_at)), toString(max(requested_at)), "
    "arrayFilter(name -> name != '', arrayConcat(groupUniqArray(100)(login), groupUniqArray(100)(subject))) "
    "FROM tidegate.calls WHERE tenant = {tenant:String} AND subject_id = {subject:String} "
    "AND requested_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
)
# Each event once: a redelivery may stand there twice. Without FINAL, raw is read of the subject's own events alone.
_PLAIN: Final = (
    "SELECT uniqExact(event_id) FROM (SELECT event_id FROM tidegate.events_raw "
    "PREWHERE tenant = {tenant:String} AND subject_id = {subject:String} "
    "WHERE time <= fromUnixTimestamp64Micro({until:Int64}, 'UTC') AND JSONExtractString(raw, 'sealed', 'kid') = '' "
    "AND JSONExtractRaw(raw, 'sealed') NOT IN ('', '{}') LIMIT {most:UInt64})"
)
PLAIN_MAX: Final = 1_000_000  # that are counted
_FAR_US: Final = 4_000_000_000_000_000  # the year 2096: all


@dataclass(frozen=True)
class Left:
    """Of a subject's calls. `readable`: those that still show something personal; `plain_events`: events of any kind
    with a personal part in clear. `names`: logins and subjects that the calls show, which are never printed.
    """

    calls: int
    readable: int
    sessions: int
    first: str
    last: str
    plain_events: int = 0
    names: tuple[str, ...] = ()


def erase_subject(
    config: Path, subject: str, reason: str, *, dry_run: bool, yes: bool, token: str, as_json: bool
) -> int:
    """The exit code: 1 where something personal is still readable. Raises Fault."""
    if not reason.strip() and not dry_run:
        raise ConfigFault('why? give --reason "request 2031", or so; it is recorded for good: name nobody in it')
    settings = live_settings(config)
    if not SUBJECT_ID.fullmatch(subject):
        _check_names_nobody(reason, (subject, subject.rpartition("|")[2]))
    named = subject_named(settings, subject)
    management = open_management(settings, token)

    def post(*, dry: bool) -> dict[str, Any]:
        body = msgspec.json.encode({"subject": named, "reason": reason, "dry_run": dry})
        return dict(management.post("/erasures", body))

    planned = post(dry=True)
    subject_id = str(planned["subject_id"])
    before = _left(settings, subject_id, _FAR_US)
    if before is not None:
        _check_names_nobody(reason, before.names)
        if not (before.calls or planned["keys"]):
            _warn(f"nothing is known of the subject '{subject:.200}': no call and no key is recorded; is it misspelt?")
    if not as_json:
        _say_planned(planned, before)
    if dry_run:
        if as_json:
            print_document({"dry_run": True, **planned, "calls": _shown(before)})
        return 0
    if not yes:
        _ask()
    done = post(dry=False)
    until_us = int(done["erased_us"])
    if before is not None:
        asyncio.run(_wait_gone(settings, subject_id, until_us))
    left = _left(settings, subject_id, until_us) if before is not None else None
    if as_json:
        print_document({**done, "left": _shown(left)})
    else:
        _say_done(done, left)
    return int(left is not None and left.readable + left.plain_events > 0)


def _check_names_nobody(reason: str, names: Iterable[str]) -> None:
    """Raises ConfigFault where the sentence that stays for ever holds a name that is about to go."""
    for name in names:
        if name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", reason, re.IGNORECASE):
            raise ConfigFault(
                f"--reason names the person: '{name:.200}' would stay in the log for ever; give the number of the "
                "request instead. Nothing was destroyed"
            )


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigFault("nobody can be asked here: give --yes to erase; nothing was destroyed")
    typer.confirm("Destroy them? Nobody can undo this.", abort=True, err=True)


def _warn(sentence: str) -> None:
    typer.secho(sentence, fg=typer.colors.YELLOW, err=True)


def _shown(left: Left | None) -> dict[str, Any] | None:
    return {name: value for name, value in asdict(left).items() if name != "names"} if left else None


def _left(settings: Settings, subject_id: str, until_us: int) -> Left | None:
    """None where ClickHouse cannot be asked: the keys are destroyed all the same."""

    async def ask() -> Left:
        async with reaching(settings) as analytics:
            return await left_of(analytics, settings, subject_id, until_us)

    try:
        return asyncio.run(ask())
    except (AnalyticsUnavailable, AnalyticsRefused) as fault:
        _warn(f"ClickHouse was not asked: {fault.sentence}")
        return None


async def left_of(analytics: Analytics, settings: Settings, subject_id: str, until_us: int) -> Left:
    """What ClickHouse shows of the subject up to then. Raises AnalyticsUnavailable, AnalyticsRefused."""
    asked: dict[str, Any] = {"subject": subject_id, "until": until_us}
    ((calls, readable, sessions, first, last, names),) = await _rows(analytics, _LEFT, settings, **asked)
    ((plain_events,),) = await _rows(analytics, _PLAIN, settings, **asked, most=PLAIN_MAX)
    told = (str(first), str(last)) if calls else ("", "")
    return Left(int(calls), int(readable), int(sessions), *told, int(plain_events), tuple(map(str, names)))


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
    if left.readable or left.plain_events:
        say(
            f"  [yellow]{left.readable:,} calls, {left.plain_events:,} events: recorded in clear, before sealing was "
            "on. They stay readable until they expire[/]"
        )
