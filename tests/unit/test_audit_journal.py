"""The sealer's own chain when the log refuses: what follows never rests on a record that is not there."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tidegate.audit.links import link_of
from tidegate.audit.runs import Breach, leaves_of
from tidegate.errors import LogUnavailable
from tidegate.events import RootChecked
from tidegate.ids import now_us
from tidegate.log.port import Record
from tidegate.log.sqlite import SqliteLog
from tidegate.settings import Settings
from tidegate_audit_consumer.journal import Journal


class Faltering(SqliteLog):
    """Refuses while told to; `stored` is what it took."""

    refuses = False

    async def append(self, records: Sequence[Record]) -> None:
        if self.refuses:
            raise LogUnavailable("not now")
        await super().append(records)
        self.stored = [*getattr(self, "stored", []), *records]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Faltering]:
    log = Faltering(tmp_path / "log.sqlite")
    await log.prepare()
    yield log
    await log.close()


async def test_after_an_append_that_failed_the_journal_goes_on_under_a_chain_of_its_own(log: Faltering) -> None:
    journal = Journal(Settings(), log, "eu", now_us)
    breach = Breach("gap", "edge-1.spool.1", 7, "", "record 7 is not on the log")

    async def add(number: int) -> None:
        await journal.add(
            RootChecked(**journal.common(), sealer="eu", number=number, digest="", verdict="whole", events=0)
        )

    await add(1)
    first = journal.writer
    log.refuses = True
    with pytest.raises(LogUnavailable):
        await add(2)
    second = journal.writer
    with pytest.raises(LogUnavailable):
        await journal.report([breach])
    log.refuses = False
    await add(3)
    await journal.report([breach])
    assert len({first, second, journal.writer}) == 3
    links = [link for one in log.stored if one.value is not None and (link := link_of(one.value)) is not None]
    assert [(link.writer, link.seq) for link in links] == [(first, 1), (journal.writer, 1), (journal.writer, 2)]
    assert leaves_of(links).breaches == []
