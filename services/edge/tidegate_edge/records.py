"""How this edge's records become durable: the local log itself, or a spool that is shipped to Kafka. Made once, in
`wiring.py`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from tidegate.errors import LogUnavailable
from tidegate.events import CallAbandoned, CallRequested
from tidegate.ids import now_us, uuid7
from tidegate.limits import Limits
from tidegate.log.commit import GroupCommit
from tidegate.log.port import BlockingAppender, EventLog
from tidegate.log.shipper import Shipper
from tidegate.log.spool import Backlog, Spool
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_edge.recorder import Recorder, Submitter, Writer

INLINE_BELOW_S: Final = 0.0006  # about what handing a batch to a thread and back costs

_log = logging.getLogger(__name__)


@dataclass
class Records:
    """The recorder and what can be read about its backlog."""

    recorder: Recorder
    submitter: Submitter
    spool: Spool | None = None

    @property
    def pending(self) -> int:
        """Records handed over and not yet durable."""
        return self.submitter.backlog

    @property
    def backlog(self) -> Backlog:
        """Durable here and not yet in the log."""
        return self.spool.backlog() if self.spool else Backlog(0, 0, 0.0)


@contextlib.asynccontextmanager
async def open_records(settings: Settings, log: EventLog, edge: str) -> AsyncIterator[Records]:
    """Leaving it makes everything durable and, with Kafka, empties the spool within limits.drain_timeout_s."""
    if isinstance(log, SqliteLog):
        writer = Writer(lambda: f"{edge}.{uuid7()}", log)
        log.when_failed(writer.failed)
        yield Records(Recorder(writer), log)
        return
    async with _kafka_records(settings, edge) as records:
        yield records


@contextlib.asynccontextmanager
async def _kafka_records(settings: Settings, edge: str) -> AsyncIterator[Records]:
    from tidegate.log.kafka_appender import KafkaAppender  # a local edge has no use for Kafka's client

    limits = settings.limits
    spool = Spool(settings.data_dir / "spool", limits.spool_bytes_max, edge=edge)
    for report in spool.reports:
        _log.error("spool: %s", report)
    async with contextlib.AsyncExitStack() as stack:
        spooled, spool_writer = _committed(spool, limits, _epochs(spool), "spool", INLINE_BELOW_S)
        stack.push_async_callback(spooled.close)
        shipper = Shipper(spool, KafkaAppender(settings, 10.0))
        stack.push_async_callback(_drain, shipper, spool, limits.drain_timeout_s)
        strict, strict_writer = _committed(
            KafkaAppender(settings, 5.0), limits, lambda: f"{edge}.strict.{uuid7()}", "strict", 0.0
        )
        stack.push_async_callback(strict.close)
        recorder = Recorder(spool_writer, strict_writer)
        await recorder.record_all([_abandoned(request) for request in spool.unfinished()])
        shipper.start()
        yield Records(recorder, spooled, spool)


def _committed(
    appender: BlockingAppender, limits: Limits, new_writer: Callable[[], str], name: str, inline_below_s: float
) -> tuple[GroupCommit, Writer]:
    """A group commit over the appender, and the writer whose chain ends when a batch of it fails."""

    def on_fault(fault: LogUnavailable) -> None:
        writer.failed(fault)

    commit = GroupCommit(
        appender,
        records_max=limits.pending_records_max,
        name=name,
        on_fault=on_fault,
        inline_below_s=inline_below_s,
    )
    writer = Writer(new_writer, commit)
    return commit, writer


def _epochs(spool: Spool) -> Callable[[], str]:
    """The spool's writer at first, then a new epoch each time a chain has ended."""
    first = [spool.writer]
    return lambda: first.pop() if first else spool.renew()


async def _drain(shipper: Shipper, spool: Spool, deadline_s: float) -> None:
    if not await asyncio.to_thread(shipper.drain, deadline_s):
        _log.warning("the spool still holds %d records; they are shipped at the next start", spool.backlog().records)
    await asyncio.to_thread(shipper.close)


def _abandoned(request: CallRequested) -> CallAbandoned:
    """Nobody knows how this call ended: the edge died before its completion was recorded."""
    at_us = now_us()
    return CallAbandoned(
        id=uuid7(at_us),
        time_us=at_us,
        tenant=request.tenant,
        region=request.region,
        call_id=request.call_id,
        root_call_id=request.root_call_id,
        requested_us=request.requested_us,
        subject_id=request.subject_id,
        agent=request.agent,
        session_id=request.session_id,
        protocol_session_id=request.protocol_session_id,
        protocol=request.protocol,
        edge=request.edge,
        method=request.method,
        server=request.server,
        target=request.target,
        mode=request.mode,
        decision=request.decision,
        stage=request.stage,
        reason="edge-died",
        message="The edge ended before the call's completion was recorded; whether it was carried out is unknown.",
        rules=request.rules,
        bundle=request.bundle,
        found_us=at_us,
        labels=request.labels,
    )
