"""Calls and findings as OCSF objects: valid by the published schema whatever events hold, and telling what was done."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.parts.audit_events import abandoned, completed, requested
from tests.parts.ocsf_schemas import problems

from tidegate.events import Finding, FindingRaised, RequestRefused
from tidegate.limits import EVENT_BYTES_MAX
from tidegate.ocsf.activity import Activity, Told, activity_of
from tidegate.ocsf.api_activity import TEXT_CHARS_MAX, api_activity, encoded
from tidegate.ocsf.finding import detection_finding, open_finding

SECRET = "sk-4242424242424242"


def stored(told: Told) -> dict[str, Any]:
    """As it stands on the topic."""
    activity = activity_of(told)
    assert activity is not None
    found: dict[str, Any] = json.loads(encoded(activity))
    assert found == json.loads(msgspec.json.encode(api_activity(activity))), "nothing of it is long"
    return found


def refused(**others: Any) -> RequestRefused:
    fields: dict[str, Any] = {
        "id": "r1", "time_us": 1_700_000_000_000_000, "tenant": "acme", "region": "eu", "subject_id": "5ub",
        "agent": "claude-code", "session_id": "s", "edge": "edge-1", "method": "tools/call", "reason": "too-many-calls",
        "message": "Slow down.", "status": 429,
    }  # fmt: skip
    return RequestRefused(**(fields | others))


REQUEST = requested("c1")
CASES: dict[str, Told] = {
    "ok": completed(REQUEST, masked=0, findings=()),
    "masked": completed(REQUEST),
    "tool-error": completed(REQUEST, outcome="tool-error"),
    "rpc-error": completed(REQUEST, outcome="rpc-error", error_code=-32602),
    "blocked": completed(REQUEST, outcome="blocked"),
    "input-required": completed(REQUEST, outcome="input-required", masked=0),
    "unknown": abandoned(REQUEST),
    "denied": requested("c2", decision="deny", reason="tool-not-granted", rules=()),
    "asked": requested("c3", decision="ask"),
    "limited": requested("c4", decision="limited", stage="limit"),
    "refused": refused(),
}


@pytest.mark.parametrize("told", CASES.values(), ids=CASES)
def test_every_end_of_a_call_is_a_valid_api_activity(told: Told) -> None:
    assert problems(stored(told)) == []


def test_the_schema_would_notice_an_unknown_member_and_a_missing_one() -> None:
    value = stored(CASES["ok"])
    del value["src_endpoint"]
    value["agent"] = "x"
    assert len(problems(value)) == 2


@pytest.mark.parametrize(
    ("case", "status_id", "action_id", "disposition_id"),
    [
        ("ok", 1, 1, 1),
        ("masked", 1, 4, 11),
        ("tool-error", 2, 4, 11),
        ("blocked", 2, 2, 2),
        ("input-required", 99, 1, 1),
        ("unknown", 0, 1, 1),
        ("denied", 2, 2, 2),
        ("asked", 99, 99, 99),
        ("limited", 2, 2, 25),
        ("refused", 2, 2, 25),
    ],
)
def test_status_action_and_disposition_say_what_happened(
    case: str, status_id: int, action_id: int, disposition_id: int
) -> None:
    value = stored(CASES[case])
    assert (value["status_id"], value["action_id"], value["disposition_id"]) == (status_id, action_id, disposition_id)


def test_a_completed_call_names_who_what_where_and_by_which_rule() -> None:
    event = completed(REQUEST)
    value = stored(event)
    assert value["metadata"]["uid"] == event.id
    assert value["time"] == REQUEST.requested_us // 1000
    assert value["duration"] == 5
    assert value["type_uid"] == 600399
    assert value["actor"]["user"]["uid"] == "5ub"
    assert value["actor"]["app_name"] == "claude-code"
    assert value["api"]["operation"] == value["activity_name"] == "tools/call"
    assert value["api"]["service"] == {"name": "git"}
    assert value["resources"] == [
        {"uid": "git/git_log", "name": "git_log", "type": "mcp.tool", "labels": ["read-only"]}
    ]
    assert value["policy"] == {"uid": "allow-git", "version": "b0b0", "is_applied": True}


def test_a_request_that_was_forwarded_is_told_by_its_end_alone() -> None:
    assert activity_of(REQUEST) is None


def test_nothing_sealed_comes_out() -> None:
    request = msgspec.structs.replace(
        requested("c5", decision="deny"),
        sealed=msgspec.structs.replace(
            REQUEST.sealed, login="alice@example.com", arguments=msgspec.Raw(f'{{"key":"{SECRET}"}}'.encode())
        ),
    )
    text = json.dumps(stored(request))
    assert SECRET not in text
    assert "alice" not in text


def test_the_gravest_finding_is_the_severity_and_a_denial_at_least_low() -> None:
    grave = Finding(rule="key", severity="critical", action="block", direction="arguments", count=1)
    assert stored(requested(decision="deny", findings=(grave,)))["severity"] == "Critical"
    assert stored(requested(decision="deny", findings=()))["severity"] == "Low"
    assert stored(CASES["ok"])["severity"] == "Informational"


texts = st.text(max_size=20)
counts = st.integers(0, 2**53)
activities = st.builds(
    Activity,
    uid=texts, call_id=texts, tenant=texts, region=texts, requested_us=counts, ended_us=counts, subject_id=texts,
    status=st.sampled_from([*CASES, "cancelled", "pending", "timeout", "upstream-failed", "of a later version"]),
    agent=texts, session_id=texts, edge=texts, method=texts, root_call_id=texts, login=texts, issuer=texts,
    protocol=texts, server=texts, target=texts, mode=texts, reason=texts, message=texts, bundle=texts,
    decision=st.sampled_from(["allow", "deny", "ask", "limited"]), stage=texts, release=counts, masked=counts,
    rules=st.lists(texts, max_size=3).map(tuple), groups=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    labels=st.lists(texts, max_size=3).map(tuple), error_code=st.integers(-40_000, 40_000), total_us=counts,
    arguments_bytes=counts, arguments_digest=texts, result_bytes=counts, result_digest=texts, writer=texts, seq=counts,
)  # fmt: skip


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes here
@given(activities)
def test_whatever_the_fields_hold_the_object_is_valid(activity: Activity) -> None:
    value = json.loads(msgspec.json.encode(api_activity(activity)))
    assert problems(value) == []


@pytest.mark.parametrize("calls", [(), ("c1", "c2")])
def test_a_finding_is_a_valid_detection_finding_and_is_read_back(calls: tuple[str, ...]) -> None:
    raised = FindingRaised(
        id="f1", time_us=1_700_000_000_000_123, tenant="acme", region="eu", rule="burst", severity="high",
        title="Burst", message="Far more calls than usual.", subject_id="5ub", agent="claude-code", session_id="s",
        server="git", target="git_log", call_ids=calls,
    )  # fmt: skip
    value = msgspec.json.encode(detection_finding(raised, "detector.1", 3, "ab"))
    assert problems(json.loads(value), "detection_finding") == []
    read = open_finding(value)
    assert (read.id, read.time_us, read.severity, read.call_ids) == ("f1", raised.time_us, "high", calls)


LONG: dict[str, dict[str, Any]] = {
    "one text": {"target": "t" * 400_000},
    "a text of characters that JSON escapes": {"target": "\x01" * 140_000},
    "many labels": {"labels": tuple(f"label-{at}" for at in range(50_000))},
    "many long labels": {"labels": ("l" * 800,) * 1_000},
    "many long rules, in a bundle with a long name": {"rules": ("r" * 500,) * 1_000, "bundle": "b" * 100_000},
}


@pytest.mark.parametrize("others", LONG.values(), ids=LONG)
def test_what_is_long_is_clipped_and_said_to_be(others: dict[str, Any]) -> None:
    activity = activity_of(requested("c9", decision="deny", **others))
    assert activity is not None
    value = encoded(activity)
    assert len(value) <= EVENT_BYTES_MAX
    found = json.loads(value)
    assert problems(found) == []
    assert found["unmapped"]["tidegate"]["clipped"] is True
    assert found["metadata"]["uid"] == activity.uid
    assert found["status_code"] == activity.status


def test_a_text_of_the_greatest_length_stays_and_a_longer_one_shows_that_it_was_clipped() -> None:
    for length, kept in (
        (TEXT_CHARS_MAX, "ü" * TEXT_CHARS_MAX),
        (TEXT_CHARS_MAX + 1, "ü" * (TEXT_CHARS_MAX - 1) + "…"),
    ):
        activity = activity_of(completed(requested("c9", target="ü" * length)))
        assert activity is not None
        assert json.loads(encoded(activity))["api"]["request"]["data"]["target"] == kept
