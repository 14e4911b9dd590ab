"""Laws of the detector's rules: what they conclude depends on the calls, not on delivery, repetition or restarts."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parts.detector_events import SECOND, START_US, reading, request, sending

from tidegate.events import CallCompleted, CallRequested
from tidegate.settings import Burst, Detector, Exfiltration
from tidegate_detector.burst import WINDOWS_OPEN
from tidegate_detector.state import PartitionState, observe

SETTINGS = Detector(burst=Burst(window_s=10, calls_min=5), exfiltration=Exfiltration(memory_s=600, shared_min=2))
WORDS = [f"{n:016x}" for n in range(6)]
PRINTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True).map(tuple)
TIMES = st.integers(0, 500).map(lambda second: START_US + second * SECOND)
SUBJECTS = st.sampled_from(["a", "b"])
Call = CallRequested | CallCompleted


@st.composite
def calls(draw: st.DrawFn) -> list[Call]:
    """Reads, sends and others of two subjects, in the order of delivery."""
    made: list[Call] = []
    for number in range(draw(st.integers(0, 25))):
        kind, at_us, subject = draw(st.integers(0, 2)), draw(TIMES), draw(SUBJECTS)
        if kind == 0:
            made.append(reading(at_us, f"c{number}", fingerprints=draw(PRINTS), subject_id=subject))
        elif kind == 1:
            made.append(sending(at_us, f"c{number}", fingerprints=draw(PRINTS), subject_id=subject))
        else:
            made.append(request(at_us, f"c{number}", subject_id=subject))
    return made


def leaks(state: PartitionState, events: list[Call]) -> list[str]:
    """Egress calls that were reported, once for each report."""
    found = [finding for event in events for finding in observe(state, event, SETTINGS)]
    return [finding.call_ids[1] for finding in found if finding.rule == "exfiltration"]


def ids(state: PartitionState, events: list[Call]) -> list[str]:
    return [finding.id for event in events for finding in observe(state, event, SETTINGS)]


@settings(deadline=None)
@given(events=calls())
def test_exactly_the_egress_calls_that_share_passages_with_an_earlier_read_are_reported(events: list[Call]) -> None:
    reads = [event for event in events if isinstance(event, CallCompleted)]
    expected = {
        send.call_id
        for send in events
        if isinstance(send, CallRequested) and "egress" in send.labels
        for read in reads
        if read.subject_id == send.subject_id
        and len(set(read.fingerprints) & set(send.fingerprints)) >= 2
        and -2 * SECOND <= send.requested_us - read.completed_us <= 600 * SECOND
    }
    found = leaks(PartitionState(), events)
    assert len(found) == len(set(found))
    assert set(found) == expected


@settings(deadline=None)
@given(events=calls(), data=st.data())
def test_the_order_of_delivery_does_not_matter_for_leaks(events: list[Call], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(events))
    assert set(leaks(PartitionState(), events)) == set(leaks(PartitionState(), shuffled))


@settings(deadline=None)
@given(events=calls(), data=st.data())
def test_records_delivered_again_raise_nothing_new(events: list[Call], data: st.DataObject) -> None:
    state = PartitionState()
    first = ids(state, events)
    again = data.draw(st.lists(st.sampled_from(events), max_size=10)) if events else []
    assert ids(state, again) == []
    assert len(first) == len(set(first))


@settings(deadline=None)
@given(events=calls(), data=st.data())
def test_a_restart_at_any_place_continues_as_if_there_had_been_none(events: list[Call], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(events)))
    whole = ids(PartitionState(), events)
    before = ids(PartitionState(), events[:cut])
    again = PartitionState()
    assert ids(again, events[:cut]) == before  # read again, not judged again: the same ids
    assert before + ids(again, events[cut:]) == whole


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 60), max_size=40), factor=st.floats(2, 10))
def test_a_window_below_the_least_number_of_calls_is_never_a_burst(numbers: list[int], factor: float) -> None:
    state = PartitionState()
    rule = Burst(window_s=10, calls_min=61, factor=factor)
    detector = Detector(burst=rule)
    for window, number in enumerate(numbers):
        for n in range(number):
            event = request(START_US + window * 10 * SECOND + n, f"{window}-{n}")
            assert observe(state, event, detector) == []
    assert all(len(known.history.windows) <= WINDOWS_OPEN for known in state.principals.values())
