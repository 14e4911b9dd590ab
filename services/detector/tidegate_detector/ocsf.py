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
    chain.seq += 1
    value = msgspec.json.encode(detection_finding(finding, chain.writer, chain.seq, chain.prev))
    chain.prev = hashlib.sha256(value).hexdigest()
    return Record("detections", key_of(finding), value)
