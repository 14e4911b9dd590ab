"""Laws of the spool's files: whatever is cut or flipped, no wrong record is delivered and no good prefix is lost."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.chain import Chain, open_head
from tidegate.events import SessionClosed
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
def test_a_flipped_bit_anywhere_costs_the_record_that_it_is_in_and_no_other(
    records: list[Record], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name), records)
        content = bytearray(path.read_bytes())
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        found = shipped_from(Path(name))
        if bit // 8 < HEADER_BYTES:
            assert found == records
            return
        hit = sum(end <= bit // 8 for end in boundaries(records)[1:])
        assert found == records[:hit] + records[hit + 1 :]
        (kept,) = Path(name).glob("*.set-aside")
        start, end = boundaries(records)[hit : hit + 2]
        assert kept.read_bytes() == bytes(content[start:end]).rstrip(b"\0") or kept.read_bytes() == content[start:end]


def event(number: int) -> SessionClosed:
    return SessionClosed(
        id=f"id-{number}",
        time_us=number,
        tenant="acme",
        region="r",
        session_id="s" * (number % 37),
        subject_id="u",
        agent="a",
        cause="deleted",
    )


def numbers(found: list[Record]) -> list[tuple[str, int]]:
    heads = [open_head(record.value or b"") for record in found]
    return [(head.writer, head.seq) for head in heads]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_flipped_cut_or_gone_the_rest_arrives_once_in_order_and_the_loss_is_named(
    data: st.DataObject,
) -> None:
    """Several starts, several segments, any number of injuries, and a mark somewhere in between."""
    with tempfile.TemporaryDirectory() as name:
        directory, given_records = Path(name), []
        for _ in range(data.draw(st.integers(1, 3))):
            spool = Spool(directory, 32_000, edge="e")
            chain = Chain(spool.writer)
            for _ in range(data.draw(st.integers(1, 12))):
                batch = [chain.seal(event(len(given_records) + one)) for one in range(data.draw(st.integers(1, 3)))]
                spool.append(batch)
                given_records += batch
            spool.close()
        damage(directory, data)
        spool = Spool(directory, 32_000, edge="e")
        found: list[Record] = []
        while (chunk := spool.take(5, 1000, 0)) is not None:
            found += chunk.records
            spool.shipped(chunk)
        wanted, got = numbers(given_records), numbers(found)
        assert got == [one for one in wanted if one in set(got)], "in order, each once"
        named_in = [(gap.writer, gap.first, gap.last or 10**9) for one in spool.damages() for gap in one.gaps]
        survivors = {writer for writer, _ in got}
        behind = set(wanted[wanted.index(got[-1]) + 1 :]) if got else set(wanted)  # as if they had never been written
        for writer, seq in set(wanted) - set(got) - behind:
            told = any(writer == of and first <= seq <= last for of, first, last in named_in)
            assert told or (writer not in survivors and spool.damages()), (writer, seq, named_in)
        whole = {record.value for record in given_records}
        assert all(record.value in whole for record in found), "no record that nobody wrote"
        spool.close()
        again = Spool(directory, 32_000, edge="e")
        assert again.damages() == spool.damages(), "remembered until events tell of them"
        again.told(again.damages())
        again.close()
        third = Spool(directory, 32_000, edge="e")
        assert third.damages() == []
        third.close()


def damage(directory: Path, data: st.DataObject) -> None:
    """Up to three injuries of segments: a flipped bit, a cut end, an overwritten stretch, a lost or renamed file."""
    for _ in range(data.draw(st.integers(1, 3))):
        paths = sorted(directory.glob("*.segment"))
        if not paths:
            return
        path = data.draw(st.sampled_from(paths))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "zeros", "noise", "gone", "renamed", "doubled"])):
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
                path.write_bytes(content)
            case "cut" if at > 0:
                path.write_bytes(content[:at])
            case "zeros":
                content[at : at + 90] = bytes(len(content[at : at + 90]))
                path.write_bytes(content)
            case "noise":
                content[at : at + 40] = data.draw(st.binary(min_size=1, max_size=40))
                path.write_bytes(content)
            case "gone":
                path.unlink()
            case "renamed":
                path.rename(path.with_suffix(".old"))
            case "doubled":
                path.with_name("copy.segment").write_bytes(content)
