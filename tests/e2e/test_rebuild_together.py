"""Two rebuilds at the same time: one works, the other is refused, and nothing is left that stops the next one."""

import os
import subprocess
import time
from collections.abc import Iterator

import pytest
from tests.e2e.first_example import TIDEGATE, House, serving

from tidegate.analytics.clickhouse import open_writer
from tidegate_audit_consumer import beside, claim
from tidegate_cli.options import live_settings

GAPS_S = (0.0, 0.1, 0.3)
WAIT_S = 60.0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(tmp_path_factory.mktemp("together")) as house:
        yield house


def begun(house: House) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(TIDEGATE), "rebuild", "--yes", "--no-verify"],
        cwd=house.root,
        env={**os.environ, **house.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(house: House, gap_s: float) -> list[tuple[int, str]]:
    """Exit code and both outputs of two."""
    first = begun(house)
    time.sleep(gap_s)  # the distance is what is tried
    ended = []
    for process in (first, begun(house)):
        out, err = process.communicate(timeout=WAIT_S)
        ended.append((process.returncode, out + err))
    return sorted(ended)


async def test_of_two_rebuilds_at_once_one_works_the_other_is_refused_and_nothing_is_left(house: House) -> None:
    analytics = open_writer(live_settings(house.root / house.config))
    try:
        refused = 0
        for gap_s in GAPS_S:
            (code, told), (other, why) = together(house, gap_s)
            assert code == 0, told
            assert "What the log says is what ClickHouse holds." in told
            assert other in (0, 2), why  # where the machine started it after the first had ended, it worked as well
            assert (other == 2) == ("another rebuild is at work (process " in why), why
            refused += other == 2
            assert not await beside.exists(analytics)
        assert refused, "they met"
        await analytics.execute(f"CREATE DATABASE IF NOT EXISTS {beside.BESIDE}")
        await analytics.execute(f"CREATE TABLE {beside.BESIDE}.foreign (x UInt8) ENGINE = MergeTree ORDER BY x")
        done = house.run_apart("rebuild", "--yes", "--no-verify")
        assert done.returncode == 0, done.stderr
        assert "left tables in tidegate_rebuild that cannot be continued" in done.stderr
        assert not await beside.exists(analytics)
    finally:
        await analytics.close()


async def test_after_one_that_was_killed_the_next_one_takes_over_at_once(house: House) -> None:
    analytics = open_writer(live_settings(house.root / house.config))
    try:
        killed, deadline = begun(house), time.monotonic() + WAIT_S
        while not await beside.exists(analytics):
            assert time.monotonic() < deadline, "it never began"
            assert killed.poll() is None, "it ended before anybody saw it"
        killed.kill()
        killed.communicate(timeout=WAIT_S)
        assert [one.lives for one in await claim.held(analytics)] == [False]
        done = house.run_apart("rebuild", "--yes", "--no-verify")
        assert done.returncode == 0, done.stderr
        assert not await beside.exists(analytics)
    finally:
        await analytics.close()
