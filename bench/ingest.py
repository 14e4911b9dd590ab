"""From Kafka to rows: what the audit consumer costs per event, on a real broker and with the real engine.

`python -m bench.ingest --events N`: fills the topic, then starts the consumer in a process of its own and reads its CPU
clock. Void unless ClickHouse holds each event once. Counterparts: `ingest_events.py` (what is written),
`ingest_consumer.py` (the process measured).
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from subprocess import PIPE, Popen
from typing import Final

import msgspec
from confluent_kafka.admin import AdminClient
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tests.parts.kafka import running_kafka

from bench.ingest_consumer import Job, Measured
from bench.ingest_events import Calls
from bench.processes import ROOT
from bench.report import machine
from tidegate.ids import now_us
from tidegate.log.kafka import KafkaAppender, KafkaLog
from tidegate.settings import Kafka, Settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import GROUP

TARGET: Final = 50_000  # events per CPU second
PREFIX: Final = "ingest."
AT_ONCE: Final = 5_000
HOURS_US: Final = 3_600_000_000


class Void(RuntimeError):
    """The measurement does not count: rows are missing or too many, or the consumer ended."""


def fill(bootstrap: str, events: int, progress: Progress) -> float:
    """Write the events; their mean size in bytes."""
    settings = Settings(
        log=f"kafka://{bootstrap}", kafka=Kafka(prefix=PREFIX, partitions=4, replication=1, min_insync=1)
    )
    asyncio.run(_prepare(settings))
    task = progress.add_task("writing events to Kafka", total=events)
    appender, records, size = KafkaAppender(settings, 60), Calls(now_us() - HOURS_US).records(), 0
    for at in range(0, events, AT_ONCE):
        some = list(islice(records, min(AT_ONCE, events - at)))
        size += sum([len(record.value or b"") for record in some])
        appender.append(some)
        progress.advance(task, len(some))
    appender.close()
    return size / events


async def _prepare(settings: Settings) -> None:
    log = KafkaLog(settings, timeout_s=60)
    await log.prepare()
    await log.close()


def forget_offsets(bootstrap: str) -> None:
    """The next consumer begins at the first record again."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    for waiting in admin.delete_consumer_groups([PREFIX + GROUP]).values():
        waiting.result(30)


def measure(job: Job, progress: Progress) -> Measured:
    """One run of the consumer. Raises Void."""
    task = progress.add_task("ingesting", total=job.events)
    with _consumer(job) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = msgspec.json.decode(line)
            if "records" in said:
                progress.update(task, completed=said["records"])
                continue
            progress.update(task, completed=job.events)
            return _checked(msgspec.convert(said, Measured), job)
    raise Void(f"the consumer ended with status {process.returncode} and said nothing")


@contextmanager
def _consumer(job: Job) -> Iterator[Popen[bytes]]:
    command = [sys.executable, "-m", "bench.ingest_consumer", msgspec.json.encode(job).decode()]
    with Popen(command, cwd=ROOT, stdout=PIPE) as process:
        try:
            yield process
            process.wait(30)
        finally:
            process.kill()


def _checked(measured: Measured, job: Job) -> Measured:
    if measured.dead_letters or measured.rows["events"] != job.events:
        raise Void(f"{job.events} events were written, {measured.rows} are there, {measured.dead_letters} dead letters")
    return measured


def show(console: Console, runs: list[Measured], size: float, load: float) -> None:
    table = Table(title=f"CPU µs per event of {size:,.0f} bytes", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", no_wrap=True)
    for number in range(1, len(runs) + 1):
        table.add_column(f"run {number}", justify="right")
    for part in runs[0].parts:
        table.add_row(part, *[f"{run.parts[part] / run.events * 1e6:.1f}" for run in runs])
    table.add_section()
    lines = {
        "the process": [f"{us(run):.1f}" for run in runs],
        "of it in the kernel": [f"{run.kernel_s / run.events * 1e6:.1f}" for run in runs],
        "merges that ended later": [f"{run.tail_s / run.events * 1e6:.1f}" for run in runs],
        "events/s of wall clock": [f"{run.events / run.wall_s:,.0f}" for run in runs],
        "events per CPU second": [f"{1e6 / us(run):,.0f}" for run in runs],
        "without the engine": [f"{1e6 / us(run, engine=False):,.0f}" for run in runs],
    }
    for name, cells in lines.items():
        table.add_row(name, *cells)
    console.print(table)
    best = max(1e6 / us(run, engine=False) for run in runs)
    console.print(
        f"Each event is in ClickHouse once. Goal {TARGET:,} events per CPU second; best {best:,.0f} without the "
        f"engine. Load before: {load:.1f} on {machine()['cores']} cores of {machine()['cpu']}."
    )


def us(run: Measured, *, engine: bool = True) -> float:
    """CPU µs per event."""
    spent = run.user_s + run.kernel_s
    return (spent if engine else spent - run.parts["engine"] - run.parts["merges"]) / run.events * 1e6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--events", type=int, default=200_000, help="written and ingested (default 200,000)")
    parser.add_argument("--warm", type=int, default=20_000, help="of them before the clock begins (default 20,000)")
    parser.add_argument("--runs", type=int, default=2, help="consumers, one after another (default 2)")
    parser.add_argument("--batch", type=int, default=Bounds().records_max, help="records (default as in production)")
    return parser.parse_args()


def main() -> None:
    given, console, load = arguments(), Console(), os.getloadavg()[0]
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress, running_kafka() as kafka:
        size = fill(kafka.bootstrap, given.events, progress)
        runs = []
        for _ in range(given.runs):
            with tempfile.TemporaryDirectory(prefix="tidegate-ingest-") as directory:
                job = Job(kafka.bootstrap, PREFIX, directory, given.warm, given.events, records_max=given.batch)
                runs.append(measure(job, progress))
                forget_offsets(kafka.bootstrap)
    show(console, runs, size, load)


if __name__ == "__main__":
    main()
