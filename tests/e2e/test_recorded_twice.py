"""Kafka took a record and its answer was lost: `strict-or-spool` records it again, and nothing looks forged."""

from collections.abc import Sequence
from pathlib import Path

from tests.parts.audit_events import completed, requested
from tests.parts.sealed import hour, sealed_house

from tidegate.chain import Chain
from tidegate.errors import LogUnavailable
from tidegate.log.commit import GroupCommit
from tidegate.log.port import Record
from tidegate_edge.recorder import Recorder, Writer


class Taking:
    """Stores what it is given; `answers` says whether anybody learns of it."""

    def __init__(self, answers: bool) -> None:
        self.stored: list[Record] = []
        self._answers = answers

    def append(self, records: Sequence[Record]) -> None:
        self.stored += records
        if not self._answers:
            raise LogUnavailable("no answer came")

    def close(self) -> None:
        pass


async def test_a_record_whose_answer_was_lost_is_made_again_and_still_proven(tmp_path: Path) -> None:
    strict, spool = Taking(answers=False), Taking(answers=True)
    commits = [GroupCommit(one, records_max=100, name=name) for one, name in ((strict, "strict"), (spool, "spool"))]
    recorder = Recorder(
        Writer(lambda: Chain("edge-1.spool.1"), commits[1]), Writer(lambda: Chain("edge-1.strict.1"), commits[0])
    )
    request = requested("c1", at_us=hour(1)[0] + 1_000_000, mode="strict-or-spool")
    await recorder.record(request, "strict-or-spool")
    await recorder.record_completion(completed(request), "strict")
    for commit in commits:
        await commit.close()
    assert (len(strict.stored), len(spool.stored)) == (1, 2)  # for a while Kafka is not asked again
    async with sealed_house(tmp_path) as house:
        await house.append([*strict.stored, *spool.stored])
        await house.ingested()
        await house.seal()
        report = await house.verify(*hour(1))
        assert (report.verdict, report.wrong, report.rows) == ("whole", [], [])
        assert report.records == 3
        assert await house.query("SELECT call_id, status, arguments FROM tidegate.calls") == [
            ("c1", "ok", '{"path": "/a"}')
        ]
        assert await house.query("SELECT sum(calls), sum(ok) FROM tidegate.tool_usage") == [(1, 1)]
