"""`log tail` and `why` of what a policy's life brings: holds, taints, approvals, limits, canaries and shadows."""

import asyncio
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.text import Text
from tests.parts.audit_events import requested

from tidegate.chain import Chain
from tidegate.events import ApprovalGranted, BundleObserved
from tidegate.log.sqlite import SqliteLog
from tidegate_cli.explaining import Story, explain
from tidegate_cli.matching import Seen, Wanted, open_seen
from tidegate_cli.output import soon
from tidegate_cli.story import show
from tidegate_cli.tailing import show_tail
from tidegate_cli.telling import line_of

WHO = {"subject_id": "5f2c9a77aa00", "agent": "cc", "sealed": {"login": "alice@example.com"}}
CALL = {"type": "call.requested.v1", "server": "git", "target": "log", "call_id": "c1", "bundle": "b" * 64, **WHO}
DIGEST = "d" * 64


def seen(**fields: Any) -> Seen:
    found = open_seen(msgspec.json.encode({"time_us": 5_000_000, "tenant": "acme", **fields}))
    assert found is not None
    return found


def line(**fields: Any) -> str:
    """As a person sees it, without the time."""
    return " ".join(Text.from_markup(line_of(seen(**fields))).plain.split()[1:])


def told(**fields: Any) -> str:
    shown = io.StringIO()
    ended = {"type": "call.completed.v1", "call_id": "c1", "outcome": "ok", "records": 3, "cost_micros": 20_000}
    with redirect_stdout(shown):
        story = Story(decision_id="c1", requested=seen(**CALL, **fields), ended=seen(**ended), findings=(), rules={})
        show(story)
    return " ".join(shown.getvalue().split())


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (
            {
                "type": "tool.held.v1",
                "server": "git",
                "tool": "log",
                "digest": DIGEST,
                "action": "hold",
                "rank": "widened",
                "changes": ["[It] takes more.", "It says more."],
            },
            "tool held back git__log widened: [It] takes more. (and 1 more) dddddddddddd",
        ),
        (
            {
                "type": "tool.held.v1",
                "server": "git",
                "tool": "log",
                "digest": DIGEST,
                "action": "alert",
                "rank": "new",
            },
            "tool alert git__log new dddddddddddd",
        ),
        (
            {
                "type": "tool.approved.v1",
                "server": "git",
                "tool": "log",
                "digest": DIGEST,
                "actor": "bob",
                "reason": "ok",
            },
            "tool trusted git__log dddddddddddd by bob: ok",
        ),
        (
            {
                "type": "session.tainted.v1",
                "server": "hr",
                "target": "read",
                "labels": ["sensitive", "x"],
                "call_id": "c1",
            }
            | {"session_id": "s1"}
            | WHO,
            "tainted session alice@example.com with cc hr__read sensitive, x c1",
        ),
        (
            {
                "type": "bundle.observed.v1",
                "edge": "e1",
                "ring": "main",
                "role": "canary",
                "number": 4,
                "digest": DIGEST,
            }
            | {"decided": 50, "denied": 2},
            "bundle observed canary release 4 of main, 50 decided, 2 denied e1",
        ),
        (
            {
                "type": "bundle.activated.v1",
                "edge": "e1",
                "ring": "main",
                "role": "shadow",
                "number": 5,
                "digest": DIGEST,
            },
            "bundle activated shadow release 5 of main, dddddddddddd e1",
        ),
        (
            {"type": "quarantine.imposed.v1", "quarantine_id": "q1", "scope": "subject", "value": "ab", "reason": "odd"}
            | {"actor": "bob", "expires_us": 0},
            "quarantine of person ab: odd until lifted by bob q1",
        ),
        (
            {"type": "quarantine.lifted.v1", "quarantine_id": "q1", "actor": "bob", "reason": "all well"},
            "quarantine lifted q1 by bob: all well",
        ),
        (
            {"type": "approval.granted.v1", "approval_id": "a1", "actor": "bob", "channel": "api", "reason": "fine"},
            "approval granted a1 by bob (api): fine",
        ),
        (
            {
                "type": "bundle.released.v1",
                "ring": "main",
                "role": "canary",
                "number": 6,
                "digest": "",
                "cause": "withdrawn",
            },
            "bundle released canary release 6 of main, which ends it withdrawn",
        ),
        (
            CALL | {"decision": "limited", "rules": ["pace"], "retry_after_ms": 12_400, "message": "Too many."},
            "limited alice@example.com with cc git__log pace again in 12 s Too many. c1",
        ),
        (
            CALL
            | {
                "decision": "allow",
                "rules": ["p"],
                "approval_id": "a1",
                "inputs": {"role": "canary", "release": 4},
                "shadows": [{"bundle": DIGEST, "release": 5, "decision": "deny", "reason": "x", "rules": ["no"]}],
            },
            "allow alice@example.com with cc git__log p by canary release 4 approval a1 a shadow: deny, no c1",
        ),
    ],
)
def test_a_line_says_what_happened(event: dict[str, Any], wanted: str) -> None:
    assert line(**event) == wanted


def test_the_story_of_a_limited_call_says_when_there_is_room_again() -> None:
    shown = told(decision="limited", reason="rate-limited", stage="limit", rules=["pace"], retry_after_ms=90_000)
    assert "room again in 90 s" in shown
    assert "room" not in told(decision="limited", reason="rate-limited", stage="limit", rules=["pace"])


def test_the_story_of_an_approved_call_names_the_approval_the_canary_and_what_was_counted() -> None:
    shown = told(decision="allow", reason="approved", approval_id="a1", inputs={"role": "canary", "release": 4})
    for words in ("approval a1", "canary release 4", "counted 3 records, a cost of 0.020000"):
        assert words in shown, words


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A log with a call that somebody approved, and with what an edge counted for a guard."""
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\n")
    (tmp_path / "data").mkdir()
    common: dict[str, Any] = {"time_us": 1_700_000_000_000_000, "tenant": "acme", "region": "eu"}
    call = requested("call-one", tenant="acme", approval_id="a1", reason="approved")
    by: dict[str, Any] = {"approval_id": "a1", "actor": "bob", "channel": "api"}
    granted = ApprovalGranted(id="e2", **common, **by, reason="fine", expires_us=1)
    other = ApprovalGranted(id="e3", **common | {"tenant": "other"}, **by | {"actor": "eve"}, expires_us=1)
    counted = BundleObserved(id="e4", **common, edge="e1", ring="main", number=4, digest=DIGEST, since_us=1, decided=5)

    async def fill() -> None:
        log = SqliteLog(tmp_path / "data" / "log.db")
        await log.prepare()
        chain = Chain("x.1.1")
        await log.append([chain.seal(event) for event in (call, granted, other, counted)])
        await log.close()

    asyncio.run(fill())
    return tmp_path / "tidegate.yaml"


def test_why_tells_who_approved_the_call(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explain(config, "call-one", as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "approval granted a1 by bob (api): fine" in shown
    assert "eve" not in shown
    explain(config, "call-one", as_json=True)
    story = msgspec.json.decode(capsys.readouterr().out)
    assert [one["actor"] for one in story["approvals"]] == ["bob"]


def test_tail_is_quiet_about_what_edges_count_for_guards_and_json_has_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_tail(config, Wanted(), last=100, follow=False, as_json=False)
    shown = capsys.readouterr().out
    assert "approval granted" in shown
    assert "observed" not in shown
    show_tail(config, Wanted(), last=100, follow=False, as_json=True)
    kinds = {msgspec.json.decode(text)["type"] for text in capsys.readouterr().out.splitlines()}
    assert "bundle.observed.v1" in kinds


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, ""), (-5, ""), (12.4, "in 12 s"), (2_400, "in 40 min"), (34_000, "in 9.4 h")]
)
def test_a_time_to_wait_is_told_as_people_say_it(seconds: float, words: str) -> None:
    assert soon(seconds) == words
