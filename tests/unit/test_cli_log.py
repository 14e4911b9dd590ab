"""`log tail` and `why` over a log that this test fills: what is shown, filtered, and the rules in their own words."""

import asyncio
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import msgspec
import pytest

from tidegate.chain import Chain
from tidegate.errors import CallerFault, LogUnavailable
from tidegate.events import AnyEvent, CallCompleted, CallRequested, DecisionInputs, Finding, Sealed
from tidegate.log.sqlite import SqliteLog
from tidegate.policy.bundle import Bundle, load_bundle
from tidegate.policy.release import chunk_records
from tidegate_cli.explaining import explain
from tidegate_cli.matching import Wanted
from tidegate_cli.tailing import show_tail

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "01-first-call"
DENIED, ALLOWED, OPEN = "01900000-0000-7000-8000-00000000000d", "01900000-0000-7000-8000-00000000000a", "0190-open"
ALICE = Sealed(login="alice@example.com", subject="alice", arguments=msgspec.Raw(b'{"repo_path":"/etc"}'))


def requested(call_id: str, second: int, bundle: Bundle, **changes: object) -> CallRequested:
    fields: dict[str, object] = {
        "id": f"req-{call_id}", "time_us": second * 1_000_000, "tenant": "acme", "region": "local", "call_id": call_id,
        "root_call_id": call_id, "requested_us": second * 1_000_000, "subject_id": "ab12", "agent": "claude-code",
        "session_id": "s1", "method": "tools/call", "server": "git", "target": "git_log", "mode": "spool",
        "decision": "allow", "bundle": bundle.digest, "rules": ("eng-git-read",), "sealed": ALICE,
        "inputs": DecisionInputs(groups=("eng",), release=3),
    }  # fmt: skip
    return CallRequested(**(fields | changes))  # type: ignore[arg-type]


def completed(call: CallRequested) -> CallCompleted:
    common = {name: getattr(call, name) for name in ("tenant", "region", "call_id", "root_call_id", "requested_us")}
    common |= {
        name: getattr(call, name) for name in ("subject_id", "agent", "session_id", "method", "server", "target")
    }
    common |= {name: getattr(call, name) for name in ("mode", "decision", "bundle", "rules")}
    masked = Finding(rule="aws-access-key", severity="critical", action="mask", direction="result", count=1)
    result = Sealed(result=msgspec.Raw(b'{"content":[]}'))
    at_us = call.time_us + 4_200
    return CallCompleted(
        id="done", time_us=at_us, completed_us=at_us, outcome="ok", total_us=4_200, findings=(masked,), sealed=result,
        **common,
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose log holds a denied call, a finished one and one without completion."""
    house = tmp_path_factory.mktemp("house")
    bundle = load_bundle(shutil.copytree(EXAMPLE / "policy", house / "policy"))
    (house / "tidegate.yaml").write_text("tenant: acme\n")
    denied = requested(
        DENIED, 100, bundle, decision="deny", rules=("demo-repository-only",), reason="forbidden-by-rule",
        message="Agents may read the repository data/shop and no other.",
    )  # fmt: skip
    allowed = requested(ALLOWED, 200, bundle, sealed=Sealed(login="bob@example.com"), agent="cursor")
    left_open = requested(OPEN, 300, bundle)

    async def fill() -> None:
        log = SqliteLog(house / "data" / "log.db")
        await log.prepare()
        chain = Chain("test.1.1")
        events: list[AnyEvent] = [left_open, denied, allowed, completed(allowed)]
        await log.append([*chunk_records("acme", bundle), *map(chain.seal, events)])
        await log.close()

    (house / "data").mkdir()
    asyncio.run(fill())
    return house / "tidegate.yaml"


def tailed(config: Path, wanted: Wanted, last: int = 100) -> list[dict[str, object]]:
    out = io.StringIO()
    with redirect_stdout(out):
        show_tail(config, wanted, last=last, follow=False, as_json=True)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def told(config: Path, decision_id: str, *, as_json: bool = False) -> str:
    from tidegate_cli.output import console

    out = io.StringIO()
    console.cache_clear()
    try:
        with redirect_stdout(out):
            explain(config, decision_id, as_json)
    finally:
        console.cache_clear()
    return out.getvalue()


def test_tail_shows_events_in_order_of_time_as_they_are_stored(config: Path) -> None:
    found = tailed(config, Wanted())
    assert [event["call_id"] for event in found] == [DENIED, ALLOWED, ALLOWED, OPEN]
    assert [event["seq"] for event in found] == [2, 3, 4, 1]


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (Wanted(decision="deny"), [DENIED]),
        (Wanted(user="bob@example.com"), [ALLOWED]),
        (Wanted(agent="cursor"), [ALLOWED, ALLOWED]),
        (Wanted(since_us=250_000_000), [OPEN]),
        (Wanted(server="time"), []),
    ],
)
def test_tail_shows_what_the_filters_admit_and_nothing_else(config: Path, wanted: Wanted, ids: list[str]) -> None:
    assert [event["call_id"] for event in tailed(config, wanted)] == ids


def test_tail_begins_with_the_youngest_of_the_past(config: Path) -> None:
    assert [event["call_id"] for event in tailed(config, Wanted(), last=1)] == [OPEN]


def test_why_tells_who_what_and_the_rule_that_forbade_it_in_its_own_words(config: Path) -> None:
    story = told(config, DENIED)
    for part in (
        "alice@example.com",
        "claude-code",
        "git__git_log",
        '"/etc"',
        "deny",
        "forbidden-by-rule",
        "not forwarded",
    ):
        assert part in story, part
    assert 'context.args.repo_path == "data/shop"' in story
    assert "eng-time" not in story


def test_why_tells_outcome_findings_and_times_of_a_call_that_ended(config: Path) -> None:
    story = told(config, ALLOWED)
    for part in ("bob@example.com", "allow", "total 4.20 ms", "aws-access-key (critical) 1× in the result: mask"):
        assert part in story, part


def test_why_says_that_a_call_without_completion_is_unknown(config: Path) -> None:
    assert "unknown: no completion is recorded" in told(config, OPEN)


def test_why_in_json_is_one_document_with_the_events_as_stored(config: Path) -> None:
    story = json.loads(told(config, ALLOWED, as_json=True))
    assert story["requested"]["type"] == "call.requested.v1"
    assert story["ended"]["outcome"] == "ok"
    assert "permit" in story["rules"]["eng-git-read"]


def test_why_of_a_call_that_nobody_made_says_where_to_look(config: Path) -> None:
    with pytest.raises(CallerFault, match="log tail"):
        explain(config, "01900000-0000-7000-8000-0000000000ff", False)


def test_without_a_log_the_sentence_says_to_start_once(tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\n")
    with pytest.raises(LogUnavailable, match="start Tidegate once"):
        show_tail(tmp_path / "tidegate.yaml", Wanted(), last=1, follow=False, as_json=True)
