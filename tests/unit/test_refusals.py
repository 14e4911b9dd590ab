"""However an edge stops, every refusal is told by an event or counted as unrecorded."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tests.parts.sealed import until

import tidegate_edge.refusals
from tidegate.claims import Principal
from tidegate.errors import LogUnavailable
from tidegate.events import RequestRefused
from tidegate_edge.edge import Edge
from tidegate_edge.messages import Reply
from tidegate_edge.refusals import BURST, Refusals

SUBJECTS = 20


@dataclass
class Slow:
    """A recorder whose disk takes as long as it is told to."""

    told: list[RequestRefused] = field(default_factory=list)
    asked: int = 0
    writes: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: bool = False

    async def record(self, event: RequestRefused, mode: str) -> None:
        self.asked += 1
        if self.refuses:
            raise LogUnavailable("the disk is full")
        await self.writes.wait()
        self.told.append(event)


class Place:
    edge = "edge-1"

    def stamp(self, tenant: str) -> dict[str, Any]:
        return {"id": "r", "time_us": 1, "tenant": tenant, "region": "eu"}


@dataclass
class Counters:
    refused_requests: Counter[str] = field(default_factory=Counter)
    unrecorded: int = 0


@dataclass
class Parts:
    """What of an edge refusals use."""

    recorder: Slow = field(default_factory=Slow)
    place: Place = field(default_factory=Place)
    counters: Counters = field(default_factory=Counters)

    def ruling_of(self, principal: Principal) -> None:
        """No bundle rules here."""

    @property
    def accounted(self) -> int:
        return sum(event.count for event in self.recorder.told) + self.counters.unrecorded


def principal(number: int) -> Principal:
    texts = dict.fromkeys(("issuer", "subject", "user", "login", "agent_source", "token_id", "sid", "key"), "")
    given: dict[str, Any] = {"tenant": "acme", "subject_id": f"s{number}", "agent": "a", **texts}
    return Principal(**given, actors=(), groups=(), scopes=(), issued_us=0, expires_us=0)


async def flooded(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float] = lambda: 0.0) -> tuple[Parts, Refusals]:
    """Five summed refusals of each subject, and those of its burst told one by one."""
    monkeypatch.setattr(tidegate_edge.refusals, "SUMMED_S", 0.0)
    parts = Parts()
    parts.recorder.writes.set()
    refusals = Refusals(cast(Edge, parts), frozenset({"tools/call"}), clock)
    for number in range(SUBJECTS):
        for _ in range(BURST + 5):
            await refusals.note(principal(number), "tools/call", Reply(400, b"no"))
    assert len(parts.recorder.told) == SUBJECTS * BURST
    return parts, refusals


REFUSED = SUBJECTS * (BURST + 5)


async def test_a_stop_while_sums_are_written_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, refusals = await flooded(monkeypatch)
    parts.recorder.writes.clear()
    asked = parts.recorder.asked
    running = asyncio.create_task(refusals.run())
    await until(lambda: parts.recorder.asked > asked)
    running.cancel()
    parts.recorder.writes.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (parts.accounted, parts.counters.unrecorded) == (REFUSED, 0)
    assert [event.count for event in parts.recorder.told[-SUBJECTS:]] == [5] * SUBJECTS


async def test_what_an_impatient_stop_leaves_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, refusals = await flooded(monkeypatch)
    parts.recorder.writes.clear()
    asked = parts.recorder.asked
    running = asyncio.create_task(refusals.run())
    await until(lambda: parts.recorder.asked > asked)
    while not running.done():
        running.cancel()
        await asyncio.wait([running], timeout=0.01)
    assert (parts.accounted, parts.counters.unrecorded) == (REFUSED, SUBJECTS * 5)


async def test_sums_that_cannot_be_recorded_count_as_many_as_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, refusals = await flooded(monkeypatch)
    parts.recorder.refuses = True
    await refusals.flush()
    assert (parts.accounted, parts.counters.unrecorded) == (REFUSED, SUBJECTS * 5)


async def test_what_is_refused_after_the_end_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, refusals = await flooded(monkeypatch)
    running = asyncio.create_task(refusals.run())
    await until(lambda: parts.accounted == REFUSED)
    running.cancel()
    await asyncio.wait([running])
    await refusals.note(principal(0), "tools/call", Reply(400, b"no"))
    assert parts.accounted == REFUSED + 1
