"""The spool: what was acknowledged survives every end of its process, in order; what is damaged is kept, reported."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from tidegate.chain import Chain, open_head
from tidegate.errors import LogUnavailable
from tidegate.events import CallAbandoned, CallCompleted, CallRequested, Decided, Sealed
from tidegate.ids import now_us, uuid7
from tidegate.limits import EVENT_BYTES_MAX
from tidegate.log import segments
from tidegate.log.frames import encode
from tidegate.log.port import Record
from tidegate.log.recovery import scan
from tidegate.log.spool import Shipper, Spool

MIB = 1024 * 1024


def records(*numbers: int, size: int = 100) -> list[Record]:
    return [Record("calls", b"k%d" % (number % 3), b"%d:" % number + b"x" * size) for number in numbers]


def rest_of(spool: Spool) -> list[Record]:
    """Everything unshipped, shipped now."""
    found: list[Record] = []
    while (chunk := spool.take(7, 10_000, 0)) is not None:
        found += chunk.records
        spool.shipped(chunk)
    return found


class Collector:
    """A real place that records go to; refuses while `away`."""

    def __init__(self) -> None:
        self.got: list[Record] = []
        self.away = False
        self.attempts = 0
        self.changed = threading.Condition()

    def append(self, batch: Sequence[Record]) -> None:
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
            if self.away:
                raise LogUnavailable("away")
            self.got += batch

    def close(self) -> None: ...

    def wait(self, fact: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(fact, 10)


def call(
    kind: type[CallRequested] | type[CallCompleted] | type[CallAbandoned],
    call_id: str,
    decision: Decided = "allow",
    **more: object,
) -> CallRequested | CallCompleted | CallAbandoned:
    return kind(
        id=uuid7(),
        time_us=now_us(),
        tenant='te"na"nt "call_id":"forged" "decision":"deny"',
        region="r",
        call_id=call_id,
        root_call_id=call_id,
        requested_us=1,
        subject_id="s",
        agent="a",
        session_id="x",
        method="tools/call",
        server="git",
        target='"type":"call.completed.v1"',
        mode="spool",
        decision=decision,
        **more,  # type: ignore[arg-type]
    )


def requested(call_id: str, decision: Decided = "allow") -> CallRequested:
    decoy = msgspec.Raw(b'{"decision":"allow","call_id":"other","type":"call.completed.v1"}')
    event = call(CallRequested, call_id, decision, sealed=Sealed(arguments=decoy))
    assert isinstance(event, CallRequested)
    return event


def completed(call_id: str) -> CallCompleted:
    event = call(CallCompleted, call_id, outcome="ok", completed_us=2)
    assert isinstance(event, CallCompleted)
    return event


def test_what_is_appended_is_taken_in_order_and_only_until_it_is_shipped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB, edge="e")
    given = [*records(*range(10)), Record("sessions", b"\x00\xff", None), Record("policy", b"", b"", (("h", b"\xfe"),))]
    spool.append(given[:5])
    spool.append(given[5:])
    chunk = spool.take(100, MIB, 0)
    assert chunk is not None
    assert chunk.records == given
    assert spool.backlog().records == 12
    spool.shipped(chunk)
    assert spool.take(100, MIB, 0) is None
    assert spool.backlog() == (0, 0, 0.0)
    spool.close()


def test_a_restart_ships_what_was_left_in_order_under_a_new_epoch(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB, edge="e")
    first_writer = spool.writer
    spool.append(records(*range(20)))
    chunk = spool.take(7, 1, 0)
    assert chunk is not None
    spool.close()
    again = Spool(tmp_path, MIB, edge="e")
    again.append(records(20, 21))
    assert rest_of(again) == records(*range(22))
    edge, spool_id, epoch = again.writer.split(".")
    assert [edge, spool_id, str(int(epoch) - 1)] == first_writer.split(".")
    assert again.reports == []
    again.close()


def test_the_shipped_mark_survives_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB, edge="e")
    for number in range(6):
        spool.append(records(number))
    for _ in range(3):
        chunk = spool.take(1, MIB, 0)
        assert chunk is not None
        spool.shipped(chunk)
    spool.close()
    again = Spool(tmp_path, MIB, edge="e")
    assert rest_of(again) == records(3, 4, 5)
    again.close()


def test_shipped_segments_are_deleted_and_an_empty_spool_leaves_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64_000, edge="e")
    for number in range(60):
        spool.append(records(number, size=500))
    assert len(list(tmp_path.glob("*.segment"))) > 3
    assert rest_of(spool) == records(*range(60), size=500)
    assert len(list(tmp_path.glob("*.segment"))) == 1
    spool.close()
    assert list(tmp_path.glob("*.segment")) == []
    again = Spool(tmp_path, 64_000, edge="e")
    again.append(records(60))
    assert rest_of(again) == records(60)
    again.close()


def test_more_than_memory_holds_is_shipped_from_the_disk_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.log.spool._TAIL_BYTES_MAX", 5_000)
    spool = Spool(tmp_path, MIB, edge="e")
    for number in range(0, 300, 3):
        spool.append(records(number, number + 1, number + 2))
    assert rest_of(spool) == records(*range(300))
    spool.close()


def test_a_full_spool_refuses_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 20_000, edge="e")
    stored = 0
    with pytest.raises(LogUnavailable) as caught:
        for number in range(100):
            spool.append(records(number, size=1000))
            stored += 1
    assert caught.value.code == "spool-full"
    assert 15 <= stored <= 20
    assert rest_of(spool) == records(*range(stored), size=1000)
    spool.append(records(7))
    assert rest_of(spool) == records(7)
    spool.close()


@pytest.mark.parametrize("failing", ["pwrite", "fdatasync"])
def test_a_failed_write_is_taken_back_whole_and_the_spool_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    spool = Spool(tmp_path, MIB, edge="e")
    spool.append(records(0, 1))
    real = getattr(os, failing)

    def fail(fd: int, buffer: bytes = b"", at: int = 0) -> int:
        if failing == "pwrite":
            real(fd, buffer[: len(buffer) // 2], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(LogUnavailable) as caught:
        spool.append(records(2, 3))
    assert caught.value.code == "spool-full"
    monkeypatch.setattr(os, failing, real)
    writer = spool.writer
    assert spool.renew() != writer
    spool.append(records(4))
    spool.close()
    again = Spool(tmp_path, MIB, edge="e")
    assert rest_of(again) == records(0, 1, 4)
    assert again.reports == []
    again.close()


def test_a_record_over_the_limit_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 8 * MIB, edge="e")
    with pytest.raises(LogUnavailable) as caught:
        spool.append([*records(0), Record("calls", b"k", b"x" * (EVENT_BYTES_MAX + 300_000))])
    assert caught.value.code == "record-too-large"
    spool.append([Record("calls", b"k", b"x" * EVENT_BYTES_MAX)])
    assert len(rest_of(spool)) == 1
    spool.close()


def test_a_second_owner_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB, edge="e")
    with pytest.raises(LogUnavailable, match=f"process {os.getpid()}"):
        Spool(tmp_path, MIB, edge="e")
    spool.close()


def damaged_in_the_middle(directory: Path) -> tuple[bytes, int]:
    """Thirty records of a chain in several segments, and a bit of one flipped: its segment's bytes, and its number."""
    spool = Spool(directory, 128_000, edge="e")
    chain = Chain(spool.writer)
    for number in range(30):
        spool.append([chain.seal(requested(f"{number}-" + "x" * 800))])
    spool.close()
    path = sorted(directory.glob("*.segment"))[1]
    content = bytearray(path.read_bytes())
    content[segments.HEADER_BYTES + len(encode([chain_of(path)[0]])) + 700] ^= 0x10
    path.write_bytes(content)
    return bytes(content), int(path.stem) + 2


def chain_of(path: Path) -> list[Record]:
    return [record for run in scan(path.read_bytes(), segments.HEADER_BYTES)[0] for record in run.records]


def test_a_flipped_bit_sets_its_record_aside_ships_all_others_and_says_which_number_is_gone(tmp_path: Path) -> None:
    content, lost = damaged_in_the_middle(tmp_path)
    again = Spool(tmp_path, 128_000, edge="e")
    found = [open_head(record.value or b"").seq for record in rest_of(again)]
    assert found == [seq for seq in range(1, 31) if seq != lost]
    (damage,) = again.damages()
    assert (damage.kind, damage.records) == ("damaged", 1)
    assert [(gap.first, gap.last) for gap in damage.gaps] == [(lost, lost)]
    assert "checksum" in damage.sentence
    (kept,) = tmp_path.glob("*.set-aside")
    assert kept.name == damage.aside
    assert kept.read_bytes() in content
    again.close()


def test_a_bit_that_flips_while_the_segment_waits_is_found_when_it_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.log.spool._TAIL_BYTES_MAX", 1)
    spool = Spool(tmp_path, MIB, edge="e")
    chain = Chain(spool.writer)
    for number in range(10):
        spool.append([chain.seal(requested(f"{number}"))])
    heard: list[bool] = []
    spool.on_damage = lambda: heard.append(True)
    (path,) = tmp_path.glob("*.segment")
    content = bytearray(path.read_bytes())
    at = segments.HEADER_BYTES + len(encode(chain_of(path)[:4]))
    content[at] ^= 0x01  # a length: what follows must be found again
    path.write_bytes(content)
    assert [open_head(record.value or b"").seq for record in rest_of(spool)] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    (damage,) = spool.damages()
    assert [(gap.first, gap.last) for gap in damage.gaps] == [(5, 5)]
    assert heard == [True]
    assert (tmp_path / damage.aside).exists()
    spool.close()


def test_a_segment_that_cannot_be_read_is_set_aside_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64_000, edge="e")
    for number in range(30):
        spool.append(records(number, size=1000))
    spool.close()
    paths = sorted(tmp_path.glob("*.segment"))
    paths[1].unlink()
    paths[1].mkdir()  # what is no file cannot be read by anybody
    (tmp_path / "notes.txt").write_text("mine")
    again = Spool(tmp_path, 64_000, edge="e")
    lost = range(int(paths[1].stem), int(paths[2].stem))
    assert rest_of(again) == [one for n, one in enumerate(records(*range(30), size=1000)) if n not in lost]
    (damage,) = again.damages()
    assert (damage.kind, damage.records) == ("unreadable", len(lost))
    assert (tmp_path / damage.aside).is_dir()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert any("notes.txt" in report for report in again.reports)
    again.close()


def test_a_write_that_cannot_be_taken_back_stops_the_spool_only_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, MIB, edge="e")
    spool.append(records(0))

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as away:
        away.setattr(os, "fdatasync", fail)
        away.setattr(os, "ftruncate", fail)
        with pytest.raises(LogUnavailable):
            spool.append(records(1))
        with pytest.raises(LogUnavailable) as caught:
            spool.append(records(2))
        assert caught.value.code == "spool-broken"
    spool.append(records(3))
    assert rest_of(spool) == records(0, 3)
    spool.close()


def test_near_its_bound_a_spool_gives_no_permits_and_still_takes_the_ends_of_calls(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64_000, edge="e")
    number = 0
    while spool.takes_permits:
        spool.append(records(number, size=1000))
        number += 1
    assert spool.full().code == "spool-full"
    spool.append(records(number, size=1000))
    rest_of(spool)
    assert spool.takes_permits
    spool.close()


def test_calls_without_an_end_are_found_though_their_segment_was_shipped_and_deleted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 200_000, edge="e")
    chain = Chain(spool.writer)
    spool.append([chain.seal(requested("early")), chain.seal(requested("ended")), chain.seal(requested("no", "deny"))])
    spool.append(records(*range(100), size=1000))
    spool.append([chain.seal(completed("ended"))])
    rest_of(spool)
    assert not (tmp_path / f"{0:020d}.segment").exists()
    spool.append([chain.seal(requested("late")), chain.seal(requested("done")), chain.seal(completed("done"))])
    spool.close()
    again = Spool(tmp_path, 200_000, edge="e")
    assert [event.call_id for event in again.unfinished()] == ["early", "late"]
    abandoned = call(CallAbandoned, "early", found_us=3)
    again.append([Chain(again.writer).seal(abandoned)])
    rest_of(again)
    again.close()
    third = Spool(tmp_path, 200_000, edge="e")
    assert [event.call_id for event in third.unfinished()] == ["late"]
    third.close()


def test_everything_acknowledged_survives_kill_minus_9(tmp_path: Path) -> None:
    """A process appends and says which records were acknowledged; it is killed while it does; all of them are there."""
    program = (
        "import sys; from tidegate.log.spool import Spool; from tidegate.log.port import Record\n"
        "spool = Spool(sys.argv[1], 1 << 26, edge='e')\n"
        "for n in range(0, 10_000_000, 5):\n"
        "    spool.append([Record('calls', b'k', b'%d' % i + b'x' * 900) for i in range(n, n + 5)])\n"
        "    print(n + 5, flush=True)\n"
    )
    for start in range(3):
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / str(start))], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(40 + 30 * start):
            lines = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        acknowledged = int((lines + child.stdout.read()).split()[-1])
        child.wait()
        child.stdout.close()
        spool = Spool(tmp_path / str(start), 1 << 26, edge="e")
        found = [int((record.value or b"").rstrip(b"x")) for record in rest_of(spool)]
        assert found == list(range(len(found)))
        assert acknowledged <= len(found) <= acknowledged + 5
        spool.close()


def test_the_shipper_empties_the_spool_waits_out_an_outage_and_loses_nothing(tmp_path: Path) -> None:
    spool, place = Spool(tmp_path, MIB, edge="e"), Collector()
    shipper = Shipper(spool, place, linger_s=0.001)
    shipper.start()
    spool.append(records(0, 1))
    assert shipper.drain(10)
    place.away = True
    tried = place.attempts
    spool.append(records(2))
    spool.append(records(3))
    place.wait(lambda: place.attempts > tried + 1)
    assert not shipper.drain(0)
    assert shipper.fault is not None
    assert spool.backlog().records == 2
    assert spool.backlog().oldest_age_s > 0
    place.away = False
    assert shipper.drain(10)
    shipper.close()
    spool.close()
    assert place.got == records(0, 1, 2, 3)
    assert shipper.fault is None


def test_a_new_shipper_ships_what_an_earlier_epoch_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB, edge="e")
    spool.append(records(*range(50)))
    spool.close()
    spool, place = Spool(tmp_path, MIB, edge="e"), Collector()
    shipper = Shipper(spool, place)
    shipper.start()
    assert shipper.drain(10)
    shipper.close()
    spool.close()
    assert place.got == records(*range(50))
