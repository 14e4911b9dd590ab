"""Laws of the spool's files: whatever is cut or flipped, no wrong record is delivered and no good prefix is lost."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.log.frames import decode, encode
from tidegate.log.port import Record
from tidegate.log.segments import HEADER_BYTES
from tidegate.log.spool import Spool

a_record = st.builds(
    Record,
    st.sampled_from(["calls", "sessions", "dead-letters"]),
    st.binary(max_size=40),
    st.none() | st.binary(max_size=200),
    st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=3).map(tuple),
)
some_records = st.lists(a_record, min_size=1, max_size=12)


def boundaries(records: list[Record]) -> list[int]:
    """Where each record ends in the segment."""
    ends, at = [HEADER_BYTES], HEADER_BYTES
    for record in records:
        at += len(encode([record]))
        ends.append(at)
    return ends


def shipped_from(directory: Path) -> list[Record]:
    spool = Spool(directory, 1 << 20, edge="e")
    found: list[Record] = []
    while (chunk := spool.take(5, 1000, 0)) is not None:
        found += chunk.records
        spool.shipped(chunk)
    spool.close()
    return found


def written(directory: Path, records: list[Record]) -> Path:
    spool = Spool(directory, 1 << 20, edge="e")
    spool.append(records)
    spool.close()
    (path,) = directory.glob("*.segment")
    return path


@given(some_records)
def test_what_is_encoded_is_decoded(records: list[Record]) -> None:
    buffer, at, found = encode(records), 0, []
    while (step := decode(buffer, at)) is not None:
        found.append(step[0])
        at = step[1]
    assert found == records
    assert at == len(buffer)


@settings(max_examples=60, deadline=None)
@given(some_records, st.data())
def test_a_segment_cut_anywhere_delivers_exactly_the_whole_records_before(
    records: list[Record], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name), records)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        zeros = data.draw(st.sampled_from([0, 1, 7, 4096]))  # what a grown file may hold behind a torn write
        path.write_bytes(content[:cut] + bytes(zeros))
        whole = sum(end <= cut for end in boundaries(records)[1:])
        found = shipped_from(Path(name))
        assert found == records[: len(found)]
        assert len(found) >= whole  # more only where the bytes cut off were zeros, put back by the zeros behind


@settings(max_examples=120, deadline=None)
@given(some_records, st.data())
def test_a_flipped_bit_anywhere_delivers_exactly_the_records_before_it(
    records: list[Record], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name), records)
        content = bytearray(path.read_bytes())
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        found = shipped_from(Path(name))
        good = 0 if bit // 8 < HEADER_BYTES else sum(end <= bit // 8 for end in boundaries(records)[1:])
        assert found == records[:good] or (found == records and HEADER_BYTES - 4 <= bit // 8 < HEADER_BYTES)
        if found != records:
            assert list(Path(name).glob("*.set-aside"))
