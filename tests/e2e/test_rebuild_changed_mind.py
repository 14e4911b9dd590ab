"""A rebuild that was cut off is not gone on with for another purpose, and takes over only with all that it read."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.parts.audit_events import calls
from tests.parts.sealed import Sealed, sealed_house

from tidegate.errors import AnalyticsUnavailable
from tidegate.log.extents import open_extents
from tidegate.log.sqlite import open_readonly
from tidegate_audit_consumer import beside
from tidegate_audit_consumer.rebuilding import Rebuild, Result

Told = Callable[[Any, int], None]


class CutOffError(Exception):
    """As if somebody had ended the command."""


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[Sealed]:
    """100 records, of which the log has the last 20."""
    async with sealed_house(tmp_path) as house:
        (house.settings.data_dir / "log.db").symlink_to(house.log.path)
        await house.append(calls(50))
        await house.ingested()
        with sqlite3.connect(house.log.path, timeout=20) as db:
            db.execute('DELETE FROM "log:calls" WHERE "offset" < 80')
        yield house


async def rebuilt(house: Sealed, told: Told, *, keep: bool) -> Result:
    log = open_readonly(house.log.path)
    try:
        async with open_extents(house.settings) as extents:
            rebuild = Rebuild(log, extents, house.consumer.analytics, (), keep=keep)
            return await rebuild.run(await rebuild.find(), told)
    finally:
        await log.close()


async def counted(house: Sealed) -> list[tuple[Any, ...]]:
    return await house.query("SELECT (SELECT count() FROM tidegate.events), (SELECT count() FROM tidegate.calls)")


async def test_what_one_run_gave_up_another_keeps_that_was_told_to(house: Sealed) -> None:
    def cut_off(_phase: Any, more: int) -> None:
        if more:
            raise CutOffError

    with pytest.raises(CutOffError):
        await rebuilt(house, cut_off, keep=False)
    result = await rebuilt(house, lambda _phase, _more: None, keep=True)
    assert (result.is_whole, await counted(house)) == (True, [(100, 50)])


async def test_tables_that_somebody_emptied_meanwhile_take_nobodys_place(
    house: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = beside.positions

    async def emptied(analytics: Any) -> Any:
        await analytics.execute(f"TRUNCATE TABLE {beside.BESIDE}.positions")
        return await real(analytics)

    monkeypatch.setattr(beside, "positions", emptied)
    with pytest.raises(AnalyticsUnavailable, match="nothing was replaced"):
        await rebuilt(house, lambda _phase, _more: None, keep=True)
    assert await counted(house) == [(100, 50)]
