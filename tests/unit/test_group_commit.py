"""Group commit: order, batching, bounds, and what happens to those behind a failed batch."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from tidegate.errors import LogUnavailable
from tidegate.limits import EVENT_BYTES_MAX
from tidegate.log.commit import GroupCommit
from tidegate.log.port import Record


class Medium:
    """Keeps batches; holds them up while the gate is shut; fails while `fault` is set."""

    def __init__(self) -> None:
        self.batches: list[list[bytes | None]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fault: Exception | None = None
        self.closed = False

    def append(self, records: Sequence[Record]) -> None:
        self.entered.release()
        assert self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        self.batches.append([record.value for record in records])

    def close(self) -> None:
        self.closed = True

    async def hold_up(self, commit: GroupCommit, number: int) -> "asyncio.Future[None]":
        """Shut the gate with one record in the medium's hands."""
        self.gate.clear()
        future = commit.submit(record(number))
        assert await asyncio.to_thread(self.entered.acquire, True, 10)
        return future


def record(number: int) -> Record:
    return Record("calls", b"k", b"%d" % number)


def commit_to(medium: Medium, **options: object) -> GroupCommit:
    return GroupCommit(medium, **{"records_max": 100, "name": "test", **options})  # type: ignore[arg-type]


async def test_what_gathers_while_a_batch_is_written_becomes_the_next_in_order() -> None:
    medium = Medium()
    commit = commit_to(medium)
    first = await medium.hold_up(commit, 0)
    behind = [commit.submit(record(number)) for number in range(1, 6)]
    assert commit.backlog == 6
    medium.gate.set()
    await asyncio.gather(first, *behind)
    assert medium.batches == [[b"0"], [b"1", b"2", b"3", b"4", b"5"]]
    assert commit.backlog == 0
    await commit.close()
    assert medium.closed


async def test_a_future_ends_only_when_its_record_is_durable() -> None:
    medium = Medium()
    commit = commit_to(medium)
    future = await medium.hold_up(commit, 0)
    assert not future.done()
    medium.gate.set()
    await future
    assert medium.batches == [[b"0"]]
    await commit.close()


async def test_past_the_bound_a_record_is_refused_and_an_append_is_refused_whole() -> None:
    medium = Medium()
    commit = commit_to(medium, records_max=3)
    first = await medium.hold_up(commit, 0)
    second = commit.submit(record(1))
    with pytest.raises(LogUnavailable) as caught:
        await commit.append([record(8), record(9)])
    assert caught.value.code == "log-full"
    third = commit.submit(record(2))
    with pytest.raises(LogUnavailable):
        commit.submit(record(9))
    medium.gate.set()
    await asyncio.gather(first, second, third)
    assert medium.batches == [[b"0"], [b"1", b"2"]]
    await commit.close()


async def test_a_record_over_the_limit_is_refused_alone() -> None:
    medium = Medium()
    commit = commit_to(medium)
    kept = commit.submit(record(1))
    with pytest.raises(LogUnavailable) as caught:
        commit.submit(Record("calls", b"k", b"x" * (EVENT_BYTES_MAX + 1)))
    assert caught.value.code == "record-too-large"
    await kept
    assert medium.batches == [[b"1"]]
    await commit.close()


@pytest.mark.parametrize("fault", [LogUnavailable("away", code="spool-full"), RuntimeError("a bug")])
async def test_a_failed_batch_fails_those_behind_it_after_telling_once_and_the_next_goes_on(fault: Exception) -> None:
    medium = Medium()
    told: list[tuple[str, bool, int]] = []
    futures: list[asyncio.Future[None]] = []

    def tell(failure: LogUnavailable) -> None:
        told.append((failure.code, futures[0].done(), commit.backlog))

    commit: GroupCommit = commit_to(medium, on_fault=tell)
    await commit.append([record(-1)])
    assert await asyncio.to_thread(medium.entered.acquire, True, 10)
    first = await medium.hold_up(commit, 0)
    futures.append(first)
    behind = commit.submit(record(1))
    medium.fault = fault
    medium.gate.set()
    results = await asyncio.gather(first, behind, return_exceptions=True)
    assert all(isinstance(result, LogUnavailable) for result in results)
    assert told == [("spool-full" if isinstance(fault, LogUnavailable) else "log-unavailable", False, 0)]
    assert commit.durable == record(-1)
    medium.fault = None
    await commit.append([record(2)])
    assert medium.batches == [[b"-1"], [b"2"]]
    assert commit.durable == record(2)
    await commit.close()


async def test_a_cancelled_caller_takes_nobody_with_it() -> None:
    medium = Medium()
    commit = commit_to(medium)
    first = await medium.hold_up(commit, 0)
    cancelled, other = commit.submit(record(1)), commit.submit(record(2))
    cancelled.cancel()
    medium.gate.set()
    await asyncio.gather(first, other)
    assert medium.batches == [[b"0"], [b"1", b"2"]]
    await commit.close()


async def test_closing_makes_what_is_pending_durable_and_refuses_more() -> None:
    medium = Medium()
    commit = commit_to(medium)
    await medium.hold_up(commit, 0)
    commit.submit(record(1))
    closing = asyncio.create_task(commit.close())
    await asyncio.sleep(0)
    with pytest.raises(LogUnavailable) as caught:
        commit.submit(record(2))
    assert caught.value.code == "log-closed"
    medium.gate.set()
    await closing
    assert medium.batches == [[b"0"], [b"1"]]
    assert medium.closed
