"""The event reader: however the bytes are cut, the events are those of a plain reading of the whole."""

import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate_edge.upstream.sse import EventReader

line = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b"data:  two",
        b"data:",
        b": comment",
        b"id: 7",
        b"event: x",
        b"datax: no",
        b"",
        b"",
        b"retry: 1",
        "data: é".encode(),
        b"data: a: b",
        b"field",
    ]
)
streams = st.lists(st.tuples(line, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20).map(
    lambda lines: b"".join(text + end for text, end in lines)
)


def reference(stream: bytes) -> list[bytes]:
    """WHATWG HTML 9.2.6 on the whole stream: only what an empty line completes counts."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    events: list[bytes] = []
    data: list[bytes] = []
    for one in lines:
        name, _, value = one.partition(b":")
        if not one and data:
            events.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return events


@settings(max_examples=500, deadline=None)
@given(st.booleans(), streams, st.lists(st.integers(0, 200), max_size=8))
def test_events_do_not_depend_on_the_cuts(marked: bool, stream: bytes, cuts: list[int]) -> None:
    stream = (b"\xef\xbb\xbf" if marked else b"") + stream + b"\n\n"  # so that a last CR is decided
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader = EventReader()
    found = [event for start, end in itertools.pairwise(at) for event in reader.feed(stream[start:end])]
    assert found == reference(stream)
    assert reader.events == found


@settings(max_examples=300, deadline=None)
@given(streams)
def test_byte_by_byte_is_the_whole(stream: bytes) -> None:
    reader = EventReader()
    for number in range(len(stream)):
        reader.feed(stream[number : number + 1])
    reader.feed(b"\n\n")
    assert reader.events == reference(stream + b"\n\n")


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_are_read_without_a_fault(chunks: list[bytes]) -> None:
    reader = EventReader()
    for chunk in chunks:
        reader.feed(chunk)
    assert all(isinstance(event, bytes) for event in reader.events)


def test_a_long_line_in_small_pieces_costs_time_in_proportion() -> None:
    reader = EventReader()
    began_s = time.process_time()
    for _ in range(4_000):
        reader.feed(b"data: " + b"x" * 1000)
    reader.feed(b"\n\n")
    assert time.process_time() - began_s < 2.0
    assert len(reader.events) == 1
