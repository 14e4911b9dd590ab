"""What the sealer and the checker say, in one chain: roots, checks, and findings about chains that are broken.

A journal ends with the first append whose outcome is unknown; whoever goes on opens another, with a chain of its own.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tidegate import __version__
from tidegate.audit.holdings import Wrong
from tidegate.audit.runs import Breach
from tidegate.chain import Chain
from tidegate.events import RootChecked, RootSealed
from tidegate.ids import uuid7
from tidegate.log.port import EventLog, Record
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
    """Appends in order; one chain."""

    def __init__(self, settings: Settings, log: EventLog, sealer: str, clock: Callable[[], int]) -> None:
        self._settings = settings
        self._log = log
        self._clock = clock
        self._chain = Chain(f"sealer.{sealer}.{uuid7()}")
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
            await self._log.append([record, *twin])
            return record

    async def report(self, breaches: Sequence[Breach | Wrong]) -> None:
        """A finding each. Their ids are derived from what is wrong, so saying it again is saying it once."""
        async with self._turn:
            records = [self._finding(breach) for breach in breaches[:FINDINGS_MAX]]
            if records:
                await self._log.append(records)

    def _finding(self, breach: Breach | Wrong) -> Record:
        chain = self._chain
        chain.seq += 1
        settings, now_us = self._settings, self._clock()
        found = detection(breach, settings.tenant, settings.region, now_us, (chain.writer, chain.seq, chain.prev))
        value = msgspec.json.encode(found)
        chain.prev = hashlib.sha256(value).hexdigest()
        return Record("detections", f"{settings.tenant}|{RULE}|{breach.writer}".encode(), value)


def detection(
    breach: Breach | Wrong, tenant: str, region: str, now_us: int, place: tuple[str, int, str]
) -> dict[str, Any]:
    """An OCSF Detection Finding (class 2004), with the place in the journal's chain under `unmapped.tidegate`."""
    finding_id = finding_id_of(breach)
    title = TITLES.get(breach.kind, "A chain is broken")
    message = f"{breach.writer}: {breach.sentence}"
    writer, seq, prev = place
    own = {"tenant": tenant, "region": region, "time_us": now_us, "writer": writer, "seq": seq, "prev": prev}
    return {
        "activity_id": 1,
        "activity_name": "Create",
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": 2004,
        "class_name": "Detection Finding",
        "type_uid": 200401,
        "type_name": "Detection Finding: Create",
        "time": now_us // 1000,
        "severity_id": 5,
        "severity": "Critical",
        "status_id": 1,
        "status": "New",
        "message": message,
        "finding_info": {
            "uid": finding_id,
            "title": title,
            "desc": message,
            "created_time": now_us // 1000,
            "analytic": {"uid": f"tidegate.{RULE}", "name": RULE, "type_id": 1, "type": "Rule"},
        },
        "metadata": {
            "uid": finding_id,
            "version": "1.8.0",
            "log_name": "tidegate.detections",
            "tenant_uid": tenant,
            "product": {"name": "Tidegate", "vendor_name": "Tidegate", "version": __version__},
        },
        "evidences": [{"data": {"writer": breach.writer, "seq": breach.seq, "event_id": breach.id}}],
        "unmapped": {
            "tidegate": own | {"rule": RULE, "severity": "critical", "subject_id": "", "agent": "", "session_id": ""}
        },
    }


def finding_id_of(breach: Breach | Wrong) -> str:
    """A UUIDv8 (RFC 9562 §5.8) from what is wrong, where."""
    causes = "\n".join((breach.kind, breach.writer, str(breach.seq), breach.id))
    number = int.from_bytes(hashlib.sha256(f"tidegate integrity v1\n{causes}".encode()).digest()[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
