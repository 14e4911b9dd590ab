"""The detector's leaves: ids, the OCSF object, quarantines, marks and bounds."""

from typing import Any

import msgspec
import pytest
from tests.parts.detector_events import SECOND, START_US, reading, request, sending

from tidegate.chain import Chain, open_event
from tidegate.events import FindingRaised
from tidegate.log.port import Delivered
from tidegate.settings import Detector
from tidegate_detector import state as state_module
from tidegate_detector.findings import Principal, derived_id
from tidegate_detector.marks import Mark, Place
from tidegate_detector.ocsf import detection_finding, seal_finding
from tidegate_detector.quarantine import quarantine_for, seal_quarantine
from tidegate_detector.state import PartitionState, observe

SETTINGS = Detector()


def finding(**others: Any) -> FindingRaised:
    own = {
        "id": derived_id("x"),
        "time_us": START_US,
        "tenant": "acme",
        "region": "eu",
        "rule": "exfiltration",
        "severity": "high",
        "title": "Sensitive text",
        "message": "Text that was read was sent.",
        "subject_id": "5ub",
        "agent": "claude-code",
        "session_id": "se55ion",
        "server": "mail",
        "target": "send",
        "call_ids": ("r", "s"),
    }
    return FindingRaised(**(own | others))


def test_derived_ids_are_version_8_and_keep_their_causes_apart() -> None:
    one = derived_id("ab", "c")
    assert (one[14], one[19] in "89ab", len(one)) == ("8", True, 36)
    assert one == derived_id("ab", "c") != derived_id("a", "bc")


def test_the_published_value_is_an_ocsf_detection_finding() -> None:
    value = detection_finding(finding())
    required = {
        "activity_id",
        "category_uid",
        "class_uid",
        "finding_info",
        "metadata",
        "severity_id",
        "time",
        "type_uid",
    }
    assert required <= value.keys()
    assert (value["class_uid"], value["category_uid"], value["activity_id"], value["type_uid"]) == (2004, 2, 1, 200401)
    assert {"version", "product"} <= value["metadata"].keys()
    assert {"uid", "title"} <= value["finding_info"].keys()
    assert {"type_id", "name"} <= value["finding_info"]["analytic"].keys()
    assert value["metadata"]["uid"] == value["finding_info"]["uid"] == derived_id("x")
    assert value["time"] == START_US // 1000
    assert [evidence["data"]["call_id"] for evidence in value["evidences"]] == ["r", "s"]
    assert value["unmapped"]["tidegate"]["subject_id"] == "5ub"


@pytest.mark.parametrize(("severity", "number"), [("info", 1), ("low", 2), ("medium", 3), ("high", 4), ("critical", 5)])
def test_severities_have_their_ocsf_numbers(severity: str, number: int) -> None:
    assert detection_finding(finding(severity=severity))["severity_id"] == number


def test_findings_are_links_of_the_writers_chain_like_events() -> None:
    chain = Chain("detector.x")
    first, second = seal_finding(chain, finding()), seal_finding(chain, finding())
    assert (first.topic, first.key) == ("detections", b"acme|5ub|claude-code")
    own = msgspec.json.decode(second.value or b"")["unmapped"]["tidegate"]
    assert (own["writer"], own["seq"], len(own["prev"])) == ("detector.x", 2, 64)


@pytest.mark.parametrize(
    ("changes", "severity", "imposed"),
    [
        ({}, "high", True),
        ({}, "critical", True),
        ({}, "medium", False),
        ({"quarantine_from": "medium"}, "medium", True),
        ({"quarantine_from": "never"}, "critical", False),
    ],
)
def test_a_quarantine_follows_from_the_configured_severity_on(
    changes: dict[str, Any], severity: str, imposed: bool
) -> None:
    settings = msgspec.structs.replace(SETTINGS, **changes)
    assert (quarantine_for(finding(severity=severity), settings, START_US) is not None) == imposed


def test_a_quarantine_names_the_session_or_else_the_subject() -> None:
    by_session = quarantine_for(finding(), SETTINGS, START_US)
    without = quarantine_for(finding(session_id=""), SETTINGS, START_US)
    by_subject = quarantine_for(finding(), msgspec.structs.replace(SETTINGS, quarantine_scope="subject"), START_US)
    assert by_session is not None and without is not None and by_subject is not None  # noqa: PT018
    assert (by_session.scope, by_session.value) == ("session", "se55ion")
    assert (without.scope, without.value) == (by_subject.scope, by_subject.value) == ("subject", "5ub")
    assert by_session.expires_us == START_US + 3_600 * SECOND
    assert by_session.quarantine_id == by_subject.quarantine_id


def test_a_finding_about_the_past_imposes_nothing_that_would_be_over() -> None:
    assert quarantine_for(finding(), SETTINGS, START_US + 3_600 * SECOND) is None
    lasting = msgspec.structs.replace(SETTINGS, quarantine_s=0)
    imposed = quarantine_for(finding(), lasting, START_US + 9_999 * SECOND)
    assert imposed is not None
    assert imposed.expires_us == 0


def test_history_and_state_hold_the_same_bytes_of_a_quarantine() -> None:
    event = quarantine_for(finding(), SETTINGS, START_US)
    assert event is not None
    history, twin = seal_quarantine(Chain("detector.x"), event)
    assert (history.topic, twin.topic) == ("control", "control-state")
    assert history.key == twin.key == f"acme|{event.quarantine_id}".encode()
    assert history.value == twin.value
    assert open_event(twin.value or b"").id == event.id


def at(offset: int, time_us: int) -> Delivered:
    return Delivered("calls", 0, offset, b"", b"", (), time_us)


def test_a_restart_reads_again_what_the_rules_remember_and_nothing_much_older() -> None:
    place = Place()
    for n in range(1_000):
        place.advance(at(n, START_US + n * SECOND))
    resume = place.resume_at(100 * SECOND)
    assert resume is not None
    assert 999 - 100 - 20 <= resume <= 999 - 100
    assert len(place.steps) < 20


def test_before_a_memorys_length_has_passed_a_restart_reads_from_where_this_run_began() -> None:
    place = Place()
    assert place.resume_at(100 * SECOND) is None
    for n in range(50, 90):
        place.advance(at(n, START_US + n * SECOND))
    assert place.resume_at(100 * SECOND) == 50


def test_a_mark_says_what_was_judged_unless_the_topic_was_made_anew() -> None:
    place = Place(mark=Mark(10, START_US), judged=Mark(10, START_US))
    assert place.is_judged(at(9, START_US))
    assert not place.is_judged(at(10, START_US + 1))
    assert not place.is_judged(at(3, START_US + 1))


def test_principals_beyond_the_bound_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "PRINCIPALS_MAX", 3)
    state = PartitionState()
    for name in ("a", "b", "c", "a", "d"):
        observe(state, request(START_US, subject_id=name), SETTINGS)
    assert [principal.subject_id for principal in state.principals] == ["c", "a", "d"]
    assert state.evicted_principals == 1


def test_fingerprints_beyond_the_bound_are_taken_from_those_longest_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "PRINTS_MAX", 4)
    state = PartitionState()
    for name in ("a", "b", "c"):
        observe(state, reading(START_US, name, subject_id=name), SETTINGS)
    held = {principal.subject_id: known.memory.prints for principal, known in state.principals.items()}
    assert held["a"] == held["b"] == 0 < held["c"]
    assert state.prints == held["c"]
    assert state.evicted_calls == 2


def test_calls_of_two_tenants_with_equal_subjects_never_meet() -> None:
    state = PartitionState()
    assert observe(state, reading(START_US, "r", tenant="acme"), SETTINGS) == []
    assert observe(state, sending(START_US + 1, "s", tenant="umbrella"), SETTINGS) == []
    assert set(state.principals) == {
        Principal("acme", "5ub", "claude-code"),
        Principal("umbrella", "5ub", "claude-code"),
    }
