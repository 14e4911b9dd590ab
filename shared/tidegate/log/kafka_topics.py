"""The topics on a cluster as they must be: what is created, and which differences of existing ones break a promise."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from tidegate.log.port import ERASING_TOPIC, STATE_TOPICS, TOPICS
from tidegate.settings import Kafka

KEPT_FOREVER: Final = frozenset({"policy", "control", "catalog", "integrity"})
"""Histories from which state is folded, and the signed roots: one partition each, nothing ever expires."""

_DAY_MS: Final = 86_400_000
_MESSAGE_BYTES: Final = 1_048_588  # Kafka's default; an event has EVENT_BYTES_MAX, a dead letter LETTER_BYTES_MAX

_SOON_GONE: Final = {
    "max.compaction.lag.ms": "3600000",
    "delete.retention.ms": str(_DAY_MS),
    "min.cleanable.dirty.ratio": "0.01",
}
"""Of the keys of subjects: a destroyed one leaves the disks within hours, and every reader still hears of it."""


class TopicSpec(NamedTuple):
    """A topic as it is created. `name` carries the prefix."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


class TopicFound(NamedTuple):
    """A topic as the cluster has it."""

    partitions: int
    replication: int
    config: Mapping[str, str]


def specs(kafka: Kafka) -> list[TopicSpec]:
    """Every topic of the log."""
    return [_spec(topic, kafka) for topic in (*TOPICS, *STATE_TOPICS)]


def _spec(topic: str, kafka: Kafka) -> TopicSpec:
    config = {
        "min.insync.replicas": str(kafka.min_insync),
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(_MESSAGE_BYTES),
        "unclean.leader.election.enable": "false",  # a replica that lags must not become the truth
    }
    if topic in STATE_TOPICS:
        config |= {"cleanup.policy": "compact"} | (_SOON_GONE if topic == ERASING_TOPIC else {})
    elif topic in KEPT_FOREVER:
        config |= {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    else:
        config |= {"cleanup.policy": "delete", "retention.ms": str(kafka.retention_days * _DAY_MS)}
    single = topic in STATE_TOPICS or topic in KEPT_FOREVER
    return TopicSpec(kafka.prefix + topic, 1 if single else kafka.partitions, kafka.replication, config)


def differences(spec: TopicSpec, found: TopicFound) -> list[str]:
    """What about an existing topic breaks a promise: durability, compaction, expiry, the one order of the histories.

    More partitions, replicas or time than asked for are an operator's choice and no difference.
    """
    wrong: list[str] = []
    kept = spec.config.get("retention.ms") == "-1" or spec.config["cleanup.policy"] == "compact"
    if found.partitions != spec.partitions and (kept or found.partitions < spec.partitions):
        wrong.append(f"{spec.name}: has {found.partitions} partitions, needed: {spec.partitions}")
    if found.replication < spec.replication:
        wrong.append(f"{spec.name}: has {found.replication} replicas, needed: {spec.replication}")
    for key, wanted in spec.config.items():
        is_value = found.config.get(key, "")
        if not _satisfies(key, is_value, wanted):
            wrong.append(f"{spec.name}: {key} is '{is_value}', needed: '{wanted}'")
    return wrong


def _satisfies(key: str, found: str, wanted: str) -> bool:
    if found == wanted:
        return True
    if key == "message.timestamp.type":  # tells when the log took a record; nothing rests on it
        return True
    if key in _SOON_GONE:
        return _is_soon_enough(key, found, wanted)
    if key not in ("min.insync.replicas", "retention.ms", "max.message.bytes") or not found.lstrip("-").isdigit():
        return False
    if key == "retention.ms":
        return found == "-1" or (wanted != "-1" and int(found) >= int(wanted))
    return int(found) >= int(wanted)


def _is_soon_enough(key: str, found: str, wanted: str) -> bool:
    """Compaction may come sooner than asked for; tombstones may stay for longer."""
    try:
        is_less = float(found) <= float(wanted)
    except ValueError:
        return False
    return not is_less if key == "delete.retention.ms" else is_less
