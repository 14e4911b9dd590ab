"""A finding on its way to the detections topic: the OCSF object of `tidegate.ocsf.finding` as the next link of the
detector's chain. Pure. Counterpart: the audit consumer reads it into columns.
"""

import hashlib

import msgspec

from tidegate.chain import Chain
from tidegate.events import FindingRaised, key_of
from tidegate.log.port import Record
from tidegate.ocsf.finding import detection_finding

__all__ = ["detection_finding", "seal_finding"]


def seal_finding(chain: Chain, finding: FindingRaised) -> Record:
    """The record to append; the next link of the writer's chain."""
    value = msgspec.json.encode(detection_finding(finding, chain.writer, chain.seq + 1, chain.prev))
    record = Record("detections", key_of(finding), value)
    chain.seq, chain.prev = chain.seq + 1, hashlib.sha256(value).hexdigest()
    return record
