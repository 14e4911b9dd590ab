"""What `tidegate why` says where a decision cannot be made again from its event."""

import pytest
from tests.parts.audit_events import requested

from tidegate.chain import Chain
from tidegate.ids import uuid7
from tidegate.policy.bundle import bundle_of
from tidegate_cli.deciding_again import decided_again
from tidegate_cli.matching import open_seen

BEGUN = uuid7()
RULE = '@id("a") permit (principal, action, resource);'


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("tasks/get", f"as the call that began the task was, {BEGUN}"),
        ("tasks/update", f"as the call that began the task was, {BEGUN}"),
        ("tasks/cancel", "not by a rule"),
    ],
    ids=["get", "update", "cancel"],
)
def test_a_request_about_a_task_was_decided_as_its_call(method: str, told: str) -> None:
    event = requested(method=method, root_call_id=BEGUN, bundle="b0b0", stage="policy")
    seen = open_seen(Chain("e.1.1").seal(event).value or b"")
    assert seen is not None
    bundle = bundle_of({"manifest.json": b'{"v": 1, "name": "x"}', "policies/p.cedar": RULE.encode()})
    assert told in decided_again(bundle.canonical, seen, {})
