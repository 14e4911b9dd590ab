"""The process that is measured: the real audit consumer on a real broker, and where its CPU time goes.

Run by `ingest.py`, which gives its settings as JSON on the command line and reads one line of JSON from it. The clock
begins when the first records are stored (imports, migrations and first inserts are behind it then) and ends with the
last. Rules: threads are told apart by what they run, from /proc; the parts of one Python thread by its own CPU clock.
"""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from tidegate.analytics.clickhouse import ClickHouseAnalytics
from tidegate.ids import now_us
from tidegate.log.kafka import KafkaLog
from tidegate.settings import Kafka, Settings
from tidegate_audit_consumer import rows, spine
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import AuditConsumer, create_audit_consumer
from tidegate_cli.running import GARBAGE_THRESHOLD

TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
MERGING: Final = ("Merge", "Bg", "BackgrProc", "Common")  # the engine's background pools, by the names of their threads


class Job(msgspec.Struct, frozen=True):
    """What to ingest. `analytics` "" is the engine embedded in this process."""

    bootstrap: str
    prefix: str
    directory: str
    warm: int
    events: int
    analytics: str = ""
    password: str = ""
    records_max: int = Bounds.records_max
    age_max_s: float = Bounds.age_max_s


class Measured(msgspec.Struct, frozen=True):
    """CPU seconds between the first records and the last, `tail_s` of them by merges that ended afterwards."""

    events: int
    batches: int
    wall_s: float
    user_s: float
    kernel_s: float
    parts: dict[str, float]
    rows: dict[str, int]
    dead_letters: int
    tail_s: float


class Clocks:
    """CPU seconds so far by part; readings are subtracted from each other."""

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._wrap()

    def read(self) -> dict[str, float]:
        times = os.times()
        threads, parts = threads_s(), self.parts
        found = {
            "poll, decode, settle": time.clock_gettime(time.pthread_getcpuclockid(MAIN)),
            "librdkafka": threads["rdkafka"],
            "open_batch": parts["open_batch"],
            "encode for insert": parts["insert"] - parts["engine"],
            "merges": threads["merges"],
        }
        rest = times.user + times.system - sum(found.values())
        return {"user": times.user, "kernel": times.system, **found, "engine": rest}

    def _wrap(self) -> None:
        spine.open_batch = self._timed("open_batch", rows.open_batch)  # type: ignore[attr-defined]
        ClickHouseAnalytics._insert = self._timed("insert", ClickHouseAnalytics._insert)  # type: ignore[method-assign]
        with contextlib.suppress(ImportError):
            from chdb.state import sqlitelike

            sqlitelike.Connection.query = self._timed("engine", sqlitelike.Connection.query)

    def _timed(self, part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        self.parts[part] = 0.0

        def timed(*given: Any, **named: Any) -> Any:
            begin = time.thread_time()
            try:
                return inner(*given, **named)
            finally:
                self.parts[part] += time.thread_time() - begin

        return timed


def threads_s() -> dict[str, float]:
    """CPU seconds of the threads alive, by name; those that merge and librdkafka's each together."""
    found: dict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            head, _, rest = (task / "stat").read_text().rpartition(") ")
            name, fields = head.partition("(")[2], rest.split()
            kind = "merges" if name.startswith(MERGING) else "rdkafka" if name.startswith("rdk:") else name
            found[kind] += (int(fields[11]) + int(fields[12])) * TICK_S
    return found


async def ingest(job: Job) -> Measured:
    """Until every record is stored and the merges are done."""
    settings = Settings(
        root=job.directory,
        data="data",
        log=f"kafka://{job.bootstrap}",
        kafka=Kafka(prefix=job.prefix, partitions=4, replication=1, min_insync=1),
        analytics=job.analytics or "chdb",
        analytics_password=job.password,
    )
    clocks, bounds = Clocks(), Bounds(records_max=job.records_max, age_max_s=job.age_max_s)
    async with _log(settings) as log:
        scope = create_audit_consumer(settings, log, now_us, registry=CollectorRegistry(), bounds=bounds)
        async with scope as consumer:
            return await _measured(consumer, job, clocks)


async def _measured(consumer: AuditConsumer, job: Job, clocks: Clocks) -> Measured:
    await consumer.wait_until_ingested(job.warm, 120)
    gc.collect()
    gc.freeze()  # as the command line does
    gc.set_threshold(GARBAGE_THRESHOLD)
    begun, begin, first = time.monotonic(), clocks.read(), consumer.counts.records
    telling = asyncio.create_task(_tell(consumer))
    await consumer.wait_until_ingested(job.events, 300)
    wall_s, end = time.monotonic() - begun, clocks.read()
    telling.cancel()
    rows = {view: await _count(consumer, view) for view in ("events", "calls")}
    await _merged(consumer)
    spent = {part: end[part] - begin[part] for part in end}
    return Measured(
        events=consumer.counts.records - first,
        batches=-(-(consumer.counts.records - first) // job.records_max),
        wall_s=wall_s,
        user_s=spent.pop("user"),
        kernel_s=spent.pop("kernel"),
        parts=spent,
        rows=rows,
        dead_letters=consumer.counts.dead_letters,
        tail_s=clocks.read()["merges"] - end["merges"],
    )


async def _tell(consumer: AuditConsumer) -> None:
    while True:
        print(msgspec.json.encode({"records": consumer.counts.records}).decode(), flush=True)
        await asyncio.sleep(0.25)


async def _count(consumer: AuditConsumer, view: str) -> int:
    ((rows,),) = (await consumer.analytics.query(f"SELECT count() FROM tidegate.{view}")).rows
    return int(rows)


async def _merged(consumer: AuditConsumer) -> None:
    async with asyncio.timeout(60):
        while (await consumer.analytics.query("SELECT count() FROM system.merges")).rows != [(0,)]:
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def _log(settings: Settings) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(settings)
    try:
        await log.prepare()
        yield log
    finally:
        await log.close()


if __name__ == "__main__":
    import threading

    MAIN = threading.main_thread().ident or 0
    measured = uvloop.run(ingest(msgspec.json.decode(sys.argv[1], type=Job)))
    print(msgspec.json.encode(measured).decode(), flush=True)
