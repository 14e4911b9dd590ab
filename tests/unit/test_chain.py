"""A chain goes on without a gap past what cannot be encoded, and no finding is too large for it."""

from typing import Any

import pytest
from tests.parts.audit_events import requested

from tidegate.audit.links import link_of
from tidegate.audit.runs import leaves_of
from tidegate.chain import Chain
from tidegate.events import FindingRaised
from tidegate.limits import EVENT_BYTES_MAX
from tidegate_detector.findings import raised
from tidegate_detector.ocsf import seal_finding


def finding(message: str) -> FindingRaised:
    return FindingRaised(
        id="0192f0c1-0000-8000-8000-00000000abcd", time_us=1, tenant="acme", region="eu", rule="r", severity="low",
        title="t", message=message, subject_id="", agent="", session_id="",
    )  # fmt: skip


def test_what_cannot_be_encoded_takes_no_number() -> None:
    chain = Chain("w")
    records = [chain.seal(requested())]
    with pytest.raises(UnicodeEncodeError):
        chain.seal(requested(target="\ud800"))
    with pytest.raises(UnicodeEncodeError):
        seal_finding(chain, finding("\ud800"))
    records += [seal_finding(chain, finding("again")), chain.seal(requested())]
    links = [link for one in records if (link := link_of(one.value or b"")) is not None]
    assert [link.seq for link in links] == [1, 2, 3]
    gathered = leaves_of(links)
    assert (len(gathered.leaves), gathered.breaches) == (1, [])


def test_a_finding_about_calls_with_huge_texts_fits_into_the_log() -> None:
    names = ("region", "subject_id", "agent", "session_id", "server", "target")
    texts: dict[str, Any] = dict.fromkeys(names, "\x01" * 20_000)
    event = requested(**texts)
    about = raised(
        "burst", event, ("1",), severity="high", title="t", message="m" * 500_000, call_ids=("c" * 9_000,) * 50
    )
    value = seal_finding(Chain("detector.1"), about).value or b""
    assert len(value) < EVENT_BYTES_MAX
    assert raised("burst", event, ("1",), severity="high", title="", message="", call_ids=()).id == about.id
