"""Which differences of an existing topic are refused: those that break a promise, and no operator's choice."""

import pytest

from tidegate.log.kafka_topics import TopicFound, TopicSpec, differences, specs
from tidegate.settings import Kafka

SPECS = {spec.name: spec for spec in specs(Kafka())}


def found(spec: TopicSpec, partitions: int | None = None, replication: int | None = None, **config: str) -> TopicFound:
    changed = {key.replace("_", "."): value for key, value in config.items()}
    return TopicFound(partitions or spec.partitions, replication or spec.replication, spec.config | changed)


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_a_topic_as_it_is_created_has_no_difference(spec: TopicSpec) -> None:
    assert differences(spec, found(spec)) == []


@pytest.mark.parametrize("name", ["tidegate.policy", "tidegate.control", "tidegate.catalog"])
def test_histories_never_expire_and_have_one_order(name: str) -> None:
    spec = SPECS[name]
    assert (spec.partitions, spec.config["retention.ms"], spec.config["cleanup.policy"]) == (1, "-1", "delete")
    assert SPECS[f"{name}-state"].config["cleanup.policy"] == "compact"


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("tidegate.policy", {"retention_ms": "604800000"}, "retention.ms"),
        ("tidegate.policy", {"cleanup_policy": "compact"}, "cleanup.policy"),
        ("tidegate.policy", {"partitions": 2}, "partitions"),
        ("tidegate.policy-state", {"cleanup_policy": "delete"}, "cleanup.policy"),
        ("tidegate.calls", {"min_insync_replicas": "1"}, "min.insync.replicas"),
        ("tidegate.calls", {"replication": 2}, "replicas"),
        ("tidegate.calls", {"max_message_bytes": "500000"}, "max.message.bytes"),
        ("tidegate.calls", {"unclean_leader_election_enable": "true"}, "unclean.leader.election.enable"),
        ("tidegate.calls", {"partitions": 3}, "partitions"),
        ("tidegate.calls", {"retention_ms": "1000"}, "retention.ms"),
        ("tidegate.calls", {"cleanup_policy": "compact"}, "cleanup.policy"),
    ],
)
def test_what_breaks_a_promise_is_named(name: str, change: dict[str, str], named: str) -> None:
    spec = SPECS[name]
    (line,) = differences(spec, found(spec, **change))  # type: ignore[arg-type]
    assert line.startswith(f"{name}: ")
    assert named in line


@pytest.mark.parametrize(
    "change",
    [
        {"partitions": 48},
        {"replication": 5},
        {"min_insync_replicas": "3"},
        {"retention_ms": "-1"},
        {"max_message_bytes": "5000000"},
        {"message_timestamp_type": "CreateTime"},
    ],
)
def test_more_than_was_asked_for_is_an_operators_choice(change: dict[str, str]) -> None:
    spec = SPECS["tidegate.calls"]
    assert differences(spec, found(spec, **change)) == []  # type: ignore[arg-type]
