"""Records that anybody who may write to the log can make: readers show them or pass them over, and never end."""

import asyncio
import copy
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.parts.audit_events import completed, finding, requested

from tidegate.chain import Chain
from tidegate.ids import now_us
from tidegate.log.port import Record
from tidegate.log.sqlite import SqliteLog
from tidegate_cli.boxes import told
from tidegate_cli.deciding_again import decided_again
from tidegate_cli.explaining import CALL_EVENTS, Story, explain
from tidegate_cli.matching import Wanted, open_seen
from tidegate_cli.story import show
from tidegate_cli.tailing import show_tail
from tidegate_cli.telling import line_of

CALL_ID = "01a205ca-bd44-74f1-afdf-e35be03660e3"
CALL = requested(CALL_ID)
SOUND: list[dict[str, Any]] = [
    *(msgspec.json.decode(Chain("e.1.1").seal(event).value or b"") for event in (CALL, completed(CALL))),
    msgspec.json.decode(finding(call_ids=[CALL_ID])),
    {"type": "quarantine.imposed.v1", "time_us": now_us(), "tenant": "acme", "scope": "agent", "value": "a"},
    {"type": "subject.erased.v1", "time_us": now_us(), "tenant": "acme", "subject_id": "s", "keys": ["k"]},
    {"type": "server.registered.v1", "time_us": now_us(), "tenant": "acme", "server": "git", "labels": ["l"]},
]
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**22, -1, 2**63, 99_999_999_999_999_999])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, one in inner for place in places(one, (*path, key)))]


def put(record: dict[str, Any], path: tuple[Any, ...], odd: Any) -> dict[str, Any]:
    made = copy.deepcopy(record)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = odd
    return made


@st.composite
def odd_records(draw: st.DrawFn) -> dict[str, Any]:
    record = draw(st.sampled_from(SOUND))
    fields = [*places(record), ("sealed",), ("inputs",), ("rules",), ("call_ids",), ("findings",), ("total_us",)]
    return put(record, draw(st.sampled_from(fields)), draw(ODD))


@given(odd_records())
@example(SOUND[0] | {"type": "call.requested.x.v1", "rules": 5})
@example(SOUND[0] | {"type": "call.requested.v9", "labels": None})
@example(SOUND[1] | {"inputs": "x"})
@example(SOUND[1] | {"type": "call.abandoned.v1", "findings": [5]})
def test_a_record_of_any_content_is_shown_or_passed_over(record: dict[str, Any]) -> None:
    seen = open_seen(msgspec.json.encode(record))
    if seen is None:
        return
    assert seen.time_us >= 0
    assert line_of(seen)
    assert Wanted(user="x", tool="y").admits(seen) in (True, False)
    if seen.name not in CALL_EVENTS:
        return
    ended = None if seen.name == "call.requested" else seen
    story = Story(decision_id=CALL_ID, requested=seen, ended=ended, findings=(), rules={})
    assert decided_again(None, seen, {}) is not None
    assert msgspec.json.encode(story.document())
    with redirect_stdout(io.StringIO()):
        show(story)


@given(st.sampled_from(SOUND))
def test_a_sound_record_is_shown_whoever_else_writes_odd_ones(record: dict[str, Any]) -> None:
    assert open_seen(msgspec.json.encode(record)) is not None


@pytest.mark.parametrize("depth", [300, 950, 5_000])
def test_what_nests_too_deeply_to_be_written_again_is_passed_over(depth: int) -> None:
    text = msgspec.json.encode(SOUND[0] | {"sealed": {"arguments": "@@"}})
    assert open_seen(text.replace(b'"@@"', b"[" * depth + b"]" * depth)) is None


def test_what_nests_too_deeply_inside_a_box_stays_a_text() -> None:
    deep = b"[" * 900 + b"]" * 900
    part = told(msgspec.structs.replace(CALL.sealed, arguments=msgspec.Raw(deep)))
    assert part["arguments"] == deep.decode()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A log with a sound call, a foreign tenant's of the same id before it, and records that are no events."""
    (tmp_path / "tidegate.yaml").write_text("tenant: acme\n")
    (tmp_path / "data").mkdir()
    foreign = requested(CALL_ID, tenant="other", decision="deny", subject_id="mallory")
    junk = [SOUND[0] | {"rules": 5}, SOUND[0] | {"time_us": 10**22}, SOUND[0] | {"sealed": "x"}]

    async def fill() -> None:
        log = SqliteLog(tmp_path / "data" / "log.db")
        await log.prepare()
        await log.append(
            [Chain("x.1.1").seal(foreign), *(Record("calls", b"k", msgspec.json.encode(one)) for one in junk)]
        )
        await log.append(
            [Record("detections", b"k", b'{"class_uid":2004,"message":"' + CALL_ID.encode() + b'","unmapped":null}')]
        )
        await log.append(
            [Chain("e.1.1").seal(CALL), Record("detections", b"k", finding(tenant="other", call_ids=[CALL_ID]))]
        )
        await log.close()

    asyncio.run(fill())
    return tmp_path / "tidegate.yaml"


def test_why_answers_with_the_own_tenants_call_and_counts_what_is_no_event(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(config, CALL_ID, as_json=True)
    out, err = capsys.readouterr()
    story = msgspec.json.decode(out)
    assert (story["requested"]["tenant"], story["requested"]["decision"]) == ("acme", "allow")
    assert story["findings"] == []
    assert "4 records are no event" in err


def test_tail_shows_the_own_tenants_events_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_tail(config, Wanted(), last=100, follow=False, as_json=True)
    out, err = capsys.readouterr()
    assert [msgspec.json.decode(line)["tenant"] for line in out.splitlines()] == ["acme"]
    assert "4 records are no event" in err


def test_readers_of_several_issuers_tenants_are_shown_all_of_those(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(
        "tenant: acme\nidentity:\n  issuers:\n    - {issuer: 'https://a', jwks_uri: 'https://a/keys', tenant: other}\n"
    )
    show_tail(config, Wanted(), last=100, follow=False, as_json=True)
    shown = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(one["tenant"] for one in shown if "tenant" in one) == ["acme", "other"]
    explain(config, CALL_ID, as_json=True)
    assert msgspec.json.decode(capsys.readouterr().out)["requested"]["tenant"] == "acme"
