"""Who rebuilds: one at a time.

A claim is a table beside, `claim_1` and so on. ClickHouse makes a table once, so of two that want the same number one
gets it. Its comment says whose it is, its rows are his heartbeat. Whoever finds the claim of a dead one makes the next
number, looks again, and takes the old one away; if that one was alive after all, its next beat finds no table, and it
ends. Tables beside are touched under a claim only, and the claim goes after them.
Counterpart: `rebuilding.py`.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from tidegate.analytics.port import Analytics
from tidegate.errors import AnalyticsRefused, AnalyticsUnavailable, ConfigFault, Fault
from tidegate.ids import uuid7
from tidegate_audit_consumer.beside import BESIDE, CLAIM

BEAT_S: Final = 5.0
SILENT_S: Final = 60.0  # after which a claimant counts as dead; one of this machine at once, when its process is gone


class Held(NamedTuple):
    """A claim that is there."""

    number: int
    run: str  # host/process/id
    is_silent: bool

    @property
    def table(self) -> str:
        return f"{BESIDE}.claim_{self.number}"

    @property
    def lives(self) -> bool:
        return not self.is_silent and lives(self.run)


class Claim:
    """This process's claim. `take`, then `kept` around the work, and `leave` in any case."""

    def __init__(self, analytics: Analytics) -> None:
        self._analytics = analytics
        self._run = f"{socket.gethostname()}/{os.getpid()}/{uuid7()}"
        self._own: Held | None = None

    async def take(self) -> None:
        """Raises ConfigFault where another one lives; then nothing of his was touched."""
        await self._analytics.execute(f"CREATE DATABASE IF NOT EXISTS {BESIDE}")
        dead = await self._dead()
        wanted = Held(max((one.number for one in dead), default=0) + 1, self._run, is_silent=False)
        try:
            await self._analytics.execute(
                f"CREATE TABLE {wanted.table} (at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC'), run String) "
                f"ENGINE = MergeTree ORDER BY at COMMENT '{self._run}'"
            )
        except AnalyticsRefused:
            if self._run not in [one.run for one in await self._dead()]:  # whose answer was lost was made
                raise
        self._own = wanted
        # Claims that came and went since the first look might have freed a lower number.
        others = [one for one in await held(self._analytics) if one.run != self._run]
        known = {(one.number, one.run) for one in dead}
        if strangers := [one for one in others if (one.number, one.run) not in known]:
            await self.leave()
            raise busy(strangers[-1])
        for one in others:
            await self._analytics.execute(f"DROP TABLE IF EXISTS {one.table}")

    async def _dead(self) -> list[Held]:
        found = await held(self._analytics)
        for one in found:
            if one.lives and one.run != self._run:
                raise busy(one)
        return found

    async def beat(self) -> None:
        """Raises AnalyticsRefused where somebody else has taken over."""
        if self._own is None:
            raise AnalyticsRefused("this rebuild has no claim on tidegate_rebuild: give the command again")
        try:
            await self._analytics.insert(self._own.table, {"run": [self._run]})
        except AnalyticsRefused as fault:
            if self._run in [one.run for one in await held(self._analytics)]:
                raise
            raise AnalyticsRefused(
                f"another rebuild took over, because this one gave no sign for {SILENT_S:.0f} s; this one ends: wait "
                "for the other, then give the command again if it failed"
            ) from fault

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Beats meanwhile. Raises what the work raises, or what `beat` does; then the work was cancelled."""
        await self.beat()
        try:
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self._beat_on(), name="rebuild-claim")
                try:
                    yield
                finally:
                    beating.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(AnalyticsUnavailable):  # the work meets it as well
                await self.beat()

    async def leave(self) -> None:
        """Never fails: a claim that stays is silent soon."""
        if self._own is not None:
            with contextlib.suppress(Fault):
                await self._analytics.execute(f"DROP TABLE IF EXISTS {self._own.table}")
            self._own = None


async def held(analytics: Analytics) -> list[Held]:
    """By number."""
    answer = await analytics.query(
        "SELECT toUInt64(substring(name, 7)) AS number, comment, "  # noqa: S608
        f"metadata_modification_time < now() - toIntervalSecond({SILENT_S:.0f}) "
        "FROM system.tables WHERE database = {name:String} AND match(name, {claim:String}) ORDER BY number",
        {"name": BESIDE, "claim": CLAIM},
    )
    found = [Held(number, run, bool(is_old)) for number, run, is_old in answer.rows]
    return [one._replace(is_silent=one.is_silent and not await _beats(analytics, one)) for one in found]


async def _beats(analytics: Analytics, one: Held) -> bool:
    """Whether there was a beat lately. One that is gone by now, or is no claim of ours, has none."""
    try:
        answer = await analytics.query(
            f"SELECT max(at) >= now64(6, 'UTC') - toIntervalSecond({SILENT_S:.0f}) FROM {one.table}"  # noqa: S608
        )
    except AnalyticsRefused:
        return False
    return bool(answer.rows[0][0])


def busy(one: Held) -> ConfigFault:
    host, _, process = one.run.rpartition("/")[0].rpartition("/")
    return ConfigFault(
        f"another rebuild is at work (process {process or 'unknown'} on {host or 'an unknown host'}): wait for it, or "
        f"end it and try again, from another machine after {SILENT_S:.0f} s; this one touched nothing"
    )


def lives(run: str) -> bool:
    """On this machine the process is asked for; of another one it is believed."""
    host, _, rest = run.partition("/")
    pid = rest.partition("/")[0]
    if host != socket.gethostname() or not (pid.isascii() and pid.isdigit()):
        return True
    if int(pid) == os.getpid():
        return False
    with contextlib.suppress(PermissionError, OverflowError):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
    return True
