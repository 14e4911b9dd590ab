"""record: events become durable here, before what they permit takes effect.

Modes: `spool` (the edge's own fsynced spool, or the local log itself), `strict` (acknowledged by Kafka, or refused),
`strict-or-spool`, `async` (handed over, not awaited; only for tools labelled read-only). Each way to durability is a
writer with a chain of its own. The personal part is sealed on the way, where there is a vault. One event loop.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from tidegate.chain import Chain
from tidegate.errors import LogUnavailable
from tidegate.events import AnyEvent, Mode
from tidegate.ids import uuid7
from tidegate.log.port import Record
from tidegate_edge.vault import Vault

AWAY_S: Final = 5.0  # after Kafka took no record, `strict-or-spool` does not ask it again for so long


class Submitter(Protocol):
    """What a `GroupCommit` and the local log offer."""

    def submit(self, record: Record) -> "asyncio.Future[None]": ...

    @property
    def backlog(self) -> int: ...


class Writer:
    """A chain and the way its records become durable."""

    def __init__(self, new_chain: Callable[[], Chain], submitter: Submitter) -> None:
        self._new_chain = new_chain
        self._submit = submitter.submit
        self._chain: Chain | None = new_chain()

    def write(self, event: AnyEvent) -> "asyncio.Future[None]":
        """Sealed and handed over in one step, so that the chain's order is the log's order. Raises LogUnavailable."""
        chain = self._chain
        if chain is None:
            chain = self._chain = self._new_chain()
        seq, prev = chain.seq, chain.prev
        try:
            return self._submit(chain.seal(event))
        except LogUnavailable:
            chain.seq, chain.prev = seq, prev  # not taken: the chain goes on as if it had not been sealed
            raise

    def failed(self, chain: Chain | None) -> None:
        """What was sealed last is not stored: go on with this chain, which ends at a stored record; None: a new one."""
        self._chain = chain


class Recorder:
    """Durability by mode. `strict` is None where the log is local: there every append is the log's own."""

    def __init__(
        self,
        spool: Writer,
        strict: Writer | None = None,
        on_lost: Callable[[], None] | None = None,
        vault: Vault | None = None,
        refusal: Callable[[], LogUnavailable | None] | None = None,
    ) -> None:
        """`refusal` says why the spool gives no permit now: what is left of it is for the ends of calls under way."""
        self._spool = spool
        self._strict = strict
        self.on_lost = on_lost
        self._vault = vault
        self._refusal = refusal
        self._away_until_s = 0.0

    async def record(self, event: AnyEvent, mode: Mode) -> None:
        """Durable on return, as the mode means it. Raises LogUnavailable: then nothing may follow from the event."""
        if self._refusal is not None and mode in ("spool", "async") and (fault := self._refusal()) is not None:
            raise fault
        await self._write(event, mode)

    async def _write(self, event: AnyEvent, mode: Mode) -> None:
        if self._vault is not None:
            event = self._vault.seal(event) or await self._vault.sealed(event)
        if mode == "spool":
            await self._spool.write(event)
        elif mode == "async":
            self._spool.write(event).add_done_callback(self._noticed)
        elif self._strict is None:
            await self._spool.write(event)
        else:
            await self._record_strictly(event, mode)

    async def _record_strictly(self, event: AnyEvent, mode: Mode) -> None:
        assert self._strict is not None
        if mode == "strict-or-spool" and time.monotonic() < self._away_until_s:
            await self._spool.write(event)
            return
        try:
            if self._vault is not None:
                await self._vault.published(event)
            await self._strict.write(event)
        except LogUnavailable as fault:
            if fault.code != "record-too-large":
                self._away_until_s = time.monotonic() + AWAY_S
            if mode != "strict-or-spool":
                raise
            # Kafka may hold the first all the same: under one id the second would look like a rewriting of it.
            await self._spool.write(msgspec.structs.replace(event, id=uuid7(event.time_us)))

    async def record_all(self, events: Sequence[AnyEvent]) -> None:
        """Facts that are not calls: in order, durable on return."""
        if self._vault is not None:
            events = [self._vault.seal(event) or await self._vault.sealed(event) for event in events]
        if events:
            await asyncio.gather(*[self._spool.write(event) for event in events])

    async def record_completion(self, event: AnyEvent, mode: Mode) -> None:
        """The answer to what was forwarded: where strict fails it goes to the spool, for it must not be lost."""
        await self._write(event, "strict-or-spool" if mode == "strict" else mode)

    def _noticed(self, future: "asyncio.Future[None]") -> None:
        if not future.cancelled() and future.exception() is not None and self.on_lost is not None:
            self.on_lost()
