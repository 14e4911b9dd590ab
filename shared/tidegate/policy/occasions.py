"""The circumstances that two bundles are compared under: moments, addresses, taints and protocols around those that
rules compare with. Bounded; the same for the same bundles. Counterpart: `situations.py` does so for arguments.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from ipaddress import ip_address, ip_network
from typing import Any, Final

from tidegate.policy.facts import NO_FACTS, Facts
from tidegate.policy.moments import DAY, SOME_DAY

OCCASIONS_MAX: Final = 48
MOMENTS_MAX: Final = 40
_NOON: Final = datetime(2026, 11, 23, 12, 0)  # a Monday, in the zone of the bundle
_ELSEWHERE: Final = ("192.0.2.1", "198.51.100.1", "2001:db8::1")  # RFC 5737, RFC 3849: nobody's
_KINDS: Final[Mapping[str, str]] = {
    "isLoopback": "127.0.0.1",
    "isMulticast": "224.0.0.1",
    "isIpv4": "192.0.2.1",
    "isIpv6": "2001:db8::1",
}
Values = Mapping[tuple[str, ...], Sequence[Any]]
"""By path in the context, what rules compare it with; of `now` the moments to try."""


def occasions_of(values: Values, cases: Iterable[Facts], zone: tzinfo) -> tuple[list[Facts], bool]:
    """Those of the cases, and every combination; where those are too many, one circumstance at a time. And whether that
    is all of them. Where no rule looks at any, nothing is known.
    """
    moments, whole = _moments(values, zone)
    addresses = list(dict.fromkeys(_addresses(values)))
    taints = list(dict.fromkeys([(), *_taints(values.get(("taint",), ()))]))
    protocols = list(dict.fromkeys([*(text for text in values.get(("protocol",), ()) if isinstance(text, str)), ""]))
    axes: tuple[Sequence[Any], ...] = (moments, addresses, taints, protocols)
    combined = [*itertools.islice(itertools.product(*axes), OCCASIONS_MAX + 1)]
    if len(combined) > OCCASIONS_MAX:
        whole = False
        first = tuple(axis[0] for axis in axes)
        combined = [(*first[:place], value, *first[place + 1 :]) for place, axis in enumerate(axes) for value in axis]
    found = list(dict.fromkeys([*cases, *(Facts(*one) for one in combined)])) or [NO_FACTS]
    return found[:OCCASIONS_MAX], whole and len(found) <= OCCASIONS_MAX


def of_a_kind(op: str) -> str:
    """An address for which this test of Cedar's holds; "" where it is none of addresses."""
    return _KINDS.get(op, "")


def _moments(values: Values, zone: tzinfo) -> tuple[list[int], bool]:
    mentioned = [path for path in values if path[0] in ("now", "time")]
    if not mentioned:
        return [0], True
    hours = [None, *_whole(values.get(("time", "hour"), ()), 0, 23)]
    minutes = [None, *_whole(values.get(("time", "minute"), ()), 0, 59)]
    days = [None, *_days(values)]
    combined = [*itertools.islice(itertools.product(hours, minutes, days), MOMENTS_MAX + 1)]
    if len(combined) > MOMENTS_MAX:
        alone = [(hour, None, None) for hour in hours], [(None, minute, None) for minute in minutes]
        combined = [*alone[0], *alone[1], *((None, None, day) for day in days)]
    found = [_at(*one, zone) for one in combined]
    found += [shown for moment in values.get(("now",), ()) for shown in _on(moment, days)]
    absent = [0] if any(len(path) == 1 for path in mentioned) else []
    unique = list(dict.fromkeys([*found, *absent]))
    return unique[: 2 * MOMENTS_MAX], len(unique) <= 2 * MOMENTS_MAX


def _at(hour: int | None, minute: int | None, day: date | None, zone: tzinfo) -> int:
    at = _NOON if day is None else datetime.combine(day, _NOON.time())
    at = at.replace(hour=at.hour if hour is None else hour, minute=at.minute if minute is None else minute)
    return round(at.replace(tzinfo=zone).timestamp() * 1_000_000)


def _on(moment: int, days: Iterable[date | None]) -> Iterator[int]:
    """The moment itself; one of no day in particular on each day that rules speak of, too."""
    yield moment
    if abs(moment - SOME_DAY) <= DAY:
        yield from (moment + (day - _NOON.date()).days * DAY for day in days if day is not None)


def _days(values: Values) -> Iterator[date]:
    for number in _whole(values.get(("time", "weekday"), ()), 1, 7):
        yield (_NOON + timedelta(days=number - 1)).date()
    for text in values.get(("time", "date"), ()):
        try:
            yield date.fromisoformat(text)
        except (TypeError, ValueError):
            continue


def _whole(values: Iterable[Any], least: int, most: int) -> Iterator[int]:
    return (value for value in values if isinstance(value, int) and least <= value <= most)


def _addresses(values: Values) -> Iterator[str]:
    """One within each network, one in none of them, and none."""
    networks = []
    for text in values.get(("network", "ip"), ()):
        try:
            networks.append(ip_network(text, strict=False))
        except (TypeError, ValueError):
            continue
    for network in networks:
        yield str(network[min(1, network.num_addresses - 1)])
    if any(path[0] == "network" for path in values):
        yield from [text for text in _ELSEWHERE if not any(ip_address(text) in network for network in networks)][:1]
    yield ""


def _taints(values: Iterable[Any]) -> Iterator[tuple[str, ...]]:
    for value in values:
        listed = value if isinstance(value, list) else [value]
        if all(isinstance(label, str) for label in listed):
            yield tuple(sorted({str(label) for label in listed}))
