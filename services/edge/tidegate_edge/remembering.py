"""Keeps what this edge folds of the log on its disk, and knows whether the log is heard.

What tightens is on the disk before it takes effect, where the disk answers within AHEAD_S: an edge that is killed and
starts while the log is away knows all that it had obeyed. What cannot be kept is not there at all: rather no start than
one without a quarantine; a disk that takes even that no more is said to be `stale`. Off the hot path; a cluster's edges
only, for a local log is on the disk itself. Counterparts: `watch.py`, which folds; `kept_state.py`, the files.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Final

from tidegate.errors import LogUnavailable
from tidegate.ids import now_us
from tidegate.log.port import Delivered, EventLog, Subscription
from tidegate.policy.approvals import approval_in
from tidegate.privacy.erasure import is_erasure
from tidegate.settings import Settings
from tidegate_edge.kept_state import Definitions, KeptState, NotUsable, Recalled

AHEAD_S: Final = 0.1
CAUGHT_UP_S: Final = 2.0
LOOK_S: Final = 15.0
RETRY_S: Final = 1.0

_log = logging.getLogger(__name__)


class Remembering:
    """Of one edge, all tenants. `definitions` is set by who folds them."""

    def __init__(self, settings: Settings, key: bytes) -> None:
        self._kept = KeptState(settings, key)
        self._is_shared = not settings.is_local
        self._is_on = self._is_shared and settings.limits.kept_state_s > 0
        self._is_based = False  # all that the log held once is in here: from then on it is kept
        self._standing: dict[bytes, bytes] = {}  # quarantines, as `control-state` has them
        self._gone: set[bytes] = set()  # what the log has no more, and the disk may have: empty once `_is_based`
        self._some = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._changed = False  # since the last write: quarantines, or definitions
        self._redefined = True  # definitions
        self.definitions: Callable[[], Definitions]
        self.heard_us = 0  # when it was last known that the log held no more than is known here
        self.is_heard = False  # False: the log is away
        self.is_lost = False  # what the log told cannot be kept
        self.is_stale = False  # nor can what was kept before be removed

    @property
    def unheard_s(self) -> float:
        """0 before the first time, and where the log is local."""
        return max(0.0, (now_us() - self.heard_us) / 1e6) if self._is_shared and self.heard_us else 0.0

    async def reach(self, log: EventLog) -> Recalled | None:
        """Prepare the log; or, where it is away, what this disk has of it. Raises LogUnavailable where both fail."""
        try:
            await log.prepare()
        except LogUnavailable as fault:
            recalled = await self.recall(fault)
            _log.warning("%s", fault.sentence)
            return recalled
        return None

    async def recall(self, away: LogUnavailable) -> Recalled:
        """What was kept, with what the log has told since the start, which counts more. The caller folds it, and waits
        until it is `settled`. Raises LogUnavailable, which says of both why.
        """
        told = "By limits.kept_state_s this edge keeps nothing to start with. Start it when Kafka is back"
        found = await asyncio.to_thread(self._kept.recall, now_us()) if self._is_on else NotUsable(told)
        if isinstance(found, NotUsable):
            raise LogUnavailable(f"{away.sentence} {found.sentence}", code=away.code)
        kept = {key: value for key, value in found.quarantines.items() if key not in self._gone}
        self._standing = {**kept, **self._standing}
        self._changed |= self._standing != found.quarantines
        self.heard_us = found.heard_us
        self._base()
        return dataclasses.replace(found, quarantines=dict(self._standing))

    def note(self, records: Iterable[Delivered]) -> None:
        """What the log tells, before it takes effect."""
        for record in records:
            if record.topic == "control-state" and not is_erasure(record.key) and not approval_in(record.key):
                self._set(record.key, record.value)

    def drop(self, key: bytes) -> None:
        """A quarantine that the log does not have any more."""
        self._set(key, None)

    def redefine(self, *, matters: bool) -> None:
        """Definitions have changed. `matters`: what is trusted has; the rest is kept along with it, or some time."""
        self._redefined = True
        self._changed |= matters

    async def settled(self) -> None:
        """Until what was noted is on the disk, but not for longer than AHEAD_S."""
        if self._changed and self._is_based and self._is_on:
            await asyncio.wait({self._write_soon()}, timeout=AHEAD_S)

    async def caught_up(self, at_us: int) -> None:
        """All that the log held at that time is known now; on the disk, too, on return, where that answers in time."""
        self._base()
        self._redefined = True
        self.heard_us = max(self.heard_us, at_us)
        if self._is_on:
            await asyncio.wait({self._write_soon()}, timeout=CAUGHT_UP_S)
        self.is_heard = True

    async def hear(self, subscription: Callable[[], Subscription | None]) -> None:
        """Ask from time to time whether the log holds more; `subscription` is None while it is not known whether what
        it brought was folded. Until cancelled.
        """
        while self._is_shared:
            await asyncio.sleep(LOOK_S)
            asked, at_us = subscription(), now_us()
            if asked is None:
                continue
            try:
                lag = await asked.lag()
            except LogUnavailable as fault:
                if self.is_heard:
                    _log.warning("the log is not heard: what is new in it is not obeyed here. %s", fault.sentence)
                self.is_heard = False
                continue
            if not self.is_heard:
                _log.warning("the log is heard again")
            self.is_heard = True
            if lag == 0 and asked is subscription():
                self.heard_us = at_us
                if self._is_on:
                    self._write_soon()

    async def run(self) -> None:
        """Write. Until cancelled."""
        if not self._is_on:
            await self._forget()
            return
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if self.is_lost else None):
                    await self._some.wait()
            self._some.clear()
            waiting, self._waiting = self._waiting, []
            try:
                kept = await self._write()
            finally:
                for one in waiting:
                    if not one.done():
                        one.set_result(None)
            if kept:
                await self._attempt(self._kept.sync)

    async def _write(self) -> bool:
        definitions = self.definitions() if self._redefined else None
        standing, heard_us = dict(self._standing), self.heard_us
        self._changed = self._redefined = False
        return await self._attempt(lambda: self._kept.keep(heard_us, standing, definitions))

    async def _attempt(self, work: Callable[[], None]) -> bool:
        try:
            await asyncio.to_thread(work)
        except (OSError, ValueError) as error:
            self._redefined = True
            if not self.is_lost:
                _log.error(
                    "what the log told cannot be kept in %s (%s): until it can, this edge starts only while Kafka is "
                    "there",
                    self._kept.directory,
                    error,
                )
            self.is_lost = True
            await self._forget()
            return False
        self.is_lost = self.is_stale = False
        return True

    async def _forget(self) -> None:
        try:
            await asyncio.to_thread(self._kept.forget)
        except OSError as error:
            if not self.is_stale:
                _log.error(
                    "what is out of date cannot be removed from %s (%s): if this edge ends before it can, do not "
                    "start it again while Kafka is away, or remove that directory first",
                    self._kept.directory,
                    error,
                )
            self.is_stale = True
        else:
            self.is_stale = False

    def _base(self) -> None:
        self._is_based = True
        self._gone.clear()

    def _set(self, key: bytes, value: bytes | None) -> None:
        if not self._is_based:
            (self._gone.add if value is None else self._gone.discard)(key)
        if self._standing.get(key) == value:
            return
        self._changed = True
        if value is None:
            del self._standing[key]
        else:
            self._standing[key] = value

    def _write_soon(self) -> "asyncio.Future[None]":
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._some.set()
        return done
