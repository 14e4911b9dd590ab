"""The books of a run: what the upstreams saw, what callers were told, what Kafka and ClickHouse hold.

Read when everything is healed: `healed` waits for that. `balance` compares in both directions, by nonce, and counts
what does not agree. Counterparts: `upstream.py`, `load.py`; `report.py` prints it.
"""

import contextlib
import json
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
from tests.chaos.load import Tally
from tests.chaos.stage import AUDITS, EDGES, Stage
from tests.parts.asking import until
from tests.parts.books import HISTORIES, read_topic
from tests.parts.cluster import ROOT, TIDEGATE

from tidegate.audit.links import link_of
from tidegate.audit.runs import Link
from tidegate.chain import open_event
from tidegate.events import key_of

HEALED_DEADLINE_S: Final = 120.0
SEALED_DEADLINE_S: Final = 90.0
_TIME, _NEVER = "%Y-%m-%dT%H:%M:%SZ", "1970-01-01T00:00:00Z"
REFUSALS: Final = frozenset({"denied", "asked", "limited"})
OPEN: Final = frozenset({"unknown", "pending"})  # pending becomes unknown when it is old enough
NOT_SENT: Final = frozenset({"upstream-failed", "cancelled", "timeout"})  # ended, perhaps before anything was sent
ANSWERS: Final = frozenset({"ok", "tool-error", "denied"})  # what callers hear is the status then
COUNTED: Final = {
    "events": "event_id",
    "calls": "call_id",
    "denials": "call_id",
    "findings": "finding_id",
    "integrity": "sealer, number",
}
"""Published rows, and what may be there once alone."""
SUMMED: Final = ("calls_by_minute", "calls_by_hour", "tool_usage", "agents", "servers", "data_volume")
EXAMPLES_MAX: Final = 5


class Row(NamedTuple):
    """A call as ClickHouse has it."""

    nonce: str
    call_id: str
    status: str
    server: str
    edge: str


class Checked(NamedTuple):
    """One thing that must be 0."""

    what: str
    found: int
    examples: tuple[str, ...] = ()


@dataclass
class Books:
    """What was found. `faults` is empty where the books balance."""

    checks: list[Checked] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)  # what is no fault, and worth knowing

    @property
    def faults(self) -> list[str]:
        return [f"{one.what}: {one.found}: {'; '.join(one.examples)}" for one in self.checks if one.found]

    def check(self, what: str, wrong: Iterable[str]) -> None:
        found = list(wrong)
        self.checks.append(Checked(what, len(found), tuple(found[:EXAMPLES_MAX])))


def rows_of(stage: Stage) -> list[Row]:
    """Every tool call that ClickHouse holds, its nonce read from the arguments as people query them."""
    sql = (
        "SELECT JSONExtractString(arguments, 'nonce') AS nonce, call_id, status, server, edge FROM tidegate.calls "
        "WHERE method = 'tools/call'"
    )
    return [Row(**row) for row in stage.query(sql)]


class Logged(NamedTuple):
    """A record of Kafka's, in the order of its partition."""

    topic: str
    value: bytes


def logged(stage: Stage) -> list[Logged]:
    topics = (*HISTORIES, "detections", "integrity")
    return [
        Logged(topic, one)
        for topic in topics
        for one in read_topic(stage.kafka.bootstrap, stage.cluster.prefix + topic)
    ]


class _Named(msgspec.Struct):
    """An event, or a finding as others have it."""

    id: str = ""
    type: str = ""
    finding_info: dict[str, Any] = {}

    @property
    def identity(self) -> str:
        return self.id or str(self.finding_info.get("uid", ""))


_named = msgspec.json.Decoder(_Named)


def healed(stage: Stage, deadline_s: float = HEALED_DEADLINE_S) -> float:
    """Everybody runs, no spool holds anything, ClickHouse holds what Kafka holds. The seconds it took.

    What has not come at the deadline is for `balance` to tell.
    """
    began_s = time.monotonic()
    services = [stage.service(name) for name in (*EDGES, *AUDITS)]
    for service in services:
        until(service.is_ready, f"{service.name} is ready", deadline_s)
    for edge in stage.cluster.edges:
        until(edge.has_shipped, f"{edge.name} has shipped its spool", deadline_s)
    arrived(stage, logged(stage), deadline_s)
    return time.monotonic() - began_s


def arrived(stage: Stage, found: list[Logged], deadline_s: float = HEALED_DEADLINE_S) -> list[str]:
    """What of `found` has not come into ClickHouse at the deadline.

    Kafka goes on: roots are sealed all the time, so whoever reads it again must wait for what is new.
    """
    with contextlib.suppress(AssertionError):
        until(lambda: not missing(stage, found), "ClickHouse holds what Kafka holds", deadline_s)
    return missing(stage, found)


def missing(stage: Stage, found: list[Logged]) -> list[str]:
    """What Kafka holds and ClickHouse does not."""
    stored = {row["event_id"] for row in stage.query("SELECT event_id FROM tidegate.events")}
    events = [(_named.decode(one.value), one.topic) for one in found]
    return [f"{one.identity} ({one.type}, on {topic})" for one, topic in events if one.identity not in stored]


def balance(stage: Stage, tally: Tally) -> Books:
    """Everything that must agree, compared."""
    books = Books()
    seen, rows = stage.sightings(), rows_of(stage)
    compare_calls(books, seen, rows, tally)
    found = logged(stage)
    books.check("on Kafka, and not in ClickHouse", arrived(stage, found))
    compare_records(books, found)
    _tables(books, stage)
    _integrity(books, stage)
    books.told |= {"calls made": len(tally.calls), "seen by the servers": len(seen), "rows of calls": len(rows)}
    books.told |= {f"callers heard: {what}": count for what, count in sorted(tally.heard().items())}
    books.told |= {f"status: {what}": count for what, count in sorted(Counter(row.status for row in rows).items())}
    return books


def compare_calls(books: Books, seen: dict[str, int], rows: list[Row], tally: Tally) -> None:
    """By nonce, in both directions.

    A caller may go away while its call is being recorded: where that failed, its end alone is on the log, without
    arguments. Had it been sent, a server would have seen a nonce that no row has.
    """
    nameless = [row for row in rows if not row.nonce and row.status == "cancelled"]
    rows = [row for row in rows if row not in nameless]
    one = {row.nonce: row for row in rows}
    unseen = [row for nonce, row in one.items() if nonce not in seen]
    both = [(nonce, call.heard, one[nonce].status) for nonce, call in tally.calls.items() if nonce in one]
    books.check("seen by a server, and no record", (nonce for nonce in seen if nonce not in one))
    books.check("seen by a server twice", (nonce for nonce, times in seen.items() if times > 1))
    times = Counter(row.nonce for row in rows)
    books.check("two rows for one call", (nonce for nonce, number in times.items() if number > 1))
    books.check("a row that nobody called for", (nonce for nonce in one if nonce not in tally.calls))
    books.check(
        "answered, and no record",
        (nonce for nonce, call in tally.calls.items() if call.heard in ANSWERS and nonce not in one),
    )
    books.check(
        "recorded as carried out, and never seen",
        (f"{row.nonce} ({row.status})" for row in unseen if row.status not in REFUSALS | OPEN | NOT_SENT),
    )
    books.check(
        "recorded as refused, and seen", (row.nonce for row in rows if row.nonce in seen and row.status in REFUSALS)
    )
    books.check(
        "told one thing, recorded another",  # an answer that was lost on its way may stand there as well
        (f"{nonce}: {heard}, {status}" for nonce, heard, status in both if heard in ANSWERS and heard != status),
    )
    books.check("answers that fit no call", tally.wrong)
    books.told["given up by its caller while it was being recorded, and not recorded"] = len(nameless)
    left = sum(row.status in OPEN for row in rows)
    never = sum(row.status in OPEN for row in unseen)
    books.told["permitted, never seen, and no end: refused while being recorded, or the edge died"] = never
    books.told["permitted, seen, and no end: the edge died, or could not record the end"] = left - never


def compare_records(books: Books, found: list[Logged]) -> None:
    """Kafka's: chains whole, order kept. Shipped again is no fault, shipped differently is.

    What a sealer finds stands on another topic than its roots, and in the same chain.
    """
    writers: defaultdict[str, dict[int, Link]] = defaultdict(dict)
    highest: dict[tuple[str, str, bytes], int] = {}
    unchained, forks, disorder, again = [], [], [], 0
    for topic, value in found:
        link = link_of(value)
        if link is None:
            unchained.append(f"{value[:200]!r}, on {topic}")
            continue
        if link.seq in writers[link.writer]:
            again += 1
            if writers[link.writer][link.seq] != link:
                forks.append(f"{link.writer} {link.seq}")
            continue
        writers[link.writer][link.seq] = link
        if topic == "detections":  # OCSF: its key is not in it
            continue
        key = (topic, link.writer, key_of(open_event(value)))
        if link.seq < highest.get(key, 0):
            disorder.append(f"{link.writer} {link.seq} after {highest[key]}")
        highest[key] = max(link.seq, highest.get(key, 0))
    books.check("records of no chain", unchained)
    books.check("out of order for its writer and key", disorder)
    books.check("two records with one number", forks)
    books.check(
        "gaps and broken links in chains", (line for name, chain in writers.items() for line in _breaks(name, chain))
    )
    books.told |= {"writers": len(writers), "records on Kafka": sum(map(len, writers.values())), "shipped again": again}


def _breaks(writer: str, chain: dict[int, Link]) -> Iterable[str]:
    prev = ""
    for seq in range(1, max(chain) + 1):
        if seq not in chain:
            yield f"{writer} has no {seq} of {max(chain)}"
            prev = "?"
            continue
        if prev not in ("?", chain[seq].prev):
            yield f"{writer} {seq} does not name the one before"
        prev = chain[seq].hash


def _tables(books: Books, stage: Stage) -> None:
    """Everything published holds everything once."""
    doubled = []
    for table, key in COUNTED.items():
        (row,) = stage.query(f"SELECT count() AS n, uniqExact({key}) AS one FROM tidegate.{table}")
        if row["n"] != row["one"]:
            doubled.append(f"{table}: {row['n']} rows, {row['one']} of them different")
    books.check("tables and views with anything twice", doubled)
    # abandoned or completed, or never forwarded: what the counts hold
    final = (
        "SELECT count() AS n FROM (SELECT max(version) AS last, max(decision) AS decided FROM tidegate.calls_raw "
        "GROUP BY tenant, requested_at, call_id HAVING last > 1 OR decided != 'allow')"
    )
    wanted = int(stage.query(final)[0]["n"])
    sums = {table: int(stage.query(f"SELECT sum(calls) AS n FROM tidegate.{table}")[0]["n"]) for table in SUMMED}
    books.check(
        "counts that differ from the calls", (f"{table}: {n} of {wanted}" for table, n in sums.items() if n != wanted)
    )


def _integrity(books: Books, stage: Stage) -> None:
    """The own proof, and how often an alarm was raised on the way: what comes very late is told as missing at first."""
    report = verified(stage)
    wrong = [f"{one['kind']}: {one['sentence']}" for one in (*report["wrong"], *report["rows"])]
    wrong += [str(one) for one in report["problems"]]
    if report["verdict"] != "whole" and not wrong:
        wrong = [f"the verdict is {report['verdict']}"]
    if not report["is_sealed"]:
        wrong.append(f"no root was sealed since {report['sealed_at']}")
    books.check("what `tidegate verify` finds wrong", wrong)
    raised = int(stage.query("SELECT count() AS n FROM tidegate.findings WHERE rule = 'log-integrity'")[0]["n"])
    books.told["alarms about records that came late: everything is there by now, or is told above"] = raised
    letters = read_topic(stage.kafka.bootstrap, f"{stage.cluster.prefix}dead-letters")
    books.check("dead letters", (str(one[:200]) for one in letters))
    books.told |= {"records proven under roots": report["records"], "roots": report["roots"]}


def verified(stage: Stage) -> dict[str, Any]:
    """What `tidegate verify` says about all time, once a root was sealed after this was asked; at the deadline, what
    it says then.
    """
    asked = datetime.now(UTC)
    to = (asked + timedelta(hours=1)).strftime(_TIME)
    command = [str(TIDEGATE), "verify", "--config", str(stage.cluster.audit.config), "--json"]
    deadline_s = time.monotonic() + SEALED_DEADLINE_S
    while True:
        done = subprocess.run(
            [*command, "--from", "2d", "--to", to], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        is_sealed = datetime.strptime(report["sealed_at"] or _NEVER, _TIME).replace(tzinfo=UTC) > asked
        if is_sealed or time.monotonic() > deadline_s:
            return report | {"is_sealed": is_sealed}
        time.sleep(1.0)
