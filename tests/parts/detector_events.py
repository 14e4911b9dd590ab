"""Calls as the edges record them, for tests of the detector: small builders and a text with its fingerprints."""

import json
from typing import Any

from tidegate.chain import Chain
from tidegate.events import CallCompleted, CallRequested
from tidegate.ids import uuid7
from tidegate.inspection.fingerprints import fingerprints
from tidegate.log.port import Record

SECOND = 1_000_000
START_US = 1_790_000_000 * SECOND
PASSAGE = "The quarterly figures show a loss of 4.2 million euros in the northern region and are not yet published"
KEY = b"k" * 32


def prints(text: str) -> tuple[str, ...]:
    return fingerprints(json.dumps({"text": text}).encode(), KEY)


def _call(at_us: int, call_id: str, others: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": uuid7(at_us),
        "time_us": at_us,
        "tenant": "acme",
        "region": "eu",
        "call_id": call_id or uuid7(at_us),
        "root_call_id": call_id,
        "requested_us": at_us,
        "subject_id": "5ub",
        "agent": "claude-code",
        "session_id": "se55ion",
        "method": "tools/call",
        "server": "time",
        "target": "now",
        "mode": "spool",
        "decision": "allow",
    } | others


def request(at_us: int = START_US, call_id: str = "", **others: Any) -> CallRequested:
    return CallRequested(**_call(at_us, call_id, others))


def sending(at_us: int, call_id: str, text: str = PASSAGE, **others: Any) -> CallRequested:
    """A request to a server labelled egress."""
    own = {"server": "mail", "target": "send", "labels": ("egress",), "fingerprints": prints(f"fwd {text} bye")}
    return request(at_us, call_id, **(own | others))


def reading(at_us: int, call_id: str, text: str = PASSAGE, **others: Any) -> CallCompleted:
    """A result of a server labelled sensitive."""
    own = {"server": "files", "target": "read", "labels": ("sensitive",), "fingerprints": prints(f"{text} and so on")}
    ended = {"outcome": "ok", "completed_us": at_us, "requested_us": at_us - 50_000}
    return CallCompleted(**_call(at_us, call_id, own | ended | others))


def sealed(*events: CallRequested | CallCompleted, writer: str = "edge-1") -> list[Record]:
    chain = Chain(f"{writer}.{uuid7()}.1")
    return [chain.seal(event) for event in events]
