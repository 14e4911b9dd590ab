"""Whom a command means: a subject id, 'issuer|subject', or a login that recorded calls show."""

import asyncio
import re
from typing import Any, Final

from tidegate.errors import CallerFault
from tidegate.settings import Settings
from tidegate_cli.reaching import reaching

SUBJECT_ID: Final = re.compile(r"[0-9a-f]{32}")
ISSUERS_SHOWN_MAX: Final = 3
_WHO: Final = (
    "SELECT subject_id, max(issuer), count() FROM tidegate.calls WHERE tenant = {tenant:String} "
    "AND (login = {name:String} OR subject = {name:String}) GROUP BY subject_id ORDER BY subject_id LIMIT 20"
)


def subject_named(settings: Settings, subject: str) -> str:
    """A login's subject id; what names a subject already stays. Raises CallerFault where it is nobody's or several'."""
    if SUBJECT_ID.fullmatch(subject) or "|" in subject:
        return subject
    rows = asyncio.run(_people(settings, subject))
    if not rows:
        raise CallerFault(
            f"no recorded call shows the login '{subject:.200}': it may be erased already, or misspelt, or never have "
            f"called; name the person as ISSUER|SUBJECT, the `iss` and `sub` of their tokens{_for_example(settings)}, "
            "or give the subject id",
            code="subject-unknown",
        )
    if len(rows) > 1:
        several = "; ".join(f"{row[0]} ({row[1] or 'issuer not kept'}, {row[2]} calls)" for row in rows)
        raise CallerFault(
            f"'{subject:.200}' is the login of several subjects: {several}; give one of these ids",
            code="subject-ambiguous",
        )
    return str(rows[0][0])


def _for_example(settings: Settings) -> str:
    """The beginnings that are possible here."""
    from tidegate.local_issuer import issuer_name

    issuers = [one.issuer for one in settings.identity.issuers][:ISSUERS_SHOWN_MAX]
    if settings.local_issuer:
        issuers.append(issuer_name(settings.url))
    return f" (here {' or '.join(repr(f'{issuer}|…') for issuer in issuers)})" if issuers else ""


async def _people(settings: Settings, name: str) -> list[tuple[Any, ...]]:
    async with reaching(settings) as analytics:
        return list((await analytics.query(_WHO, {"tenant": settings.tenant, "name": name})).rows)
