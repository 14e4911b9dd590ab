"""The exfiltration rule: what was read from a sensitive server, seen in arguments to an egress server."""

import pytest
from tests.parts.detector_events import PASSAGE, SECOND, START_US, reading, request, sending

from tidegate.events import CallCompleted, CallRequested, FindingRaised
from tidegate.settings import Exfiltration
from tidegate_detector.exfiltration import SIDE_MAX, Memory, concerns, observe

SETTINGS = Exfiltration(memory_s=600)
OTHER = "Something else entirely, which is long enough to have fingerprints of its own but shares none with the rest"


def judged(*events: CallRequested | CallCompleted, memory: Memory | None = None) -> list[FindingRaised]:
    memory = memory or Memory()
    return [finding for event in events for finding in observe(memory, event, SETTINGS)]


def test_text_that_was_read_and_then_sent_is_a_finding_that_names_both_calls() -> None:
    (finding,) = judged(reading(START_US, "read-1"), sending(START_US + SECOND, "send-1"))
    assert finding.call_ids == ("read-1", "send-1")
    assert (finding.rule, finding.severity, finding.server, finding.target) == ("exfiltration", "high", "mail", "send")
    assert "files/read" in finding.message
    assert "mail/send" in finding.message


def test_the_order_in_which_the_two_are_read_does_not_matter() -> None:
    read, send = reading(START_US, "read-1"), sending(START_US + SECOND, "send-1")
    assert [finding.id for finding in judged(read, send)] == [finding.id for finding in judged(send, read)]


@pytest.mark.parametrize(
    "events",
    [
        (reading(START_US, "r", OTHER), sending(START_US + SECOND, "s")),
        (reading(START_US, "r"), sending(START_US - 10 * SECOND, "s")),  # sent before it was read
        (reading(START_US, "r"), sending(START_US + 601 * SECOND, "s")),  # longer ago than the memory
        (reading(START_US, "r"), reading(START_US + 1, "r2")),
        (sending(START_US, "s"), sending(START_US + 1, "s2")),
    ],
)
def test_what_is_no_leak_is_no_finding(events: tuple[CallRequested | CallCompleted, ...]) -> None:
    assert judged(*events) == []
    assert judged(*reversed(events)) == []


def test_one_passage_in_common_is_not_enough_when_two_are_asked_for() -> None:
    read, send = reading(START_US, "r", fingerprints=("0a", "0b")), sending(START_US, "s", fingerprints=("0b", "0c"))
    assert judged(read, send) == []
    assert len(observe(Memory(), read, SETTINGS)) == 0
    memory = Memory()
    observe(memory, read, Exfiltration(shared_min=1))
    assert len(observe(memory, send, Exfiltration(shared_min=1))) == 1


def test_an_egress_call_is_reported_once_and_names_the_read_that_shares_most() -> None:
    part = PASSAGE[:70]
    events = [reading(START_US, "part", part), reading(START_US + 1, "whole"), reading(START_US + 2, "part-2", part)]
    memory = Memory()
    (finding,) = judged(*events, sending(START_US + SECOND, "s"), memory=memory)
    assert finding.call_ids == ("whole", "s")
    assert judged(reading(START_US + 3, "late"), sending(START_US + SECOND, "s"), memory=memory) == []


def test_an_attempt_that_policy_refused_is_reported_as_such() -> None:
    (finding,) = judged(reading(START_US, "r"), sending(START_US + 1, "s", decision="deny"))
    assert "was refused (deny)" in finding.message


def test_only_the_two_sides_concern_the_rule() -> None:
    assert concerns(reading(START_US, "r"))
    assert concerns(sending(START_US, "s"))
    assert not concerns(reading(START_US, "r", labels=("egress",)))
    assert not concerns(sending(START_US, "s", labels=("sensitive",)))
    assert not concerns(sending(START_US, "s", fingerprints=()))
    assert not concerns(reading(START_US, "r", outcome="blocked"))
    assert not concerns(request(START_US))


def test_fingerprints_of_an_unknown_form_are_left_out() -> None:
    assert judged(reading(START_US, "r", fingerprints=("not-hex",)), sending(START_US, "s")) == []


def test_memory_is_bounded_and_what_had_to_go_is_counted() -> None:
    memory = Memory()
    for n in range(SIDE_MAX + 10):
        observe(memory, reading(START_US + n, f"r{n}", fingerprints=(f"{n:x}",)), SETTINGS)
    assert len(memory.reads.calls) == SIDE_MAX
    assert memory.evicted == 10
    assert memory.prints == len(memory.reads.holders) == SIDE_MAX


def test_what_is_older_than_the_memory_leaves_nothing_behind() -> None:
    memory = Memory()
    judged(reading(START_US, "r"), sending(START_US + 1, "s"), memory=memory)
    judged(reading(START_US + 3_600 * SECOND, "r2", OTHER), memory=memory)
    assert set(memory.reads.calls) == {"r2"}
    assert memory.sends.calls == memory.sends.holders == {}
