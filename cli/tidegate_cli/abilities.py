"""The work of `tidegate can`: what somebody could call through an agent, now or at a moment, and why not the rest.

Decided by the bundle that ruled then, or by the canary where it ruled them, over the tools, labels and quarantines of
then, from the log. The person's groups, and whether it is a person or a service account, are those of the latest
recorded call before, unless they are given.
"""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from tidegate.errors import AnalyticsUnavailable, CallerFault
from tidegate.events import Role
from tidegate.ids import now_us
from tidegate.log.port import EventLog
from tidegate.policy.bundle import Bundle
from tidegate.policy.history import HISTORIES, Can, World, what_can_be_called
from tidegate.settings import Settings
from tidegate_cli.canaries import Member, ruled
from tidegate_cli.options import live_settings
from tidegate_cli.output import console, plain, print_document, say
from tidegate_cli.reaching import reaching
from tidegate_cli.reading import reading, records
from tidegate_cli.released import bundle_bytes
from tidegate_cli.subjects import SUBJECT_ID, subject_named

_STYLES: Final = {"allow": "green", "by-arguments": "yellow", "ask": "cyan", "deny": "dim"}
_WORDS: Final = {"allow": "yes", "by-arguments": "some calls", "ask": "asks first", "deny": "no"}
_ASKING: Final = {"none": "", "some": ", some ask first", "all": ", asks first"}  # of some calls
_RULES_SHOWN_MAX: Final = 6
_RINGS_TOLD: Final = 5
RING: Final = "main"
_LATEST: Final = (
    "SELECT subject_id, issuer, subject, groups, toUnixTimestamp64Micro(requested_at), principal_kind "
    "FROM tidegate.calls WHERE tenant = {tenant:String} "
    "AND requested_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC') "
    "AND (subject_id = {name:String} OR concat(issuer, '|', subject) = {name:String}) "
    "ORDER BY requested_at DESC LIMIT 1"
)

Kind = Literal["user", "service"]


class Who(msgspec.Struct, frozen=True):
    """The person and agent as the rules see them. `groups_of_us`: of the call whose groups these are; 0: given. Without
    `subject_id` quarantines of the person are not known.
    """

    user: str
    agent: str
    groups: tuple[str, ...]
    subject_id: str = ""
    groups_of_us: int = 0
    kind: Kind = "user"
    is_kind_known: bool = True  # False: nobody said, and no call shows it


class Abilities(msgspec.Struct, frozen=True):
    """`release` 0: nothing ruled, so nothing could be called. `note`: of a canary that did not decide, and might for
    the same person at another edge, or for another share of people. `assumed`: what nobody said, in sentences.
    """

    at_us: int
    who: Who
    ring: str
    release: int
    bundle: str
    can: list[Can]
    role: Role = "ruling"
    note: str = ""
    assumed: tuple[str, ...] = ()


class Where(NamedTuple):
    """The edge that is meant. `ring` "": nobody said."""

    ring: str
    region: str = ""
    labels: Mapping[str, str] = {}


def show_abilities(
    user: str,
    agent: str,
    groups: tuple[str, ...],
    at_us: int,
    server: str,
    where: Where,
    config: Path,
    as_json: bool,
    kind: Kind | None = None,
) -> None:
    """`user` "": of nobody in particular, in these groups. `kind` None: what the latest recorded call says. Raises
    Fault.
    """
    settings = live_settings(config)
    meant = _meant(settings, user) if user else ""
    found = asyncio.run(_abilities(settings, user, meant, agent, groups, at_us or now_us(), where, kind))
    if server:
        found = msgspec.structs.replace(found, can=[one for one in found.can if one.server == server])
    if as_json:
        print_document(found)
    else:
        _show(found)


async def _abilities(
    settings: Settings,
    user: str,
    meant: str,
    agent: str,
    groups: tuple[str, ...],
    at_us: int,
    where: Where,
    kind: Kind | None,
) -> Abilities:
    nobody = Who("", agent, groups, kind=kind or "user", is_kind_known=kind is not None)
    who = await _who(settings, user, meant, agent, groups, at_us, kind) if user else nobody
    ring = where.ring or RING
    async with reading(settings) as log:
        world = World(settings.tenant, ring, at_us)
        async for record in records(log, HISTORIES, follow=False):
            if record is not None and record.value is not None:
                world.apply(record.value)
        member = Member(settings.tenant, who.subject_id, who.agent, who.groups)
        release, note = ruled(world, member, where.region, where.labels)
        assumed = tuple(_assumed(who, where, world.rings))
        if release is None:
            return Abilities(at_us, who, ring, 0, "", [], assumed=assumed)
        bundle = await _bundle(log, settings.tenant, release.digest)
    can = what_can_be_called(world, bundle, who, who.subject_id)
    return Abilities(at_us, who, ring, release.number, release.digest, can, release.role, note, assumed)


def _assumed(who: Who, where: Where, rings: set[str]) -> Iterator[str]:
    """What nobody said, and how to say it."""
    if not where.ring:
        others = plain(", ".join(sorted(rings - {RING})[:_RINGS_TOLD]))
        yield f"ring {RING}" + (f"; --ring asks for another ({others})" if others else "")
    if not who.user:
        groups = f"in {plain(', '.join(who.groups))} alone" if who.groups else "in no group; --groups says of which"
        yield f"somebody whom no rule names, {groups}; --user says who"
    elif not who.is_kind_known:
        yield "a person: no recorded call shows what it is; of a service account say --service"
    if not who.agent:
        yield "an agent that no rule names; --agent says which"


async def _bundle(log: EventLog, tenant: str, digest: str) -> Bundle:
    canonical = await bundle_bytes(log, tenant, digest)
    if canonical is None:
        raise CallerFault(f"the log does not hold the bundle {digest[:12]} that ruled then", code="bundle-missing")
    return Bundle.from_bytes(canonical)


def _meant(settings: Settings, user: str) -> str:
    """The one subject whom the name means; the name itself where no record tells. Raises CallerFault where it is
    several people's.
    """
    try:
        return subject_named(settings, user)
    except CallerFault as fault:
        if fault.code == "subject-ambiguous":
            raise
    except AnalyticsUnavailable:
        return user  # `_latest` knows whether it is needed
    return user


async def _who(
    settings: Settings, user: str, meant: str, agent: str, groups: tuple[str, ...], at_us: int, kind: Kind | None = None
) -> Who:
    """As the latest recorded call before shows the person; with groups given, no record is needed. Raises CallerFault
    where only a subject id is known of them: rules name people by their subject.
    """
    is_id = SUBJECT_ID.fullmatch(user) is not None
    row = await _latest(settings, user, meant, at_us, needed=is_id or not groups)
    if row is not None and not row[2]:
        raise CallerFault(
            f"the latest call of {user} before {_time(at_us)} no longer shows whose it is: that part is erased, or "
            "sealed under a key that is not here; give the subject with --user, as the tokens say, and --groups",
            code="subject-erased",
        )
    if row is None:
        prefixes = {issuer.user_prefix for issuer in settings.identity.issuers}
        prefix = prefixes.pop() if len(prefixes) == 1 else ""
        known_id = meant if SUBJECT_ID.fullmatch(meant) else ""
        name = prefix + user.rpartition("|")[2]
        return Who(name, agent, groups, known_id, kind=kind or "user", is_kind_known=kind is not None)
    subject_id, issuer, subject, seen, seen_us, recorded = row
    prefix = next((one.user_prefix for one in settings.identity.issuers if one.issuer == issuer), "")
    known = tuple(str(group) for group in seen)
    since_us = 0 if groups else int(seen_us)
    meant_kind: Kind = kind or ("service" if recorded == "service" else "user")
    return Who(prefix + str(subject), agent, groups or known, str(subject_id), since_us, meant_kind)


async def _latest(settings: Settings, user: str, meant: str, at_us: int, *, needed: bool) -> tuple[Any, ...] | None:
    """Raises CallerFault where a record is needed and there is none."""
    values = {"tenant": settings.tenant, "name": meant, "until": at_us}
    try:
        async with reaching(settings) as analytics:
            rows = (await analytics.query(_LATEST, values)).rows
    except AnalyticsUnavailable:
        if needed:
            raise
        return None
    if not rows and needed:
        if SUBJECT_ID.fullmatch(user):
            raise CallerFault(
                f"no call of the subject id {user} is recorded before {_time(at_us)}, so nothing is known of that "
                "person; give the subject with --user, as the tokens say, and --groups",
                code="subject-unknown",
            )
        raise CallerFault(
            f"no call of {user} is recorded before {_time(at_us)}, so their groups are not known; give them with "
            "--groups",
            code="subject-unknown",
        )
    return rows[0] if rows else None


def _show(found: Abilities) -> None:
    who = found.who
    since = f" [dim](as of {_time(who.groups_of_us)})[/]" if who.groups_of_us else ""
    groups = plain(", ".join(who.groups)) or "none"
    agent = f" through {plain(who.agent)}" if who.agent else ""
    kind = "the service account " if who.kind == "service" else ""
    say(f"{kind}[bold]{plain(who.user) or 'somebody'}[/]{agent}, groups {groups}{since}, at {_time(found.at_us)}")
    for told in found.assumed:
        say(f"[yellow]assumed[/]  {told}")  # its names are made plain
    if who.user and not who.subject_id:
        say("[yellow]whether the person is in quarantine is not known[/]: no recorded call shows their subject id")
    if not found.release:
        say(f"[yellow]nothing[/]: no release ruled the ring '{plain(found.ring)}' then")
        return
    role = f"{found.role} " if found.role != "ruling" else ""
    say(f"{role}release {found.release} of ring {plain(found.ring)}, bundle {found.bundle[:12]}")
    if found.note:
        say(f"[yellow]{found.note}[/]")  # its names are made plain
    say("")
    from rich.table import Table

    table = Table("", "may be called", "labels", "why", box=None, header_style="bold", pad_edge=False)
    order = list(_WORDS)
    for one in sorted(found.can, key=lambda can: (order.index(can.answer), can.server, can.action)):
        style = _STYLES[one.answer]
        word = _WORDS[one.answer] + (_ASKING[one.asks] if one.answer == "by-arguments" else "")
        table.add_row(
            f"[{style}]{word}[/]", plain(f"{one.server}/{one.action}"), plain(" ".join(one.labels)), _why(one)
        )
    console().print(table)
    if not found.can:
        say("[yellow]no tool was known then[/]")


def _why(one: Can) -> str:
    """By which rules, or for which reason; and in words what that does not say."""
    rules = list(one.rules[:_RULES_SHOWN_MAX])
    if len(one.rules) > _RULES_SHOWN_MAX:
        rules.append(f"{len(one.rules) - _RULES_SHOWN_MAX} more rules")
    why = plain(", ".join(rules) or one.reason)
    is_told = one.answer != "allow" and (one.rules or one.reason == "definition-held")
    return f"{why}  [dim]{plain(one.message)}[/]" if is_told and one.message else why


def _time(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"
