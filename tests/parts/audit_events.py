"""Events for tests of whoever reads the log: a call's requests and completions, sealed into a writer's chain."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tidegate.chain import Chain
from tidegate.events import CallAbandoned, CallCompleted, CallRequested, DecisionInputs, Finding, Sealed
from tidegate.ids import now_us, uuid7
from tidegate.log.port import Delivered, Record


def dimensions(call_id: str, requested_us: int, **others: Any) -> dict[str, Any]:
    """What every event of a call repeats."""
    return {
        "region": "eu",
        "tenant": "acme",
        "call_id": call_id,
        "root_call_id": call_id,
        "requested_us": requested_us,
        "subject_id": "5ub",
        "agent": "claude-code",
        "session_id": "se55ion",
        "protocol": "2026-07-28",
        "edge": "edge-1",
        "method": "tools/call",
        "server": "git",
        "target": "git_log",
        "mode": "spool",
        "decision": "allow",
        "reason": "permitted",
        "rules": ("allow-git",),
        "bundle": "b0b0",
        "labels": ("read-only",),
    } | others


def requested(call_id: str = "", at_us: int = 0, **others: Any) -> CallRequested:
    at_us = at_us or now_us()
    own = {
        "inputs": DecisionInputs(bundle="b0b0", release=3, groups=("eng", "oncall"), now_us=at_us, arguments_kept=True),
        "arguments_bytes": 20,
        "arguments_digest": "d1",
        "fingerprints": ("f1", "f2"),
        "findings": (Finding(rule="card", severity="high", action="mask", direction="arguments", count=1),),
        "sealed": Sealed(subject="alice", login="alice@example.com", arguments=msgspec.Raw(b'{"path": "/a"}')),
    }
    call_id = call_id or uuid7(at_us)
    return CallRequested(id=uuid7(at_us), time_us=at_us, **(dimensions(call_id, at_us) | own | others))


def completed(request: CallRequested, **others: Any) -> CallCompleted:
    at_us = request.requested_us + 5_000
    own = {
        "outcome": "ok",
        "completed_us": at_us,
        "policy_us": 20,
        "upstream_us": 4_000,
        "total_us": 5_000,
        "masked": 1,
        "arguments_bytes": 20,
        "result_bytes": 300,
        "result_digest": "e2",
        "fingerprints": ("f3",),
        "findings": (Finding(rule="token", severity="medium", action="mask", direction="result", count=2),),
        "sealed": Sealed(result=msgspec.Raw(b'{"content": []}')),
    }
    same = {name: getattr(request, name) for name in ("tenant", "decision", "server", "target", "subject_id")}
    return CallCompleted(
        id=uuid7(at_us), time_us=at_us, **(dimensions(request.call_id, request.requested_us) | same | own | others)
    )


def abandoned(request: CallRequested, **others: Any) -> CallAbandoned:
    at_us = request.requested_us + 9_000_000
    return CallAbandoned(
        id=uuid7(at_us),
        time_us=at_us,
        found_us=at_us,
        **(dimensions(request.call_id, request.requested_us) | others),
    )


def calls(count: int, writer: str = "edge-1.spool.1") -> list[Record]:
    """That many calls, completed: two records each, chained."""
    chain = Chain(writer)
    records = []
    for _ in range(count):
        request = requested()
        records += [chain.seal(request), chain.seal(completed(request))]
    return records


def finding(uid: str = "f1nd1ng", **own: Any) -> bytes:
    """A finding as it stands on the detections topic."""
    return msgspec.json.encode(
        {
            "class_uid": 2004,
            "time": now_us() // 1000,
            "severity_id": 4,
            "message": "text from a sensitive server left through an egress server",
            "metadata": {"uid": uid, "version": "1.5.0"},
            "finding_info": {"uid": uid, "title": "Exfiltration"},
            "unmapped": {
                "tidegate": {
                    "tenant": "acme",
                    "region": "eu",
                    "rule": "exfiltration",
                    "subject_id": "5ub",
                    "agent": "claude-code",
                    "session_id": "se55ion",
                    "call_ids": ["c1", "c2"],
                }
                | own
            },
        }
    )


def delivered(records: Sequence[Record], first: int = 0) -> list[Delivered]:
    """As the log would hand them out: one partition a topic."""
    at = dict.fromkeys((record.topic for record in records), first)
    result = []
    for record in records:
        result.append(Delivered(record.topic, 0, at[record.topic], record.key, record.value, record.headers, now_us()))
        at[record.topic] += 1
    return result
