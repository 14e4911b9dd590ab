"""Records into columns: what may come in, what is a dead letter, what stands in which column."""

import asyncio
from typing import Any, get_args

import msgspec
import pytest
from tests.parts.audit_events import abandoned, calls, completed, delivered, finding, requested

from tidegate.chain import Chain
from tidegate.events import AnyEvent, DecisionInputs, Event, FindingRaised, Shadowed
from tidegate.log.port import Delivered, Partition, Record
from tidegate_audit_consumer.batch import Bounds, ends_of, gather
from tidegate_audit_consumer.dead_letters import MESSAGE_BYTES_MAX, dead_letter
from tidegate_audit_consumer.hand import Hand
from tidegate_audit_consumer.progress import Progress
from tidegate_audit_consumer.reading import Unreadable
from tidegate_audit_consumer.rows import SLICE, open_batch
from tidegate_audit_consumer.store import token_of
from tidegate_detector.ocsf import seal_finding


def opened(*events: AnyEvent) -> Any:
    chain = Chain("w")
    return open_batch(delivered([chain.seal(event) for event in events]))


def reason(value: bytes | None, topic: str = "calls") -> str:
    (letter,) = open_batch([Delivered(topic, 3, 7, b"k", value, (), 1)]).unreadable
    return letter.reason


def test_batches_longer_than_a_slice_keep_every_record() -> None:
    records = calls(SLICE)
    result = open_batch(delivered(records))
    assert sorted(result.events["offset"]) == list(range(2 * SLICE))
    assert sorted(result.events["raw"]) == sorted(record.value or b"" for record in records)
    assert result.calls["version"].count(1) == result.calls["version"].count(3) == SLICE
    assert {len(column) for column in result.calls.values()} == {2 * SLICE}


def test_rows_stay_together_across_columns() -> None:
    request = requested("a")
    result = opened(completed(requested("b")), request, abandoned(requested("c")))
    by_call = dict(
        zip(result.calls["call_id"], zip(result.calls["version"], result.calls["outcome"], strict=True), strict=True)
    )
    assert by_call == {"a": (1, ""), "b": (3, "ok"), "c": (2, "")}
    assert dict(zip(result.events["call_id"], result.events["type"], strict=True)) == {
        "a": "call.requested.v1",
        "b": "call.completed.v1",
        "c": "call.abandoned.v1",
    }


def test_what_an_event_does_not_know_is_the_least_value_of_its_column() -> None:
    (request,), (completion,) = (
        [dict(zip(result.calls, values, strict=True)) for values in zip(*result.calls.values(), strict=True)]
        for result in (
            opened(requested("a", 1_700_000_000_000_000)),
            opened(completed(requested("a", 1_700_000_000_000_000))),
        )
    )
    least: dict[type, Any] = {str: "", bytes: b"", int: 0, bool: False, tuple: (), list: [], type(None): None}
    shared = {"tenant", "requested_at", "call_id", "version", "arguments_bytes"}
    for column in request.keys() - shared:
        values = [request[column], completion[column]]
        assert values[0] == values[1] or any(not value or value == least[type(value)] for value in values), column


def test_unreadable_records_are_told_apart() -> None:
    assert reason(None) == "no-value"
    assert reason(b"") == "not-json"
    assert reason(b'{"type":"call.requested.v1","x":' + b"[" * 100_000) == "not-json"
    assert reason(b'{"type":"call.requested.v1","id":"\xff"}') == "not-json"
    assert reason(b"[]") == "wrong-shape"
    assert reason(b'{"id":"x"}') == "wrong-shape"
    assert reason(b'{"type":"call.requested.v1"}') == "wrong-shape"
    assert reason(b'{"type":"no.such.v1"}') == "unknown-type"
    assert reason(finding(), topic="calls") == "wrong-shape"
    assert reason(Chain("w").seal(requested()).value, topic="detections") == "wrong-shape"
    assert reason(finding().replace(b"2004", b"2001"), topic="detections") == "wrong-shape"


@pytest.mark.parametrize(
    "change",
    [
        {"time_us": 5},
        {"time_us": 10**18},
        {"requested_us": -1},
        {"arguments_bytes": -1},
        {"arguments_bytes": 2**63},
        {"id": ""},
        {"tenant": ""},
        {"total_us": 2**64},
        {"masked": -1},
        {"records": -1},
        {"cost_micros": 2**63},
        {"completed_us": 0},
        {"error_code": -(2**64)},
    ],
)
def test_values_that_no_column_holds_are_dead_letters_and_never_stop_a_batch(change: dict[str, Any]) -> None:
    event = msgspec.structs.replace(completed(requested()), **change)
    assert reason(Chain("w").seal(event).value) == "out-of-range"


@pytest.mark.parametrize(
    "change",
    [
        {"retry_after_ms": -1},
        {"inputs": DecisionInputs(release=-1)},
        {"inputs": DecisionInputs(control_epoch=2**63)},
        {"shadows": (Shadowed(bundle="b", decision="deny", release=-1),)},
    ],
)
def test_what_a_request_alone_says_is_in_range_too(change: dict[str, Any]) -> None:
    event = msgspec.structs.replace(requested(), **change)
    assert reason(Chain("w").seal(event).value) == "out-of-range"


@pytest.mark.parametrize("bad", [None, b"{", Chain("w").seal(msgspec.structs.replace(requested(), id="")).value])
def test_records_beside_an_unreadable_one_make_the_rows_that_they_make_without_it(bad: bytes | None) -> None:
    good = delivered(calls(20))
    result = open_batch([*good[:7], Delivered("calls", 0, 1_000, b"", bad, (), 1), *good[7:]])
    alone = open_batch(good)
    assert (result.events.laid_out, result.calls.laid_out) == (alone.events.laid_out, alone.calls.laid_out)
    assert [one.record.offset for one in result.unreadable] == [1_000]


def test_a_finding_as_the_detector_publishes_it_fills_its_columns() -> None:
    raised = FindingRaised(
        id="f1",
        time_us=1_700_000_000_123_456,
        tenant="acme",
        region="eu",
        rule="burst",
        severity="critical",
        title="Burst",
        message="far over the baseline",
        subject_id="u",
        agent="a",
        session_id="s",
        server="git",
        target="git_log",
        call_ids=("c1", "c2"),
    )
    record = seal_finding(Chain("detector.1"), raised)
    result = open_batch(delivered([record]))
    found = {name: column[0] for name, column in result.findings.items()}
    names = (
        "rule",
        "severity",
        "title",
        "message",
        "subject_id",
        "agent",
        "session_id",
        "server",
        "target",
        "call_ids",
    )
    assert {name: found[name] for name in names} == {name: getattr(raised, name) for name in names}
    assert (found["finding_id"], found["raised_at"], found["ocsf"]) == ("f1", raised.time_us, record.value)
    event = {name: column[0] for name, column in result.events.items()}
    assert (event["writer"], event["seq"], event["raw"]) == ("detector.1", 1, record.value)


def test_a_dead_letter_keeps_key_bytes_and_headers_and_bounds_its_message() -> None:
    record = Delivered("calls", 3, 7, b"\xff", b"\x00", (("h", b"1"), ("h", b"2")), 1)
    letter = dead_letter(Unreadable(record, "not-json", "ü" * 5_000))
    assert letter[:3] == ("dead-letters", b"\xff", b"\x00")
    assert letter.headers[:2] == record.headers
    assert len(dict(letter.headers)["dlq.error.message"].decode()) == MESSAGE_BYTES_MAX


def test_tokens_name_positions_and_order() -> None:
    records = delivered(calls(2))
    assert token_of(records) == token_of(list(records))
    assert len({token_of(records), token_of(records[:-1]), token_of(records[::-1])}) == 3


def test_ends_are_the_next_offset_of_each_partition() -> None:
    records = [Delivered("calls", p, o, b"", b"", (), 1) for p, o in ((0, 4), (1, 9), (0, 5))]
    assert ends_of(records) == {Partition("calls", 0): 6, Partition("calls", 1): 10}


def test_every_type_of_event_finds_its_columns() -> None:
    for kind in get_args(AnyEvent):
        assert issubclass(kind, Event)
    session = (
        b'{"type":"session.closed.v1","id":"x","time_us":1700000000000000,"tenant":"t","region":"r","session_id":"s",'
    )
    session += b'"subject_id":"u","agent":"a","cause":"deleted"}'
    result = open_batch(delivered([Record("sessions", b"k", session)]))
    assert (result.events["session_id"], result.events["call_id"], result.calls) == (["s"], [""], {})


class Handing:
    """A subscription that hands out what it was given, then nothing, at once."""

    caught_up = True

    def __init__(self, records: list[Delivered]) -> None:
        self.records = records
        self.asked: list[int] = []

    async def poll(self, records_max: int, timeout_s: float) -> list[Delivered]:
        self.asked.append(records_max)
        found, self.records = self.records[:records_max], self.records[records_max:]
        if not found:
            await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=timeout_s)
        return found

    async def settle(self, offsets: Any) -> None: ...

    async def lag(self) -> int:
        return len(self.records)

    async def close(self) -> None: ...


class Nothing:
    """Analytics that nobody should ask."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


async def test_what_a_rebalance_takes_away_is_never_settled_and_what_comes_anew_is() -> None:
    hand = Hand(Progress(Nothing()))
    first, second = Partition("calls", 0), Partition("calls", 1)
    hand.take([Delivered("calls", p, o, b"", b"xx", (), 1) for p, o in ((0, 10), (1, 20), (0, 11))])
    await hand.revoked(frozenset({first}))
    assert ends_of(hand.records) == {second: 21}
    assert hand.bytes == 2
    await hand.assigned(frozenset({first}))
    hand.take([Delivered("calls", 0, 50, b"", b"xx", (), 1)])
    assert ends_of(hand.records) == {first: 51, second: 21}


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (Bounds(records_max=10, age_max_s=5), 10),
        (Bounds(bytes_max=1, age_max_s=5), 256),
        (Bounds(age_max_s=0.02), 600),
    ],
)
async def test_a_batch_ends_at_its_first_bound(bounds: Bounds, expected: int) -> None:
    subscription, hand = Handing(delivered(calls(300))), Hand(Progress(Nothing()))
    async with asyncio.timeout(2):
        await gather(subscription, hand, bounds, lambda: False)
    assert len(hand.records) == expected
    assert max(subscription.asked) <= 256
