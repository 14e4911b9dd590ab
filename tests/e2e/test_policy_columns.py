"""What policy life adds to a call and to the log, as data teams query it: shadows, approvals, limits, and the facts
that rules looked at. On the real engine, over events as edges and the policy service write them.
"""

from pathlib import Path
from typing import Any

from tests.parts.audit_events import completed, delivered, requested
from tests.parts.sealed_calls import key_for

from tidegate.analytics.chdb_server import EmbeddedEngine
from tidegate.analytics.port import Analytics
from tidegate.chain import Chain
from tidegate.events import (
    AnyEvent,
    ApprovalConsumed,
    ApprovalDenied,
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRequested,
    DecisionInputs,
    Sealed,
    Shadowed,
)
from tidegate.ids import now_us, uuid7
from tidegate.privacy.keys import seal
from tidegate_audit_consumer.key_feed import columns_of
from tidegate_audit_consumer.migrate import migrate
from tidegate_audit_consumer.rows import open_batch
from tidegate_audit_consumer.store import store
from tidegate_cli.derived_calls import wrong_calls

SHADOWS = (
    Shadowed(bundle="b0b0", release=3, decision="deny", reason="forbidden-by-rule", rules=("strict", "stricter")),
    Shadowed(bundle="cafe", release=5, decision="ask", reason="approval-required", rules=("asks",)),
)
INPUTS = DecisionInputs(
    bundle="cafe", release=4, role="canary", kind="service", taint=("read-private", "sensitive"), facts=("taint",)
)


NOW_US = now_us() - 600_000_000


async def _take(analytics: Analytics, *events: AnyEvent) -> None:
    """Twice: what is delivered again changes nothing."""
    chain = Chain(f"edge-1.{uuid7()}.1")
    for batch in [delivered([chain.seal(event) for event in events])] * 2:
        await store(analytics, open_batch(batch), batch)


async def _asked(analytics: Analytics, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in (await analytics.query(statement)).rows]


async def test_a_call_s_circumstances_are_columns_and_its_address_opens_with_its_key(tmp_path: Path) -> None:
    key, common = key_for(), {"inputs": INPUTS, "approval_id": "a-1", "shadows": SHADOWS}
    sealed = seal(Sealed(subject="alice", address="203.0.113.7"), key)
    of_key = requested("c1", NOW_US, sealed=sealed, subject_id=key.subject_id, **common)
    plain = requested("c2", NOW_US + 1, decision="limited", retry_after_ms=33_000, sealed=Sealed(address="::1"))
    async with EmbeddedEngine(tmp_path) as engine:
        await migrate(engine.analytics)
        await engine.analytics.insert("tidegate.subject_keys", columns_of([key]))
        await _take(engine.analytics, of_key, completed(of_key, records=7, cost_micros=1_500), plain)
        rows = await _asked(
            engine.analytics,
            "SELECT call_id, role, principal_kind, taint, facts, approval_id, retry_after_ms, records, toString(cost), "
            "address FROM tidegate.calls ORDER BY call_id",
        )
        assert rows == [
            ("c1", "canary", "service", ["read-private", "sensitive"], ["taint"], "a-1", 0, 7, "0.0015", "203.0.113.7"),
            ("c2", "ruling", "user", [], [], "", 33_000, 0, "0", "::1"),
        ]
        await engine.analytics.execute("ALTER TABLE tidegate.subject_keys DELETE WHERE 1 SETTINGS mutations_sync = 1")
        assert await _asked(engine.analytics, "SELECT address FROM tidegate.calls ORDER BY call_id") == [
            ("",),
            ("::1",),
        ]


async def test_what_watching_rules_would_have_said_is_a_row_each_and_proven_with_the_call(tmp_path: Path) -> None:
    request = requested("c1", NOW_US, shadows=SHADOWS)
    async with EmbeddedEngine(tmp_path) as engine:
        await migrate(engine.analytics)
        await _take(engine.analytics, request, completed(request), requested("c2", NOW_US, decision="deny"))
        differing = (
            "SELECT call_id, decision, shadow_decision, shadow_reason, shadow_rules, shadow_bundle, shadow_release "
        )
        rows = await _asked(engine.analytics, f"{differing} FROM tidegate.shadow_differences ORDER BY shadow_bundle")
        assert rows == [
            ("c1", "allow", "deny", "forbidden-by-rule", ["strict", "stricter"], "b0b0", 3),
            ("c1", "allow", "ask", "approval-required", ["asks"], "cafe", 5),
        ]
        assert [one async for one in wrong_calls(engine.analytics, NOW_US - 1, now_us(), now_us())] == []
        await engine.analytics.insert(
            "tidegate.calls_raw",
            {
                "tenant": ["acme"],
                "requested_at": [NOW_US],
                "call_id": ["c1"],
                "shadows": [[("zzz", 1, "allow", "", [])]],
            },
        )
        found = [wrong.sentence async for _, wrong in wrong_calls(engine.analytics, NOW_US - 1, now_us(), now_us())]
        assert [sentence.rpartition(": ")[2] for sentence in found] == ["shadows"]


def _approval(approval_id: str, at_us: int) -> ApprovalRequested:
    return ApprovalRequested(
        **_stamp(at_us),
        approval_id=approval_id,
        binding="b1nd",
        subject_id="5ub",
        agent="claude-code",
        session_id="se55ion",
        method="tools/call",
        server="git",
        target="git_commit",
        call_id=f"asked-{approval_id}",
        root_call_id=f"asked-{approval_id}",
        rules=("releases-are-approved",),
        approver="leads",
        expires_us=at_us + 600_000_000,
        edge="edge-1",
    )


def _stamp(at_us: int) -> dict[str, Any]:
    return {"id": uuid7(at_us), "time_us": at_us, "tenant": "acme", "region": "eu"}


async def test_an_approval_is_one_row_whatever_the_order_of_its_events(tmp_path: Path) -> None:
    later = {"expires_us": NOW_US + 600_000_000}
    granted = ApprovalGranted(
        **_stamp(NOW_US + 5), approval_id="used", actor="b0b", channel="api", reason="fine", **later
    )
    consumed = ApprovalConsumed(**_stamp(NOW_US + 9), approval_id="used", call_id="went-on", edge="edge-2")
    denied = ApprovalDenied(**_stamp(NOW_US + 7), approval_id="no", actor="b0b", channel="url", reason="not today")
    expired = ApprovalExpired(**_stamp(NOW_US + 8), approval_id="late")
    asked = [_approval(name, NOW_US) for name in ("used", "no", "late", "open")]
    async with EmbeddedEngine(tmp_path) as engine:
        await migrate(engine.analytics)
        await _take(engine.analytics, consumed, denied, expired, granted, *asked)
        rows = await _asked(
            engine.analytics,
            "SELECT approval_id, state, subject_id, target, rules, approver, actor, channel, reason, asked_call, "
            "consumed_call, toUnixTimestamp64Micro(assumeNotNull(asked_at)) "
            "FROM tidegate.approvals ORDER BY approval_id",
        )
        same = ("5ub", "git_commit", ["releases-are-approved"], "leads")
        assert rows == [
            ("late", "expired", *same, "", "", "", "asked-late", "", NOW_US),
            ("no", "denied", *same, "b0b", "url", "not today", "asked-no", "", NOW_US),
            ("open", "pending", *same, "", "", "", "asked-open", "", NOW_US),
            ("used", "consumed", *same, "b0b", "api", "fine", "asked-used", "went-on", NOW_US),
        ]
