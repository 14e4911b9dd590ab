"""What proving and rebuilding cost: `python -m bench.audit [--calls N]`.

One process, the local log and the embedded engine in a directory of its own: events are appended and ingested, put
under a root, verified, exported, and ClickHouse is rebuilt from the log. CPU is the whole process's, engine included;
with several threads at work it may exceed the wall clock. A machine that does other things shows it in the wall clock
first.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tidegate.analytics.port import Analytics
from tidegate.audit.links import link_of
from tidegate.audit.roots import Root, open_audit_key, tree_of, trusted_audit_keys
from tidegate.audit.runs import Link, leaves_of
from tidegate.chain import Chain
from tidegate.events import CallCompleted, CallRequested, RootSealed, Sealed
from tidegate.ids import now_us, uuid7
from tidegate.log.extents import open_extents
from tidegate.log.port import Record
from tidegate.log.sqlite import SqliteLog, open_readonly
from tidegate.settings import Settings
from tidegate_audit_consumer.consumer import create_audit_consumer
from tidegate_audit_consumer.rebuilding import Rebuild
from tidegate_cli.export_pages import Span, pages
from tidegate_cli.exporting import LINES
from tidegate_cli.held_sources import ClickHouseSource
from tidegate_cli.verifying import Verification

CALLS: Final = 2_500
CALLS_MAX: Final = 200_000
WRITERS: Final = 8
CHUNK: Final = 5_000
DEADLINE_S: Final = 110.0
HOUR_US: Final = 3_600_000_000


class Row(msgspec.Struct, frozen=True):
    """One measured step."""

    step: str
    events: int
    seconds: float
    cpu_s: float


def events(calls: int) -> list[Record]:
    """Requests and completions of about 1 kB each, by several writers."""
    chains = [Chain(f"edge-{number}.bench.1") for number in range(WRITERS)]
    text = msgspec.json.encode({"text": "the quick brown fox " * 15})
    records = []
    for number in range(calls):
        chain, at_us = chains[number % WRITERS], now_us()
        same = {
            "tenant": "acme",
            "region": "eu",
            "call_id": uuid7(at_us),
            "root_call_id": "",
            "requested_us": at_us,
            "subject_id": f"subject-{number % 200}",
            "agent": f"agent-{number % 5}",
            "session_id": f"session-{number % 500}",
            "method": "tools/call",
            "server": "git",
            "target": f"tool-{number % 20}",
            "mode": "spool",
            "decision": "allow",
            "reason": "permitted",
        }
        sealed = Sealed(login="someone@example.com", arguments=msgspec.Raw(text))
        request = CallRequested(id=uuid7(at_us), time_us=at_us, sealed=sealed, **same)  # type: ignore[arg-type]
        done = CallCompleted(
            id=uuid7(at_us),
            time_us=at_us + 900,
            completed_us=at_us + 900,
            outcome="ok",
            sealed=Sealed(result=msgspec.Raw(text)),
            **same,  # type: ignore[arg-type]
        )
        records += [chain.seal(request), chain.seal(done)]
    return records


class Meter:
    """Rows, in the order of the steps."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @contextmanager
    def step(self, name: str, count: int) -> Iterator[None]:
        begin, cpu = time.monotonic(), time.process_time()
        yield
        self.rows.append(Row(name, count, time.monotonic() - begin, time.process_time() - cpu))


def seal(records: Sequence[Record], settings: Settings) -> tuple[RootSealed, str]:
    """One root over everything, as the sealer makes it; and the key's public half."""
    key = open_audit_key(settings)
    assert key is not None
    links = [link for one in records if one.value is not None and (link := link_of(one.value)) is not None]
    leaves = _leaves(links)
    root = Root(
        sealer="bench",
        number=1,
        previous="",
        tree=tree_of(leaves),
        leaves=len(leaves),
        events=len(links),
        sealed_us=now_us(),
        positions={},
    )
    signed = key.sign(root)
    event = RootSealed(
        id=uuid7(),
        time_us=now_us(),
        tenant="acme",
        region="eu",
        sealer="bench",
        number=1,
        root=msgspec.Raw(signed.root),
        signature=signed.signature,
        key_id=signed.key_id,
        leaves=tuple(leaves),
    )
    return event, key.public


def _leaves(links: Sequence[Link]) -> list:  # type: ignore[type-arg]
    return list(leaves_of(links).leaves)


async def measured(root: Path, calls: int) -> list[Row]:
    """All steps, on a log and a database of their own."""
    settings, meter = Settings(root=str(root), data="data"), Meter()
    settings.data_dir.mkdir(parents=True)
    records = await asyncio.to_thread(events, calls)
    async with AsyncExitStack() as stack:
        log = SqliteLog(settings.data_dir / "log.db")
        stack.push_async_callback(log.close)
        for at in range(0, len(records), CHUNK):
            await log.append(records[at : at + CHUNK])
        with meter.step("ingest", len(records)):
            consumer = await stack.enter_async_context(
                create_audit_consumer(settings, log, now_us, registry=CollectorRegistry())
            )
            await consumer.wait_until_ingested(len(records), DEADLINE_S)
        with meter.step("seal a root", len(records)):
            sealed, public = await asyncio.to_thread(seal, records, settings)
        with meter.step("verify", len(records)):
            trust = trusted_audit_keys([public])
            verification = Verification(ClickHouseSource(consumer.analytics), trust, 0, now_us(), now_us())
            report = await verification.run([sealed])
        assert report.records == len(records), report
        with meter.step("export (jsonl)", len(records)):
            assert await _exported(consumer.analytics) == calls
        with meter.step("rebuild", len(records)):
            reading = open_readonly(settings.data_dir / "log.db")
            async with open_extents(settings) as extents:
                rebuild = Rebuild(reading, extents, consumer.analytics)
                result = await rebuild.run(await rebuild.find(), lambda phase, more: None)
            await reading.close()
        assert result.is_whole, result
    return meter.rows


async def _exported(analytics: Analytics) -> int:
    count = 0
    line = LINES["jsonl"]
    async for page in pages(analytics, Span(since_us=now_us() - HOUR_US, content=True).settled()):
        count += len([line(row) for row in page.rows])
    return count


def table_of(rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Proving and rebuilding, one process")
    for name in ("step", "events", "seconds", "events/s", "CPU s", "CPU us per event"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for row in rows:
        table.add_row(
            row.step,
            f"{row.events:,}",
            f"{row.seconds:.2f}",
            f"{row.events / row.seconds:,.0f}",
            f"{row.cpu_s:.2f}",
            f"{row.cpu_s / row.events * 1e6:.0f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS, help=f"two events each; {CALLS_MAX} at most")
    given = parser.parse_args(arguments)
    if not 1 <= given.calls <= CALLS_MAX:
        parser.error(f"--calls: from 1 to {CALLS_MAX}")
    with tempfile.TemporaryDirectory(prefix="tidegate-audit-") as directory:
        rows = asyncio.run(measured(Path(directory), given.calls))
    Console().print(table_of(rows))


if __name__ == "__main__":
    main()
