"""The topic `ocsf` for security tools: every call's end, and every request that never became a call, as an OCSF API
Activity. On with `audit.ocsf_topic`.

A consumer group of its own: a ClickHouse that is away or rebuilt neither delays nor repeats what a SIEM gets. At least
once: objects are durable before the offsets settle; the key is the event's id, `metadata.uid` as well, to deduplicate
by. What the log would not take, clipped as it is, is left out and counted. Dead letters are read again by each new
version, in a group of its own: what it can read reaches the topic late, not never. Counterpart: `tidegate.ocsf`.
"""

import asyncio
import logging
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from tidegate import __version__
from tidegate.errors import LogUnavailable
from tidegate.events import CallAbandoned, CallCompleted, CallRequested, RequestRefused
from tidegate.lifecycle import owned
from tidegate.limits import EVENT_BYTES_MAX
from tidegate.log.port import Delivered, EventLog, Record, Subscription
from tidegate.ocsf.activity import activity_of
from tidegate.ocsf.api_activity import encoded
from tidegate_audit_consumer.batch import Bounds, ends_of
from tidegate_audit_consumer.dead_letters import TOPIC as LETTERS
from tidegate_audit_consumer.dead_letters import open_letter
from tidegate_audit_consumer.reading import read

TOPIC = "ocsf"
GROUP = "ocsf"
SOURCES = ("calls", "sessions")
LETTERS_GROUP = f"ocsf-letters-{__version__}"
BATCH_MAX = 2_000
LAG_S = 5.0  # how often the lag is measured

_HEADERS = (("content-type", b"application/json"),)
_log = logging.getLogger(__name__)


def objects_of(records: Sequence[Delivered]) -> list[Record]:
    """What these records say to a SIEM; nothing of those that cannot be read, which are dead letters already."""
    found = []
    for record in records:
        if record.topic == LETTERS:
            letter = open_letter(record)
            if letter is None or letter.whole_bytes or letter.record.topic not in SOURCES:
                continue
            record = letter.record
        event = read(record)
        if not isinstance(event, CallRequested | CallCompleted | CallAbandoned | RequestRefused):
            continue
        if (activity := activity_of(event)) is not None:
            found.append(Record(TOPIC, activity.uid.encode(), encoded(activity), _HEADERS))
    return found


class Followed:
    """What the publisher follows: the sources, and dead letters of them."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self.subscriptions = subscriptions

    async def close(self) -> None:
        for subscription in self.subscriptions:
            await subscription.close()


class Siem:
    """The publisher. `run` until `stop`; what is in hand then is published if the first try succeeds."""

    def __init__(self, log: EventLog, followed: Followed, bounds: Bounds, registry: CollectorRegistry) -> None:
        self._log = log
        self._followed = followed
        self._bounds = bounds
        self._stopping = asyncio.Event()
        self._failures = 0
        self._measured = -LAG_S
        self._objects = Counter("tidegate_ocsf_objects", "Objects appended to the topic ocsf", registry=registry)
        self._left_out = Counter(
            "tidegate_ocsf_left_out", "Objects that were too large for the topic ocsf, and left out", registry=registry
        )
        self._lag = Gauge(
            "tidegate_ocsf_lag_records",
            "Records in the log that the topic ocsf does not reflect yet",
            registry=registry,
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for subscription in self._followed.subscriptions:
                owned(group, self._follow(subscription), "ocsf: follow")

    async def _follow(self, subscription: Subscription) -> None:
        while not self._stopping.is_set():
            try:
                records = await subscription.poll(BATCH_MAX, self._bounds.idle_s)
                await self._measure()
            except LogUnavailable as fault:
                await self._pause(fault)
                continue
            if records and await self._publish(records):
                await self._settle(subscription, records)

    def stop(self) -> None:
        self._stopping.set()

    async def _measure(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._measured + LAG_S:
            self._measured = now
            self._lag.set(sum([await subscription.lag() for subscription in self._followed.subscriptions]))

    async def _publish(self, records: Sequence[Delivered]) -> bool:
        """True once they are durable; False when stopping came first."""
        objects = self._fitting(await asyncio.to_thread(objects_of, records))
        while True:
            try:
                if objects:
                    await self._log.append(objects)
                self._objects.inc(len(objects))
                self._failures = 0
                return True
            except LogUnavailable as fault:
                if self._stopping.is_set():
                    return False
                await self._pause(fault)

    def _fitting(self, objects: Sequence[Record]) -> list[Record]:
        """Without those that no try could append: one of them would stop all that come after it."""
        fitting = [one for one in objects if len(one.value or b"") <= EVENT_BYTES_MAX]
        if len(fitting) < len(objects):
            left = [one for one in objects if len(one.value or b"") > EVENT_BYTES_MAX]
            self._left_out.inc(len(left))
            _log.error("%d objects are too large for the topic ocsf, the first of event %r", len(left), left[0].key)
        return fitting

    async def _settle(self, subscription: Subscription, records: Sequence[Delivered]) -> None:
        """A lost claim is no harm: whoever has the partition now publishes these again, under the same ids."""
        try:
            await subscription.settle(ends_of(records))
        except LogUnavailable as fault:
            _log.warning("offsets of the topic ocsf not settled: %s", fault.sentence)

    async def _pause(self, fault: LogUnavailable) -> None:
        delay = min(self._bounds.backoff_max_s, self._bounds.backoff_min_s * 2 ** min(self._failures, 16))
        if self._failures % 10 == 0:
            _log.warning("the topic ocsf waits for the log, nothing is dropped: %s", fault.sentence)
        self._failures += 1
        try:
            await asyncio.wait_for(self._stopping.wait(), delay)
        except TimeoutError:
            return


async def open_siem(log: EventLog, bounds: Bounds, registry: CollectorRegistry) -> tuple[Siem, Followed]:
    """The publisher and what it follows, to be closed after it. Raises LogUnavailable."""
    sources = await log.follow(SOURCES, group=GROUP)
    try:
        followed = Followed(sources, await log.follow([LETTERS], group=LETTERS_GROUP))
    except BaseException:
        await sources.close()
        raise
    return Siem(log, followed, bounds, registry), followed
