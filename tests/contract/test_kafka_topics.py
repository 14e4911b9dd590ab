"""Topics on a real cluster: as they are created, what is said of ones that differ, and that appends are idempotent,
which no broker takes unless all replicas acknowledge.
"""

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)
from tests.parts.kafka import Kafka, install

from tidegate.errors import ConfigFault
from tidegate.log.kafka import KafkaAppender, KafkaLog
from tidegate.log.kafka_topics import specs
from tidegate.log.port import Record
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Settings

pytestmark = pytest.mark.kafka


def settings_on(kafka: Kafka) -> Settings:
    prefix = f"t{uuid4().hex[:8]}."
    topics = KafkaSettings(prefix=prefix, partitions=2, replication=1, min_insync=1)
    return Settings(log=f"kafka://{kafka.bootstrap}", kafka=topics)


async def prepared(settings: Settings) -> None:
    log = KafkaLog(settings)
    try:
        await log.prepare()
    finally:
        await log.close()


def described(admin: AdminClient, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    return {name: entry.value for name, entry in admin.describe_configs([resource])[resource].result(10).items()}


def altered(admin: AdminClient, topic: str, key: str, value: str) -> None:
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(10)


async def test_every_topic_is_created_as_it_is_wanted(kafka: Kafka) -> None:
    settings = settings_on(kafka)
    await prepared(settings)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    topics = admin.list_topics(timeout=10).topics
    for spec in specs(settings.kafka):
        assert len(topics[spec.name].partitions) == spec.partitions
        found = described(admin, spec.name)
        assert {key: found[key] for key in spec.config} == spec.config, spec.name


async def test_each_difference_of_an_existing_topic_is_named_with_what_is_needed(kafka: Kafka) -> None:
    settings = settings_on(kafka)
    await prepared(settings)
    admin, prefix = AdminClient({"bootstrap.servers": kafka.bootstrap}), settings.kafka.prefix
    altered(admin, f"{prefix}policy", "retention.ms", "60000")
    altered(admin, f"{prefix}policy-state", "cleanup.policy", "delete")
    altered(admin, f"{prefix}calls", "unclean.leader.election.enable", "true")
    altered(admin, f"{prefix}calls", "max.message.bytes", "1000")
    altered(admin, f"{prefix}sessions", "retention.ms", "-1")  # longer than asked for
    admin.create_partitions([NewPartitions(f"{prefix}control", 3)])[f"{prefix}control"].result(10)

    def told(sentence: str) -> bool:
        return "has 3 partitions" in sentence and "1000" in sentence

    sentence = await refused_until(settings, told)
    for line in (
        f"{prefix}policy: retention.ms is '60000', needed: '-1'",
        f"{prefix}policy-state: cleanup.policy is 'delete', needed: 'compact'",
        f"{prefix}calls: unclean.leader.election.enable is 'true', needed: 'false'",
        f"{prefix}calls: max.message.bytes is '1000', needed: '1048588'",
        f"{prefix}control: has 3 partitions, needed: 1",
    ):
        assert line in sentence
    assert sentence.count("needed:") == 5


async def refused_until(settings: Settings, told: Callable[[str], bool]) -> str:
    """What is said once the brokers know of what was altered."""
    async with asyncio.timeout(20):
        while True:
            try:
                await prepared(settings)
            except ConfigFault as fault:
                if told(fault.sentence):
                    return fault.sentence


async def test_every_batch_that_either_client_appends_is_numbered_by_its_producer(kafka: Kafka) -> None:
    settings = settings_on(kafka)
    await prepared(settings)
    log, appender = KafkaLog(settings), KafkaAppender(settings)
    await log.append([Record("policy", b"k", b"1")])
    await log.append([Record("policy", b"k", b"2"), Record("policy", b"k", b"3")])
    for number in range(3):
        await asyncio.to_thread(appender.append, [Record("policy", b"k", b"%d" % number)])
    appender.close()
    await log.close()
    batches = stored_batches(kafka.directory / "data" / f"{settings.kafka.prefix}policy-0")
    assert len(batches) >= 5
    assert len({producer for producer, _ in batches}) == 3, "one alone, one in transactions, librdkafka's"
    assert all(producer >= 0 and sequence >= 0 for producer, sequence in batches)


def stored_batches(partition: Path) -> list[tuple[int, int]]:
    """(producer id, first sequence number) of each batch of records in a partition's file, by Kafka's own tool."""
    (segment,) = partition.glob("*.log")
    command = [
        "java",
        "-Xshare:auto",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        f"{install()}/*",
        "kafka.tools.DumpLogSegments",
    ]
    done = subprocess.run([*command, "--files", str(segment)], capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in done.stdout.splitlines() if "isControl: false" in line]
    return [(_number(line, "producerId"), _number(line, "baseSequence")) for line in lines]


def _number(line: str, name: str) -> int:
    found = re.search(rf"{name}: (-?\d+)", line)
    assert found is not None, line
    return int(found[1])
