"""What the sealer and the checker say, in one chain: roots, checks, and findings about chains that are broken.

A journal ends with the first append whose outcome is unknown; whoever goes on opens another, with a chain of its own.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tidegate.audit.holdings import Wrong
from tidegate.audit.runs import Breach
from tidegate.chain import Chain
from tidegate.events import FindingRaised, RootChecked, RootSealed
from tidegate.ids import uuid7
from tidegate.log.port import EventLog, Record
from tidegate.ocsf.finding import detection_finding
from tidegate.settings import Settings

FINDINGS_MAX = 100  # of one append
RULE = "log-integrity"
TITLES = {
    "missing": "A sealed record is missing from ClickHouse",
    "altered": "A sealed record was altered in ClickHouse",
    "rewritten": "Sealed history was rewritten in ClickHouse",
    "misplaced": "A record does not stand where its bytes say",
    "fork": "Two records have one place in a chain",
    "rewrite": "A record was written again with different content",
    "gap": "A chain has a gap",
    "broken-link": "A chain is broken",
}


class Journal:
    """Appends in order; one chain, and another after an append that failed: what it stored is not known."""

    def __init__(self, settings: Settings, log: EventLog, sealer: str, clock: Callable[[], int]) -> None:
        self._settings = settings
        self._log = log
        self._clock = clock
        self._sealer = sealer
        self._chain = self._new_chain()
        self._turn = asyncio.Lock()

    @property
    def writer(self) -> str:
        return self._chain.writer

    def common(self) -> dict[str, Any]:
        """Id, time, tenant and region of an event that is made now."""
        now_us = self._clock()
        settings = self._settings
        return {"id": uuid7(now_us), "time_us": now_us, "tenant": settings.tenant, "region": settings.region}

    async def add(self, event: RootSealed | RootChecked, *, state: bool = False) -> Record:
        """Durable on return; `state`: as the value on `integrity-state` as well. Raises LogUnavailable."""
        async with self._turn:
            record = self._chain.seal(event)
            twin = [Record("integrity-state", record.key, record.value)] if state else []
            await self._append([record, *twin])
            return record

    async def report(self, breaches: Sequence[Breach | Wrong]) -> None:
        """A finding each. Their ids are derived from what is wrong, so saying it again is saying it once."""
        async with self._turn:
            records = [self._finding(breach) for breach in breaches[:FINDINGS_MAX]]
            if records:
                await self._append(records)

    async def _append(self, records: Sequence[Record]) -> None:
        try:
            await self._log.append(records)
        except BaseException:  # a cancellation as well: nothing may follow what is perhaps not there
            self._chain = self._new_chain()
            raise

    def _new_chain(self) -> Chain:
        return Chain(f"sealer.{self._sealer}.{uuid7()}")

    def _finding(self, breach: Breach | Wrong) -> Record:
        chain, finding = self._chain, self._raised(breach)
        value = msgspec.json.encode(detection_finding(finding, chain.writer, chain.seq + 1, chain.prev))
        record = Record("detections", f"{finding.tenant}|{RULE}|{breach.writer}".encode(), value)
        chain.seq, chain.prev = chain.seq + 1, hashlib.sha256(value).hexdigest()
        return record

    def _raised(self, breach: Breach | Wrong) -> FindingRaised:
        return FindingRaised(
            **self.common() | {"id": finding_id_of(breach)},
            rule=RULE,
            severity="critical",
            title=TITLES.get(breach.kind, "A chain is broken"),
            message=f"{breach.writer}: {breach.sentence}",
            subject_id="",
            agent="",
            session_id="",
        )


def finding_id_of(breach: Breach | Wrong) -> str:
    """A UUIDv8 (RFC 9562 §5.8) from what is wrong, where."""
    causes = "\n".join((breach.kind, breach.writer, str(breach.seq), breach.id))
    number = int.from_bytes(hashlib.sha256(f"tidegate integrity v1\n{causes}".encode()).digest()[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
