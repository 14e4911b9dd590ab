"""The faults: each does its harm, says whom it met, and heals it when told to.

A fault is a generator: the first step harms and yields what it met, the second heals. `FAULTS` names them all;
`drawn` puts them in an order that follows from a seed. Rule: they run on the main thread, for a process ends with the
thread that started it. Counterpart: `run.py`, which says when.
"""

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis
from tests.chaos.stage import AUDITS, EDGES, ClockedService, Stage
from tests.parts.asking import until

REVIVAL_DEADLINE_S: Final = 90.0
CLOCK_MAX_S: Final = 900.0
DELAYS_S: Final = (0.05, 0.4)
FULL_DEADLINE_S: Final = 15.0

Harm = Generator[str, None, None]


@dataclass(frozen=True)
class Fault:
    """One kind. `lasts_s`: between which bounds it is left in force."""

    name: str
    words: str
    harm: Callable[[Stage, random.Random], Harm]
    lasts_s: tuple[float, float]
    touches: frozenset[str]  # faults that touch the same are never in force together
    needs: frozenset[str] = frozenset()  # to be healed: a fault that touches it comes after

    def is_possible(self, stage: Stage) -> bool:
        return self.name != "clock-jump" or bool(stage.clocks)


def revive(service: ClockedService) -> None:
    """As a supervisor does: start it until it stays. Raises AssertionError."""
    deadline_s = time.monotonic() + REVIVAL_DEADLINE_S
    while True:
        if not service.is_running:
            service.launch()
        with contextlib.suppress(RuntimeError):
            service.wait_ready(max(1.0, deadline_s - time.monotonic()))
            return
        assert time.monotonic() < deadline_s, f"{service.name} does not come back:\n{service.news()[-4000:]}"


def edge_killed(stage: Stage, order: random.Random) -> Harm:
    service = stage.service(order.choice(EDGES))
    service.kill()
    yield service.name
    revive(service)


def edge_ended(stage: Stage, order: random.Random) -> Harm:
    """SIGTERM, as in a rolling restart."""
    service = stage.service(order.choice(EDGES))
    service.terminate()
    yield service.name
    service.stop()
    revive(service)


def owner_killed(stage: Stage, _order: random.Random) -> Harm:
    service = stage.service(AUDITS[0])
    service.kill()
    yield service.name
    revive(service)


def consumer_killed(stage: Stage, _order: random.Random) -> Harm:
    service = stage.service(AUDITS[1])
    service.kill()
    yield service.name
    revive(service)


def kafka_killed(stage: Stage, _order: random.Random) -> Harm:
    stage.kafka.kill()
    yield "Kafka"
    stage.kafka.launch()
    until(stage.kafka.answers, "Kafka answers again", REVIVAL_DEADLINE_S)


def kafka_restarted(stage: Stage, _order: random.Random) -> Harm:
    stage.kafka.stop()
    yield "Kafka"
    stage.kafka.launch()
    until(stage.kafka.answers, "Kafka answers again", REVIVAL_DEADLINE_S)


def edge_without_kafka(stage: Stage, order: random.Random) -> Harm:
    """An edge dies in an outage, and has to start in it."""
    service = stage.service(order.choice(EDGES))
    until((service.data / "known" / "state.kept").exists, f"{service.name} has kept what it knows")
    stage.kafka.kill()
    service.kill()
    yield service.name
    revive(service)
    stage.kafka.launch()
    until(stage.kafka.answers, "Kafka answers again", REVIVAL_DEADLINE_S)


def valkey_killed(stage: Stage, _order: random.Random) -> Harm:
    stage.valkey.kill()
    yield "Valkey"
    stage.valkey.start()


def valkey_flushed(stage: Stage, _order: random.Random) -> Harm:
    with contextlib.closing(redis.Redis.from_url(stage.valkey.url)) as client:
        client.flushall()
    yield "Valkey"


def clickhouse_refusing(stage: Stage, _order: random.Random) -> Harm:
    link = stage.links.by_name[f"{AUDITS[1]} to ClickHouse"]
    link.refuse()
    yield link.name
    link.heal()


def clickhouse_frozen(stage: Stage, _order: random.Random) -> Harm:
    """Its process stands still, with what it had in hand; when it goes on, others may have taken its place."""
    service = stage.service(AUDITS[0])
    service.send(signal.SIGSTOP)
    yield service.name
    service.send(signal.SIGCONT)


def disk_full(stage: Stage, order: random.Random) -> Harm:
    """Where a small file system is mounted its room is used up; else no file of the process may grow."""
    edge = stage.service(order.choice(EDGES))
    before = edge.metric("tidegate_unrecorded_total")
    with _filled(stage, edge):
        with contextlib.suppress(AssertionError):  # what is refused first depends on what room a file has left
            until(lambda: edge.metric("tidegate_unrecorded_total") > before, "a call is refused", FULL_DEADLINE_S)
        yield f"{edge.name} ({stage.disks[edge.name]})"


@contextlib.contextmanager
def _filled(stage: Stage, edge: ClockedService) -> Iterator[None]:
    if stage.disks[edge.name] == "limit":
        before = resource.prlimit(edge.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(edge.pid, resource.RLIMIT_FSIZE, (1, before[1]))
        try:
            yield
        finally:
            if edge.is_running:
                resource.prlimit(edge.pid, resource.RLIMIT_FSIZE, before)
        return
    ballast = edge.data / "ballast"
    try:
        _fill(ballast)
        yield
    finally:
        ballast.unlink()


def _fill(ballast: Path) -> None:
    """To the last page."""
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while os.write(file, bytes(size)) == size:
                    pass
    finally:
        os.close(file)


def clock_jump(stage: Stage, order: random.Random) -> Harm:
    """There, and back again."""
    name = order.choice(sorted(stage.clocks))
    ahead_s = order.choice((-1, 1)) * order.uniform(30.0, CLOCK_MAX_S)
    stage.clocks[name].set(ahead_s)
    yield f"{name} by {ahead_s:+.0f} s"
    stage.clocks[name].set(0.0)


def network_cut(stage: Stage, order: random.Random) -> Harm:
    """Connections break, or nothing comes through and nothing says so."""
    link = stage.links.by_name[order.choice(sorted(stage.links.by_name))]
    if order.random() < 0.5:
        link.cut()
        yield f"{link.name}, broken"
    else:
        link.hold()
        yield f"{link.name}, silent"
    link.heal()


def network_delay(stage: Stage, order: random.Random) -> Harm:
    link = stage.links.by_name[order.choice(sorted(stage.links.by_name))]
    delay_s = order.uniform(*DELAYS_S)
    link.slow(delay_s)
    yield f"{link.name}, {delay_s * 1000:.0f} ms"
    link.heal()


_EDGE, _OWNER, _USER, _LINKS = (frozenset({name}) for name in ("edges", "owner", "user", "links"))
_KAFKA, _VALKEY = frozenset({"kafka"}), frozenset({"valkey"})
_STARTING: Final = _KAFKA | _LINKS  # a service does not start without the log; but for an edge that knew it
FAULTS: Final = (
    Fault("edge-killed", "kill -9 of an edge", edge_killed, (0.2, 3.0), _EDGE, _STARTING),
    Fault("edge-ended", "SIGTERM to an edge, and a new start", edge_ended, (0.0, 0.5), _EDGE, _STARTING),
    Fault(
        "owner-killed", "kill -9 of ClickHouse's engine, an audit consumer", owner_killed, (0.2, 4.0), _OWNER, _STARTING
    ),
    Fault(
        "consumer-killed", "kill -9 of the other audit consumer", consumer_killed, (0.2, 4.0), _USER, _STARTING | _OWNER
    ),
    Fault("kafka-killed", "kill -9 of Kafka", kafka_killed, (0.5, 8.0), _KAFKA),
    Fault("kafka-restarted", "Kafka ended in order, and started again", kafka_restarted, (0.0, 2.0), _KAFKA),
    Fault(
        "edge-without-kafka",
        "kill -9 of Kafka and of an edge, which starts before Kafka does",
        edge_without_kafka,
        (0.2, 4.0),
        _KAFKA | _EDGE,
        _LINKS,
    ),
    Fault("valkey-killed", "kill -9 of Valkey, which comes back empty", valkey_killed, (0.2, 4.0), _VALKEY),
    Fault("valkey-flushed", "FLUSHALL in Valkey", valkey_flushed, (0.0, 0.0), _VALKEY),
    Fault(
        "clickhouse-refusing", "ClickHouse answers that it has too much to do", clickhouse_refusing, (1.0, 8.0), _LINKS
    ),
    Fault("clickhouse-frozen", "SIGSTOP of the engine's process", clickhouse_frozen, (1.0, 14.0), _OWNER),
    Fault("disk-full", "no room on an edge's disk, the spool's included", disk_full, (1.0, 5.0), _EDGE),
    Fault("clock-jump", "a wall clock jumps by up to 15 minutes, and back", clock_jump, (1.0, 6.0), _EDGE | _USER),
    Fault("network-cut", "a connection is cut, or goes silent", network_cut, (1.0, 10.0), _LINKS),
    Fault("network-delay", "a connection is slow", network_delay, (2.0, 8.0), _LINKS),
)
BY_NAME: Final = {fault.name: fault for fault in FAULTS}


def drawn(names: list[str], order: random.Random) -> Iterator[Fault]:
    """Round after round, each in an order of its own, each with every fault once."""
    while True:
        yield from (BY_NAME[name] for name in order.sample(names, len(names)))
