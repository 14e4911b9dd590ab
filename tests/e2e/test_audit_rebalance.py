"""Consumers that join, leave and are killed while the log grows: each event is in ClickHouse once, and the lag that is
told is Kafka's own. A real broker, one real engine, consumers as processes of their own.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from tests.parts.audit_events import calls
from tests.parts.kafka import Kafka

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.log.kafka import KafkaAppender, KafkaLog
from tidegate.log.port import Delivered, Partition, Record
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Settings
from tidegate_audit_consumer.consumer import GROUP

pytestmark = pytest.mark.kafka
PARTITIONS = 4

CONSUMER = """
import asyncio, signal, sys
import msgspec
from prometheus_client import CollectorRegistry
from tidegate.ids import now_us
from tidegate.log.kafka import KafkaLog
from tidegate.settings import Settings
from tidegate_audit_consumer.batch import Bounds
from tidegate_audit_consumer.consumer import create_audit_consumer

async def main():
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    log, bounds = KafkaLog(settings), Bounds(age_max_s=0.05, idle_s=0.05)
    async with create_audit_consumer(settings, log, now_us, registry=CollectorRegistry(), bounds=bounds) as consumer:
        await consumer.wait_until_ingested(1, 60)
        print("ingesting", flush=True)
        await ended.wait()
    await log.close()

asyncio.run(main())
"""


def kafka_settings(kafka: Kafka) -> KafkaSettings:
    return KafkaSettings(prefix=f"t{uuid4().hex[:8]}.", partitions=PARTITIONS, replication=1, min_insync=1)


class Member:
    """A consumer in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ingesting(self) -> None:
        """It has a share, and has stored some of it."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        assert line == b"ingesting\n", line

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)


@asynccontextmanager
async def group(settings: Settings) -> AsyncIterator["Group"]:
    members = Group(settings)
    try:
        yield members
    finally:
        for member in members.all:
            if member.process.returncode is None:
                member.process.kill()
                await member.process.wait()


class Group:
    def __init__(self, settings: Settings) -> None:
        self._given = msgspec.json.encode(settings).decode()
        self.all: list[Member] = []

    async def join(self) -> Member:
        command = (sys.executable, "-c", CONSUMER, self._given)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        self.all.append(Member(process))
        return self.all[-1]


class Load:
    """Calls by several writers, appended until it is told to stop; keys over all partitions."""

    def __init__(self, settings: Settings) -> None:
        self._appender = KafkaAppender(settings)
        self.number = 0
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        while not self._stopping.is_set():
            records = calls(20, writer=f"w{self.number}")
            spread = [one._replace(key=b"k%d" % (at // 2 % 16)) for at, one in enumerate(records)]
            await asyncio.to_thread(self._appender.append, spread)
            self.number += 20
            await asyncio.sleep(0.05)
        self._appender.close()

    def stop(self) -> None:
        self._stopping.set()


async def test_members_that_join_leave_and_die_under_load_lose_and_double_nothing(kafka: Kafka, tmp_path: Path) -> None:
    async with EmbeddedEngine(tmp_path) as engine:
        settings = Settings(
            log=f"kafka://{kafka.bootstrap}",
            kafka=kafka_settings(kafka),
            analytics=f"clickhouse://writer@127.0.0.1:{engine.address.port}/tidegate",
            analytics_password=(tmp_path / "analytics-writer.token").read_text(),
        )
        log = KafkaLog(settings)
        await log.prepare()
        load = Load(settings)
        loading = asyncio.create_task(load.run())
        async with group(settings) as members:
            first = await members.join()
            await first.ingesting()
            second, third = await members.join(), await members.join()
            await second.ingesting()
            await third.ingesting()
            assert await second.end(signal.SIGKILL) == -signal.SIGKILL
            fourth = await members.join()
            await fourth.ingesting()  # it has a share of what is there now
            assert await first.end(signal.SIGTERM) == 0
            assert await third.end(signal.SIGTERM) == 0
            load.stop()
            await loading
            total = load.number
            count = "SELECT count(), uniqExact(event_id), uniqExact(topic, partition, offset) FROM tidegate.events"
            async with asyncio.timeout(60):
                while (await engine.analytics.query(count)).rows != [(2 * total,) * 3]:
                    await asyncio.sleep(0.2)
            found = "SELECT count(), uniqExact(call_id), countIf(status = 'ok') FROM tidegate.calls"
            assert (await engine.analytics.query(found)).rows == [(total, total, total)]
            gaps = (
                "SELECT writer FROM tidegate.events GROUP BY writer "
                "HAVING count() != max(seq) - min(seq) + 1 OR count() != uniqExact(seq)"
            )
            assert (await engine.analytics.query(gaps)).rows == []
            assert await fourth.end(signal.SIGTERM) == 0
            assert kafkas_own_lag(kafka, settings, "calls") == 0, "what is stored is settled as well"
        await log.close()


def kafkas_own_lag(kafka: Kafka, settings: Settings, topic: str) -> int:
    """Ends less what the group has committed, as an operator's tools count it."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    group_id, name = f"{settings.kafka.prefix}{GROUP}", f"{settings.kafka.prefix}{topic}"
    (asked,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group_id)]).values()
    committed = {one.partition: one.offset for one in asked.result(10).topic_partitions if one.topic == name}
    places = {TopicPartition(name, number): OffsetSpec.latest() for number in range(settings.kafka.partitions)}
    ends = {place.partition: future.result(10).offset for place, future in admin.list_offsets(places).items()}
    return sum(end - max(committed.get(number, 0), 0) for number, end in ends.items())


async def test_the_lag_is_the_one_that_kafka_counts(kafka: Kafka) -> None:
    settings = Settings(log=f"kafka://{kafka.bootstrap}", kafka=kafka_settings(kafka))
    log = KafkaLog(settings)
    await log.prepare()
    appender = KafkaAppender(settings)
    await asyncio.to_thread(appender.append, [Record("calls", b"k%d" % number, b"v") for number in range(100)])
    members = [await log.follow(["calls"], group=GROUP) for _ in range(1)]
    taken: list[Delivered] = []
    async with asyncio.timeout(20):
        while len(taken) < 60:
            taken += await members[0].poll(60 - len(taken), 0.5)
    await members[0].settle({Partition("calls", one.partition): one.offset + 1 for one in taken})
    assert await members[0].lag() == kafkas_own_lag(kafka, settings, "calls") == 40
    await asyncio.to_thread(appender.append, [Record("calls", b"k", b"more")] * 5)
    assert await members[0].lag() == kafkas_own_lag(kafka, settings, "calls") == 45
    appender.close()
    await log.close()
