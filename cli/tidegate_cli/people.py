"""People as people know them: the logins of subject ids that a command shows, from the recorded calls.

Best effort and bounded: an id whose login cannot be had stays as it is, and no command fails for it. What goes out as
JSON keeps the ids. Counterpart: `subjects.py`, which goes the other way.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from tidegate.errors import Fault
from tidegate.ids import subject_id
from tidegate.settings import Settings
from tidegate_cli.management import OWN_NAME
from tidegate_cli.matching import Seen
from tidegate_cli.reaching import reaching
from tidegate_cli.subjects import SUBJECT_ID

SHORT: Final = 12
_IDS_MAX: Final = 500
_KNOWN_MAX: Final = 10_000
_WAIT_S: Final = 3.0
_LOGINS: Final = (
    "SELECT subject_id, argMax(if(login != '', login, subject), requested_at) FROM tidegate.calls "
    "WHERE tenant = {tenant:String} AND subject_id IN {ids:Array(String)} AND (login != '' OR subject != '') "
    "GROUP BY subject_id LIMIT 500"
)
_MENTIONED: Final = re.compile(r"\b[0-9a-f]{32}\b")


def logins(settings: Settings, ids: Iterable[str]) -> dict[str, str]:
    """Of those ids whose logins can be had here."""
    wanted = sorted({one for one in ids if SUBJECT_ID.fullmatch(one)})[:_IDS_MAX]
    return asyncio.run(logins_soon(settings, wanted)) if wanted else {}


async def logins_soon(settings: Settings, wanted: list[str]) -> dict[str, str]:
    """The same inside a loop, of subject ids."""
    found = own(settings)
    if missing := [one for one in wanted if one not in found]:
        try:
            async with asyncio.timeout(_WAIT_S), reaching(settings) as analytics:
                rows = (await analytics.query(_LOGINS, {"tenant": settings.tenant, "ids": missing})).rows
            found |= {str(row[0]): str(row[1]) for row in rows}
        except (Fault, TimeoutError):
            pass  # ids are shown as they are
    return found


def own(settings: Settings) -> dict[str, str]:
    """Whom the commands' own tokens name: no recorded call does."""
    from tidegate.local_issuer import issuer_name
    from tidegate.secrets import load_secrets, secrets_path

    try:
        if not settings.local_issuer or not (path := secrets_path(settings)).exists():
            return {}
        pepper = load_secrets(path).pepper(settings.tenant)
    except (Fault, OSError):
        return {}
    return {str(subject_id(pepper, issuer_name(settings.url), OWN_NAME)): OWN_NAME}


def person(names: Mapping[str, str], who: str, short: int = SHORT) -> str:
    """The login, else the beginning of the id; what is no id stays."""
    return names.get(who) or (who[:short] if SUBJECT_ID.fullmatch(who) else who)


def with_logins(settings: Settings, sentence: str) -> str:
    """A sentence of the service, in which people go by their ids."""
    names = logins(settings, _MENTIONED.findall(sentence))
    return _MENTIONED.sub(lambda one: person(names, one[0], short=32), sentence)


class Known:
    """Logins of the people whose events were seen; bounded."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    def note(self, seen: Seen) -> None:
        login = seen.sealed.get("login") or seen.sealed.get("subject")
        if login and len(self._names) < _KNOWN_MAX:
            self._names[seen.text("subject_id")] = str(login)

    def named(self, seen: Seen) -> Seen:
        """An event for people: who did it, and whom it stops, by their logins."""
        told: dict[str, Any] = {}
        for field in ("actor", "value") if seen.text("scope") == "subject" else ("actor",):
            if (name := self._names.get(seen.text(field))) is not None:
                told[field] = name
        return msgspec.structs.replace(seen, fields=seen.fields | told) if told else seen
