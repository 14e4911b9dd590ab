"""A call's times: one reading of the wall clock, and what has passed since. Wall clocks are set while calls run."""

import time

import msgspec
import pytest

from tidegate.claims import Principal
from tidegate.ids import SubjectId, now_us
from tidegate_edge import steps
from tidegate_edge.accept import Request
from tidegate_edge.calls import Ongoing, Place, Terms, completed_event, requested_event
from tidegate_edge.visit import Visit

HOUR_US = 3_600_000_000
PRINCIPAL = Principal(
    tenant="t",
    issuer="i",
    subject="a",
    user="a",
    login="a",
    agent="cli",
    agent_source="client_id",
    token_id="",
    sid="",
    key="",
    actors=(),
    groups=(),
    scopes=(),
    issued_us=0,
    expires_us=0,
    subject_id=SubjectId("s"),
)


@pytest.mark.parametrize("ahead_us", [HOUR_US, -HOUR_US])
def test_a_clock_that_is_set_while_a_call_runs_changes_none_of_its_durations(ahead_us: int) -> None:
    request = Request("tools/call", 1, {"name": "echo"}, b"{}", True, "2026-07-28")
    began_us = now_us() + ahead_us  # by the clock as it was then: it has been set since
    call = Ongoing(Visit(PRINCIPAL, "", "w"), request, None, "echo", Terms(), began_us)
    call.policy_us = call.now_us() - call.requested_us
    place = Place("t", "r", "edge")
    requested_event(call, place, 0)
    call.forwarded_us = call.now_us()
    while time.monotonic_ns() - call.begun_ns < 2_000_000:
        pass
    event = completed_event(call, steps.cancelled(call), place, 0)
    assert 0 <= event.policy_us <= event.total_us
    assert 0 < event.upstream_us <= event.total_us
    assert 2_000 <= event.total_us < 60_000_000
    assert event.completed_us == event.time_us == began_us + event.total_us
    assert msgspec.json.decode(msgspec.json.encode(event))["requested_us"] == began_us
