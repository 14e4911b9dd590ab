"""The event reader: however the bytes are cut, the events are those of a plain reading of the whole."""

import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate_edge.upstream.sse import Event, EventReader

line = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b"data:  two",
        b"data:",
        b": comment",
        b"id: 7",
        b"id: 8-b",
        b"id",
        b"id: a\0b",
        b"event: x",
        b"datax: no",
        b"",
        b"",
        b"retry: 1",
        b"retry: 1x",
        "data: é".encode(),
        b"data: a: b",
        b"field",
    ]
)
streams = st.lists(st.tuples(line, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20).map(
    lambda lines: b"".join(text + end for text, end in lines)
)


def reference(stream: bytes) -> tuple[list[Event], str, int | None]:
    """WHATWG HTML 9.2.6 on the whole stream: only what an empty line completes counts."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    events: list[Event] = []
    data: list[bytes] = []
    kind, last_id, pending_id, retry_ms = b"", "", "", None
    for one in lines:
        name, _, value = one.partition(b":")
        value = value.removeprefix(b" ")
        if not one:
            last_id = pending_id
            events += [Event(b"\n".join(data), kind)] if data else []
            data, kind = [], b""
        elif name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
        elif name == b"id" and b"\0" not in value:
            pending_id = value.decode()
        elif name == b"retry" and value.isdigit():
            retry_ms = int(value)
    return events, last_id, retry_ms


@settings(max_examples=500, deadline=None)
@given(st.booleans(), streams, st.lists(st.integers(0, 200), max_size=8))
def test_events_do_not_depend_on_the_cuts(marked: bool, stream: bytes, cuts: list[int]) -> None:
    stream = (b"\xef\xbb\xbf" if marked else b"") + stream + b"\n\n"  # so that a last CR is decided
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader = EventReader()
    found = [event for start, end in itertools.pairwise(at) for event in reader.feed(stream[start:end])]
    assert (found, reader.last_id, reader.retry_ms) == reference(stream)


@settings(max_examples=300, deadline=None)
@given(streams)
def test_byte_by_byte_is_the_whole(stream: bytes) -> None:
    reader = EventReader()
    stream += b"\n\n"
    found = [event for number in range(len(stream)) for event in reader.feed(stream[number : number + 1])]
    assert (found, reader.last_id, reader.retry_ms) == reference(stream)


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_are_read_without_a_fault(chunks: list[bytes]) -> None:
    reader = EventReader()
    for chunk in chunks:
        assert all(isinstance(event.data, bytes) for event in reader.feed(chunk))
        assert reader.held_bytes <= sum(map(len, chunks)) + len(chunks)


def test_a_long_line_in_small_pieces_costs_time_in_proportion() -> None:
    reader = EventReader()
    began_s = time.process_time()
    for _ in range(4_000):
        assert reader.feed(b"data: " + b"x" * 1000) == []
    assert reader.held_bytes == 4_000 * 1_006
    assert len(reader.feed(b"\n\n")) == 1
    assert time.process_time() - began_s < 2.0
    assert reader.held_bytes == 0


def test_a_stream_can_be_come_back_to_only_if_all_its_events_have_ids() -> None:
    with_ids, without, mixed = EventReader(), EventReader(), EventReader()
    with_ids.feed(b"id: 1\ndata:\n\nid: 2\ndata: a\n\nid: 3\n")
    assert (with_ids.unmarked, with_ids.last_id) == (False, "2")
    without.feed(b"data: a\n\n")
    assert (without.unmarked, without.last_id) == (True, "")
    mixed.feed(b"id: 1\ndata: a\n\ndata: b\n\n")
    assert mixed.unmarked


def test_an_id_that_no_header_can_carry_is_none() -> None:
    for bad in ("é".encode(), b"\x01", b"x" * 2_000):
        reader = EventReader()
        reader.feed(b"id: " + bad + b"\ndata: a\n\n")
        assert reader.last_id == ""
