"""The circumstances of a call as Cedar sees them: `context.now`, `time`, `network`, `taint` and `protocol`. Pure.

Counterparts: `facts.py` holds them, `engine.py` asks for those that rules look at. Rules: what is not known is absent,
so that a rule which looks at it errs, and denies; never a value that was made up.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

import msgspec

from tidegate.policy.facts import Facts
from tidegate.policy.rules import Need

CIRCUMSTANCES: Final = ("now", "time", "network", "taint", "protocol")
MAY_BE_ABSENT: Final = frozenset(CIRCUMSTANCES) - {"taint"}  # an untainted session has an empty set

_encode: Final = msgspec.json.Encoder().encode


def looked_at(needs: Need) -> tuple[str, ...]:
    """The circumstances that a need of `context` names."""
    return tuple(name for name in CIRCUMSTANCES if needs.whole or name in needs.parts)


def asked_after(needs: Need) -> tuple[str, ...]:
    """Those of which rules ask whether they are there (`context has network`)."""
    return tuple(
        name for name in CIRCUMSTANCES if name in MAY_BE_ABSENT and name in needs.parts and needs.parts[name].tested
    )


def encode_facts(names: Iterable[str], facts: Facts, zone: tzinfo) -> str:
    """Members of Cedar's JSON context, each after a comma; those that are not known are left out."""
    return "".join(f',"{name}":{text}' for name in names if (text := _encoded(name, facts, zone)))


def unknown_facts(names: Iterable[str]) -> str:
    """The same for values that are not known yet: Cedar's partial evaluation leaves rules over them open."""
    return "".join(f',"{name}":{{"__extn":{{"fn":"unknown","arg":"{name}"}}}}' for name in names)


def _encoded(name: str, facts: Facts, zone: tzinfo) -> str:
    match name:
        case "now":
            return _now(facts.now_us)
        case "time":
            return _time(facts.now_us, zone)
        case "network":
            return _network(facts.address)
        case "taint":
            return _json(sorted(facts.taint))
        case _:
            return _json(facts.protocol) if facts.protocol else ""


def _now(now_us: int) -> str:
    """Cedar's datetimes have milliseconds."""
    if (at := _moment(now_us, UTC)) is None:
        return ""
    stamp = at.replace(tzinfo=None).isoformat(timespec="milliseconds")
    return f'{{"__extn":{{"fn":"datetime","arg":"{stamp}Z"}}}}'


def _time(now_us: int, zone: tzinfo) -> str:
    if (at := _moment(now_us, zone)) is None:
        return ""
    date = at.date().isoformat()
    return f'{{"hour":{at.hour},"minute":{at.minute},"weekday":{at.isoweekday()},"date":"{date}"}}'


def _moment(now_us: int, zone: tzinfo) -> datetime | None:
    if now_us <= 0:
        return None
    try:
        return datetime.fromtimestamp(now_us // 1000 / 1000, zone)
    except (ValueError, OverflowError, OSError):
        return None


@lru_cache(maxsize=4096)
def _network(address: str) -> str:
    """An IPv4 address in IPv6's clothes is the IPv4 address; the zone of a link-local one is of this machine only."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    plain = found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
    return f'{{"ip":{{"__extn":{{"fn":"ip","arg":"{plain}"}}}}}}'


def _json(value: object) -> str:
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:  # half a character: no text that a rule could be about
        return ""
