"""`limits.yaml`: how much of which tools may be used by whom, in what time; read and checked here, line by line.

Counterparts: `budgeting.py` says which limits a call meets, `grants.py` reads people and tools in the same words. The
language is taught in docs/limits.md. Rules: a slip is a problem with its line and what was meant; nothing is guessed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, TypeVar

import yaml

from tidegate.errors import Problem
from tidegate.policy.grants import ANY, Use, uses_of
from tidegate.policy.yaml_reading import (
    Wrong,
    check_version,
    composed,
    entry_id,
    line_of,
    mapping_of,
    names_of,
    scalar_of,
    sentence_of,
    sequence_of,
)

LIMITS: Final = "limits.yaml"
LIMITS_MAX: Final = 200
LIMITS_BYTES_MAX: Final = 256 * 1024
PRICES_MAX: Final = 200
MOST: Final = 10**15
RECORDS_MOST: Final = 1_000_000
PERIOD_S_MAX: Final = 31 * 86_400
MICROS: Final = 1_000_000

Per = Literal["tenant", "user", "agent", "server", "tool"]
Away = Literal["refuse", "allow", "local"]
Measured = Literal["calls", "daily-calls", "daily-bytes", "daily-records", "daily-cost", "concurrent"]
PER: Final[tuple[Per, ...]] = ("tenant", "user", "agent", "server", "tool")
AWAY: Final[tuple[Away, ...]] = ("refuse", "allow", "local")

T = TypeVar("T")

_RATE = re.compile(r"(\d{1,15}) ?/ ?(?:(\d{1,6}) )?(second|minute|hour|day)s?")
_PERIODS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_BYTES = re.compile(r"(\d{1,15}) ?(B|kB|MB|GB|TB|KiB|MiB|GiB)")
_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TOOL = re.compile(r"([a-z][a-z0-9-]{0,11})/(.{1,512})", re.DOTALL)
_STEP = re.compile(r"[^.\[\]]{1,128}(?:\[\])*|(?:\[\])+")
_KEYS = (
    "id",
    "team",
    "user",
    "service",
    "agent",
    "tools",
    "per",
    "calls",
    "burst",
    "daily",
    "concurrent",
    "away",
    "reason",
    "advice",
)
_DAILY = ("calls", "bytes", "records", "cost")


@dataclass(frozen=True)
class Measure:
    """One thing that a limit bounds. Of a rate `refill` come every `every_ms`, `most` is its burst."""

    of: Measured
    most: int  # calls, bytes, records, places, or millionths of the unit of prices
    refill: int = 0
    every_ms: int = 0


@dataclass(frozen=True)
class BudgetLimit:
    """One entry. Nobody named: everybody; no `uses`: all tools, prompts and resources."""

    id: str
    line: int
    teams: tuple[str, ...]
    users: tuple[str, ...]
    services: tuple[str, ...]
    agents: tuple[str, ...]
    uses: tuple[Use, ...]
    per: tuple[Per, ...]
    measures: tuple[Measure, ...]
    away: Away
    reason: str
    advice: str


@dataclass(frozen=True)
class Price:
    """What calls of tools cost, in millionths."""

    uses: tuple[Use, ...]
    per_call: int
    per_mb: int
    line: int


@dataclass(frozen=True)
class Counted:
    """Where the records of a tool's results stand: names and, for each list on the way, None."""

    server: str
    tool: str
    steps: tuple[str | None, ...]
    line: int


@dataclass(frozen=True)
class LimitsFile:
    """What a limits.yaml says; without what is wrong in it."""

    limits: tuple[BudgetLimit, ...] = ()
    prices: tuple[Price, ...] = ()
    records: tuple[Counted, ...] = ()
    problems: tuple[Problem, ...] = ()


def read_limits(text: str) -> LimitsFile:
    """Never raises."""
    reader = _Reader()
    try:
        if len(text.encode(errors="replace")) > LIMITS_BYTES_MAX:
            raise Wrong(1, f"has more than {LIMITS_BYTES_MAX} bytes; {LIMITS_MAX} limits need far less")
        return reader.file(composed(text, "limit"))
    except Wrong as wrong:
        return LimitsFile(problems=(*reader.problems, Problem(LIMITS, wrong.sentence, wrong.line)))
    except RecursionError:
        return LimitsFile(problems=(Problem(LIMITS, "nests too deep; a limit has two levels"),))


class _Reader:
    """Walks the nodes of one file; `problems` grows."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._ids: dict[str, int] = {}

    def file(self, node: yaml.Node | None) -> LimitsFile:
        if node is None:
            raise Wrong(1, "is empty; it begins with `v: 1`, then `limits:` and a list")
        top = mapping_of(node, "the file", ("v", "limits", "prices", "records"))
        check_version(top, node)
        limits = self._each(top.get("limits"), "limits", LIMITS_MAX, self._limit)
        prices = self._each(top.get("prices"), "prices", PRICES_MAX, _price)
        records = _records(top["records"]) if "records" in top else ()
        for limit in limits:
            self._needs(limit, prices, records)
        return LimitsFile(tuple(limits), tuple(prices), records, tuple(self.problems))

    def _each(self, node: yaml.Node | None, what: str, most: int, read: Callable[[yaml.Node], T]) -> list[T]:
        found: list[T] = []
        for item in [] if node is None else sequence_of(node, what, most):
            try:
                found.append(read(item))
            except Wrong as wrong:
                self.problems.append(Problem(LIMITS, wrong.sentence, wrong.line))
        return found

    def _needs(self, limit: BudgetLimit, prices: list[Price], records: tuple[Counted, ...]) -> None:
        measured = {measure.of for measure in limit.measures}
        if "daily-cost" in measured and not prices:
            sentence = f"the limit '{limit.id}' bounds cost, and nothing has a price; add `prices:` beside `limits:`"
            self.problems.append(Problem(LIMITS, sentence, limit.line))
        if "daily-records" in measured and not records:
            sentence = f"the limit '{limit.id}' bounds records; add `records: {{server/tool: items[].id}}` to say where"
            self.problems.append(Problem(LIMITS, sentence, limit.line))

    def _limit(self, node: yaml.Node) -> BudgetLimit:
        parts = mapping_of(node, "a limit", _KEYS)
        name, line = entry_id(parts, node, "limit", self._ids), line_of(node)
        who = {key: names_of(parts.get(key), key) for key in ("team", "user", "service", "agent")}
        if ANY in (*who["user"], *who["service"], *who["agent"]):
            raise Wrong(line, "'*' is for `team`: it is everybody; leave out whom the limit is not about")
        return BudgetLimit(
            name,
            line,
            () if ANY in who["team"] else who["team"],
            who["user"],
            who["service"],
            who["agent"],
            uses_of(parts["tools"]) if "tools" in parts else (),
            _per(parts, name, line),
            _measures(parts, name, line),
            _away(parts.get("away")),
            sentence_of(parts.get("reason"), "reason"),
            sentence_of(parts.get("advice"), "advice"),
        )


def _per(parts: dict[str, yaml.Node], name: str, line: int) -> tuple[Per, ...]:
    if "per" not in parts:
        sentence = f"the limit '{name}' says not per what it counts: add `per: user`, `per: [user, tool]`, or "
        raise Wrong(line, sentence + "`per: tenant` for all together")
    given = names_of(parts["per"], "per")
    if wrong := [one for one in given if one not in PER]:
        raise Wrong(parts["per"], f"`per` knows {', '.join(PER)}; '{wrong[0][:40]}' is none of them")
    return tuple(one for one in PER if one in given)


def _measures(parts: dict[str, yaml.Node], name: str, line: int) -> tuple[Measure, ...]:
    found = [_rate(parts["calls"], parts.get("burst"))] if "calls" in parts else []
    if "burst" in parts and not found:
        raise Wrong(parts["burst"], "`burst` goes with `calls: 100/minute`")
    if "daily" in parts:
        found += _daily(parts["daily"])
    if "concurrent" in parts:
        found.append(Measure("concurrent", _whole(parts["concurrent"], "concurrent", 1_000_000)))
    if not found:
        raise Wrong(line, f"the limit '{name}' bounds nothing; add `calls: 100/minute`, `daily:` or `concurrent:`")
    return tuple(found)


def _rate(node: yaml.Node, burst: yaml.Node | None) -> Measure:
    text, line = scalar_of(node, "calls").text, line_of(node)
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise Wrong(line, f"`calls` is written as 100/minute or 10/30 seconds; '{text[:40]}' is not")
    count, seconds = int(match[1]), int(match[2] or 1) * _PERIODS[match[3]]
    if not 1 <= count <= 10**9 or not 1 <= seconds <= PERIOD_S_MAX:
        raise Wrong(line, "`calls` takes 1 to 10^9 calls in 1 second to 31 days; to permit none, write a rule")
    most = count if burst is None else _whole(burst, "burst", 10**9)
    return Measure("calls", most, count, seconds * 1000)


def _daily(node: yaml.Node) -> list[Measure]:
    parts = mapping_of(node, "`daily`", _DAILY)
    found: list[Measure] = []
    if "calls" in parts:
        found.append(Measure("daily-calls", _whole(parts["calls"], "daily.calls", MOST)))
    if "bytes" in parts:
        found.append(Measure("daily-bytes", _bytes(parts["bytes"])))
    if "records" in parts:
        found.append(Measure("daily-records", _whole(parts["records"], "daily.records", RECORDS_MOST)))
    if "cost" in parts:
        found.append(Measure("daily-cost", _money(parts["cost"], "daily.cost")))
    if not found:
        raise Wrong(node, f"`daily` bounds nothing; known are {', '.join(_DAILY)}")
    return found


def _whole(node: yaml.Node, what: str, most: int) -> int:
    value = scalar_of(node, what)
    if value.kind != "long" or not 1 <= int(value.text) <= most:
        raise Wrong(node, f"`{what}` takes a whole number from 1 to {most}; to permit none, write a rule")
    return int(value.text)


def _bytes(node: yaml.Node) -> int:
    value = scalar_of(node, "daily.bytes")
    if value.kind == "long":
        return _whole(node, "daily.bytes", MOST)
    match = _BYTES.fullmatch(value.text)
    if match is None or not 1 <= (size := int(match[1]) * _SIZES[match[2]]) <= MOST:
        raise Wrong(node, f"`daily.bytes` is written as 50MB or 2GiB; '{value.text[:40]}' is not")
    return size


def _money(node: yaml.Node, what: str) -> int:
    """Millionths; four places after the point at most."""
    value = scalar_of(node, what)
    micros = Decimal(value.text) * MICROS if value.kind in ("long", "decimal") else Decimal(-1)
    if not 1 <= micros <= MOST:
        raise Wrong(node, f"`{what}` takes an amount above 0 with at most four places, as in 12.50")
    return int(micros)


def _away(node: yaml.Node | None) -> Away:
    if node is None:
        return "refuse"
    given = scalar_of(node, "away").text
    found = next((one for one in AWAY if one == given), None)
    if found is None:
        raise Wrong(node, f"`away` knows {', '.join(AWAY)}; '{given[:40]}' is none of them")
    return found


def _price(node: yaml.Node) -> Price:
    parts = mapping_of(node, "a price", ("tools", "per_call", "per_mb"))
    if "per_call" not in parts and "per_mb" not in parts:
        raise Wrong(node, "the price names no amount; add `per_call: 0.01` or `per_mb: 0.5`")
    return Price(
        uses_of(parts["tools"]) if "tools" in parts else (),
        _money(parts["per_call"], "per_call") if "per_call" in parts else 0,
        _money(parts["per_mb"], "per_mb") if "per_mb" in parts else 0,
        line_of(node),
    )


def _records(node: yaml.Node) -> tuple[Counted, ...]:
    if not isinstance(node, yaml.MappingNode):
        raise Wrong(node, "`records` takes tools and where their records stand: {crm/search: 'items[].id'}")
    return tuple(_counted(name, value) for name, value in mapping_of(node, "records", None).items())


def _counted(name: str, node: yaml.Node) -> Counted:
    line, text = line_of(node), scalar_of(node, name).text
    tool = _TOOL.fullmatch(name)
    if tool is None:
        raise Wrong(line, f"'{name[:60]}' is no tool; write server/tool")
    pieces = text.split(".")
    if not all(_STEP.fullmatch(piece) for piece in pieces) or "[]" not in text:
        raise Wrong(line, f"'{text[:60]}' leads to no records; write for example items[].id, with [] for a list")
    steps: list[str | None] = []
    for piece in pieces:
        named = piece.replace("[]", "")
        steps += ([named] if named else []) + [None] * piece.count("[]")
    return Counted(tool[1], tool[2], tuple(steps), line)
