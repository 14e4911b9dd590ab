"""`tidegate spool`: seen without being changed, and shipped for an edge that is dead, as the edge itself would."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.parts.audit_events import requested

from tidegate.chain import Chain, open_event
from tidegate.errors import LogUnavailable
from tidegate.events import CallAbandoned, CallRequested, SpoolDamaged
from tidegate.log.port import Record
from tidegate.log.segments import HEADER_BYTES
from tidegate.log.spool import Spool
from tidegate.log.spool_survey import spools_below, survey
from tidegate.settings import Settings
from tidegate_cli.spooling import ship


class Place:
    """Where records go; refuses after so many batches."""

    def __init__(self, batches: int = 1_000) -> None:
        self.got: list[Record] = []
        self._left = batches

    def append(self, records: Sequence[Record]) -> None:
        if self._left == 0:
            raise LogUnavailable("Kafka is away")
        self._left -= 1
        self.got += records

    def close(self) -> None: ...


def dead_edge(directory: Path, *calls: str) -> None:
    """A spool whose edge died with these calls under way."""
    spool = Spool(directory, 1 << 20, edge="edge.eu-1")
    chain = Chain(spool.writer)
    for call in calls:
        spool.append([chain.seal(requested(call))])
    spool.close()


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_looking_at_a_spool_changes_nothing_and_says_whose_it_is(tmp_path: Path) -> None:
    dead_edge(tmp_path / "a" / "spool", "one", "two")
    before = files(tmp_path / "a" / "spool")
    (directory,) = spools_below(tmp_path)
    found = survey(directory)
    assert (found.edge, found.records, found.open_calls, found.owner) == ("edge.eu-1", 2, 2, 0)
    assert [part.records for part in found.segments] == [2]
    assert files(directory) == before


def test_a_spool_in_use_names_its_process_and_is_not_shipped_by_another(tmp_path: Path) -> None:
    dead_edge(tmp_path, "one")
    spool = Spool(tmp_path, 1 << 20, edge="edge.eu-1")
    found = survey(tmp_path)
    assert found.owner > 0
    with pytest.raises(LogUnavailable) as caught:
        ship(found, Settings(), Place())
    assert caught.value.code == "log-owned"
    spool.close()


def test_no_spool_is_told_from_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match="holds no spool"):
        survey(tmp_path)


def test_a_dead_edge_s_spool_is_shipped_with_the_ends_that_nobody_recorded(tmp_path: Path) -> None:
    dead_edge(tmp_path, "one", "two")
    place = Place()
    done = ship(survey(tmp_path), Settings(), place)
    assert (done.records, done.abandoned, done.losses) == (4, 2, 0)
    events = [open_event(record.value or b"") for record in place.got]
    assert [type(event) for event in events] == [CallRequested, CallRequested, CallAbandoned, CallAbandoned]
    assert [event.writer.rsplit(".", 2)[0] for event in events] == ["edge.eu-1"] * 4
    assert [event.seq for event in events] == [1, 2, 1, 2], "the ends are a new epoch's"
    again = survey(tmp_path)
    assert (again.records, again.open_calls) == (0, 0)


def test_what_is_damaged_is_reported_on_the_log_and_the_rest_shipped(tmp_path: Path) -> None:
    dead_edge(tmp_path, "one", "two", "three")
    (path,) = tmp_path.glob("*.segment")
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + (len(content) - HEADER_BYTES) // 2] ^= 4
    path.write_bytes(content)
    assert [gap.first for damage in survey(tmp_path).damages for gap in damage.gaps] == [2]
    place = Place()
    ship(survey(tmp_path), Settings(), place)
    events = [open_event(record.value or b"") for record in place.got]
    (lost,) = [event for event in events if isinstance(event, SpoolDamaged)]
    assert (lost.of_writer, lost.first_seq, lost.last_seq) == (events[0].writer, 2, 2)
    assert (lost.edge, lost.aside, lost.records) == ("edge.eu-1", survey(tmp_path).set_aside[0], 1)
    assert [event.call_id for event in events if isinstance(event, CallRequested)] == ["one", "three"]


def test_where_the_log_goes_away_the_same_command_goes_on_later(tmp_path: Path) -> None:
    dead_edge(tmp_path, "one", "two")
    with pytest.raises(LogUnavailable):
        ship(survey(tmp_path), Settings(), Place(batches=0))
    assert survey(tmp_path).records == 4
    place = Place()
    ship(survey(tmp_path), Settings(), place)
    kinds = [type(open_event(record.value or b"")) for record in place.got]
    assert kinds == [CallRequested, CallRequested, CallAbandoned, CallAbandoned], "nothing is said twice"
