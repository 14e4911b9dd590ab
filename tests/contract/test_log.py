"""What every event log promises, on SQLite and on a real Kafka broker: the same tests, one parametrised fixture."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from tests.parts.kafka import Kafka

from tidegate.errors import LogUnavailable
from tidegate.limits import EVENT_BYTES_MAX, LETTER_BYTES_MAX
from tidegate.log.commit import bytes_of
from tidegate.log.kafka import KafkaLog
from tidegate.log.kafka_reader import KafkaSubscription
from tidegate.log.port import Delivered, EventLog, Partition, Record, Subscription
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Kafka as KafkaSettings
from tidegate.settings import Settings

Follow = Callable[..., Awaitable[Subscription]]


def kafka_settings(kafka: Kafka, partitions: int = 3) -> Settings:
    """Settings on the test broker, with topics of their own."""
    topics = KafkaSettings(prefix=f"t{uuid4().hex[:8]}.", partitions=partitions, replication=1, min_insync=1)
    return Settings(log=f"kafka://{kafka.bootstrap}", kafka=topics)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    made: EventLog
    if request.param == "sqlite":
        made = SqliteLog(tmp_path / "log.db")
    else:
        made = KafkaLog(kafka_settings(request.getfixturevalue("kafka")))
    await made.prepare()
    yield made
    await made.close()


@pytest.fixture
async def follow(log: EventLog) -> AsyncIterator[Follow]:
    """`log.follow`, closed at the end of the test."""
    async with AsyncExitStack() as opened:

        async def follow(*topics: str, **options: object) -> Subscription:
            subscription = await log.follow(topics, **options)  # type: ignore[arg-type]
            opened.push_async_callback(subscription.close)
            return subscription

        yield follow


async def take(subscription: Subscription, number: int, deadline_s: float = 20) -> list[Delivered]:
    """Exactly `number` records, or what came before the deadline."""
    taken: list[Delivered] = []
    until = time.monotonic() + deadline_s
    while len(taken) < number and time.monotonic() < until:
        taken += await subscription.poll(number - len(taken), 0.2)
    return taken


async def catch_up(subscription: Subscription, deadline_s: float = 20) -> list[Delivered]:
    """What was in the log when the subscription opened."""
    taken: list[Delivered] = []
    async with asyncio.timeout(deadline_s):
        while not subscription.caught_up:
            taken += await subscription.poll(1000, 0.2)
    return taken


def settled_at(records: list[Delivered]) -> dict[Partition, int]:
    return {Partition(record.topic, record.partition): record.offset + 1 for record in records}


def calls(*numbers: int, key: bytes = b"acme|s|a") -> list[Record]:
    return [Record("calls", key, b"%d" % number) for number in numbers]


def values(records: list[Delivered]) -> list[bytes | None]:
    return [record.value for record in records]


async def test_what_is_appended_is_delivered_in_order_with_everything_that_was_given(
    log: EventLog, follow: Follow
) -> None:
    before_us = time.time_ns() // 1000 - 1_000_000
    first = Record("policy", b"acme|main", b'{"n":1}', (("ce_type", b"x"), ("raw", b"\x00\xff")))
    await log.append([first, Record("policy", b"acme|main", b'{"n":2}')])
    await log.append([Record("policy", b"acme|main", b'{"n":3}')])
    taken = await take(await follow("policy"), 3)
    assert values(taken) == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
    assert (taken[0].topic, taken[0].key, taken[0].headers) == ("policy", b"acme|main", first.headers)
    assert taken[2].headers == ()
    assert [record.offset for record in taken] == sorted({record.offset for record in taken})
    assert before_us <= taken[0].time_us <= time.time_ns() // 1000 + 1_000_000


async def test_a_follower_is_woken_by_an_append(log: EventLog, follow: Follow) -> None:
    subscription = await follow("calls")
    await catch_up(subscription)
    waiting = asyncio.create_task(subscription.poll(10, 20))
    await log.append(calls(1))
    assert values(await waiting) == [b"1"]


async def test_an_idle_poll_returns_nothing_after_its_timeout(log: EventLog, follow: Follow) -> None:
    subscription = await follow("calls")
    await catch_up(subscription)
    began = time.monotonic()
    assert await subscription.poll(10, 0.3) == []
    assert 0.2 < time.monotonic() - began < 3


async def test_order_holds_per_key_among_many_appenders(log: EventLog, follow: Follow) -> None:
    async def one_key(name: int) -> None:
        for number in range(20):
            await log.append([Record("calls", b"key-%d" % name, b"%d" % number)])

    await asyncio.gather(*[one_key(name) for name in range(4)])
    taken = await take(await follow("calls"), 80)
    for name in range(4):
        mine = [record for record in taken if record.key == b"key-%d" % name]
        assert values(mine) == [b"%d" % number for number in range(20)]
        assert len({record.partition for record in mine}) == 1


async def test_a_batch_with_a_record_that_cannot_be_stored_leaves_nothing_behind(log: EventLog, follow: Follow) -> None:
    with pytest.raises(LogUnavailable) as caught:
        await log.append([*calls(1, 2), Record("calls", b"k", b"x" * (EVENT_BYTES_MAX + 1)), *calls(3)])
    assert caught.value.code == "record-too-large"
    with pytest.raises(ValueError, match="no topic"):
        await log.append([*calls(4), Record("no-such-topic", b"k", b"v")])
    await log.append(calls(5))
    assert values(await take(await follow("calls"), 2, deadline_s=1)) == [b"5"]


async def test_an_empty_batch_is_nothing(log: EventLog) -> None:
    await log.append([])


async def test_a_value_of_none_and_binary_keys_survive(log: EventLog, follow: Follow) -> None:
    key = bytes(range(256))
    await log.append([Record("policy-state", key, b"now"), Record("policy-state", key, None)])
    taken = await take(await follow("policy-state"), 2)
    assert [(record.key, record.value) for record in taken] == [(key, b"now"), (key, None)]


async def test_a_record_of_the_largest_size_survives(log: EventLog, follow: Follow) -> None:
    value = os.urandom(EVENT_BYTES_MAX)
    await log.append([Record("calls", b"k", value)])
    assert values(await take(await follow("calls"), 1)) == [value]


@pytest.mark.parametrize("headers", [(), (("dlq.a", b"a" * 900), ("dlq.ü", b"b"))], ids=["plain", "headers"])
async def test_a_dead_letter_may_fill_its_topics_bound_and_no_more(
    log: EventLog, follow: Follow, headers: tuple[tuple[str, bytes], ...]
) -> None:
    empty = Record("dead-letters", b"k" * 70, b"", headers)
    value = os.urandom(LETTER_BYTES_MAX - bytes_of(empty))
    with pytest.raises(LogUnavailable) as caught:
        await log.append([empty._replace(value=value + b"x")])
    assert caught.value.code == "record-too-large"
    await log.append([empty._replace(value=value)])
    await log.append([empty._replace(value=value), empty])
    assert values(await take(await follow("dead-letters"), 3))[0] == value


async def test_followers_without_a_group_each_read_everything_from_the_start(log: EventLog, follow: Follow) -> None:
    await log.append(calls(1, 2, 3))
    assert values(await take(await follow("calls"), 3)) == [b"1", b"2", b"3"]
    assert values(await take(await follow("calls"), 3)) == [b"1", b"2", b"3"]


async def test_several_topics_are_read_together(log: EventLog, follow: Follow) -> None:
    await log.append([*calls(1), Record("control", b"c", b"2"), Record("catalog", b"d", b"3")])
    taken = await take(await follow("calls", "control", "catalog"), 3)
    assert {(record.topic, record.value) for record in taken} == {
        ("calls", b"1"),
        ("control", b"2"),
        ("catalog", b"3"),
    }


async def test_a_poll_delivers_no_more_than_asked_for(log: EventLog, follow: Follow) -> None:
    await log.append(calls(*range(25)))
    subscription = await follow("calls")
    sizes: list[int] = []
    while sum(sizes) < 25:
        sizes.append(len(await subscription.poll(10, 5)))
    assert max(sizes) <= 10


async def test_caught_up_is_true_only_when_what_was_there_has_been_delivered(log: EventLog, follow: Follow) -> None:
    await log.append(calls(*range(5)))
    subscription = await follow("calls", "policy")
    assert not subscription.caught_up
    taken = await subscription.poll(3, 10)
    assert len(taken) == 3
    assert not subscription.caught_up
    taken += await catch_up(subscription)
    assert len(taken) == 5
    await log.append(calls(6))
    assert subscription.caught_up


async def test_an_empty_log_is_caught_up_without_a_record(log: EventLog, follow: Follow) -> None:
    assert await catch_up(await follow("policy-state")) == []


async def test_lag_counts_what_is_not_delivered_yet(log: EventLog, follow: Follow) -> None:
    subscription = await follow("detections")
    await catch_up(subscription)
    assert await subscription.lag() == 0
    await log.append([Record("detections", b"k", b"%d" % number) for number in range(4)])
    assert await subscription.lag() >= 4  # Kafka counts the transaction's marker as well
    assert len(await take(subscription, 4)) == 4


async def test_a_group_resumes_from_what_it_settled(log: EventLog, follow: Follow) -> None:
    await log.append(calls(*range(10)))
    first = await follow("calls", group="g")
    taken = await take(first, 10)
    await first.settle(settled_at(taken[:6]))
    await first.close()
    second = await follow("calls", group="g")
    assert values(await take(second, 4)) == values(taken[6:])
    assert values(await take(await follow("calls", group="other"), 10)) == values(taken)


async def test_a_member_that_joins_takes_a_share_and_nothing_is_lost(log: EventLog, follow: Follow) -> None:
    topics = ("calls", "sessions", "detections", "control")
    seen: dict[str, list[Delivered]] = {"a": [], "b": []}
    shares: dict[str, set[Partition]] = {"a": set(), "b": set()}

    async def join(name: str) -> Subscription:
        async def gain(partitions: frozenset[Partition]) -> None:
            assert not partitions & (shares["a"] | shares["b"])
            shares[name] |= partitions

        async def lose(partitions: frozenset[Partition]) -> None:
            assert partitions <= shares[name]
            shares[name] -= partitions

        return await follow(*topics, group="g", on_assigned=gain, on_revoked=lose)

    async def work(name: str, subscription: Subscription) -> None:
        while True:
            taken = await subscription.poll(50, 0.1)
            assert all(Partition(record.topic, record.partition) in shares[name] for record in taken)
            seen[name] += taken
            with suppress(LogUnavailable):  # the claim on what was in hand is lost: another member delivers it again
                await subscription.settle(settled_at(taken))

    def everything() -> set[bytes | None]:
        return {record.value for name in seen for record in seen[name]}

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        a = await join("a")
        working = [tasks.create_task(work("a", a))]
        sent = 0
        for stage in range(3):
            if stage == 1:
                joining = tasks.create_task(join("b"))
                b = await joining
                working.append(tasks.create_task(work("b", b)))
                while not (shares["a"] and shares["b"]):
                    await asyncio.sleep(0.02)
            if stage == 2:
                working[0].cancel()
                await a.close()
            batch = [Record(topic, b"k%d" % n, b"%d" % (sent + n)) for n, topic in enumerate(topics * 10)]
            await log.append(batch)
            sent += len(batch)
            while len(everything()) < sent:
                await asyncio.sleep(0.02)
            if stage == 1:
                assert seen["b"], "the second member delivered nothing"
        working[1].cancel()
    assert everything() == {b"%d" % n for n in range(sent)}


async def test_settling_after_the_claim_is_lost_is_refused(log: EventLog, follow: Follow) -> None:
    await log.append(calls(1))
    first = await follow("calls", group="g")
    taken = await take(first, 1)
    foreign = {Partition("sessions", 0): 1}
    with pytest.raises(LogUnavailable) as caught:
        await first.settle({**settled_at(taken), **foreign})
    assert caught.value.code == "claim-lost"


async def test_a_closed_log_takes_and_gives_nothing(log: EventLog, follow: Follow) -> None:
    subscription = await follow("calls")
    await subscription.close()
    with pytest.raises(LogUnavailable):
        await subscription.poll(1, 1)
    await log.close()
    with pytest.raises(LogUnavailable):
        await log.append(calls(1))


@pytest.mark.kafka
class TestOnKafkaOnly:
    """What one file for one process cannot show."""

    async def test_preparing_again_is_harmless_and_differences_are_named(self, kafka: Kafka) -> None:
        from tidegate.errors import ConfigFault

        settings = kafka_settings(kafka)
        for _ in range(2):
            log = KafkaLog(settings)
            await log.prepare()
            await log.close()
        other = msgspec.structs.replace(settings, kafka=msgspec.structs.replace(settings.kafka, min_insync=2))
        log = KafkaLog(other)
        with pytest.raises(ConfigFault, match=r"calls.*min\.insync\.replicas is '1', needed: '2'"):
            await log.prepare()
        await log.close()

    async def test_a_second_writer_of_the_same_name_fences_the_first(self, kafka: Kafka) -> None:
        settings = kafka_settings(kafka)
        first, second = KafkaLog(settings, writer_id="policy"), KafkaLog(settings, writer_id="policy")
        await first.prepare()
        await first.append([Record("policy", b"k", b"1"), Record("policy-state", b"k", b"1")])
        await second.prepare()
        with pytest.raises(LogUnavailable) as caught:
            await first.append([Record("policy", b"k", b"stale"), Record("policy-state", b"k", b"stale")])
        assert caught.value.code == "writer-fenced"
        await second.append([Record("policy", b"k", b"2"), Record("policy-state", b"k", b"2")])
        subscription = await second.follow(("policy", "policy-state"))
        assert sorted(values(await catch_up(subscription))) == [b"1", b"1", b"2", b"2"]  # type: ignore[type-var]
        await subscription.close()
        await first.close()
        await second.close()

    async def test_a_group_that_lets_a_member_in_no_more_says_so_and_is_joined_once_it_does(self, kafka: Kafka) -> None:
        log = KafkaLog(kafka_settings(kafka))
        await log.prepare()
        subscription = await log.follow(("calls",), group="g")
        assert isinstance(subscription, KafkaSubscription)
        await log.append(calls(1))
        assert values(await take(subscription, 1)) == [b"1"]
        coordinator = subscription._consumer._coordinator
        usual, coordinator._session_timeout_ms = coordinator._session_timeout_ms, 1  # no broker takes that
        coordinator.request_rejoin()
        with pytest.raises(LogUnavailable, match="InvalidSessionTimeout"):
            await take(subscription, 1)
        coordinator._session_timeout_ms = usual
        await log.append(calls(2))
        taken: list[Delivered] = []
        async with asyncio.timeout(30):
            while len(taken) < 2:  # nothing was settled: the first comes again
                with suppress(LogUnavailable):  # told again, until it is joined
                    taken += await subscription.poll(10, 0.2)
        assert values(taken) == [b"1", b"2"]
        await log.close()

    async def test_a_broker_that_is_not_there_is_named(self) -> None:
        log = KafkaLog(Settings(log="kafka://127.0.0.1:1"))
        with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1"):
            await log.prepare()
        await log.close()


class TestOnSqliteOnly:
    """Ownership, onlookers and the hot path of the local log."""

    async def test_a_second_owner_is_refused_and_told_who_the_first_is(self, tmp_path: Path) -> None:
        log = SqliteLog(tmp_path / "log.db")
        with pytest.raises(LogUnavailable, match=f"process {os.getpid()}") as caught:
            SqliteLog(tmp_path / "log.db")
        assert caught.value.code == "log-owned"
        await log.close()
        await SqliteLog(tmp_path / "log.db").close()

    async def test_offsets_are_dense_and_go_on_after_reopening(self, tmp_path: Path) -> None:
        for start in (0, 3):
            log = SqliteLog(tmp_path / "log.db")
            await log.append(calls(*range(3)))
            subscription = await log.follow(("calls",))
            assert [record.offset for record in await catch_up(subscription)] == list(range(start + 3))
            await log.close()

    async def test_an_onlooker_follows_while_the_owner_writes_and_appends_nothing(self, tmp_path: Path) -> None:
        from tidegate.log.sqlite import open_readonly

        log = SqliteLog(tmp_path / "log.db")
        await log.append(calls(1))
        onlooker = open_readonly(tmp_path / "log.db")
        subscription = await onlooker.follow(("calls",))
        assert values(await take(subscription, 1)) == [b"1"]
        waiting = asyncio.create_task(subscription.poll(10, 20))
        await log.append(calls(2))
        assert values(await waiting) == [b"2"]
        with pytest.raises(LogUnavailable):
            await onlooker.append(calls(3))
        await log.close()
        again = open_readonly(tmp_path / "log.db")
        assert values(await take(await again.follow(("calls",)), 2)) == [b"1", b"2"]
        await again.close()
        await onlooker.close()

    async def test_settings_open_the_log_and_an_onlooker_beside_it(self, tmp_path: Path) -> None:
        from tidegate.log.opening import open_log, open_log_for_reading

        settings = Settings(root=str(tmp_path))
        log = open_log(settings)
        await log.prepare()
        await log.append(calls(1))
        onlooker = open_log_for_reading(settings)
        assert values(await catch_up(await onlooker.follow(("calls",)))) == [b"1"]
        await onlooker.close()
        await log.close()

    async def test_an_onlooker_of_nothing_is_told_so(self, tmp_path: Path) -> None:
        from tidegate.log.sqlite import open_readonly

        with pytest.raises(LogUnavailable) as caught:
            open_readonly(tmp_path / "log.db")
        assert caught.value.code == "log-missing"

    async def test_state_topics_keep_the_newest_record_per_key_and_their_offsets(self, tmp_path: Path) -> None:
        log = SqliteLog(tmp_path / "log.db")
        await log.append([Record("policy-state", b"k%d" % (n % 2), b"%d" % n) for n in range(6)])
        await log.prepare()
        await log.append([Record("policy-state", b"k0", b"6")])
        taken = await catch_up(await log.follow(("policy-state",)))
        assert [(record.offset, record.value) for record in taken] == [(4, b"4"), (5, b"5"), (6, b"6")]
        await log.close()

    async def test_a_submitted_record_is_durable_when_its_future_ends(self, tmp_path: Path) -> None:
        log = SqliteLog(tmp_path / "log.db")
        futures = [log.submit(record) for record in calls(*range(50))]
        await futures[-1]
        onlooker = await log.follow(("calls",))
        assert values(await catch_up(onlooker)) == [b"%d" % n for n in range(50)]
        assert log.backlog == 0
        await log.close()
